// The field for classes. Words that the model was not trained on are underlined while they are typed, with a reason.
import { post } from "./api.js";

const PAUSE = 350;

export class WordsField {
  constructor(field, marks, hint, submit) {
    Object.assign(this, { field, marks, hint, told: {}, timer: 0, advice: [] });
    field.addEventListener("input", () => this.changed());
    field.addEventListener("keydown", event => {
      if (event.key === "Enter") { event.preventDefault(); submit(); }
    });
    new ResizeObserver(() => this.draw()).observe(field);
  }

  get value() { return this.field.value; }

  set value(text) {
    this.field.value = text;
    this.changed();
  }

  // Appends a word, or replaces the half-typed word by it.
  add(word) {
    const words = this.value.split(",").map(w => w.trim()).filter(Boolean);
    if (!words.includes(word)) this.value = [...words, word].join(", ");
    this.field.focus();
  }

  changed() {
    this.draw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), PAUSE);
  }

  async ask() {
    const text = this.value;
    if (!text.trim()) { this.told = {}; this.draw(); return; }
    try {
      const told = await post("/api/familiar", { words: text });
      if (text !== this.value) return;
      this.told = told;
      this.draw();
    } catch { /* a hint is not worth a message */ }
  }

  draw() {
    const { field, marks, hint } = this;
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
    marks.style.width = `${field.offsetWidth}px`;
    const parts = field.value.split(/(,\s*)/).map(part => {
      const word = part.replace(/\s*#[0-9a-fA-F]{3,6}\s*$/, "").trim();
      if (!this.told[word]) return document.createTextNode(part);
      const mark = document.createElement("mark");
      mark.textContent = part;
      return mark;
    });
    marks.replaceChildren(...parts);
    const sentences = [...Object.values(this.told), ...this.advice].map(sentence => {
      const line = document.createElement("p");
      line.className = "unsure";
      line.textContent = sentence;
      return line;
    });
    if (!sentences.length) {
      const line = document.createElement("p");
      line.textContent = "Commas between classes, bars between synonyms.";
      sentences.push(line);
    }
    if (hint.textContent !== sentences.map(s => s.textContent).join("")) hint.replaceChildren(...sentences);
  }
}

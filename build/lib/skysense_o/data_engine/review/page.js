// Keyboard shortcuts of the review page, and suggestions of class names while the reviewer types. See page.py.
"use strict";

const BUTTONS = { a: "accept", x: "reject", u: "undo", n: "next", p: "previous", g: "agreement" };
const MODES = { c: 0, m: 1, s: 2 };
const MAX_SUGGESTIONS = 8;

const field = id => document.querySelector(`#${id} input`);
const isField = element => element === field("rename") || element === field("entry");
const offers = () => [...document.querySelectorAll("#offers li")];

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !event.key || !field("rename")) return;
  if (event.key === "Escape") {
    event.target.blur();
    showOffers([]);
    document.querySelector("#mode input").click();
  } else if (event.target === field("rename")) {
    moveAmongOffers(event);
  } else if (!event.target.closest("input:not([type=radio]), textarea") && !event.repeat && press(event.key)) {
    event.preventDefault();
  }
});

function press(key) {
  if (key in MODES) {
    document.querySelectorAll("#mode input")[MODES[key]].click();
    if (key !== "c") field("entry").focus();
  } else if (key === "r") {
    field("rename").focus();
  } else {
    const button = document.getElementById(BUTTONS[key] ?? `choice-${key}`);
    if (!button) return false;
    button.click();
  }
  return true;
}

// Names that start with the typed text come first, then names that contain it.
document.addEventListener("input", event => {
  if (event.target !== field("rename") || !event.isTrusted) return;
  const text = event.target.value.trim().toLowerCase();
  const names = [...document.querySelectorAll("#names option")].map(option => option.value);
  const index = name => name.toLowerCase().indexOf(text);
  const matches = text ? names.filter(name => index(name) >= 0).sort((a, b) => (index(a) > 0) - (index(b) > 0)) : [];
  showOffers(matches.slice(0, MAX_SUGGESTIONS));
});

function showOffers(names) {
  const list = document.querySelector("#offers ul");
  list.replaceChildren(...names.map(name => Object.assign(document.createElement("li"), { textContent: name })));
}

function moveAmongOffers(event) {
  const all = offers(), step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!all.length || !step) return;
  const at = all.findIndex(item => item.className);
  take(all[(at + step + all.length + (at < 0 && step < 0)) % all.length]);
  event.preventDefault();
}

function take(item) {
  offers().forEach(other => (other.className = other === item ? "taken" : ""));
  field("rename").value = item.textContent;
  field("rename").dispatchEvent(new Event("input", { bubbles: true }));
}

document.addEventListener("pointerdown", event => {
  const item = event.target.closest("#offers li");
  if (!item) return;
  take(item);
  event.preventDefault(); // the field must keep the focus
});

document.addEventListener("keypress", event => {
  if (event.key !== "Enter" || !isField(event.target)) return;
  showOffers([]);
  setTimeout(() => event.target.blur(), 0); // runs after the page has sent the text; then shortcuts work again
});

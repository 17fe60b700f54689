// Messages that disappear, and the card with the progress and the stop button of a job.
import { $, element } from "./panel.js";

const SECONDS = 10, QUICK = 250;

export function toast(text, kind = "") {
  const close = element("button", { type: "button", aria: { label: "Close this message" } }, "×");
  const made = element("div", { className: `toast card ${kind}` }, element("p", {}, text), close);
  close.onclick = () => made.remove();
  const same = [...$("#toasts").children].find(other => other.querySelector("p").textContent === text);
  same?.remove();
  $("#toasts").append(made);
  while ($("#toasts").children.length > 3) $("#toasts").firstChild.remove();
  setTimeout(() => made.remove(), 1000 * SECONDS);
}

export class JobCard {
  constructor() {
    $("#stop").onclick = () => this.stop();
  }

  // Begins a job; returns the signal of its AbortController. Quick jobs show no card.
  begin(title) {
    this.title = title;
    this.controller = new AbortController();
    $("#job-text").textContent = `${title} …`;
    $("#job-bar").removeAttribute("value");
    this.timer = setTimeout(() => { $("#job").hidden = false; }, QUICK);
    return this.controller.signal;
  }

  told({ place, waiting, progress }) {
    $("#job-text").textContent = place ? `Waiting: place ${place} of ${waiting}` : `${this.title} …`;
    if (typeof progress === "number") $("#job-bar").value = progress;
    else $("#job-bar").removeAttribute("value");
  }

  end() {
    clearTimeout(this.timer);
    $("#job").hidden = true;
    this.controller = null;
  }

  stop() { this.controller?.abort(); }
}

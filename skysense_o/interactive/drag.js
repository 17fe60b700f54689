// A box dragged over the picture #view: drawn while it grows, then told to the server through the hidden field #dragged
// as "x0 y0 x1 y1" in pixels of the picture as it is shown. A click stays a click. See demo/app.py, review_page.py.
"use strict";

const LEAST_DRAG = 6;
const picture = () => document.querySelector("#view img");
let from = null, frame = null;

document.addEventListener("dragstart", event => { if (event.target === picture()) event.preventDefault(); });

document.addEventListener("pointerdown", event => {
  dropFrame();
  from = event.target === picture() && event.isPrimary && event.button === 0 ? event : null;
});

document.addEventListener("pointermove", event => {
  if (!from || Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY) < LEAST_DRAG) return;
  if (!frame) {
    frame = document.body.appendChild(document.createElement("div"));
    frame.style.cssText = "position:fixed; border:2px dashed white; outline:1px solid black; pointer-events:none; z-index:9999";
  }
  const [x0, x1] = [from.clientX, event.clientX].sort((a, b) => a - b);
  const [y0, y1] = [from.clientY, event.clientY].sort((a, b) => a - b);
  Object.assign(frame.style, { left: `${x0}px`, top: `${y0}px`, width: `${x1 - x0}px`, height: `${y1 - y0}px` });
});

document.addEventListener("pointerup", event => {
  if (frame) {
    const field = document.querySelector("#dragged textarea, #dragged input");
    field.value = [...place(from), ...place(event)].join(" ");
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  from = null;
});

// A finger that scrolls the page draws nothing.
document.addEventListener("pointercancel", () => { from = null; dropFrame(); });

// The browser ends a drag with a click, which is none.
document.addEventListener("click", event => {
  if (frame) event.stopPropagation();
  dropFrame();
}, true);

function dropFrame() {
  frame?.remove();
  frame = null;
}

// The picture fills its element as far as its proportions allow, in the middle.
function place(event) {
  const image = picture(), box = image.getBoundingClientRect();
  const zoom = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const along = (at, begin, size, pixels) => {
    const value = (at - begin - (size - pixels * zoom) / 2) / zoom;
    return Math.round(Math.min(Math.max(value, 0), pixels - 1));
  };
  return [
    along(event.clientX, box.left, box.width, image.naturalWidth),
    along(event.clientY, box.top, box.height, image.naturalHeight),
  ];
}

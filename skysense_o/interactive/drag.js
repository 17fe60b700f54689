// A box dragged over the image #view: drawn while it grows, then told to the server through the hidden field #dragged
// as "x0 y0 x1 y1 n" in pixels of the image as it is shown; n makes the same box twice two boxes. A click stays a click.
// See demo/app.py, review_page.py.
"use strict";

const LEAST_DRAG = 6;
const image = () => document.querySelector("#view img");
let from = null, frame = null;

document.addEventListener("dragstart", event => { if (event.target === image()) event.preventDefault(); });

document.addEventListener("pointerdown", event => {
  dropFrame();
  const { target, clientX: x, clientY: y } = event;
  const begun = target === image() && event.isPrimary && event.button === 0;
  from = begun ? { x, y, src: target.src, place: place(event) } : null;
});

document.addEventListener("pointermove", event => {
  if (!from || Math.hypot(event.clientX - from.x, event.clientY - from.y) < LEAST_DRAG) return;
  if (!frame) {
    frame = document.body.appendChild(document.createElement("div"));
    frame.style.cssText = "position:fixed; border:2px dashed white; outline:1px solid black; pointer-events:none; z-index:9999";
  }
  const [x0, x1] = [from.x, event.clientX].sort((a, b) => a - b);
  const [y0, y1] = [from.y, event.clientY].sort((a, b) => a - b);
  Object.assign(frame.style, { left: `${x0}px`, top: `${y0}px`, width: `${x1 - x0}px`, height: `${y1 - y0}px` });
});

document.addEventListener("pointerup", event => {
  const begun = from;
  from = null;
  if (!begun || !frame) return;
  setTimeout(dropFrame);  // after the click that the browser makes of it
  if (image()?.src !== begun.src) return;  // the server has changed it meanwhile
  const field = document.querySelector("#dragged textarea, #dragged input");
  field.value = [...begun.place, ...place(event), Math.round(performance.now())].join(" ");
  field.dispatchEvent(new Event("input", { bubbles: true }));
});

// A finger that scrolls the page draws nothing.
document.addEventListener("pointercancel", () => { from = null; dropFrame(); });

// The browser ends a drag with a click, which is none; keys that press buttons are no clicks of a hand.
document.addEventListener("click", event => { if (frame && event.isTrusted) event.stopPropagation(); }, true);

function dropFrame() {
  frame?.remove();
  frame = null;
}

// The image is in the middle of its element, as large as its proportions (and "scale-down": its pixels) allow.
function place(event) {
  const image = image(), box = image.getBoundingClientRect();
  const most = getComputedStyle(image).objectFit === "scale-down" ? 1 : Infinity;
  const zoom = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight, most);
  const along = (at, begin, size, pixels) => {
    const value = (at - begin - (size - pixels * zoom) / 2) / zoom;
    return Math.round(Math.min(Math.max(value, 0), pixels - 1));
  };
  return [
    along(event.clientX, box.left, box.width, image.naturalWidth),
    along(event.clientY, box.top, box.height, image.naturalHeight),
  ];
}

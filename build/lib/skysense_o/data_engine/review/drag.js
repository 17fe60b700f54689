// Lets the user drag a box over the image #view. The box is drawn during the drag, then sent to the server through the
// hidden field #dragged as "x0 y0 x1 y1 n", in pixels of the displayed image. n is a time stamp, so that dragging the
// same box again is a change, too. Clicks pass unchanged.
"use strict";

const LEAST_DRAG = 6;
const image = () => document.querySelector("#view img");
let from = null, frame = null;

document.addEventListener("dragstart", event => { if (event.target === image()) event.preventDefault(); });

document.addEventListener("pointerdown", event => {
  dropFrame();
  const { target, clientX: x, clientY: y } = event;
  const begun = target === image() && event.isPrimary && event.button === 0;
  from = begun ? { x, y, src: target.src, pixel: pixelOf(event) } : null;
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
  setTimeout(dropFrame);  // runs after the click that the browser sends at the end of a drag
  if (image()?.src !== begun.src) return;  // the server has replaced the image during the drag
  const field = document.querySelector("#dragged textarea, #dragged input");
  field.value = [...begun.pixel, ...pixelOf(event), Math.round(performance.now())].join(" ");
  field.dispatchEvent(new Event("input", { bubbles: true }));
});

// Scrolling by touch cancels the box.
document.addEventListener("pointercancel", () => { from = null; dropFrame(); });

// Stop the click that the browser sends at the end of a drag. Clicks made by keyboard shortcuts (not trusted) pass.
document.addEventListener("click", event => { if (frame && event.isTrusted) event.stopPropagation(); }, true);

function dropFrame() {
  frame?.remove();
  frame = null;
}

// The pixel x, y of the image under the pointer. The image is centred in its element and scaled to fit; "scale-down"
// never enlarges it.
function pixelOf(event) {
  const element = image(), box = element.getBoundingClientRect();
  const largest = getComputedStyle(element).objectFit === "scale-down" ? 1 : Infinity;
  const zoom = Math.min(box.width / element.naturalWidth, box.height / element.naturalHeight, largest);
  const along = (client, begin, size, pixels) => {
    const value = (client - begin - (size - pixels * zoom) / 2) / zoom;
    return Math.round(Math.min(Math.max(value, 0), pixels - 1));
  };
  return [
    along(event.clientX, box.left, box.width, element.naturalWidth),
    along(event.clientY, box.top, box.height, element.naturalHeight),
  ];
}

// Connects the parts of the page: actions of the user, answers of the server, and what is drawn.
import { get, getBlob, job, post, postForBlob, remove, Stopped } from "./api.js";
import { decode } from "./masks.js";
import { JobCard, toast } from "./messages.js";
import * as panel from "./panel.js";
import { $ } from "./panel.js";
import { Viewer } from "./viewer.js";
import { WordsField } from "./words.js";

const NONE = "none";
let about, image = null, images = [], loaded = {}, waiting = Promise.resolve();
const card = new JobCard();
const remembered = name => { try { return sessionStorage.getItem(name); } catch { return null; } };
const remember = (name, value) => { try { sessionStorage.setItem(name, value); } catch { /* not available in private windows */ } };
const phone = () => matchMedia("(max-width: 760px)").matches;

// The elements that cover the map; the whole image is shown between them.
function insets() {
  const box = $("#panel").getBoundingClientRect(), gap = 16, look = $("#look").getBoundingClientRect().height + 18;
  if (phone()) return { left: gap, right: gap, top: $("#tools").getBoundingClientRect().bottom + 10, bottom: innerHeight - box.top + look };
  return { left: box.right + gap, right: gap, top: $("#tools").getBoundingClientRect().bottom + 12, bottom: look + 8 };
}

const viewer = new Viewer($("#map"), {
  hover: (x, y) => { tell(x, y); soon(x, y); },
  leave: () => { $("#readout").replaceChildren(); noGhost(); },
  use: (x, y) => (viewer.tool === "move" ? measure(x, y) : act("Selecting", "click", { x, y, inside: viewer.tool === "add" })),
  boxing: (x0, y0, x1, y1) => previewed("box", { x0, y0, x1, y1 }),
  box: (x0, y0, x1, y1) => { noGhost(); act("Selecting", "box", { x0, y0, x1, y1 }); },
  moved: () => { if ($("#map").matches(".keys #map:focus-visible")) { placeCross(); tell(...viewer.center()); } },
}, insets);

const words = new WordsField($("#words"), $("#words-marks"), $("#words-hint"), () => segment());

// Requests

// Jobs run one after another, so that no click is lost. A failed job shows a message and changes nothing else.
function run(title, path, body = {}, then = show) {
  const next = waiting.then(async () => {
    const signal = card.begin(title);
    try {
      await then(await job(path, body, line => card.told(line), signal));
    } catch (error) {
      if (error instanceof Stopped) toast("Stopped.");
      else await failed(error);
    } finally {
      card.end();
    }
  });
  waiting = next.catch(() => {});
  return next;
}

async function failed(error) {
  toast(error.message, "error");
  if (error.status === undefined) { if (!(error.name === "Error")) console.error(error); return; }
  if (error.status === 409 || error.status === 404) await refresh();
}

const act = (title, action, body) => (image ? run(title, `/api/images/${image.id}/${action}`, body) : toast("No image yet: drop one, or take an example."));

const asked = () => ({ words: words.value, background: $("#background").value, threshold: $("#threshold").value / 100 });
const segment = () => act("Segmenting", "segment", asked());
const openExample = k => run(`Opening ${about.examples[k].title}`, `/api/examples/${k}`, {}, async next => { fillIn(next); await show(next); });

async function openFile(file) {
  if (!file) return;
  if (file.size > about.upload_bytes) {
    toast(`${file.name} has ${panel.number(file.size / 2 ** 20)} MB, and ${panel.number(about.upload_bytes / 2 ** 20)} MB are allowed here.`, "error");
    return;
  }
  await run(`Opening ${file.name}`, `/api/upload?name=${encodeURIComponent(file.name)}`, file, async opened => {
    await show(opened);
    words.field.focus();
    words.field.select();
  });
}

async function showImage(id) {
  try {
    await show(await get(`/api/images/${id}`));
  } catch (error) { await failed(error); }
}

async function closeImage(id) {
  try {
    await take(await remove(`/api/images/${id}`));
  } catch (error) { await failed(error); }
}

// All images of this visitor, from the server.
async function refresh() {
  try {
    const state = await get("/api/state");
    about = state.about;
    await take(state);
    if (state.notice) toast(state.notice, "error");
    return state;
  } catch (error) { toast(error.message, "error"); return null; }
}

async function take(state) {
  images = state.images;
  if (!state.current) { image = null; loaded = {}; draw(); return; }
  if (image?.id === state.current) { draw(); return; }
  await showImage(state.current);
}

// Drawing

async function show(next) {
  const other = next.id !== image?.id;
  const before = image;
  image = next;
  if (!images.some(({ id }) => id === next.id)) images = (await get("/api/state")).images;
  if (other) {
    loaded = {};
    $("#sheet").scrollTop = 0;
    $("#readout").replaceChildren();
    if (phone() && Number($("#handle").dataset.step) === 2) setSheet(1);
    viewer.hidden = new Set(JSON.parse(remembered(`hidden ${next.id}`) ?? "[]"));
    viewer.open(next);
    split = null;
    if ($("#basemap").checked) viewer.basemap(about.basemap);
    fillIn(next);
    placeDivider();
  }
  setThreshold($("#threshold").value);
  noGhost();
  viewer.clearPart();
  const at = name => `/api/images/${next.id}/${name}.png?v=${next.version}`;
  const [classes, region, regions] = await Promise.all([
    next.classes && getBlob(at("classes")).then(decode), next.region && getBlob(at("region")).then(decode), next.summary && getBlob(at("regions")).then(decode),
  ]);
  if (image !== next) return;
  loaded = { classes, region, regions };
  const names = new Set((next.classes ?? []).map(row => row.name)), old = new Set((other ? [] : before?.classes ?? []).map(row => row.name));
  viewer.hidden = new Set([...viewer.hidden].filter(name => names.has(name)));
  if (next.has_none && !old.has(NONE)) viewer.hidden.add(NONE);
  viewer.drawClasses(classes ?? null, next.classes);
  viewer.drawRegion(region ?? null);
  viewer.drawRegions(regions ?? null);
  viewer.drawPrompt(next.region);
  draw();
  $("#map").dataset.shown = `${next.id} ${next.version}`;
}

// The words, background and threshold that an image was segmented with.
function fillIn(next) {
  if (next.words) words.value = next.words;
  $("#background").value = next.background;
  setThreshold(Math.round(100 * next.threshold));
}

function draw() {
  const empty = !image;
  panel.drawImages(images, image?.id, { show: showImage, close: closeImage });
  panel.drawAbout(image);
  words.advice = [panel.gsdAdvice(image, about.gsd)].filter(Boolean);
  words.draw();
  drawChips();
  panel.drawRegion(image?.region, { like: () => act("Finding everything like it", "like", asked()), clear: () => act("Clearing", "clear") });
  panel.drawAnswers(image, about.questions, about.scene_names);
  panel.drawSummary(image?.summary);
  $("#results").hidden = !image?.classes;
  $("#copy").hidden = !image?.command;
  if (image) $("#run-json").href = `/api/images/${image.id}/run.json`;
  $("#undo").disabled = !image?.can_undo;
  for (const part of ["#segment", "#everything", "#name-scene"]) $(part).disabled = empty;
  $("#basemap-choice").hidden = !(about.basemap && image?.map);
  if (empty && viewer.map) { viewer.map.remove(); viewer.map = null; delete $("#map").dataset.shown; }
}

function drawChips() {
  panel.drawChips(image?.classes, viewer.hidden, {
    toggle: name => hide(name, !viewer.hidden.has(name)),
    all: () => {
      const any = image.classes.some(row => !viewer.hidden.has(row.name));
      viewer.hidden = new Set(any ? image.classes.map(row => row.name) : []);
      masksChanged();
    },
    focus: name => { viewer.focus = name && !viewer.hidden.has(name) ? name : null; viewer.paintClasses(); },
  });
}

function hide(name, hidden) {
  if (hidden) viewer.hidden.add(name);
  else viewer.hidden.delete(name);
  viewer.focus = null;
  masksChanged();
}

function masksChanged() {
  remember(`hidden ${image.id}`, JSON.stringify([...viewer.hidden]));
  viewer.paintClasses();
  drawChips();
}

// Under the pointer

function tell(x, y) {
  const readout = $("#readout"), classes = loaded.classes;
  if (!image || !viewer.isInside(x, y)) { readout.replaceChildren(); return; }
  const lines = [];
  if (classes) {
    const i = Math.floor(y) * classes.width + Math.floor(x), label = classes.labels[i], row = image.classes.find(({ id }) => id === label);
    if (row) {
      const swatch = panel.element("i");
      swatch.style.background = row.color;
      lines.push(swatch, panel.element("b", {}, row.name), ` confidence ${Math.round(classes.scores[i] / 2.55)} %`);
    } else if (label === image.nodata) lines.push("no data here");
  }
  const places = image.map ? coordinates(x, y) : [`x ${Math.floor(x)}, y ${Math.floor(y)}`];
  lines.push(...places.map(place => panel.element("small", {}, place)));
  readout.replaceChildren(...lines);
}

function coordinates(x, y) {
  const [own, [longitude, latitude]] = viewer.coordinates(x, y);
  const degrees = `${Math.abs(latitude).toFixed(5)}° ${latitude < 0 ? "S" : "N"}, ${Math.abs(longitude).toFixed(5)}° ${longitude < 0 ? "W" : "E"}`;
  return image.map.units === "m" ? [degrees, `${panel.number(own[0])} m E, ${panel.number(own[1])} m N`] : [degrees];
}

// A preview of what a click or box would select, shown when the pointer rests.
let resting = 0, looking = null;
function soon(x, y) {
  if (viewer.tool === "box") return;
  if (phone() || viewer.tool === "move" || !viewer.isInside(x, y)) noGhost();
  else previewed("click", { x, y, inside: viewer.tool === "add" });
}

function previewed(action, body) {
  noGhost();
  if (!image || !about.prompts || card.controller) return;
  resting = setTimeout(() => preview(`/api/preview/${image.id}/${action}`, body, looking = new AbortController()), 140);
}

// The server gives no mask while it works on the image, for example on an earlier preview, so ask again a few times.
async function preview(path, body, { signal }, tries = 8) {
  try {
    const map = await decode(await postForBlob(path, body, signal));
    if (signal.aborted) return;
    if (map) viewer.drawGhost(map);
    else if (tries) setTimeout(() => signal.aborted || preview(path, body, { signal }, tries - 1), 250);
  } catch { /* a preview is not worth a message */ }
}

function noGhost() {
  clearTimeout(resting);
  looking?.abort();
  looking = null;
  if (viewer.layers?.ghost) viewer.drawGhost(null);
}

async function measure(x, y) {
  if (!image?.classes) return;
  try {
    const part = await get(`/api/images/${image.id}/part?x=${x}&y=${y}`);
    if (part) viewer.drawPart(part.rings, [x, y], panel.partCard(part, stepTo));
  } catch (error) { await failed(error); }
}

// The parts of a class one by one, the largest first.
async function stepTo(name, number, pressed) {
  try {
    const part = await get(`/api/images/${image.id}/part?name=${encodeURIComponent(name)}&number=${number}`);
    const content = panel.partCard(part, stepTo);
    viewer.drawPart(part.rings, part.inside, content, true);
    content.querySelector(`[data-step="${pressed}"]`)?.focus();
  } catch (error) { await failed(error); }
}

function placeCross() {
  const { left, top, right, bottom } = insets(), size = viewer.map.getSize();
  Object.assign($("#cross").style, { left: `${(left + size.x - right) / 2}px`, top: `${(top + size.y - bottom) / 2}px` });
}

// Opacity, split, tools

function setOpacity(value) {
  $("#opacity").value = value;
  viewer.opacity = value / 100;
  viewer.paintClasses();
  remember("opacity", value);
}

let split = null;
function placeDivider() {
  const divider = $("#divider");
  divider.hidden = split === null;
  $("#split").setAttribute("aria-pressed", String(split !== null));
  if (!viewer.map) return;
  if (split === null) { viewer.splitAt(null); return; }
  const { left, right } = insets(), x = left + (innerWidth - left - right) * split / 100;
  divider.style.left = `${x}px`;
  divider.setAttribute("aria-valuenow", Math.round(split));
  viewer.splitAt(x);
}

function moveDivider(share) {
  split = share === null ? null : Math.min(100, Math.max(0, share));
  placeDivider();
}

function setTool(tool) {
  for (const button of document.querySelectorAll("[data-tool]")) {
    const chosen = button.dataset.tool === tool;
    button.setAttribute("aria-checked", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
  }
  noGhost();
  if (tool !== "move" && viewer.map) viewer.clearPart();
  viewer.useTool(tool);
}

// Without a threshold of the user, a class that is asked for alone has one of its own.
function setThreshold(value) {
  $("#threshold").value = value;
  const own = image?.threshold ? null : image?.used_threshold;
  $("#threshold-value").textContent = Number(value) ? `${value} %` : own ? `${Math.round(100 * own)} % for a single class` : "none";
}

const sheets = ["low-sheet", "", "wide-sheet"];
function setSheet(step) {
  const index = Math.min(2, Math.max(0, step));
  document.body.classList.remove(...sheets.filter(Boolean));
  if (sheets[index]) document.body.classList.add(sheets[index]);
  $("#handle").setAttribute("aria-expanded", String(index === 2));
  $("#handle").dataset.step = index;
}

// Events

$("#segment").onclick = segment;
$("#file").onchange = event => { openFile(event.target.files[0]); event.target.value = ""; };
$("#opacity").oninput = event => setOpacity(event.target.value);
$("#threshold").oninput = event => setThreshold(event.target.value);
$("#split").onclick = () => moveDivider(split === null ? 50 : null);
$("#fit").onclick = () => viewer.map && viewer.fit();
$("#undo").onclick = () => image?.can_undo && act("Undoing", "undo");
$("#everything").onclick = () => act("Finding everything", "everything");
$("#name-scene").onclick = () => act("Comparing the whole image", "name_scene");
$("#basemap").onchange = event => viewer.map && viewer.basemap(event.target.checked ? about.basemap : "");
$("#ask").onsubmit = event => { event.preventDefault(); act("Answering", "ask", { question: $("#question").value }); };
$("#save").onclick = () => image && run("Packing the results", `/api/images/${image.id}/files`, {}, async next => {
  await show(next);
  panel.element("a", { href: `/api/images/${next.id}/results.zip?v=${next.version}`, download: "" }).click();
});
$("#copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(image.command);
    toast("The command is in the clipboard.");
  } catch { toast(image.command); }
};
$("#open").addEventListener("keydown", event => { if (event.key === " ") $("#file").click(); });
for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => setTool(button.dataset.tool);
$("#tools").addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const buttons = [...document.querySelectorAll("[data-tool]:not([hidden])")], at = buttons.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  const next = buttons[(at + step + buttons.length) % buttons.length];
  next.focus();
  setTool(next.dataset.tool);
});

const shareAt = x => { const { left, right } = insets(); return 100 * (x - left) / (innerWidth - left - right); };
$("#divider").addEventListener("pointerdown", event => { event.preventDefault(); event.currentTarget.setPointerCapture(event.pointerId); event.currentTarget.focus(); });
$("#divider").addEventListener("pointermove", event => { if (event.currentTarget.hasPointerCapture(event.pointerId)) moveDivider(shareAt(event.clientX)); });
$("#divider").addEventListener("keydown", event => {
  const to = { ArrowLeft: split - 2, ArrowRight: split + 2, Home: 0, End: 100 }[event.key];
  if (to !== undefined) { event.preventDefault(); moveDivider(to); }
});

let grip = null;
$("#handle").addEventListener("pointerdown", event => { grip = event.clientY; event.currentTarget.setPointerCapture(event.pointerId); });
$("#handle").addEventListener("pointerup", event => {
  const moved = grip === null ? 0 : event.clientY - grip, step = Number($("#handle").dataset.step);
  grip = null;
  if (Math.abs(moved) > 20) { $("#handle").dataset.dragged = "1"; setSheet(step + (moved < 0 ? 1 : -1)); }
});
$("#handle").onclick = () => {
  if ($("#handle").dataset.dragged) { delete $("#handle").dataset.dragged; return; }
  setSheet((Number($("#handle").dataset.step) + 1) % 3);
};
$("#panel").addEventListener("transitionend", event => { if (event.target === $("#panel") && viewer.map) { viewer.fit(); placeDivider(); } });

let over = 0;
const holdsFiles = event => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", event => { if (holdsFiles(event)) { over += 1; $("#drop").hidden = false; } });
addEventListener("dragleave", event => { if (holdsFiles(event) && --over <= 0) { over = 0; $("#drop").hidden = true; } });
addEventListener("dragover", event => { if (holdsFiles(event)) event.preventDefault(); });
addEventListener("drop", event => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  over = 0;
  $("#drop").hidden = true;
  openFile(event.dataTransfer.files[0]);
});
addEventListener("resize", () => { if (viewer.map) { viewer.map.invalidateSize(); placeDivider(); } });
$("#map").addEventListener("focus", () => { if (viewer.map && $("#map").matches(":focus-visible")) placeCross(); });

addEventListener("pointermove", () => document.body.classList.remove("keys"));
addEventListener("keydown", () => document.body.classList.add("keys"), true);

let peeking = null;
addEventListener("keydown", event => {
  if (event.key === "Escape") { card.stop(); viewer.dropFrame(); viewer.corner = null; if (viewer.map) { viewer.clearPart(); viewer.drawMarks(); } noGhost(); }
  if (event.target.closest("input[type=text], textarea") || event.altKey) return;
  if (event.key.toLowerCase() === "z") { event.preventDefault(); $("#undo").click(); return; }
  if (event.ctrlKey || event.metaKey) return;
  const keys = {
    "/": () => words.field.focus(), m: () => setTool("move"), a: () => about.prompts && setTool("add"), r: () => about.prompts && setTool("cut"),
    b: () => setTool("box"), s: () => $("#split").click(), 0: () => $("#fit").click(),
    h: () => { if (peeking === null) { peeking = $("#opacity").value; viewer.opacity = 0; viewer.paintClasses(); } },
  };
  const does = keys[event.key.toLowerCase()];
  if (does) { event.preventDefault(); does(); }
});
addEventListener("keyup", event => { if (event.key.toLowerCase() === "h" && peeking !== null) { setOpacity(peeking); peeking = null; } });

// Start

setSheet(1);
setTool("move");
setOpacity(remembered("opacity") ?? 45);
const state = await refresh();
if (state) {
  panel.drawExamples(about.examples, openExample);
  panel.drawKnown(about, word => words.add(word));
  for (const tool of ["add", "cut"]) document.querySelector(`[data-tool=${tool}]`).hidden = !about.prompts;
  $("#without-words").hidden = !about.prompts;
  if (!about.prompts) {
    document.querySelector("[data-tool=box]").title = "Drag a box to name it, or to find more like it. For masks of clicks, load weights that were trained with prompts.";
  }
  if (!state.current && about.examples.length) openExample(0);
}

// The viewer: one Leaflet map for plain images (CRS.Simple) and for scenes (Web Mercator tiles). Everything outside of
// this file speaks of positions on the grid of the masks: x to the right, y down, in its pixels.
import { paint, parseColour, regionColour } from "./masks.js";

const L = window.L;
const YELLOW = [255, 210, 0];
const SMALL = 24;  // pixels of the window
const VECTOR = { color: "#ffd200", weight: 3, fillOpacity: 0.08, interactive: false };

// Between two zoom levels tiles are scaled, and the ground would show through gaps: so each tile is a pixel larger.
const Tiles = L.TileLayer.extend({
  _initTile(tile) {
    L.TileLayer.prototype._initTile.call(this, tile);
    const { x, y } = this.getTileSize();
    Object.assign(tile.style, { width: `${x + 1}px`, height: `${y + 1}px` });
  },
});

const Canvas = L.ImageOverlay.extend({
  _initImage() {
    this._image = L.DomUtil.create("canvas", "leaflet-image-layer leaflet-zoom-animated");
    this._image.onselectstart = this._image.onmousemove = L.Util.falseFn;
  },
});

export class Viewer {
  // on: {hover(x, y), leave(), use(x, y), boxing(x0, y0, x1, y1), box(x0, y0, x1, y1), moved()}; insets() returns the widths that are covered at the map's edges.
  constructor(element, on, insets) {
    Object.assign(this, { element, on, insets, views: new Map(), tool: "move", opacity: 0.5, hidden: new Set() });
    element.addEventListener("keydown", event => this.onKey(event));
    element.addEventListener("pointerdown", event => this.onDown(event));
    window.addEventListener("pointermove", event => this.onDrag(event));
    window.addEventListener("pointerup", event => this.onUp(event));
    window.addEventListener("pointercancel", () => this.dropFrame());
    element.addEventListener("pointerleave", () => this.on.leave());
  }

  // Shows an image; everything drawn on the previous image is removed.
  open(image) {
    if (this.map) {
      this.views.set(this.id, { center: this.map.getCenter(), zoom: this.map.getZoom() });
      this.map.remove();
    }
    this.id = image.id;
    this.place = image.map;
    const [height, width] = image.map ? image.map.shape : [image.height, image.width];
    Object.assign(this, { width, height, classes: null, region: null, regions: null, ghost: null, corner: null, layers: {}, part: null });
    const map = this.map = L.map(this.element, {
      crs: image.map ? L.CRS.EPSG3857 : L.CRS.Simple, zoomControl: false, attributionControl: false, zoomSnap: 0.1, zoomDelta: 0.75,
      wheelPxPerZoomLevel: 90, minZoom: image.map ? 1 : -6, maxZoom: image.map ? image.map.native_zoom + 5 : 6, boxZoom: false,
      doubleClickZoom: false, keyboardPanDelta: 90, maxBoundsViscosity: 0.6,
    });
    L.control.zoom({ position: "bottomright" }).addTo(map);
    for (const [name, level] of [["masks", 410], ["picks", 420], ["marks", 430]]) map.createPane(name).style.zIndex = level;
    for (const name of ["masks", "picks"]) map.getPane(name).style.pointerEvents = "none";
    if (image.map) {
      const [sw, ne] = image.map.bounds;
      this.nw = L.CRS.EPSG3857.project(L.latLng(ne[0], sw[1]));
      this.se = L.CRS.EPSG3857.project(L.latLng(sw[0], ne[1]));
      this.bounds = L.latLngBounds(sw, ne);
      new Tiles(`/api/images/${image.id}/tiles/{z}/{x}/{y}.png`, {
        bounds: this.bounds, maxNativeZoom: image.map.native_zoom, maxZoom: 30, noWrap: true, updateWhenZooming: false,
      }).addTo(map);
      L.control.scale({ imperial: false, position: "bottomright", maxWidth: 120 }).addTo(map);
    } else {
      this.bounds = L.latLngBounds([-height, 0], [0, width]);
      this.base = L.imageOverlay(`/api/images/${image.id}/image.jpg`, this.bounds, { className: "photo" }).addTo(map);
      map.on("zoomend", () => this.base.getElement()?.classList.toggle("near", map.getZoom() >= 2));
    }
    map.setMaxBounds(this.bounds.pad(4));
    this.zooming = false;
    map.on("zoomstart", () => { this.zooming = true; });
    map.on("zoomend", () => { this.zooming = false; });
    map.on("mousemove", event => this.on.hover(...this.gridOf(event.latlng)));
    map.on("click", event => this.clicked(event.latlng));
    map.on("move zoom viewreset", () => { this.clip(); this.on.moved(); });
    const view = this.views.get(image.id);
    if (view) map.setView(view.center, view.zoom, { animate: false });
    else this.fit(false);
    this.useTool(this.tool);
  }

  fit(animate = true) {
    if (this.zooming) { this.map.once("zoomend", () => this.fit(animate)); return; }  // while it zooms, Leaflet ignores other moves
    const { left, top, right, bottom } = this.insets();
    this.map.fitBounds(this.bounds, { paddingTopLeft: [left, top], paddingBottomRight: [right, bottom], animate });
  }

  useTool(tool) {
    this.tool = tool;
    this.element.classList.toggle("tool", tool !== "move");
    if (!this.map) return;
    this.corner = null;
    this.drawMarks();
    if (tool === "box") this.map.dragging.disable();
    else this.map.dragging.enable();
  }

  basemap(address) {
    this.layers.basemap?.remove();
    this.layers.basemap = address && this.place ? L.tileLayer(address, { maxZoom: 30, maxNativeZoom: 19, zIndex: 0 }).addTo(this.map) : null;
  }

  // Positions

  gridOf(latlng) {
    if (!this.place) return [latlng.lng, -latlng.lat];
    const { x, y } = L.CRS.EPSG3857.project(latlng);
    return [(x - this.nw.x) / (this.se.x - this.nw.x) * this.width, (y - this.nw.y) / (this.se.y - this.nw.y) * this.height];
  }

  latLng([x, y]) {
    if (!this.place) return L.latLng(-y, x);
    return L.CRS.EPSG3857.unproject(L.point(
      this.nw.x + x / this.width * (this.se.x - this.nw.x), this.nw.y + y / this.height * (this.se.y - this.nw.y)));
  }

  // Coordinates of a position: [[x, y] in the scene's CRS, [longitude, latitude]]; from the table that the server sent.
  coordinates(x, y) {
    const n = Math.sqrt(this.place.lattice[0].length), at = (value, size) => Math.min(Math.max(value / size, 0), 1) * (n - 1);
    const u = at(x, this.width), v = at(y, this.height), i = Math.min(Math.floor(u), n - 2), j = Math.min(Math.floor(v), n - 2);
    return this.place.lattice.map(table => [0, 1].map(k => {
      const value = (row, column) => table[row * n + column][k];
      const above = value(j, i) * (i + 1 - u) + value(j, i + 1) * (u - i), below = value(j + 1, i) * (i + 1 - u) + value(j + 1, i + 1) * (u - i);
      return above * (j + 1 - v) + below * (v - j);
    }));
  }

  isInside(x, y) { return x >= 0 && y >= 0 && x < this.width && y < this.height; }

  center() {
    const size = this.map.getSize(), { left, top, right, bottom } = this.insets();
    return this.gridOf(this.map.containerPointToLatLng([(left + size.x - right) / 2, (top + size.y - bottom) / 2]));
  }

  // What is drawn

  canvas(name, pane) {
    return this.layers[name] ??= new Canvas("", this.bounds, { pane }).addTo(this.map);
  }

  drawClasses(map, rows) {
    Object.assign(this, { classes: map, rows });
    if (map) this.paintClasses();
    else { this.layers.classes?.remove(); this.layers.classes = null; }
  }

  paintClasses() {
    cancelAnimationFrame(this.painting);
    this.painting = requestAnimationFrame(() => {
      if (!this.classes) return;
      const colours = new Map(this.rows.filter(row => !this.hidden.has(row.name)).map(row => [row.id, parseColour(row.color)]));
      const only = this.focus && this.rows.find(row => row.name === this.focus)?.id;
      const colour = label => (only === undefined || only === null || label === only ? colours.get(label) ?? null : null);
      paint(this.canvas("classes", "masks").getElement(), this.classes, colour, this.opacity);
      this.element.dataset.painted = Number(this.element.dataset.painted ?? 0) + 1;
    });
  }

  drawRegion(map) { this.drawPick("region", map, label => (label ? YELLOW : null), 0.5); }
  drawRegions(map) { this.drawPick("regions", map, regionColour, 0.45); }
  drawGhost(map) { this.drawPick("ghost", map, label => (label ? [255, 255, 255] : null), 0.4); }

  drawPick(name, map, colour, opacity) {
    if (map) paint(this.canvas(name, "picks").getElement(), map, colour, opacity);
    else { this.layers[name]?.remove(); this.layers[name] = null; }
  }

  drawPrompt(region) { this.prompt = region; this.drawMarks(); }

  drawMarks() {
    this.layers.marks?.remove();
    const marks = this.layers.marks = L.layerGroup([], { pane: "marks" }).addTo(this.map), pane = "marks";
    if (this.prompt?.box) L.polygon(this.prompt.box.map(p => this.latLng(p)), { ...VECTOR, pane }).addTo(marks);
    for (const [x, y, label] of this.prompt?.points ?? []) {
      L.circleMarker(this.latLng([x, y]), { radius: 7, weight: 3, color: "#fff", fillColor: label ? "#128a3a" : "#d0021b", fillOpacity: 1, interactive: false, pane }).addTo(marks);
    }
    if (this.corner) L.circleMarker(this.latLng(this.corner), { radius: 5, weight: 2, color: "#000", fillColor: "#ffd200", fillOpacity: 1, interactive: false, pane }).addTo(marks);
  }

  // The outline of one part of a class, and the facts about it. With `look`, the map moves to the part if the part is
  // out of view or too small to be seen.
  drawPart(rings, xy, content, look = false) {
    this.clearPart();
    const outline = L.polygon(rings.map(ring => ring.map(p => this.latLng(p))), { ...VECTOR, color: "#fff", fillOpacity: 0.06, pane: "marks" });
    if (look) this.lookAt(outline.getBounds());
    const { left, top, bottom } = this.insets(), readout = innerWidth > 760 ? 0 : 70;
    const popup = L.popup({ autoPanPaddingTopLeft: [left, top + readout], autoPanPaddingBottomRight: [16, bottom] })
      .setLatLng(this.latLng(xy)).setContent(content);
    this.part = { outline: outline.addTo(this.map), popup: popup.openOn(this.map) };
    popup.once("remove", () => outline.remove());
  }

  lookAt(bounds) {
    const { left, top, right, bottom } = this.insets(), size = this.map.getSize();
    const [a, b] = [bounds.getNorthWest(), bounds.getSouthEast()].map(corner => this.map.latLngToContainerPoint(corner));
    const seen = a.x >= left && a.y >= top && b.x <= size.x - right && b.y <= size.y - bottom;
    if (seen && Math.max(b.x - a.x, b.y - a.y) >= SMALL) return;
    const zoom = Math.max(this.map.getZoom(), this.place ? this.place.native_zoom + 1 : 1);
    this.map.fitBounds(bounds.pad(1), { paddingTopLeft: [left, top], paddingBottomRight: [right, bottom], maxZoom: zoom, animate: false });
  }

  clearPart() {
    this.part?.popup.remove();
    this.part = null;
  }

  // The masks are shown to the right of `x`, in pixels of the window; null for everywhere.
  splitAt(x) { this.border = x; this.clip(); }

  clip() {
    const panes = ["masks", "picks"].map(name => this.map.getPane(name));
    if (this.border == null) { panes.forEach(pane => { pane.style.clipPath = ""; }); return; }
    const size = this.map.getSize(), a = this.map.containerPointToLayerPoint([this.border, 0]), b = this.map.containerPointToLayerPoint([size.x, size.y]);
    const path = `polygon(${a.x}px ${a.y}px, ${b.x}px ${a.y}px, ${b.x}px ${b.y}px, ${a.x}px ${b.y}px)`;
    panes.forEach(pane => { pane.style.clipPath = path; });
  }

  // Clicks, boxes, keys

  clicked(latlng) {
    const [x, y] = this.gridOf(latlng);
    if (this.tool === "box" || !this.isInside(x, y)) return;
    this.on.use(x, y);
  }

  onKey(event) {
    if (event.key !== "Enter" || event.target !== this.element || !this.map) return;
    event.preventDefault();
    const [x, y] = this.center();
    if (!this.isInside(x, y)) return;
    if (this.tool !== "box") this.on.use(x, y);
    else if (this.corner) {
      const [x0, y0] = this.corner;
      this.corner = null;
      this.on.box(x0, y0, x, y);
    } else { this.corner = [x, y]; this.drawMarks(); }
  }

  onDown(event) {
    if (this.start) { this.dropFrame(); this.on.leave(); return; }  // there is a second finger, so this is a pinch
    if (this.tool !== "box" || event.button !== 0 || !this.map || event.target.closest(".leaflet-control, .leaflet-popup")) return;
    this.start = this.gridOf(this.map.mouseEventToLatLng(event));
    this.from = [event.clientX, event.clientY];
  }

  onDrag(event) {
    if (!this.start || Math.hypot(event.clientX - this.from[0], event.clientY - this.from[1]) < 5) return;
    const [x, y] = this.clamped(event), [x0, y0] = this.begun();
    this.on.boxing(x0, y0, x, y);
    const corners = [[x0, y0], [x, y0], [x, y], [x0, y]].map(p => this.latLng(p));
    if (this.frame) this.frame.setLatLngs(corners);
    else this.frame = L.polygon(corners, { ...VECTOR, pane: "marks" }).addTo(this.map);
  }

  onUp(event) {
    const start = this.start && this.begun(), drawn = this.frame;
    this.dropFrame();
    if (start && drawn) this.on.box(...start, ...this.clamped(event));
  }

  clamped(event) { return this.within(this.gridOf(this.map.mouseEventToLatLng(event))); }

  begun() { return this.within(this.start); }

  within([x, y]) { return [Math.min(Math.max(x, 0), this.width), Math.min(Math.max(y, 0), this.height)]; }

  dropFrame() {
    this.frame?.remove();
    this.frame = this.start = null;
  }
}

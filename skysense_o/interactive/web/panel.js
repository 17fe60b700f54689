// What the panel shows of the current image. Texts from people or the server are set as text, never as HTML.

export const $ = selector => document.querySelector(selector);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { data, aria, ...rest } = properties;
  Object.assign(made, rest);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(aria ?? {})) made.setAttribute(name === "role" ? name : `aria-${name}`, value);
  made.append(...children.filter(child => child != null));
  return made;
}

export const percent = share => `${(100 * share).toFixed(share > 0 && share < 0.001 ? 2 : 1)} %`;

export const number = value => Math.round(value).toLocaleString("en-GB").replace("-", "−");

export function area(metres) {
  if (metres == null) return null;
  return metres >= 1e5 ? `${(metres / 1e6).toLocaleString("en-GB", { maximumFractionDigits: 2 })} km²` : `${number(metres)} m²`;
}

export function size(pixels, metres) { return metres == null ? `${number(pixels)} pixels` : `${area(metres)}, ${number(pixels)} pixels`; }

// Legend and visibility in one: a button per class. A class outside of the training has a mark with the reason.
export function drawChips(rows, hidden, on) {
  const list = $("#chips");
  if (!rows) { list.replaceChildren(); return; }
  const chips = rows.map(row => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.setProperty("--class", row.color);
    const details = [percent(row.share), area(row.area_m2)].filter(Boolean).join(" · ");
    const chip = element("button", {
      type: "button", data: { name: row.name }, aria: { pressed: String(!hidden.has(row.name)) },
      title: `Show or hide ${row.name}`, onclick: () => on.toggle(row.name),
      onmouseenter: () => on.focus(row.name), onmouseleave: () => on.focus(null),
      onfocus: event => event.target.matches(":focus-visible") && on.focus(row.name), onblur: () => on.focus(null),
    }, swatch, element("span", { className: "name" }, row.name), element("small", {}, details),
      row.doubt ? element("span", { className: "doubt", title: row.doubt, aria: { role: "img", label: row.doubt } }, "?") : null);
    return element("li", {}, chip);
  });
  const shown = rows.filter(row => !hidden.has(row.name)).length;
  if (rows.length > 3) {
    chips.push(element("li", {}, element("button", { type: "button", className: "solo", onclick: on.all }, shown ? "Hide all" : "Show all")));
  }
  const focused = document.activeElement?.dataset?.name;
  list.replaceChildren(...chips);
  if (focused) [...list.querySelectorAll("[data-name]")].find(chip => chip.dataset.name === focused)?.focus();
}

// The facts about one part of a class, with buttons to the next and to the previous part.
export function partCard(part, step) {
  const to = (way, text, label) => element("button", {
    type: "button", data: { step: way }, aria: { label }, title: label,
    onclick: () => step(part.name, (part.number - 1 + way + part.parts) % part.parts + 1, way),
  }, text);
  return element("div", { className: "part" },
    element("b", {}, part.name), size(part.pixels, part.area_m2), element("br"), `mean confidence ${Math.round(100 * part.score)} %`,
    part.parts > 1 ? element("div", { className: "steps" },
      to(-1, "‹", "The next larger part"), element("span", {}, `${number(part.number)} of ${number(part.parts)}`), to(1, "›", "The next smaller part")) : null);
}

export function drawRegion(region, on) {
  const section = $("#region");
  section.hidden = !region;
  if (!region) { section.replaceChildren(); return; }
  const quality = region.iou_pred == null ? "" : `, predicted IoU ${region.iou_pred.toFixed(2)}`;
  const names = region.names.map(([name, cosine]) => element("li", {}, element("span", {}, name), element("span", {}, cosine.toFixed(3))));
  const parts = [
    element("div", {}, element("b", {}, "Region"), `: ${size(region.pixels, region.area_m2)}${quality}`),
    names.length ? element("small", {}, "Most similar classes, by cosine") : null,
    names.length ? element("ol", { aria: { label: "Most similar classes and their cosines" } }, ...names) : null,
    element("div", { className: "row" },
      element("button", { type: "button", onclick: on.like, disabled: !region.pixels }, "Find everything like it"),
      element("button", { type: "button", className: "quiet", onclick: on.clear }, "Clear")),
  ];
  section.replaceChildren(...parts.filter(Boolean));
}

export function drawImages(images, current, on) {
  $("#images").replaceChildren(...images.map(({ id, name }) => element("div", { className: "shot" },
    element("button", { type: "button", title: name, aria: { pressed: String(id === current), label: `Show ${name}` }, onclick: () => on.show(id) },
      element("img", { src: `/api/images/${id}/thumbnail.jpg`, alt: "" })),
    element("button", { type: "button", className: "close", aria: { label: `Close ${name}` }, title: `Close ${name}`, onclick: () => on.close(id) }, "×"),
  )));
}

export function drawAbout(image, gsd) {
  const line = $("#about-image");
  if (!image) { line.textContent = "No image yet: drop one, or take an example."; return; }
  const facts = [image.name, `${image.width} × ${image.height} pixels`];
  if (image.map) facts.push(`${image.map.gsd.toPrecision(3)} m per pixel`, image.map.crs);
  line.replaceChildren(facts.join(" · "), ...image.notes.map(note => element("span", { className: /scaled|lost|without/.test(note) ? "note warn" : "note" }, note)));
  return gsdAdvice(image, gsd);
}

// A sentence, if the size of the scene's pixels is far from that of the training images.
export function gsdAdvice(image, [least, most] = []) {
  const gsd = image?.map?.gsd;
  if (!gsd || !most || (gsd >= least / 1.5 && gsd <= most * 1.5)) return null;
  return `${gsd.toPrecision(2)} m per pixel here, and the model was trained at ${least} to ${most} m: masks are less reliable.`;
}

export function drawAnswers(image, asks, names) {
  $("#questions").hidden = !asks && !names;
  $("#ask").hidden = !asks;
  $("#name-scene").hidden = !names;
  $("#answers").replaceChildren(...(image?.answers ?? []).toReversed().flatMap(([question, answer]) => [element("dt", {}, question), element("dd", {}, answer)]));
  $("#scene-names").replaceChildren(...(image?.scene_names ?? []).map(([name, cosine]) => element("li", {}, element("span", {}, name), element("span", {}, cosine.toFixed(3)))));
}

export function drawSummary(summary) {
  const line = $("#summary");
  line.hidden = !summary;
  if (!summary) return;
  const count = summary.reduce((sum, [, n]) => sum + n, 0);
  line.textContent = `${count} regions: ${summary.slice(0, 12).map(([name, n]) => `${name} (${n})`).join(", ")}`;
}

export function drawExamples(examples, open) {
  $("#examples").replaceChildren(...examples.map((example, k) => element("button", { type: "button", onclick: () => open(k) },
    element("img", { src: `/api/examples/${k}.jpg`, alt: "" }),
    element("span", {}, example.title, element("small", {}, example.words)))));
}

export function drawKnown({ known, gsd, weights }, add) {
  const scale = gsd.length ? `, ${gsd[0] === gsd[1] ? gsd[0] : `${gsd[0]}–${gsd[1]}`} m per pixel` : "";
  $("#knows > summary").textContent = known.length ? `It knows ${known.length} classes${scale}` : "What the model knows";
  $("#knows-text").textContent = known.length
    ? `${weights} was trained on these. You may ask for other words; the model takes each for the nearest training class.`
    : `${weights} does not say what it was trained on. Any words may be asked for.`;
  $("#known").replaceChildren(...known.map(word => element("button", { type: "button", title: `Add ${word} to the classes`, onclick: () => add(word) }, word)));
}

// Maps of classes and regions: the server sends them as the channels of a PNG, and they are coloured here, so that
// switching a class or moving a slider needs no request.

// {width, height, labels, scores} of a PNG, per pixel; null without one.
export async function decode(blob) {
  if (!blob) return null;
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const labels = new Uint16Array(width * height), scores = new Uint8Array(width * height);
  for (let i = 0, at = 0; i < labels.length; i++, at += 4) {
    labels[i] = pixels[at] + 256 * pixels[at + 2];
    scores[i] = pixels[at + 1];
  }
  return { width, height, labels, scores };
}

// Paints a map on a canvas. colour(label) gives [r, g, b] or null; borders are drawn stronger than areas.
export function paint(canvas, { width, height, labels }, colour, opacity) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height), out = image.data, known = new Map();
  const inside = Math.round(255 * opacity), edge = Math.round(255 * Math.min(1, opacity ? opacity + 0.35 : 0));
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const value = labels[i];
      let rgb = known.get(value);
      if (rgb === undefined) known.set(value, rgb = colour(value));
      if (!rgb) continue;
      const border = (x > 0 && labels[i - 1] !== value) || (y > 0 && labels[i - width] !== value)
        || (x < width - 1 && labels[i + 1] !== value) || (y < height - 1 && labels[i + width] !== value);
      const at = 4 * i;
      out[at] = rgb[0]; out[at + 1] = rgb[1]; out[at + 2] = rgb[2]; out[at + 3] = border ? edge : inside;
    }
  }
  context.putImageData(image, 0, 0);
}

export const parseColour = hex => [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16));

// Colours of regions that have no class: around the circle, far apart.
export const regionColour = label => {
  if (!label) return null;
  const hue = (label * 137.508) % 360, channel = n => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
};

// The masks of an answer of /segment, drawn.

import { decode } from "./rle.js";

const OTHERS = 25; // opacity of the other masks while one is looked at, 0 to 255
const ALONE = 190; // and of that one, at least

// For each pixel of a picture whose longer side has at most `longest` pixels, the number of its category, counted from
// 1; 0 = none of them.
export function labelsOf({ image: { width, height }, categories }, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  const size = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const labels = new Uint16Array(size[0] * size[1]);
  categories.forEach(({ area, segmentation }, index) => {
    if (area) stamp(labels, size, decode(segmentation), [width, height], index + 1);
  });
  return { width: size[0], height: size[1], labels };
}

function stamp(labels, [toWidth, toHeight], mask, [width, height], label) {
  for (let y = 0, at = 0; y < toHeight; y++) {
    const row = Math.floor((y * height) / toHeight) * width;
    for (let x = 0; x < toWidth; x++, at++) {
      if (mask[row + Math.floor((x * width) / toWidth)]) labels[at] = label;
    }
  }
}

// Tints the categories, their outlines strongest. `colours[i]` is that of the i-th category, nothing if it is hidden;
// with `only`, the others are faint.
export function paintLabels(canvas, { width, height, labels }, colours, { opacity = 0.5, only } = {}) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const tint = Math.round(255 * opacity);
  const steps = [1, -1, width, -width];
  for (let at = 0; at < labels.length; at++) {
    const label = labels[at];
    const colour = label && colours[label - 1];
    if (!colour) continue;
    let alpha = steps.every((step) => labels[at + step] === label) ? tint : 255;
    if (only !== undefined) alpha = only === label - 1 ? Math.max(alpha, ALONE) : OTHERS;
    setPixel(image.data, at, colour, alpha);
  }
  context.putImageData(image, 0, 0);
}

function setPixel(data, at, [red, green, blue], alpha) {
  data[4 * at] = red;
  data[4 * at + 1] = green;
  data[4 * at + 2] = blue;
  data[4 * at + 3] = alpha;
}

// How sure the model is at each place, as the strength of the category's colour. `maps` has a grey picture for each that
// was found.
export function paintHeat(canvas, { width, height }, maps, colours, { opacity = 0.5, only } = {}) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  maps.forEach((map, index) => {
    if (!map || !colours[index] || (only ?? index) !== index) return;
    context.globalAlpha = only === index ? 1 : opacity;
    context.drawImage(tinted(map, width, height, colours[index]), 0, 0);
  });
}

function tinted(map, width, height, colour) {
  const layer = Object.assign(document.createElement("canvas"), { width, height });
  const context = layer.getContext("2d", { willReadFrequently: true });
  context.drawImage(map, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  for (let at = 0; at < width * height; at++) setPixel(image.data, at, colour, image.data[4 * at]);
  context.putImageData(image, 0, 0);
  return layer;
}

// The outline of everything that is marked, a few pixels wide.
export function outline(canvas, { width, height, labels }, colour) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  const px = Math.max(2, Math.round(Math.max(width, height) / 200));
  labels.forEach((label, at) => {
    if (!label || [1, -1, width, -width].every((step) => labels[at + step])) return;
    context.fillRect((at % width) - px / 2, Math.floor(at / width) - px / 2, px, px);
  });
}

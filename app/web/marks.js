// Marks of a photo, as they were drawn, in pixels of the upright photo: sharp at any size, and easy to undo.

import { decode } from "./rle.js";

const LEAST_BOX_PX = 3; // a click is no box

// What can be seen of a list of marks: those after the last "clear", which is a mark so that it can be undone.
// Clicks that follow each other are of one object, of which only the latest proposal is seen.
export function visible(marks) {
  const uncleared = marks.slice(marks.findLastIndex(({ tool }) => tool === "clear") + 1);
  return uncleared.filter((mark, at) => mark.tool !== "click" || !laterClicks(uncleared, at).some(({ rle }) => rle));
}

function laterClicks(marks, at) {
  const end = marks.findIndex(({ tool }, later) => later > at && tool !== "click");
  return marks.slice(at + 1, end < 0 ? undefined : end);
}

export const isNothing = (mark) =>
  (mark.tool === "box" && Math.min(...boxOf(mark).slice(2)) < LEAST_BOX_PX) ||
  (mark.tool === "polygon" && mark.points.length < 3);

export function draw(context, mark) {
  const { tool, width, points } = mark;
  context.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
  if (tool === "click") return mark.rle && context.drawImage(picture(mark.rle, context.fillStyle), 0, 0, ...mark.size);
  if (tool === "box") return context.fillRect(...boxOf(mark));
  trace(context, points);
  if (tool === "polygon") return context.fill();
  Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round" });
  context.stroke();
}

// A polygon that is still being drawn: its outline so far, and its corners.
export function sketch(context, { points }, px) {
  context.globalCompositeOperation = "source-over";
  trace(context, points);
  Object.assign(context, { lineWidth: px, lineJoin: "round" });
  context.stroke();
  for (const [x, y] of points) context.fillRect(x - 2 * px, y - 2 * px, 4 * px, 4 * px);
}

// Where was clicked: white on the object, black beside it.
export function dots(context, points, px) {
  context.globalCompositeOperation = "source-over";
  const colours = [context.fillStyle, context.strokeStyle];
  for (const [x, y, inside] of points) {
    context.beginPath();
    context.arc(x, y, 5 * px, 0, 2 * Math.PI);
    const [fillStyle, strokeStyle] = inside ? ["#fff", "#000"] : ["#000", "#fff"];
    Object.assign(context, { lineWidth: 2 * px, fillStyle, strokeStyle });
    context.fill();
    context.stroke();
  }
  [context.fillStyle, context.strokeStyle] = colours;
}

let drawn = {}; // the proposal drawn last, since every stroke draws all marks again

function picture(rle, colour) {
  if (drawn.rle === rle && drawn.colour === colour) return drawn.canvas;
  const [height, width] = rle.size;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  decode(rle).forEach((inside, at) => (image.data[4 * at + 3] = 255 * inside));
  context.putImageData(image, 0, 0);
  Object.assign(context, { globalCompositeOperation: "source-in", fillStyle: colour });
  context.fillRect(0, 0, width, height);
  drawn = { rle, colour, canvas };
  return canvas;
}

function trace(context, points) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
}

// [x, y, width, height] in whole pixels, as the service wants them.
export function boxOf({ points: [from, to] }) {
  const [left, top] = from.map((value, axis) => Math.floor(Math.min(value, to[axis])));
  const [right, bottom] = from.map((value, axis) => Math.ceil(Math.max(value, to[axis])));
  return [left, top, right - left, bottom - top];
}

// Marks as a PNG of the photo's own size, white on black.
export async function pngOf(marks, [width, height]) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (const mark of marks) draw(context, mark);
  const image = context.getImageData(0, 0, width, height);
  // A canvas softens edges, and to the service every grey is the category.
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < pixels.length; at++) pixels[at] = image.data[4 * at + 3] < 128 ? 0xff000000 : 0xffffffff;
  context.putImageData(image, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("This browser can't write a mask of this size: choose a mask file.");
  return blob;
}

// What the model sees in the example, drawn over it.

import { labelsOf, outline } from "./masks.js";
import { json } from "./service.js";

const SHOWN_PX = 1600;

// `isShown` tells if the photo is the one under the canvas. Teaching has succeeded, so it is silent if this fails. True if
// it is drawn.
export async function showSeen(canvas, photo, name, isShown) {
  const form = new FormData();
  form.append("image", photo);
  form.append("categories", JSON.stringify([name])); // as JSON: a name may have a comma
  form.append("min_presence", "0"); // also if it would not find it there at all
  const answer = await json("segment", { method: "POST", body: form }).catch(() => undefined);
  if (!answer || !isShown()) return false;
  outline(canvas, labelsOf(answer, SHOWN_PX), getComputedStyle(canvas).color);
  canvas.hidden = false;
  return true;
}

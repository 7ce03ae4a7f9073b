// One photo, small, in the grid of results.

import { colourOf } from "./colours.js";
import { element } from "./form.js";
import { isShown, opacity } from "./look.js";
import { labelsOf, paintLabels } from "./masks.js";

const THUMBNAIL_PX = 320;

// The thumbnail of a result, and how to paint it again; `open` shows it large.
export function thumbnail({ photo, answer, error }, open) {
  const button = element("button", { type: "button", ariaLabel: `Open ${photo.name}`, onclick: open });
  const names = answer?.categories.filter(({ area }) => area).map(({ name }) => name) ?? [];
  const said = error
    ? element("p", { className: "problem" }, error)
    : element("p", { className: "hint" }, names.join(", ") || "nothing found");
  const node = element("figure", { className: "thumbnail" }, button, element("figcaption", {}, photo.name), said);
  if (error) {
    button.remove();
    return { node, repaint: () => {} };
  }
  const masks = element("canvas");
  const picture = labelsOf(answer, THUMBNAIL_PX);
  const small = element("canvas", { width: picture.width, height: picture.height });
  button.append(element("span", { className: "photo" }, small, masks));
  draw(small, photo);
  const colours = () => answer.categories.map(({ name }) => (isShown(name) ? colourOf(name) : undefined));
  const repaint = () => paintLabels(masks, picture, colours(), { opacity: opacity() });
  repaint();
  return { node, repaint };
}

// Kept small: hundreds of whole photos would fill the browser's memory.
async function draw(canvas, photo) {
  const size = { resizeWidth: canvas.width, resizeHeight: canvas.height, resizeQuality: "medium" };
  const bitmap = await createImageBitmap(photo, size).catch(() => null); // such as a TIFF
  if (!bitmap) return;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
}

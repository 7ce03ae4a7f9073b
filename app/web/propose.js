// The object that was clicked, as the service proposes it.

import { json } from "./service.js";

const SENT_PX = 1600; // the model sees less, and a photo of 40 megapixels would be sent and read again at every click

export class Proposer {
  #photo; // promise of the file to send, and how many of its pixels a pixel of the photo is
  #size;

  // A new photo: the file, and the image that shows it.
  start(file, image) {
    this.#size = [image.naturalWidth, image.naturalHeight];
    this.#photo = smaller(file, image);
  }

  // Run lengths of the object's mask, and its share of the photo; `points` are [x, y, 1 on it or 0 beside it] in pixels
  // of the photo.
  async mask(points) {
    const { sent, size } = await this.#photo;
    const form = new FormData();
    form.append("image", sent);
    const [across, down] = size.map((side, axis) => side / this.#size[axis]);
    const placed = points.map(([x, y, inside]) => [x * across, y * down, inside]);
    form.append("points", JSON.stringify(placed));
    const { area, segmentation } = await json("segment/clicks", { method: "POST", body: form });
    if (!area) throw new Error("Nothing was found there: click the middle of the object, or use the brush.");
    return { rle: segmentation, share: area / (size[0] * size[1]) };
  }
}

async function smaller(file, image) {
  const size = [image.naturalWidth, image.naturalHeight];
  const scale = SENT_PX / Math.max(...size);
  if (scale >= 1) return { sent: file, size };
  const [width, height] = size.map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // as the service reads transparent parts; a JPEG has none, and they would be black
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  const sent = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return sent ? { sent, size: [width, height] } : { sent: file, size };
}

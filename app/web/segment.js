// Segmenting photos: each with its masks, its legend and its files.

import { $, busy, element, showPhoto, showProblem, takeDrops, words } from "./form.js";
import { decode } from "./rle.js";
import { call, follow, json } from "./service.js";
import { allOrNone, chosenNames, isTaught, showTaught } from "./taught.js";

const SHOWN_PX = 1600; // the longer side of a canvas

export function segmenting() {
  takeDrops($("segment"), $("photos"));
  $("all-names").onclick = allOrNone;
  $("segment").onsubmit = (event) => {
    event.preventDefault();
    busy($("segment-go"), $("segment-problem"), segmentAll);
  };
}

async function segmentAll() {
  const names = [...chosenNames(), ...words($("other-names").value)];
  const refine = $("refine").checked ? "crf" : "none";
  const photos = [...$("photos").files];
  $("results").replaceChildren();
  // One after the other: side by side they would only fill the service's queue.
  for (const [index, photo] of photos.entries()) {
    $("segment-status").textContent = photos.length > 1 ? `Photo ${index + 1} of ${photos.length} …` : "Segmenting …";
    const form = new FormData();
    form.append("image", photo);
    form.append("refine", refine);
    // As JSON: a name may have a comma.
    if (names.length) form.append("categories", JSON.stringify(names));
    const card = element("figure", {}, element("figcaption", {}, photo.name));
    $("results").append(card);
    try {
      await showFound(card, photo, form, await json("/segment", { method: "POST", body: form }));
    } catch (error) {
      card.append(element("p", { className: "problem", role: "alert" }, error.message));
    }
  }
  $("segment-status").textContent = "";
}

async function showFound(card, photo, form, answer) {
  const image = element("img", { alt: "" });
  image.hidden = !(await showPhoto(image, photo));
  const canvas = element("canvas");
  const found = answer.categories.filter(({ area }) => area);
  canvas.role = "img";
  canvas.ariaLabel = `Masks: ${found.map(({ name }) => name).join(", ") || "none"}`;
  const labels = labelsOf(canvas, answer);
  const paint = (only) => paintLabels(canvas, labels, answer.categories.length, only);
  paint();

  const legend = element("ul", { className: "legend" });
  const pixels = answer.image.width * answer.image.height;
  const problem = element("p", { className: "problem", hidden: true });
  answer.categories.forEach((category, index) => {
    const row = entry(category, index, pixels, paint);
    if (category.area && isTaught(category.name)) row.append(notHere(category.name, photo, problem));
    legend.append(row);
  });
  card.append(
    element("div", { className: "photo" }, image, canvas),
    legend,
    element("p", { className: "hint", hidden: !answer.image.note }, answer.image.note ?? ""),
    element("div", { className: "row" }, ...downloads(photo, form, answer, problem)),
    problem,
  );
}

// The number of the category of each pixel of the canvas, counted from 1; 0 = none of them.
function labelsOf(canvas, { image: { width, height }, categories }) {
  const scale = Math.min(1, SHOWN_PX / Math.max(width, height));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const labels = new Uint16Array(canvas.width * canvas.height);
  categories.forEach(({ area, segmentation }, index) => {
    if (!area) return;
    const mask = decode(segmentation);
    for (let y = 0, at = 0; y < canvas.height; y++) {
      const row = Math.floor((y * height) / canvas.height) * width;
      for (let x = 0; x < canvas.width; x++, at++) {
        if (mask[row + Math.floor((x * width) / canvas.width)]) labels[at] = index + 1;
      }
    }
  });
  return labels;
}

// Tints the categories, their outlines strongest; with `only`, the others are faint.
function paintLabels(canvas, labels, count, only) {
  const { width } = canvas;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, canvas.height);
  const colours = Array.from({ length: count }, (_, index) => colour(index));
  labels.forEach((label, at) => {
    if (!label) return;
    const inside = [1, -1, width, -width].every((step) => labels[at + step] === label);
    const alpha = only === undefined || only === label - 1 ? (inside ? 130 : 255) : 25;
    image.data.set([...colours[label - 1], only === label - 1 ? Math.max(alpha, 190) : alpha], 4 * at);
  });
  context.putImageData(image, 0, 0);
}

function entry({ name, area, adapted, adapter_version: version, presence }, index, pixels, paint) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = `rgb(${colour(index).join(" ")})`;
  const share = area ? `${((100 * area) / pixels).toFixed(1)} %` : "not found";
  const button = element(
    "button",
    { type: "button" },
    swatch,
    element("strong", {}, name),
    element("span", {}, share),
    element("span", {}, `presence ${presence.toFixed(2)}`),
    element("span", { className: "how" }, adapted ? `taught, version ${version}` : "words"),
  );
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => paint(area ? index : undefined));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => paint());
  return element("li", {}, button);
}

// Teaches that the photo does not show a category which was marked in it.
function notHere(name, photo, problem) {
  const label = "Not in this photo";
  const button = element("button", { type: "button", className: "not-here" }, label);
  button.ariaLabel = `${name} is not in this photo`;
  button.onclick = () =>
    busy(button, problem, async () => {
      const form = new FormData();
      form.append("image", photo);
      form.append("absent", "true");
      const path = `/categories/${encodeURIComponent(name)}/example`;
      const { job, warnings = [] } = await json(path, { method: "POST", body: form });
      button.textContent = "Learning …";
      showProblem(problem, warnings.map(({ detail }) => detail).join(" "));
      const { status, error } = await follow(job.id, () => {}).finally(() => (button.textContent = label));
      await showTaught();
      if (status === "failed") throw new Error(`Teaching failed: ${error}`);
      button.replaceWith(element("span", { className: "how" }, "Learnt: segment again."));
    });
  return button;
}

function downloads(photo, form, answer, problem) {
  const stem = photo.name.replace(/\.[^.]*$/, "");
  const asJson = element("button", { type: "button" }, "JSON");
  asJson.onclick = () => save(new Blob([JSON.stringify(answer)], { type: "application/json" }), `${stem}.json`);
  const asPng = element("button", { type: "button" }, "Label map (PNG)");
  asPng.onclick = () =>
    busy(asPng, problem, async () => {
      const png = await call("/segment", { method: "POST", body: form, headers: { Accept: "image/png" } });
      save(await png.blob(), `${stem}.labels.png`);
    });
  return [asPng, asJson];
}

function save(blob, name) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000); // not at once: the browser reads it after the click
}

// The i-th of the service's own colours, so that the label map and the page look alike.
function colour(index) {
  const [saturation, value] = [[0.85, 0.95], [0.5, 1], [0.9, 0.65]][index % 3];
  const hue = ((index * (Math.sqrt(5) - 1)) / 2) % 1;
  const level = (n) => {
    const k = (n + 6 * hue) % 6;
    return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [level(5), level(3), level(1)];
}

// Segmenting photos: each with its masks, its legend and its files.

import { colourOf, css } from "./colours.js";
import { $, busy, element, showPhoto, showProblem, takeDrops, words } from "./form.js";
import { labelsOf, paintLabels } from "./masks.js";
import { doubts, percent } from "./say.js";
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
  const labels = labelsOf(answer, SHOWN_PX);
  const colours = answer.categories.map(({ name }) => colourOf(name));
  const paint = (only) => paintLabels(canvas, labels, colours, { only });
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

function entry({ name, area, adapted, presence }, index, pixels, paint) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = css(name);
  const share = area ? `${((100 * area) / pixels).toFixed(1)} %` : "not found";
  const button = element(
    "button",
    { type: "button" },
    swatch,
    element("strong", {}, name),
    element("span", {}, share),
    element("span", {}, `${percent(presence)} sure`),
    element("span", { className: "how" }, adapted ? "as taught" : "by its name"),
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
      const { job, warnings } = await json(path, { method: "POST", body: form });
      button.textContent = "Learning …";
      showProblem(problem, doubts(warnings).join(" "));
      const { status, error } = await follow(job.id, () => {}).finally(() => (button.textContent = label));
      await showTaught();
      if (status === "failed") throw new Error(`Teaching failed: ${error}`);
      button.replaceWith(element("span", { className: "how" }, "Learnt: segment again."));
    });
  return button;
}

function downloads(photo, form, answer, problem) {
  const stem = photo.name.replace(/\.[^.]*$/, "");
  const asJson = element("button", { type: "button" }, "Details (JSON)");
  asJson.onclick = () => save(new Blob([JSON.stringify(answer)], { type: "application/json" }), `${stem}.json`);
  const asPng = element("button", { type: "button" }, "Masks (PNG)");
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

// One photo, large: its masks, its legend and its files.

import { colourOf, css } from "./colours.js";
import { save, saveJson, stem } from "./files.js";
import { busy, element, showPhoto, showProblem } from "./form.js";
import { heat, isShown, opacity } from "./look.js";
import { labelsOf, paintHeat, paintLabels } from "./masks.js";
import { heatMaps, labelMap } from "./request.js";
import { doubts, percent } from "./say.js";
import { json, learnt } from "./service.js";
import { isTaught, showTaught } from "./taught.js";

const SHOWN_PX = 1600; // the longer side of a canvas

// The card of a result, and how to paint it again when the look has changed.
export function card(result) {
  const { photo, answer, error } = result;
  const node = element("figure", {}, element("figcaption", {}, photo.name));
  if (error) {
    node.append(element("p", { className: "problem", role: "alert" }, error));
    return { node, repaint: () => {} };
  }
  const problem = element("p", { className: "problem", role: "alert", hidden: true });
  const image = element("img", { alt: "", hidden: true });
  const canvas = maskCanvas(answer);
  const repaint = painter(result, canvas, problem);
  showPhoto(image, photo).then((shown) => (image.hidden = !shown));
  node.append(
    element("div", { className: "photo" }, image, canvas),
    legend(result, repaint),
    element("p", { className: "hint", hidden: !answer.image.note }, answer.image.note ?? ""),
    element("div", { className: "row" }, ...downloads(result, problem)),
    problem,
  );
  repaint();
  return { node, repaint };
}

const namesIn = ({ categories }) => categories.map(({ name }) => name);

// The request for the categories of an answer in their order, also if all that was taught was asked for and more is now.
const sameAs = ({ asked, answer }) => ({ ...asked, names: namesIn(answer) });

function maskCanvas({ categories }) {
  const canvas = element("canvas", { role: "img" });
  const found = categories.filter(({ area }) => area).map(({ name }) => name);
  canvas.ariaLabel = `Masks: ${found.join(", ") || "none"}`;
  return canvas;
}

// Paints the masks, or the heat maps, which are asked for when they are first wanted. `only` is a category's number.
function painter(result, canvas, problem) {
  const { photo, answer } = result;
  const picture = labelsOf(answer, SHOWN_PX);
  const names = namesIn(answer);
  let maps;
  const paint = (only) => {
    const colours = names.map((name) => (isShown(name) ? colourOf(name) : undefined));
    const look = { opacity: opacity(), only };
    if (heat() && maps) paintHeat(canvas, picture, maps, colours, look);
    else paintLabels(canvas, picture, colours, look);
  };
  let asking;
  return (only) => {
    paint(only);
    if (!heat() || asking) return;
    asking = heatMaps(photo, sameAs(result)).then(
      (answered) => {
        maps = answered;
        paint();
      },
      (error) => {
        asking = undefined;
        showProblem(problem, error.message);
      },
    );
  };
}

function legend(result, repaint) {
  const { answer } = result;
  const list = element("ul", { className: "legend" });
  const pixels = answer.image.width * answer.image.height;
  answer.categories.forEach((category, index) => {
    const row = entry(category, index, pixels, repaint);
    if (category.area && isTaught(category.name)) row.append(notHereOnce(result, category.name));
    if (category.adapter_problem) row.append(element("p", { className: "hint" }, category.adapter_problem));
    list.append(row);
  });
  return list;
}

function entry({ name, area, adapted, presence }, index, pixels, repaint) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = css(name);
  const button = element(
    "button",
    { type: "button" },
    swatch,
    element("strong", {}, name),
    element("span", {}, area ? `${((100 * area) / pixels).toFixed(1)} % of it` : "not found"),
    element("span", {}, `${percent(presence)} sure`),
    element("span", { className: "how" }, adapted ? "as taught" : "by its name"),
  );
  const alone = area ? index : undefined;
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => repaint(alone));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => repaint());
  return element("li", {}, button);
}

// Kept with the result: a photo that is opened again while this is learnt, or after it failed, says so.
function notHereOnce(result, name) {
  result.notHere ??= new Map();
  if (!result.notHere.has(name)) result.notHere.set(name, notHere(name, result.photo));
  return result.notHere.get(name);
}

// Teaches that the photo does not show a category which was marked in it.
function notHere(name, photo) {
  const label = "Not in this photo";
  const problem = element("p", { className: "problem", role: "alert", hidden: true });
  const button = element("button", { type: "button", className: "not-here" }, label);
  button.ariaLabel = `${name} is not in this photo`;
  button.onclick = () =>
    busy(button, problem, async () => {
      const form = new FormData();
      form.append("image", photo);
      form.append("absent", "true");
      const path = `categories/${encodeURIComponent(name)}`;
      const { job, warnings } = await json(`${path}/example`, { method: "POST", body: form });
      button.textContent = "Learning …";
      showProblem(problem, doubts(warnings).join(" "));
      try {
        await learnt(job, path);
        button.replaceWith(element("span", { className: "how" }, "Learnt: segment again."));
      } finally {
        button.textContent = label;
        await showTaught();
      }
    });
  return element("div", {}, button, problem);
}

function downloads(result, problem) {
  const { photo, answer } = result;
  const asJson = element("button", { type: "button" }, "Details (JSON)");
  asJson.onclick = () => saveJson(answer, `${stem(photo.name)}.json`);
  const asPng = element("button", { type: "button" }, "Masks (PNG)");
  asPng.onclick = () =>
    busy(asPng, problem, async () => save(await labelMap(photo, sameAs(result)), `${stem(photo.name)}.labels.png`));
  return [asPng, asJson];
}

// The results: one photo is shown large at once, several as a grid of thumbnails that open large.

import { card } from "./card.js";
import { instances } from "./coco.js";
import { saveJson } from "./files.js";
import { $ } from "./form.js";
import { countCategories, forgetCategories, isListed, watchLook } from "./look.js";
import { thumbnail } from "./thumbnail.js";

let results = [];
let views = []; // one for each result
let large; // the view in the dialog, and the number of its result

export function gallery() {
  watchLook(refresh);
  $("export-coco").onclick = () => saveJson(instances(results), "annotations.json");
  $("large-previous").onclick = () => step(-1);
  $("large-next").onclick = () => step(1);
  $("large-close").onclick = () => $("large").close();
  $("large").onclose = () => (large = undefined);
  // Not on the dialog alone: nothing has the focus after a click on a button that is turned off while it works.
  document.addEventListener("keydown", ({ key }) => {
    if (large && (key === "ArrowLeft" || key === "ArrowRight")) step(key === "ArrowLeft" ? -1 : 1);
  });
}

export function clearResults() {
  results = [];
  views = [];
  forgetCategories();
  $("results").replaceChildren();
  list();
}

// Shows a result in its place, also instead of one that had failed. `alone`: no other photo comes.
export function putResult(index, result, alone) {
  const view = alone ? card(result) : thumbnail(result, () => open(index));
  if (views[index]) views[index].node.replaceWith(view.node);
  else $("results").append(view.node);
  results[index] = result;
  views[index] = view;
  if (result.answer) countCategories(result.answer, refresh);
  list();
}

// After a change of the look. Not after every new photo: painting all of them again would be slower with each.
function refresh() {
  list();
  for (const { node, repaint } of views) if (!node.hidden) repaint();
  large?.view.repaint();
}

// Lists the photos that pass the filters, and counts. One that arrives may be the next of the large one.
function list() {
  $("gallery-tools").hidden = !results.some(({ answer }) => answer);
  views.forEach(({ node }, index) => (node.hidden = !isListed(results[index].answer)));
  const listed = views.filter(({ node }) => !node.hidden).length;
  $("listed").textContent = listed < results.length ? `${listed} of ${results.length} photos are listed.` : "";
  if (large) showSteps();
}

function open(index) {
  large = { index, view: card(results[index]) };
  $("large-photo").replaceChildren(large.view.node);
  $("large").ariaLabel = results[index].photo.name;
  if (!$("large").open) $("large").showModal();
  if (document.activeElement === document.body) $("large-close").focus(); // it was on the photo before
  showSteps();
}

function showSteps() {
  for (const [id, by] of [["large-previous", -1], ["large-next", 1]]) {
    // A button that is turned off would take the focus, and the arrow keys, with it.
    const off = next(by) === undefined;
    if (off && document.activeElement === $(id)) $("large-close").focus();
    $(id).disabled = off;
  }
}

// The number of the next listed photo before or after the large one.
function next(by) {
  let index = large.index + by;
  while (views[index] && (views[index].node.hidden || results[index].error)) index += by;
  return views[index] && index;
}

function step(by) {
  const index = next(by);
  if (index !== undefined) open(index);
}

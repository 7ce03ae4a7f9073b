// How the results are looked at: which categories are tinted, how strongly, and which photos are listed.

import { css } from "./colours.js";
import { $, element } from "./form.js";

const LISTED = { all: "All photos", found: "Where found", missing: "Where not found" };

const rows = new Map(); // by name: the controls of a category

export const opacity = () => $("opacity").value / 100;
export const heat = () => $("heat").checked;
export const isShown = (name) => rows.get(name)?.tick.checked ?? true;

// Whether a photo with this answer passes the filter of every category. One that failed has no answer.
export function isListed(answer) {
  return [...rows].every(([name, { filter }]) => {
    if (filter.value === "all") return true;
    const category = answer?.categories.find((found) => found.name === name);
    return category !== undefined && category.found === (filter.value === "found");
  });
}

export function watchLook(changed) {
  for (const id of ["opacity", "heat"]) $(id).oninput = changed;
}

export function forgetCategories() {
  rows.clear();
  $("shown-categories").replaceChildren();
}

// Counts in how many photos each category was found; one that has no row yet gets it.
export function countCategories({ categories }, changed) {
  for (const { name, found } of categories) {
    if (!rows.has(name)) addRow(name, changed);
    const row = rows.get(name);
    row.asked += 1;
    row.found += found;
    row.count.textContent = `in ${row.found} of ${row.asked}`;
  }
}

function addRow(name, changed) {
  const tick = element("input", { type: "checkbox", checked: true, oninput: changed });
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = css(name);
  const count = element("span", { className: "hint" });
  const choices = Object.entries(LISTED).map(([value, text]) => element("option", { value }, text));
  const filter = element("select", { ariaLabel: `Photos listed for ${name}`, oninput: changed }, ...choices);
  rows.set(name, { tick, filter, count, asked: 0, found: 0 });
  const label = element("label", { className: "inline" }, tick, swatch, element("strong", {}, name));
  $("shown-categories").append(element("li", {}, label, count, filter));
}

// List of the taught categories, and the choice of those to look for.

import { madeFrom, showCategory } from "./category.js";
import { numberOf } from "./colours.js";
import { $, busy, element, latest, refill, showProblem } from "./form.js";
import { howWell } from "./say.js";
import { allOf, call } from "./service.js";

const newest = latest();
let rows = new Map(); // by name. One whose category stays is kept: it may have the focus, or a deletion may be running

export async function showTaught() {
  try {
    const categories = await newest(allOf("categories?limit=1000"));
    if (!categories) return;
    showProblem($("taught-problem"), "");
    $("none-taught").hidden = categories.length > 0;
    $("samples").hidden = categories.length > 0; // they would add to what others teach
    // Numbered here, so that what is taught has its colour before what is only named.
    for (const { name } of categories) numberOf(name);
    rows = new Map(categories.map(({ name }) => [name, rows.get(name) ?? row(name)]));
    refill($("taught"), [...rows.values()].map(({ node }) => node));
    for (const category of categories) rows.get(category.name).show(category);
    showChoices(categories.map(({ name }) => name));
  } catch (error) {
    showProblem($("taught-problem"), error.message);
  }
}

// The row of a category, and how to show what it is now.
function row(name) {
  const state = element("span");
  const inside = element("div", { className: "category" });
  const summary = element("summary", {}, element("strong", {}, name), " ", state);
  const details = element("details", {}, summary, inside);
  const newestInside = latest();
  details.ontoggle = async () => {
    if (!details.open) return;
    try {
      const made = await newestInside(madeFrom(name));
      if (made) showCategory(inside, name, made, $("taught-problem"), showTaught);
    } catch (error) {
      showProblem($("taught-problem"), error.message);
    }
  };
  const show = ({ adapter, examples }) => {
    state.textContent = adapter ? howWell(adapter, examples) : "Not learnt yet.";
    details.ontoggle();
  };
  return { node: element("li", {}, details, forgetButton(name)), show };
}

function forgetButton(name) {
  const forget = element("button", { type: "button", ariaLabel: `Delete ${name}` }, "Delete");
  forget.onclick = () => {
    if (!confirm(`Delete “${name}” with its examples?`)) return;
    busy(forget, $("taught-problem"), async () => {
      const { nextElementSibling, previousElementSibling } = forget.closest("li");
      await call(`categories/${encodeURIComponent(name)}`, { method: "DELETE" }).catch((error) => {
        if (error.status !== 404) throw error; // somebody else has deleted it
      });
      await showTaught();
      const neighbour = nextElementSibling ?? previousElementSibling;
      if (document.activeElement === document.body) neighbour?.querySelector(":scope > button").focus();
    });
  };
  return forget;
}

const ticks = () => [...$("names").querySelectorAll("input")];

export const isTaught = (name) => ticks().some(({ value }) => value === name);

export const chosenNames = () => ticks().flatMap(({ checked, value }) => (checked ? [value] : []));

export function allOrNone() {
  const none = !chosenNames().length;
  for (const tick of ticks()) tick.checked = none;
}

function showChoices(names) {
  const before = new Map(ticks().map((tick) => [tick.value, tick.labels[0]]));
  const labels = names.map((name) => before.get(name) ?? choice(name));
  $("names").hidden = !names.length;
  refill($("names"), [$("names").querySelector("legend"), ...labels, $("all-names")]);
}

function choice(name) {
  const tick = element("input", { type: "checkbox", value: name, checked: true });
  return element("label", { className: "inline" }, tick, name);
}

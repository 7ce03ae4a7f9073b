// List of the taught categories, and the choice of those to look for.

import { showCategory } from "./category.js";
import { numberOf } from "./colours.js";
import { $, busy, element, showProblem } from "./form.js";
import { howWell } from "./say.js";
import { allOf, call } from "./service.js";

export async function showTaught() {
  try {
    const categories = await allOf("categories?limit=1000");
    showProblem($("taught-problem"), "");
    $("none-taught").hidden = categories.length > 0;
    $("samples").hidden = categories.length > 0; // they would add to what others teach
    // Numbered here, so that what is taught has its colour before what is only named.
    for (const { name } of categories) numberOf(name);
    const open = new Set([...$("taught").querySelectorAll("details[open]")].map(({ dataset }) => dataset.name));
    $("taught").replaceChildren(...categories.map((category) => row(category, open.has(category.name))));
    showChoices(categories.map(({ name }) => name));
  } catch (error) {
    showProblem($("taught-problem"), error.message);
  }
}

function row(category, open) {
  const { name, examples, adapter } = category;
  const state = adapter ? howWell(adapter, examples) : "Not learnt yet.";
  const inside = element("div", { className: "category" });
  const details = element(
    "details",
    {},
    element("summary", {}, element("strong", {}, name), " ", element("span", {}, state)),
    inside,
  );
  details.dataset.name = name;
  details.ontoggle = async () => {
    if (!details.open) return;
    try {
      await showCategory(inside, category, $("taught-problem"), showTaught);
    } catch (error) {
      showProblem($("taught-problem"), error.message);
    }
  };
  details.open = open;
  return element("li", {}, details, forgetButton(name));
}

function forgetButton(name) {
  const forget = element("button", { type: "button", ariaLabel: `Delete ${name}` }, "Delete");
  forget.onclick = () => {
    if (!confirm(`Delete “${name}” with its examples?`)) return;
    busy(forget, $("taught-problem"), async () => {
      await call(`categories/${encodeURIComponent(name)}`, { method: "DELETE" });
      await showTaught();
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
  const dropped = new Set(ticks().flatMap(({ checked, value }) => (checked ? [] : [value])));
  $("names").hidden = !names.length;
  for (const label of $("names").querySelectorAll("label")) label.remove();
  for (const name of names) {
    const tick = element("input", { type: "checkbox", value: name, checked: !dropped.has(name) });
    $("all-names").before(element("label", { className: "inline" }, tick, name));
  }
}

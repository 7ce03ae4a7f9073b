// List of the taught categories, and suggestions of names.

import { $, busy, element, showProblem } from "./form.js";
import { howWell } from "./say.js";
import { allOf, call } from "./service.js";

export async function showTaught() {
  try {
    const categories = await allOf("/categories?limit=1000");
    showProblem($("taught-problem"), "");
    $("none-taught").hidden = categories.length > 0;
    $("taught").replaceChildren(...categories.map(row));
    showChoices(categories.map(({ name }) => name));
  } catch (error) {
    showProblem($("taught-problem"), error.message);
  }
}

function row({ name, examples, adapter }) {
  const forget = element("button", { type: "button", ariaLabel: `Delete ${name}` }, "Delete");
  forget.onclick = () => {
    if (!confirm(`Delete “${name}” with its examples?`)) return;
    busy(forget, $("taught-problem"), async () => {
      await call(`/categories/${encodeURIComponent(name)}`, { method: "DELETE" });
      await showTaught();
    });
  };
  const state = adapter ? howWell(adapter, examples) : "Not learnt yet.";
  return element("li", {}, element("strong", {}, name), element("span", {}, state), forget);
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

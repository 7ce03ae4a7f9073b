// What a taught category was made from: its examples and its versions.

import { busy, element, refill } from "./form.js";
import { rightShare } from "./say.js";
import { allOf, call, json, learnt } from "./service.js";

const VERSIONS = { dateStyle: "medium", timeStyle: "short" };

const pathOf = (name) => `categories/${encodeURIComponent(name)}`;

// Promises the examples and the versions of a category.
export const madeFrom = (name) => Promise.all(["examples", "versions"].map((what) => allOf(`${pathOf(name)}/${what}`)));

// Fills a place with the category's examples and versions. `changed` is called when the category is another.
export function showCategory(place, name, [examples, versions], problem, changed) {
  const acting = { path: pathOf(name), problem, changed };
  const list = (what) =>
    place.querySelector(`.${what}`) ??
    place.appendChild(element("ul", { className: what, ariaLabel: `${what} of ${name}` }));
  show(list("examples"), examples, (info) => example(info, acting));
  show(list("versions"), versions, (info) => version(info, acting));
}

// An item that says the same is kept, as the row of a category is.
function show(list, infos, made) {
  const before = new Map([...list.children].map((item) => [item.dataset.of, item]));
  const items = infos.map((info) => {
    const of = JSON.stringify(info);
    const item = before.get(of) ?? made(info);
    item.dataset.of = of;
    return item;
  });
  refill(list, items);
}

function example({ id, absent }, { path, problem, changed }) {
  const remove = element("button", { type: "button" }, "Delete");
  remove.ariaLabel = "Delete this example";
  remove.onclick = () =>
    confirm("Delete this example and learn again from the others?") &&
    busy(remove, problem, async () => {
      remove.textContent = "Learning …";
      try {
        const answer = await call(`${path}/examples/${id}`, { method: "DELETE" });
        if (answer.status === 202) await learnt((await answer.json()).job, path);
      } finally {
        remove.textContent = "Delete";
        await changed();
      }
    });
  const image = element("img", { alt: absent ? "Example, not in this photo" : "Example" });
  whenSeen(image, () => showStored(image, `${path}/examples/${id}/image`));
  const note = element("span", { className: "hint", hidden: !absent }, "not in this photo");
  return element("li", {}, image, note, remove);
}

// Photos of up to 64 examples are many megabytes, and few of them are looked at.
function whenSeen(image, show) {
  const watching = new IntersectionObserver((entries) => {
    if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
    watching.disconnect();
    show();
  });
  watching.observe(image);
}

// Fetched, because an <img> sends no key.
async function showStored(image, path) {
  try {
    image.src = URL.createObjectURL(await (await call(path)).blob());
    await image.decode();
  } catch {
    image.alt += " (can't be shown here)"; // such as a TIFF, or one that was deleted meanwhile
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function version(info, { path, problem, changed }) {
  const made = new Date(info.created_at).toLocaleString("en", VERSIONS);
  const text = element("span", {}, `Version ${info.version}, ${made}: marks ${rightShare(info)} right`);
  if (info.current) return element("li", {}, text, element("strong", {}, "in use"));
  const use = element("button", { type: "button" }, "Use this one");
  use.ariaLabel = `Use version ${info.version}`;
  use.onclick = () =>
    busy(use, problem, async () => {
      const body = JSON.stringify({ version: info.version });
      await json(`${path}/rollback`, { method: "POST", body, headers: { "Content-Type": "application/json" } });
      await changed();
    });
  return element("li", {}, text, use);
}

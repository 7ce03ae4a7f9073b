// Sample photos, to try the page without files of one's own: a kitten teaches, another cat and a dog are segmented.

import { $, busy } from "./form.js";
import { isTaught } from "./taught.js";

// `teach` and `segment` do what the buttons of the two forms do.
export function samples({ teach, segment }) {
  $("try").onclick = () => busy($("try"), $("try-problem"), () => tryThem(teach, segment));
}

async function tryThem(teach, segment) {
  const [kitten, mask, chelsea, dog] = await Promise.all([
    fetched("web/sample-kitten.jpg"),
    fetched("web/sample-kitten-mask.png"),
    fetched("web/sample-chelsea.jpg"),
    fetched("web/sample-dog.jpg"),
  ]);
  if (!isTaught("cat")) {
    choose($("teach-mask"), mask);
    await choose($("teach-photo"), kitten);
    $("name").value = "cat";
    await teach();
  }
  await choose($("photos"), chelsea, dog);
  $("other-names").value = "dog";
  await segment();
}

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error("The sample photos can't be loaded: is the service running?");
  return new File([await answer.blob()], path.split("/").pop(), { type: answer.headers.get("Content-Type") });
}

// As if a person had chosen them.
function choose(input, ...files) {
  const chosen = new DataTransfer();
  for (const file of files) chosen.items.add(file);
  input.files = chosen.files;
  return input.onchange?.();
}

// Sample photos, to try the page without files of one's own: a kitten teaches, another cat and a dog are segmented.

import { $, busy } from "./form.js";
import { isTaught } from "./taught.js";

// `teach` and `segment` do what the buttons of the two forms do; `teach` promises whether it went well.
export function samples({ teach, segment }) {
  $("try").onclick = () => busy($("try"), $("try-problem"), () => tryThem(teach, segment));
}

async function tryThem(teach, segment) {
  // The samples would take the place of what is in the forms.
  if ($("teach-go").disabled || $("segment-go").disabled) throw new Error("Wait until the run in progress has ended.");
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
    if (!(await teach())) return;
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

// Teaching: a photo, what is marked on it, and a name.

import { $, busy, showPhoto, showProblem, takeDrops, words } from "./form.js";
import { Painter } from "./paint.js";
import { follow, json } from "./service.js";

// `taught` is called when the list of categories may have changed.
export function teaching(taught) {
  const frame = $("paper");
  const image = frame.querySelector("img");
  const painter = new Painter(frame, {
    tool: () => document.querySelector("[name=tool]:checked").value,
    percent: () => Number($("size").value),
    changed: () => {
      $("undo").disabled = $("clear").disabled = !painter.undoable;
    },
  });
  const canMark = () => {
    const byFile = $("teach-mask").files.length > 0;
    $("paint-instead").hidden = !byFile;
    $("tools").disabled = image.hidden || byFile;
    painter.canvas.hidden = $("tools").disabled;
  };

  takeDrops($("teach"), $("teach-photo"));
  $("undo").onclick = () => painter.undo();
  $("clear").onclick = () => painter.clear();
  $("teach-mask").onchange = canMark;
  $("paint-instead").onclick = () => {
    $("teach-mask").value = "";
    canMark();
  };
  $("teach-photo").onchange = async () => {
    const [photo] = $("teach-photo").files;
    $("teach-status").textContent = "";
    const shown = photo && (await showPhoto(image, photo));
    image.hidden = !shown;
    frame.classList.toggle("empty", !shown);
    if (shown) painter.start(image.naturalWidth, image.naturalHeight);
    showProblem($("teach-problem"), photo && !shown ? "The browser can't show this file: a mask file is needed." : "");
    canMark();
  };
  $("teach").onsubmit = (event) => {
    event.preventDefault();
    busy($("teach-go"), $("teach-problem"), () => teach(painter, taught));
  };
}

async function teach(painter, taught) {
  const tell = (text) => ($("teach-status").textContent = text);
  const bar = $("teach-progress");
  tell("");
  const name = $("name").value.trim();
  const path = `/categories/${encodeURIComponent(name)}`;
  const form = new FormData();
  form.append("image", $("teach-photo").files[0]);
  await mark(form, painter);
  for (const word of words($("prompts").value)) form.append("prompts", word);
  tell("Sending …");
  try {
    const { job, note, warnings = [] } = await json(`${path}/example`, { method: "POST", body: form });
    bar.hidden = false;
    showProblem($("teach-problem"), warnings.map(({ detail }) => detail).join(" "));
    taught();
    const ended = await follow(job.id, ({ status, progress, step, steps }) => {
      bar.value = progress;
      tell(status === "running" && steps ? `Learning: step ${step} of ${steps}.` : `The job is ${status}.`);
    });
    tell([await outcome(name, path, ended), note].filter(Boolean).join(" "));
  } catch (error) {
    tell("");
    throw error;
  } finally {
    bar.hidden = true;
    taught();
  }
}

async function mark(form, painter) {
  const [file] = $("teach-mask").files;
  if (file) form.append("mask", file);
  else if (painter.canvas.hidden || painter.empty) {
    throw new Error("Mark the category on the photo, or choose a mask file.");
  } else if (painter.box) form.append("box", JSON.stringify(painter.box));
  else form.append("mask", await painter.png(), "mask.png");
}

async function outcome(name, path, job) {
  if (job.status === "failed") throw new Error(`Teaching failed: ${job.error}`);
  if (job.status === "cancelled") return "The job was cancelled: the example stays, and is learned from with the next one.";
  if (job.status === "superseded") return `A newer example of “${name}” took over: its job goes on.`;
  const { adapter } = await json(path);
  if (!adapter) return `“${name}” was changed again meanwhile.`;
  const [own, zeroShot] = [adapter.example_iou, adapter.zero_shot_example_iou].map((iou) => iou.toFixed(2));
  return adapter.example_iou < adapter.zero_shot_example_iou
    ? `“${name}”: the words alone were kept. They mark the examples with an IoU of ${zeroShot}, tuned it was ${own}.`
    : `“${name}” is taught: it marks its examples with an IoU of ${own}; by words alone it was ${zeroShot}.`;
}

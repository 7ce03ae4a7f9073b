// Teaching: a photo, what is marked on it, and a name.

import { $, busy, element, showPhoto, showProblem, takeDrops, words } from "./form.js";
import { Painter } from "./paint.js";
import { Proposer } from "./propose.js";
import { doubts, isMarkedLoosely, outcome, SEEN } from "./say.js";
import { showSeen } from "./seen.js";
import { call, follow, json, laterJob } from "./service.js";
import { Zoom } from "./zoom.js";

// `taught` is called when the list of categories may have changed. The returned function does what the form's button
// does.
export function teaching(taught) {
  const frame = $("paper");
  const image = frame.querySelector(".original");
  const zoom = new Zoom(frame, { taken: () => painter.abandon() });
  const proposer = new Proposer();
  const painter = new Painter(frame, {
    tool: () => document.querySelector("[name=tool]:checked").value,
    percent: () => Number($("size").value),
    zoom,
    takesAway: () => $("take-away").checked,
    propose: (points) => {
      showProblem($("teach-problem"), "");
      return proposer.mask(points);
    },
    failed: ({ message }) => showProblem($("teach-problem"), message),
    tell,
    changed: () => {
      $("undo").disabled = $("clear").disabled = !painter.undoable;
      $("redo").disabled = !painter.redoable;
    },
  });
  drawingControls(painter, zoom);
  const canMark = () => {
    const byFile = $("teach-mask").files.length > 0;
    $("paint-instead").hidden = !byFile;
    $("tools").disabled = image.hidden || byFile;
    $("view").disabled = image.hidden;
    painter.canvas.hidden = $("tools").disabled;
  };

  takeDrops($("teach"), $("teach-photo"));
  $("teach-mask").onchange = () => {
    canMark();
    showMask(frame);
  };
  $("paint-instead").onclick = () => {
    $("teach-mask").value = "";
    $("teach-mask").onchange();
    if (!painter.canvas.hidden) painter.canvas.focus();
  };
  let opened; // once the photo chosen last is shown
  $("teach-photo").onchange = () => (opened = open());
  const open = async () => {
    const [photo] = $("teach-photo").files;
    forget(frame);
    zoom.whole();
    // What is marked belongs to the photo before, and a large one takes a while to be read.
    $("tools").disabled = painter.canvas.hidden = true;
    const shown = photo && (await showPhoto(image, photo));
    if (photo !== $("teach-photo").files[0]) return; // another was chosen meanwhile
    image.hidden = !shown;
    frame.classList.toggle("empty", !shown);
    if (shown) {
      proposer.start(photo, image);
      painter.start(image.naturalWidth, image.naturalHeight);
    }
    showProblem($("teach-problem"), photo && !shown ? "The browser can't show this file: a mask file is needed." : "");
    canMark();
    showMask(frame);
  };
  const submit = () =>
    busy($("teach-go"), $("teach-problem"), async () => {
      await opened;
      await teach(frame, painter, taught);
    });
  $("teach").onsubmit = (event) => {
    event.preventDefault();
    submit();
  };
  return submit;
}

function drawingControls(painter, zoom) {
  for (const action of ["undo", "redo", "clear"]) $(action).onclick = () => painter[action]();
  $("zoom-in").onclick = zoom.in;
  $("zoom-out").onclick = zoom.out;
  $("zoom-whole").onclick = () => zoom.whole();
  for (const tool of document.querySelectorAll("[name=tool]")) {
    tool.addEventListener("change", () => {
      painter.finish();
      $("take-away").disabled = tool.value !== "click";
    });
  }
  // Not on the photo alone: after a click on a tool it has not the focus, and nothing has after one that turned its
  // button off.
  document.addEventListener("keydown", (event) => {
    if (!isUndo(event) || painter.canvas.hidden) return;
    event.preventDefault();
    painter[event.shiftKey ? "redo" : "undo"]();
  });
}

// A text field undoes its own typing.
function isUndo({ key, ctrlKey, metaKey, target }) {
  const here = target === document.body || $("teach").contains(target);
  const typing = target.matches("input:not([type=radio], [type=range], [type=checkbox], [type=file])");
  return key.toLowerCase() === "z" && (ctrlKey || metaKey) && here && !typing;
}

// A mask file over the photo, so that one sees whether it fits.
async function showMask(frame) {
  const [file] = $("teach-mask").files;
  const over = frame.querySelector(".chosen-mask");
  over.hidden = !file || frame.classList.contains("empty") || !(await showPhoto(over.firstChild, file));
}

// What was said about the last example.
function forget(frame) {
  frame.querySelector(".seen").hidden = true;
  $("teach-status").textContent = "";
  $("teach-warnings").replaceChildren();
}

const tell = (text) => ($("teach-status").textContent = text);

async function teach(frame, painter, taught) {
  forget(frame);
  const name = $("name").value.trim();
  // In a path they would be other places.
  if (!name.replaceAll(".", "")) throw new Error("Type a name that is more than dots.");
  const path = `categories/${encodeURIComponent(name)}`;
  const [photo] = $("teach-photo").files;
  const form = new FormData();
  form.append("image", photo);
  await mark(form, painter);
  for (const word of words($("prompts").value)) form.append("prompts", word);
  tell("Sending …");
  try {
    const { job, note, warnings } = await json(`${path}/example`, { method: "POST", body: form });
    $("teach-warnings").replaceChildren(...doubts(warnings).map((doubt) => element("li", {}, doubt)));
    taught();
    const { ended, category } = await learn(job, path);
    const said = [ended ?? outcome(name, category), note].filter(Boolean);
    tell(said.join(" "));
    if (category && isMarkedLoosely(category.adapter)) {
      const isShown = () => photo === $("teach-photo").files[0] && !frame.classList.contains("empty");
      const seen = await showSeen(frame.querySelector(".seen"), photo, name, isShown);
      if (seen) tell([...said, SEEN].join(" "));
    }
  } catch (error) {
    tell("");
    throw error;
  } finally {
    $("teach-running").hidden = true;
    taught();
  }
}

async function mark(form, painter) {
  const [file] = $("teach-mask").files;
  if (!file) await painter.settled();
  if (file) form.append("mask", file);
  else if (painter.canvas.hidden || (painter.finish(), painter.empty)) {
    throw new Error("Mark the object on the photo, or choose a mask file.");
  } else if (painter.box) form.append("box", JSON.stringify(painter.box));
  else form.append("mask", await painter.png(), "mask.png");
}

// Follows the job; its category when it has learnt, else what became of it.
async function learn(job, path) {
  const bar = $("teach-progress");
  bar.value = 0;
  $("teach-running").hidden = false;
  $("teach-cancel").onclick = () =>
    busy($("teach-cancel"), $("teach-problem"), () => call(`jobs/${job.id}`, { method: "DELETE" }));
  const { status, error } = await follow(job.id, ({ status, progress }) => {
    bar.value = progress;
    // How far it is the bar says: a screen reader reads every change of this text.
    tell(status === "running" ? "Learning …" : "Waiting for its turn …");
  });
  if (status === "failed") throw new Error(`Teaching failed: ${error}`);
  if (status === "cancelled") return { ended: "Cancelled. The example stays, and is learnt with the next one." };
  if (status === "superseded") {
    const next = (await laterJob(job.id, path)) ? "All examples are being learnt." : "This example is not learnt.";
    return { ended: `${error} ${next}` };
  }
  const category = await json(path);
  return category.adapter ? { category } : { ended: "It was changed again meanwhile." };
}

// Segmenting photos, one after the other, until all are done or the run is cancelled.

import { $, busy, takeDrops, words } from "./form.js";
import { clearResults, gallery, putResult } from "./gallery.js";
import { segment } from "./request.js";
import { patiently } from "./service.js";
import { allOrNone, chosenNames } from "./taught.js";

// What is left of the last run: its photos without an answer, with what is asked and the place of each result.
const left = new Set();

// The returned function does what the form's button does.
export function segmenting() {
  gallery();
  takeDrops($("segment"), $("photos"));
  $("all-names").onclick = allOrNone;
  const run = (work) => busy($("segment-go"), $("segment-problem"), work);
  const submit = () => run(segmentAll);
  $("segment").onsubmit = (event) => {
    event.preventDefault();
    submit();
  };
  $("segment-left").onclick = () => run(segmentLeft);
  return submit;
}

function segmentAll() {
  const asked = {
    names: [...chosenNames(), ...words($("other-names").value)],
    refine: $("refine").checked ? "crf" : "none",
  };
  const photos = [...$("photos").files];
  clearResults();
  left.clear();
  photos.forEach((photo, index) => left.add({ photo, asked, index, alone: photos.length === 1 }));
  return segmentLeft();
}

async function segmentLeft() {
  const tasks = [...left];
  const stop = new AbortController();
  $("segment-cancel").onclick = () => stop.abort();
  $("segment-left").hidden = true;
  $("segment-running").hidden = false;
  let said = "";
  try {
    const done = await each(tasks, stop.signal);
    if (stop.signal.aborted) said = `Cancelled: ${done} of ${tasks.length} photos are done.`;
  } finally {
    $("segment-running").hidden = true;
    $("segment-left").hidden = !left.size;
    $("segment-status").textContent = said;
  }
}

// One after the other: side by side they would only fill the service's queue. The number of photos that were done.
async function each(tasks, signal) {
  for (const [done, task] of tasks.entries()) {
    const { photo, asked, index, alone } = task;
    const where = `${done + 1} of ${tasks.length}`;
    const tell = (seconds) => ($("segment-status").textContent = `${where}: trying again in ${seconds} s`);
    $("segment-status").textContent = where;
    $("segment-progress").value = done / tasks.length;
    try {
      const answer = await patiently(() => segment(photo, asked, signal), { signal, tell });
      left.delete(task);
      putResult(index, { photo, asked, answer }, alone);
    } catch (error) {
      if (signal.aborted) return done;
      putResult(index, { photo, asked, error: error.message }, alone);
      // Without a key, and without the service, the others would fail as well.
      if (error.status === 401 || error.later !== undefined) throw error;
    }
  }
  return tasks.length;
}

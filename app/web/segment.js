// Segmenting photos, one after the other, until all are done or the run is cancelled.

import { $, busy, takeDrops, words } from "./form.js";
import { addResult, clearResults, gallery } from "./gallery.js";
import { segment } from "./request.js";
import { allOrNone, chosenNames } from "./taught.js";

// The returned function does what the form's button does.
export function segmenting() {
  gallery();
  takeDrops($("segment"), $("photos"));
  $("all-names").onclick = allOrNone;
  const submit = () => busy($("segment-go"), $("segment-problem"), segmentAll);
  $("segment").onsubmit = (event) => {
    event.preventDefault();
    submit();
  };
  return submit;
}

async function segmentAll() {
  const asked = {
    names: [...chosenNames(), ...words($("other-names").value)],
    refine: $("refine").checked ? "crf" : "none",
  };
  const photos = [...$("photos").files];
  const stop = new AbortController();
  $("segment-cancel").onclick = () => stop.abort();
  $("segment-running").hidden = false;
  clearResults();
  let said = "";
  try {
    const done = await each(photos, asked, stop.signal);
    if (stop.signal.aborted) said = `Cancelled: ${done} of ${photos.length} photos are done.`;
  } finally {
    $("segment-running").hidden = true;
    $("segment-status").textContent = said;
  }
}

// One after the other: side by side they would only fill the service's queue. The number of photos that were done.
async function each(photos, asked, signal) {
  for (const [index, photo] of photos.entries()) {
    $("segment-status").textContent = `${index + 1} of ${photos.length}`;
    $("segment-progress").value = index / photos.length;
    const result = await resultOf(photo, asked, signal);
    if (signal.aborted) return index;
    addResult(result, photos.length === 1);
  }
  return photos.length;
}

async function resultOf(photo, asked, signal) {
  try {
    return { photo, asked, answer: await segment(photo, asked, signal) };
  } catch (error) {
    return { photo, asked, error: error.message };
  }
}

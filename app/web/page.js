// The page: teach, see what is taught, segment.

import { $, hasFiles, showProblem } from "./form.js";
import { samples } from "./samples.js";
import { segmenting } from "./segment.js";
import { useKey } from "./service.js";
import { showTaught } from "./taught.js";
import { teaching } from "./teach.js";

document.addEventListener("key-needed", () => {
  $("key").hidden = false;
  $("key-value").focus();
});
$("key").onsubmit = (event) => {
  event.preventDefault();
  useKey($("key-value").value);
  $("key-value").value = "";
  $("key").hidden = true;
  // Of the forms, which said that it was missing. What is wrong with a photo stays with it.
  for (const place of document.querySelectorAll("[role=alert][id]")) showProblem(place, "");
  showTaught();
};
// Enter on one of these would send the form that it is in: a look at the results would start another run.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("[type=checkbox], [type=radio], [type=range]")) event.preventDefault();
});
// A photo dropped beside the forms would replace the page.
for (const name of ["dragover", "drop"]) {
  addEventListener(name, (event) => hasFiles(event) && event.preventDefault());
}

samples({ teach: teaching(showTaught), segment: segmenting() });
showTaught();

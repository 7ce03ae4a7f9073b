// Helpers shared by the page's forms.

export const $ = (id) => document.getElementById(id);

// A new element. Texts become text nodes: nothing that a person or the service wrote is ever read as HTML.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Gives a list other children. One that stays keeps the focus, which moving takes away.
export function refill(list, children) {
  const focused = document.activeElement;
  list.replaceChildren(...children);
  if (list.contains(focused)) focused.focus({ preventScroll: true });
}

// A function that promises an answer, or nothing if it was called again before the answer came.
export function latest() {
  let last;
  return async (answer) => {
    last = answer;
    await answer.catch(() => {});
    return last === answer ? answer : undefined;
  };
}

export const words = (text) => text.split(",").map((word) => word.trim()).filter(Boolean);

export function showProblem(place, text) {
  place.textContent = text;
  place.hidden = !text;
}

// Runs work behind a button that can't be pressed meanwhile, and shows beside it what went wrong. True if nothing did. A
// button that is turned off loses the focus: it gets it back, unless something else has it by then.
export async function busy(button, problem, work) {
  if (button.disabled) return false; // one run at a time, also of those that no press started
  const focused = document.activeElement === button;
  button.disabled = true;
  showProblem(problem, "");
  try {
    await work();
    return true;
  } catch (error) {
    showProblem(problem, error.message);
    return false;
  } finally {
    button.disabled = false;
    if (focused && document.activeElement === document.body) button.focus({ preventScroll: true });
  }
}

export const hasFiles = ({ dataTransfer }) => dataTransfer.types.includes("Files");

// Files dropped anywhere on the form are as if chosen in this field, those dropped on another one as if chosen there.
export function takeDrops(form, input) {
  const over = (event) => {
    if (!hasFiles(event)) return; // text is for the text field it is dragged to
    event.preventDefault();
    form.classList.toggle("over", event.type === "dragover");
  };
  form.addEventListener("dragover", over);
  form.addEventListener("dragleave", over);
  form.addEventListener("drop", (event) => {
    over(event);
    const fields = [...form.querySelectorAll("[type=file]")];
    const field = fields.find(({ labels }) => labels[0].contains(event.target)) ?? input;
    const taken = new DataTransfer();
    const dropped = [...event.dataTransfer.files];
    for (const file of field.multiple ? dropped : dropped.slice(0, 1)) taken.items.add(file);
    if (!taken.files.length) return;
    field.files = taken.files;
    field.dispatchEvent(new Event("change"));
  });
}

// Shows a file in an <img>, upright as its EXIF says. False if the browser can't, as with most TIFFs.
export async function showPhoto(image, file) {
  const url = URL.createObjectURL(file); // the image may show another file when this one is decoded
  image.src = url;
  try {
    await image.decode();
    return true;
  } catch {
    return false;
  } finally {
    URL.revokeObjectURL(url);
  }
}

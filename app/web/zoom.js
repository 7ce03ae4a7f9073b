// Zoom and pan of the photo that is marked: wheel, buttons, two fingers, or dragging while space is held.

const MOST = 8; // enlargement
const STEP = 1.25;

export class Zoom {
  #scale = 1;
  #left = 0; // of the stage in the frame, in pixels of the screen
  #top = 0;
  #fingers = new Map(); // by pointer: where it is
  #held = false; // space is
  #dragged = false; // since space was pressed

  // `taken()` is called when a touch that began as a stroke becomes a pinch.
  constructor(frame, { taken }) {
    this.frame = frame;
    this.stage = frame.querySelector(".stage");
    this.taken = taken;
    frame.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    // Captured, so that what moves the photo draws nothing.
    frame.addEventListener("pointerdown", (event) => this.#down(event), { capture: true });
    frame.addEventListener("pointermove", (event) => this.#move(event), { capture: true });
    for (const name of ["pointerup", "pointercancel"]) {
      frame.addEventListener(name, (event) => this.#fingers.delete(event.pointerId), { capture: true });
    }
    document.addEventListener("keydown", (event) => this.#hold(event), { capture: true });
    document.addEventListener("keyup", (event) => event.key === " " && this.#release(), { capture: true });
    addEventListener("blur", () => this.#release());
  }

  whole() {
    this.#scale = 1;
    this.#place(0, 0);
  }

  // In or out, with the middle where it is.
  by(factor) {
    const { left, top, width, height } = this.frame.getBoundingClientRect();
    this.#zoom(factor, [left + width / 2, top + height / 2]);
  }

  in = () => this.by(STEP);
  out = () => this.by(1 / STEP);

  // Whether the photo was dragged since space was pressed.
  get dragged() {
    return this.#dragged;
  }

  // Moves the photo so that a place of the stage, in shares of its size, is seen.
  reveal([x, y]) {
    const { width, height } = this.frame.getBoundingClientRect();
    const into = (value, low, high) => Math.min(Math.max(value, low), high);
    const left = into(this.#left + x * width * this.#scale, 0, width) - x * width * this.#scale;
    const top = into(this.#top + y * height * this.#scale, 0, height) - y * height * this.#scale;
    this.#place(left, top);
  }

  #zoom(factor, [clientX, clientY]) {
    const { left, top } = this.frame.getBoundingClientRect();
    const scale = Math.min(Math.max(this.#scale * factor, 1), MOST);
    const [x, y] = [clientX - left, clientY - top];
    const grown = scale / this.#scale;
    this.#scale = scale;
    this.#place(x - (x - this.#left) * grown, y - (y - this.#top) * grown);
  }

  // The photo always fills the frame.
  #place(left, top) {
    const { width, height } = this.frame.getBoundingClientRect();
    this.#left = Math.min(0, Math.max(left, width * (1 - this.#scale)));
    this.#top = Math.min(0, Math.max(top, height * (1 - this.#scale)));
    this.stage.style.transform = `translate(${this.#left}px, ${this.#top}px) scale(${this.#scale})`;
  }

  #wheel(event) {
    if (this.frame.classList.contains("empty")) return;
    if (this.#scale === 1 && event.deltaY > 0) return; // nothing to zoom out of: the page scrolls
    event.preventDefault();
    this.#zoom(STEP ** -Math.sign(event.deltaY), [event.clientX, event.clientY]);
  }

  #down(event) {
    if (event.button) return; // of a mouse's other buttons the release may be seen elsewhere
    this.#fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.#fingers.size === 2) this.taken();
    if (this.#held || this.#fingers.size > 1) {
      event.stopPropagation();
      event.preventDefault();
      this.frame.setPointerCapture(event.pointerId);
    }
  }

  #move(event) {
    const before = this.#fingers.get(event.pointerId);
    if (!before || !(this.#held || this.#fingers.size > 1)) return;
    event.stopPropagation();
    const now = [event.clientX, event.clientY];
    const other = [...this.#fingers].find(([id]) => id !== event.pointerId)?.[1];
    this.#fingers.set(event.pointerId, now);
    this.#dragged = true;
    // Of two fingers each moves the middle by half of its way.
    const share = other ? 0.5 : 1;
    this.#place(this.#left + share * (now[0] - before[0]), this.#top + share * (now[1] - before[1]));
    if (other) this.#zoom(apart(now, other) / apart(before, other), middle(now, other));
  }

  #hold(event) {
    const here = this.frame.matches(":hover") || this.frame.contains(document.activeElement);
    if (event.key !== " " || !here || document.activeElement.matches("input, button, select, summary, a")) return;
    event.preventDefault(); // the page would scroll
    if (!event.repeat) this.#dragged = false;
    this.#held = true;
    this.frame.classList.add("moving");
  }

  #release() {
    this.#held = false;
    this.frame.classList.remove("moving");
  }
}

const apart = ([x, y], [toX, toY]) => Math.max(1, Math.hypot(toX - x, toY - y));
const middle = ([x, y], [toX, toY]) => [(x + toX) / 2, (y + toY) / 2];

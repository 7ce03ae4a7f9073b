// Marking a photo with clicks, brush, eraser, boxes and polygons, by pointer or keyboard.

import { boxOf, dots, draw, isNothing, pngOf, sketch, visible } from "./marks.js";

const SHOWN_PX = 1600; // on screen a canvas needs no more, and one of a 40-megapixel photo would be slow
const KEY_STEP = 0.02; // of the photo's longer side
const CLOSE_PX = 10; // on screen: a click this near to the first corner closes a polygon
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const bounded = (value, limit) => Math.min(Math.max(value, 0), limit);

export class Painter {
  #marks = [];
  #undone = []; // the last one first to be redone
  #open = null; // the mark being drawn
  #at = [0, 0];
  #size = [0, 0];
  #proposals = new Set(); // promises of what was clicked

  // `tool()` is "click", "brush", "eraser", "box" or "polygon", `percent()` the brush's share of the photo's longer
  // side, `zoom` what moves the photo. `takesAway()` is true if clicks are beside the object, `propose(points)` promises
  // its mask and its share of the photo, and `failed(error)` is told why there is none. `tell(text)` says how far a
  // click has come.
  constructor(frame, { tool, percent, zoom, takesAway, propose, failed, tell, changed }) {
    this.frame = frame;
    this.canvas = frame.querySelector(".marks");
    this.ring = frame.querySelector(".ring");
    Object.assign(this, { tool, percent, zoom, takesAway, propose, failed, tell, changed });
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => event.isPrimary && this.#move(this.#point(event)));
    canvas.addEventListener("dblclick", () => this.#closePolygon());
    for (const name of ["pointerup", "pointercancel", "blur"]) canvas.addEventListener(name, () => this.#end(name));
    for (const name of ["pointerleave", "blur"]) canvas.addEventListener(name, () => (this.ring.hidden = true));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", (event) => event.key === " " && !this.zoom.dragged && this.#space(event));
  }

  // A new photo, unmarked.
  start(width, height) {
    this.#size = [width, height];
    this.#at = [width / 2, height / 2];
    [this.#marks, this.#undone, this.#open] = [[], [], null];
    const scale = Math.min(1, SHOWN_PX / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.#redraw();
  }

  // Of a polygon that is being drawn, the last corner; of any other mark that is, all of it.
  undo() {
    if (this.#open?.tool === "polygon" && this.#open.points.length > 1) this.#open.points.pop();
    else if (this.#open) this.#open = null;
    else if (this.#marks.length) {
      this.#forgetFound();
      this.#undone.push(this.#marks.pop());
    }
    this.#redraw();
  }

  redo() {
    if (this.#undone.length && !this.#open) this.#marks.push(this.#undone.pop());
    this.#redraw();
  }

  clear() {
    this.abandon();
    this.#forgetFound();
    this.#add({ tool: "clear" });
  }

  // Drops the mark being drawn.
  abandon() {
    this.#open = null;
    this.#redraw();
  }

  // Another tool was chosen: a polygon is not left half drawn.
  finish() {
    this.#closePolygon();
  }

  // What was clicked has been proposed, or could not be.
  async settled() {
    while (this.#proposals.size) await Promise.all(this.#proposals);
  }

  get undoable() {
    return this.#marks.length > 0 || this.#open !== null;
  }

  get redoable() {
    return this.#undone.length > 0;
  }

  get empty() {
    return visible(this.#marks).every(({ tool, rle }) => tool === "eraser" || (tool === "click" && !rle));
  }

  // [x, y, width, height] if one box is all there is.
  get box() {
    const marks = visible(this.#marks);
    return marks.length === 1 && marks[0].tool === "box" ? boxOf(marks[0]) : null;
  }

  png() {
    return pngOf(visible(this.#marks), this.#size);
  }

  // What was said of a click that is taken back.
  #forgetFound() {
    if (this.#marks.at(-1)?.tool === "click") this.tell("");
  }

  #add(mark) {
    this.#marks.push(mark);
    this.#undone = [];
    this.#redraw();
  }

  #press(event) {
    if (event.button || !event.isPrimary) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#move(this.#point(event));
    this.#begin(event);
  }

  #begin({ shiftKey }) {
    if (this.tool() === "polygon") return this.#corner();
    const beside = shiftKey || this.takesAway();
    this.#open = { tool: this.tool(), beside, width: this.#brushPx(), points: [this.#at, this.#at] };
    this.#redraw();
  }

  // Clicks that follow each other are of one object.
  #click({ beside }) {
    const before = this.#marks.at(-1)?.tool === "click" ? this.#marks.at(-1).points : [];
    if (beside && !before.length) return this.failed(new Error("Click on the object first, then beside it."));
    const mark = { tool: "click", size: this.#size, points: [...before, [...this.#at, beside ? 0 : 1]] };
    this.#add(mark);
    const proposal = this.#propose(mark).finally(() => {
      this.#proposals.delete(proposal);
      this.frame.classList.toggle("looking", this.#proposals.size > 0);
    });
    this.#proposals.add(proposal);
    this.frame.classList.add("looking");
    this.tell("Looking …");
  }

  async #propose(mark) {
    try {
      const { rle, share } = await this.propose(mark.points);
      mark.rle = rle;
      // If it was not undone meanwhile.
      this.tell(this.#marks.includes(mark) ? `Found: ${(100 * share).toFixed(1)} % of the photo.` : "");
    } catch (error) {
      this.tell("");
      if (this.#marks.includes(mark)) this.failed(error); // not undone meanwhile, nor the photo changed
      [this.#marks, this.#undone] = [this.#marks, this.#undone].map((marks) => marks.filter((other) => other !== mark));
    }
    this.#redraw();
  }

  #corner() {
    if (this.#open && this.#isNearFirst()) return this.#closePolygon();
    this.#open ??= { tool: "polygon", points: [] };
    this.#open.points.push(this.#at);
    this.#redraw();
  }

  #isNearFirst() {
    const [[x, y]] = this.#open.points;
    return this.#open.points.length > 2 && Math.hypot(this.#at[0] - x, this.#at[1] - y) < CLOSE_PX * this.#screenPx();
  }

  #closePolygon() {
    if (this.#open?.tool === "polygon") this.#keep();
  }

  #move(point) {
    this.#at = point;
    if (this.#open?.tool === "click") {
      this.#open.points = [point];
    } else if (this.#open?.tool === "box") {
      this.#open.points[1] = point;
      this.#redraw();
    } else if (this.#open && this.#open.tool !== "polygon") {
      this.#open.points.push(point);
      draw(this.#context(), { ...this.#open, points: this.#open.points.slice(-2) });
    }
    this.#showRing();
  }

  // A polygon goes on after the button is released. A click counts where it is released, so that two fingers are none.
  #end(name) {
    if (this.#open?.tool === "click" && name !== "pointerup") this.abandon();
    else if (this.#open && this.#open.tool !== "polygon") this.#keep();
  }

  #keep() {
    const mark = this.#open;
    this.#open = null;
    if (mark.tool === "click") this.#click(mark);
    else if (isNothing(mark)) this.#redraw();
    else this.#add(mark);
  }

  #space(event) {
    if (this.#open && this.#open.tool !== "polygon") return this.#end();
    this.#begin(event);
    if (this.#open?.tool === "click") this.#keep();
  }

  #key(event) {
    const { key } = event;
    if (key in ARROWS) this.#arrow(event);
    else if (key === "Enter") this.#closePolygon();
    else if (key === "Escape" && this.#open) this.abandon();
    else if (key === "+" || key === "-") this.zoom[key === "+" ? "in" : "out"]();
    else return;
    event.preventDefault();
  }

  #arrow({ key, shiftKey }) {
    const step = shiftKey ? 1 : KEY_STEP * Math.max(...this.#size);
    this.#move(this.#at.map((value, axis) => bounded(value + step * ARROWS[key][axis], this.#size[axis])));
    this.zoom.reveal(this.#at.map((value, axis) => value / this.#size[axis]));
  }

  #redraw() {
    const context = this.#context();
    context.clearRect(0, 0, ...this.#size);
    for (const mark of visible(this.#marks)) draw(context, mark);
    if (this.#open?.tool === "polygon") sketch(context, this.#open, 2 * this.#screenPx());
    else if (this.#open) draw(context, this.#open);
    else if (this.#marks.at(-1)?.tool === "click") dots(context, this.#marks.at(-1).points, this.#screenPx());
    this.changed();
  }

  #context() {
    const context = this.canvas.getContext("2d");
    context.setTransform(this.canvas.width / this.#size[0], 0, 0, this.canvas.height / this.#size[1], 0, 0);
    context.fillStyle = context.strokeStyle = getComputedStyle(this.canvas).color;
    return context;
  }

  #point(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const share = [(event.clientX - left) / width, (event.clientY - top) / height];
    return share.map((value, axis) => bounded(value, 1) * this.#size[axis]);
  }

  #brushPx() {
    return (this.percent() / 100) * Math.max(...this.#size);
  }

  // A pixel of the screen, in pixels of the photo.
  #screenPx() {
    return this.#size[0] / (this.canvas.getBoundingClientRect().width || this.#size[0]);
  }

  #showRing() {
    const scale = this.canvas.clientWidth / this.#size[0];
    const px = ["click", "box", "polygon"].includes(this.tool()) ? 6 : this.#brushPx() * scale;
    this.ring.hidden = false;
    Object.assign(this.ring.style, {
      width: `${px}px`,
      height: `${px}px`,
      left: `${this.#at[0] * scale}px`,
      top: `${this.#at[1] * scale}px`,
    });
  }
}

// Marking a photo with brush, eraser and boxes. Marks are kept as they were drawn, in pixels of the upright photo: that
// makes them sharp at any size and easy to undo.

const SHOWN_PX = 1600; // on screen a canvas needs no more, and one of a 40-megapixel photo would be slow
const KEY_STEP = 0.02; // of the photo's longer side
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const bounded = (value, limit) => Math.min(Math.max(value, 0), limit);

export class Painter {
  #marks = [];
  #open = null; // the mark being drawn
  #at = [0, 0];
  #size = [0, 0];

  // `tool()` is "brush", "eraser" or "box", `percent()` the brush's share of the photo's longer side.
  constructor(frame, { tool, percent, changed }) {
    this.canvas = frame.querySelector("canvas");
    this.ring = frame.querySelector(".ring");
    this.tool = tool;
    this.percent = percent;
    this.changed = changed;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button || !event.isPrimary) return;
      canvas.setPointerCapture(event.pointerId);
      this.#move(this.#point(event));
      this.#begin();
    });
    canvas.addEventListener("pointermove", (event) => event.isPrimary && this.#move(this.#point(event)));
    for (const name of ["pointerup", "pointercancel", "blur"]) canvas.addEventListener(name, () => this.#end());
    for (const name of ["pointerleave", "blur"]) canvas.addEventListener(name, () => (this.ring.hidden = true));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  // A new photo, unmarked.
  start(width, height) {
    this.#size = [width, height];
    this.#at = [width / 2, height / 2];
    this.#marks = [];
    const scale = Math.min(1, SHOWN_PX / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.#redraw();
  }

  undo() {
    this.#marks.pop();
    this.#redraw();
  }

  clear() {
    this.#marks.push({ tool: "clear" }); // so that it can be undone
    this.#redraw();
  }

  get undoable() {
    return this.#marks.length > 0;
  }

  get empty() {
    return this.#visible().every(({ tool }) => tool === "eraser");
  }

  // [x, y, width, height] if one box is all there is.
  get box() {
    const marks = this.#visible();
    return marks.length === 1 && marks[0].tool === "box" ? box(marks[0]) : null;
  }

  // The marks as a PNG of the photo's own size, white on black.
  async png() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = this.#size;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    for (const mark of this.#visible()) draw(context, mark);
    const image = context.getImageData(0, 0, canvas.width, canvas.height);
    // A canvas softens edges, and to the service every grey is the category.
    const pixels = new Uint32Array(image.data.buffer);
    for (let at = 0; at < pixels.length; at++) pixels[at] = image.data[4 * at + 3] < 128 ? 0xff000000 : 0xffffffff;
    context.putImageData(image, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (!blob) throw new Error("This browser can't write a mask of this size: choose a mask file.");
    return blob;
  }

  #visible() {
    return this.#marks.slice(this.#marks.findLastIndex(({ tool }) => tool === "clear") + 1);
  }

  #begin() {
    this.#open = { tool: this.tool(), width: this.#brushPx(), points: [this.#at, this.#at] };
    this.#marks.push(this.#open);
    this.#redraw();
  }

  #move(point) {
    this.#at = point;
    if (this.#open?.tool === "box") {
      this.#open.points[1] = point;
      this.#redraw();
    } else if (this.#open) {
      this.#open.points.push(point);
      draw(this.#context(), { ...this.#open, points: this.#open.points.slice(-2) });
    }
    this.#showRing();
  }

  #end() {
    if (this.#open?.tool === "box" && Math.min(...box(this.#open).slice(2)) < 3) this.undo(); // a click is no box
    this.#open = null;
  }

  #key(event) {
    if (event.key in ARROWS) {
      const step = event.shiftKey ? 1 : KEY_STEP * Math.max(...this.#size);
      this.#move(this.#at.map((value, axis) => bounded(value + step * ARROWS[event.key][axis], this.#size[axis])));
    } else if (event.key === " ") {
      if (this.#open) this.#end();
      else this.#begin();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.#end();
      this.undo();
    } else return;
    event.preventDefault();
  }

  #redraw() {
    const context = this.#context();
    context.clearRect(0, 0, ...this.#size);
    for (const mark of this.#visible()) draw(context, mark);
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

  #showRing() {
    const scale = this.canvas.clientWidth / this.#size[0];
    const px = this.tool() === "box" ? 6 : this.#brushPx() * scale;
    this.ring.hidden = false;
    Object.assign(this.ring.style, {
      width: `${px}px`,
      height: `${px}px`,
      left: `${this.canvas.offsetLeft + this.#at[0] * scale}px`,
      top: `${this.canvas.offsetTop + this.#at[1] * scale}px`,
    });
  }
}

function draw(context, { tool, width, points }) {
  context.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
  if (tool === "box") return context.fillRect(...box({ points }));
  Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}

// Whole pixels, as the service wants them.
function box({ points: [from, to] }) {
  const [left, top] = from.map((value, axis) => Math.floor(Math.min(value, to[axis])));
  const [right, bottom] = from.map((value, axis) => Math.ceil(Math.max(value, to[axis])));
  return [left, top, right - left, bottom - top];
}

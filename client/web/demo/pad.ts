/** Where the user draws. */

import { SIDE, type Ink } from "./digits.js";

const STROKE = 0.105; // of the pad's width

export class Pad {
  /** Called when a stroke ends. */
  drawn: (ink: Ink) => void = () => undefined;
  readonly #canvas: HTMLCanvasElement;
  readonly #context: CanvasRenderingContext2D;
  readonly #hint: HTMLElement;
  #last: [number, number] | undefined;
  #isSample = false;

  constructor(canvas: HTMLCanvasElement, hint: HTMLElement) {
    this.#canvas = canvas;
    this.#hint = hint;
    this.#context = canvas.getContext("2d", { willReadFrequently: true }) as CanvasRenderingContext2D;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#go(event));
    for (const end of ["pointerup", "pointercancel"] as const) {
      canvas.addEventListener(end, () => this.#end());
    }
  }

  clear(): void {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#hint.classList.remove("gone");
    this.#isSample = false;
  }

  /** 8×8 pixels in place of a drawing; the next stroke begins a new one. */
  show(pixels: Float64Array): void {
    this.clear();
    this.#hint.classList.add("gone");
    this.#isSample = true;
    const small = document.createElement("canvas");
    small.width = small.height = SIDE;
    this.paint(small, pixels);
    this.#context.drawImage(small, 0, 0, this.#canvas.width, this.#canvas.height);
  }

  /** Pixels as ink of the current colour. */
  paint(canvas: HTMLCanvasElement, pixels: Float64Array): void {
    const context = canvas.getContext("2d") as CanvasRenderingContext2D;
    context.fillStyle = this.#colour();
    pixels.forEach((value, i) => {
      context.globalAlpha = value;
      context.fillRect(i % SIDE, Math.floor(i / SIDE), 1, 1);
    });
  }

  #colour(): string {
    return getComputedStyle(this.#canvas).getPropertyValue("--stroke").trim();
  }

  #place(event: PointerEvent): [number, number] {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  #begin(event: PointerEvent): void {
    if (event.button !== 0) return;
    event.preventDefault();
    this.#canvas.setPointerCapture(event.pointerId);
    if (this.#isSample) this.clear();
    this.#hint.classList.add("gone");
    this.#last = this.#place(event);
    this.#line(this.#last, this.#last);
  }

  #go(event: PointerEvent): void {
    if (this.#last === undefined) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const next = this.#place(each);
      this.#line(this.#last, next);
      this.#last = next;
    }
  }

  #end(): void {
    if (this.#last === undefined) return;
    this.#last = undefined;
    const { width, height } = this.#canvas;
    const { data } = this.#context.getImageData(0, 0, width, height);
    const inside = (x: number, y: number) => x >= 0 && y >= 0 && x < width && y < height;
    const at = (x: number, y: number) => (inside(x, y) && (data[4 * (y * width + x) + 3] as number) > 127 ? 1 : 0);
    this.drawn({ width, height, at });
  }

  #line(from: [number, number], to: [number, number]): void {
    const context = this.#context;
    context.globalAlpha = 1;
    context.strokeStyle = this.#colour();
    context.lineWidth = STROKE * this.#canvas.width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  }
}

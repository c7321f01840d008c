/** Numbers and bytes as a person can see them. */

import type { Stats } from "../src/index.js";
import type { InferResponse } from "../src/gen/secure_quant/v1/share_inference_pb.js";

const BINS = 32;

export function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no ${id}`);
  return found;
}

/** A score's bar for each digit, and the best of them. */
export function bars(scores: Float32Array): void {
  const most = Math.max(...scores);
  const weights = Array.from(scores, (score) => Math.exp(score - most));
  const sum = weights.reduce((a, b) => a + b, 0);
  const best = scores.indexOf(most);
  element("digit").textContent = String(best);
  const rows = weights.map((weight, digit) => {
    const row = document.createElement("li");
    const [name, track, fill, score] = ["span", "div", "div", "span"].map((tag) => document.createElement(tag));
    if (!name || !track || !fill || !score) return row;
    name.textContent = String(digit);
    track.className = "track";
    fill.className = "fill";
    fill.style.width = `${(100 * weight) / sum}%`;
    track.append(fill);
    score.className = "score";
    score.textContent = `${((100 * weight) / sum).toFixed(1)} %`;
    row.className = digit === best ? "best" : "";
    row.append(name, track, score);
    return row;
  });
  element("bars").replaceChildren(...rows);
}

/** 3×32×32 bytes as colours. `signed`: int8 values, from -128 as black. */
export function seen(which: number, bytes: Uint8Array, signed: boolean): void {
  const canvas = element(`seen${which}`) as HTMLCanvasElement;
  const context = canvas.getContext("2d") as CanvasRenderingContext2D;
  const pixels = context.createImageData(canvas.width, canvas.height);
  const one = canvas.width * canvas.height;
  for (let i = 0; i < one; i++) {
    for (let channel = 0; channel < 3; channel++) {
      const byte = bytes[channel * one + i] as number;
      pixels.data[4 * i + channel] = signed ? byte ^ 0x80 : byte;
    }
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

/** How often byte values occur, in 32 bars; the highest fills the height. */
export function spread(which: number, bytes: Uint8Array): void {
  const counts = new Array<number>(BINS).fill(0);
  for (const byte of bytes) counts[byte >> 3] = (counts[byte >> 3] as number) + 1;
  const most = Math.max(...counts);
  const made = counts.map((count, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = Math.max(0.4, (24 * count) / most);
    const at = { x: 4 * i + 0.4, y: 24 - height, width: 3.2, height };
    for (const [name, value] of Object.entries(at)) bar.setAttribute(name, String(value));
    return bar;
  });
  element(`spread${which}`).replaceChildren(...made);
}

/** The first of some bytes in hex. */
export function bytesOf(bytes: Uint8Array, most: number): string {
  const shown = Array.from(bytes.subarray(0, most), (byte) => byte.toString(16).padStart(2, "0"));
  return shown.join(" ") + (bytes.length > most ? " …" : "");
}

/** What went from whom to whom. */
export function wire(sent: { request: Uint8Array; answer: Uint8Array }[], stats: Stats): void {
  const names = ["server A", "server B"];
  const rows: [string, string, number][] = [];
  sent.forEach(({ request }, i) => rows.push(["you", names[i] as string, request.length]));
  rows.push(["server A", "server B", stats.onlineBytesPerDirection]);
  rows.push(["server B", "server A", stats.onlineBytesPerDirection]);
  sent.forEach(({ answer }, i) => rows.push([names[i] as string, "you", answer.length]));
  rows.push(["dealer", "server B, ahead", stats.offlineBytes[1]]);
  element("wire").replaceChildren(...rows.map((row) => cells(...row.map(text))));
}

/** The opened integers beside both shares and the plaintext ones; whether all are equal. */
export function bits(answers: [InferResponse, InferResponse], opened: BigInt64Array, truth: bigint[]): boolean {
  const shares = answers.map(({ share }) => new DataView(share.buffer, share.byteOffset, share.byteLength));
  let same = truth.length === opened.length;
  const rows = Array.from(opened, (value, i) => {
    const [a, b] = shares.map((view) => view.getBigUint64(8 * i, true).toString(16).padStart(16, "0"));
    const row = cells(String(i), `${a} + ${b}`, String(value), String(truth[i]));
    row.lastElementChild?.classList.add(value === truth[i] ? "same" : "other");
    same &&= value === truth[i];
    return row;
  });
  element("bits").replaceChildren(...rows);
  return same;
}

function text(value: string | number): string {
  return typeof value === "number" ? value.toLocaleString("en") : value;
}

function cells(...texts: string[]): HTMLTableRowElement {
  const row = document.createElement("tr");
  for (const each of texts) row.insertCell().textContent = each;
  return row;
}

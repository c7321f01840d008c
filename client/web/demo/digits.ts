/** Drawings as the network knows digits: 8×8 pixels from 0 to 1, spread over 3×32×32. */

export const SIDE = 8;
const LARGE = 32;

/** A drawing's ink, row by row: 0 or 1. */
export interface Ink {
  width: number;
  height: number;
  at: (x: number, y: number) => number;
}

/**
 * As the digits were made that the network learned: the ink's box is stretched to 32 pixels in
 * height, or in width where that is more, and each block of 4×4 is counted.
 */
export function fromDrawing(ink: Ink): Float64Array {
  const made = new Float64Array(SIDE * SIDE);
  const box = boxOf(ink);
  if (box === undefined) return made;
  const { left, top, right, bottom } = box;
  const longest = Math.max(right - left, bottom - top);
  const fine = 4; // points looked at in each pixel, each way
  for (let y = 0; y < LARGE * fine; y++) {
    for (let x = 0; x < LARGE * fine; x++) {
      const across = (left + right) / 2 + ((x + 0.5) / (LARGE * fine) - 0.5) * longest;
      const down = (top + bottom) / 2 + ((y + 0.5) / (LARGE * fine) - 0.5) * longest;
      const place = Math.floor(y / (4 * fine)) * SIDE + Math.floor(x / (4 * fine));
      made[place] = (made[place] as number) + ink.at(Math.floor(across), Math.floor(down));
    }
  }
  return made.map((count) => Math.round((16 * count) / (4 * fine) ** 2) / 16);
}

function boxOf(ink: Ink): { left: number; top: number; right: number; bottom: number } | undefined {
  let [left, top, right, bottom] = [ink.width, ink.height, 0, 0];
  for (let y = 0; y < ink.height; y++) {
    for (let x = 0; x < ink.width; x++) {
      if (!ink.at(x, y)) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    }
  }
  return right > left ? { left, top, right, bottom } : undefined;
}

/** float32[3, 32, 32] from 8×8 pixels, between their centres bilinearly. */
export function image(pixels: Float64Array): Float32Array<ArrayBuffer> {
  const made = new Float32Array(3 * LARGE * LARGE);
  const at = (row: number, column: number): number => {
    const inside = (i: number) => Math.max(0, Math.min(SIDE - 1, i));
    return pixels[inside(row) * SIDE + inside(column)] as number;
  };
  for (let y = 0; y < LARGE; y++) {
    for (let x = 0; x < LARGE; x++) {
      const [v, u] = [Math.max(0, (y + 0.5) / 4 - 0.5), Math.max(0, (x + 0.5) / 4 - 0.5)];
      const [row, column] = [Math.floor(v), Math.floor(u)];
      const upper = at(row, column) * (1 - u + column) + at(row, column + 1) * (u - column);
      const lower = at(row + 1, column) * (1 - u + column) + at(row + 1, column + 1) * (u - column);
      const value = upper * (1 - v + row) + lower * (v - row);
      for (let channel = 0; channel < 3; channel++) made[(channel * LARGE + y) * LARGE + x] = value;
    }
  }
  return made;
}

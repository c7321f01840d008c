/** Floats to int8 and integers to floats, to the last bit as secure_quant/reference/ports.py. */

import { SecureQuantError } from "./errors.js";
import { size, type Graph, type Port } from "./graph.js";

/** Samples end to end in row-major order: [batch, ...shape] flattened. */
export type Numbers = ArrayLike<number>;
/** One array, or the arrays of all inputs by name. */
export type Inputs = Numbers | { readonly [name: string]: Numbers };

/** One output. */
export interface NamedArray {
  shape: number[];
  data: Float32Array;
}

/** int8[batch, inputSize] as the graph's input has them: `clip(roundHalfEven(x / scale) + zero
 * point, -128, 127)`. Throws SHAPE_MISMATCH, VALUE_OUT_OF_RANGE. */
export function quantize(graph: Graph, x: Inputs): Int8Array {
  const arrays = arraysOf(graph, x);
  const batches = graph.inputs.map((port, i) => batchOf(port, arrays[i] as Numbers));
  const batch = batches[0] as number;
  if (batches.some((each) => each !== batch)) {
    const about = { got: batches.join(", "), expected: "as many of each" };
    throw new SecureQuantError("SHAPE_MISMATCH", "samples of the inputs", about);
  }
  const made = new Int8Array(batch * graph.inputSize);
  graph.inputs.forEach((port, i) => {
    const array = arrays[i] as Numbers;
    check(port, array);
    const one = size(port.asked);
    for (let sample = 0; sample < batch; sample++) {
      const start = sample * graph.inputSize + port.start;
      for (let j = 0; j < one; j++) place(port, made, start, j, array[sample * one + j] as number);
    }
  });
  return made;
}

/** float32 of each output by name, from int64[batch, outputSize]. */
export function dequantize(graph: Graph, y: BigInt64Array, batch: number): Record<string, NamedArray> {
  const made: Record<string, NamedArray> = {};
  for (const port of graph.outputs) {
    const shape = port.value.shape;
    const one = size(shape);
    const axis = port.axis < 0 ? port.axis + shape.length : port.axis;
    const inner = size(shape.slice(axis + 1));
    const channels = shape[axis] as number;
    const data = new Float32Array(batch * one);
    for (let i = 0; i < data.length; i++) {
      const j = i % one;
      const channel = Math.floor(j / inner) % channels;
      const multiplier = port.multiplier.length > 1 ? port.multiplier[channel] : port.multiplier[0];
      const q = y[Math.floor(i / one) * graph.outputSize + port.start + j] as bigint;
      // The product of integers is exact; then one rounding to float64, one product, one cast.
      const factor = BigInt.asIntN(64, (q - BigInt(port.zeroPoint)) * BigInt(multiplier as number));
      data[i] = Number(factor) * port.scale;
    }
    made[port.name] = { shape: [batch, ...shape], data };
  }
  return made;
}

function arraysOf(graph: Graph, x: Inputs): Numbers[] {
  const names = graph.inputs.map((port) => port.name);
  if (isNumbers(x)) {
    if (names.length === 1) return [x];
    const about = { got: "one array", expected: `arrays by name: ${names.join(", ")}` };
    throw new SecureQuantError("SHAPE_MISMATCH", "input", about);
  }
  const given = Object.keys(x);
  if (given.length !== names.length || names.some((name) => !Object.hasOwn(x, name))) {
    const about = { got: given.join(", ") || "none", expected: names.join(", ") };
    throw new SecureQuantError("SHAPE_MISMATCH", "names of inputs", about);
  }
  return names.map((name) => x[name] as Numbers);
}

function isNumbers(x: Inputs): x is Numbers {
  return Array.isArray(x) || ArrayBuffer.isView(x);
}

function batchOf(port: Port, array: Numbers): number {
  const one = size(port.asked);
  if (array.length === 0 || array.length % one !== 0) {
    const about = { got: `${array.length} elements`, expected: `samples of ${one}` };
    throw new SecureQuantError("SHAPE_MISMATCH", `input ${port.name}`, about);
  }
  return array.length / one;
}

/** Refuses what no integer stands for, before anything is made of it. */
function check(port: Port, array: Numbers): void {
  const what = `input ${port.name}`;
  const [low, high] = domain(port);
  const whole = port.dtype !== "float32";
  for (let i = 0; i < array.length; i++) {
    const x = array[i] as number;
    if (typeof x !== "number" || !Number.isFinite(x)) {
      const about = { got: "NaN, infinity or no number", expected: "finite numbers" };
      throw new SecureQuantError("VALUE_OUT_OF_RANGE", what, about);
    }
    if (whole && !(Number.isInteger(x) && x >= low && x <= high)) {
      const about = { got: "a value outside", expected: `integers from ${low} to ${high}` };
      throw new SecureQuantError("VALUE_OUT_OF_RANGE", what, about);
    }
  }
}

function domain(port: Port): [number, number] {
  if (port.dtype === "bool") return [0, 1];
  if (port.rows !== undefined) return [0, port.rows.count - 1];
  const scale = port.scale * (1 + 1e-6); // to which digits it is kept
  return [Math.ceil((-128 - port.zeroPoint) * scale), Math.floor((127 - port.zeroPoint) * scale)];
}

function place(port: Port, into: Int8Array, start: number, j: number, x: number): void {
  if (port.rows === undefined) {
    into[start + j] = Math.max(-128, Math.min(127, roundHalfEven(x / port.scale) + port.zeroPoint));
    return;
  }
  const { width, table } = port.rows;
  into.set(table.subarray(x * width, (x + 1) * width), start + j * width);
}

/** As IEEE 754's roundTiesToEven to an integer. */
export function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor; // exact: below 2**52, and beyond it there is none
  if (rest < 0.5 || (rest === 0.5 && floor % 2 === 0)) return floor;
  return rest === rest ? floor + 1 : x; // infinity less itself is none
}

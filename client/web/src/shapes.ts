/** Shape and range of each value, as secure_quant/ir/rules.py derives them; sizes are bounded here,
 * other checks are the server's. */

import { SecureQuantError } from "./errors.js";
import type { Node } from "./graph.js";

export type Shape = number[];

/** shape: per sample. low, high: of the carried integer, both included. */
export interface Value {
  shape: Shape;
  low: number;
  high: number;
  scale: number;
  zeroPoint: number;
}

const MAX_ELEMENTS = 2 ** 26;

type Rule = (node: Node, xs: Value[]) => Value;

const accumulator = (node: Node, shape: Shape): Value => {
  const bound = node.bound as number;
  return { shape, low: -bound, high: bound, scale: node.scale as number, zeroPoint: 0 };
};
const int8 = (node: Node): Value => ({
  shape: node.shape as Shape,
  low: -128,
  high: 127,
  scale: node.scale as number,
  zeroPoint: node.zero_point as number,
});
const same = (x: Value, shape: Shape): Value => ({ ...x, shape });
const last = (shape: Shape): number => shape[shape.length - 1] as number;
const withLast = (shape: Shape, length: number): Shape => [...shape.slice(0, -1), length];

function windows(node: Node, x: Value): Shape {
  const [kernel, stride, padding] = [node.kernel, node.stride, node.padding] as Shape[];
  const dilation = (node.dilation as Shape | undefined) ?? [1, 1];
  return [0, 1].map((i) => {
    const reach = (dilation[i] as number) * ((kernel?.[i] as number) - 1) + 1;
    const room = (x.shape[i + 1] as number) + 2 * (padding?.[i] as number) - reach;
    return Math.floor(room / (stride?.[i] as number)) + 1;
  });
}

function sliced(node: Node, x: Value): Value {
  const shape = [...x.shape];
  const { axis, start, stop, step } = node as unknown as Record<string, number>;
  shape[axis as number] = Math.ceil(((stop as number) - (start as number)) / (step as number));
  return same(x, shape);
}

function concatenated(node: Node, xs: Value[]): Value {
  const axis = node.axis as number;
  const shape = [...(xs[0] as Value).shape];
  shape[axis] = xs.reduce((sum, x) => sum + (x.shape[axis] as number), 0);
  return { ...hull(xs), shape };
}

function hull(xs: Value[]): Value {
  const low = Math.min(...xs.map((x) => x.low));
  const high = Math.max(...xs.map((x) => x.high));
  return { ...(xs[0] as Value), low, high };
}

function output(node: Node, xs: Value[]): Value {
  if (xs.length === 1 && node.op === "OutputPort") return { ...(xs[0] as Value), scale: node.scale as number };
  if (xs.length === 1) return { ...(xs[0] as Value), scale: node.scale as number };
  const whole = xs.reduce((sum, x) => sum + x.shape.reduce((a, b) => a * b, 1), 0);
  return { ...hull(xs), shape: [whole], scale: 1, zeroPoint: 0 };
}

const one = (rule: (node: Node, x: Value) => Value): Rule => (node, xs) => rule(node, xs[0] as Value);

const RULES: Record<string, Rule> = {
  Input: int8,
  InputPort: int8,
  LookupPort: int8,
  Linear: one((node, x) => accumulator(node, withLast(x.shape, node.out_features as number))),
  Conv2d: one((node, x) => accumulator(node, [node.out_channels as number, ...windows(node, x)])),
  MatMul: (node, [a, b]) => {
    const shape = (b as Value).shape;
    const columns = node.transpose_b ? shape[shape.length - 2] : last(shape);
    return accumulator(node, withLast((a as Value).shape, columns as number));
  },
  Mul: one((node, x) => accumulator(node, x.shape)),
  Add: one((node, x) => accumulator(node, x.shape)),
  SumPool: one((node, x) => accumulator(node, [x.shape[0] as number, ...windows(node, x)])),
  ReduceSum: one((node, x) => accumulator(node, withLast(x.shape, 1))),
  Requantize: one((node, x) => {
    const table = node.table as number[];
    const [low, high] = [Math.min(...table), Math.max(...table)];
    return { shape: x.shape, low, high, scale: node.scale as number, zeroPoint: node.zero_point as number };
  }),
  MaxPool: one((node, x) => same(x, [x.shape[0] as number, ...windows(node, x)])),
  ReduceMax: one((_, x) => same(x, withLast(x.shape, 1))),
  Reshape: one((node, x) => same(x, node.shape as Shape)),
  Transpose: one((node, x) => same(x, (node.permutation as Shape).map((i) => x.shape[i] as number))),
  Slice: one(sliced),
  Gather: one((node, x) => {
    const shape = [...x.shape];
    shape[node.axis as number] = (node.index as number[]).length;
    return same(x, shape);
  }),
  Concat: concatenated,
  OutputPort: output,
  Output: output,
};

/** Value of each node by name. Throws OP_NOT_SUPPORTED, MALFORMED_MODEL. */
export function shapesOf(nodes: Node[]): Map<string, Value> {
  const values = new Map<string, Value>();
  for (const node of nodes) {
    const rule = Object.hasOwn(RULES, node.op) ? RULES[node.op] : undefined;
    if (rule === undefined) {
      throw new SecureQuantError("OP_NOT_SUPPORTED", `op of ${node.name}`, { got: node.op });
    }
    const xs = node.inputs.map((name) => values.get(name));
    const made = xs.includes(undefined) ? undefined : rule(node, xs as Value[]);
    if (made === undefined || values.has(node.name) || !isSound(made)) {
      throw new SecureQuantError("MALFORMED_MODEL", `${node.op} ${node.name}`);
    }
    values.set(node.name, made);
  }
  return values;
}

function isSound(value: Value): boolean {
  const { shape, low, high, scale, zeroPoint } = value;
  const sized = Array.isArray(shape) && shape.length >= 1 && shape.length <= 6;
  const counts = sized && shape.every((n) => Number.isSafeInteger(n) && n > 0);
  const whole = counts && shape.reduce((product, each) => product * each, 1) <= MAX_ELEMENTS;
  const numbers = [low, high, zeroPoint].every(Number.isSafeInteger);
  return whole && numbers && low <= high && Number.isFinite(scale) && scale > 0;
}

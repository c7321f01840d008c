/** How much work a graph is, roughly: the numbers of `secure_quant/ir/effort.py`, of which a call's
 * time is made. */

import type { Node } from "./graph.js";
import type { Value } from "./shapes.js";

/** Of a round of the two parties, at most. */
const ROUND_TRIP_MS = 100;
/** Of the parties, at most: more than any plan has for an op of the longest chain. */
const ROUNDS_A_STEP = 16;
const [PRODUCT_MS, LOOKUP_MS] = [6e-6, 9e-3];

const TABLES = new Set(["Requantize", "MaxPool", "ReduceMax"]);

/** Of one sample. `products`: of two integers, in sums. `lookups`: values that go through a table or a
 * comparison. `depth`: ops of the longest chain that are no mere moves. */
export interface Effort {
  products: number;
  lookups: number;
  depth: number;
}

/** Counted from shapes alone. */
export function effortOf(nodes: Node[], values: Map<string, Value>): Effort {
  const sizeOf = (name: string) => (values.get(name) as Value).shape.reduce((a, b) => a * b, 1);
  const depths = new Map<string, number>();
  let [products, lookups, depth] = [0, 0, 0];
  for (const node of nodes) {
    const made = sizeOf(node.name) * productsOf(node, values);
    const table = TABLES.has(node.op);
    const sources = table && node.op !== "Requantize" ? node.inputs : [node.name];
    products += made;
    lookups += table ? Math.max(...sources.map(sizeOf)) : 0;
    const before = Math.max(0, ...node.inputs.map((name) => depths.get(name) as number));
    depth = before + (made > 0 || table ? 1 : 0);
    depths.set(node.name, depth);
  }
  return { products, lookups, depth }; // the last node is the Output
}

/** What so many samples may take two parties. What they say of the rounds counts no further than the
 * graph makes plausible. */
export function patienceMs(effort: Effort, rounds: number | undefined, samples: number): number {
  const { products, lookups, depth } = effort;
  const plausible = Math.min(rounds ?? ROUNDS_A_STEP * depth, ROUNDS_A_STEP * (depth + 1));
  return samples * (products * PRODUCT_MS + lookups * LOOKUP_MS + plausible * ROUND_TRIP_MS);
}

/** For one of its integers. */
function productsOf(node: Node, values: Map<string, Value>): number {
  switch (node.op) {
    case "Linear":
      return node.in_features as number;
    case "Conv2d": {
      const [rows, columns] = node.kernel as [number, number];
      return Math.floor((node.in_channels as number) / (node.groups as number)) * rows * columns;
    }
    case "MatMul": {
      const { shape } = values.get(node.inputs[0] as string) as Value;
      return shape[shape.length - 1] as number;
    }
    case "Mul":
      return 1;
    default:
      return 0;
  }
}

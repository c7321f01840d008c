/**
 * The public graph as a client needs it: that its bytes hash to its name, and what its inputs and
 * outputs are. docs/spec/file-format.md states the bytes, secure_quant/ir/rules.py the shapes.
 *
 * Proofs of bounds are the owner's and the parties': a graph that is none can spoil an answer, as a
 * party that deviates can anyway, and tells nobody of an input.
 */

import { SecureQuantError } from "./errors.js";
import type { PublicModel } from "./gen/secure_quant/v1/model_pb.js";
import { effortOf, type Effort } from "./effort.js";
import { shapesOf, type Shape, type Value } from "./shapes.js";

const MAX_JSON = 4 * 2 ** 20;

/** A node of the graph's JSON, its pools filled in. */
export interface Node {
  op: string;
  name: string;
  inputs: string[];
  table?: number[];
  multiplier?: number[];
  [field: string]: unknown;
}

/** One array at the border. `asked`: the shape of a sample as the caller passes or gets it. */
export interface Port {
  name: string;
  dtype: "float32" | "int64" | "bool";
  asked: Shape;
  /** Of the first of its elements in the packed vector of a sample. */
  start: number;
  value: Value;
  scale: number;
  zeroPoint: number;
  multiplier: number[];
  axis: number;
  /** int8[rows, width] of a public table whose rows the caller's numbers choose. */
  rows?: { count: number; width: number; table: Int8Array };
}

/** A model's public half. `size`: elements of one sample. */
export interface Graph {
  hash: string;
  inputs: Port[];
  outputs: Port[];
  inputSize: number;
  outputSize: number;
  /** Of its nodes. */
  names: ReadonlySet<string>;
  effort: Effort;
}

/** The graph of a message whose hash was recomputed. Rejects with HASH_MISMATCH, MALFORMED_MODEL,
 * UNSUPPORTED_VERSION, OP_NOT_SUPPORTED. */
export async function graphOf(message: PublicModel): Promise<Graph> {
  if (message.commitment.length !== 32) {
    const got = `${message.commitment.length} bytes`;
    throw new SecureQuantError("MALFORMED_MESSAGE", "commitment", { got, expected: "32 bytes" });
  }
  const hash = await hashOf(message);
  const nodes = parse(message);
  const values = shapesOf(nodes);
  const inputs = await inputPorts(nodes, values, message.lookups);
  const outputs = outputPorts(nodes, values);
  const last = nodes[nodes.length - 1] as Node;
  const outputSize = outputs.reduce((sum, port) => sum + size(port.value.shape), 0);
  if (last.op !== "Output") throw malformed("last node", last.op, "Output");
  const inputSize = size((values.get((nodes[0] as Node).name) as Value).shape);
  const names = new Set(nodes.map((node) => node.name));
  return { hash, inputs, outputs, inputSize, outputSize, names, effort: effortOf(nodes, values) };
}

/** SHA-256 over the parts as they came and the commitment, 64 hex digits. */
async function hashOf(message: PublicModel): Promise<string> {
  const parts = [message.graph, message.tables, message.multipliers];
  const inner = await sha256(joined(parts.flatMap((part) => [length8(part), part])));
  const label = new TextEncoder().encode("secure_quant model v1\0");
  return hex(await sha256(joined([label, inner, message.commitment])));
}

function parse(message: PublicModel): Node[] {
  if (message.graph.length > MAX_JSON) throw malformed("graph JSON", "a longer one", MAX_JSON);
  let document: { version?: unknown; nodes?: unknown };
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(message.graph);
    document = JSON.parse(text) as typeof document;
  } catch (error) {
    throw new SecureQuantError("MALFORMED_MODEL", "graph is not JSON", {}, error);
  }
  if (document?.version !== 1 && document?.version !== 2) {
    const about = { got: "another version", expected: "1 or 2" };
    throw new SecureQuantError("UNSUPPORTED_VERSION", "format", about);
  }
  if (!Array.isArray(document.nodes) || document.nodes.length < 2) {
    throw malformed("graph JSON", "another", "a list of nodes");
  }
  const view = new DataView(message.tables.buffer, message.tables.byteOffset, message.tables.length);
  const tables = Array.from({ length: view.byteLength >> 1 }, (_, i) => view.getInt16(2 * i, true));
  const pools = { table: tables, multiplier: Array.from(message.multipliers) };
  const nodes = (document.nodes as Node[]).map((node) => filled(node, pools));
  if (pools.table.length || pools.multiplier.length || view.byteLength % 2) {
    throw malformed("tables and multipliers", "some left over", "none");
  }
  return nodes;
}

function filled(node: Node, pools: Record<"table" | "multiplier", number[]>): Node {
  const ok = node !== null && typeof node.op === "string" && typeof node.name === "string";
  if (!ok || !Array.isArray(node.inputs)) throw malformed("node", "another", "op, name, inputs");
  for (const field of ["table", "multiplier"] as const) {
    if (!(field in node)) continue;
    const count = node[field] as unknown;
    if (!Number.isInteger(count) || (count as number) < 1 || (count as number) > pools[field].length) {
      throw malformed(`${field} of ${node.name}`, "another number of entries", "those there are");
    }
    node[field] = pools[field].splice(0, count as number);
  }
  return node;
}

async function inputPorts(
  nodes: Node[],
  values: Map<string, Value>,
  lookups: Uint8Array,
): Promise<Port[]> {
  const first = nodes[0] as Node;
  const ports = nodes.filter((node) => node.op === "InputPort" || node.op === "LookupPort");
  let place = 0;
  const made: Port[] = [];
  for (const node of ports.length ? ports : [first]) {
    const value = values.get(node.name) as Value;
    const port = portOf(node, value, (node.start as number | undefined) ?? 0);
    if (node.op === "LookupPort") {
      const width = value.shape[value.shape.length - 1] as number;
      const count = node.rows as number;
      const bytes = lookups.subarray(place, (place += count * width));
      if (bytes.length !== count * width || hex(await sha256(bytes)) !== node.digest) {
        throw new SecureQuantError("HASH_MISMATCH", `public table ${node.name}`);
      }
      const table = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
      port.rows = { count, width, table };
      port.asked = value.shape.slice(0, -1);
    }
    made.push(port);
  }
  if (place !== lookups.length) throw malformed("public tables", "bytes left over", "none");
  return made;
}

function outputPorts(nodes: Node[], values: Map<string, Value>): Port[] {
  const last = nodes[nodes.length - 1] as Node;
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const ports = last.inputs.map((name) => byName.get(name) as Node);
  let start = 0;
  const every = ports.some((node) => node.op === "OutputPort") ? ports : [last];
  return every.map((node) => {
    const value = values.get(node.name) as Value;
    const port = portOf(node, value, start);
    port.zeroPoint = value.zeroPoint;
    start += size(value.shape);
    return port;
  });
}

function portOf(node: Node, value: Value, start: number): Port {
  return {
    name: (node.port as string | undefined) ?? node.name,
    dtype: (node.dtype as Port["dtype"] | undefined) ?? "float32",
    asked: value.shape,
    start,
    value,
    scale: node.scale as number,
    zeroPoint: (node.zero_point as number | undefined) ?? 0,
    multiplier: node.multiplier ?? [1],
    axis: (node.axis as number | undefined) ?? -1,
  };
}

/** Product of a shape. */
export function size(shape: Shape): number {
  return shape.reduce((product, each) => product * each, 1);
}

function malformed(what: string, got: unknown, expected: unknown): SecureQuantError {
  return new SecureQuantError("MALFORMED_MODEL", what, { got, expected });
}

function length8(part: Uint8Array): Uint8Array {
  const made = new Uint8Array(8);
  new DataView(made.buffer).setBigUint64(0, BigInt(part.length), true);
  return made;
}

function joined(parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const made = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    made.set(part, place);
    place += part.length;
  }
  return made;
}

async function sha256(data: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>));
}

function hex(data: Uint8Array): string {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

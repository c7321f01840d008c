/** tests/vectors/web.json, which tests/vectors/make_web.py writes. */

import { readFileSync } from "node:fs";

export interface Case {
  hash: string;
  batch: number;
  effort: { products: number; lookups: number; depth: number };
  models: [string, string];
  inputs: Record<string, string>;
  quantized: string;
  requestId: string;
  seed: string;
  requests: [string, string];
  answers: [string, string];
  integers: string[];
  outputs: Record<string, { shape: number[]; data: string }>;
}

interface Failure {
  status: number;
  body: string;
  what: string;
  got: string;
  expected: string;
}

const path = new URL("../../../../tests/vectors/web.json", import.meta.url);
export const vectors = JSON.parse(readFileSync(path, "utf-8")) as {
  cases: Record<string, Case>;
  errors: Failure[];
};

export function bytes(hex: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

export function hex(data: Uint8Array): string {
  return Buffer.from(data).toString("hex");
}

/** Inputs as the caller has them. */
export function inputsOf(each: Case): Record<string, Float64Array> {
  const pairs = Object.entries(each.inputs);
  return Object.fromEntries(pairs.map(([name, data]) => [name, new Float64Array(bytes(data).buffer)]));
}

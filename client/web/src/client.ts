/** Inference on secret-shared inputs at two parties that do not collude, from a browser. */

import { Cells, isAway, type Cell } from "./cells.js";
import { SecureQuantError } from "./errors.js";
import type { InferResponse } from "./gen/secure_quant/v1/share_inference_pb.js";
import { patienceMs } from "./effort.js";
import { allow, checkedMs, DEADLINE_MS, limitsOf, type CallOptions, type Limits } from "./limits.js";
import { requirePlausible, type Model } from "./model.js";
import { Pair } from "./pair.js";
import { Telling, type OnProgress } from "./progress.js";
import { dequantize, quantize, type Inputs, type NamedArray } from "./quantize.js";
import { join } from "./sharing.js";

/** Parts of one large input that are under way at once. */
const IN_FLIGHT = 4;

export interface Options {
  /** What the parties know this client by. */
  token?: string;
  /** The model to ask for, and the only one accepted: 64 hex digits. Without it the parties choose. */
  expectedHash?: string;
  /** Of everything that one call does. Unless set 30 s, and for a large model as long as its work and the
   * rounds of the parties' plan may take. */
  timeoutMs?: number;
  /** The W3C traceparent of what asks, for parties that trace; called once for each request. */
  traceparent?: () => string | undefined;
  /** In place of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
}

/** Of one inference. `progress`: told a few times a second how far it is, and at its end; what it throws
 * gives the inference up. */
export interface InferOptions extends CallOptions {
  progress?: OnProgress | undefined;
}

/** What an inference cost, summed over its parts. */
export interface Stats {
  latencyMs: number;
  samples: number;
  rounds: number;
  bytesUp: number;
  bytesDown: number;
  /** Payload between the parties, each way. */
  onlineBytesPerDirection: number;
  /** Dealt material consumed, of party 0 and party 1. */
  offlineBytes: [number, number];
  /** The slower party's time in the protocol. */
  engineMs: number;
  /** Which of the cells answered, from 0. */
  cell: number;
}

/** `outputs`: by name, float32. `integers`: int64[batch, outputSize], as every engine has them. */
export interface Answer {
  outputs: Record<string, NamedArray>;
  integers: BigInt64Array;
  stats: Stats;
}

/** Addresses of party 0's and party 1's `--http-listen`, in this order. */
export type Targets = readonly [string, string];

/**
 * A connection to party 0 and party 1, or to several cells of two parties that serve one model.
 *
 * `https:` only, but for addresses of loopback. The page that runs this must come from no party:
 * whoever serves its code could take the input before it is shared.
 *
 * Of several cells the least loaded is asked that is there, and another one while nothing of an
 * inference has begun: where a cell gives no sign of life, or says that it is full. Each attempt has
 * shares of its own.
 */
export class MpcClient {
  readonly #cells: Cells;
  readonly #timeoutMs: number | undefined;
  readonly #fetchMs: number;

  /** Throws CONFIG_ERROR, INSECURE_REFUSED. */
  constructor(targets: Targets | readonly Targets[], options: Options = {}) {
    const { token, timeoutMs } = options;
    if (token !== undefined && !/^[\x20-\x7e]+$/.test(token)) {
      throw new SecureQuantError("CONFIG_ERROR", "token", { expected: "printable ASCII" });
    }
    this.#timeoutMs = timeoutMs;
    this.#fetchMs = checkedMs(timeoutMs ?? DEADLINE_MS);
    this.#cells = new Cells(cellsOf(targets).map((each) => new Pair(each, options)));
    const places = this.#cells.all.map(({ pair }) => pair.origins.join(" "));
    if (new Set(places).size !== places.length) {
      throw new SecureQuantError("CONFIG_ERROR", "targets", { got: "one cell twice", expected: "each once" });
    }
  }

  /** The public model, fetched once and checked. Rejects as `infer` does, and with HASH_MISMATCH,
   * MALFORMED_MESSAGE, MALFORMED_MODEL where the parties are not what they should be. */
  async model(options: CallOptions = {}): Promise<Model> {
    const limits = limitsOf(options, this.#timeoutMs);
    return (await this.#cells.found(new Set(), limits, this.#fetchMs)).model;
  }

  /**
   * float[batch, ...input shape] -> every output. Arrays are flat, in row-major order; several
   * inputs go by name.
   *
   * Rejects with SHAPE_MISMATCH, VALUE_OUT_OF_RANGE (NaN, infinity, an integer out of its range),
   * DEADLINE_EXCEEDED, IMPLAUSIBLE_ANSWER, CONFIG_ERROR (a `timeoutMs` that is none), what the parties
   * say, and the reason of a signal that was aborted. An inference that began is not repeated.
   */
  async infer(x: Inputs, options: InferOptions = {}): Promise<Answer> {
    const limits = limitsOf(options, this.#timeoutMs);
    const first = await this.#cells.found(new Set(), limits, this.#fetchMs);
    const { graph } = first.model;
    const { integers, stats } = await this.#infer(quantize(graph, x), limits, options.progress, first);
    return { outputs: dequantize(graph, integers, stats.samples), integers, stats };
  }

  /** int8[batch, inputSize] -> int64[batch, outputSize]. */
  async inferInt8(
    q: Int8Array,
    options: InferOptions = {},
  ): Promise<{ integers: BigInt64Array; stats: Stats }> {
    return this.#infer(q, limitsOf(options, this.#timeoutMs), options.progress);
  }

  async #infer(
    q: Int8Array,
    given: Limits,
    told?: OnProgress,
    first?: { cell: Cell; model: Model },
  ): Promise<{ integers: BigInt64Array; stats: Stats }> {
    const started = performance.now();
    const tried = new Set<Cell>();
    let limits = given;
    for (let next = first; ; next = undefined) {
      const { cell, model } = next ?? (await this.#cells.found(tried, limits, this.#fetchMs));
      const { effort, inputSize, names } = model.graph;
      const samples = q.length / inputSize;
      limits = allow(limits, patienceMs(effort, model.rounds, samples));
      cell.running++;
      try {
        const telling = told && new Telling(told, names, samples);
        const made = await inCell(cell, model, q, limits, telling);
        this.#cells.heard(cell);
        made.stats.latencyMs = performance.now() - started;
        return made;
      } catch (error) {
        if (limits.signal?.aborted) throw limits.signal.reason;
        if (isAway(error)) this.#cells.failed(cell);
        // A party that is full refuses before it pairs shares; of several parts others may have begun.
        const full = error instanceof SecureQuantError && error.kind === "OVERLOADED";
        if (!full || q.length > model.batch * model.graph.inputSize) throw error;
        tried.add(cell);
        if (tried.size === this.#cells.all.length) throw error;
      } finally {
        cell.running--;
      }
    }
  }
}

function cellsOf(targets: Targets | readonly Targets[]): readonly (readonly string[])[] {
  if (!Array.isArray(targets) || targets.length === 0) {
    throw new SecureQuantError("CONFIG_ERROR", "targets", { expected: "two addresses, or pairs of them" });
  }
  if (typeof targets[0] === "string") return [targets as unknown as Targets];
  const pairs = targets as readonly Targets[];
  if (pairs.every(Array.isArray)) return pairs;
  throw new SecureQuantError("CONFIG_ERROR", "targets", { expected: "in each cell two addresses" });
}

/** All parts of an input, a few at a time. */
async function inCell(
  cell: Cell,
  model: Model,
  q: Int8Array,
  limits: Limits,
  telling?: Telling,
): Promise<{ integers: BigInt64Array; stats: Stats }> {
  const { graph, batch } = model;
  const samples = q.length / graph.inputSize;
  if (!Number.isInteger(samples) || samples === 0) {
    const about = { got: `${q.length} elements`, expected: `samples of ${graph.inputSize}` };
    throw new SecureQuantError("SHAPE_MISMATCH", "input", about);
  }
  const stop = new AbortController();
  const signal = limits.signal ? AbortSignal.any([limits.signal, stop.signal]) : stop.signal;
  const integers = new BigInt64Array(samples * graph.outputSize);
  const stats = emptyStats(samples, cell.number);
  const starts = Array.from({ length: Math.ceil(samples / batch) }, (_, i) => i * batch);
  const work = async (): Promise<void> => {
    for (let first = starts.shift(); first !== undefined; first = starts.shift()) {
      const values = q.subarray(first * graph.inputSize, (first + batch) * graph.inputSize);
      const hear = telling?.part(values.length / graph.inputSize);
      const { answers, bytesUp } = await cell.pair.run(values, model, { signal, end: limits.end }, hear);
      count(stats, answers, bytesUp);
      const size = (values.length / graph.inputSize) * graph.outputSize;
      integers.set(join(answers[0].share, answers[1].share, size), first * graph.outputSize);
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, starts.length) }, work));
  } finally {
    stop.abort(); // what still runs when one part failed
  }
  requirePlausible(graph, integers);
  telling?.end();
  return { integers, stats };
}

function emptyStats(samples: number, cell: number): Stats {
  return {
    latencyMs: 0, samples, rounds: 0, bytesUp: 0, bytesDown: 0, onlineBytesPerDirection: 0,
    offlineBytes: [0, 0], engineMs: 0, cell,
  }; // prettier-ignore
}

function count(stats: Stats, answers: [InferResponse, InferResponse], up: number): void {
  const [first, second] = answers.map((answer) => answer.stats);
  const most = (a: bigint | undefined, b: bigint | undefined) => Math.max(Number(a ?? 0n), Number(b ?? 0n));
  stats.bytesUp += up;
  stats.bytesDown += answers[0].share.length + answers[1].share.length;
  stats.rounds += first?.rounds ?? 0;
  stats.onlineBytesPerDirection += most(first?.onlineBytesSent, second?.onlineBytesSent);
  stats.offlineBytes[0] += Number(first?.offlineBytes ?? 0n);
  stats.offlineBytes[1] += Number(second?.offlineBytes ?? 0n);
  stats.engineMs += most(first?.engineMicroseconds, second?.engineMicroseconds) / 1000;
}

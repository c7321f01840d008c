/** Inference on secret-shared inputs at two parties that do not collude, from a browser. */

import { createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { create } from "@bufbuild/protobuf";
import { named, SecureQuantError } from "./errors.js";
import {
  InferRequestSchema,
  ShareInferenceService,
  type InferResponse,
} from "./gen/secure_quant/v1/share_inference_pb.js";
import { received, requirePlausible, SHARING, type Model } from "./model.js";
import { dequantize, quantize, type Inputs, type NamedArray } from "./quantize.js";
import { fresh, join, shareSeeded } from "./sharing.js";

const LOOPBACK = new Set(["127.0.0.1", "localhost", "[::1]"]);
const DEADLINE_MS = 30_000;
/** Parts of one large input that are under way at once. */
const IN_FLIGHT = 4;

export interface Options {
  /** What the parties know this client by. */
  token?: string;
  /** The model to ask for, and the only one accepted: 64 hex digits. Without it the parties choose. */
  expectedHash?: string;
  /** Of everything that one inference does; 30 s unless set, for large models too. */
  timeoutMs?: number;
  /** The W3C traceparent of what asks, for parties that trace; called once for each request. */
  traceparent?: () => string | undefined;
  /** In place of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
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
}

/** `outputs`: by name, float32. `integers`: int64[batch, outputSize], as every engine has them. */
export interface Answer {
  outputs: Record<string, NamedArray>;
  integers: BigInt64Array;
  stats: Stats;
}

type Caller = Client<typeof ShareInferenceService>;

/**
 * A connection to party 0 and party 1, in this order, by the addresses of their `--http-listen`.
 *
 * `https:` only, but for addresses of loopback. The page that runs this must come from neither
 * party: whoever serves its code could take the input before it is shared.
 */
export class MpcClient {
  readonly #callers: Caller[];
  readonly #options: Options;
  #model: Promise<Model> | undefined;

  /** Throws CONFIG_ERROR, INSECURE_REFUSED. */
  constructor(targets: readonly [string, string], options: Options = {}) {
    if (targets.length !== 2) {
      const about = { got: targets.length, expected: "party 0's address and party 1's" };
      throw new SecureQuantError("CONFIG_ERROR", "targets", about);
    }
    const origins = targets.map(checkedOrigin);
    if (origins[0] === origins[1]) {
      const about = { got: "one address twice", expected: "two parties" };
      throw new SecureQuantError("CONFIG_ERROR", "targets", about);
    }
    const token = options.token;
    if (token !== undefined && !/^[\x20-\x7e]+$/.test(token)) {
      throw new SecureQuantError("CONFIG_ERROR", "token", { expected: "printable ASCII" });
    }
    this.#options = options;
    const interceptors: Interceptor[] = [
      (next) => (request) => {
        if (token !== undefined) request.header.set("Authorization", `Bearer ${token}`);
        const trace = options.traceparent?.();
        if (trace !== undefined) request.header.set("traceparent", trace);
        return next(request);
      },
    ];
    const ask = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.#callers = origins.map((baseUrl) => {
      const transport = createConnectTransport({
        baseUrl,
        interceptors,
        useBinaryFormat: true,
        fetch: (input, init) => ask(input, { ...init, ...CLOSED }),
      });
      return createClient(ShareInferenceService, transport);
    });
  }

  /** The public model, fetched once and checked. Rejects as `received`, and as calls do. */
  model(): Promise<Model> {
    this.#model ??= this.#fetched().catch((error: unknown) => {
      this.#model = undefined;
      throw error;
    });
    return this.#model;
  }

  /**
   * float[batch, ...input shape] -> every output. Arrays are flat, in row-major order; several
   * inputs go by name.
   *
   * Rejects with SHAPE_MISMATCH, VALUE_OUT_OF_RANGE (NaN, infinity, an integer out of its range),
   * DEADLINE_EXCEEDED, IMPLAUSIBLE_ANSWER, and what the parties say. A failed inference is not
   * repeated.
   */
  async infer(x: Inputs, options: { signal?: AbortSignal; timeoutMs?: number } = {}): Promise<Answer> {
    const { graph } = await this.model();
    const { integers, stats } = await this.inferInt8(quantize(graph, x), options);
    return { outputs: dequantize(graph, integers, stats.samples), integers, stats };
  }

  /** int8[batch, inputSize] -> int64[batch, outputSize]. */
  async inferInt8(
    q: Int8Array,
    options: { signal?: AbortSignal; timeoutMs?: number } = {},
  ): Promise<{ integers: BigInt64Array; stats: Stats }> {
    const started = performance.now();
    const end = started + (options.timeoutMs ?? this.#options.timeoutMs ?? DEADLINE_MS);
    const { graph, batch } = await this.model();
    const samples = q.length / graph.inputSize;
    if (!Number.isInteger(samples) || samples === 0) {
      const about = { got: `${q.length} elements`, expected: `samples of ${graph.inputSize}` };
      throw new SecureQuantError("SHAPE_MISMATCH", "input", about);
    }
    const stop = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, stop.signal]) : stop.signal;
    const integers = new BigInt64Array(samples * graph.outputSize);
    const stats = emptyStats(samples);
    const starts = Array.from({ length: Math.ceil(samples / batch) }, (_, i) => i * batch);
    const work = async (): Promise<void> => {
      for (let first = starts.shift(); first !== undefined; first = starts.shift()) {
        const values = q.subarray(first * graph.inputSize, (first + batch) * graph.inputSize);
        const part = await this.#part(values, graph.hash, graph.inputSize, { signal, end }, stats);
        const count = (values.length / graph.inputSize) * graph.outputSize;
        integers.set(join(part[0].share, part[1].share, count), first * graph.outputSize);
      }
    };
    try {
      await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, starts.length) }, work));
    } finally {
      stop.abort(); // what still runs when one part failed
    }
    requirePlausible(graph, integers);
    stats.latencyMs = performance.now() - started;
    return { integers, stats };
  }

  async #fetched(): Promise<Model> {
    const { expectedHash, timeoutMs } = this.#options;
    const request = { modelHash: expectedHash ?? "" };
    const answers = await Promise.all(
      this.#callers.map((caller, party) =>
        caller
          .getModel(request, { timeoutMs: timeoutMs ?? DEADLINE_MS })
          .catch((error: unknown) => Promise.reject(named(error, `party ${party}`))),
      ),
    );
    return received(answers, expectedHash);
  }

  /** Some samples, shared under one fresh id and one fresh seed. */
  async #part(
    values: Int8Array,
    modelHash: string,
    inputSize: number,
    limits: { signal: AbortSignal; end: number },
    stats: Stats,
  ): Promise<[InferResponse, InferResponse]> {
    const { share, seed } = await shareSeeded(values);
    const about = { modelHash, requestId: fresh(16), batch: values.length / inputSize, sharing: SHARING };
    const ask = (party: number, input: { case: "share" | "seed"; value: Uint8Array }) =>
      (this.#callers[party] as Caller)
        .infer(create(InferRequestSchema, { ...about, input }), {
          signal: limits.signal,
          timeoutMs: Math.max(1, Math.ceil(limits.end - performance.now())), // whole on the wire
        })
        .catch((error: unknown) => Promise.reject(named(error, `party ${party}`)));
    // Party 1's goes first: it is small, and there by the time party 0 offers the inference.
    const second = ask(1, { case: "seed", value: seed });
    const answers = await Promise.all([ask(0, { case: "share", value: share }), second]);
    count(stats, answers, share.length + seed.length);
    return answers;
  }
}

/** No cookies, no redirects, no word of where this came from. */
const CLOSED = {
  credentials: "omit",
  redirect: "error",
  referrerPolicy: "no-referrer",
  cache: "no-store",
} as const;

function checkedOrigin(target: string): string {
  let url: URL;
  try {
    url = new URL(target);
  } catch (error) {
    const about = { expected: "https://HOST[:PORT]" };
    throw new SecureQuantError("CONFIG_ERROR", "targets", about, error);
  }
  if (url.protocol !== "https:" && !(url.protocol === "http:" && LOOPBACK.has(url.hostname))) {
    const about = { got: url.protocol, expected: "https:", hint: "plaintext is for loopback alone" };
    throw new SecureQuantError("INSECURE_REFUSED", "targets", about);
  }
  return url.href.replace(/\/$/, "");
}

function emptyStats(samples: number): Stats {
  return {
    latencyMs: 0, samples, rounds: 0, bytesUp: 0, bytesDown: 0, onlineBytesPerDirection: 0,
    offlineBytes: [0, 0], engineMs: 0,
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

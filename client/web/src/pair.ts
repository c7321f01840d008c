/** One cell: party 0 and party 1, by the addresses of their `--http-listen`. */

import { createClient, type Client, type Interceptor, type Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { create } from "@bufbuild/protobuf";
import { named, SecureQuantError } from "./errors.js";
import {
  InferRequestSchema,
  ShareInferenceService,
  type InferResponse,
} from "./gen/secure_quant/v1/share_inference_pb.js";
import { ShareProgressService } from "./gen/secure_quant/v1/share_progress_pb.js";
import { remaining, within, type Limits } from "./limits.js";
import type { Hear } from "./progress.js";
import { received, SHARING, type Model } from "./model.js";
import { fresh, shareSeeded } from "./sharing.js";

const LOOPBACK = new Set(["127.0.0.1", "localhost", "[::1]"]);
const NO_MODEL = "0".repeat(64);

export interface Connecting {
  token?: string | undefined;
  expectedHash?: string | undefined;
  traceparent?: (() => string | undefined) | undefined;
  fetch?: typeof globalThis.fetch | undefined;
}

/** The answers of both parties, and what went up. */
export interface Part {
  answers: [InferResponse, InferResponse];
  bytesUp: number;
}

export class Pair {
  /** Of party 0 and party 1. */
  readonly origins: readonly string[];
  readonly #callers: Client<typeof ShareInferenceService>[];
  readonly #watcher: Client<typeof ShareProgressService>;
  readonly #expectedHash: string | undefined;
  #model: Promise<Model> | undefined;

  /** Throws CONFIG_ERROR, INSECURE_REFUSED. */
  constructor(targets: readonly string[], options: Connecting) {
    if (targets.length !== 2) {
      const about = { got: targets.length, expected: "party 0's address and party 1's" };
      throw new SecureQuantError("CONFIG_ERROR", "targets", about);
    }
    this.origins = targets.map(checkedOrigin);
    if (this.origins[0] === this.origins[1]) {
      const about = { got: "one address twice", expected: "two parties" };
      throw new SecureQuantError("CONFIG_ERROR", "targets", about);
    }
    this.#expectedHash = options.expectedHash;
    const told: Interceptor = (next) => (request) => {
      if (options.token !== undefined) request.header.set("Authorization", `Bearer ${options.token}`);
      const trace = options.traceparent?.();
      if (trace !== undefined) request.header.set("traceparent", trace);
      return next(request);
    };
    const ask = options.fetch ?? globalThis.fetch.bind(globalThis);
    const transports = this.origins.map((baseUrl) =>
      createConnectTransport({
        baseUrl,
        interceptors: [told],
        useBinaryFormat: true,
        fetch: (input, init) => ask(input, { ...init, ...CLOSED }),
      }),
    );
    this.#callers = transports.map((each) => createClient(ShareInferenceService, each));
    this.#watcher = createClient(ShareProgressService, transports[0] as Transport);
  }

  /** The public model, fetched once for all who ask and checked. Rejects as `received`, and as calls
   * do. `limits` hold for this caller, `fetchMs` for the fetch. */
  model(limits: Limits, fetchMs: number): Promise<Model> {
    this.#model ??= this.#fetched(fetchMs).catch((error: unknown) => {
      this.#model = undefined;
      throw error;
    });
    return within(this.#model, limits, "the model");
  }

  /** Rejects unless both parties say something: that there is no such model, which costs little. */
  async alive(limits: Limits): Promise<void> {
    const asked = this.#callers.map((caller, party) =>
      caller.getModel({ modelHash: NO_MODEL }, inTime(limits)).catch((error: unknown) => {
        const found = this.#named(error, party);
        if (found.kind !== "MODEL_NOT_FOUND") throw found;
      }),
    );
    await Promise.all(asked);
  }

  /** Some samples, shared under one fresh id and one fresh seed. `hear`: told what party 0 says of them. */
  async run(values: Int8Array, model: Model, limits: Limits, hear?: Hear): Promise<Part> {
    const { graph } = model;
    const { share, seed } = await shareSeeded(values);
    const batch = values.length / graph.inputSize;
    const about = { modelHash: graph.hash, requestId: fresh(16), batch, sharing: SHARING };
    const ask = (party: number, input: { case: "share" | "seed"; value: Uint8Array }) =>
      (this.#callers[party] as Client<typeof ShareInferenceService>)
        .infer(create(InferRequestSchema, { ...about, input }), inTime(limits))
        .catch((error: unknown) => Promise.reject(this.#named(error, party)));
    // Party 1's goes first: it is small, and there by the time party 0 offers the inference.
    const second = ask(1, { case: "seed", value: seed });
    const asked = Promise.all([ask(0, { case: "share", value: share }), second]);
    const watched = hear && this.#watch(about.requestId, hear, asked, limits.signal);
    const [answers] = await Promise.all([asked, watched]);
    return { answers, bytesUp: share.length + seed.length };
  }

  /** Until `asked` is over. A party that refuses to tell, or cannot, serves as well. Rejects with what
   * `hear` throws. */
  async #watch(
    requestId: Uint8Array,
    hear: Hear,
    asked: Promise<unknown>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const over = new AbortController();
    const end = () => over.abort();
    asked.then(end, end);
    const both = signal ? AbortSignal.any([signal, over.signal]) : over.signal;
    const gone = new Promise<undefined>((done) => both.addEventListener("abort", () => done(undefined)));
    const words = this.#watcher.watch({ requestId }, { signal: both })[Symbol.asyncIterator]();
    for (;;) {
      const word = await Promise.race([words.next().catch(() => undefined), gone]);
      if (word === undefined || word.done || both.aborted) return;
      hear(word.value);
    }
  }

  async #fetched(fetchMs: number): Promise<Model> {
    const request = { modelHash: this.#expectedHash ?? "" };
    const answers = await Promise.all(
      this.#callers.map((caller, party) =>
        caller
          .getModel(request, { timeoutMs: fetchMs })
          .catch((error: unknown) => Promise.reject(this.#named(error, party))),
      ),
    );
    return received(answers, this.#expectedHash);
  }

  #named(error: unknown, party: number): SecureQuantError {
    return named(error, `party ${party} at ${this.origins[party]}`);
  }
}

function inTime(limits: Limits): { timeoutMs: number; signal?: AbortSignal } {
  const timeoutMs = remaining(limits);
  return limits.signal ? { timeoutMs, signal: limits.signal } : { timeoutMs };
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

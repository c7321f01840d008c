/** What the client refuses, and what it never sends. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { MpcClient, type Options } from "../src/index.js";
import { fromBinary } from "@bufbuild/protobuf";
import { InferRequestSchema } from "../src/gen/secure_quant/v1/share_inference_pb.js";
import { bytes, hex, inputsOf, vectors, type Case } from "./vectors.js";

const TARGETS = ["https://a.example", "https://b.example"] as const;
const each = vectors.cases["mlp"] as Case;

interface Sent {
  party: number;
  headers: Headers;
  init: RequestInit;
  body: Uint8Array;
}

/** No answer until the caller gives up. */
function silence(signal: AbortSignal): Promise<Response> {
  return new Promise((_, reject) => {
    const alive = setTimeout(() => undefined, 10_000); // a timeout's own timer keeps no process alive
    signal.addEventListener("abort", () => {
      clearTimeout(alive);
      reject(signal.reason as Error);
    });
  });
}

function client(answers = each.answers, more: Partial<Options> = {}) {
  const sent: Sent[] = [];
  const fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    const url = new URL(String(input));
    const party = url.origin === TARGETS[0] ? 0 : 1;
    const isModel = url.pathname.endsWith("/GetModel");
    const body = new Uint8Array(init.body as Uint8Array);
    if (!isModel) sent.push({ party, headers: new Headers(init.headers), init, body });
    const data = (isModel ? each.models : answers)[party] as string;
    if (data === "") return silence(init.signal as AbortSignal);
    return new Response(bytes(data), { headers: { "Content-Type": "application/proto" } });
  };
  return { sent, made: new MpcClient(TARGETS, { expectedHash: each.hash, fetch, ...more }) };
}

test("targets must be two, safe, and not the same", () => {
  const kind = (expected: string) => ({ kind: expected });
  assert.throws(() => new MpcClient(["http://a.example", TARGETS[1]]), kind("INSECURE_REFUSED"));
  assert.throws(() => new MpcClient([TARGETS[0], TARGETS[0]]), kind("CONFIG_ERROR"));
  assert.throws(() => new MpcClient(["a.example:1", TARGETS[1]]), kind("INSECURE_REFUSED"));
  assert.throws(() => new MpcClient(["", TARGETS[1]]), kind("CONFIG_ERROR"));
  assert.throws(() => new MpcClient(TARGETS, { token: "a\nb" }), kind("CONFIG_ERROR"));
  new MpcClient(["http://127.0.0.1:1", "http://localhost:2"]);
});

test("what is no number, or of another shape, is refused before anything is sent", async () => {
  const { sent, made } = client();
  const size = (await made.model()).graph.inputSize;
  const x = new Float64Array(size);
  for (const [wrong, kind] of [
    [x.slice(1), "SHAPE_MISMATCH"],
    [[], "SHAPE_MISMATCH"],
    [{ another: x }, "SHAPE_MISMATCH"],
    [x.map(() => Number.NaN), "VALUE_OUT_OF_RANGE"],
    [x.map(() => Number.POSITIVE_INFINITY), "VALUE_OUT_OF_RANGE"],
    [Array.from(x, () => "1"), "VALUE_OUT_OF_RANGE"],
  ] as const) {
    await assert.rejects(made.infer(wrong as unknown as number[]), { kind });
  }
  assert.equal(sent.length, 0);
});

test("seed and id are fresh each time, and one party's request tells nothing of the input", async () => {
  const trace = `00-${"ab".repeat(16)}-${"cd".repeat(8)}-01`;
  const { sent, made } = client(each.answers, { token: "alice's token", traceparent: () => trace });
  for (let i = 0; i < 20; i++) await made.infer(inputsOf(each));
  const read = sent.map(({ body, party }) => ({ party, ...fromBinary(InferRequestSchema, body) }));
  const [shares, seeds] = [0, 1].map((party) => read.filter((request) => request.party === party));
  const distinct = (of: typeof read) => new Set(of.map(({ input }) => hex(input.value as Uint8Array)));
  assert.deepEqual([distinct(shares ?? []).size, distinct(seeds ?? []).size], [20, 20]);
  assert.equal(new Set(read.map(({ requestId }) => hex(requestId))).size, 20);
  assert.ok(read.every(({ input, party }) => input.case === (party === 0 ? "share" : "seed")));
  for (const { headers, init } of sent) {
    assert.equal(headers.get("Authorization"), "Bearer alice's token");
    assert.equal(headers.get("traceparent"), trace);
    assert.match(headers.get("Connect-Timeout-Ms") ?? "", /^\d{1,10}$/);
    assert.deepEqual([init.credentials, init.redirect], ["omit", "error"]);
  }
});

test("an answer that the model cannot give is refused", async () => {
  const flipped = bytes(each.answers[0]);
  flipped[9] = (flipped[9] as number) ^ 0x40; // inside the first integer's upper bytes
  const { made } = client([hex(flipped), each.answers[1]]);
  await assert.rejects(made.infer(inputsOf(each)), { kind: "IMPLAUSIBLE_ANSWER" });
});

test("an answer of another length is refused", async () => {
  const { made } = client([each.answers[0], each.answers[1].slice(0, 4)]);
  await assert.rejects(made.infer(inputsOf(each)));
});

test("a large input travels in parts, a few at a time, and comes back in order", async () => {
  const other = vectors.cases["linear"] as Case;
  const started: number[] = [];
  let running = 0;
  let most = 0;
  const fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    const url = new URL(String(input));
    const party = url.origin === TARGETS[0] ? 0 : 1;
    let data = bytes(other.models[party] as string);
    if (!url.pathname.endsWith("/GetModel")) {
      const request = fromBinary(InferRequestSchema, new Uint8Array(init.body as Uint8Array));
      if (party === 0) started.push(request.batch);
      most = Math.max(most, ++running);
      await new Promise((done) => setTimeout(done, 5));
      running--;
      // Party 0 answers with zeros and party 1 with the place of the part.
      const outputs = other.integers.length / other.batch;
      const share = new BigUint64Array(request.batch * outputs).fill(party ? BigInt(request.batch) : 0n);
      const length = share.byteLength;
      const head = length < 128 ? [0x0a, length] : [0x0a, (length & 127) | 128, length >> 7];
      data = Uint8Array.from([...head, ...new Uint8Array(share.buffer)]);
    }
    return new Response(data, { headers: { "Content-Type": "application/proto" } });
  };
  const made = new MpcClient(TARGETS, { fetch });
  const { graph, batch } = await made.model();
  const samples = 5 * batch + 3;
  const { integers } = await made.inferInt8(new Int8Array(samples * graph.inputSize));
  assert.deepEqual(started, [batch, batch, batch, batch, batch, 3]);
  assert.ok(most <= 8, `${most} calls at once`);
  assert.equal(integers[0], BigInt(batch));
  assert.equal(integers[integers.length - 1], 3n);
});

test("time is bounded for all of it", async () => {
  const { made } = client(["", each.answers[1]], { timeoutMs: 50 });
  await assert.rejects(made.infer(inputsOf(each)), { kind: "DEADLINE_EXCEEDED" });
});

test("whoever asks may give up, and hears the reason", async () => {
  const reason = new Error("the user went elsewhere");
  for (const answers of [["", each.answers[1]], [each.answers[0], ""]] as const) {
    const { made } = client([...answers]);
    await made.model();
    const giving = new AbortController();
    const asked = made.infer(inputsOf(each), { signal: giving.signal });
    setTimeout(() => giving.abort(reason), 20);
    await assert.rejects(asked, reason);
    await assert.rejects(made.infer(inputsOf(each), { signal: giving.signal }), reason);
    await assert.rejects(made.model({ signal: giving.signal }), reason);
  }
});

test("one who gives up the model does not take it from the others", async () => {
  let bring: (response: Response) => void = () => undefined;
  const fetch = async (input: RequestInfo | URL): Promise<Response> => {
    const party = new URL(String(input)).origin === TARGETS[0] ? 0 : 1;
    const data = new Response(bytes(each.models[party]), { headers: { "Content-Type": "application/proto" } });
    return party ? data : new Promise((resolve) => (bring = () => resolve(data)));
  };
  const made = new MpcClient(TARGETS, { expectedHash: each.hash, fetch });
  const giving = new AbortController();
  const [gone, late, stays] = [
    made.model({ signal: giving.signal }), made.model({ timeoutMs: 20 }), made.model(),
  ]; // prettier-ignore
  giving.abort(new Error("gone"));
  await assert.rejects(gone, /gone/);
  await assert.rejects(late, { kind: "DEADLINE_EXCEEDED" });
  bring(new Response());
  assert.equal((await stays).graph.hash, each.hash);
});

test("a time that is none is refused", async () => {
  for (const timeoutMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31]) {
    assert.throws(() => new MpcClient(TARGETS, { timeoutMs }), { kind: "CONFIG_ERROR" });
    await assert.rejects(client().made.infer(inputsOf(each), { timeoutMs }), { kind: "CONFIG_ERROR" });
  }
});

/** Long inferences: how much time they have, and what is told of them. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { patienceMs } from "../src/effort.js";
import { InferRequestSchema, ShareInferenceServiceGetModelResponseSchema } from "../src/gen/secure_quant/v1/share_inference_pb.js";
import { WatchRequestSchema, WatchResponseSchema } from "../src/gen/secure_quant/v1/share_progress_pb.js";
import { MpcClient, type Progress } from "../src/index.js";
import { allow, DEADLINE_MS, limitsOf } from "../src/limits.js";
import { received } from "../src/model.js";
import { Telling } from "../src/progress.js";
import { bytes, hex, inputsOf, vectors, type Case } from "./vectors.js";

const TARGETS = ["https://a.example", "https://b.example"] as const;
const each = vectors.cases["mlp"] as Case;
const PROTO = { headers: { "Content-Type": "application/proto" } };
const STREAM = { headers: { "Content-Type": "application/connect+proto" } };

type Word = Partial<{ rounds: number; of: number; thousandths: number; stage: string }>;
const word = (about: Word) => create(WatchResponseSchema, about);

function envelope(flags: number, message: Uint8Array): Uint8Array<ArrayBuffer> {
  const made = new Uint8Array(5 + message.length);
  made[0] = flags;
  new DataView(made.buffer).setUint32(1, message.length);
  made.set(message, 5);
  return made;
}

/** Parties that answer 50 ms after a watch has said its words. `watch`: what party 0 answers to it;
 * it stays open. */
function parties(watch: (said: Word[]) => Response) {
  const seen = { infer: "", watch: "", parties: new Set<number>(), timeouts: [] as number[] };
  const fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    const url = new URL(String(input));
    const party = url.origin === TARGETS[0] ? 0 : 1;
    const body = new Uint8Array(init.body as Uint8Array);
    if (url.pathname.endsWith("/GetModel")) return new Response(bytes(each.models[party]), PROTO);
    if (url.pathname.endsWith("/Watch")) {
      seen.parties.add(party);
      seen.watch = hex(fromBinary(WatchRequestSchema, body.subarray(5)).requestId);
      return watch(WORDS);
    }
    seen.timeouts.push(Number(new Headers(init.headers).get("Connect-Timeout-Ms")));
    if (party === 0) seen.infer = hex(fromBinary(InferRequestSchema, body).requestId);
    await new Promise((done, fail) => {
      const timer = setTimeout(done, 50);
      init.signal?.addEventListener("abort", () => {
        clearTimeout(timer);
        fail(init.signal?.reason as Error);
      });
    });
    return new Response(bytes(each.answers[party]), PROTO);
  };
  return { seen, made: new MpcClient(TARGETS, { expectedHash: each.hash, fetch }) };
}

const WORDS: Word[] = [{ rounds: 1, of: 9, thousandths: 250, stage: "fc1" }, { rounds: 2, of: 9, thousandths: 200 }];

function telling(said: Word[]): Response {
  const parts = said.map((about) => envelope(0, toBinary(WatchResponseSchema, word(about))));
  const body = new ReadableStream({ start: (out) => parts.forEach((part) => out.enqueue(part)) });
  return new Response(body, STREAM);
}

test("a plan's rounds and a graph's work make the time of a call, and no more than is plausible", async () => {
  const effort = { products: 10 ** 9, lookups: 10 ** 6, depth: 10 };
  const near = (got: number, expected: number) => assert.ok(Math.abs(got - expected) < 1e-6 * expected);
  near(patienceMs(effort, 100, 1), 6_000 + 9_000 + 10_000);
  near(patienceMs(effort, 100, 3), 75_000);
  near(patienceMs(effort, undefined, 1), 15_000 + 16_000);
  near(patienceMs(effort, 10 ** 9, 1), 15_000 + 17_600);
  const read = (party: number) => {
    const made = fromBinary(ShareInferenceServiceGetModelResponseSchema, bytes(each.models[party] as string));
    (made.info as { plan: Uint8Array }).plan = new TextEncoder().encode(party ? '{"rounds": 40}' : '{"rounds": 50}');
    return made;
  };
  assert.equal((await received([read(0), read(1)], each.hash)).rounds, 50);
  const odd = [read(0), read(1)];
  for (const answer of odd) (answer.info as { plan: Uint8Array }).plan = new TextEncoder().encode('{"rounds": -1}');
  assert.equal((await received(odd, each.hash)).rounds, undefined);
});

test("time that nobody set grows with the work; time that somebody set does not", () => {
  const now = performance.now();
  const open = limitsOf({}, undefined);
  assert.equal(allow(open, DEADLINE_MS - 1), open);
  const longer = allow(open, DEADLINE_MS + 60_000);
  assert.ok(Math.abs(longer.end - now - DEADLINE_MS - 60_000) < 1000);
  assert.equal(allow(longer, DEADLINE_MS + 60_000), longer);
  for (const set of [limitsOf({ timeoutMs: 5 }, undefined), limitsOf({}, 5)]) {
    assert.equal(allow(set, 10 ** 6), set);
  }
});

test("many samples have more time than 30 s", async () => {
  const { seen, made } = parties(telling);
  const { graph } = await made.model();
  const asked = made.inferInt8(new Int8Array(400 * graph.inputSize));
  await assert.rejects(asked); // the answers are of another length
  assert.ok(Math.max(...seen.timeouts) > 60_000);
});

test("whoever asks is told by party 0 how far it is, and others open no stream", async () => {
  const { seen, made } = parties(telling);
  const told: Progress[] = [];
  const { integers } = await made.infer(inputsOf(each), { progress: (each) => told.push(each) });
  assert.deepEqual(Array.from(integers, String), each.integers);
  assert.equal(seen.watch, seen.infer);
  assert.deepEqual([...seen.parties], [0]);
  assert.equal(told.length, 2); // none goes back
  assert.deepEqual([told[0]?.fraction, told[0]?.done, told[0]?.of], [0.25, 1, 9]);
  assert.deepEqual(told[1], { fraction: 1, done: 9, of: 9, stage: "" });
  seen.watch = "";
  await made.infer(inputsOf(each));
  assert.equal(seen.watch, "");
});

test("a party that does not tell serves as well", async () => {
  const ends = envelope(2, new TextEncoder().encode('{"error":{"code":"resource_exhausted"}}'));
  for (const answer of [
    () => new Response("", { status: 404 }),
    () => new Response(ends, STREAM),
    () => Response.error(),
    () => new Response(Uint8Array.from([0, 0, 0, 0, 9, 1]), STREAM),
  ]) {
    const { made } = parties(answer);
    const told: Progress[] = [];
    await made.infer(inputsOf(each), { progress: (each) => told.push(each) });
    assert.deepEqual(told.map(({ fraction }) => fraction), [1]);
  }
});

test("what a listener throws gives the inference up", async () => {
  const { made } = parties(telling);
  const progress = () => {
    throw new Error("enough");
  };
  await assert.rejects(made.infer(inputsOf(each), { progress }), /enough/);
});

test("of several parts the words add up, and a stage that the graph does not know is none", () => {
  const told: Progress[] = [];
  const telling = new Telling((each) => told.push(each), new Set(["fc1"]), 4);
  const [first, second] = [telling.part(3), telling.part(1)];
  first(word({ rounds: 5, of: 10, thousandths: 500, stage: "fc1" }));
  second(word({ rounds: 20, of: 10, thousandths: 5000, stage: "<b>" })); // too soon to be told
  assert.deepEqual(told, [{ fraction: 0.375, done: 5, of: 10, stage: "fc1" }]);
  const later = performance.now() + 1000;
  const before = performance.now;
  performance.now = () => later;
  second(word({ rounds: 20, of: 10, thousandths: 5000, stage: "<b>" }));
  performance.now = before;
  assert.deepEqual(told[1], { fraction: 0.625, done: 20, of: 20, stage: "" });
});

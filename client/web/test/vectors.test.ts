/** Each inference of web.json, made by this client from its inputs and draws. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { fromBinary } from "@bufbuild/protobuf";
import { MpcClient, SecureQuantError } from "../src/index.js";
import { ShareInferenceServiceGetModelResponseSchema } from "../src/gen/secure_quant/v1/share_inference_pb.js";
import { received } from "../src/model.js";
import { quantize, roundHalfEven } from "../src/quantize.js";
import { bytes, hex, inputsOf, vectors, type Case } from "./vectors.js";

const PARTIES = ["https://party0.example", "https://party1.example"] as const;

/** What the parties answered, and what they were sent. */
function parties(each: Case) {
  const sent: Record<string, Uint8Array> = {};
  const fetch = async (input: RequestInfo | URL, init?: RequestInit): Promise<Response> => {
    const url = new URL(String(input));
    const party = PARTIES.indexOf(url.origin as (typeof PARTIES)[number]);
    const isModel = url.pathname.endsWith("/GetModel");
    if (!isModel) sent[party] = new Uint8Array(init?.body as Uint8Array);
    const body = bytes((isModel ? each.models : each.answers)[party] as string);
    return new Response(body, { headers: { "Content-Type": "application/proto" } });
  };
  return { sent, fetch };
}

/** In place of the generator, for what follows: the draws of the case, in their order. */
function drawing<T>(each: Case, what: () => Promise<T>): Promise<T> {
  const draws = [bytes(each.seed), bytes(each.requestId)];
  const before = crypto.getRandomValues;
  crypto.getRandomValues = ((into: Uint8Array) => {
    const next = draws.shift();
    assert.equal(into.length, next?.length);
    into.set(next as Uint8Array);
    return into;
  }) as typeof crypto.getRandomValues;
  return what().finally(() => (crypto.getRandomValues = before));
}

for (const [name, each] of Object.entries(vectors.cases)) {
  test(`an inference of ${name}, to the last bit`, async () => {
    const { sent, fetch } = parties(each);
    const client = new MpcClient(PARTIES, { expectedHash: each.hash, fetch });
    const { graph, batch } = await client.model();
    assert.equal(graph.hash, each.hash);
    assert.equal(batch, 32);
    assert.deepEqual(graph.effort, each.effort);
    const x = inputsOf(each);
    assert.equal(hex(new Uint8Array(quantize(graph, x).buffer)), each.quantized);
    const answer = await drawing(each, () => client.infer(x));
    assert.deepEqual([sent[0], sent[1]].map((body) => hex(body as Uint8Array)), each.requests);
    assert.deepEqual(Array.from(answer.integers, String), each.integers);
    assert.deepEqual(Object.keys(answer.outputs), Object.keys(each.outputs));
    for (const [port, { shape, data }] of Object.entries(each.outputs)) {
      assert.deepEqual(answer.outputs[port]?.shape, shape);
      assert.equal(hex(new Uint8Array(answer.outputs[port]?.data.buffer as ArrayBuffer)), data);
    }
    assert.equal(answer.stats.samples, each.batch);
    assert.equal(answer.stats.onlineBytesPerDirection, 2 ** 40 + 1);
    assert.equal(answer.stats.engineMs, 3);
  });
}

test("every byte of a public graph is bound by its hash", async () => {
  for (const each of Object.values(vectors.cases)) {
    for (const part of ["graph", "tables", "multipliers", "commitment", "lookups"] as const) {
      const answers = each.models.map((data) =>
        fromBinary(ShareInferenceServiceGetModelResponseSchema, bytes(data)),
      );
      const touched = answers[0]?.info?.model?.[part] as Uint8Array;
      if (touched.length === 0) continue;
      touched[touched.length - 1] = (touched[touched.length - 1] as number) ^ 1;
      await assert.rejects(received(answers, each.hash), SecureQuantError, part);
    }
  }
});

test("a party that is another, shares otherwise or serves another model is refused", async () => {
  const [first, second] = Object.values(vectors.cases) as [Case, Case];
  const read = (data: string) => fromBinary(ShareInferenceServiceGetModelResponseSchema, bytes(data));
  const models = () => first.models.map(read);
  await assert.rejects(received(models().reverse(), undefined), { kind: "MALFORMED_MESSAGE" });
  await assert.rejects(received(models(), second.hash), { kind: "HASH_MISMATCH" });
  const mixed = [read(first.models[0]), read(second.models[1])];
  await assert.rejects(received(mixed, undefined), { kind: "HASH_MISMATCH" });
  const old = models();
  (old[1] as { sharing: number }).sharing = 0;
  await assert.rejects(received(old, undefined), { kind: "MALFORMED_MESSAGE" });
  const small = models();
  (small[0] as { batch: number }).batch = 3;
  assert.equal((await received(small, undefined)).batch, 3);
});

test("named errors come back as they were raised", async () => {
  const each = Object.values(vectors.cases)[0] as Case;
  for (const failure of vectors.errors) {
    const fetch = async (): Promise<Response> =>
      new Response(failure.body, {
        status: failure.status,
        headers: { "Content-Type": "application/json" },
      });
    const client = new MpcClient(PARTIES, { expectedHash: each.hash, fetch });
    const error = await client.model().catch((caught: unknown) => caught);
    assert.ok(error instanceof SecureQuantError);
    assert.equal(error.what, `party 0 at ${PARTIES[0]}: ${failure.what}`);
    assert.deepEqual([error.about.got, error.about.expected], [failure.got, failure.expected]);
    assert.match(error.kind, /^(BUDGET_EXCEEDED|MALFORMED_MESSAGE)$/);
  }
});

test("ties go to the even neighbour", () => {
  const ties = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999999999999994, 2 ** 52 + 1, 1e300, -Infinity];
  const even = [-2, -2, -0, 0, 2, 2, 0, 2 ** 52 + 1, 1e300, -Infinity];
  assert.deepEqual(ties.map((x) => roundHalfEven(x) + 0), even.map((x) => x + 0));
});

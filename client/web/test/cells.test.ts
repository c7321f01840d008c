/** Several cells: who is asked, and when another one is. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { fromBinary } from "@bufbuild/protobuf";
import {
  InferRequestSchema,
  ShareInferenceServiceGetModelRequestSchema,
} from "../src/gen/secure_quant/v1/share_inference_pb.js";
import { MpcClient, SecureQuantError, type Targets } from "../src/index.js";
import { bytes, hex, inputsOf, vectors, type Case } from "./vectors.js";

const CELLS: Targets[] = [
  ["https://a0.example", "https://a1.example"],
  ["https://b0.example", "https://b1.example"],
];
const each = vectors.cases["mlp"] as Case;

/** What a cell does with an inference. */
type Doing = "answer" | "full" | "away" | "breaks" | "spent";

interface World {
  made: MpcClient;
  doing: [Doing, Doing];
  /** Inferences that reached a cell's party 0. */
  begun: [number, number];
  seeds: Set<string>;
}

function world(...doing: [Doing, Doing]): World {
  const state: Omit<World, "made"> = { doing, begun: [0, 0], seeds: new Set() };
  const fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    const url = new URL(String(input));
    const cell = url.hostname.startsWith("a") ? 0 : 1;
    const party = url.hostname[1] === "0" ? 0 : 1;
    const body = new Uint8Array(init.body as Uint8Array);
    if (state.doing[cell] === "away") throw new TypeError("fetch failed");
    if (url.pathname.endsWith("/GetModel")) {
      const { modelHash } = fromBinary(ShareInferenceServiceGetModelRequestSchema, body);
      if (modelHash !== each.hash) return refusal(404, "not_found", "MODEL_NOT_FOUND");
      return proto(each.models[party]);
    }
    const request = fromBinary(InferRequestSchema, body);
    if (party === 0) state.begun[cell]++;
    else state.seeds.add(hex(request.input.value as Uint8Array));
    if (state.doing[cell] === "full") return refusal(429, "resource_exhausted", "OVERLOADED");
    if (state.doing[cell] === "spent") return refusal(429, "resource_exhausted", "BUDGET_EXCEEDED");
    if (state.doing[cell] === "breaks") throw new TypeError("fetch failed");
    return proto(each.answers[party]);
  };
  return Object.assign(state, { made: new MpcClient(CELLS, { expectedHash: each.hash, fetch }) });
}

function proto(data: string): Response {
  return new Response(bytes(data), { headers: { "Content-Type": "application/proto" } });
}

/** As the parties' Python says it: tests/vectors/web.json has some. */
function refusal(status: number, code: string, reason: string): Response {
  const string = (text: string) => [text.length, ...new TextEncoder().encode(text)];
  const info = Uint8Array.from([0x0a, ...string(reason), 0x12, ...string("secure-quant")]);
  const value = Buffer.from(info).toString("base64").replace(/=+$/, "");
  const details = [{ type: "google.rpc.ErrorInfo", value }];
  const headers = { "Content-Type": "application/json" };
  return new Response(JSON.stringify({ code, message: reason, details }), { status, headers });
}

const asked = (of: World) => of.made.infer(inputsOf(each));
const kind = (expected: string) => ({ kind: expected });

test("idle cells take turns, and every answer is the one", async () => {
  const found = world("answer", "answer");
  const cells = [];
  for (let i = 0; i < 6; i++) {
    const { integers, stats } = await asked(found);
    assert.deepEqual(Array.from(integers, String), each.integers);
    cells.push(stats.cell);
  }
  assert.deepEqual(found.begun, [3, 3]);
  assert.deepEqual(new Set(cells), new Set([0, 1]));
});

test("a full cell costs no error, and another try has shares of its own", async () => {
  const found = world("full", "answer");
  for (let i = 0; i < 4; i++) assert.equal((await asked(found)).stats.cell, 1);
  assert.ok(found.begun[0] > 0);
  assert.equal(found.seeds.size, found.begun[0] + found.begun[1]);
  found.doing[1] = "full";
  await assert.rejects(asked(found), kind("OVERLOADED"));
});

test("a cell that cannot be reached is passed over", async () => {
  const found = world("away", "answer");
  for (let i = 0; i < 4; i++) assert.equal((await asked(found)).stats.cell, 1);
  assert.deepEqual(found.begun, [0, 4]);
  assert.equal((await found.made.model()).graph.hash, each.hash);
  found.doing[1] = "away";
  const error = await asked(world("away", "away")).catch((caught: unknown) => caught);
  assert.ok(error instanceof SecureQuantError);
  assert.equal(error.kind, "PEER_UNAVAILABLE");
  assert.match(error.message, /party . at https:.*--http-origins/);
});

test("what began is not repeated; the cell is asked again once it answers", async () => {
  const found = world("breaks", "answer");
  const outcomes = [];
  for (let i = 0; i < 6; i++) outcomes.push(await asked(found).then(() => "right", () => "failed"));
  assert.equal(outcomes.filter((each) => each === "failed").length, 1);
  assert.equal(found.begun[0], 1);
  found.doing[0] = "answer";
  await new Promise((done) => setTimeout(done, 600)); // the pause after one failure
  const cells = new Set<number>();
  for (let i = 0; i < 6; i++) cells.add((await asked(found)).stats.cell);
  assert.deepEqual(cells, new Set([0, 1]));
});

test("a spent budget is told, and no way to another one", async () => {
  const found = world("spent", "spent");
  await assert.rejects(asked(found), kind("BUDGET_EXCEEDED"));
  assert.equal(found.begun[0] + found.begun[1], 1);
});

test("cells must be pairs, each once", () => {
  const pair = CELLS[0] as Targets;
  for (const wrong of [[], [[]], [pair, pair], [pair, "https://c.example"], [[pair[0]]]]) {
    assert.throws(() => new MpcClient(wrong as unknown as Targets[]), kind("CONFIG_ERROR"));
  }
});

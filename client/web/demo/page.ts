/** The page of `secure-quant demo --web`: draws, asks, and shows what each end saw. */

import { fromBinary } from "@bufbuild/protobuf";
import { MpcClient, SecureQuantError, type Answer } from "../src/index.js";
import {
  InferRequestSchema,
  InferResponseSchema,
  type InferRequest,
  type InferResponse,
} from "../src/gen/secure_quant/v1/share_inference_pb.js";
import { quantize } from "../src/quantize.js";
import { masked } from "../src/sharing.js";
import { fromDrawing, image, SIDE } from "./digits.js";
import { Pad } from "./pad.js";
import { bars, bits, bytesOf, element, seen, spread, wire } from "./show.js";

interface Settings {
  targets: [string, string];
  token: string;
  hash: string;
  /** 8×8 pixels from 0 to 16, a digit each. */
  samples: number[][];
}

/** A party's exchange, as it went over the wire. */
interface Exchange {
  request: Uint8Array;
  answer: Uint8Array;
}

const exchanges: Record<string, Exchange> = {};

async function recording(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
  const response = await fetch(input, init);
  const url = new URL(String(input));
  if (response.ok && url.pathname.endsWith("/Infer")) {
    const answer = new Uint8Array(await response.clone().arrayBuffer());
    exchanges[url.origin] = { request: new Uint8Array(init?.body as Uint8Array), answer };
  }
  return response;
}

async function start(): Promise<void> {
  const settings = (await (await fetch("settings.json")).json()) as Settings;
  element("hash").textContent = settings.hash;
  const { targets, token, hash: expectedHash } = settings;
  const client = new MpcClient(targets, { token, expectedHash, fetch: recording });
  const pad = new Pad(element("pad") as HTMLCanvasElement, element("hint"));
  let latest = 0;
  const ask = async (pixels: Float64Array): Promise<void> => {
    const mine = ++latest;
    try {
      const answer = await client.infer(image(pixels));
      if (mine === latest) await show(client, settings, pixels, answer);
    } catch (error) {
      if (mine === latest) complain(error);
    }
  };
  pad.drawn = (ink) => void ask(fromDrawing(ink));
  element("clear").addEventListener("click", () => pad.clear());
  for (const [digit, sample] of settings.samples.entries()) offer(digit, sample, pad, ask);
  await client.model().catch(complain);
  document.body.dataset.ready = "yes";
}

function offer(
  digit: number,
  sample: number[],
  pad: Pad,
  ask: (pixels: Float64Array) => Promise<void>,
): void {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `a handwritten ${digit}`);
  const small = document.createElement("canvas");
  small.width = small.height = SIDE;
  const pixels = Float64Array.from(sample, (value) => value / 16);
  pad.paint(small, pixels);
  button.append(small);
  button.addEventListener("click", () => {
    pad.show(pixels);
    void ask(pixels);
  });
  element("samples").append(button);
}

async function show(client: MpcClient, settings: Settings, pixels: Float64Array, answer: Answer): Promise<void> {
  const { graph } = await client.model();
  const scores = Object.values(answer.outputs)[0]?.data as Float32Array;
  bars(scores);
  element("latency").textContent = `${answer.stats.latencyMs.toFixed(1)} ms`;
  element("rounds").textContent = String(answer.stats.rounds);
  const sent = settings.targets.map((target) => exchanges[target] as Exchange);
  const requests = sent.map(({ request }) => fromBinary(InferRequestSchema, request));
  const answers = sent.map(({ answer }) => fromBinary(InferResponseSchema, answer));
  await showShares(requests as [InferRequest, InferRequest], quantize(graph, image(pixels)));
  wire(sent, answer.stats);
  const truth = await reference(image(pixels));
  const same = bits(answers as [InferResponse, InferResponse], answer.integers, truth);
  const verdict = element("verdict");
  const [all, equal] = [truth.length, same ? "equal" : "NOT equal"];
  verdict.textContent = `All ${all} integers are ${equal} to plaintext, to the last bit.`;
  if (!same) verdict.textContent = `The integers are NOT equal to plaintext.`;
  verdict.className = `verdict ${same ? "good" : "bad"}`;
  document.body.dataset.shown = String(Number(document.body.dataset.shown ?? 0) + 1);
}

/** The bytes that each server holds, from the very requests that went out. */
async function showShares(requests: [InferRequest, InferRequest], q: Int8Array): Promise<void> {
  const held = await Promise.all(
    requests.map(async ({ input }) => {
      if (input.case === "share") return input.value;
      return masked(new Uint8Array(q.length), Uint8Array.from(input.value as Uint8Array));
    }),
  );
  const [first, second] = held as [Uint8Array, Uint8Array];
  const both = first.map((byte, i) => byte ^ (second[i] as number));
  for (const [i, bytes] of [first, second, both].entries()) {
    seen(i, bytes, i === 2);
    spread(i, bytes);
  }
  requests.forEach(({ input }, i) => {
    const value = input.value as Uint8Array;
    const count = `${value.length.toLocaleString("en")} bytes`;
    const seed = `${count}, a key that stands for ${q.length.toLocaleString("en")} bytes of noise.`;
    element(`note${i}`).textContent = input.case === "seed" ? seed : `${count}, each one as likely as any other.`;
    element(`hex${i}`).textContent = bytesOf(value, 32);
  });
  element("hex2").textContent = bytesOf(both, 32);
}

/** The integers that the plaintext reference makes of the same pixels. */
async function reference(x: Float32Array<ArrayBuffer>): Promise<bigint[]> {
  const headers = { "Content-Type": "application/octet-stream" };
  const response = await fetch("reference", { method: "POST", body: x, headers });
  if (!response.ok) throw new SecureQuantError("INTERNAL_ERROR", "reference", { got: response.status });
  return ((await response.json()) as string[]).map(BigInt);
}

function complain(error: unknown): void {
  const verdict = element("verdict");
  verdict.textContent = error instanceof Error ? error.message : String(error);
  verdict.className = "verdict bad";
}

start().catch(complain);

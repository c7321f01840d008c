/** What both parties say of the model, held against each other and against its hash. */

import { SecureQuantError } from "./errors.js";
import type { ShareInferenceServiceGetModelResponse } from "./gen/secure_quant/v1/share_inference_pb.js";
import { graphOf, type Graph } from "./graph.js";

/** How inputs are shared: what this client states and demands. */
export const SHARING = 2;
/** Most samples of one call. */
const PART = 32;
/** What protobuf and the rest of a request add to a share, at most. */
const AROUND = 1024;
export const MESSAGE_BYTES = 64 * 2 ** 20;
const UNPINNED_BYTES = 256 * 2 ** 20;

/** `batch`: most samples of one call. `rounds`: of a call, as the parties' plan says, where it does. */
export interface Model {
  graph: Graph;
  batch: number;
  rounds?: number | undefined;
}

/** Rejects with HASH_MISMATCH if a party's model is not what it says, not what was expected, or not
 * the other party's; MALFORMED_MESSAGE if a party is not the one it should be. */
export async function received(
  answers: ShareInferenceServiceGetModelResponse[],
  expectedHash: string | undefined,
): Promise<Model> {
  const graphs: Graph[] = [];
  const said: number[] = [];
  let batch = PART;
  for (const [party, answer] of answers.entries()) {
    if (answer.party !== party) {
      const about = { got: answer.party, expected: party, hint: "give party 0's address first" };
      throw new SecureQuantError("MALFORMED_MESSAGE", "party", about);
    }
    if (answer.sharing !== SHARING) {
      const hint = "client and parties must be of the same release";
      const about = { got: answer.sharing, expected: SHARING, hint };
      throw new SecureQuantError("MALFORMED_MESSAGE", "way of sharing inputs", about);
    }
    const name = answer.info?.modelHash ?? "";
    if (expectedHash !== undefined && name !== expectedHash) {
      const about = { got: name.slice(0, 64), expected: expectedHash };
      throw new SecureQuantError("HASH_MISMATCH", "the server offers another model", about);
    }
    if (answer.info?.model === undefined) {
      throw new SecureQuantError("MALFORMED_MESSAGE", "model information");
    }
    const graph = await graphOf(answer.info.model);
    if (graph.hash !== name) {
      const about = { got: graph.hash, expected: name.slice(0, 64) };
      throw new SecureQuantError("HASH_MISMATCH", "public model", about);
    }
    graphs.push(graph);
    batch = Math.min(batch, answer.batch || PART);
    said.push(...roundsOf(answer.info.plan));
  }
  const [graph, other] = graphs as [Graph, Graph];
  if (graph.hash !== other.hash) {
    const about = { got: other.hash, expected: graph.hash };
    throw new SecureQuantError("HASH_MISMATCH", "the parties serve different models", about);
  }
  const [up, down] = [graph.inputSize, 8 * graph.outputSize];
  if (expectedHash === undefined && 2 * (8 * up + down) > UNPINNED_BYTES) {
    const about = { hint: "give expectedHash, and larger models of that hash are served" };
    throw new SecureQuantError("MESSAGE_TOO_LARGE", "model", about);
  }
  const room = Math.floor((MESSAGE_BYTES - AROUND) / Math.max(up, down));
  const rounds = said.length ? Math.max(...said) : undefined;
  return { graph, batch: Math.max(1, Math.min(batch, room)), rounds };
}

/** As a plan states them, which nothing but a deadline depends on; none where it states none. */
function roundsOf(plan: Uint8Array): number[] {
  try {
    const { rounds } = JSON.parse(new TextDecoder().decode(plan)) as { rounds?: unknown };
    return Number.isSafeInteger(rounds) && (rounds as number) >= 0 ? [rounds as number] : [];
  } catch {
    return [];
  }
}

/** Refuses outputs that the model cannot give; to be called after the last request. Throws
 * IMPLAUSIBLE_ANSWER, which names the output and no value. */
export function requirePlausible(graph: Graph, y: BigInt64Array): void {
  for (const port of graph.outputs) {
    const { low, high, shape } = port.value;
    const end = port.start + shape.reduce((a, b) => a * b, 1);
    for (let i = 0; i < y.length; i++) {
      const place = i % graph.outputSize;
      if (place < port.start || place >= end) continue;
      const q = y[i] as bigint;
      if (q < BigInt(low) || q > BigInt(high)) {
        const hint = "a server deviates: do not send this again";
        const about = { got: "one out of range", expected: `${low} to ${high}`, hint };
        throw new SecureQuantError("IMPLAUSIBLE_ANSWER", `value of ${port.name}`, about);
      }
    }
  }
}

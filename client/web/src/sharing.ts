/** An int8 input in two XOR shares, an output out of two. docs/spec/mpc.md, "Input and output". */

import { SecureQuantError } from "./errors.js";

export const SEED_BYTES = 32;

/** Uint8Array[count] from the browser's own generator, for use once. */
export function fresh(count: number): Uint8Array<ArrayBuffer> {
  return crypto.getRandomValues(new Uint8Array(count));
}

/** `data` XOR the stream under `seed`: AES-256 in counter mode, from block zero on. */
export async function masked(
  data: Uint8Array<ArrayBuffer>,
  seed: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  const key = await crypto.subtle.importKey("raw", seed, "AES-CTR", false, ["encrypt"]);
  const how = { name: "AES-CTR", counter: new Uint8Array(16), length: 64 };
  return new Uint8Array(await crypto.subtle.encrypt(how, key, data));
}

/** int8[n] -> a share for party 0, and for party 1 a seed whose stream is the other share. Either
 * alone is uniform, whatever the value. */
export async function shareSeeded(
  values: Int8Array,
): Promise<{ share: Uint8Array<ArrayBuffer>; seed: Uint8Array<ArrayBuffer> }> {
  const seed = fresh(SEED_BYTES);
  return { share: await masked(Uint8Array.from(values), seed), seed };
}

/** Two shares of n integers, uint64 little-endian -> their sums mod 2**64 as signed numbers. Throws
 * MALFORMED_MESSAGE. */
export function join(first: Uint8Array, second: Uint8Array, count: number): BigInt64Array {
  for (const share of [first, second]) {
    if (share.length !== 8 * count) {
      const about = { got: `${share.length} bytes`, expected: 8 * count };
      throw new SecureQuantError("MALFORMED_MESSAGE", "output share", about);
    }
  }
  const [a, b] = [first, second].map((share) => new DataView(share.buffer, share.byteOffset));
  const made = new BigInt64Array(count);
  for (let i = 0; i < count; i++) {
    const sum = (a as DataView).getBigUint64(8 * i, true) + (b as DataView).getBigUint64(8 * i, true);
    made[i] = BigInt.asIntN(64, sum);
  }
  return made;
}

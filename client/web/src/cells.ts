/** The choice among cells: the rules of `secure_quant_client/cells.py`. */

import { SecureQuantError } from "./errors.js";
import type { Limits } from "./limits.js";
import type { Model } from "./model.js";
import type { Pair } from "./pair.js";

/** After a failure, before a cell is looked at again; doubled each time it is still away. */
const PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
/** Longest wait for a sign of life while there may be another cell. */
const REACH_MS = 2_000;
/** For how long a sign of life counts. */
const FRESH_MS = 5_000;
/** After these a cell has to answer again before it is chosen. */
const AWAY = new Set(["DEADLINE_EXCEEDED", "INTERNAL_ERROR", "MATERIAL_EXHAUSTED", "PEER_UNAVAILABLE"]);

/** `running`: inferences of ours in it. `heard`: when it answered last. `due`: away, it is asked from
 * then on whether it is back. */
export interface Cell {
  readonly pair: Pair;
  readonly number: number;
  running: number;
  heard: number;
  away: boolean;
  due: number;
  pause: number;
  asked: boolean;
}

export class Cells {
  readonly all: readonly Cell[];
  #turn = 0;
  #hash: string | undefined;

  constructor(pairs: readonly Pair[]) {
    this.all = pairs.map((pair, number) => ({
      pair, number, running: 0, heard: Number.NEGATIVE_INFINITY, away: false, due: 0, pause: PAUSE_MS, asked: false,
    })); // prettier-ignore
  }

  /** A cell that can be reached, and its model; those that cannot join `tried`. Rejects with what the
   * last one said. */
  async found(tried: Set<Cell>, limits: Limits, fetchMs: number): Promise<{ cell: Cell; model: Model }> {
    for (const each of this.all) this.#askAgain(each);
    let last: unknown = new SecureQuantError("PEER_UNAVAILABLE", "every cell", { got: "away" });
    for (let cell = this.#pick(tried); cell !== undefined; cell = this.#pick(tried)) {
      try {
        await this.#reach(cell, limits);
        const model = await cell.pair.model(limits, fetchMs);
        this.#requireSame(model.graph.hash);
        return { cell, model };
      } catch (error) {
        if (!isAway(error) || limits.signal?.aborted || performance.now() >= limits.end) throw error;
        this.failed(cell);
        tried.add(cell);
        last = error;
      }
    }
    throw last;
  }

  failed(cell: Cell): void {
    const now = performance.now();
    cell.heard = Number.NEGATIVE_INFINITY;
    if (cell.away && !cell.asked && now < cell.due) return; // others of the same moment
    cell.pause = cell.away ? Math.min(2 * cell.pause, LONGEST_PAUSE_MS) : PAUSE_MS;
    cell.away = true;
    cell.asked = false;
    cell.due = now + cell.pause;
  }

  heard(cell: Cell): void {
    cell.heard = performance.now();
    cell.away = cell.asked = false;
  }

  /** The least loaded that is not away, in turn where several are; else the one away longest. */
  #pick(tried: Set<Cell>): Cell | undefined {
    this.#turn++;
    const order = this.all.map((_, i) => this.all[(this.#turn + i) % this.all.length] as Cell);
    const left = order.filter((cell) => !tried.has(cell));
    const near = left.filter((cell) => !cell.away);
    const least = (cells: Cell[], of: (cell: Cell) => number) =>
      cells.reduce<Cell | undefined>((a, b) => (a === undefined || of(b) < of(a) ? b : a), undefined);
    return near.length > 0 ? least(near, (cell) => cell.running) : least(left, (cell) => cell.due);
  }

  /** Nothing is sent to a cell that was silent for long before it has answered: a browser cannot say
   * of a call that failed whether it arrived. */
  async #reach(cell: Cell, limits: Limits): Promise<void> {
    if (this.all.length === 1 || performance.now() < cell.heard + FRESH_MS) return;
    await cell.pair.alive({ ...limits, end: Math.min(limits.end, performance.now() + REACH_MS) });
    this.heard(cell);
  }

  #askAgain(cell: Cell): void {
    if (this.all.length === 1 || !cell.away || cell.asked || performance.now() < cell.due) return;
    cell.asked = true;
    cell.pair.alive({ end: performance.now() + REACH_MS }).then(
      () => this.heard(cell),
      () => this.failed(cell),
    );
  }

  #requireSame(hash: string): void {
    this.#hash ??= hash;
    if (this.#hash !== hash) {
      const about = { got: hash, expected: this.#hash };
      throw new SecureQuantError("HASH_MISMATCH", "the cells serve different models", about);
    }
  }
}

/** Whether the cell is to blame, and may be back later. */
export function isAway(error: unknown): boolean {
  return error instanceof SecureQuantError && AWAY.has(error.kind);
}

/** How far an inference is, for whoever asked to be told. */

import type { WatchResponse } from "./gen/secure_quant/v1/share_progress_pb.js";

const EVERY_MS = 250;

/** Public: nothing of it depends on inputs or weights. */
export interface Progress {
  /** Of the work, 0 to 1, by what gates are known to take, so that a bar moves evenly. */
  fraction: number;
  /** Exchanges of the two parties, done and in all. */
  done: number;
  of: number;
  /** Node of the public graph that is worked on; "" before, after, and where it is not known. */
  stage: string;
}

export type OnProgress = (progress: Progress) => void;
export type Hear = (word: WatchResponse) => void;

/** Between party 0 and who asked: of each part of an input the latest word, no more than four words a
 * second, none that goes back, and one at the end. */
export class Telling {
  readonly #parts: { samples: number; word?: WatchResponse }[] = [];
  #last: Progress = { fraction: -1, done: 0, of: 0, stage: "" };
  #next = Number.NEGATIVE_INFINITY;

  constructor(
    readonly told: OnProgress,
    readonly names: ReadonlySet<string>,
    readonly samples: number,
  ) {}

  /** What hears of a part that was sent. */
  part(samples: number): Hear {
    const part: { samples: number; word?: WatchResponse } = { samples };
    this.#parts.push(part);
    return (word) => {
      part.word = word;
      this.#tell(word.stage);
    };
  }

  /** The answer is there. */
  end(): void {
    this.told({ ...this.#last, fraction: 1, done: this.#last.of, stage: "" });
  }

  #tell(stage: string): void {
    let [work, done, of] = [0, 0, 0];
    for (const { samples, word } of this.#parts) {
      work += samples * Math.min(word?.thousandths ?? 0, 1000);
      done += word?.rounds ?? 0;
      of += word?.of ?? 0;
    }
    const fraction = Math.min(work / (1000 * this.samples), 1);
    const now = performance.now();
    if (fraction <= this.#last.fraction || now < this.#next) return;
    this.#next = now + EVERY_MS;
    const known = this.names.has(stage) ? stage : "";
    this.#last = { fraction, done: Math.min(done, of), of, stage: known };
    this.told(this.#last);
  }
}

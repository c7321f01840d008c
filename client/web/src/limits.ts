/** How long a call may take, and who may give it up. */

import { SecureQuantError } from "./errors.js";

const LONGEST_MS = 2 ** 31 - 1; // of a timer
export const DEADLINE_MS = 30_000;

/** `end`: by `performance.now()`. `open`: nobody said so, and a large model may take longer. */
export interface Limits {
  signal?: AbortSignal | undefined;
  end: number;
  open?: boolean;
}

/** Of one call. `timeoutMs`: of everything that it does. `signal`: aborted, the call rejects with the
 * signal's reason, and the parties drop it. */
export interface CallOptions {
  signal?: AbortSignal | undefined;
  timeoutMs?: number | undefined;
}

/** Throws CONFIG_ERROR for a time that is none, and the signal's reason. */
export function limitsOf(options: CallOptions, timeoutMs: number | undefined): Limits {
  const said = options.timeoutMs ?? timeoutMs;
  const allowed = checkedMs(said ?? DEADLINE_MS);
  options.signal?.throwIfAborted();
  return { signal: options.signal, end: performance.now() + allowed, open: said === undefined };
}

/** The same for work that may take so long: it is given that, unless somebody said how long. */
export function allow(limits: Limits, milliseconds: number): Limits {
  const more = Math.min(milliseconds, LONGEST_MS) - DEADLINE_MS;
  return limits.open && more > 0 ? { ...limits, end: limits.end + more, open: false } : limits;
}

export function checkedMs(milliseconds: number): number {
  if (!(milliseconds > 0 && milliseconds <= LONGEST_MS)) {
    const about = { got: milliseconds, expected: `above 0 and at most ${LONGEST_MS}` };
    throw new SecureQuantError("CONFIG_ERROR", "timeoutMs", about);
  }
  return milliseconds;
}

/** Whole milliseconds, as on the wire; at least 1. Throws DEADLINE_EXCEEDED once none are left. */
export function remaining(limits: Limits): number {
  const left = Math.ceil(limits.end - performance.now());
  if (left <= 0) throw new SecureQuantError("DEADLINE_EXCEEDED", "no time left");
  return left;
}

/** What `work` brings, unless time or the signal ends before; the work itself goes on. */
export function within<T>(work: Promise<T>, limits: Limits, what: string): Promise<T> {
  const { signal, end } = limits;
  return new Promise((resolve, reject) => {
    const late = () => reject(new SecureQuantError("DEADLINE_EXCEEDED", `${what} did not come in time`));
    const timer = setTimeout(late, Math.max(0, end - performance.now()));
    const abort = () => reject(signal?.reason as Error);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    };
    work.then(resolve, reject).finally(done);
  });
}

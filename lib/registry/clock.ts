/** Time and chance, exchangeable so that tests of retries need not wait. */

import { delay } from "../io/mod.ts";

/** What retries and token lifetimes are measured with. */
export interface Clock {
  /** Milliseconds that only grow. */
  now(): number;
  /** Resolves after `milliseconds`; rejects with `CancelledError` when aborted. */
  delay(milliseconds: number, signal?: AbortSignal): Promise<void>;
  /** In [0, 1). */
  random(): number;
}

/** The real ones. */
export const systemClock: Clock = {
  now: () => performance.now(),
  delay,
  random: () => Math.random(),
};

/**
 * How fast the machine is right now. Virtual machines get slower and faster
 * over minutes, by more than programs differ: a fixed piece of work that is
 * timed before each run tells such a drift from a change.
 */

import { ObdError, startWorker, withDeadline } from "../../lib/io/mod.ts";
import { spreadOf } from "./result.ts";
import {
  SPEED_ROLE,
  SPEED_WORKER_URL,
  type SpeedReply,
} from "./speed_worker.ts";
import { WORK_NAME } from "./speed_work.ts";

const REPETITIONS = 5;
/** For one repetition, which takes some 50 ms. */
const DEADLINE_MS = 60_000;

/**
 * Threads that do the same work at once, one for each core: neighbours on a
 * host take from all of them, and what one core can do alone says little.
 */
export class SpeedProbe implements Disposable {
  readonly #workers = Array.from(
    { length: navigator.hardwareConcurrency },
    () => startWorker(SPEED_WORKER_URL, SPEED_ROLE),
  );

  private constructor() {}

  /**
   * Starts the threads and has them do their work once: what is compiled and
   * allocated the first time is in no probe.
   *
   * @throws {ObdError} See {@linkcode SpeedProbe.seconds}.
   */
  static async start(signal: AbortSignal): Promise<SpeedProbe> {
    const probe = new SpeedProbe();
    try {
      await probe.#once(signal);
      return probe;
    } catch (error) {
      probe[Symbol.dispose]();
      throw error;
    }
  }

  /** What is timed, in words: two times can be compared where it is the same. */
  get method(): string {
    const threads = this.#workers.length;
    return `${WORK_NAME}, by ${threads} ${
      threads === 1 ? "thread" : "threads"
    } at once; median of ${REPETITIONS}`;
  }

  /**
   * Times the work.
   *
   * @returns Seconds of one repetition, until the last thread is done.
   * @throws {ObdError} If a thread fails or does not end; the probe is of no use then.
   */
  async seconds(signal: AbortSignal): Promise<number> {
    const times: number[] = [];
    for (let i = 0; i < REPETITIONS; i++) {
      const started = performance.now();
      await this.#once(signal);
      times.push((performance.now() - started) / 1000);
    }
    return Math.round(spreadOf(times)!.median * 1e5) / 1e5;
  }

  /** Each thread does its work once, all at the same time. */
  async #once(outer: AbortSignal): Promise<void> {
    await withDeadline(
      "The probe of the machine's speed",
      DEADLINE_MS,
      (signal) => Promise.all(this.#workers.map((w) => workOf(w, signal))),
      outer,
    );
  }

  [Symbol.dispose](): void {
    for (const worker of this.#workers) worker.terminate();
  }
}

async function workOf(worker: Worker, signal: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const fail = (said: string) =>
    reject(new ObdError("state", `Cannot probe the machine's speed: ${said}`));
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  worker.onmessage = ({ data }: MessageEvent<SpeedReply>) =>
    data.failure === undefined ? resolve() : fail(data.failure);
  worker.onerror = (event) => {
    event.preventDefault();
    fail(event.message);
  };
  try {
    signal.throwIfAborted();
    worker.postMessage({});
    await promise;
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

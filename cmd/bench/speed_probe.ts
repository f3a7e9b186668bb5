/**
 * How fast the machine is right now. Virtual machines get slower and faster
 * over minutes, by more than programs differ: a fixed piece of work that is
 * timed before each run tells such a drift from a change.
 */

import process from "node:process";
import { ObdError, startWorker, withDeadline } from "../../lib/io/mod.ts";
import type { ProbeTimes } from "./result.ts";
import {
  SPEED_ROLE,
  SPEED_WORKER_URL,
  type SpeedReply,
} from "./speed_worker.ts";
import { WORK_NAME } from "./speed_work.ts";

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
   * @throws {ObdError} See {@linkcode SpeedProbe.measure}.
   */
  static async start(signal: AbortSignal): Promise<SpeedProbe> {
    const probe = new SpeedProbe();
    try {
      await probe.measure(signal);
      return probe;
    } catch (error) {
      probe[Symbol.dispose]();
      throw error;
    }
  }

  /** What is timed, in words: two times can be compared where it is the same. */
  get method(): string {
    const threads = this.#workers.length;
    return `CPU time of a thread to ${WORK_NAME}, ${threads} ${
      threads === 1 ? "thread" : "threads"
    } at once`;
  }

  /**
   * Has each thread do its work, all at the same time.
   *
   * @throws {ObdError} If a thread fails or does not end; the probe is of no use then.
   */
  async measure(outer: AbortSignal): Promise<ProbeTimes> {
    const started = performance.now();
    const before = process.cpuUsage();
    await withDeadline(
      "The probe of the machine's speed",
      DEADLINE_MS,
      (signal) => Promise.all(this.#workers.map((w) => workOf(w, signal))),
      outer,
    );
    // The thread that waits costs nothing.
    const { user, system } = process.cpuUsage(before);
    return {
      seconds: rounded((performance.now() - started) / 1000),
      cpuSeconds: rounded((user + system) / 1e6 / this.#workers.length),
    };
  }

  [Symbol.dispose](): void {
    for (const worker of this.#workers) worker.terminate();
  }
}

/** The mean of the probes before and after a run: what the machine was like between them. */
export function between(before: ProbeTimes, after: ProbeTimes): ProbeTimes {
  return {
    seconds: rounded((before.seconds + after.seconds) / 2),
    cpuSeconds: rounded((before.cpuSeconds + after.cpuSeconds) / 2),
  };
}

/** To a tenth of a millisecond. */
function rounded(seconds: number): number {
  return Math.round(seconds * 1e4) / 1e4;
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

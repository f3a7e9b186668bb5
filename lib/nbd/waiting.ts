/** Requests of one connection that wait for their source, and the bounds on them. */

import { CancelledError } from "../io/mod.ts";
import { COMMAND, type Request } from "./protocol.ts";
import type { ExportStats } from "./stats.ts";

/** A request that waits for its source. */
export interface Waiting {
  readonly request: Request;
  /** `performance.now()` at its arrival. */
  readonly started: number;
  readonly control: AbortController;
  /** Answered, or never to be. */
  settled: boolean;
}

/** How much may wait at once. */
export interface WaitingLimits {
  readonly maxInFlight: number;
  readonly maxInFlightBytes: number;
}

/** Counts what waits, from arrival until its answer was written. */
export class WaitingRequests {
  readonly #limits: WaitingLimits;
  readonly #stats: ExportStats;
  /** In order of arrival, so the first has the nearest deadline. */
  readonly #waiting = new Set<Waiting>();
  /** Requests whose answer is not written, and their bytes. */
  #held = 0;
  #heldBytes = 0;
  #waiters: (() => void)[] = [];

  constructor(limits: WaitingLimits, stats: ExportStats) {
    this.#limits = limits;
    this.#stats = stats;
  }

  /** No more may be started before some are released. */
  get full(): boolean {
    return this.#held >= this.#limits.maxInFlight ||
      this.#heldBytes >= this.#limits.maxInFlightBytes;
  }

  /** Nothing waits for its source. */
  get empty(): boolean {
    return this.#waiting.size === 0;
  }

  /** Adds a request; it is to be settled and released once each. */
  start(request: Request): Waiting {
    const waiting = {
      request,
      started: performance.now(),
      control: new AbortController(),
      settled: false,
    };
    this.#waiting.add(waiting);
    this.#held++;
    this.#heldBytes += heldBytes(request);
    this.#stats.inFlight++;
    return waiting;
  }

  /** The answer is known, or nobody wants it any more. */
  settle(waiting: Waiting): void {
    waiting.settled = true;
    this.#waiting.delete(waiting);
    this.#stats.inFlight--;
    this.#wake();
  }

  /** The answer is written, or as good as: its memory is not held by the client's pace. */
  release(waiting: Waiting): void {
    this.#held--;
    this.#heldBytes -= heldBytes(waiting.request);
    this.#wake();
  }

  /** Resolves at the next change. */
  changed(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  /** Those that arrived before a point in time (of `performance.now`). */
  startedBefore(time: number): Waiting[] {
    const found: Waiting[] = [];
    for (const waiting of this.#waiting) {
      if (waiting.started > time) break;
      found.push(waiting);
    }
    return found;
  }

  /** Cancels and settles all; for a connection that is gone. */
  cancelAll(): void {
    for (const waiting of [...this.#waiting]) {
      this.settle(waiting);
      this.release(waiting);
      waiting.control.abort(new CancelledError("Client is gone"));
    }
    this.#wake();
  }

  #wake(): void {
    for (const waiter of this.#waiters.splice(0)) waiter();
  }
}

/** Bytes that a request keeps in memory. */
function heldBytes({ type, length }: Request): number {
  return type === COMMAND.read || type === COMMAND.write ? length : 0;
}

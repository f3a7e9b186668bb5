/** Bounds on memory in flight, and work that several callers wait for. */

import { CancelledError } from "./errors.ts";
import { priorityOf, UrgencyQueue, type Urgent } from "./urgency.ts";

interface BudgetWaiter {
  bytes: number;
  grant(): void;
}

/**
 * A semaphore counted in bytes, first come first served, demand before
 * prefetch. A waiter at the head of the demand queue is never overtaken, so a
 * large request cannot starve.
 */
export class ByteBudget {
  readonly limit: number;
  #free: number;
  readonly #queue = new UrgencyQueue<BudgetWaiter>();

  /** @param limit Bytes that may be taken at once, ≥ 1. */
  constructor(limit: number) {
    this.limit = limit;
    this.#free = limit;
  }

  /** Bytes taken now. */
  get taken(): number {
    return this.limit - this.#free;
  }

  /**
   * Waits for `bytes`; a request above the limit counts as the whole limit, so
   * that it runs alone instead of never.
   *
   * @returns Gives the bytes back; to be called exactly once.
   * @throws {CancelledError} When `signal` is aborted before the grant.
   */
  async acquire(
    bytes: number,
    options: Urgent & { signal?: AbortSignal | undefined } = {},
  ): Promise<() => void> {
    const weight = Math.min(bytes, this.limit);
    if (options.signal?.aborted) throw new CancelledError();
    const ahead = this.#queue.ahead(priorityOf(options));
    if (ahead === 0 && weight <= this.#free) this.#free -= weight;
    else await this.#wait(weight, options);
    return () => {
      this.#free += weight;
      this.#grant();
    };
  }

  #wait(
    bytes: number,
    options: Urgent & { signal?: AbortSignal | undefined },
  ): Promise<void> {
    const { signal } = options;
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        leave();
        reject(new CancelledError());
        this.#grant();
      };
      const leave = this.#queue.push(
        {
          bytes,
          grant: () => {
            signal?.removeEventListener("abort", onAbort);
            resolve();
          },
        },
        options,
        () => this.#grant(),
      );
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  #grant(): void {
    for (;;) {
      const head = this.#queue.peek();
      if (!head || head.bytes > this.#free) return;
      this.#queue.shift();
      this.#free -= head.bytes;
      head.grant();
    }
  }
}

/**
 * A result that several callers wait for. It is given up when the last of them
 * has been cancelled, not when the first is.
 */
export class SharedFlight<V> {
  readonly #promise: Promise<V>;
  readonly #onAbandon: () => void;
  #resolve!: (value: V) => void;
  #reject!: (error: unknown) => void;
  #joined = 0;

  /** @param onAbandon Called once when every joined caller has been cancelled. */
  constructor(onAbandon: () => void) {
    this.#onAbandon = onAbandon;
    this.#promise = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // A flight may fail when nobody waits any more.
    this.#promise.catch(() => {});
  }

  /** Settles the flight for everyone; later calls do nothing. */
  resolve(value: V): void {
    this.#resolve(value);
  }

  /** Fails the flight for everyone; later calls do nothing. */
  reject(error: unknown): void {
    this.#reject(error);
  }

  /**
   * Waits for the result. A caller without a signal holds the flight for good.
   *
   * @throws {CancelledError} When `signal` is aborted first.
   */
  join(signal?: AbortSignal): Promise<V> {
    this.#joined++;
    if (!signal) return this.#promise;
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        reject(new CancelledError());
        if (--this.#joined > 0) return;
        this.#onAbandon();
        this.#reject(new CancelledError());
      };
      if (signal.aborted) return onAbort();
      signal.addEventListener("abort", onAbort, { once: true });
      this.#promise.then(resolve, reject).finally(() =>
        signal.removeEventListener("abort", onAbort)
      );
    });
  }
}

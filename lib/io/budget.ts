/** Bounds on memory in flight, and work that several callers wait for. */

import { CancelledError } from "./errors.ts";
import { priorityOf, UrgencyQueue, type Urgent } from "./urgency.ts";

interface BudgetWaiter {
  bytes: number;
  share: BudgetShare | undefined;
  isDemand(): boolean;
  grant(): void;
  /** Out of the queue. */
  leave(): void;
}

/** How a budget's bytes are waited for. */
export interface AcquireOptions extends Urgent {
  signal?: AbortSignal | undefined;
  /** Whose they are. */
  share?: BudgetShare | undefined;
}

/**
 * What one of a budget's users holds, and may hold even while others have taken
 * all there is: what these wait for may never come.
 */
export class BudgetShare {
  readonly guaranteed: number;
  /** Bytes held now. */
  taken = 0;
  /** In the order in which they came. */
  readonly waiting: Set<BudgetWaiter> = new Set();

  /** @param guaranteed Bytes. */
  constructor(guaranteed: number) {
    this.guaranteed = guaranteed;
  }
}

/**
 * A semaphore counted in bytes, first come first served, demand before
 * prefetch. A waiter at the head of the demand queue is overtaken only by demand
 * within what its {@linkcode BudgetShare} guarantees, so a large request cannot
 * starve. With shares twice the limit may be taken, and no more.
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
    options: AcquireOptions = {},
  ): Promise<() => void> {
    const weight = Math.min(bytes, this.limit);
    const { share } = options;
    if (options.signal?.aborted) throw new CancelledError();
    const priority = priorityOf(options);
    const isFree = this.#queue.ahead(priority) === 0 && weight <= this.#free;
    if (
      isFree || (priority === "demand" && this.#isGuaranteed(weight, share))
    ) this.#take(weight, share);
    else await this.#wait(weight, options);
    return () => {
      this.#take(-weight, share);
      this.#grant(share);
    };
  }

  #wait(bytes: number, options: AcquireOptions): Promise<void> {
    const { share, signal } = options;
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        waiter.leave();
        reject(new CancelledError());
        this.#grant(share);
      };
      const waiter: BudgetWaiter = {
        bytes,
        share,
        isDemand: () => priorityOf(options) === "demand",
        grant: () => {
          signal?.removeEventListener("abort", onAbort);
          this.#take(bytes, share);
          resolve();
        },
        leave: () => {
          leaveQueue();
          share?.waiting.delete(waiter);
        },
      };
      const leaveQueue = this.#queue.push(
        waiter,
        options,
        () => this.#grant(share),
      );
      share?.waiting.add(waiter);
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  #take(bytes: number, share: BudgetShare | undefined): void {
    this.#free -= bytes;
    if (share) share.taken += bytes;
  }

  #isGuaranteed(bytes: number, share: BudgetShare | undefined): boolean {
    return share !== undefined && share.taken + bytes <= share.guaranteed &&
      this.#free - bytes >= -this.limit;
  }

  /** @param share Of what was given back, or has become demand. */
  #grant(share: BudgetShare | undefined): void {
    for (;;) {
      const head = this.#queue.peek();
      if (!head || head.bytes > this.#free) break;
      head.leave();
      head.grant();
    }
    for (const waiter of share?.waiting ?? []) {
      if (!waiter.isDemand()) continue;
      if (!this.#isGuaranteed(waiter.bytes, share)) return;
      waiter.leave();
      waiter.grant();
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

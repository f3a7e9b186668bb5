/** Bounded concurrency, deadlines and shared flights. */

import { CancelledError, DeadlineError } from "./errors.ts";
import { priorityOf, UrgencyQueue, type Urgent } from "./urgency.ts";

/**
 * A counting semaphore: demand waiters are always served before prefetch
 * waiters, and prefetch can be kept to a part of the permits, so that demand
 * finds a free one at once.
 */
export class Semaphore {
  readonly #prefetchMax: number;
  #free: number;
  /** Permits that work which began as prefetch has. */
  #prefetching = 0;
  readonly #queue = new UrgencyQueue<(isPrefetch: boolean) => void>();

  /** @param prefetchMax Most permits that prefetch may have; default all. */
  constructor(permits: number, prefetchMax: number = permits) {
    this.#free = permits;
    this.#prefetchMax = Math.max(1, prefetchMax);
  }

  /** Waiters of both kinds. */
  get waiting(): number {
    return this.#queue.length;
  }

  /**
   * Runs `work` with a permit.
   *
   * @throws {CancelledError} When `signal` is aborted before there is one.
   */
  async run<T>(
    work: () => Promise<T>,
    options: Urgent & { signal?: AbortSignal | undefined } = {},
  ): Promise<T> {
    const isPrefetch = await this.#acquire(options);
    try {
      return await work();
    } finally {
      this.#free++;
      if (isPrefetch) this.#prefetching--;
      this.#grant();
    }
  }

  /** @returns Whether the permit was given to prefetch. */
  #acquire(
    options: Urgent & { signal?: AbortSignal | undefined },
  ): boolean | Promise<boolean> {
    const { signal } = options;
    const isPrefetch = priorityOf(options) === "prefetch";
    const isFree = isPrefetch ? this.#mayPrefetch : this.#free > 0;
    if (isFree && this.#queue.ahead(isPrefetch ? "prefetch" : "demand") === 0) {
      this.#take(isPrefetch);
      return isPrefetch;
    }
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(new CancelledError());
      const onAbort = () => {
        leave();
        reject(new CancelledError());
      };
      const leave = this.#queue.push(
        (asPrefetch) => {
          signal?.removeEventListener("abort", onAbort);
          resolve(asPrefetch);
        },
        options,
        () => this.#grant(),
      );
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  get #mayPrefetch(): boolean {
    return this.#free > 0 && this.#prefetching < this.#prefetchMax;
  }

  #take(isPrefetch: boolean): void {
    this.#free--;
    if (isPrefetch) this.#prefetching++;
  }

  #grant(): void {
    while (this.#free > 0) {
      let grant = this.#queue.shift("demand");
      const isPrefetch = grant === undefined;
      if (isPrefetch && this.#mayPrefetch) {
        grant = this.#queue.shift("prefetch");
      }
      if (!grant) return;
      this.#take(isPrefetch);
      grant(isPrefetch);
    }
  }
}

/** The same key wanted twice at once is worked on once. A failed flight is not remembered. */
export class SingleFlight<K, V> {
  readonly #flights = new Map<K, Promise<V>>();

  /** The running flight for `key`, if any. */
  get(key: K): Promise<V> | undefined {
    return this.#flights.get(key);
  }

  /** Joins the running flight for `key`, or starts one. */
  run(key: K, work: () => Promise<V>): Promise<V> {
    const running = this.#flights.get(key);
    if (running) return running;
    const flight = work().finally(() => this.#flights.delete(key));
    this.#flights.set(key, flight);
    return flight;
  }
}

/**
 * Rejects with a {@linkcode DeadlineError} when `work` takes longer than
 * `milliseconds`; its signal is aborted then so that it can stop.
 */
export async function withDeadline<T>(
  what: string,
  milliseconds: number,
  work: (signal: AbortSignal) => Promise<T>,
  outer?: AbortSignal,
): Promise<T> {
  const control = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const onAbort = () => control.abort(new CancelledError());
  outer?.addEventListener("abort", onAbort, { once: true });
  if (outer?.aborted) onAbort();
  const expired = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const error = new DeadlineError(what, milliseconds);
      control.abort(error);
      reject(error);
    }, milliseconds);
  });
  try {
    return await Promise.race([work(control.signal), expired]);
  } finally {
    clearTimeout(timer);
    outer?.removeEventListener("abort", onAbort);
  }
}

/** Resolves after `milliseconds`, or rejects with `CancelledError` when aborted. */
export function delay(
  milliseconds: number,
  signal?: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(new CancelledError());
    const onAbort = () => {
      clearTimeout(timer);
      reject(new CancelledError());
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/** Runs `work` over `items` with at most `limit` at once; results keep the order of `items`. */
export async function mapConcurrent<T, R>(
  items: readonly T[],
  limit: number,
  work: (item: T, index: number) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length);
  let next = 0;
  const lane = async () => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]!, index);
    }
  };
  const lanes = Array.from({ length: Math.min(limit, items.length) }, lane);
  await Promise.all(lanes);
  return results;
}

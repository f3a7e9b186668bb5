/** Bounded concurrency, deadlines and shared flights. */

import { CancelledError, DeadlineError } from "./errors.ts";
import type { Priority } from "./source.ts";

interface Waiter {
  grant(): void;
}

/**
 * A counting semaphore with two queues: demand waiters are always served
 * before prefetch waiters.
 */
export class Semaphore {
  #free: number;
  readonly #demand: Waiter[] = [];
  readonly #prefetch: Waiter[] = [];

  constructor(permits: number) {
    this.#free = permits;
  }

  /** Waiters of both kinds. */
  get waiting(): number {
    return this.#demand.length + this.#prefetch.length;
  }

  /** Runs `work` with a permit. */
  async run<T>(
    work: () => Promise<T>,
    options: {
      priority?: Priority | undefined;
      signal?: AbortSignal | undefined;
    } = {},
  ): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await this.#wait(options.priority ?? "demand", options.signal);
    try {
      return await work();
    } finally {
      const next = this.#demand.shift() ?? this.#prefetch.shift();
      if (next) next.grant();
      else this.#free++;
    }
  }

  #wait(priority: Priority, signal: AbortSignal | undefined): Promise<void> {
    const queue = priority === "demand" ? this.#demand : this.#prefetch;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(new CancelledError());
      const onAbort = () => {
        const at = queue.indexOf(waiter);
        if (at >= 0) queue.splice(at, 1);
        reject(new CancelledError());
      };
      const waiter: Waiter = {
        grant: () => {
          signal?.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      queue.push(waiter);
    });
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

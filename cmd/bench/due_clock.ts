/**
 * Waiting for points in time, for many at once. Timers of the runtime count
 * whole milliseconds and fire from one too early to one too late, which is
 * much of a round trip: the C library sleeps to a tenth of that. Each
 * awakening takes a tenth of a millisecond of CPU, so nobody gets one alone
 * who is close to another.
 */

import { delay, loadLibc } from "../../lib/io/mod.ts";

/** A sleep cannot be cut short: this is what {@linkcode DueClock.stop} takes at most. */
const SLEEP_MAX_MS = 50;

interface Sleeper {
  due: number;
  wake: () => void;
}

/** See the module's comment. Times are `performance.now()`. */
export class DueClock {
  /** The next one at the end. */
  readonly #sleepers: Sleeper[] = [];
  /** Sleeps that are under way, by when they end. */
  readonly #sleeps = new Map<number, Promise<void>>();
  readonly #sleepMinMs: number;
  #stopped = false;

  /** @param sleepMinMs Who is due within this of an awakening waits for the next, this much later. */
  constructor(sleepMinMs: number) {
    this.#sleepMinMs = sleepMinMs;
  }

  /** Resolves at a point in time, never before it; or when the clock is stopped. */
  until(due: number): Promise<void> {
    const now = performance.now();
    if (due <= now || this.#stopped) return Promise.resolve();
    return new Promise((wake) => {
      let at = this.#sleepers.length;
      while (at > 0 && this.#sleepers[at - 1]!.due < due) at--;
      this.#sleepers.splice(at, 0, { due, wake });
      this.#sleep(now);
    });
  }

  /** Wakes all that are due; for whoever is awake for another reason. */
  tick(): void {
    const now = performance.now();
    while (this.#sleepers.length > 0 && this.#sleepers.at(-1)!.due <= now) {
      this.#sleepers.pop()!.wake();
    }
  }

  /** Wakes all, and does not wait from now on. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const { wake } of this.#sleepers.splice(0)) wake();
    await Promise.all(this.#sleeps.values());
  }

  /** Sees to an awakening for the next one. */
  #sleep(now: number): void {
    const next = this.#sleepers.at(-1);
    if (!next) return;
    const end = Math.min(
      Math.max(next.due, now + this.#sleepMinMs),
      now + SLEEP_MAX_MS,
    );
    for (const other of this.#sleeps.keys()) if (other <= end) return;
    this.#sleeps.set(
      end,
      sleep(end - now).then(() => {
        this.#sleeps.delete(end);
        this.tick();
        this.#sleep(performance.now());
      }),
    );
  }
}

/** Takes as long as asked, or longer. */
async function sleep(ms: number): Promise<void> {
  const libc = loadLibc();
  if (libc) await libc.usleep(Math.ceil(ms * 1000));
  else await delay(Math.ceil(ms));
}

/**
 * Gives memory that nobody refers to back to the system.
 *
 * V8 collects when something is allocated: a process that opened its images,
 * or served a burst of reads, and is then left alone keeps the garbage for as
 * long as nothing happens. What is collected, and what threads had that ended,
 * stays with the C library (measured: 25 MB once 20 images are open, up to
 * 100 MB after half a minute of many reads) until that is asked for it.
 */

import process from "node:process";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { trimMemory } from "../lib/io/mod.ts";

/** Longer than threads stay without work. */
const INTERVAL_MS = 15_000;
/** Who takes less of a processor than this does nothing that a collection could hold. */
const QUIET_SHARE = 0.02;
/** For V8's own threads to free what was collected. */
const SWEEP_MS = 500;

let collect: (() => void) | undefined;

/** A full collection; some tens of milliseconds. Does nothing where the runtime offers none. */
function collectNow(): void {
  try {
    if (!collect) {
      setFlagsFromString("--expose-gc");
      // Contexts made from now on have it; ours was made before.
      collect = runInNewContext("gc") as () => void;
    }
    collect();
  } catch {
    // Then it happens when V8 wants it.
  }
}

/** Gives memory back each time that the process has come to rest. */
class RestWatch {
  readonly #intervalMs: number;
  /** Microseconds of processor time, of all threads. */
  #used = usedMicroseconds();
  #hasWorked = true;

  constructor(intervalMs: number) {
    this.#intervalMs = intervalMs;
    Deno.unrefTimer(setInterval(() => this.#look(), intervalMs));
  }

  #look(): void {
    const used = usedMicroseconds();
    const share = (used - this.#used) / 1000 / this.#intervalMs;
    this.#used = used;
    if (share >= QUIET_SHARE) this.#hasWorked = true;
    else if (this.#hasWorked) {
      this.#hasWorked = false;
      collectNow();
      Deno.unrefTimer(setTimeout(() => {
        trimMemory();
        // This was no work.
        this.#used = usedMicroseconds();
      }, SWEEP_MS));
    }
  }

  /** There is something to give back. */
  worked(): void {
    this.#hasWorked = true;
  }
}

function usedMicroseconds(): number {
  const { user, system } = process.cpuUsage();
  return user + system;
}

let watch: RestWatch | undefined;

/**
 * Collects now, and from the first call on each time that the process came to
 * rest: then without what was let go of in the same turn as this is called,
 * which weak references keep for that long, and with what threads had.
 *
 * @param intervalMs How often to look whether it did; for tests.
 */
export function giveBackMemory(intervalMs = INTERVAL_MS): void {
  collectNow();
  watch ??= new RestWatch(intervalMs);
  watch.worked();
}

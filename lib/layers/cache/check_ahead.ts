/** Checks entries of an earlier run before somebody comes to them. */

import type { CacheEntry } from "./entry.ts";

/** Entries checked, or about to be, that nobody came to yet. */
const UNCLAIMED_MAX = 8;
/** Checks at once: half of the descriptors of a data file stay free for readers. */
const CHECKS_MAX = 2;
/** Entries that are passed over: what lies behind a reader may be checked already. */
const STEPS_MAX = 64;

/**
 * The index has entries in the order of their last use, and who starts again
 * comes to them in about that order. Without this, each is a wait for the disk
 * and then for a digest of one or two MiB.
 *
 * Bounded is what is guessed wrong: a few entries, and one more for each that a
 * reader had to wait for.
 */
export class CheckAhead {
  readonly #check: (entry: CacheEntry) => Promise<unknown>;
  /** Oldest first. */
  readonly #unclaimed = new Set<CacheEntry>();
  /** Where to look for the next one. */
  #next: CacheEntry | undefined;
  #running = 0;

  /** @param check Checks an entry that is `unchecked`; never rejects. */
  constructor(check: (entry: CacheEntry) => Promise<unknown>) {
    this.#check = check;
  }

  /** A reader came to an entry that is not `ready`, or was made so ahead of it. */
  reached(entry: CacheEntry): void {
    const unclaimed = this.#unclaimed;
    if (!unclaimed.delete(entry) && unclaimed.size === UNCLAIMED_MAX) {
      // The reader is somewhere else by now.
      for (const oldest of unclaimed) {
        unclaimed.delete(oldest);
        break;
      }
    }
    this.#next = entry.following;
    this.#pump();
  }

  /** A reader was answered from an entry. */
  read(entry: CacheEntry): void {
    if (this.#unclaimed.has(entry)) this.reached(entry);
  }

  #pump(): void {
    for (
      let steps = 0;
      this.#next && steps < STEPS_MAX && this.#running < CHECKS_MAX &&
      this.#unclaimed.size < UNCLAIMED_MAX;
      steps++
    ) {
      const entry = this.#next;
      this.#next = entry.following;
      if (entry.state !== "unchecked" || entry.check) continue;
      this.#unclaimed.add(entry);
      this.#running++;
      this.#check(entry).finally(() => {
        this.#running--;
        this.#pump();
      });
    }
  }
}

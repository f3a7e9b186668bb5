/** Watches the free space of a cache's file system. */

import type { DataFile } from "./data_file.ts";

const GIB = 2 ** 30;
const RECHECK_MS = 1_000;
const RECHECK_BYTES = 64 * 1024 * 1024;
/** Given back beyond what is missing, so that not every write has to evict. */
const MARGIN_BYTES = 16 * 1024 * 1024;

/**
 * What a cache leaves free when nothing is configured: a tenth of the file
 * system, but at least 1 GiB and at most 10 GiB.
 */
export function defaultKeepFree(totalBytes: number): number {
  return Math.min(Math.max(totalBytes / 10, GIB), 10 * GIB);
}

/** Asks the file system now and then, not at every write. */
export class SpaceKeeper {
  readonly #file: DataFile;
  readonly #keepFree: number | undefined;
  #checkedAt = -Infinity;
  #headroom = 0;
  #written = 0;

  constructor(file: DataFile, keepFree: number | undefined) {
    this.#file = file;
    this.#keepFree = keepFree;
  }

  /** Tells that `bytes` were written. */
  wrote(bytes: number): void {
    this.#written += bytes;
  }

  /**
   * @param now Asks the file system in any case.
   * @returns How many bytes must become free before `need` more are written;
   * 0 or less when there is room.
   */
  async missing(need: number, now = false): Promise<number> {
    const age = performance.now() - this.#checkedAt;
    if (
      now || age > RECHECK_MS || this.#written > RECHECK_BYTES ||
      this.#headroom - this.#written < need
    ) {
      const { free, total } = await this.#file.space();
      this.#headroom = free - (this.#keepFree ?? defaultKeepFree(total));
      this.#written = 0;
      this.#checkedAt = performance.now();
    }
    const missing = need - (this.#headroom - this.#written);
    return missing > 0 && !now ? missing + MARGIN_BYTES : missing;
  }
}

/** How entries lie in the data file. */

import type { CacheEntry } from "./entry.ts";

/** Bytes of a slot: divides the sizes of blocks and plain spans, and wastes little of a gzip span. */
export const SLOT_SIZE = 64 * 1024;

/** Largest entry, in bytes. */
export const MAX_ENTRY_BYTES = 128 * 1024 * 1024;

/** Slots that `bytes` need. */
export function slotsOf(bytes: number): number {
  return Math.ceil(bytes / SLOT_SIZE);
}

/** The pieces of the data file that hold bytes `[offset, offset + length)` of an entry. */
export function* piecesOf(
  entry: CacheEntry,
  offset: number,
  length: number,
): Generator<{ offset: number; at: number; length: number }> {
  let start = 0;
  let at = 0;
  for (const run of entry.runs) {
    const end = start + run.count * SLOT_SIZE;
    if (at < length && offset + at < end) {
      const inside = offset + at - start;
      const take = Math.min(length - at, end - offset - at);
      yield { offset: run.start * SLOT_SIZE + inside, at, length: take };
      at += take;
    }
    start = end;
  }
}

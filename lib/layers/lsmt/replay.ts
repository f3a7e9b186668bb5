/**
 * From entries in the order in which they were written, where later ones hide
 * earlier ones, to a sorted table: the map of a writable layer.
 */

import { FormatError, LimitError } from "../../io/mod.ts";
import { SegmentColumns, type SegmentTable } from "./segment_table.ts";

/**
 * Entries of a writable layer that obd replays, about 45 bytes each. overlaybd
 * stops at 128,000,000 (lsmt/index.h: MAX_LSMT_INDEX_SIZE).
 */
export const MAX_LOG_ENTRIES = 2 ** 24;
/** First sector behind what can be replayed: 512 TiB, as large as layers that obd writes. */
export const MAX_LOG_SECTOR = 2 ** 40;

/** Collects entries and replays them. */
export class EntryLog {
  readonly #columns = new SegmentColumns(0);

  /**
   * Appends one entry; units are sectors, `kind` is a `KIND`.
   *
   * @throws {FormatError} If it lies where no device of ours can have it.
   * @throws {LimitError} If there are too many.
   */
  add(offset: number, length: number, moffset: number, kind: number): void {
    const number = this.#columns.count;
    if (length === 0) return;
    if (offset + length > MAX_LOG_SECTOR) {
      throw new FormatError(
        "LSMT index file",
        "offset",
        `of an entry is ${offset}+${length}, limit is 2^40 sectors`,
      );
    }
    if (number >= MAX_LOG_ENTRIES) {
      throw new LimitError(
        `Cannot replay a writable layer of more than ${MAX_LOG_ENTRIES} entries: commit it first`,
      );
    }
    this.#columns.push(offset, length, moffset, kind, 0);
  }

  /** The map after the last entry. */
  replay(): SegmentTable {
    const { offset, length, moffset, kind, count } = this.#columns;
    const order = byOffset(offset, count);
    const active = new NewestFirst();
    const table = new SegmentColumns(count);
    let next = 0;
    for (let at = 0; next < count || active.top >= 0;) {
      if (active.top < 0) at = offset[order[next]!]!;
      while (next < count && offset[order[next]!]! <= at) {
        active.push(order[next++]!);
      }
      const top = active.top;
      const end = offset[top]! + length[top]!;
      if (end <= at) {
        active.pop();
        continue;
      }
      const stop = next < count ? Math.min(end, offset[order[next]!]!) : end;
      const from = moffset[top]! + (at - offset[top]!);
      table.pushJoined(at, stop - at, from, kind[top]!, 0);
      at = stop;
    }
    return table.finish();
  }
}

/** Positions of entries, ascending by offset; those of one offset as they came. */
function byOffset(offset: Float64Array, count: number): Uint32Array {
  // 40 bits of offset above 24 bits of position: sorted as numbers, see SegmentColumns.sort.
  const keys = new BigUint64Array(count);
  const halves = new Uint32Array(keys.buffer);
  for (let i = 0; i < count; i++) {
    halves[i * 2] = (offset[i]! % 2 ** 8) * 2 ** 24 + i;
    halves[i * 2 + 1] = Math.floor(offset[i]! / 2 ** 8);
  }
  keys.sort();
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[i] = halves[i * 2]! & 0xffffff;
  return order;
}

/** A heap of positions with the largest, the newest entry, on top. */
class NewestFirst {
  readonly #heap: number[] = [];

  /** -1 when empty. */
  get top(): number {
    return this.#heap[0] ?? -1;
  }

  push(value: number): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(value);
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      if (heap[parent]! >= value) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = value;
  }

  pop(): void {
    const heap = this.#heap;
    const value = heap.pop();
    if (value === undefined || heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1]! > heap[child]!) child++;
      if (heap[child]! <= value) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = value;
  }
}

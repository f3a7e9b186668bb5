/**
 * Merges the tables of a stack: the topmost layer wins, entries are cut at the
 * edges of what hides them, and a zeroed entry hides as data does (overlaybd
 * lsmt/index.cpp: merge_indexes).
 *
 * "Upper over lower" is associative, so halves are merged recursively: n rows
 * in k layers cost n·log2(k) steps whatever their sizes. What is merged is only
 * where rows show; what they say is looked up at the end.
 */

import { LimitError } from "../../io/mod.ts";
import { MAX_LAYERS } from "./format.ts";
import { KIND, SegmentColumns, SegmentTable } from "./segment_table.ts";

/**
 * Rows of all layers together that obd merges: 22 bytes each, and up to 64 more
 * while they are merged. overlaybd stops at 128,000,000 merged entries; an image
 * of five million files needs about as many rows.
 */
export const MAX_STACK_ROWS = 16_000_000;

/**
 * Merges layers into one table whose `layer` column is the layer's position.
 *
 * @param tables One per layer, bottom first. Their own `layer` columns are
 * ignored.
 * @throws {LimitError} If there are more than 255 layers or
 * {@linkcode MAX_STACK_ROWS} rows.
 */
export function mergeTables(tables: readonly SegmentTable[]): SegmentTable {
  if (tables.length > MAX_LAYERS) {
    throw new LimitError(
      `Cannot stack ${tables.length} layers: limit is ${MAX_LAYERS}`,
    );
  }
  let rows = 0;
  for (const table of tables) rows += table.count;
  if (rows > MAX_STACK_ROWS) {
    throw new LimitError(
      `Cannot merge ${rows} segments: limit is ${MAX_STACK_ROWS}`,
    );
  }
  if (tables.length === 0) return new SegmentColumns(0).finish();
  return new Merger(tables, rows).merge();
}

/** Pieces that are worth being copied together. */
const RUN = 32;

/** Pieces of rows, ascending and disjoint; where a merge stands between two steps. */
class Pieces {
  /** First device sector of each piece. */
  readonly offset: Float64Array;
  /** Sectors. */
  readonly length: Uint32Array;
  /** The row that it is a piece of, counted over all tables. */
  readonly row: Uint32Array;

  constructor(capacity: number) {
    this.offset = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.row = new Uint32Array(capacity);
  }
}

/**
 * One merge. Steps go to and fro between two sets of columns that are made
 * once: making new ones for each step took more time than filling them. Memory
 * that is never touched costs nothing, so they may be made for the worst case.
 */
class Merger {
  readonly #tables: readonly SegmentTable[];
  /** Rows of all tables below each; one more for the sum. */
  readonly #before: Int32Array;
  readonly #sides: readonly [Pieces, Pieces];

  constructor(tables: readonly SegmentTable[], rows: number) {
    this.#tables = tables;
    this.#before = new Int32Array(tables.length + 1);
    for (const [i, { count }] of tables.entries()) {
      this.#before[i + 1] = this.#before[i]! + count;
    }
    // Each of n ranges cuts at most one other in two: they end as 2n pieces at most.
    this.#sides = [new Pieces(rows * 2), new Pieces(rows * 2)];
  }

  merge(): SegmentTable {
    return this.#tableOf(this.#mergeRange(0, this.#tables.length, 0));
  }

  /**
   * Merges layers `first … limit-1` into their place in one side: twice the
   * rows below them.
   *
   * @returns How many pieces there are.
   */
  #mergeRange(first: number, limit: number, side: 0 | 1): number {
    const at = this.#before[first]! * 2;
    const to = this.#sides[side]!;
    if (limit - first === 1) {
      const { offset, length, count } = this.#tables[first]!;
      to.offset.set(offset.subarray(0, count), at);
      to.length.set(length.subarray(0, count), at);
      const row = this.#before[first]!;
      for (let i = 0; i < count; i++) to.row[at + i] = row + i;
      return count;
    }
    const middle = this.#balancedMiddle(first, limit);
    const other = side === 0 ? 1 : 0;
    const lower = this.#mergeRange(first, middle, other);
    const upper = this.#mergeRange(middle, limit, other);
    const upperAt = this.#before[middle]! * 2;
    return overlay(this.#sides[other]!, at, lower, upperAt, upper, to, at);
  }

  /** Splits a range so that both halves have about as many rows: a big base layer is then copied once. */
  #balancedMiddle(first: number, limit: number): number {
    const before = this.#before;
    const half = (before[first]! + before[limit]!) / 2;
    let middle = first + 1;
    while (
      middle < limit - 1 &&
      (before[middle]! + before[middle + 1]!) / 2 < half
    ) middle++;
    return middle;
  }

  /** The finished columns. */
  #tableOf(count: number): SegmentTable {
    const pieces = this.#sides[0];
    const { row } = pieces;
    const columns = {
      offset: pieces.offset.slice(0, count),
      length: pieces.length.slice(0, count),
      moffset: new Float64Array(count),
      kind: new Uint8Array(count),
      layer: new Uint8Array(count),
      count,
    };
    const { offset, moffset, kind, layer } = columns;
    const before = this.#before;
    let from = 0;
    let to = 0;
    let at = 0;
    let table = this.#tables[0]!;
    for (let i = 0; i < count; i++) {
      const global = row[i]!;
      if (global < from || global >= to) {
        at = this.#layerOf(global);
        table = this.#tables[at]!;
        from = before[at]!;
        to = before[at + 1]!;
      }
      const own = global - from;
      kind[i] = table.kind[own]!;
      layer[i] = at;
      if (kind[i] !== KIND.zeroed) {
        moffset[i] = table.moffset[own]! + (offset[i]! - table.offset[own]!);
      }
    }
    return new SegmentTable(columns);
  }

  /** The layer that a row belongs to. */
  #layerOf(row: number): number {
    const before = this.#before;
    let low = 0;
    let high = this.#tables.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (before[middle]! <= row) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

/**
 * All of the upper pieces, and of the lower ones what shows in their gaps.
 *
 * Longer than other functions on purpose, with the columns in locals: 1,000,000
 * rows in 100 layers pass here seven times. Nothing is joined: neighbours in the
 * result that belong to one layer were neighbours in that layer's table, which
 * is joined already.
 *
 * @returns How many pieces were written to `to`, from `toAt` on.
 */
function overlay(
  from: Pieces,
  lowerAt: number,
  lowerCount: number,
  upperAt: number,
  upperCount: number,
  to: Pieces,
  toAt: number,
): number {
  const { offset: fo, length: fl, row: fr } = from;
  const { offset, length, row } = to;
  const lowerEnd = lowerAt + lowerCount;
  const upperEnd = upperAt + upperCount;
  let out = toAt;
  let l = lowerAt;
  // First sector of the lower piece that is not yet dealt with, and its end.
  let start = l < lowerEnd ? fo[l]! : Infinity;
  let end = l < lowerEnd ? start + fl[l]! : Infinity;
  for (let u = upperAt; u <= upperEnd; u++) {
    const limit = u < upperEnd ? fo[u]! : Infinity;
    while (start < limit) {
      if (end < limit && l + RUN < lowerEnd && fo[l + RUN]! < limit) {
        // Many in a row, as where one layer lies behind the other.
        const first = l;
        l = lastBefore(fo, l + RUN, lowerEnd, limit);
        copy(from, first, l, to, out);
        offset[out] = start;
        length[out] = end - start;
        out += l - first;
        start = fo[l]!;
        end = start + fl[l]!;
      }
      const stop = end < limit ? end : limit;
      offset[out] = start;
      length[out] = stop - start;
      row[out] = fr[l]!;
      out++;
      if (stop < end) {
        start = stop;
        break;
      }
      l++;
      start = l < lowerEnd ? fo[l]! : Infinity;
      end = l < lowerEnd ? start + fl[l]! : Infinity;
    }
    if (u === upperEnd) break;
    if (u + RUN < upperEnd && fo[u + RUN]! < start) {
      const first = u;
      u = lastBefore(fo, u + RUN, upperEnd, start);
      copy(from, first, u, to, out);
      out += u - first;
    }
    const first = fo[u]!;
    const sectors = fl[u]!;
    offset[out] = first;
    length[out] = sectors;
    row[out] = fr[u]!;
    out++;
    const hidden = first + sectors;
    while (start < hidden) {
      if (end > hidden) {
        start = hidden;
        break;
      }
      l++;
      start = l < lowerEnd ? fo[l]! : Infinity;
      end = l < lowerEnd ? start + fl[l]! : Infinity;
    }
  }
  return out - toAt;
}

/** The last of pieces `from … to-1` that starts before a sector, as `from` does. */
function lastBefore(
  offset: Float64Array,
  from: number,
  to: number,
  sector: number,
): number {
  let low = from;
  let high = to - 1;
  while (low < high) {
    const middle = (low + high + 1) >>> 1;
    if (offset[middle]! < sector) low = middle;
    else high = middle - 1;
  }
  return low;
}

function copy(
  from: Pieces,
  first: number,
  limit: number,
  to: Pieces,
  at: number,
): void {
  to.offset.set(from.offset.subarray(first, limit), at);
  to.length.set(from.length.subarray(first, limit), at);
  to.row.set(from.row.subarray(first, limit), at);
}

/**
 * Merges the tables of a stack: the topmost layer wins, entries are cut at the
 * edges of what hides them, and a zeroed entry hides as data does (overlaybd
 * lsmt/index.cpp: merge_indexes).
 *
 * "Upper over lower" is associative, so halves are merged recursively: n rows
 * in k layers cost n·log2(k) steps whatever their sizes.
 */

import { LimitError } from "../../io/mod.ts";
import { MAX_LAYERS } from "./format.ts";
import { KIND, SegmentColumns, SegmentTable } from "./segment_table.ts";

/**
 * Rows of all layers together that obd merges: 18 bytes each. overlaybd stops
 * at 128,000,000 merged entries; an image of five million files needs about as
 * many rows.
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
  const merged = mergeRange(tables, 0, tables.length);
  return trimmed(merged);
}

/** Merges layers `first … limit-1`. */
function mergeRange(
  tables: readonly SegmentTable[],
  first: number,
  limit: number,
): SegmentTable {
  if (limit - first === 1) return relabelled(tables[first]!, first);
  const middle = balancedMiddle(tables, first, limit);
  return overlay(
    mergeRange(tables, middle, limit),
    mergeRange(tables, first, middle),
  );
}

/** Splits a range so that both halves have about as many rows: a big base layer is then copied once. */
function balancedMiddle(
  tables: readonly SegmentTable[],
  first: number,
  limit: number,
): number {
  let total = 0;
  for (let i = first; i < limit; i++) total += tables[i]!.count;
  let middle = first + 1;
  let below = tables[first]!.count;
  while (
    middle < limit - 1 && below + tables[middle]!.count / 2 < total / 2
  ) {
    below += tables[middle++]!.count;
  }
  return middle;
}

/** The same rows as belonging to layer `layer`; shares the other columns. */
function relabelled(table: SegmentTable, layer: number): SegmentTable {
  return new SegmentTable({
    offset: table.offset,
    length: table.length,
    moffset: table.moffset,
    kind: table.kind,
    layer: new Uint8Array(table.count).fill(layer),
    count: table.count,
  });
}

/** Copies a table into columns of the right size. */
function trimmed(table: SegmentTable): SegmentTable {
  const { count } = table;
  if (table.offset.length === count) return table;
  return new SegmentTable({
    offset: table.offset.slice(0, count),
    length: table.length.slice(0, count),
    moffset: table.moffset.slice(0, count),
    kind: table.kind.slice(0, count),
    layer: table.layer.slice(0, count),
    count,
  });
}

/**
 * All of `upper`, and of `lower` what shows in its gaps.
 *
 * Longer than other functions on purpose: with the columns in locals it takes
 * 0.6 of the time that {@linkcode SegmentColumns} needs (1,000,000 rows in 100
 * layers). Nothing is joined: neighbours in the result that belong to one layer
 * were neighbours in that layer's table, which is joined already.
 */
function overlay(upper: SegmentTable, lower: SegmentTable): SegmentTable {
  if (upper.count === 0) return lower;
  if (lower.count === 0) return upper;
  const { offset: uo, length: ul, count: un } = upper;
  const { offset: lo, length: ll, count: ln } = lower;
  const { moffset: um, kind: uk, layer: uy } = upper;
  const { moffset: lm, kind: lk, layer: ly } = lower;
  // An upper row splits at most one lower row in two.
  const capacity = un * 2 + ln;
  const offset = new Float64Array(capacity);
  const length = new Uint32Array(capacity);
  const moffset = new Float64Array(capacity);
  const kind = new Uint8Array(capacity);
  const layer = new Uint8Array(capacity);
  let count = 0;
  let l = 0; // row of lower
  let from = lo[0]!; // its first sector that is not yet dealt with
  for (let u = 0; u <= un; u++) {
    const start = u < un ? uo[u]! : Infinity;
    while (l < ln && from < start) {
      const end = lo[l]! + ll[l]!;
      const stop = end < start ? end : start;
      offset[count] = from;
      length[count] = stop - from;
      kind[count] = lk[l]!;
      moffset[count] = lk[l] === KIND.zeroed ? 0 : lm[l]! + (from - lo[l]!);
      layer[count] = ly[l]!;
      count++;
      from = stop;
      if (stop === end && ++l < ln) from = lo[l]!;
    }
    if (u === un) break;
    offset[count] = start;
    length[count] = ul[u]!;
    moffset[count] = um[u]!;
    kind[count] = uk[u]!;
    layer[count] = uy[u]!;
    count++;
    const hidden = start + ul[u]!;
    while (l < ln && from < hidden) {
      if (lo[l]! + ll[l]! > hidden) from = hidden;
      else if (++l < ln) from = lo[l]!;
    }
  }
  return new SegmentTable({ offset, length, moffset, kind, layer, count });
}

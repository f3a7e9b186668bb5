/**
 * Writes what a map shows into a native layer: the same ranges of the device,
 * with their bytes stored instead of pointed to.
 */

import {
  type ByteSource,
  CancelledError,
  isZero,
  roundDown,
  roundUp,
} from "../io/mod.ts";
import {
  KIND,
  type LayerWriter,
  MAX_LAYER_ENTRIES,
  MAX_SEGMENT_SECTORS,
  type SegmentTable,
} from "./lsmt/mod.ts";

const SECTOR = 512;
/** Unit in which zeros are told from data, and data is stored: the file system's block. */
const BLOCK = 4096;
/** Bytes read at once. */
const PIECE = 512 * 1024;
/** What {@linkcode materialize} works on. */
export interface MaterializeOptions {
  signal?: AbortSignal | undefined;
  /** Called with the bytes of the device that were dealt with. */
  onProgress?: ((bytes: number) => void) | undefined;
  /** Entries of one layer at most; default what readers take. For tests. */
  maxEntries?: number | undefined;
}

/** A stretch of whole blocks of the device; bytes, `end` exclusive. */
export interface BlockRun {
  start: number;
  end: number;
  /** Whether it is zeros by the map alone. */
  zeroed: boolean;
}

/**
 * The whole blocks that a table maps, ascending and joined. A block of which
 * only some sectors are mapped counts as data: readers of native layers get
 * whole blocks, which lie on the blocks of the compressed container.
 *
 * @param size Bytes of the device; the last block may be cut there.
 */
export function* blockRuns(
  table: SegmentTable,
  size: number,
): Generator<BlockRun> {
  let run: BlockRun | undefined;
  for (let row = 0; row < table.count; row++) {
    const first = table.offset[row]! * SECTOR;
    let start = roundDown(first, BLOCK);
    const end = Math.min(
      roundUp(first + table.length[row]! * SECTOR, BLOCK),
      size,
    );
    const zeroed = table.kind[row] === KIND.zeroed;
    if (run) {
      // Of a block that two rows share, data takes it.
      if (zeroed && !run.zeroed) start = Math.max(start, run.end);
      if (start >= end) continue;
      if (run.zeroed === zeroed && start <= run.end) {
        run.end = Math.max(run.end, end);
        continue;
      }
      if (!zeroed) run.end = Math.min(run.end, start);
      if (run.end > run.start) yield run;
    }
    if (start < end) run = { start, end, zeroed };
  }
  if (run) yield run;
}

/** Where one layer of several begins and ends on the device; bytes, `end` exclusive. */
export interface LayerRange {
  start: number;
  end: number;
}

/**
 * Cuts a device into ranges whose runs fit into one layer each: one range as a
 * rule.
 *
 * @param maxEntries Entries of one layer at most.
 */
export function layerRanges(
  runs: Iterable<BlockRun>,
  size: number,
  maxEntries: number = MAX_LAYER_ENTRIES,
): LayerRange[] {
  const ranges: LayerRange[] = [];
  let start = 0;
  let entries = 0;
  for (const run of runs) {
    const need = entriesOf(run);
    if (entries > 0 && entries + need > maxEntries) {
      ranges.push({ start, end: run.start });
      start = run.start;
      entries = 0;
    }
    entries += need;
  }
  return [...ranges, { start, end: size }];
}

/**
 * The same runs in fewer pieces, for a layer with nothing below it: zeros and
 * what nobody maps, up to `gap` bytes of it, become part of the data around
 * them.
 */
export function* joinedRuns(
  runs: Iterable<BlockRun>,
  gap: number,
): Generator<BlockRun> {
  let joined: BlockRun | undefined;
  for (const { start, end } of runs) {
    if (joined && start - joined.end <= gap) {
      joined.end = end;
      continue;
    }
    if (joined) yield joined;
    joined = { start, end, zeroed: false };
  }
  if (joined) yield joined;
}

/** Entries of an index that say one run. */
export function entriesOf({ start, end }: BlockRun): number {
  return Math.ceil((end - start) / (MAX_SEGMENT_SECTORS * SECTOR));
}

/**
 * Stores what runs cover. Blocks that are all zero are mapped as zeroed entries
 * and take no space: they stay mapped, so that whoever builds on top places its
 * own blocks as on the original. Where entries get scarce zeros are stored, as
 * leaving them out splits runs.
 *
 * @param device Shows the content; borrowed.
 * @param runs Ascending, disjoint; gone through once.
 * @param entries What {@linkcode entriesOf} gives for all of them.
 * @param writer A native layer of the device's size; the caller finishes it.
 */
export async function materialize(
  device: ByteSource,
  runs: Iterable<BlockRun>,
  entries: number,
  writer: LayerWriter,
  options: MaterializeOptions = {},
): Promise<void> {
  const { signal, onProgress, maxEntries = MAX_LAYER_ENTRIES } = options;
  const buffer = new Uint8Array(PIECE);
  let left = entries;
  // A hole adds its own entry, the one behind it, and a cut at 16383 sectors in each.
  const hasRoom = () => writer.entryBound + left + 4 <= maxEntries;
  for (const run of runs) {
    const { start, end, zeroed } = run;
    if (zeroed) {
      writer.zero(start, end - start);
      left -= entriesOf(run);
      onProgress?.(end - start);
      continue;
    }
    for (let at = start; at < end; at += PIECE) {
      if (signal?.aborted) throw new CancelledError();
      const piece = buffer.subarray(0, Math.min(PIECE, end - at));
      await device.pread(piece, at, { signal });
      await store(piece, at, writer, hasRoom);
      onProgress?.(piece.length);
    }
    left -= entriesOf(run);
  }
}

async function store(
  piece: Uint8Array,
  offset: number,
  writer: LayerWriter,
  hasRoom: () => boolean,
): Promise<void> {
  const isHole = (at: number) =>
    isZero(piece.subarray(at, at + BLOCK)) && hasRoom();
  let start = 0;
  while (start < piece.length) {
    const zeros = isHole(start);
    let end = start + BLOCK;
    while (end < piece.length && isHole(end) === zeros) end += BLOCK;
    end = Math.min(end, piece.length);
    if (zeros) writer.zero(offset + start, end - start);
    else await writer.write(offset + start, piece.subarray(start, end));
    start = end;
  }
}

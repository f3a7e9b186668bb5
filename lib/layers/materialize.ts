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
import { KIND, type LayerWriter, type SegmentTable } from "./lsmt/mod.ts";

const SECTOR = 512;
/** Unit in which zeros are told from data, and data is stored: the file system's block. */
const BLOCK = 4096;
/** Bytes read at once. */
const PIECE = 512 * 1024;
/**
 * Entries from which on zero blocks are stored like data: leaving them out
 * splits runs, and readers take 1,000,000 entries.
 */
const SPARSE_ENTRIES_MAX = 900_000;

/** What {@linkcode materialize} works on. */
export interface MaterializeOptions {
  signal?: AbortSignal | undefined;
  /** Called with the bytes of the device that were dealt with. */
  onProgress?: ((bytes: number) => void) | undefined;
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

/**
 * Stores everything that `table` maps, in the order of the device. Blocks that
 * are all zero are mapped as zeroed entries and take no space: they stay mapped,
 * so that whoever builds on top places its own blocks as on the original.
 *
 * @param device Shows the table's content; borrowed.
 * @param writer A native layer of the device's size; the caller finishes it.
 */
export async function materialize(
  device: ByteSource,
  table: SegmentTable,
  writer: LayerWriter,
  options: MaterializeOptions = {},
): Promise<void> {
  const buffer = new Uint8Array(PIECE);
  for (const { start, end, zeroed } of blockRuns(table, device.size)) {
    if (zeroed) {
      writer.zero(start, end - start);
      options.onProgress?.(end - start);
      continue;
    }
    for (let at = start; at < end; at += PIECE) {
      if (options.signal?.aborted) throw new CancelledError();
      const piece = buffer.subarray(0, Math.min(PIECE, end - at));
      await device.pread(piece, at, { signal: options.signal });
      await store(piece, at, writer);
      options.onProgress?.(piece.length);
    }
  }
}

async function store(
  piece: Uint8Array,
  offset: number,
  writer: LayerWriter,
): Promise<void> {
  const isHole = (at: number) =>
    writer.entryBound < SPARSE_ENTRIES_MAX &&
    isZero(piece.subarray(at, at + BLOCK));
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

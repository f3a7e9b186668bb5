/**
 * The merged device of a stack of layers.
 *
 * ```
 * device offset ── find row ──┬── hole, zeroed → zeros
 *                             ├── data  → layer's own blob (LSMT file)
 *                             └── target → layer's uncompressed original tar
 * ```
 */

import {
  type ByteSource,
  CancelledError,
  checkRange,
  type Extent,
  type ReadOptions,
  type SourceDescription,
} from "../../io/mod.ts";
import { SECTOR } from "./format.ts";
import { mergeTables } from "./merge.ts";
import { KIND, type MappedRanges, type SegmentTable } from "./segment_table.ts";

/** One layer of a stack. */
export interface StackLayer {
  table: SegmentTable;
  /** The layer's LSMT file, peeled; owned by the stack. */
  data: ByteSource;
  /** What rows of kind target map: the uncompressed tar; owned by the stack. */
  target?: ByteSource | undefined;
}

/** A piece of a device as a layer stores it; bytes. */
export interface Origin {
  /** Position in the stack, 0 = bottom. */
  layer: number;
  /** Whether it is in the layer's target (the uncompressed tar), else in its own LSMT file. */
  isTarget: boolean;
  /** That file; borrowed. */
  source: ByteSource;
  /** In it. */
  offset: number;
  length: number;
}

/**
 * Inner reads of one request that may be under way at once. A request over
 * thousands of tiny files is served in batches of this many.
 */
const MAX_PARALLEL_READS = 256;

/** Layers merged into one device; read-only. Any offset and length is allowed, not only sectors. */
export class LsmtSource implements ByteSource, MappedRanges {
  readonly size: number;
  /** The merged index; its `layer` column is the position in the list of layers. */
  readonly table: SegmentTable;
  readonly #layers: readonly StackLayer[];
  /** Index layer * 2 + kind, for kinds data and target. */
  readonly #sources: (ByteSource | undefined)[];

  /**
   * @param layers Bottom first, at most 255. Owned: disposed with this source.
   * @param size Bytes of the device: the topmost virtual size that is not 0.
   * @throws {LimitError} If the stack is too large to merge.
   * @throws {TypeError} If a layer has target rows but no target.
   */
  constructor(layers: readonly StackLayer[], size: number) {
    this.size = size;
    this.table = mergeTables(layers.map((layer) => layer.table));
    this.#layers = layers;
    this.#sources = layers.flatMap((layer) => [layer.data, layer.target]);
    for (let row = 0; row < this.table.count; row++) {
      const kind = this.table.kind[row]!;
      const layer = this.table.layer[row]!;
      if (kind === KIND.target && layers[layer]!.target === undefined) {
        throw new TypeError(`Layer ${layer} maps a target but has none`);
      }
    }
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    const { table } = this;
    const end = offset + dst.length;
    let row = table.find(Math.floor(offset / SECTOR));
    let at = offset;
    let reads: Promise<void>[] = [];
    try {
      while (at < end) {
        const stop = this.#pieceEnd(row, at, end);
        const piece = at === offset && stop === end
          ? dst
          : dst.subarray(at - offset, stop - offset);
        if (this.#isData(row, at)) {
          // The last piece needs no list: one await less for the common case.
          const read = this.#readPiece(piece, row, at, options);
          if (stop === end && reads.length === 0) return await read;
          reads.push(read);
          if (reads.length >= MAX_PARALLEL_READS) {
            const batch = reads;
            reads = [];
            await settle(batch);
            if (options?.signal?.aborted) throw new CancelledError();
          }
        } else piece.fill(0);
        if (this.#isMapped(row, at)) row++;
        at = stop;
      }
    } catch (error) {
      // Reads under way still write to dst, which becomes the caller's again.
      await Promise.allSettled(reads);
      throw error;
    }
    if (reads.length > 0) await settle(reads);
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    const end = offset + dst.length;
    let row = this.table.find(Math.floor(offset / SECTOR));
    let at = offset;
    while (at < end) {
      const stop = this.#pieceEnd(row, at, end);
      const piece = at === offset && stop === end
        ? dst
        : dst.subarray(at - offset, stop - offset);
      if (!this.#isData(row, at)) piece.fill(0);
      else if (!this.#readPieceNow(piece, row, at)) return false;
      if (this.#isMapped(row, at)) row++;
      at = stop;
    }
    return true;
  }

  /** Zeroed ranges are holes too: they own no storage. */
  *extents(offset: number, length: number): Iterable<Extent> {
    checkRange(this.size, offset, length);
    const end = offset + length;
    let row = this.table.find(Math.floor(offset / SECTOR));
    let at = offset;
    let start = offset;
    let data = at < end && this.#isData(row, at);
    while (at < end) {
      const isData = this.#isData(row, at);
      if (isData !== data) {
        yield extent(start, at, data);
        start = at;
        data = isData;
      }
      const stop = this.#pieceEnd(row, at, end);
      if (this.#isMapped(row, at)) row++;
      at = stop;
    }
    if (start < end) yield extent(start, end, data);
  }

  /** A layer's own LSMT file, borrowed; undefined if there is no such layer. */
  layerData(layer: number): ByteSource | undefined {
    return this.#layers[layer]?.data;
  }

  /** Where a range's bytes are stored, in order; what reads as zeros is left out. */
  *origins(offset: number, length: number): Iterable<Origin> {
    checkRange(this.size, offset, length);
    const end = offset + length;
    let row = this.table.find(Math.floor(offset / SECTOR));
    for (let at = offset; at < end;) {
      const stop = this.#pieceEnd(row, at, end);
      if (this.#isData(row, at)) {
        yield {
          layer: this.table.layer[row]!,
          isTarget: this.table.kind[row] === KIND.target,
          source: this.#source(row),
          offset: this.#position(row, at),
          length: stop - at,
        };
      }
      if (this.#isMapped(row, at)) row++;
      at = stop;
    }
  }

  highestMapped(): number {
    return this.table.highestMapped();
  }

  nextUnmapped(offset: number): number {
    return this.table.nextUnmapped(offset);
  }

  isMapped(offset: number, length: number): boolean {
    return this.table.isMapped(offset, length);
  }

  describe(): SourceDescription {
    const inner = this.#layers.flatMap((layer) =>
      [layer.data, layer.target].flatMap((s) => s?.describe?.() ?? [])
    );
    return {
      kind: "lsmt",
      detail: {
        size: this.size,
        layers: this.#layers.length,
        segments: this.table.count,
      },
      inner,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ends = this.#layers.toReversed().flatMap((layer) =>
      [layer.target, layer.data].flatMap((s) => s ? [s] : [])
    ).map((source) => source[Symbol.asyncDispose]());
    const failed = (await Promise.allSettled(ends)).find((r) =>
      r.status === "rejected"
    );
    if (failed) throw failed.reason;
  }

  /** Whether `row` covers byte `at`; else `at` lies in the hole before it. */
  #isMapped(row: number, at: number): boolean {
    return row < this.table.count && this.table.offset[row]! * SECTOR <= at;
  }

  #isData(row: number, at: number): boolean {
    return this.#isMapped(row, at) && this.table.kind[row] !== KIND.zeroed;
  }

  /** End of the piece of one row or one hole that starts at `at`. */
  #pieceEnd(row: number, at: number, end: number): number {
    const { table } = this;
    if (row >= table.count) return end;
    const start = table.offset[row]! * SECTOR;
    const stop = start <= at ? start + table.length[row]! * SECTOR : start;
    return stop < end ? stop : end;
  }

  #source(row: number): ByteSource {
    return this
      .#sources[this.table.layer[row]! * 2 + this.table.kind[row]!]!;
  }

  /** Byte of the mapped source that device byte `at` of `row` comes from. */
  #position(row: number, at: number): number {
    const { table } = this;
    return table.moffset[row]! * SECTOR + (at - table.offset[row]! * SECTOR);
  }

  #readPiece(
    piece: Uint8Array,
    row: number,
    at: number,
    options: ReadOptions | undefined,
  ): Promise<void> {
    const source = this.#source(row);
    const position = this.#position(row, at);
    const stored = storedPart(piece, position, source.size);
    if (stored === undefined) return Promise.resolve();
    return source.pread(stored, position, options);
  }

  #readPieceNow(piece: Uint8Array, row: number, at: number): boolean {
    const source = this.#source(row);
    if (!source.preadNow) return false;
    const position = this.#position(row, at);
    const stored = storedPart(piece, position, source.size);
    return stored === undefined || source.preadNow(stored, position);
  }
}

/**
 * What a source of `size` bytes holds of a piece; the rest is zero-filled, as
 * overlaybd does when a target ends (lsmt/file.cpp: LSMTReadOnlyFile::pread).
 */
function storedPart(
  piece: Uint8Array,
  position: number,
  size: number,
): Uint8Array | undefined {
  if (position + piece.length <= size) return piece;
  if (position >= size) {
    piece.fill(0);
    return undefined;
  }
  piece.fill(0, size - position);
  return piece.subarray(0, size - position);
}

function extent(start: number, end: number, data: boolean): Extent {
  return { offset: start, length: end - start, kind: data ? "data" : "hole" };
}

/** Waits for ALL reads, then rejects with the first failure in request order. */
async function settle(reads: Promise<void>[]): Promise<void> {
  if (reads.length === 1) return await reads[0];
  for (const result of await Promise.allSettled(reads)) {
    if (result.status === "rejected") throw result.reason;
  }
}

/**
 * The virtual size of a stack: that of the highest layer which has one.
 *
 * @param layers Bottom first.
 * @returns Bytes; 0 if no layer has one.
 */
export function stackVirtualSize(
  layers: readonly { virtualSize: number }[],
): number {
  return layers.findLast((layer) => layer.virtualSize > 0)?.virtualSize ?? 0;
}

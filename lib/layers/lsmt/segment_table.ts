/**
 * A sorted, non-overlapping block map in parallel typed arrays: an LSMT index
 * in memory, of one layer or of a merged stack.
 *
 * Columns of plain numbers keep a table of a million entries at 22 MB and a
 * lookup at about 100 ns; an array of objects costs several times of both.
 */

import { invariant } from "../../io/mod.ts";
import { SECTOR } from "./format.ts";

/** What a segment's bytes come from. */
export const KIND = {
  /** The layer's own data area. */
  data: 0,
  /** The layer's target: the uncompressed original tar (warp layers). */
  target: 1,
  /** Zeros, with nothing stored; hides lower layers. */
  zeroed: 2,
} as const;

/** Longest run that one table row holds, in sectors (1 TiB). */
const MAX_ROW_SECTORS = 2 ** 31;

/** Which byte ranges of a device any layer maps; what the ext4 builder asks of the layers below. */
export interface MappedRanges {
  /** Exclusive end of the highest mapped range in bytes; 0 when nothing is mapped. */
  highestMapped(): number;
  /** Whether any sector of the range is mapped, as data or as zeros. Bytes. */
  isMapped(offset: number, length: number): boolean;
  /** First byte at or above `offset` that nothing maps. */
  nextUnmapped(offset: number): number;
}

/** The columns of a table; the first `count` places of each are used. */
interface Columns {
  offset: Float64Array;
  length: Uint32Array;
  moffset: Float64Array;
  kind: Uint8Array;
  layer: Uint8Array;
  count: number;
}

/**
 * Rows `0 … count-1`, ascending by `offset` without overlap. The columns may be
 * longer than `count`; nobody but the builder writes to them.
 */
export class SegmentTable implements MappedRanges {
  /** First device sector of each row. */
  readonly offset: Float64Array;
  /** Sectors of each row. Joined rows may exceed the 14 bits of an entry. */
  readonly length: Uint32Array;
  /** First sector in the mapped file; 0 for zeroed rows. */
  readonly moffset: Float64Array;
  /** A {@linkcode KIND} per row. */
  readonly kind: Uint8Array;
  /** Which layer of the stack the row belongs to, 0 = bottom. */
  readonly layer: Uint8Array;
  readonly count: number;

  /** @param columns Taken over, not copied. */
  constructor(columns: Columns) {
    this.offset = columns.offset;
    this.length = columns.length;
    this.moffset = columns.moffset;
    this.kind = columns.kind;
    this.layer = columns.layer;
    this.count = columns.count;
  }

  /**
   * Binary search.
   *
   * @param sector A device sector.
   * @returns The first row that ends behind `sector`: it holds the sector, or
   * is the next one above it; `count` if there is none.
   */
  find(sector: number): number {
    const offset = this.offset;
    let low = 0;
    let high = this.count;
    while (low < high) {
      const mid = (low + high) >>> 1;
      if (offset[mid]! <= sector) low = mid + 1;
      else high = mid;
    }
    // Row low-1 is the last that starts at or before the sector.
    return low > 0 && offset[low - 1]! + this.length[low - 1]! > sector
      ? low - 1
      : low;
  }

  /** First device sector behind the last row. */
  get endSector(): number {
    const last = this.count - 1;
    return last < 0 ? 0 : this.offset[last]! + this.length[last]!;
  }

  highestMapped(): number {
    return this.endSector * SECTOR;
  }

  isMapped(offset: number, length: number): boolean {
    if (length <= 0) return false;
    const row = this.find(Math.floor(offset / SECTOR));
    return row < this.count && this.offset[row]! * SECTOR < offset + length;
  }

  nextUnmapped(offset: number): number {
    let sector = Math.floor(offset / SECTOR);
    for (let row = this.find(sector); row < this.count; row++) {
      if (this.offset[row]! > sector) break;
      sector = this.offset[row]! + this.length[row]!;
    }
    return Math.max(offset, sector * SECTOR);
  }

  /** Bytes that data and target rows map; zeroed rows not counted. */
  get mappedBytes(): number {
    let sectors = 0;
    for (let row = 0; row < this.count; row++) {
      if (this.kind[row] !== KIND.zeroed) sectors += this.length[row]!;
    }
    return sectors * SECTOR;
  }
}

/** The growing form of a {@linkcode SegmentTable}. */
export class SegmentColumns implements Columns {
  offset: Float64Array;
  length: Uint32Array;
  moffset: Float64Array;
  kind: Uint8Array;
  layer: Uint8Array;
  count = 0;

  /** @param capacity Rows to make room for; more are made on demand. */
  constructor(capacity: number) {
    this.offset = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.moffset = new Float64Array(capacity);
    this.kind = new Uint8Array(capacity);
    this.layer = new Uint8Array(capacity);
  }

  /** Appends a row as it is; several, where one cannot say it. */
  push(
    offset: number,
    length: number,
    moffset: number,
    kind: number,
    layer: number,
  ): void {
    while (length > MAX_ROW_SECTORS) {
      this.push(offset, MAX_ROW_SECTORS, moffset, kind, layer);
      offset += MAX_ROW_SECTORS;
      if (kind !== KIND.zeroed) moffset += MAX_ROW_SECTORS;
      length -= MAX_ROW_SECTORS;
    }
    if (this.count === this.offset.length) this.#grow();
    const row = this.count++;
    this.offset[row] = offset;
    this.length[row] = length;
    this.moffset[row] = moffset;
    this.kind[row] = kind;
    this.layer[row] = layer;
  }

  /** Appends a row, or lengthens the last one if that says the same. */
  pushJoined(
    offset: number,
    length: number,
    moffset: number,
    kind: number,
    layer: number,
  ): void {
    const last = this.count - 1;
    if (last >= 0) {
      const before = this.length[last]!;
      if (
        this.offset[last]! + before === offset &&
        this.kind[last] === kind && this.layer[last] === layer &&
        (kind === KIND.zeroed || this.moffset[last]! + before === moffset) &&
        before + length <= MAX_ROW_SECTORS
      ) {
        this.length[last] = before + length;
        return;
      }
    }
    this.push(offset, length, kind === KIND.zeroed ? 0 : moffset, kind, layer);
  }

  /** The finished table; gives spare room back. The columns must not be used afterwards. */
  finish(): SegmentTable {
    if (this.count < this.offset.length) this.#resize(this.count);
    return new SegmentTable(this);
  }

  /**
   * Orders the rows by offset. The result does not depend on the order that
   * they came in as long as no two rows overlap, which the caller checks next.
   */
  sort(): void {
    let sorted = true;
    for (let row = 1; row < this.count && sorted; row++) {
      sorted = this.offset[row - 1]! <= this.offset[row]!;
    }
    if (sorted) return;
    // One u64 key per row: 40 bits of offset above 24 bits of row number. The
    // typed array's own numeric sort is 20 times faster than a comparator, and
    // writing the halves as u32 spares a BigInt per row.
    invariant(this.count <= 2 ** 24, "too many rows to sort");
    const keys = new BigUint64Array(this.count);
    const halves = new Uint32Array(keys.buffer);
    for (let row = 0; row < this.count; row++) {
      const offset = this.offset[row]!;
      invariant(offset < 2 ** 40, "segment offset beyond 512 TiB");
      halves[row * 2] = ((offset % 2 ** 8) * 2 ** 24) + row;
      halves[row * 2 + 1] = Math.floor(offset / 2 ** 8);
    }
    keys.sort();
    const order = new Uint32Array(this.count);
    for (let i = 0; i < this.count; i++) order[i] = halves[i * 2]! & 0xffffff;
    this.offset = permute(this.offset, order);
    this.length = permute(this.length, order);
    this.moffset = permute(this.moffset, order);
    this.kind = permute(this.kind, order);
    this.layer = permute(this.layer, order);
  }

  #grow(): void {
    this.#resize(Math.max(64, this.count * 2));
  }

  #resize(capacity: number): void {
    this.offset = resized(this.offset, capacity);
    this.length = resized(this.length, capacity);
    this.moffset = resized(this.moffset, capacity);
    this.kind = resized(this.kind, capacity);
    this.layer = resized(this.layer, capacity);
  }
}

type Column = Float64Array | Uint32Array | Uint8Array;

function resized<T extends Column>(column: T, capacity: number): T {
  const make = column.constructor as new (length: number) => T;
  const grown = new make(capacity);
  grown.set(column.subarray(0, Math.min(capacity, column.length)));
  return grown;
}

function permute<T extends Column>(column: T, order: Uint32Array): T {
  const make = column.constructor as new (length: number) => T;
  const out = new make(order.length);
  for (let i = 0; i < order.length; i++) out[i] = column[order[i]!]!;
  return out;
}

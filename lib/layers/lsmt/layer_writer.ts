/**
 * Writes one sealed LSMT file: header, data in the order it comes, then the
 * sorted index and the trailer. Nothing is buffered but the index, 22 bytes for
 * each run, so a layer of any size is streamed.
 */

import { type ByteSink, invariant, LimitError, viewOf } from "../../io/mod.ts";
import {
  ENTRY_SIZE,
  FLAG,
  type HeaderTrailer,
  HT,
  MAX_LAYER_ENTRIES,
  MAX_SEGMENT_SECTORS,
  NULL_UUID,
  SECTOR,
  writeHeaderTrailer,
  writePadding,
  writeSegment,
} from "./format.ts";
import { KIND, SegmentColumns, type SegmentTable } from "./segment_table.ts";

/** Largest device that is written, in bytes: 512 TiB. */
export const MAX_VIRTUAL_SIZE = 2 ** 49;
/** Padded indexes end on this many entries (4096 bytes), as overlaybd's commit does. */
const INDEX_UNIT = HT.SIZE / ENTRY_SIZE;

/** What a layer says about itself. */
export interface LayerFields {
  /** Bytes of the device, a multiple of 512. */
  virtualSize: number;
  /** Upper-case UUID text; default the null UUID. */
  uuid?: string | undefined;
  parentUuid?: string | undefined;
  /** At most 256 bytes of UTF-8. */
  userTag?: string | undefined;
}

/** What was written. */
export interface LayerSummary {
  /** Bytes of the LSMT file. */
  size: number;
  /** Entries of the index, without padding. */
  entryCount: number;
  /** Bytes of the data area. */
  dataSize: number;
}

/**
 * One layer in the making. The sink gets the bytes in order and stays open.
 * Offsets and lengths are bytes of the device, multiples of 512; ranges may
 * come in any order but must not overlap.
 */
export class LayerWriter {
  readonly #sink: ByteSink;
  readonly #fields: LayerFields;
  readonly #warp: boolean;
  readonly #columns = new SegmentColumns(0);
  #sectors = 0;
  #position = HT.SIZE;

  private constructor(sink: ByteSink, fields: LayerFields, warp: boolean) {
    this.#sink = sink;
    this.#fields = fields;
    this.#warp = warp;
  }

  /**
   * Writes the header.
   *
   * @param kind A `"warp"` layer may map its target; see {@linkcode LayerWriter.map}.
   * @throws {RangeError} If the virtual size is not a multiple of 512, or over
   * {@linkcode MAX_VIRTUAL_SIZE}.
   */
  static async start(
    sink: ByteSink,
    kind: "native" | "warp",
    fields: LayerFields,
  ): Promise<LayerWriter> {
    const { virtualSize } = fields;
    if (
      virtualSize % SECTOR !== 0 || virtualSize < 0 ||
      virtualSize > MAX_VIRTUAL_SIZE
    ) {
      throw new RangeError(
        `Cannot write layer of a ${virtualSize}-byte device: not a multiple of 512 up to 2^49`,
      );
    }
    const writer = new LayerWriter(sink, fields, kind === "warp");
    const flags = FLAG.header | FLAG.data | FLAG.sealed;
    // A committed header knows no index; only the trailer does.
    await sink.write(
      writeHeaderTrailer(writer.#headerTrailer(flags, 0, 0)),
    );
    return writer;
  }

  /** Upper bound of the entries that the index would have now. */
  get entryBound(): number {
    return this.#columns.count +
      Math.floor(this.#sectors / MAX_SEGMENT_SECTORS);
  }

  /** Stores content; `bytes` belong to the writer until the promise settles. */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (bytes.length === 0) return;
    this.#add(offset, bytes.length, this.#position, KIND.data);
    this.#position += bytes.length;
    await this.#sink.write(bytes);
  }

  /** Makes a range read as zeros, whatever the layers below hold. */
  zero(offset: number, length: number): void {
    if (length > 0) this.#add(offset, length, 0, KIND.zeroed);
  }

  /**
   * Maps a range to the target (warp layers only).
   *
   * @param targetOffset Byte of the uncompressed target, a multiple of 512.
   */
  map(offset: number, length: number, targetOffset: number): void {
    invariant(this.#warp, "a native layer has no target");
    if (length > 0) this.#add(offset, length, targetOffset, KIND.target);
  }

  /**
   * Writes index and trailer.
   *
   * @throws {LimitError} If the layer has more than 1,000,000 entries: readers
   * refuse it.
   * @throws {TypeError} If ranges overlap, or if a warp layer has no entry of
   * its own: readers would take its target's sectors for its own.
   */
  async finish(): Promise<LayerSummary> {
    const table = sortedTable(this.#columns);
    let own = 0;
    for (let row = 0; row < table.count; row++) {
      if (table.kind[row] !== KIND.target) own++;
    }
    invariant(!this.#warp || own > 0, "a warp layer needs an entry of its own");
    const entryCount = countEntries(table);
    if (entryCount > MAX_LAYER_ENTRIES) {
      throw new LimitError(
        `Cannot write layer of ${entryCount} segments: limit is ${MAX_LAYER_ENTRIES}`,
      );
    }
    const indexOffset = this.#position;
    const indexCount = this.#warp ? entryCount : paddedCount(entryCount);
    // Native readers refuse zeroed entries outside the data area; its end is in.
    const zeroedAt = this.#warp ? 0 : indexOffset / SECTOR;
    for (const piece of encodeIndex(table, zeroedAt, indexCount)) {
      await this.#sink.write(piece);
    }
    const flags = FLAG.data | FLAG.sealed;
    await this.#sink.write(
      writeHeaderTrailer(this.#headerTrailer(flags, indexOffset, indexCount)),
    );
    return {
      size: indexOffset + indexCount * ENTRY_SIZE + HT.SIZE,
      entryCount,
      dataSize: indexOffset - HT.SIZE,
    };
  }

  #add(
    offset: number,
    length: number,
    position: number,
    kind: number,
  ): void {
    const bad = offset < 0 || offset % SECTOR !== 0 || length % SECTOR !== 0 ||
      position < 0 || position % SECTOR !== 0 ||
      position + length > Number.MAX_SAFE_INTEGER;
    if (bad || offset + length > this.#fields.virtualSize) {
      throw new RangeError(
        `Cannot map ${length} bytes at ${offset} to ${position}: ` +
          (bad ? "not whole sectors" : "beyond the end of the device"),
      );
    }
    this.#sectors += length / SECTOR;
    this.#columns.pushJoined(
      offset / SECTOR,
      length / SECTOR,
      position / SECTOR,
      kind,
      0,
    );
  }

  #headerTrailer(
    flags: number,
    indexOffset: number,
    indexCount: number,
  ): HeaderTrailer {
    return {
      flags,
      indexOffset,
      indexCount,
      virtualSize: this.#fields.virtualSize,
      uuid: this.#fields.uuid ?? NULL_UUID,
      parentUuid: this.#fields.parentUuid ?? NULL_UUID,
      userTag: this.#fields.userTag ?? "",
    };
  }
}

/**
 * Sorts and joins rows.
 *
 * @throws {TypeError} If two of them overlap.
 */
export function sortedTable(columns: SegmentColumns): SegmentTable {
  columns.sort();
  const joined = new SegmentColumns(columns.count);
  let end = 0;
  for (let row = 0; row < columns.count; row++) {
    const offset = columns.offset[row]!;
    invariant(offset >= end, `layer maps sector ${offset} twice`);
    end = offset + columns.length[row]!;
    joined.pushJoined(
      offset,
      columns.length[row]!,
      columns.moffset[row]!,
      columns.kind[row]!,
      columns.layer[row]!,
    );
  }
  return joined.finish();
}

/** Entries that a table's rows are split into. */
export function countEntries(table: SegmentTable): number {
  let count = 0;
  for (let row = 0; row < table.count; row++) {
    count += Math.ceil(table.length[row]! / MAX_SEGMENT_SECTORS);
  }
  return count;
}

/** Padding counts against readers' limit, so the largest layers go without. */
function paddedCount(count: number): number {
  const padded = Math.ceil(count / INDEX_UNIT) * INDEX_UNIT;
  return padded <= MAX_LAYER_ENTRIES ? padded : count;
}

/**
 * The index in pieces of 64 KiB; each is valid until the next is asked for.
 *
 * @param zeroedAt The moffset of zeroed entries.
 * @param count Entries, padding included.
 */
function* encodeIndex(
  table: SegmentTable,
  zeroedAt: number,
  count: number,
): Generator<Uint8Array> {
  const buffer = new Uint8Array(65536);
  const view = viewOf(buffer);
  let at = 0;
  let written = 0;
  for (let row = 0; row < table.count; row++) {
    const kind = table.kind[row]!;
    const moffset = table.moffset[row]!;
    const length = table.length[row]!;
    for (let done = 0; done < length; done += MAX_SEGMENT_SECTORS) {
      writeSegment(view, at, {
        offset: table.offset[row]! + done,
        length: Math.min(length - done, MAX_SEGMENT_SECTORS),
        moffset: kind === KIND.zeroed ? zeroedAt : moffset + done,
        zeroed: kind === KIND.zeroed,
        tag: kind === KIND.target ? 1 : 0,
      });
      at += ENTRY_SIZE;
      written++;
      if (at === buffer.length) {
        yield buffer;
        at = 0;
      }
    }
  }
  for (; written < count; written++) {
    writePadding(view, at);
    at += ENTRY_SIZE;
    if (at === buffer.length) {
      yield buffer;
      at = 0;
    }
  }
  if (at > 0) yield buffer.subarray(0, at);
}

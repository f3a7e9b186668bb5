/**
 * Opens a sealed LSMT layer: trailer, then index, checked as overlaybd checks
 * them (lsmt/file.cpp: do_load_index, open_warpfile_ro; lsmt/index.cpp:
 * verify_mapping_order, verify_mapping_moffset).
 *
 * Where the two differ, obd is stricter only for input that the real reader
 * would serve wrongly: a warp layer's own entries must lie in its data area (it
 * reads whatever stands there), and no more than two tags may occur.
 */

import {
  type ByteSource,
  FormatError,
  readBytes,
  viewOf,
} from "../../io/mod.ts";
import {
  ENTRY_SIZE,
  FLAG,
  hasLsmtMagic,
  type HeaderTrailer,
  HT,
  MAX_LAYER_ENTRIES,
  MAX_SECTOR,
  PADDING_OFFSET,
  readHeaderTrailer,
  SECTOR,
} from "./format.ts";
import { KIND, SegmentColumns, type SegmentTable } from "./segment_table.ts";

/** A layer is native (its tags mean nothing) or a warp layer over a target. */
export type LayerKind = "native" | "warp";

/** The index of one sealed layer. */
export interface LsmtLayer {
  kind: LayerKind;
  /** Rows of kind target only in warp layers. Adjacent entries are joined. */
  table: SegmentTable;
  /** Entries in the file, without padding. */
  entryCount: number;
  /** Bytes; 0 means that a layer below tells. */
  virtualSize: number;
  uuid: string;
  parentUuid: string;
  userTag: string;
}

/** First sector of the data area: behind the header. */
const DATA_START = HT.SIZE / SECTOR;

/**
 * Reads and checks the index of a sealed layer. Reads the header, the trailer
 * and the index only.
 *
 * @param source The bare LSMT file (tar and ZFile already peeled), borrowed.
 * @param kind `"warp"` if the layer has a target. `"auto"` takes two
 * neighbouring tags for the sign of a warp layer; use it only where nobody says, for
 * `inspect`.
 * @throws {FormatError} If any rule of a sealed layer is broken.
 */
export async function openLsmtLayer(
  source: ByteSource,
  kind: LayerKind | "auto",
): Promise<LsmtLayer> {
  const trailer = await readTrailer(source);
  const index = await readBytes(
    source,
    trailer.indexCount === 0 ? 0 : trailer.indexOffset,
    trailer.indexCount * ENTRY_SIZE,
  );
  const tags = scanTags(index);
  const isWarp = kind === "warp" ||
    (kind === "auto" && tags.max - tags.min === 1);
  if (isWarp && tags.max - tags.min > 1) {
    throw new FormatError(
      "LSMT index",
      "tag",
      `has values from ${tags.min} to ${tags.max}: a warp layer has two targets`,
      { offset: trailer.indexOffset },
    );
  }
  const table = readEntries(
    index,
    trailer,
    isWarp ? tags.min : undefined,
  );
  return {
    kind: isWarp ? "warp" : "native",
    table,
    entryCount: tags.count,
    virtualSize: trailer.virtualSize,
    uuid: trailer.uuid,
    parentUuid: trailer.parentUuid,
    userTag: trailer.userTag,
  };
}

/** Whether a source starts like an LSMT file of any kind. */
export async function isLsmt(source: ByteSource): Promise<boolean> {
  if (source.size < HT.SIZE) return false;
  return hasLsmtMagic(await readBytes(source, 0, 24));
}

async function readTrailer(source: ByteSource): Promise<HeaderTrailer> {
  if (source.size < 2 * HT.SIZE) {
    throw new FormatError(
      "LSMT layer",
      "size",
      `is ${source.size}, less than a header and a trailer`,
    );
  }
  const at = source.size - HT.SIZE;
  const [first, last] = await Promise.all([
    readBytes(source, 0, HT.SIZE),
    readBytes(source, at, HT.SIZE),
  ]);
  const header = readHeaderTrailer(first, "header", 0);
  requireFlags("header", 0, header.flags, FLAG.header | FLAG.data, 0);
  if (!hasLsmtMagic(last) && (header.flags & FLAG.sealed) === 0) {
    throw new FormatError(
      "LSMT layer",
      "trailer",
      "is missing: the layer was never sealed",
    );
  }
  const trailer = readHeaderTrailer(last, "trailer", at);
  const wanted = FLAG.data | FLAG.sealed;
  requireFlags("trailer", at, trailer.flags, wanted, FLAG.header);
  checkTrailer(trailer, at);
  return trailer;
}

function requireFlags(
  what: string,
  offset: number,
  flags: number,
  set: number,
  clear: number,
): void {
  if ((flags & set) === set && (flags & clear) === 0) return;
  throw new FormatError(
    `LSMT ${what}`,
    "flags",
    `are 0x${flags.toString(16)}: not of a sealed data file`,
    { offset },
  );
}

function checkTrailer(trailer: HeaderTrailer, offset: number): void {
  const { indexCount, indexOffset, virtualSize } = trailer;
  if (indexCount > MAX_LAYER_ENTRIES) {
    throw new FormatError(
      "LSMT trailer",
      "index_size",
      `is ${indexCount}, limit is ${MAX_LAYER_ENTRIES}`,
      { offset },
    );
  }
  // Without entries nobody reads the index, wherever it is said to be.
  if (indexCount > 0 && indexOffset + indexCount * ENTRY_SIZE > offset) {
    throw new FormatError(
      "LSMT trailer",
      "index_offset",
      `is ${indexOffset}: ${indexCount} entries do not fit before the trailer`,
      { offset },
    );
  }
  if (virtualSize >= MAX_SECTOR * SECTOR) {
    throw new FormatError(
      "LSMT trailer",
      "virtual_size",
      `is ${virtualSize}, limit is 2^53`,
      { offset },
    );
  }
}

/** Smallest and largest tag of the entries that are no padding, and their number. */
function scanTags(
  index: Uint8Array,
): { min: number; max: number; count: number } {
  let min = 255;
  let max = 0;
  let count = 0;
  for (let at = 0; at < index.length; at += ENTRY_SIZE) {
    if (isPadding(index, at)) continue;
    count++;
    const tag = index[at + 15]!;
    if (tag < min) min = tag;
    if (tag > max) max = tag;
  }
  return count === 0 ? { min: 0, max: 0, count } : { min, max, count };
}

/** Whether the 50 low bits, the offset, are all ones. */
function isPadding(index: Uint8Array, at: number): boolean {
  return index[at] === 0xff && index[at + 1] === 0xff &&
    index[at + 2] === 0xff && index[at + 3] === 0xff &&
    index[at + 4] === 0xff && index[at + 5] === 0xff &&
    (index[at + 6]! & 3) === 3;
}

/**
 * Decodes and checks all entries. One loop over plain words: a layer may have a
 * million of them and a stack a hundred layers.
 *
 * @param minTag Set for a warp layer: tags count from here.
 */
function readEntries(
  index: Uint8Array,
  trailer: HeaderTrailer,
  minTag: number | undefined,
): SegmentTable {
  const view = viewOf(index);
  const columns = new SegmentColumns(index.length / ENTRY_SIZE);
  const limit = Math.floor(trailer.indexOffset / SECTOR);
  let end = 0;
  for (let at = 0; at < index.length; at += ENTRY_SIZE) {
    const a1 = view.getUint32(at + 4, true);
    const offset = view.getUint32(at, true) + (a1 & 0x3ffff) * 2 ** 32;
    if (offset === PADDING_OFFSET) continue;
    const length = a1 >>> 18;
    const b1 = view.getUint32(at + 12, true);
    const moffset = view.getUint32(at + 8, true) + (b1 & 0x7fffff) * 2 ** 32;
    const zeroed = (b1 & 0x800000) !== 0;
    const tag = minTag === undefined ? 0 : (b1 >>> 24) - minTag;

    const problem = offset < end
      ? `starts at ${offset}, before the end ${end} of the entry before it`
      : offset + length > MAX_SECTOR
      ? `ends at sector ${offset + length}, limit is 2^44`
      : zeroed
      ? zeroedProblem(moffset, limit, minTag !== undefined)
      : tag === 1
      ? targetProblem(moffset, length)
      : dataProblem(moffset, length, limit);
    if (problem !== undefined) {
      throw new FormatError(
        "LSMT index",
        `entry ${at / ENTRY_SIZE} (${offset}+${length}→${moffset})`,
        minTag !== undefined && minTag > 0 && limit <= DATA_START
          ? `${problem} (all entries are remote: readers take them for the layer's own)`
          : problem,
        { offset: trailer.indexOffset + at },
      );
    }
    end = offset + length;
    if (length === 0) continue;
    const kind = zeroed ? KIND.zeroed : tag === 1 ? KIND.target : KIND.data;
    columns.pushJoined(offset, length, moffset, kind, 0);
  }
  return columns.finish();
}

function dataProblem(
  moffset: number,
  length: number,
  limit: number,
): string | undefined {
  const inside = moffset >= DATA_START && moffset < limit &&
    moffset + length > DATA_START && moffset + length <= limit;
  return inside
    ? undefined
    : `maps sectors outside the data area ${DATA_START}…${limit}`;
}

function zeroedProblem(
  moffset: number,
  limit: number,
  warp: boolean,
): string | undefined {
  return warp || (moffset >= DATA_START && moffset <= limit)
    ? undefined
    : `is zeroed with a position outside the data area ${DATA_START}…${limit}`;
}

function targetProblem(moffset: number, length: number): string | undefined {
  return moffset + length <= MAX_SECTOR
    ? undefined
    : "maps the target beyond sector 2^44";
}

/**
 * Opens writable layers as they lie on disk while overlaybd has not sealed or
 * committed them, for reading only (overlaybd lsmt/file.cpp: open_file_rw,
 * LSMTSparseFile, LSMTWarpFile).
 *
 * ```
 * append   data  | header 0x03 | sectors in the order of writing …
 *          index | header 0x01 | entries in the order of writing …, later ones win
 * sparse   data  | header 0x13 | byte x of the device at 4096 + x; holes map nothing
 * warp     data  byte x of the device at x, no header
 *          index as in append mode, entries of tag n (data) and n + 1 (target)
 * ```
 *
 * What sparse mode loses is lost here too: a trimmed range is a hole, through
 * which lower layers show, and a write of less than the host's block shows as
 * the whole block.
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
  type HeaderTrailer,
  HT,
  MAX_SECTOR,
  PADDING_OFFSET,
  readHeaderTrailer,
  readSegment,
  SECTOR,
} from "./format.ts";
import type { LayerKind, LsmtLayer } from "./open.ts";
import { EntryLog, MAX_LOG_ENTRIES, MAX_LOG_SECTOR } from "./replay.ts";
import { KIND } from "./segment_table.ts";

/** How a writable layer keeps what is written. */
export type WritableMode = "append" | "sparse" | "warp";

/** A writable layer; its `table` maps into the data file. */
export interface WritableLayer extends LsmtLayer {
  mode: WritableMode;
}

/** The files of a writable layer. */
export interface WritableFiles {
  /** Borrowed. */
  data: ByteSource;
  /** Asked for only if the mode has one; disposed of. */
  openIndex(): Promise<ByteSource>;
  /** What the data file stores, from a byte on (lseek(2), SEEK_DATA and SEEK_HOLE). */
  storedRanges(offset: number): Iterable<{ start: number; end: number }>;
}

/** Entries read at once. */
const ENTRY_PIECE = 65_536;
/** First sector of the data area: behind the header. */
const DATA_START = HT.SIZE / SECTOR;

/**
 * Reads the map of a writable layer.
 *
 * @param kind `"warp"` if the layer has a target.
 * @param lowerCount Layers below: the tag of a warp layer's own entries.
 * @throws {FormatError} If the files are not a writable layer's.
 * @throws {LimitError} If there are more entries than obd replays.
 */
export async function openWritableLayer(
  files: WritableFiles,
  kind: LayerKind,
  lowerCount: number,
): Promise<WritableLayer> {
  if (kind === "warp") return await openWarp(files, lowerCount);
  const header = await readHeader(files.data, "data file");
  requireFlags("data file", header, FLAG.header | FLAG.data, FLAG.sealed);
  if ((header.flags & FLAG.sparse) !== 0) return openSparse(files, header);
  await using index = await files.openIndex();
  const indexHeader = await readIndexHeader(index);
  const limit = Math.floor(files.data.size / SECTOR);
  const log = new EntryLog();
  let entryCount = 0;
  for await (const entry of entriesOf(index)) {
    const { offset, length, moffset, zeroed } = entry;
    // Trims point at the end that the data had (lsmt/index.cpp: verify_mapping_moffset).
    const end = zeroed ? moffset : moffset + length;
    if (moffset < DATA_START || end > limit) {
      throw new FormatError(
        "LSMT index file",
        `entry ${entry.number} (${offset}+${length}→${moffset})`,
        `maps sectors outside the data area ${DATA_START}…${limit}`,
        { offset: HT.SIZE + entry.number * ENTRY_SIZE },
      );
    }
    log.add(offset, length, moffset, zeroed ? KIND.zeroed : KIND.data);
    entryCount++;
  }
  return {
    ...identity(indexHeader),
    mode: "append",
    kind: "native",
    table: log.replay(),
    entryCount,
  };
}

async function openWarp(
  files: WritableFiles,
  lowerCount: number,
): Promise<WritableLayer> {
  await using index = await files.openIndex();
  const header = await readIndexHeader(index);
  const tags = new Set<number>();
  for await (const { tag } of entriesOf(index)) tags.add(tag);
  const min = Math.min(...tags);
  const max = Math.max(...tags);
  // Written as the number of layers below; a layer of remote entries only would tell nothing else.
  const own = min >= lowerCount && max <= lowerCount + 1 ? lowerCount : min;
  if (max > own + 1) {
    throw new FormatError(
      "LSMT index file",
      "tag",
      `has values from ${min} to ${max}: a warp layer has two targets`,
    );
  }
  const log = new EntryLog();
  let entryCount = 0;
  for await (const entry of entriesOf(index)) {
    const { offset, length, moffset, zeroed, tag } = entry;
    if (!zeroed && moffset + length > MAX_SECTOR) {
      throw new FormatError(
        "LSMT index file",
        `entry ${entry.number} (${offset}+${length}→${moffset})`,
        "maps sectors beyond 2^44",
        { offset: HT.SIZE + entry.number * ENTRY_SIZE },
      );
    }
    const kind = zeroed ? KIND.zeroed : tag === own ? KIND.data : KIND.target;
    log.add(offset, length, moffset, kind);
    entryCount++;
  }
  return {
    ...identity(header),
    mode: "warp",
    kind: "warp",
    table: log.replay(),
    entryCount,
  };
}

function openSparse(
  { storedRanges }: WritableFiles,
  header: HeaderTrailer,
): WritableLayer {
  const log = new EntryLog();
  let entryCount = 0;
  for (const { start, end } of storedRanges(HT.SIZE)) {
    const first = Math.floor((start - HT.SIZE) / SECTOR);
    const last = Math.min(
      Math.ceil((end - HT.SIZE) / SECTOR),
      // The file may be longer than the device; nobody reads there.
      Math.ceil(header.virtualSize / SECTOR),
    );
    if (last <= first) continue;
    log.add(first, last - first, first + DATA_START, KIND.data);
    entryCount++;
  }
  return {
    ...identity(header),
    mode: "sparse",
    kind: "native",
    table: log.replay(),
    entryCount,
  };
}

function identity(header: HeaderTrailer) {
  const { virtualSize, uuid, parentUuid, userTag } = header;
  return { virtualSize, uuid, parentUuid, userTag };
}

async function readHeader(
  source: ByteSource,
  what: string,
): Promise<HeaderTrailer> {
  if (source.size < HT.SIZE) {
    throw new FormatError(
      `LSMT ${what}`,
      "size",
      `is ${source.size}, less than a header`,
    );
  }
  const bytes = await readBytes(source, 0, HT.SIZE);
  const header = readHeaderTrailer(bytes, "header", 0);
  if (header.virtualSize > MAX_LOG_SECTOR * SECTOR) {
    throw new FormatError(
      `LSMT ${what}`,
      "virtual_size",
      `is ${header.virtualSize}, limit is 2^49`,
    );
  }
  return header;
}

async function readIndexHeader(source: ByteSource): Promise<HeaderTrailer> {
  const header = await readHeader(source, "index file");
  requireFlags("index file", header, FLAG.header, FLAG.data | FLAG.sealed);
  if (header.indexOffset !== HT.SIZE) {
    throw new FormatError(
      "LSMT index file",
      "index_offset",
      `is ${header.indexOffset}, expected ${HT.SIZE}`,
    );
  }
  const count = Math.floor((source.size - HT.SIZE) / ENTRY_SIZE);
  // Padding of group commits counts too: bounded before anything is read.
  if (count > 2 * MAX_LOG_ENTRIES) {
    throw new FormatError("LSMT index file", "entries", `are ${count}`);
  }
  return header;
}

function requireFlags(
  what: string,
  { flags }: HeaderTrailer,
  set: number,
  clear: number,
): void {
  if ((flags & set) === set && (flags & clear) === 0) return;
  const sealed = (flags & FLAG.sealed) !== 0
    ? ": it is sealed, which makes it a lower layer"
    : "";
  throw new FormatError(
    `LSMT ${what}`,
    "flags",
    `are 0x${flags.toString(16)}, not of a writable layer's ${what}${sealed}`,
    { offset: 0 },
  );
}

/** All entries but padding, in the order of writing. A cut-off last one was never finished. */
async function* entriesOf(index: ByteSource) {
  const count = Math.floor((index.size - HT.SIZE) / ENTRY_SIZE);
  for (let first = 0; first < count; first += ENTRY_PIECE) {
    const entries = Math.min(ENTRY_PIECE, count - first);
    const bytes = await readBytes(
      index,
      HT.SIZE + first * ENTRY_SIZE,
      entries * ENTRY_SIZE,
    );
    const view = viewOf(bytes);
    for (let i = 0; i < entries; i++) {
      const segment = readSegment(view, i * ENTRY_SIZE);
      if (segment.offset === PADDING_OFFSET) continue;
      yield { ...segment, number: first + i };
    }
  }
}

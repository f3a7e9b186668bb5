/**
 * `gzip.meta`: overlaybd's random-access index of a gzip blob (gzindex/).
 *
 * ```
 * | 333-byte header | zlib-compressed windows, back to back | index area |
 * ```
 *
 * Little-endian, packed. The index area is an array of 29-byte entries, one
 * zlib stream when `dict_compress_algo` is 1. It covers the first gzip member
 * only; layers of several members have their index in `obd.spans`.
 */

import * as zlib from "node:zlib";
import { crc32c } from "../compress/mod.ts";
import {
  concatBytes,
  FormatError,
  getU64,
  IntegrityError,
  LimitError,
  setU64,
  utf8,
  viewOf,
} from "../io/mod.ts";
import type { LayerCheckpoints } from "./pass/types.ts";

/** Byte offsets in the header (gzindex/gzfile_index.h: IndexFileHeader). */
export const GZ = {
  magic: 0, // 8: "ddgzidx" NUL; seven compared
  majorVersion: 8, // u8
  minorVersion: 9, // u8
  windowAlgorithm: 10, // u8: 0 none, 1 zlib
  windowLevel: 11, // i8
  flag: 12, // u8
  span: 13, // i32 bytes
  window: 17, // i32, 32768
  entrySize: 21, // i32, 29 (called index_size)
  entryCount: 25, // i64
  gzipSize: 33, // i64
  fileSize: 41, // i64, of this file
  uncompressedSize: 49, // i64
  reserved: 57, // 256
  indexStart: 313, // i64
  indexLength: 321, // i64, as stored
  crc: 329, // u32 over bytes 0…328
  SIZE: 333,
} as const;

/** Byte offsets in an entry. */
export const GZ_ENTRY = {
  uncompressedOffset: 0, // i64 (de_pos)
  compressedOffset: 8, // i64 (en_pos): first whole byte
  windowOffset: 16, // i64 (win_pos)
  bits: 24, // u8, 0–7: top bits of the byte before
  windowLength: 25, // u32 (win_len), as stored
  SIZE: 29,
} as const;

const MAGIC = "ddgzidx";
const WINDOW_SIZE = 32768;
/** zlib adds a few bytes to a window that it cannot shrink. */
const MAX_STORED_WINDOW = WINDOW_SIZE + 1024;
/** Entries that obd reads: 4 TiB at the usual span. */
export const MAX_GZIP_ENTRIES = 4_000_000;
/** As overlaybd's tools: zlib's default. */
const LEVEL = 6;

/** A parsed `gzip.meta`. */
export interface GzipMeta {
  /** Uncompressed bytes between entries, as the writer wanted it. */
  spanSize: number;
  /** Bytes of the gzip blob. */
  gzipSize: number;
  /** Bytes of the first member, decompressed. */
  uncompressedSize: number;
  /** Ascending; the first at 0. Windows are zlib streams, most of them views of the input. */
  checkpoints: LayerCheckpoints;
}

/**
 * Parses and checks a `gzip.meta` (gzfile.cpp: init, parse_index). Windows are
 * not inflated here: whoever decodes a span does that, with a bound.
 *
 * @param bytes The whole file; borrowed for the life of the result.
 * @param gzipSize Bytes of the blob that it must belong to.
 * @throws {FormatError} If any rule is broken.
 * @throws {IntegrityError} If the header's CRC is wrong.
 * @throws {LimitError} If it has more than {@linkcode MAX_GZIP_ENTRIES} entries.
 */
export function readGzipMeta(bytes: Uint8Array, gzipSize: number): GzipMeta {
  if (bytes.length < GZ.SIZE) {
    throw wrong("size", `is ${bytes.length}, less than a header`);
  }
  const view = viewOf(bytes);
  for (let i = 0; i < MAGIC.length; i++) {
    if (bytes[i] !== MAGIC.charCodeAt(i)) throw wrong("magic", "is wrong");
  }
  const crc = view.getUint32(GZ.crc, true);
  const got = crc32c(bytes.subarray(0, GZ.crc), 0);
  if (crc !== got) {
    throw new IntegrityError(
      "gzip.meta header CRC",
      `0x${crc.toString(16)}`,
      `0x${got.toString(16)}`,
    );
  }
  const algorithm = view.getUint8(GZ.windowAlgorithm);
  const indexStart = getU64(view, GZ.indexStart);
  const uncompressedSize = getU64(view, GZ.uncompressedSize);
  const checks: [string, number, number][] = [
    ["major_version", view.getUint8(GZ.majorVersion), 1],
    ["window", view.getUint32(GZ.window, true), WINDOW_SIZE],
    ["index_size", view.getUint32(GZ.entrySize, true), GZ_ENTRY.SIZE],
    ["gzip_file_size", getU64(view, GZ.gzipSize), gzipSize],
    ["index_file_size", getU64(view, GZ.fileSize), bytes.length],
    [
      "index_start + index_area_len",
      indexStart + getU64(view, GZ.indexLength),
      bytes.length,
    ],
  ];
  for (const [field, value, want] of checks) {
    if (value !== want) throw wrong(field, `is ${value}, expected ${want}`);
  }
  if (algorithm > 1) throw wrong("dict_compress_algo", `is ${algorithm}`);
  if (indexStart < GZ.SIZE) throw wrong("index_start", `is ${indexStart}`);
  if (!Number.isSafeInteger(uncompressedSize)) {
    throw wrong("uncompress_file_size", `is ${uncompressedSize}`);
  }
  const count = getU64(view, GZ.entryCount);
  if (count > MAX_GZIP_ENTRIES) {
    throw new LimitError(
      `Cannot read gzip.meta of ${count} entries: limit is ${MAX_GZIP_ENTRIES}`,
    );
  }
  const entries = unpackEntries(bytes.subarray(indexStart), algorithm, count);
  return {
    spanSize: view.getInt32(GZ.span, true),
    gzipSize,
    uncompressedSize,
    checkpoints: readEntries(bytes, entries, {
      count,
      indexStart,
      gzipSize,
      uncompressedSize,
      algorithm,
    }),
  };
}

function unpackEntries(
  area: Uint8Array,
  algorithm: number,
  count: number,
): Uint8Array {
  const size = count * GZ_ENTRY.SIZE;
  let entries = area;
  if (algorithm === 1) {
    try {
      entries = zlib.inflateSync(area, { maxOutputLength: Math.max(1, size) });
    } catch (error) {
      throw wrong("index area", "does not inflate to its entries", error);
    }
  }
  if (entries.length !== size) {
    throw wrong(
      "index area",
      `is ${entries.length} bytes, expected ${size} for ${count} entries`,
    );
  }
  return entries;
}

function readEntries(
  bytes: Uint8Array,
  entries: Uint8Array,
  header: {
    count: number;
    indexStart: number;
    gzipSize: number;
    uncompressedSize: number;
    algorithm: number;
  },
): LayerCheckpoints {
  const { count, gzipSize, uncompressedSize, algorithm } = header;
  const view = viewOf(entries);
  const uncompressedOffset = new Float64Array(count);
  const compressedOffset = new Float64Array(count);
  const bits = new Uint8Array(count);
  const window: Uint8Array[] = [];
  for (let i = 0; i < count; i++) {
    const at = i * GZ_ENTRY.SIZE;
    const out = getU64(view, at + GZ_ENTRY.uncompressedOffset);
    const into = getU64(view, at + GZ_ENTRY.compressedOffset);
    const windowAt = getU64(view, at + GZ_ENTRY.windowOffset);
    const windowLength = view.getUint32(at + GZ_ENTRY.windowLength, true);
    const bit = view.getUint8(at + GZ_ENTRY.bits);
    const problem = i === 0 && out !== 0
      ? `starts at ${out}: the first must start at 0`
      : i > 0 && out <= uncompressedOffset[i - 1]!
      ? `starts at ${out}, not behind the one before`
      : out > uncompressedSize
      ? `starts at ${out}, behind the end ${uncompressedSize}`
      : into > gzipSize || (i > 0 && into < compressedOffset[i - 1]!)
      ? `lies at ${into} of the blob, out of order or behind its end ${gzipSize}`
      : bit > 7 || (bit > 0 && into === 0)
      ? `has ${bit} bits`
      : windowAt < GZ.SIZE || windowAt + windowLength > header.indexStart ||
          windowLength > MAX_STORED_WINDOW ||
          (algorithm === 0 && windowLength !== WINDOW_SIZE)
      ? `has a window of ${windowLength} bytes at ${windowAt}`
      : undefined;
    if (problem !== undefined) throw wrong(`entry ${i}`, problem);
    uncompressedOffset[i] = out;
    compressedOffset[i] = into;
    bits[i] = bit;
    const stored = bytes.subarray(windowAt, windowAt + windowLength);
    window.push(algorithm === 1 ? stored : zlib.deflateSync(stored));
  }
  return { count, uncompressedOffset, compressedOffset, bits, window };
}

function wrong(field: string, problem: string, cause?: unknown): FormatError {
  return new FormatError("gzip.meta", field, problem, { cause });
}

/**
 * Decodes every window, also those that no read needs.
 *
 * @throws {FormatError} Naming the first that is no whole window.
 */
export function checkWindows({ count, window }: LayerCheckpoints): void {
  for (let i = 0; i < count; i++) {
    let size: number;
    try {
      size = zlib.inflateSync(window[i]!, {
        maxOutputLength: WINDOW_SIZE + 1,
      }).length;
    } catch (error) {
      throw new FormatError("gzip.meta", `window ${i}`, "does not inflate", {
        cause: error,
      });
    }
    if (size !== WINDOW_SIZE) {
      throw new FormatError("gzip.meta", `window ${i}`, `has ${size} bytes`);
    }
  }
}

/** The zlib stream of a window of zeros, for checkpoints that need none. */
function zeroWindow(): Uint8Array {
  return zlib.deflateSync(new Uint8Array(WINDOW_SIZE), { level: LEVEL });
}

/**
 * Encodes a `gzip.meta`. Deterministic for one release of the runtime.
 *
 * @param meta Of a blob with one member. Windows: zlib streams of 32768 bytes;
 * an empty one is written as a window of zeros, which readers expect.
 */
export function writeGzipMeta(meta: GzipMeta): Uint8Array<ArrayBuffer> {
  const { count, uncompressedOffset, compressedOffset, bits, window } =
    meta.checkpoints;
  const entries = new Uint8Array(count * GZ_ENTRY.SIZE);
  const view = viewOf(entries);
  const windows: Uint8Array[] = [];
  // Made once: a layer that compresses well has tens of thousands of them.
  let zeros: Uint8Array | undefined;
  let position: number = GZ.SIZE;
  for (let i = 0; i < count; i++) {
    const at = i * GZ_ENTRY.SIZE;
    const stored = window[i]!.length > 0 ? window[i]! : zeros ??= zeroWindow();
    windows.push(stored);
    setU64(view, at + GZ_ENTRY.uncompressedOffset, uncompressedOffset[i]!);
    setU64(view, at + GZ_ENTRY.compressedOffset, compressedOffset[i]!);
    setU64(view, at + GZ_ENTRY.windowOffset, position);
    view.setUint8(at + GZ_ENTRY.bits, bits[i]!);
    view.setUint32(at + GZ_ENTRY.windowLength, stored.length, true);
    position += stored.length;
  }
  const area = zlib.deflateSync(entries, { level: LEVEL });
  const header = new Uint8Array(GZ.SIZE);
  const h = viewOf(header);
  header.set(utf8(MAGIC), GZ.magic);
  h.setUint8(GZ.majorVersion, 1);
  h.setUint8(GZ.windowAlgorithm, 1);
  h.setInt8(GZ.windowLevel, LEVEL);
  h.setInt32(GZ.span, meta.spanSize, true);
  h.setInt32(GZ.window, WINDOW_SIZE, true);
  h.setInt32(GZ.entrySize, GZ_ENTRY.SIZE, true);
  setU64(h, GZ.entryCount, count);
  setU64(h, GZ.gzipSize, meta.gzipSize);
  setU64(h, GZ.fileSize, position + area.length);
  setU64(h, GZ.uncompressedSize, meta.uncompressedSize);
  setU64(h, GZ.indexStart, position);
  setU64(h, GZ.indexLength, area.length);
  h.setUint32(GZ.crc, crc32c(header.subarray(0, GZ.crc), 0), true);
  return concatBytes([header, ...windows, area]);
}

/**
 * LSMT on disk: header, trailer and segment entries. No I/O here.
 *
 * ```
 * 0        4096                    index_offset              EOF-4096      EOF
 * | header | data sectors          | index entries (16 B)    | trailer     |
 * ```
 *
 * Everything is little-endian; "sector" is 512 bytes. Header and trailer have
 * one structure; a reader of a sealed layer believes the trailer only
 * (overlaybd lsmt/file.cpp: HeaderTrailer, verify_ht, do_load_index).
 * Writable layers (a data file without a trailer, index files) are read by
 * `open_writable.ts`.
 */

import { FormatError, fromUtf8, getU64, setU64, viewOf } from "../../io/mod.ts";

/** Bytes in a sector, the unit of every offset and length in an entry. */
export const SECTOR = 512;

/** Byte offsets in the 4096-byte header or trailer; `USED` bytes carry fields. */
export const HT = {
  magic0: 0, // 8 bytes
  magic1: 8, // 16 bytes
  size: 24, // u32, USED; no reader checks it
  flags: 28, // u32
  indexOffset: 32, // u64 bytes
  indexSize: 40, // u64 ENTRY COUNT, padding entries included
  virtualSize: 48, // u64 bytes; 0 = inherit
  uuid: 56, // 36 characters + NUL
  parentUuid: 93, // 36 characters + NUL
  reserved: 130, // u16
  version: 132, // u8
  subVersion: 133, // u8
  userTag: 134, // 256 bytes of text
  USED: 390,
  SIZE: 4096,
} as const;

/** Bits of {@linkcode HT.flags}. */
export const FLAG = {
  header: 1 << 0, // else trailer
  data: 1 << 1, // else index file
  sealed: 1 << 2,
  sparse: 1 << 4, // a sparse writable layer, or one that was sealed in place
} as const;

/** "LSMT", 0, 1, 2, 0. */
const MAGIC0 = [0x4c, 0x53, 0x4d, 0x54, 0x00, 0x01, 0x02, 0x00];
const MAGIC1 = [
  ...[0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c],
  ...[0xa2, 0xd2, 0xc8, 0xec, 0x4f, 0xcf, 0xae, 0x8a],
];

/** What an absent UUID is written as (not zero bytes). */
export const NULL_UUID = "00000000-0000-0000-0000-000000000000";

/** Entries in one sealed layer, padding included (MAX_LSMT_RO_INDEX_SIZE). */
export const MAX_LAYER_ENTRIES = 1_000_000;
/** Layers in a stack (MAX_STACK_LAYERS). */
export const MAX_LAYERS = 255;
/** Sectors in one entry: 14 bits. */
export const MAX_SEGMENT_SECTORS = 16383;
/** Bytes of one entry. */
export const ENTRY_SIZE = 16;
/** `offset` of an entry that only fills up the index. */
export const PADDING_OFFSET = 2 ** 50 - 1;
/**
 * First sector number that obd refuses: times 512 it is no safe integer, so it
 * could not be addressed exactly.
 */
export const MAX_SECTOR = 2 ** 44;

/** Fields of a header or trailer that mean something. */
export interface HeaderTrailer {
  flags: number;
  /** Bytes from the start of the LSMT file. */
  indexOffset: number;
  /** Entries, padding included. */
  indexCount: number;
  /** Bytes; 0 means that the layer below tells. */
  virtualSize: number;
  uuid: string;
  parentUuid: string;
  userTag: string;
}

/** Whether `bytes` begin with the LSMT magics (24 bytes). */
export function hasLsmtMagic(bytes: Uint8Array): boolean {
  return bytes.length >= 24 &&
    MAGIC0.every((b, i) => bytes[HT.magic0 + i] === b) &&
    MAGIC1.every((b, i) => bytes[HT.magic1 + i] === b);
}

/**
 * Reads a header or trailer. Only the magics are checked; numbers above 2^53
 * come out inexact, so the caller bounds them.
 *
 * @param bytes 4096 bytes, borrowed.
 * @param offset Where they were found, for the error.
 * @throws {FormatError} If the magics are wrong.
 */
export function readHeaderTrailer(
  bytes: Uint8Array,
  what: "header" | "trailer",
  offset: number,
): HeaderTrailer {
  if (bytes.length !== HT.SIZE || !hasLsmtMagic(bytes)) {
    throw new FormatError(`LSMT ${what}`, "magic", "is wrong", { offset });
  }
  const view = viewOf(bytes);
  return {
    flags: view.getUint32(HT.flags, true),
    indexOffset: getU64(view, HT.indexOffset),
    indexCount: getU64(view, HT.indexSize),
    virtualSize: getU64(view, HT.virtualSize),
    uuid: readText(bytes.subarray(HT.uuid, HT.uuid + 37)),
    parentUuid: readText(bytes.subarray(HT.parentUuid, HT.parentUuid + 37)),
    userTag: readText(bytes.subarray(HT.userTag, HT.userTag + 256)),
  };
}

function readText(field: Uint8Array): string {
  const end = field.indexOf(0);
  return fromUtf8(end < 0 ? field : field.subarray(0, end));
}

/** Encodes a header or trailer; every reserved byte is zero. */
export function writeHeaderTrailer(
  fields: HeaderTrailer,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HT.SIZE);
  const view = viewOf(bytes);
  bytes.set(MAGIC0, HT.magic0);
  bytes.set(MAGIC1, HT.magic1);
  view.setUint32(HT.size, HT.USED, true);
  view.setUint32(HT.flags, fields.flags, true);
  setU64(view, HT.indexOffset, fields.indexOffset);
  setU64(view, HT.indexSize, fields.indexCount);
  setU64(view, HT.virtualSize, fields.virtualSize);
  writeText(bytes, HT.uuid, checkUuid(fields.uuid), 36);
  writeText(bytes, HT.parentUuid, checkUuid(fields.parentUuid), 36);
  view.setUint8(HT.version, 1);
  view.setUint8(HT.subVersion, 1);
  writeText(bytes, HT.userTag, fields.userTag, 256);
  return bytes;
}

function checkUuid(uuid: string): string {
  if (!/^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$/.test(uuid)) {
    throw new TypeError(
      `Cannot write LSMT uuid "${uuid}": not upper-case UUID text`,
    );
  }
  return uuid;
}

function writeText(
  bytes: Uint8Array,
  at: number,
  text: string,
  limit: number,
): void {
  const encoded = new TextEncoder().encode(text);
  if (encoded.length > limit) {
    throw new RangeError(
      `Cannot write LSMT text of ${encoded.length} bytes: limit is ${limit}`,
    );
  }
  bytes.set(encoded, at);
}

/** One mapping. Units: sectors. */
export interface Segment {
  offset: number; // 50 bits: first sector of the device
  length: number; // 14 bits
  moffset: number; // 55 bits: first sector in the mapped file
  zeroed: boolean; // reads as zeros and hides lower layers
  tag: number; // 8 bits
}

/**
 * Reads one entry (overlaybd lsmt/index.h: SegmentMapping). Bulk code reads the
 * same four words itself; this is the form for tests and `inspect`.
 */
export function readSegment(view: DataView, at: number): Segment {
  const a0 = view.getUint32(at, true);
  const a1 = view.getUint32(at + 4, true);
  const b0 = view.getUint32(at + 8, true);
  const b1 = view.getUint32(at + 12, true);
  return {
    offset: a0 + (a1 & 0x3ffff) * 2 ** 32,
    length: a1 >>> 18,
    moffset: b0 + (b1 & 0x7fffff) * 2 ** 32,
    zeroed: ((b1 >>> 23) & 1) === 1,
    tag: b1 >>> 24,
  };
}

/** Writes one entry; fields must be in the range of their bits. */
export function writeSegment(
  view: DataView,
  at: number,
  segment: Segment,
): void {
  const { offset, length, moffset, zeroed, tag } = segment;
  view.setUint32(at, offset % 2 ** 32, true);
  view.setUint32(
    at + 4,
    ((length << 18) | Math.floor(offset / 2 ** 32)) >>> 0,
    true,
  );
  view.setUint32(at + 8, moffset % 2 ** 32, true);
  view.setUint32(
    at + 12,
    ((tag << 24) | (zeroed ? 0x800000 : 0) |
      Math.floor(moffset / 2 ** 32)) >>> 0,
    true,
  );
}

/** Writes an entry that readers drop. */
export function writePadding(view: DataView, at: number): void {
  writeSegment(view, at, {
    offset: PADDING_OFFSET,
    length: 0,
    moffset: 0,
    zeroed: false,
    tag: 0,
  });
}

/**
 * ZFile on disk: overlaybd's seekable compressed container. No I/O here.
 *
 * ```
 * 0     512                                    index_offset            EOF-512  EOF
 * |hdr  | block0 [crc] block1 [crc] … blockN-1 | uint32 len[N] (plain) | trailer |
 * ```
 *
 * Everything is little-endian. Block i decodes to bytes `i·blockSize …` of the
 * content; only the last may be short. `len[i]` includes the 4-byte checksum.
 * Source: overlaybd zfile/zfile.cpp (where it and format_spec.md differ, the
 * code counts: the digest covers all 512 bytes, the field called `index_size`
 * is an entry count, the table is never compressed).
 * Not supported: dictionaries, LZO, compressed tables (nothing writes them).
 */

import { crc32c } from "../compress/mod.ts";
import { getU64, setU64, viewOf } from "../io/mod.ts";

/** Byte offsets in the 512-byte header or trailer; `USED` bytes carry fields. */
export const ZF = {
  magic0: 0, // 8 bytes
  magic1: 8, // 16 bytes
  size: 24, // u32, USED
  digest: 28, // u32 CRC of all 512 bytes with this field 0
  flags: 32, // u64; only the bits of ZFLAG mean anything
  indexOffset: 40, // u64 bytes
  indexSize: 48, // u64 BLOCK COUNT
  originalSize: 56, // u64 bytes
  indexCrc: 64, // u32 CRC of the table
  reserved: 68, // u32
  blockSize: 72, // u32 bytes
  algorithm: 76, // u8
  level: 77, // u8, always 0
  useDict: 78, // u8, always 0
  dictSize: 84, // u32, only moves the first block
  verify: 88, // u8
  USED: 96,
  SIZE: 512,
} as const;

/** Bits of {@linkcode ZF.flags}; old files have garbage in the others. */
export const ZFLAG = {
  header: 1 << 0, // else trailer
  data: 1 << 1,
  sealed: 1 << 2, // in trailers
  headerOverwrite: 1 << 3, // this header is complete, no trailer needed
  digest: 1 << 4, // digest and index_crc are set
} as const;

/** Values of {@linkcode ZF.algorithm}. */
export const ALGORITHM = { lz4: 1, zstd: 2 } as const;
export type ZFileCodec = keyof typeof ALGORITHM;
/** How a writer compresses blocks: `"lz4-for-gzip"` is LZ4 for files that are compressed once more as a whole. */
export type BlockCodec = ZFileCodec | "lz4-for-gzip";

/** "ZFile", 0, 1, 0, then "tuji.yyf@Alibaba". */
const MAGIC = [
  ...[0x5a, 0x46, 0x69, 0x6c, 0x65, 0x00, 0x01, 0x00],
  ...[0x74, 0x75, 0x6a, 0x69, 0x2e, 0x79, 0x79, 0x66],
  ...[0x40, 0x41, 0x6c, 0x69, 0x62, 0x61, 0x62, 0x61],
];

/** Bytes of the checksum behind a block. */
export const CHECKSUM_SIZE = 4;
/** Seed of every CRC in headers and of the table's; blocks have their own. */
export const HEADER_SEED = 0;
/**
 * overlaybd's in-memory table keeps 16-bit positions within a group of blocks
 * that decode to this many bytes (JumpTable::build).
 */
export const GROUP_BYTES = 65536;

/** Fields of a header or trailer that mean something. */
export interface ZFileFields {
  /** Low bits only, masked to the bits of {@linkcode ZFLAG}. */
  flags: number;
  digest: number;
  indexOffset: number;
  blockCount: number;
  originalSize: number;
  indexCrc: number;
  blockSize: number;
  algorithm: number;
  dictSize: number;
  verify: boolean;
}

/** Whether 512 bytes begin with the ZFile magics. */
export function hasZFileMagic(bytes: Uint8Array): boolean {
  return bytes.length >= MAGIC.length &&
    MAGIC.every((byte, i) => bytes[i] === byte);
}

/**
 * Reads the fields without judging them; numbers above 2^53 come out inexact.
 *
 * @param bytes 512 bytes, borrowed.
 */
export function readZFileFields(bytes: Uint8Array): ZFileFields {
  const view = viewOf(bytes);
  return {
    flags: view.getUint32(ZF.flags, true) & 0x1f,
    digest: view.getUint32(ZF.digest, true),
    indexOffset: getU64(view, ZF.indexOffset),
    blockCount: getU64(view, ZF.indexSize),
    originalSize: getU64(view, ZF.originalSize),
    indexCrc: view.getUint32(ZF.indexCrc, true),
    blockSize: view.getUint32(ZF.blockSize, true),
    algorithm: view.getUint8(ZF.algorithm),
    dictSize: view.getUint32(ZF.dictSize, true),
    verify: view.getUint8(ZF.verify) !== 0,
  };
}

/** Encodes a header or trailer; `digest` is computed, whatever it is in `fields`. */
export function writeZFileFields(
  fields: ZFileFields,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(ZF.SIZE);
  const view = viewOf(bytes);
  bytes.set(MAGIC);
  view.setUint32(ZF.size, ZF.USED, true);
  setU64(view, ZF.flags, fields.flags);
  setU64(view, ZF.indexOffset, fields.indexOffset);
  setU64(view, ZF.indexSize, fields.blockCount);
  setU64(view, ZF.originalSize, fields.originalSize);
  view.setUint32(ZF.indexCrc, fields.indexCrc, true);
  view.setUint32(ZF.blockSize, fields.blockSize, true);
  view.setUint8(ZF.algorithm, fields.algorithm);
  view.setUint32(ZF.dictSize, fields.dictSize, true);
  view.setUint8(ZF.verify, fields.verify ? 1 : 0);
  view.setUint32(ZF.digest, digestOf(bytes), true);
  return bytes;
}

/** The digest that a header of these 512 bytes must have. */
export function digestOf(bytes: Uint8Array): number {
  const copy = bytes.slice();
  viewOf(copy).setUint32(ZF.digest, 0, true);
  return crc32c(copy, HEADER_SEED);
}

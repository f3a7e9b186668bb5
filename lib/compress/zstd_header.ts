/** Headers of zstd frames and blocks (RFC 8878 §3.1.1). */

import { FormatError, UnsupportedError, viewOf } from "../io/mod.ts";

const MAGIC = 0xfd2fb528; // §3.1.1
const SKIPPABLE_MAGIC = 0x184d2a50; // low 4 bits free, §3.1.2
/** Bytes of the longest header: magic, descriptor, window, dictionary, content size. */
export const ZSTD_HEADER_SIZE_MAX = 4 + 1 + 1 + 4 + 8;
/** Bytes of a block's header. */
export const ZSTD_BLOCK_HEADER_SIZE = 3;
/** Most bytes that a block may decode to or store (§3.1.1.2.4). */
const BLOCK_SIZE_MAX = 128 * 1024;

/** The header of a frame. */
export interface ZstdHeader {
  /** Bytes before the first block; of a skippable frame, before its data. */
  headerSize: number;
  /** Bytes of data; skippable frames only, which decode to nothing. */
  skippableSize: number | undefined;
  /** Decoded bytes, where the header has them. */
  contentSize: number | undefined;
  /** Bytes of history that the decoder must keep. */
  windowSize: number;
  /** Whether 4 bytes of checksum follow the last block. */
  hasChecksum: boolean;
}

/** Whether bytes start a zstd frame, also a skippable one. */
export function hasZstdMagic(head: Uint8Array): boolean {
  if (head.length < 4) return false;
  const magic = viewOf(head).getUint32(0, true);
  return magic === MAGIC || (magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC;
}

/**
 * Reads a frame's header.
 *
 * @returns Undefined if `bytes` ends inside of it.
 * @throws {FormatError} If it is none.
 * @throws {UnsupportedError} If the frame needs a dictionary.
 */
export function readZstdHeader(bytes: Uint8Array): ZstdHeader | undefined {
  if (bytes.length < 5) return undefined;
  const view = viewOf(bytes);
  const magic = view.getUint32(0, true);
  if ((magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC) {
    if (bytes.length < 8) return undefined;
    return {
      headerSize: 8,
      skippableSize: view.getUint32(4, true),
      contentSize: 0,
      windowSize: 0,
      hasChecksum: false,
    };
  }
  if (magic !== MAGIC) {
    throw new FormatError(
      "zstd frame",
      "magic",
      `is 0x${magic.toString(16)}, expected 0x${MAGIC.toString(16)}`,
    );
  }
  const descriptor = bytes[4]!;
  if ((descriptor & 0x08) !== 0) {
    throw new FormatError("zstd frame", "descriptor", "has its reserved bit");
  }
  const singleSegment = (descriptor & 0x20) !== 0;
  const dictionaryIdSize = [0, 1, 2, 4][descriptor & 3]!;
  const contentSizeFlag = descriptor >>> 6;
  const contentSizeSize = contentSizeFlag === 0
    ? (singleSegment ? 1 : 0)
    : 1 << contentSizeFlag;
  let at = 5;
  const headerSize = at + (singleSegment ? 0 : 1) + dictionaryIdSize +
    contentSizeSize;
  if (headerSize > bytes.length) return undefined;
  let windowSize = 0;
  if (!singleSegment) {
    const windowByte = bytes[at++]!; // §3.1.1.1.2
    const base = 2 ** (10 + (windowByte >>> 3));
    windowSize = base + (base / 8) * (windowByte & 7);
  }
  for (let i = 0; i < dictionaryIdSize; i++) {
    if (bytes[at + i] !== 0) {
      throw new UnsupportedError(
        "zstd dictionary",
        "zstd frame needs a dictionary, which is not supported",
      );
    }
  }
  at += dictionaryIdSize;
  let contentSize: number | undefined;
  if (contentSizeSize > 0) {
    contentSize = contentSizeSize === 2 ? 256 : 0;
    for (let i = 0; i < contentSizeSize; i++) {
      contentSize += bytes[at + i]! * 2 ** (8 * i);
    }
  }
  if (singleSegment) windowSize = contentSize!;
  return {
    headerSize,
    skippableSize: undefined,
    contentSize,
    windowSize,
    hasChecksum: (descriptor & 0x04) !== 0,
  };
}

/**
 * Reads a block's header (§3.1.1.2).
 *
 * @param header Its three bytes as a little-endian number.
 * @throws {FormatError} If it is of a reserved type or too long.
 */
export function readZstdBlock(
  header: number,
): { storedSize: number; isLast: boolean } {
  const type = (header >>> 1) & 3;
  const size = header >>> 3;
  if (type === 3) {
    throw new FormatError("zstd frame", "block type", "is reserved");
  }
  if (size > BLOCK_SIZE_MAX) {
    throw new FormatError(
      "zstd frame",
      "block size",
      `is ${size}, the limit is ${BLOCK_SIZE_MAX}`,
    );
  }
  return { storedSize: type === 1 ? 1 : size, isLast: (header & 1) !== 0 };
}

/** Content to stored ZFile blocks, each with its checksum; no I/O, any thread. */

import { deflateRawSync } from "node:zlib";
import {
  crc32c,
  lz4Compress,
  lz4CompressBound,
  lz4CompressRuns,
  ZFILE_BLOCK_SEED,
  zstdCompress,
} from "../compress/mod.ts";
import { viewOf } from "../io/mod.ts";
import { type BlockCodec, CHECKSUM_SIZE } from "./format.ts";

/** As overlaybd's writer (compressor.cpp). */
const ZSTD_LEVEL = 3;

/** Stored blocks, back to back. */
export interface PackedBlocks {
  /** All blocks, each followed by its checksum. */
  bytes: Uint8Array<ArrayBuffer>;
  /** Bytes of each, checksum included: the jump table's entries. */
  lengths: Uint32Array<ArrayBuffer>;
}

/** Most bytes that one block of `size` bytes is stored in, checksum included. */
export function packedBound(size: number): number {
  // zstd's own bound is lower (ZSTD_COMPRESSBOUND: size/256 + 64 for small ones).
  return lz4CompressBound(size) + Math.ceil(size / 128) + 64 + CHECKSUM_SIZE;
}

/**
 * Packs one block.
 *
 * @param out Room for {@linkcode packedBound} bytes from `at` on.
 * @param view Of all of `out`.
 * @returns Bytes written, checksum included.
 */
export function packBlock(
  block: Uint8Array,
  codec: BlockCodec,
  out: Uint8Array,
  view: DataView,
  at: number,
): number {
  let size: number;
  if (codec === "lz4") {
    size = lz4Compress(block, out.subarray(at));
  } else if (codec === "lz4-for-gzip") {
    size = packForGzip(block, out.subarray(at));
  } else {
    const frame = zstdCompress(block, ZSTD_LEVEL);
    out.set(frame, at);
    size = frame.length;
  }
  const crc = crc32c(out.subarray(at, at + size), ZFILE_BLOCK_SEED);
  view.setUint32(at + size, crc, true);
  return size + CHECKSUM_SIZE;
}

/**
 * LZ4 with all matches, or with runs of one byte only: whichever a gzip of the
 * whole file makes smaller. Names and texts are better left to it, tables whose
 * rows repeat are not.
 *
 * @returns Bytes written to the start of `out`.
 */
function packForGzip(block: Uint8Array, out: Uint8Array): number {
  const all = new Uint8Array(lz4CompressBound(block.length));
  const allSize = lz4Compress(block, all);
  const runsSize = lz4CompressRuns(block, out);
  const isBetter = gzipCost(all.subarray(0, allSize)) <
    gzipCost(out.subarray(0, runsSize));
  if (!isBetter) return runsSize;
  out.set(all.subarray(0, allSize));
  return allSize;
}

/** About what gzip makes of some bytes; the fastest level tells it well enough. */
function gzipCost(bytes: Uint8Array): number {
  return deflateRawSync(bytes, { level: 1 }).length;
}

/** Room that {@linkcode packBlocks} needs for `length` bytes of content. */
export function packedRoom(length: number, blockSize: number): number {
  return Math.ceil(length / blockSize) * packedBound(blockSize);
}

/**
 * Packs content of any length; only its last block may be short.
 *
 * @param room At least {@linkcode packedRoom} bytes, where the result lies.
 */
export function packBlocks(
  content: Uint8Array,
  blockSize: number,
  codec: BlockCodec,
  room: ArrayBuffer,
): PackedBlocks {
  const count = Math.ceil(content.length / blockSize);
  const out = new Uint8Array(room);
  const view = viewOf(out);
  const lengths = new Uint32Array(count);
  let fill = 0;
  for (let i = 0; i < count; i++) {
    const block = content.subarray(i * blockSize, (i + 1) * blockSize);
    lengths[i] = packBlock(block, codec, out, view, fill);
    fill += lengths[i]!;
  }
  return { bytes: out.subarray(0, fill), lengths };
}

/**
 * LZ4 blocks in which only runs of one byte are folded.
 *
 * For content that a second, stronger compressor gets afterwards: what LZ4
 * makes of text and tables hides from that one what it would have found
 * itself. Folding the runs alone keeps the block small where it is mostly
 * zeros, and leaves the rest as it is. Any LZ4 decoder reads it.
 */

import { LZ4_BLOCK_SIZE_MAX, lz4CompressBound } from "./lz4.ts";
import { LimitError } from "../io/mod.ts";

/** Shortest match (lz4_Block_format.md). */
const MATCH_MIN = 4;
/** The last bytes of a block are literals, and no match starts so close to its end. */
const LAST_LITERALS = 5;
const LAST_MATCH_START = 12;

/**
 * Encodes one block.
 *
 * @param src At most {@linkcode LZ4_BLOCK_SIZE_MAX} bytes.
 * @param dst Owned by the caller; at least `lz4CompressBound(src.length)`, else a `RangeError`.
 * @returns Bytes written to `dst`.
 * @throws {LimitError} If `src` is too long.
 */
export function lz4CompressRuns(src: Uint8Array, dst: Uint8Array): number {
  const size = src.length;
  if (size > LZ4_BLOCK_SIZE_MAX) {
    throw new LimitError(
      `LZ4 block of ${size} bytes is over the limit of ${LZ4_BLOCK_SIZE_MAX}`,
    );
  }
  const bound = lz4CompressBound(size);
  if (dst.length < bound) {
    throw new RangeError(
      `Cannot encode ${size} bytes: needs room for ${bound}, got ${dst.length}`,
    );
  }
  const startEnd = size - LAST_MATCH_START;
  const matchEnd = size - LAST_LITERALS;
  let literals = 0; // where those not yet written begin
  let out = 0;
  // A match repeats the byte before it, so it starts at the second of a run.
  for (let at = 1; at <= startEnd;) {
    const byte = src[at - 1]!;
    if (src[at] !== byte) {
      at++;
      continue;
    }
    let end = at + 1;
    while (end < matchEnd && src[end] === byte) end++;
    const length = end - at;
    if (length >= MATCH_MIN) {
      out = putSequence(src, literals, at, length, dst, out);
      literals = end;
    }
    at = end + 1;
  }
  return putLiterals(src, literals, size, 0, dst, out);
}

/** Literals `[from, to)` of `src`, then `length` times the byte before `to`. */
function putSequence(
  src: Uint8Array,
  from: number,
  to: number,
  length: number,
  dst: Uint8Array,
  at: number,
): number {
  const extra = length - MATCH_MIN;
  let out = putLiterals(src, from, to, Math.min(extra, 15), dst, at);
  dst[out++] = 1; // offset, little-endian
  dst[out++] = 0;
  return extra < 15 ? out : putLength(extra - 15, dst, out);
}

/** A token with its literals. */
function putLiterals(
  src: Uint8Array,
  from: number,
  to: number,
  matchNibble: number,
  dst: Uint8Array,
  at: number,
): number {
  const count = to - from;
  let out = at;
  dst[out++] = Math.min(count, 15) << 4 | matchNibble;
  if (count >= 15) out = putLength(count - 15, dst, out);
  dst.set(src.subarray(from, to), out);
  return out + count;
}

/** What is left of a length behind its nibble. */
function putLength(rest: number, dst: Uint8Array, at: number): number {
  let out = at;
  for (; rest >= 255; rest -= 255) dst[out++] = 255;
  dst[out++] = rest;
  return out;
}

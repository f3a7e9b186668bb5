/**
 * Raw LZ4 blocks (lz4_Block_format.md): no frame, no size, no checksum.
 *
 * The encoder is greedy like `LZ4_compress_default`, deterministic, and keeps
 * the end-of-block conditions; its output is not byte-identical to liblz4's.
 */

import { FormatError, LimitError } from "../io/mod.ts";
import { arenaBytes, kernels, layOut } from "./arena.ts";

/** Largest block, decoded, in bytes (as in the LZ4 frame format). */
export const LZ4_BLOCK_SIZE_MAX = 4 * 1024 * 1024;

const DECODE_PROBLEMS: Record<number, string> = {
  [-1]: "ends inside a sequence",
  [-2]: "decodes to more bytes than its block may have",
  [-3]: "has an offset that is 0 or before the start of the block",
  [-4]: "ends with a match",
  [-5]: "is empty",
};

/** Most bytes that {@linkcode lz4Compress} may write for `size` bytes of input. */
export function lz4CompressBound(size: number): number {
  return size + Math.floor(size / 255) + 16;
}

/**
 * Encodes one block.
 *
 * @param src At most {@linkcode LZ4_BLOCK_SIZE_MAX} bytes.
 * @param dst Owned by the caller; at least {@linkcode lz4CompressBound} of `src.length`, else a `RangeError`.
 * @returns Bytes written to `dst`.
 * @throws {LimitError} If `src` is too long.
 */
export function lz4Compress(src: Uint8Array, dst: Uint8Array): number {
  checkSize(src.length);
  const bound = lz4CompressBound(src.length);
  if (dst.length < bound) {
    throw new RangeError(
      `Cannot encode ${src.length} bytes: needs room for ${bound}, got ${dst.length}`,
    );
  }
  const { input, output } = layOut(src.length, bound);
  const arena = arenaBytes();
  arena.set(src, input);
  const size = kernels.lz4Encode(input, src.length, output);
  dst.set(arena.subarray(output, output + size));
  return size;
}

/**
 * Decodes one block.
 *
 * @param src Exactly one block.
 * @param dst Owned by the caller; its length is the most that the block may decode to.
 * @returns Bytes written to the start of `dst`.
 * @throws {FormatError} If the block is malformed or does not fit `dst`; `dst` is not touched then.
 * @throws {LimitError} If `src` or `dst` is longer than a block can be.
 */
export function lz4Decompress(src: Uint8Array, dst: Uint8Array): number {
  checkSize(dst.length);
  if (src.length > lz4CompressBound(LZ4_BLOCK_SIZE_MAX)) checkSize(src.length);
  const { input, output } = layOut(src.length, dst.length);
  const arena = arenaBytes();
  arena.set(src, input);
  const size = kernels.lz4Decode(input, src.length, output, dst.length);
  if (size < 0) {
    throw new FormatError(
      "LZ4 block",
      "data",
      DECODE_PROBLEMS[size] ?? "is malformed",
    );
  }
  dst.set(arena.subarray(output, output + size));
  return size;
}

function checkSize(size: number): void {
  if (size > LZ4_BLOCK_SIZE_MAX) {
    throw new LimitError(
      `LZ4 block of ${size} bytes is over the limit of ${LZ4_BLOCK_SIZE_MAX}`,
    );
  }
}

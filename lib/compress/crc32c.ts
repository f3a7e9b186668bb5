/**
 * CRC-32C as overlaybd uses it: Castagnoli polynomial 0x82F63B78, reflected,
 * WITHOUT the inversions before and after (overlaybd zfile/crc32/crc32c.cpp).
 * The register is seeded with `seed` and returned as it is, so a CRC over
 * several pieces is chained by passing the last result as the next seed.
 */

import { arenaBytes, kernels, layOut } from "./arena.ts";

/** Seed of a ZFile block's checksum (overlaybd zfile/zfile.cpp: `NOI_WELL_KNOWN_PRIME`). */
export const ZFILE_BLOCK_SEED = 100007;

/** Bytes handed to the kernel at once; keeps the arena small and the input in the L2 cache. */
const STEP = 65536;

/**
 * The raw CRC-32C register after `bytes`.
 *
 * @param bytes Any length, shared memory too.
 * @param seed The register before, 0 … 2^32−1.
 * @returns 0 … 2^32−1.
 *
 * @example
 * ```ts
 * const digits = new TextEncoder().encode("123456789");
 * if (crc32c(digits, 0) !== 0x58e3fa20) throw new Error();
 * ```
 */
export function crc32c(bytes: Uint8Array, seed: number): number {
  const { input } = layOut(STEP, 0);
  const arena = arenaBytes();
  let crc = seed | 0;
  if (bytes.length <= STEP) {
    arena.set(bytes, input);
    return kernels.crc32c(input, bytes.length, crc) >>> 0;
  }
  for (let at = 0; at < bytes.length; at += STEP) {
    const piece = bytes.subarray(at, at + STEP);
    arena.set(piece, input);
    crc = kernels.crc32c(input, piece.length, crc);
  }
  return crc >>> 0;
}

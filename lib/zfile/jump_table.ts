/** Where each stored block of a ZFile lies. */

import { FormatError, invariant } from "../io/mod.ts";
import { CHECKSUM_SIZE, GROUP_BYTES } from "./format.ts";

/** Blocks that share a 53-bit base position; their own is then 32 bits. */
const BASE_SHIFT = 6;

/**
 * Positions of N + 1 block borders in 4 bytes each: a 10 GiB layer of 4 KiB
 * blocks has 2.6 million.
 */
export class JumpTable {
  /** Number of blocks. */
  readonly count: number;
  readonly #relative: Uint32Array;
  readonly #bases: Float64Array;

  /**
   * Takes over the table of stored lengths and turns it into positions in
   * place.
   *
   * @param lengths `count` lengths as in the file, and one spare place.
   * @param start Byte offset of the first block.
   * @throws {FormatError} As overlaybd's JumpTable::build: if a block has no
   * content, or a group's positions pass 16 bits; also if a block is longer
   * than its codec can make it.
   */
  constructor(
    lengths: Uint32Array,
    start: number,
    options: { blockSize: number; verify: boolean },
  ) {
    const { blockSize, verify } = options;
    this.count = lengths.length - 1;
    this.#relative = lengths;
    this.#bases = new Float64Array((lengths.length >>> BASE_SHIFT) + 1);
    const least = verify ? CHECKSUM_SIZE : 0;
    // Neither LZ4 (1/255 + 16) nor zstd adds more to what it cannot shrink.
    const most = blockSize + (blockSize >>> 6) + 128;
    const group = GROUP_BYTES / blockSize;
    let at = start;
    let base = start;
    let groupSum = 0;
    for (let i = 0; i < this.count; i++) {
      const length = lengths[i]!;
      if (length <= least || length > most) {
        throw badBlock(i, `is ${length} bytes, not ${least + 1}…${most}`);
      }
      if (i % group === 0) groupSum = 0;
      if (i % group !== group - 1) {
        groupSum += length;
        if (groupSum >= 65535) {
          throw badBlock(i, "puts its group of blocks over 65534 bytes");
        }
      }
      if ((i & ((1 << BASE_SHIFT) - 1)) === 0) {
        base = at;
        this.#bases[i >>> BASE_SHIFT] = base;
      }
      lengths[i] = at - base;
      at += length;
    }
    if ((this.count & ((1 << BASE_SHIFT) - 1)) === 0) {
      base = at;
      this.#bases[this.count >>> BASE_SHIFT] = base;
    }
    lengths[this.count] = at - base;
  }

  /** Byte offset of stored block `index`; of the end of the last for `count`. */
  position(index: number): number {
    invariant(index >= 0 && index <= this.count, "no such block");
    return this.#bases[index >>> BASE_SHIFT]! + this.#relative[index]!;
  }
}

function badBlock(index: number, problem: string): FormatError {
  return new FormatError("ZFile jump table", `block ${index}`, problem);
}

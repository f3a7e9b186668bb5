/**
 * The blocks that every file system has (superblock, descriptors, bitmaps,
 * inode tables), held in memory with what the device below holds, so that an
 * emission is exactly what differs.
 */

import { equalBytes, isZero, viewOf } from "../io/mod.ts";
import { BLOCK_SIZE } from "./geometry.ts";

/** Blocks that share one allocation. */
const SLAB_BLOCKS = 64;
/** What is below a block whose bytes were never read: something, so it is always emitted. */
const UNKNOWN = "unknown";
const ZEROS = "zeros";

/** One block in memory. */
export class MetadataBlock {
  /** Block number on the device. */
  readonly number: number;
  /** The block as it is to be; changed only after {@linkcode MetadataBlocks.touch}. */
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** What the device below holds, once the block was touched in this layer. */
  below: Uint8Array | typeof UNKNOWN | typeof ZEROS | undefined;

  constructor(
    number: number,
    bytes: Uint8Array,
    below: MetadataBlock["below"],
  ) {
    this.number = number;
    this.bytes = bytes;
    this.view = viewOf(bytes);
    this.below = below;
  }

  /** Whether bytes `[from, to)` differ from what is below, as far as that is known. */
  differs(from: number, to: number): boolean {
    const now = this.bytes.subarray(from, to);
    if (this.below === undefined) return false;
    if (this.below === ZEROS) return !isZero(now);
    if (this.below === UNKNOWN) return true;
    return !equalBytes(now, this.below.subarray(from, to));
  }
}

/** What a layer changed among the blocks in memory. */
export interface MetadataChanges {
  /** Blocks to store, in order of their numbers. */
  blocks: MetadataBlock[];
  /** Numbers of blocks that must read as zeros and do not below, in order. */
  zeroed: number[];
}

/** The blocks in memory. A block that is absent reads as zeros, or was never needed. */
export class MetadataBlocks {
  readonly #blocks = new Map<number, MetadataBlock>();
  readonly #knownZeros = new Set<number>();
  readonly #isMapped: (block: number) => boolean;
  #touched: MetadataBlock[] = [];
  #slab = new Uint8Array(0);

  /** @param isMapped Whether the device below may hold anything but zeros in a block. */
  constructor(isMapped: (block: number) => boolean) {
    this.#isMapped = isMapped;
  }

  /** Takes in a block as the device has it; copies `bytes`. */
  insert(number: number, bytes: Uint8Array): void {
    if (isZero(bytes)) {
      this.#knownZeros.add(number);
      return;
    }
    const own = this.#allocate();
    own.set(bytes);
    this.#blocks.set(number, new MetadataBlock(number, own, undefined));
  }

  /** A block for reading, or undefined: zeros. */
  peek(number: number): MetadataBlock | undefined {
    return this.#blocks.get(number);
  }

  /** A block for writing. */
  touch(number: number): MetadataBlock {
    let block = this.#blocks.get(number);
    if (block === undefined) {
      const zeros = this.#knownZeros.delete(number) || !this.#isMapped(number);
      const below = zeros ? ZEROS : UNKNOWN;
      block = new MetadataBlock(number, this.#allocate(), below);
      this.#blocks.set(number, block);
      this.#touched.push(block);
    } else if (block.below === undefined) {
      block.below = block.bytes.slice();
      this.#touched.push(block);
    }
    return block;
  }

  /** Drops a block that belongs to nobody any more: whatever it holds is not emitted. */
  forget(number: number): void {
    const block = this.#blocks.get(number);
    if (block === undefined) return;
    this.#blocks.delete(number);
    block.below = undefined;
  }

  /** Blocks touched since {@linkcode settle}, in no special order. */
  touched(): readonly MetadataBlock[] {
    return this.#touched;
  }

  /** What differs from the device below. */
  changes(): MetadataChanges {
    const changes: MetadataChanges = { blocks: [], zeroed: [] };
    for (const block of this.#touched) {
      if (!block.differs(0, BLOCK_SIZE)) continue;
      if (isZero(block.bytes)) changes.zeroed.push(block.number);
      else changes.blocks.push(block);
    }
    changes.blocks.sort((a, b) => a.number - b.number);
    changes.zeroed.sort((a, b) => a - b);
    return changes;
  }

  /** Makes the present state the device below. */
  settle(): void {
    for (const block of this.#touched) block.below = undefined;
    this.#touched = [];
  }

  #allocate(): Uint8Array {
    if (this.#slab.length === 0) {
      this.#slab = new Uint8Array(SLAB_BLOCKS * BLOCK_SIZE);
    }
    const bytes = this.#slab.subarray(0, BLOCK_SIZE);
    this.#slab = this.#slab.subarray(BLOCK_SIZE);
    return bytes;
  }
}

/**
 * Where new blocks go. The rule depends on the device and its merged index
 * alone, so that a build that was interrupted after any layer and one that was
 * not place everything alike:
 *
 * 1. free blocks above the highest block that any layer below maps, upwards;
 * 2. then the lowest free block that no layer below maps;
 * 3. then the lowest free block.
 *
 * New bodies thus never share a block with bytes of a lower layer while there
 * is room, and each layer's metadata forms one run behind its bodies.
 */

import { LimitError } from "../io/mod.ts";
import { setBits, testBit } from "./bitmap.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import type { Groups } from "./groups.ts";

/** Which ranges of a device its layers map, with data or as zeroed. Bytes. */
export interface MappedRanges {
  /** End of the highest mapped range; 0 if nothing is mapped. */
  highestMapped(): number;
  /** Whether any sector of a range is mapped. */
  isMapped(offset: number, length: number): boolean;
  /** First offset at or above `offset` that is not mapped; makes a search on a full device fast. */
  nextUnmapped?(offset: number): number;
}

/** The merged index of a device without layers. */
export const NOTHING_MAPPED: MappedRanges = {
  highestMapped: () => 0,
  isMapped: () => false,
};

/** A run of blocks. */
export interface BlockRun {
  /** Block number. */
  start: number;
  /** Blocks. */
  count: number;
}

/** More is needed than the device holds. */
export class DeviceFullError extends LimitError {
  /** Blocks that the device lacks at least. */
  readonly missingBlocks: number;
  /** Inodes that the device lacks at least. */
  readonly missingInodes: number;

  constructor(
    message: string,
    missing: { blocks?: number; inodes?: number },
  ) {
    super(message);
    this.missingBlocks = missing.blocks ?? 0;
    this.missingInodes = missing.inodes ?? 0;
  }
}

const WRITTEN_GROUP = 8 * BLOCK_SIZE;
/** Free blocks that a search for unmapped ones looks at together. */
const SEARCH_BLOCKS = 256;

/** Hands out blocks by the rule above. */
export class BlockAllocator {
  readonly #groups: Groups;
  readonly #blocksCount: number;
  readonly #mapped: MappedRanges;
  /** Blocks that layers built in this process map; bitmaps by block / 32768. */
  readonly #written = new Map<number, Uint8Array>();
  /** First block above everything mapped by the layers below. */
  #highest: number;
  /** Rule 1 goes on here. */
  #above: number;
  /** Rules 2 and 3 find nothing below; what is given back lowers these. */
  #unmappedHint = 0;
  #freeHint = 0;
  /** What this layer took, in order. */
  #taken: BlockRun[] = [];

  constructor(groups: Groups, blocksCount: number, mapped: MappedRanges) {
    this.#groups = groups;
    this.#blocksCount = blocksCount;
    this.#mapped = mapped;
    this.#highest = Math.min(
      Math.ceil(mapped.highestMapped() / BLOCK_SIZE),
      blocksCount,
    );
    this.#above = this.#highest;
  }

  /** Whether a layer below maps a sector of this block. */
  isMapped(block: number): boolean {
    const bits = this.#written.get(Math.floor(block / WRITTEN_GROUP));
    return (bits !== undefined && testBit(bits, block % WRITTEN_GROUP)) ||
      this.#mapped.isMapped(block * BLOCK_SIZE, BLOCK_SIZE);
  }

  /**
   * Takes `count` blocks.
   *
   * @returns Runs in the order in which a file uses them.
   * @throws {DeviceFullError} If there are not enough; nothing is taken then.
   */
  take(count: number): BlockRun[] {
    const lacking = count - this.#groups.freeBlocks;
    if (lacking > 0) throw this.#full(lacking);
    const runs: BlockRun[] = [];
    let left = count;
    while (left > 0) {
      const run = this.#findAbove(left) ?? this.#findUnmapped(left) ??
        this.#findFree(left);
      if (run === undefined) {
        for (const taken of runs) this.release(taken.start, taken.count);
        throw this.#full(left);
      }
      this.#groups.useBlocks(run.start, run.count);
      left -= run.count;
      append(runs, run);
      append(this.#taken, run);
    }
    return runs;
  }

  /** Gives blocks back. */
  release(start: number, count: number): void {
    this.#groups.releaseBlocks(start, count);
    this.#freeHint = Math.min(this.#freeHint, start);
    if (start >= this.#unmappedHint) return;
    const unmapped = this.#skipMapped(start, start + count);
    if (unmapped < start + count) {
      this.#unmappedHint = Math.min(this.#unmappedHint, unmapped);
    }
  }

  /**
   * Ends a layer: everything it took and still uses is mapped now, as are
   * `emitted` blocks (ascending). This is what a reload would find.
   */
  endLayer(emitted: Iterable<number>): void {
    for (const { start, count } of this.#taken) {
      for (let block = start; block < start + count;) {
        const end = this.#groups.usedUntil(block, start + count);
        if (end > block) this.#markWritten(block, end);
        block = Math.max(end, block + 1);
      }
    }
    for (const block of emitted) this.#markWritten(block, block + 1);
    this.#taken = [];
    this.#above = this.#highest;
  }

  #markWritten(from: number, to: number): void {
    this.#highest = Math.max(this.#highest, to);
    for (let block = from; block < to;) {
      const group = Math.floor(block / WRITTEN_GROUP);
      const first = group * WRITTEN_GROUP;
      const end = Math.min(to, first + WRITTEN_GROUP);
      let bits = this.#written.get(group);
      if (bits === undefined) {
        bits = new Uint8Array(BLOCK_SIZE);
        this.#written.set(group, bits);
      }
      setBits(bits, block - first, end - first);
      block = end;
    }
  }

  #findAbove(most: number): BlockRun | undefined {
    const run = this.#groups.findFree(this.#above, this.#blocksCount, most);
    this.#above = run ? run.start + run.count : this.#blocksCount;
    return run;
  }

  #findUnmapped(most: number): BlockRun | undefined {
    const least = Math.max(most, SEARCH_BLOCKS);
    let block = this.#unmappedHint;
    while (block < this.#blocksCount) {
      const free = this.#groups.findFree(block, this.#blocksCount, least);
      if (free === undefined) break;
      const limit = free.start + free.count;
      const start = this.#skipMapped(free.start, limit);
      if (start < limit) {
        const stop = Math.min(limit, start + most);
        let end = start + 1;
        while (end < stop && !this.isMapped(end)) end++;
        this.#unmappedHint = end;
        return { start, count: end - start };
      }
      block = start;
    }
    this.#unmappedHint = this.#blocksCount;
    return undefined;
  }

  /** First block from `from` on that no layer maps, or some block at or behind `limit`. */
  #skipMapped(from: number, limit: number): number {
    let block = from;
    while (block < limit && this.isMapped(block)) {
      block++;
      // The block of the next unmapped byte may be mapped in part: it is asked again.
      const next = this.#mapped.nextUnmapped?.(block * BLOCK_SIZE);
      if (next !== undefined) {
        block = Math.max(block, Math.floor(next / BLOCK_SIZE));
      }
    }
    return block;
  }

  #findFree(most: number): BlockRun | undefined {
    const run = this.#groups.findFree(this.#freeHint, this.#blocksCount, most);
    this.#freeHint = run ? run.start + run.count : this.#blocksCount;
    return run;
  }

  #full(lacking: number): DeviceFullError {
    return new DeviceFullError(
      `Device of ${this.#blocksCount * BLOCK_SIZE} bytes is full: at least ${
        lacking * BLOCK_SIZE
      } bytes more are needed`,
      { blocks: lacking },
    );
  }
}

/** Adds a run to a list, joining it with the last one where they touch. */
function append(runs: BlockRun[], run: BlockRun): void {
  const last = runs.at(-1);
  if (last !== undefined && last.start + last.count === run.start) {
    last.count += run.count;
  } else {
    runs.push({ start: run.start, count: run.count });
  }
}

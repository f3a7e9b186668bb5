/**
 * Block groups: descriptors, bitmaps, counters, and the rules of groups whose
 * bitmaps were never written (uninit_bg).
 */

import { FormatError } from "../io/mod.ts";
import { clearBits, countBits, findClear, setBits, testBit } from "./bitmap.ts";
import {
  bitmapChecksum,
  checksumSeedOf,
  groupChecksumCrc16,
  groupChecksumCrc32c,
} from "./checksum.ts";
import {
  descriptorBlocksOf,
  descriptorSizeOf,
  GD,
  GROUP_FLAGS,
  groupCountOf,
  type GroupDescriptor,
  hasSuperblock,
  RO_COMPAT,
  type Superblock,
  writeGroupDescriptor,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import type { MetadataBlocks } from "./metadata_blocks.ts";

const NO_BITS: Uint8Array = new Uint8Array(BLOCK_SIZE);

/** All groups of a device. Block and inode numbers are the device's own. */
export class Groups {
  readonly count: number;
  readonly #sb: Superblock;
  readonly #blocks: MetadataBlocks;
  readonly #descriptors: GroupDescriptor[];
  readonly #changed = new Set<number>();
  readonly #blockBitsChanged = new Set<number>();
  readonly #inodeBitsChanged = new Set<number>();
  readonly #metadataCsum: boolean;
  /** Whether bg_flags and bg_itable_unused mean anything. */
  readonly #hasUnused: boolean;
  /** The last bitmap that was made up; a search asks for the same one again and again. Never written to. */
  #initial: { group: number; bits: Uint8Array } | undefined;
  #freeBlocks = 0;
  #freeInodes = 0;
  /** No group below has a never-used inode. */
  #unusedHint = 0;
  /** No group below has a free inode. */
  #freeInodeHint = 0;

  /**
   * @param descriptors One per group; owned from here on.
   * @param blocks Holds all initialised bitmaps and the descriptor table.
   */
  constructor(
    sb: Superblock,
    descriptors: GroupDescriptor[],
    blocks: MetadataBlocks,
  ) {
    this.#sb = sb;
    this.count = groupCountOf(sb);
    this.#descriptors = descriptors;
    this.#blocks = blocks;
    this.#metadataCsum = (sb.featureRoCompat & RO_COMPAT.metadataCsum) !== 0;
    this.#hasUnused = this.#metadataCsum ||
      (sb.featureRoCompat & RO_COMPAT.gdtCsum) !== 0;
    for (const d of descriptors) {
      this.#freeBlocks += d.freeBlocks;
      this.#freeInodes += d.freeInodes;
    }
  }

  /** Free blocks of the device. */
  get freeBlocks(): number {
    return this.#freeBlocks;
  }

  /** Free inodes of the device. */
  get freeInodes(): number {
    return this.#freeInodes;
  }

  /** Blocks of a group; the last one may be short. */
  blocksIn(group: number): number {
    const first = group * this.#sb.blocksPerGroup;
    return Math.min(this.#sb.blocksPerGroup, this.#sb.blocksCount - first);
  }

  /** First block of a group's inode table. */
  inodeTable(group: number): number {
    return this.#descriptors[group]!.inodeTable;
  }

  /** Inodes at the start of a group's table that are or once were in use. */
  inodesTouched(group: number): number {
    return this.#sb.inodesPerGroup - this.#neverUsed(group);
  }

  /** First run of free blocks in `[from, to)`, at most `most` long, or undefined. */
  findFree(
    from: number,
    to: number,
    most: number,
  ): { start: number; count: number } | undefined {
    const perGroup = this.#sb.blocksPerGroup;
    let block = from;
    while (block < to) {
      const group = Math.floor(block / perGroup);
      const first = group * perGroup;
      const end = Math.min(this.blocksIn(group), to - first);
      if (this.#descriptors[group]!.freeBlocks > 0) {
        const bits = this.#blockBits(group);
        const start = findClear(bits, block - first, end);
        if (start >= 0) {
          let stop = start + 1;
          const limit = Math.min(end, start + most);
          while (stop < limit && !testBit(bits, stop)) stop++;
          return { start: first + start, count: stop - start };
        }
      }
      block = first + perGroup;
    }
    return undefined;
  }

  /** End of the run of used blocks that starts at `from`, at most `to`; `from` itself if it is free. */
  usedUntil(from: number, to: number): number {
    const perGroup = this.#sb.blocksPerGroup;
    let block = from;
    while (block < to) {
      const group = Math.floor(block / perGroup);
      const first = group * perGroup;
      const end = Math.min(to - first, perGroup);
      const clear = findClear(this.#blockBits(group), block - first, end);
      if (clear >= 0) return first + clear;
      block = first + end;
    }
    return to;
  }

  /** Marks free blocks as used. */
  useBlocks(start: number, count: number): void {
    this.#eachPart(start, count, (group, from, to) => {
      setBits(this.#writableBlockBits(group), from, to);
      this.#descriptors[group]!.freeBlocks -= to - from;
      this.#freeBlocks -= to - from;
    });
  }

  /** @throws {FormatError} If a block is not in use. */
  releaseBlocks(start: number, count: number): void {
    this.#eachPart(start, count, (group, from, to) => {
      const bits = this.#writableBlockBits(group);
      if (findClear(bits, from, to) >= 0) {
        throw new FormatError(
          "ext4 block bitmap",
          "bit",
          "of a used block is 0",
          {
            offset: start * BLOCK_SIZE,
          },
        );
      }
      clearBits(bits, from, to);
      this.#descriptors[group]!.freeBlocks += to - from;
      this.#freeBlocks += to - from;
    });
  }

  /**
   * Takes the lowest never-used inode, else the lowest free one.
   *
   * @returns The inode number, or undefined if there is none.
   */
  takeInode(isDirectory: boolean): number | undefined {
    const perGroup = this.#sb.inodesPerGroup;
    for (; this.#unusedHint < this.count; this.#unusedHint++) {
      const group = this.#unusedHint;
      while (this.#neverUsed(group) > 0) {
        const index = this.inodesTouched(group);
        const bits = this.#writableInodeBits(group);
        this.#descriptors[group]!.itableUnused--;
        const ino = group * perGroup + index + 1;
        if (ino < this.#sb.firstIno || testBit(bits, index)) continue;
        return this.#takeInode(group, index, isDirectory);
      }
    }
    for (; this.#freeInodeHint < this.count; this.#freeInodeHint++) {
      const group = this.#freeInodeHint;
      if (this.#descriptors[group]!.freeInodes === 0) continue;
      const from = group === 0 ? this.#sb.firstIno - 1 : 0;
      const index = findClear(this.#inodeBits(group), from, perGroup);
      if (index >= 0) return this.#takeInode(group, index, isDirectory);
    }
    return undefined;
  }

  /** Gives an inode back. */
  releaseInode(ino: number, isDirectory: boolean): void {
    const group = Math.floor((ino - 1) / this.#sb.inodesPerGroup);
    const index = ino - 1 - group * this.#sb.inodesPerGroup;
    const bits = this.#writableInodeBits(group);
    if (!testBit(bits, index)) {
      throw new FormatError("ext4 inode bitmap", `inode ${ino}`, "is free");
    }
    clearBits(bits, index, index + 1);
    const d = this.#descriptors[group]!;
    d.freeInodes++;
    if (isDirectory) d.usedDirs--;
    this.#freeInodes++;
    this.#freeInodeHint = Math.min(this.#freeInodeHint, group);
  }

  /** Writes changed descriptors, with all their checksums, into the descriptor table. */
  sync(): void {
    const sb = this.#sb;
    const size = descriptorSizeOf(sb);
    const perBlock = BLOCK_SIZE / size;
    const seed = this.#metadataCsum ? checksumSeedOf(sb) : 0;
    for (const group of this.#changed) {
      const d = this.#descriptors[group]!;
      if (this.#metadataCsum && this.#blockBitsChanged.has(group)) {
        const bits = this.#blockBits(group);
        d.blockBitmapCsum = bitmapChecksum(seed, bits, sb.blocksPerGroup);
      }
      if (this.#metadataCsum && this.#inodeBitsChanged.has(group)) {
        const bits = this.#inodeBits(group);
        d.inodeBitmapCsum = bitmapChecksum(seed, bits, sb.inodesPerGroup);
      }
      const table = this.#blocks.touch(
        sb.firstDataBlock + 1 + Math.floor(group / perBlock),
      );
      const at = group % perBlock * size;
      writeGroupDescriptor(table.view, at, size, d);
      const raw = table.bytes.subarray(at, at + size);
      if (this.#metadataCsum) {
        d.checksum = groupChecksumCrc32c(seed, group, raw);
      } else if (this.#hasUnused) {
        d.checksum = groupChecksumCrc16(sb.uuid, group, raw);
      }
      table.view.setUint16(at + GD.checksum, d.checksum, true);
    }
    this.#changed.clear();
    this.#blockBitsChanged.clear();
    this.#inodeBitsChanged.clear();
  }

  /** Makes {@linkcode sync} write a group's descriptor. */
  markChanged(group: number): void {
    this.#changed.add(group);
  }

  #takeInode(group: number, index: number, isDirectory: boolean): number {
    setBits(this.#writableInodeBits(group), index, index + 1);
    const d = this.#descriptors[group]!;
    d.freeInodes--;
    if (isDirectory) d.usedDirs++;
    this.#freeInodes--;
    return group * this.#sb.inodesPerGroup + index + 1;
  }

  #neverUsed(group: number): number {
    if (!this.#hasUnused) return 0;
    const d = this.#descriptors[group]!;
    return d.flags & GROUP_FLAGS.inodeUninit
      ? this.#sb.inodesPerGroup
      : d.itableUnused;
  }

  #blockBits(group: number): Uint8Array {
    const d = this.#descriptors[group]!;
    if (this.#hasUnused && d.flags & GROUP_FLAGS.blockUninit) {
      return this.#initialBlockBits(group);
    }
    return this.#blocks.peek(d.blockBitmap)?.bytes ?? NO_BITS;
  }

  #inodeBits(group: number): Uint8Array {
    const d = this.#descriptors[group]!;
    if (this.#hasUnused && d.flags & GROUP_FLAGS.inodeUninit) return NO_BITS;
    return this.#blocks.peek(d.inodeBitmap)?.bytes ?? NO_BITS;
  }

  #writableBlockBits(group: number): Uint8Array {
    this.#changed.add(group);
    this.#blockBitsChanged.add(group);
    const d = this.#descriptors[group]!;
    const bits = this.#blocks.touch(d.blockBitmap).bytes;
    if (this.#hasUnused && d.flags & GROUP_FLAGS.blockUninit) {
      bits.set(this.#initialBlockBits(group));
      d.flags &= ~GROUP_FLAGS.blockUninit;
      const free = this.blocksIn(group) - countBits(bits, this.blocksIn(group));
      this.#freeBlocks += free - d.freeBlocks;
      d.freeBlocks = free;
    }
    return bits;
  }

  #writableInodeBits(group: number): Uint8Array {
    this.#changed.add(group);
    this.#inodeBitsChanged.add(group);
    const d = this.#descriptors[group]!;
    const bits = this.#blocks.touch(d.inodeBitmap).bytes;
    if (this.#hasUnused && d.flags & GROUP_FLAGS.inodeUninit) {
      bits.fill(0);
      setBits(bits, this.#sb.inodesPerGroup, 8 * BLOCK_SIZE);
      d.flags &= ~GROUP_FLAGS.inodeUninit;
      d.itableUnused = this.#sb.inodesPerGroup;
    }
    return bits;
  }

  /**
   * The bitmap of a group that was never written: in use are only the group's
   * own and its flex group's tables, the copies of superblock and descriptors,
   * and what lies behind the device's end. Kernel: `ext4_init_block_bitmap()`.
   */
  #initialBlockBits(group: number): Uint8Array {
    if (this.#initial?.group === group) return this.#initial.bits;
    const sb = this.#sb;
    const bits = new Uint8Array(BLOCK_SIZE);
    const first = group * sb.blocksPerGroup;
    const mark = (start: number, count: number) => {
      const from = Math.max(start - first, 0);
      const to = Math.min(start + count - first, this.blocksIn(group));
      if (from < to) setBits(bits, from, to);
    };
    if (hasSuperblock(sb, group)) {
      mark(first, 1 + descriptorBlocksOf(sb) + sb.reservedGdtBlocks);
    }
    const tableBlocks = sb.inodesPerGroup * sb.inodeSize / BLOCK_SIZE;
    const flex = 2 ** Math.min(sb.logGroupsPerFlex, 31);
    const from = group - group % flex;
    const to = Math.min(from + flex, this.count);
    for (let other = from; other < to; other++) {
      const d = this.#descriptors[other]!;
      mark(d.blockBitmap, 1);
      mark(d.inodeBitmap, 1);
      mark(d.inodeTable, tableBlocks);
    }
    setBits(bits, this.blocksIn(group), 8 * BLOCK_SIZE);
    this.#initial = { group, bits };
    return bits;
  }

  #eachPart(
    start: number,
    count: number,
    work: (group: number, from: number, to: number) => void,
  ): void {
    const perGroup = this.#sb.blocksPerGroup;
    let block = start;
    while (block < start + count) {
      const group = Math.floor(block / perGroup);
      const first = group * perGroup;
      const to = Math.min(start + count - first, perGroup);
      work(group, block - first, to);
      block = first + to;
    }
  }
}

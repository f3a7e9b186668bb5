/**
 * Where the tables of a new file system lie.
 *
 * One flex group spans the device, so all metadata that every file system has
 * stands in front, in this order (4 KiB blocks):
 *
 * ```text
 * 0            boot sector (zeros) and superblock at byte 1024
 * 1            group descriptors, 64 bytes each
 * 1 + D        block bitmaps, one block per group
 * 1 + D + G    inode bitmaps, one block per group
 * 1 + D + 2G   inode tables, group after group
 * dataStart    everything else
 * ```
 *
 * A lazy reader needs two ranges to mount, and what no inode uses stays a hole:
 * a 64 GiB device has 1 GiB of inode tables that cost nothing.
 */

import { LimitError } from "../io/mod.ts";

/** Bytes of a block. Nothing else is written. */
export const BLOCK_SIZE = 4096;
/** Blocks that one bitmap block covers. */
export const BLOCKS_PER_GROUP = 8 * BLOCK_SIZE;
/** Bytes of an inode that we write. */
export const NEW_INODE_SIZE = 256;
/** Bytes of a group descriptor with the 64bit feature. */
export const NEW_DESCRIPTOR_SIZE = 64;
/** Virtual size of a device unless the caller says otherwise. */
export const DEFAULT_VIRTUAL_SIZE = 64 * 2 ** 30;
/** Bytes of device per inode, as mke2fs has it. */
export const DEFAULT_INODE_RATIO = 16384;

/** Below this not even the tables and a directory fit. */
const MIN_VIRTUAL_SIZE = 1 << 20;
/** 2^32 blocks; the last block is left out so that every block number is a u32. */
const MAX_VIRTUAL_SIZE = 16 * 2 ** 40 - BLOCK_SIZE;
const INODES_PER_BLOCK = BLOCK_SIZE / NEW_INODE_SIZE;

/** The fixed numbers of a new file system. All positions are block numbers. */
export interface Geometry {
  /** Blocks of the device. */
  blocksCount: number;
  /** Block groups; the last one may be short. */
  groupCount: number;
  inodesPerGroup: number;
  /** Blocks of one group's inode table. */
  inodeTableBlocks: number;
  /** Blocks of the group descriptor table, which starts at block 1. */
  descriptorBlocks: number;
  blockBitmapsStart: number;
  inodeBitmapsStart: number;
  inodeTablesStart: number;
  /** First block after all tables. */
  dataStart: number;
  /** s_log_groups_per_flex: the smallest that puts every group into one flex group. */
  logGroupsPerFlex: number;
}

/**
 * Lays out a device.
 *
 * @param virtualSize Bytes; rounded down to whole blocks.
 * @param inodeRatio Bytes of device per inode, 1024 … 2^30.
 * @throws {LimitError} If the size is out of bounds or the tables leave no room.
 */
export function computeGeometry(
  virtualSize: number,
  inodeRatio: number = DEFAULT_INODE_RATIO,
): Geometry {
  if (
    !Number.isSafeInteger(virtualSize) || virtualSize < MIN_VIRTUAL_SIZE ||
    virtualSize > MAX_VIRTUAL_SIZE
  ) {
    throw new LimitError(
      `Cannot lay out a device of ${virtualSize} bytes: want ${MIN_VIRTUAL_SIZE} to ${MAX_VIRTUAL_SIZE}`,
    );
  }
  if (
    !Number.isSafeInteger(inodeRatio) || inodeRatio < 1024 ||
    inodeRatio > 2 ** 30
  ) {
    throw new LimitError(
      `Cannot use ${inodeRatio} bytes per inode: want 1024 to 1073741824`,
    );
  }
  const blocksCount = Math.floor(virtualSize / BLOCK_SIZE);
  const groupCount = Math.ceil(blocksCount / BLOCKS_PER_GROUP);
  // At least one table block per group; at most what one bitmap block can name,
  // and in all less than 2^32 inodes.
  const wanted = Math.ceil(blocksCount * BLOCK_SIZE / inodeRatio / groupCount);
  const inodeTableBlocks = Math.min(
    Math.max(1, Math.ceil(wanted / INODES_PER_BLOCK)),
    8 * BLOCK_SIZE / INODES_PER_BLOCK,
    Math.floor((2 ** 32 - 1) / groupCount / INODES_PER_BLOCK),
  );
  const descriptorBlocks = Math.ceil(
    groupCount * NEW_DESCRIPTOR_SIZE / BLOCK_SIZE,
  );
  const blockBitmapsStart = 1 + descriptorBlocks;
  const inodeBitmapsStart = blockBitmapsStart + groupCount;
  const inodeTablesStart = inodeBitmapsStart + groupCount;
  const dataStart = inodeTablesStart + groupCount * inodeTableBlocks;
  if (dataStart >= blocksCount) {
    throw new LimitError(
      `Cannot lay out a device of ${virtualSize} bytes with ${inodeRatio} bytes per inode: tables need ${
        dataStart * BLOCK_SIZE
      } bytes`,
    );
  }
  return {
    blocksCount,
    groupCount,
    inodesPerGroup: inodeTableBlocks * INODES_PER_BLOCK,
    inodeTableBlocks,
    descriptorBlocks,
    blockBitmapsStart,
    inodeBitmapsStart,
    inodeTablesStart,
    dataStart,
    logGroupsPerFlex: Math.max(1, Math.ceil(Math.log2(groupCount))),
  };
}

/** What a file tree takes up, for {@linkcode virtualSizeFor}. */
export interface SpaceNeed {
  /** Inodes, the reserved ones not counted. */
  inodes: number;
  /** Blocks of file bodies, directories, extent trees, xattrs and symlinks. */
  blocks: number;
}

/**
 * The smallest whole number of GiB whose device holds `need`.
 *
 * @returns Bytes.
 * @throws {LimitError} If no device can.
 */
export function virtualSizeFor(
  need: SpaceNeed,
  inodeRatio: number = DEFAULT_INODE_RATIO,
): number {
  const fits = (gib: number) => {
    const size = Math.min(gib * 2 ** 30, MAX_VIRTUAL_SIZE);
    const g = computeGeometry(size, inodeRatio);
    return g.blocksCount - g.dataStart >= need.blocks &&
      g.groupCount * g.inodesPerGroup >= need.inodes + 10;
  };
  let high = MAX_VIRTUAL_SIZE / 2 ** 30;
  high = Math.ceil(high);
  if (!fits(high)) {
    throw new LimitError(
      `Cannot hold ${need.blocks} blocks and ${need.inodes} inodes: no ext4 device of obd is large enough`,
    );
  }
  let low = 1;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) high = middle;
    else low = middle + 1;
  }
  return low * 2 ** 30;
}

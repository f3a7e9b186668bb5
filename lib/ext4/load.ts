/**
 * The model of a file system that is on a device already: ours, or another's
 * with its own geometry and features.
 *
 * Everything that decides how later layers come out is read: all bitmaps, the
 * inode tables as far as they were ever used, all directories, and the maps of
 * files that do not fit into their inodes. Bodies are not.
 */

import {
  type ByteSource,
  FormatError,
  LimitError,
  readBytes,
  UnsupportedError,
  viewOf,
} from "../io/mod.ts";
import { countBits, testBit } from "./bitmap.ts";
import { BlockAllocator, type MappedRanges } from "./block_alloc.ts";
import { xattrBlockChecksum } from "./checksum.ts";
import {
  descriptorBlocksOf,
  EH,
  FILE_TYPE,
  fileTypeOfMode,
  type GroupDescriptor,
  INCOMPAT,
  INO,
  INODE_FLAGS,
  readExtentHeader,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import { Groups } from "./groups.ts";
import { Inodes } from "./inodes.ts";
import { MetadataBlocks } from "./metadata_blocks.ts";
import { Ext4Reader, type StoredInode } from "./reader.ts";
import { demandChecksum } from "./reader_super.ts";
import { hasBlocks, type ModelState, noPending } from "./state.ts";
import { XATTR_MAGIC, XH } from "./xattr.ts";

/** Blocks of the largest read. */
const READ_BLOCKS = 256;
/** Groups with bitmaps to hold in memory: 4 TiB, 256 MiB of bitmaps. */
const BITMAP_GROUPS_MAX = 32768;
/** Blocks of inode tables to hold in memory: 8 million inodes, 2 GiB. */
const TABLE_BLOCKS_MAX = 2 ** 19;
/** `h_refcount` beyond which the kernel shares no block. Kernel: EXT4_XATTR_REFCOUNT_MAX. */
const XATTR_REFCOUNT_MAX = 1024;

/** What loading goes by. */
interface Loading {
  reader: Ext4Reader;
  device: ByteSource;
  mapped: MappedRanges;
  state: ModelState;
  /** Inode bitmaps of groups that have one. */
  inodeBits: Map<number, Uint8Array>;
}

/** Reads a model's state from a device; see `Ext4Model.load`. */
export async function loadState(
  device: ByteSource,
  mapped: MappedRanges,
): Promise<ModelState> {
  const reader = await Ext4Reader.open(device);
  const sb = { ...reader.superblock };
  if (reader.blockSize !== BLOCK_SIZE) {
    throw new UnsupportedError(
      "block size",
      `Cannot continue on a file system with blocks of ${reader.blockSize} bytes: want ${BLOCK_SIZE}`,
    );
  }
  if (!(sb.featureIncompat & INCOMPAT.extents)) {
    throw new UnsupportedError(
      "no extents",
      "Cannot continue on a file system without extents",
    );
  }
  const blocks = new MetadataBlocks((block) =>
    mapped.isMapped(block * BLOCK_SIZE, BLOCK_SIZE)
  );
  await loadRun({ device, mapped, blocks }, 0, 1 + descriptorBlocksOf(sb));
  const loaded = await loadBitmaps(reader, blocks);
  const groups = new Groups(sb, loaded.descriptors, blocks);
  for (const group of loaded.corrected) groups.markChanged(group);
  const state: ModelState = {
    sb,
    blocks,
    groups,
    inodes: new Inodes(sb, groups, blocks),
    allocator: new BlockAllocator(groups, sb.blocksCount, mapped),
    directories: new Map(),
    trees: new Map(),
    longTargets: new Map(),
    xattrSharers: new Map(),
    pending: noPending(),
    version: 0,
    onFree: undefined,
  };
  const { inodeBits } = loaded;
  const loading: Loading = { reader, device, mapped, state, inodeBits };
  await loadInodeTables(loading);
  await loadTree(loading, await loadInodes(loading));
  return state;
}

/** Takes in the mapped blocks of `[start, start + count)`; unmapped ones are zeros. */
async function loadRun(
  from: { device: ByteSource; mapped: MappedRanges; blocks: MetadataBlocks },
  start: number,
  count: number,
): Promise<number> {
  const { device, mapped, blocks } = from;
  const isMapped = (block: number) =>
    mapped.isMapped(block * BLOCK_SIZE, BLOCK_SIZE);
  let total = 0;
  for (let block = start; block < start + count;) {
    if (!isMapped(block)) {
      block++;
      continue;
    }
    const limit = Math.min(start + count, block + READ_BLOCKS);
    let end = block + 1;
    while (end < limit && isMapped(end)) end++;
    const offset = block * BLOCK_SIZE;
    const bytes = await readBytes(device, offset, (end - block) * BLOCK_SIZE);
    for (let at = 0; at < bytes.length; at += BLOCK_SIZE) {
      const number = block + at / BLOCK_SIZE;
      blocks.insert(number, bytes.subarray(at, at + BLOCK_SIZE));
    }
    total += end - block;
    block = end;
  }
  return total;
}

/** Bitmaps and descriptors. Counters are set right: overlaybd's tools leave stale ones. */
async function loadBitmaps(
  reader: Ext4Reader,
  blocks: MetadataBlocks,
): Promise<{
  descriptors: GroupDescriptor[];
  inodeBits: Map<number, Uint8Array>;
  corrected: number[];
}> {
  const sb = reader.superblock;
  const descriptors: GroupDescriptor[] = [];
  const inodeBits = new Map<number, Uint8Array>();
  const corrected = new Set<number>();
  let held = 0;
  const hold = (number: number, bitmap: Uint8Array) => {
    if (++held > 2 * BITMAP_GROUPS_MAX) {
      throw new LimitError(
        `Cannot continue on a file system with more than ${BITMAP_GROUPS_MAX} groups in use`,
      );
    }
    blocks.insert(number, bitmap);
  };
  for await (
    const { group, descriptor, bitmap, uninit } of reader.bitmaps("block")
  ) {
    descriptors.push(descriptor);
    if (uninit) continue;
    hold(descriptor.blockBitmap, bitmap);
    const first = group * sb.blocksPerGroup;
    const count = Math.min(sb.blocksPerGroup, sb.blocksCount - first);
    const free = count - countBits(bitmap, count);
    if (free !== descriptor.freeBlocks) corrected.add(group);
    descriptor.freeBlocks = free;
  }
  for await (const { group, bitmap, uninit } of reader.bitmaps("inode")) {
    const descriptor = descriptors[group]!;
    if (uninit) {
      descriptor.itableUnused = sb.inodesPerGroup;
      continue;
    }
    hold(descriptor.inodeBitmap, bitmap);
    inodeBits.set(group, bitmap);
    const free = sb.inodesPerGroup - countBits(bitmap, sb.inodesPerGroup);
    if (free !== descriptor.freeInodes) corrected.add(group);
    descriptor.freeInodes = free;
  }
  return { descriptors, inodeBits, corrected: [...corrected] };
}

/** The inode tables, as far as they were ever used. */
async function loadInodeTables(loading: Loading): Promise<void> {
  const { device, mapped, state } = loading;
  const { sb, groups, blocks } = state;
  const perBlock = BLOCK_SIZE / sb.inodeSize;
  let total = 0;
  for (let group = 0; group < groups.count; group++) {
    const count = Math.ceil(groups.inodesTouched(group) / perBlock);
    const from = { device, mapped, blocks };
    total += await loadRun(from, groups.inodeTable(group), count);
    if (total > TABLE_BLOCKS_MAX) {
      throw new LimitError(
        `Cannot continue on a file system with more than ${TABLE_BLOCKS_MAX} blocks of inodes`,
      );
    }
  }
}

/** Maps, long symlink targets and xattr blocks of all inodes; gives the directories. */
async function loadInodes(loading: Loading): Promise<StoredInode[]> {
  const { reader, state } = loading;
  const { inodesPerGroup, firstIno } = state.sb;
  const directories: StoredInode[] = [];
  /** How many more inodes may use an xattr block. */
  const sharersLeft = new Map<number, number>();
  for (const [group, bits] of loading.inodeBits) {
    for (let index = 0; index < inodesPerGroup; index++) {
      if (!testBit(bits, index)) continue;
      const ino = group * inodesPerGroup + index + 1;
      if (ino < firstIno && ino !== INO.root) continue;
      const stored = reader.decodeInode(ino, state.inodes.slot(ino));
      const { inode } = stored;
      if (inode.mode === 0 && inode.links === 0) continue;
      if (hasBlocks(inode) && !isFlatTree(stored)) {
        state.trees.set(ino, await reader.fileMap(stored));
      }
      const type = inode.mode & S_IFMT;
      if (type === S_IFDIR) directories.push(stored);
      if (type === S_IFLNK && hasBlocks(inode)) {
        state.longTargets.set(ino, await reader.readlink(ino));
      }
      const block = inode.xattrBlock;
      if (block === 0) continue;
      const left = sharersLeft.get(block) ??
        await loadXattrBlock(loading, block);
      // Else one's new attributes would become another's.
      if (left === 0) {
        throw new FormatError(
          `xattr block ${block}`,
          "h_refcount",
          "is less than the inodes that use it",
        );
      }
      sharersLeft.set(block, left - 1);
    }
  }
  return directories;
}

/** Whether all of an inode's extents stand in the inode itself. */
function isFlatTree({ inode }: StoredInode): boolean {
  if (!(inode.flags & INODE_FLAGS.extents)) return false;
  const view = viewOf(inode.block);
  return view.byteLength >= EH.SIZE && readExtentHeader(view, 0).depth === 0;
}

/**
 * Keeps an xattr block that several inodes share; others are written without
 * being read.
 *
 * @returns How many inodes share it.
 */
async function loadXattrBlock(
  loading: Loading,
  block: number,
): Promise<number> {
  const { reader, device, state } = loading;
  const name = `xattr block ${block}`;
  if (block >= state.sb.blocksCount) {
    throw new FormatError("ext4 inode", "i_file_acl", `is ${block}`);
  }
  const bytes = await readBytes(device, block * BLOCK_SIZE, BLOCK_SIZE);
  const view = viewOf(bytes);
  if (view.getUint32(XH.magic, true) !== XATTR_MAGIC) {
    throw new FormatError(name, "magic", "is wrong");
  }
  if (reader.metadataCsum) {
    demandChecksum(
      name,
      view.getUint32(XH.checksum, true),
      xattrBlockChecksum(reader.checksumSeed, block, bytes),
    );
  }
  const sharers = view.getUint32(XH.refcount, true);
  if (sharers === 0 || sharers > XATTR_REFCOUNT_MAX) {
    throw new FormatError(name, "h_refcount", `is ${sharers}`);
  }
  if (sharers > 1) {
    state.blocks.insert(block, bytes);
    state.xattrSharers.set(block, sharers);
  }
  return sharers;
}

/** All directories, checked to form a tree over inodes that are in use. */
async function loadTree(
  loading: Loading,
  stored: readonly StoredInode[],
): Promise<void> {
  const { reader, state } = loading;
  const { directories } = state;
  for (const { ino } of stored) {
    directories.set(ino, { parent: 0, children: new Map(), subdirectories: 0 });
  }
  const root = directories.get(INO.root);
  if (root === undefined) {
    throw new FormatError("ext4 root", "mode", "is not a directory");
  }
  root.parent = INO.root;
  const named: number[] = [];
  for (const one of stored) {
    const directory = directories.get(one.ino)!;
    const fail = (name: string, problem: string): never => {
      throw new FormatError(`directory ${one.ino}`, `entry "${name}"`, problem);
    };
    await reader.scanDirectory(one, ({ name, ino }) => {
      if (directory.children.has(name)) fail(name, "is there twice");
      if (!isInUse(loading, ino)) fail(name, `names inode ${ino}, not in use`);
      const child = directories.get(ino);
      if (child === undefined) {
        named.push(ino);
      } else if (child.parent === 0) {
        child.parent = one.ino;
        directory.subdirectories++;
      } else {
        fail(name, `is a second name of directory ${ino}`);
      }
      directory.children.set(name, ino);
    });
  }
  checkLinks(state, named);
}

/**
 * Checks that each link count is the number of names, so that removing names
 * never frees an inode that still has one.
 *
 * @param named The inode of every name that is no directory's.
 */
function checkLinks({ inodes }: ModelState, named: readonly number[]): void {
  const sorted = Float64Array.from(named).sort();
  for (let i = 0; i < sorted.length;) {
    const ino = sorted[i]!;
    let end = i + 1;
    while (sorted[end] === ino) end++;
    if (inodes.links(ino) !== end - i) {
      throw new FormatError(
        `inode ${ino}`,
        "i_links_count",
        `is ${inodes.links(ino)} with ${end - i} names`,
      );
    }
    i = end;
  }
}

/** Whether a directory may name an inode. */
function isInUse(loading: Loading, ino: number): boolean {
  const { inodesPerGroup, firstIno } = loading.state.sb;
  const group = Math.floor((ino - 1) / inodesPerGroup);
  const bits = loading.inodeBits.get(group);
  return ino >= firstIno && bits !== undefined &&
    testBit(bits, ino - 1 - group * inodesPerGroup) &&
    fileTypeOfMode(loading.state.inodes.mode(ino)) !== FILE_TYPE.unknown;
}

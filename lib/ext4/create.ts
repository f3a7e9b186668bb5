/** A new file system: superblock, descriptors, first bitmaps and the root directory. */

import { viewOf } from "../io/mod.ts";
import { setBits } from "./bitmap.ts";
import { BlockAllocator, NOTHING_MAPPED } from "./block_alloc.ts";
import { HASH_VERSION } from "./dirhash.ts";
import { buildExtentTree } from "./extent_build.ts";
import {
  COMPAT,
  CREATOR_OS_LINUX,
  ERRORS,
  EXTRA_SIZE,
  GROUP_FLAGS,
  type GroupDescriptor,
  INCOMPAT,
  INO,
  INODE_FLAGS,
  readSuperblock,
  REVISION_DYNAMIC,
  RO_COMPAT,
  S_IFDIR,
  STATE,
  SUPER_FLAGS,
  SUPER_MAGIC,
  type Superblock,
  SUPERBLOCK_OFFSET,
} from "./format.ts";
import {
  BLOCK_SIZE,
  BLOCKS_PER_GROUP,
  computeGeometry,
  DEFAULT_INODE_RATIO,
  DEFAULT_VIRTUAL_SIZE,
  type Geometry,
  NEW_DESCRIPTOR_SIZE,
  NEW_INODE_SIZE,
} from "./geometry.ts";
import { Groups } from "./groups.ts";
import { Inodes } from "./inodes.ts";
import { MetadataBlocks } from "./metadata_blocks.ts";
import { type ModelState, noPending } from "./state.ts";

/** `s_default_mount_opts`: user xattrs and ACLs, as mke2fs sets them. */
const DEFAULT_MOUNT_OPTIONS = 0x0c;
/** `s_max_mnt_count`: never check because of mounts. */
const NEVER = 0xffff;

/** The state of an empty file system over a device without layers. */
export function createState(
  virtualSize: number = DEFAULT_VIRTUAL_SIZE,
  inodeRatio: number = DEFAULT_INODE_RATIO,
): ModelState {
  const geometry = computeGeometry(virtualSize, inodeRatio);
  const sb = newSuperblock(geometry);
  const blocks = new MetadataBlocks(() => false);
  const descriptors = newDescriptors(geometry);
  writeFirstBitmaps(geometry, descriptors, blocks);
  const groups = new Groups(sb, descriptors, blocks);
  for (let group = 0; group < groups.count; group++) groups.markChanged(group);
  const state: ModelState = {
    sb,
    blocks,
    groups,
    inodes: new Inodes(sb, groups, blocks),
    allocator: new BlockAllocator(groups, sb.blocksCount, NOTHING_MAPPED),
    directories: new Map(),
    trees: new Map(),
    longTargets: new Map(),
    xattrSharers: new Map(),
    pending: noPending(),
    version: 0,
    onFree: undefined,
  };
  makeRoot(state);
  return state;
}

function newSuperblock(g: Geometry): Superblock {
  return {
    // Everything that is not named below is zero: UUID, hash seed, times, reserved blocks.
    ...readSuperblock(viewOf(new Uint8Array(SUPERBLOCK_OFFSET)), 0),
    inodesCount: g.groupCount * g.inodesPerGroup,
    blocksCount: g.blocksCount,
    logBlockSize: Math.log2(BLOCK_SIZE / 1024),
    logClusterSize: Math.log2(BLOCK_SIZE / 1024),
    blocksPerGroup: BLOCKS_PER_GROUP,
    clustersPerGroup: BLOCKS_PER_GROUP,
    inodesPerGroup: g.inodesPerGroup,
    maxMountCount: NEVER,
    magic: SUPER_MAGIC,
    state: STATE.clean,
    errors: ERRORS.continue,
    creatorOs: CREATOR_OS_LINUX,
    revision: REVISION_DYNAMIC,
    firstIno: INO.firstFree,
    inodeSize: NEW_INODE_SIZE,
    // sparse_super2 with no backup groups: there are no copies of the superblock.
    featureCompat: COMPAT.extAttr | COMPAT.dirIndex | COMPAT.sparseSuper2,
    featureIncompat: INCOMPAT.filetype | INCOMPAT.extents | INCOMPAT.is64bit |
      INCOMPAT.flexBg,
    featureRoCompat: RO_COMPAT.largeFile | RO_COMPAT.hugeFile |
      RO_COMPAT.gdtCsum | RO_COMPAT.dirNlink | RO_COMPAT.extraIsize,
    defHashVersion: HASH_VERSION.halfMd4,
    descriptorSize: NEW_DESCRIPTOR_SIZE,
    defaultMountOptions: DEFAULT_MOUNT_OPTIONS,
    minExtraSize: EXTRA_SIZE,
    wantExtraSize: EXTRA_SIZE,
    flags: SUPER_FLAGS.signedHash,
    logGroupsPerFlex: g.logGroupsPerFlex,
  };
}

/** Blocks of a group that the tables in front take. */
function tablesIn(g: Geometry, group: number): number {
  const first = group * BLOCKS_PER_GROUP;
  return Math.min(Math.max(g.dataStart - first, 0), BLOCKS_PER_GROUP);
}

function newDescriptors(g: Geometry): GroupDescriptor[] {
  return Array.from({ length: g.groupCount }, (_, group) => {
    const last = group === g.groupCount - 1;
    const length = Math.min(
      BLOCKS_PER_GROUP,
      g.blocksCount - group * BLOCKS_PER_GROUP,
    );
    const tables = tablesIn(g, group);
    // The kernel initialises a bitmap from the group's own tables only, so a
    // group that holds others' has it written. It never does so for the last
    // group, whose end needs padding. Zeroed on all: see README.
    const blockUninit = tables === 0 && !last ? GROUP_FLAGS.blockUninit : 0;
    const inodeUninit = group > 0 ? GROUP_FLAGS.inodeUninit : 0;
    const reserved = group === 0 ? INO.firstFree - 1 : 0;
    return {
      blockBitmap: g.blockBitmapsStart + group,
      inodeBitmap: g.inodeBitmapsStart + group,
      inodeTable: g.inodeTablesStart + group * g.inodeTableBlocks,
      freeBlocks: length - tables,
      freeInodes: g.inodesPerGroup - reserved,
      usedDirs: group === 0 ? 1 : 0,
      flags: GROUP_FLAGS.inodeZeroed | blockUninit | inodeUninit,
      itableUnused: g.inodesPerGroup - reserved,
      blockBitmapCsum: 0,
      inodeBitmapCsum: 0,
      checksum: 0,
    };
  });
}

function writeFirstBitmaps(
  g: Geometry,
  descriptors: readonly GroupDescriptor[],
  blocks: MetadataBlocks,
): void {
  descriptors.forEach((d, group) => {
    if (d.flags & GROUP_FLAGS.blockUninit) return;
    const bits = blocks.touch(d.blockBitmap).bytes;
    const tables = tablesIn(g, group);
    setBits(bits, 0, tables);
    setBits(bits, tables + d.freeBlocks, 8 * BLOCK_SIZE);
  });
  const bits = blocks.touch(g.inodeBitmapsStart).bytes;
  setBits(bits, 0, INO.firstFree - 1);
  setBits(bits, g.inodesPerGroup, 8 * BLOCK_SIZE);
}

function makeRoot(state: ModelState): void {
  const { inodes } = state;
  const inode = inodes.read(INO.root);
  inode.mode = S_IFDIR | 0o755;
  inode.links = 2;
  inode.flags = INODE_FLAGS.extents;
  inode.extraSize = inodes.newExtraSize;
  inode.block = buildExtentTree([], [], undefined).root;
  inodes.write(INO.root, inode);
  state.directories.set(INO.root, {
    parent: INO.root,
    children: new Map(),
    subdirectories: 0,
  });
  state.pending.directories.add(INO.root);
}

/**
 * What a model knows between operations. All of it can be had from the device
 * alone once a layer is emitted: that is what makes a continued build equal to
 * an uninterrupted one.
 */

import { type ByteString, FormatError, invariant, viewOf } from "../io/mod.ts";
import type { BlockAllocator } from "./block_alloc.ts";
import type { DirectoryFormat } from "./dir_build.ts";
import { checksumSeedOf, xattrBlockChecksum } from "./checksum.ts";
import { HASH_VERSION } from "./dirhash.ts";
import {
  COMPAT,
  EE,
  EH,
  EXTENT_MAGIC,
  EXTENT_ROOT_ENTRIES,
  type FileExtent,
  INCOMPAT,
  type Inode,
  INODE_FLAGS,
  readExtent,
  readExtentHeader,
  RO_COMPAT,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  SUPER_FLAGS,
  type Superblock,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import type { Groups } from "./groups.ts";
import type { Inodes } from "./inodes.ts";
import type { MetadataBlocks } from "./metadata_blocks.ts";
import { type StoredXattr, XH } from "./xattr.ts";

/** A directory of the tree. */
export interface Directory {
  /** Inode of the parent; the root is its own. */
  parent: number;
  /** Inode numbers by name, "." and ".." not among them. */
  children: Map<ByteString, number>;
  /** How many of them are directories. */
  subdirectories: number;
}

/** A block tree that does not fit into its inode. */
export interface BlockTree {
  extents: FileExtent[];
  /** Blocks of the tree itself. */
  nodes: number[];
}

/** Everything a model holds. */
export interface ModelState {
  sb: Superblock;
  blocks: MetadataBlocks;
  groups: Groups;
  inodes: Inodes;
  allocator: BlockAllocator;
  directories: Map<number, Directory>;
  /** Trees of inodes that have blocks of extents (or an old block map). */
  trees: Map<number, BlockTree>;
  /** Targets of symlinks that have a block for it. */
  longTargets: Map<number, ByteString>;
  /** Inodes that use an xattr block together, where it is more than one. */
  xattrSharers: Map<number, number>;
  pending: Pending;
  /** Counts operations, so that a stale emission is noticed. */
  version: number;
  /** Told of each inode that is given back. */
  onFree: ((node: number) => void) | undefined;
}

/** What the next emission must place and write, by inode. */
export interface Pending {
  /** Directories whose names changed. */
  directories: Set<number>;
  /** Symlinks whose target goes to a block. */
  symlinks: Set<number>;
  /** Files whose entry in `trees` is not written yet. */
  trees: Set<number>;
  /** Attributes that go to a block. */
  xattrs: Map<number, StoredXattr[]>;
}

/** Nothing to do. */
export function noPending(): Pending {
  return {
    directories: new Set(),
    symlinks: new Set(),
    trees: new Set(),
    xattrs: new Map(),
  };
}

/** A directory of the tree; anything else is the caller's mistake. */
export function directoryOf(state: ModelState, ino: number): Directory {
  const directory = state.directories.get(ino);
  invariant(directory !== undefined, `inode ${ino} is no directory`);
  return directory;
}

/** How this file system writes directories. */
export function directoryFormatOf(sb: Superblock): DirectoryFormat {
  const indexed = (sb.featureCompat & COMPAT.dirIndex) !== 0 &&
    sb.defHashVersion <= HASH_VERSION.tea;
  return {
    hash: indexed
      ? {
        version: sb.defHashVersion,
        // Without either flag the kernel takes its own machine's way, which is signed on x86.
        signed: (sb.flags & SUPER_FLAGS.unsignedHash) === 0,
        seed: sb.hashSeed,
      }
      : undefined,
    metadataCsum: (sb.featureRoCompat & RO_COMPAT.metadataCsum) !== 0,
    filetype: (sb.featureIncompat & INCOMPAT.filetype) !== 0,
  };
}

/** What an xattr block adds to `i_blocks`. */
export function xattrBlocks(inode: Inode): number {
  if (inode.xattrBlock === 0) return 0;
  return inode.flags & INODE_FLAGS.hugeFile ? 1 : BLOCK_SIZE / 512;
}

/** Whether an inode's `i_block` names blocks rather than holding a device or a symlink's target. */
export function hasBlocks(inode: Inode): boolean {
  switch (inode.mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
      return true;
    case S_IFLNK:
      return (inode.flags & INODE_FLAGS.extents) !== 0 ||
        inode.blocks > xattrBlocks(inode);
    default:
      return false;
  }
}

/**
 * The blocks of an inode. The result may be the model's own: do not change it.
 *
 * @throws {FormatError} If the tree in the inode is malformed.
 */
export function extentsOf(state: ModelState, ino: number): FileExtent[] {
  const tree = state.trees.get(ino);
  if (tree !== undefined) return tree.extents;
  const inode = state.inodes.read(ino);
  if (!hasBlocks(inode)) return [];
  const view = viewOf(inode.block);
  const header = readExtentHeader(view, 0);
  if (
    !(inode.flags & INODE_FLAGS.extents) || header.magic !== EXTENT_MAGIC ||
    header.depth !== 0 || header.entries > EXTENT_ROOT_ENTRIES
  ) {
    throw new FormatError(`ext4 inode ${ino}`, "extents", "have no root");
  }
  return Array.from({ length: header.entries }, (_, i) => {
    const extent = readExtent(view, EH.SIZE + i * EE.SIZE);
    if (
      extent.physicalBlock === 0 ||
      extent.physicalBlock + extent.count > state.sb.blocksCount
    ) {
      throw new FormatError(`ext4 inode ${ino}`, "extents", "leave the device");
    }
    return extent;
  });
}

/** Sets how many inodes use an xattr block, in memory and in the block, which must be loaded. */
export function setXattrSharers(
  state: ModelState,
  block: number,
  sharers: number,
): void {
  state.xattrSharers.set(block, sharers);
  const { view, bytes } = state.blocks.touch(block);
  view.setUint32(XH.refcount, sharers, true);
  if (state.sb.featureRoCompat & RO_COMPAT.metadataCsum) {
    const sum = xattrBlockChecksum(checksumSeedOf(state.sb), block, bytes);
    view.setUint32(XH.checksum, sum, true);
  }
}

/** A path for people, found by searching: only for messages. */
export function pathOf(state: ModelState, ino: number): ByteString {
  for (const [dir, { children }] of state.directories) {
    for (const [name, child] of children) {
      if (child === ino) return pathIn(state, dir, name);
    }
  }
  return "";
}

/** The path of a name in a directory, for messages. */
export function pathIn(
  state: ModelState,
  dir: number,
  name: ByteString,
): ByteString {
  const parts = [name];
  // The tree is no deeper than it has directories, whatever the parents say.
  for (let i = 0; i < state.directories.size; i++) {
    const parent = state.directories.get(dir)?.parent;
    if (parent === undefined || parent === dir) break;
    for (const [own, child] of state.directories.get(parent)?.children ?? []) {
      if (child === dir) parts.push(own);
    }
    dir = parent;
  }
  return parts.reverse().join("/");
}

/**
 * The end of a layer: placing what is not placed yet (directory, symlink,
 * extent tree and xattr blocks, in order of their inodes, behind the bodies),
 * and listing the blocks that differ from the device below.
 */

import { bytesFromLatin1, FormatError, invariant, viewOf } from "../io/mod.ts";
import {
  checksumSeedOf,
  superblockChecksum,
  xattrBlockChecksum,
} from "./checksum.ts";
import {
  type DirectoryPlan,
  fitsOneBlock,
  planDirectory,
} from "./dir_build.ts";
import {
  appendExtents,
  buildExtentTree,
  extentNodeCount,
} from "./extent_build.ts";
import {
  type FileExtent,
  fileTypeOfMode,
  type Inode,
  INODE_FLAGS,
  LINK_MAX,
  RO_COMPAT,
  SB,
  SUPERBLOCK_OFFSET,
  SUPERBLOCK_SIZE,
  writeSuperblock,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import {
  directoryFormatOf,
  extentsOf,
  type ModelState,
  noPending,
  pathOf,
  type Pending,
  xattrBlocks,
} from "./state.ts";
import { type StoredXattr, writeXattrBlock, XH } from "./xattr.ts";

const BLOCK_SECTORS = BLOCK_SIZE / 512;

/** One metadata block of a layer. */
export interface EmittedBlock {
  /** Block number on the device. */
  block: number;
  /** 4096 bytes, not all zero; the receiver's own. */
  bytes: Uint8Array;
}

/** A run of blocks. */
export interface ZeroedRun {
  /** First block. */
  block: number;
  /** Blocks. */
  count: number;
}

/** What a layer holds besides file bodies. */
export interface Emission {
  /** How many {@linkcode blocks} there are. */
  readonly blockCount: number;
  /**
   * The metadata blocks, by ascending number. Made as they are asked for, so
   * they must be taken before the model changes again; may be iterated twice.
   */
  readonly blocks: Iterable<EmittedBlock>;
  /** Blocks that must read as zeros and lie over mapped sectors of lower layers, ascending. */
  readonly zeroed: readonly ZeroedRun[];
}

/** What writes the blocks of one thing. */
interface Content {
  write(index: number, out: Uint8Array): void;
}

/** A block that does not come from the table cache. */
interface PlacedBlock {
  block: number;
  content: Content;
  index: number;
}

/** Ends a layer. */
export function emitState(state: ModelState): Emission {
  const { blocks, allocator, pending } = state;
  const placed = placePending(state, pending);
  state.pending = noPending();
  state.inodes.sync();
  state.groups.sync();
  syncSuperblock(state);
  const changes = blocks.changes();
  for (const { number, bytes } of changes.blocks) {
    const content = { write: (_: number, out: Uint8Array) => out.set(bytes) };
    placed.push({ block: number, content, index: 0 });
  }
  placed.sort((a, b) => a.block - b.block);
  placed.forEach(({ block }, i) => {
    // Only on a device whose own structures claim each other's blocks.
    if (block !== placed[i - 1]?.block) return;
    throw new FormatError(
      "ext4 file system",
      "block",
      `${block} is used twice`,
    );
  });
  blocks.settle();
  allocator.endLayer([...placed.map(({ block }) => block), ...changes.zeroed]);
  const version = ++state.version;
  return {
    blockCount: placed.length,
    blocks: {
      *[Symbol.iterator]() {
        for (const { block, content, index } of placed) {
          invariant(
            state.version === version,
            "an emission was read after its model went on",
          );
          const bytes = new Uint8Array(BLOCK_SIZE);
          content.write(index, bytes);
          yield { block, bytes };
        }
      },
    },
    zeroed: joinRuns(changes.zeroed),
  };
}

function joinRuns(numbers: readonly number[]): ZeroedRun[] {
  const runs: ZeroedRun[] = [];
  for (const block of numbers) {
    const last = runs.at(-1);
    if (last !== undefined && last.block + last.count === block) last.count++;
    else runs.push({ block, count: 1 });
  }
  return runs;
}

function syncSuperblock({ sb, groups, blocks }: ModelState): void {
  sb.freeBlocks = groups.freeBlocks;
  sb.freeInodes = groups.freeInodes;
  const { view, bytes } = blocks.touch(0);
  writeSuperblock(view, SUPERBLOCK_OFFSET, sb);
  if (sb.featureRoCompat & RO_COMPAT.metadataCsum) {
    sb.checksum = superblockChecksum(
      bytes.subarray(SUPERBLOCK_OFFSET, SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE),
    );
    view.setUint32(SUPERBLOCK_OFFSET + SB.checksum, sb.checksum, true);
  }
}

/** Places everything pending, inode by inode. */
function placePending(state: ModelState, pending: Pending): PlacedBlock[] {
  const inos = new Set([
    ...pending.directories,
    ...pending.symlinks,
    ...pending.trees,
    ...pending.xattrs.keys(),
  ]);
  const placed: PlacedBlock[] = [];
  for (const ino of Float64Array.from(inos).sort()) {
    const inode = state.inodes.read(ino);
    let isChanged = true;
    const xattrs = pending.xattrs.get(ino);
    if (pending.symlinks.has(ino)) {
      placeSymlink(state, ino, inode, placed);
    } else if (pending.directories.has(ino)) {
      placeDirectory(state, ino, inode, placed);
    } else if (pending.trees.has(ino)) {
      placeTree(state, ino, inode, extentsOf(state, ino), placed);
    } else {
      isChanged = false;
    }
    if (isChanged) setBlockCount(state, ino, inode);
    if (xattrs !== undefined) placeXattrBlock(state, inode, xattrs, placed);
    state.inodes.write(ino, inode);
  }
  return placed;
}

/** Sets `i_blocks` from the extents, the tree's nodes and the xattr block. */
function setBlockCount(state: ModelState, ino: number, inode: Inode): void {
  let count = inode.xattrBlock === 0 ? 0 : 1;
  count += state.trees.get(ino)?.nodes.length ?? 0;
  state.inodes.write(ino, inode);
  for (const extent of extentsOf(state, ino)) count += extent.count;
  inode.flags &= ~INODE_FLAGS.hugeFile;
  inode.blocks = count * BLOCK_SECTORS;
}

function placeSymlink(
  state: ModelState,
  ino: number,
  inode: Inode,
  placed: PlacedBlock[],
): void {
  const target = state.longTargets.get(ino)!;
  const extents: FileExtent[] = [];
  appendExtents(extents, 0, state.allocator.take(1));
  placeTree(state, ino, inode, extents, placed);
  placed.push({
    block: extents[0]!.physicalBlock,
    index: 0,
    content: { write: (_, out) => out.set(bytesFromLatin1(target)) },
  });
}

/** Writes a directory's blocks over the ones it has; takes more, or gives the last ones back. */
function placeDirectory(
  state: ModelState,
  ino: number,
  inode: Inode,
  placed: PlacedBlock[],
): void {
  const { parent, children, subdirectories } = state.directories.get(ino)!;
  const format = directoryFormatOf(state.sb);
  const content = { ino, parent, children };
  const path = () => pathOf(state, ino);
  const makePlan = () => planDirectory(content, format, path);
  // The plan of a small directory is made again when it is written: most
  // directories are small, and their plans would add up.
  const plan = fitsOneBlock(children, format) ? undefined : makePlan();
  const blocks = resizeBlocks(state, ino, plan?.blockCount ?? 1);
  const extents: FileExtent[] = [];
  blocks.forEach((start, logical) =>
    appendExtents(extents, logical, [{ start, count: 1 }])
  );
  inode.size = blocks.length * BLOCK_SIZE;
  inode.flags &= ~INODE_FLAGS.index;
  if (plan?.indexed) inode.flags |= INODE_FLAGS.index;
  inode.links = 2 + subdirectories;
  if (inode.links > LINK_MAX) {
    inode.links = 1;
    state.sb.featureRoCompat |= RO_COMPAT.dirNlink;
  }
  placeTree(state, ino, inode, extents, placed);
  const dirContent = directoryContent(state, ino, plan, makePlan);
  blocks.forEach((block, index) =>
    placed.push({ block, content: dirContent, index })
  );
}

function directoryContent(
  state: ModelState,
  ino: number,
  plan: DirectoryPlan | undefined,
  makePlan: () => DirectoryPlan,
): Content {
  const typeOf = (child: number) => fileTypeOfMode(state.inodes.mode(child));
  return {
    write(index, out) {
      const seed = state.inodes.checksumSeed(ino);
      (plan ?? makePlan()).write(index, out, typeOf, seed);
    },
  };
}

/** The physical blocks of a directory, made `count` long. */
function resizeBlocks(
  state: ModelState,
  ino: number,
  count: number,
): number[] {
  const blocks: number[] = [];
  for (const extent of extentsOf(state, ino)) {
    for (let i = 0; i < extent.count; i++) {
      blocks.push(extent.physicalBlock + i);
    }
  }
  while (blocks.length > count) state.allocator.release(blocks.pop()!, 1);
  if (blocks.length < count) {
    for (const run of state.allocator.take(count - blocks.length)) {
      for (let i = 0; i < run.count; i++) blocks.push(run.start + i);
    }
  }
  return blocks;
}

/** Gives an inode these extents, with the blocks of its tree in the old places as far as they go. */
function placeTree(
  state: ModelState,
  ino: number,
  inode: Inode,
  extents: FileExtent[],
  placed: PlacedBlock[],
): void {
  // In order of their numbers, so that it does not matter how they were found.
  const nodes = (state.trees.get(ino)?.nodes ?? []).sort((a, b) => a - b);
  const count = extentNodeCount(extents.length);
  while (nodes.length > count) state.allocator.release(nodes.pop()!, 1);
  if (nodes.length < count) {
    for (const run of state.allocator.take(count - nodes.length)) {
      for (let i = 0; i < run.count; i++) nodes.push(run.start + i);
    }
  }
  if (count > 0) state.trees.set(ino, { extents, nodes });
  else state.trees.delete(ino);
  const seed = state.inodes.checksumSeed(ino);
  const tree = buildExtentTree(extents, nodes, seed);
  inode.flags |= INODE_FLAGS.extents;
  inode.block = tree.root;
  for (const { block, bytes } of tree.nodes) {
    const content = { write: (_: number, out: Uint8Array) => out.set(bytes) };
    placed.push({ block, content, index: 0 });
  }
}

function placeXattrBlock(
  state: ModelState,
  inode: Inode,
  xattrs: readonly StoredXattr[],
  placed: PlacedBlock[],
): void {
  const { sb, blocks, xattrSharers } = state;
  if (inode.xattrBlock === 0) {
    inode.xattrBlock = state.allocator.take(1)[0]!.start;
    inode.blocks += xattrBlocks(inode);
  }
  const block = inode.xattrBlock;
  // A block that was shared once may still be in memory; it is written anew here.
  blocks.forget(block);
  xattrSharers.delete(block);
  const write = (_: number, out: Uint8Array) => {
    const fits = writeXattrBlock(out, xattrs);
    invariant(fits, "an xattr block was measured wrong");
    if (sb.featureRoCompat & RO_COMPAT.metadataCsum) {
      const sum = xattrBlockChecksum(checksumSeedOf(sb), block, out);
      viewOf(out).setUint32(XH.checksum, sum, true);
    }
  };
  placed.push({ block, content: { write }, index: 0 });
}

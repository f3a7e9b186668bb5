/**
 * What the operations of a model are made of: functions over its state. Those
 * that check come before those that change.
 */

import {
  type ByteString,
  invariant,
  LimitError,
  quoteName,
  UnsupportedError,
} from "../io/mod.ts";
import {
  type Attributes,
  placeXattrs,
  type XattrPlacement,
} from "./attributes.ts";
import { DeviceFullError } from "./block_alloc.ts";
import { type FileBody, logicalRuns } from "./body.ts";
import { appendExtents, buildExtentTree } from "./extent_build.ts";
import {
  COMPAT,
  type FileExtent,
  INODE,
  type Inode,
  INODE_BLOCK_SIZE,
  NAME_MAX,
  S_IFDIR,
  S_IFMT,
  type Timestamp,
  TIMESTAMP_MIN,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import {
  directoryOf,
  extentsOf,
  hasBlocks,
  type ModelState,
  pathIn,
  setXattrSharers,
  xattrBlocks,
} from "./state.ts";
import { writeInodeXattrs } from "./xattr.ts";

/** Extents of one file that overlaybd's readers look at; they lose those behind. */
export const BODY_EXTENTS_MAX = 8192;
/** Bytes of the largest file. Kernel: 2^32 - 1 blocks with extents. */
export const FILE_SIZE_MAX = (2 ** 32 - 1) * BLOCK_SIZE;

/** Refuses names that are taken or that no directory can hold. */
export function checkName(
  state: ModelState,
  dir: number,
  name: ByteString,
): void {
  invariant(!directoryOf(state, dir).children.has(name), "the name is taken");
  if (name.length > NAME_MAX) {
    throw new LimitError(
      `Cannot create "${
        pathIn(state, dir, name)
      }": name of ${name.length} bytes, want at most ${NAME_MAX}`,
    );
  }
  if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) {
    throw new UnsupportedError(
      "file name",
      `Cannot create "${
        pathIn(state, dir, name)
      }": the name is empty, "." or "..", or holds "/" or a zero byte`,
    );
  }
}

/** Checks everything, then takes an inode. */
export function newInode(
  state: ModelState,
  dir: number,
  name: ByteString,
  type: number,
  attributes: Attributes,
): { ino: number; inode: Inode } {
  checkName(state, dir, name);
  const { inodes, groups } = state;
  // Throws before anything is taken.
  placeXattrs(
    attributes.xattrs,
    inodes.newXattrRoomSize,
    () => pathIn(state, dir, name),
  );
  const ino = groups.takeInode(type === S_IFDIR);
  if (ino === undefined) {
    throw new DeviceFullError(
      `Device of ${
        state.sb.blocksCount * BLOCK_SIZE
      } bytes is full: all ${state.sb.inodesCount} inodes are in use`,
      { inodes: 1 },
    );
  }
  const zero = { seconds: 0, nanoseconds: 0 };
  const inode: Inode = {
    mode: type,
    uid: 0,
    gid: 0,
    size: 0,
    links: 1,
    blocks: 0,
    flags: 0,
    atime: zero,
    ctime: zero,
    mtime: zero,
    crtime: zero,
    dtime: 0,
    generation: 0,
    xattrBlock: 0,
    extraSize: inodes.newExtraSize,
    projectId: 0,
    checksum: 0,
    block: new Uint8Array(INODE_BLOCK_SIZE),
  };
  return { ino, inode };
}

/** Writes a new inode and gives it its first name. */
export function insertNode(
  state: ModelState,
  dir: number,
  name: ByteString,
  ino: number,
  inode: Inode,
  attributes: Attributes,
): void {
  const { inodes } = state;
  setFields(inode, attributes);
  inodes.clear(ino);
  inodes.write(ino, inode);
  const room = inodes.xattrRoomSize(ino);
  setXattrs(
    state,
    ino,
    placeXattrs(attributes.xattrs, room, () => pathIn(state, dir, name)),
  );
  addName(state, dir, name, ino);
}

/** Puts a name into a directory. */
export function addName(
  state: ModelState,
  dir: number,
  name: ByteString,
  ino: number,
): void {
  directoryOf(state, dir).children.set(name, ino);
  state.pending.directories.add(dir);
  state.version++;
}

/** Takes a name out of a directory. */
export function dropName(
  state: ModelState,
  dir: number,
  name: ByteString,
): void {
  directoryOf(state, dir).children.delete(name);
  state.pending.directories.add(dir);
  state.version++;
}

/** Takes one name off a node that is no directory, and the node with the last one. */
export function dropLink(
  state: ModelState,
  node: number,
): void {
  const inode = state.inodes.read(node);
  if (inode.links > 1) {
    inode.links--;
    state.inodes.write(node, inode);
  } else {
    freeNode(state, node, false);
  }
}

/** Gives back an inode with everything it owns. */
export function freeNode(
  state: ModelState,
  node: number,
  isDirectory: boolean,
): void {
  const { inodes, groups, trees, pending, allocator, longTargets } = state;
  const inode = inodes.read(node);
  if (hasBlocks(inode)) releaseExtents(state, extentsOf(state, node));
  for (const block of trees.get(node)?.nodes ?? []) {
    allocator.release(block, 1);
  }
  trees.delete(node);
  pending.trees.delete(node);
  pending.symlinks.delete(node);
  longTargets.delete(node);
  pending.xattrs.delete(node);
  dropXattrBlock(state, inode);
  inodes.clear(node);
  groups.releaseInode(node, isDirectory);
  state.onFree?.(node);
}

/** Gives blocks back. */
export function releaseExtents(
  state: ModelState,
  extents: readonly FileExtent[],
): void {
  for (const { physicalBlock, count } of extents) {
    state.allocator.release(physicalBlock, count);
  }
}

/** Replaces the xattrs of a node: those in the inode now, those in a block with the emission. */
export function setXattrs(
  state: ModelState,
  node: number,
  { inline, block }: XattrPlacement,
): void {
  const { inodes, pending, sb } = state;
  state.version++;
  const fits = writeInodeXattrs(inodes.xattrRoom(node), inline);
  invariant(fits, "in-inode xattrs were measured wrong");
  if (inline.length + block.length > 0) sb.featureCompat |= COMPAT.extAttr;
  const inode = inodes.read(node);
  if (block.length > 0) {
    pending.xattrs.set(node, block);
    if (!isShared(state, inode.xattrBlock)) return;
  } else {
    pending.xattrs.delete(node);
  }
  if (inode.xattrBlock === 0) return;
  dropXattrBlock(state, inode);
  inode.blocks -= xattrBlocks(inode);
  inode.xattrBlock = 0;
  inodes.write(node, inode);
}

function isShared(
  state: ModelState,
  block: number,
): boolean {
  return (state.xattrSharers.get(block) ?? 1) > 1;
}

/** Takes one inode off an xattr block, and the block with the last one. */
function dropXattrBlock(
  state: ModelState,
  { xattrBlock }: Inode,
): void {
  if (xattrBlock === 0) return;
  const { xattrSharers, blocks, allocator } = state;
  const sharers = xattrSharers.get(xattrBlock) ?? 1;
  if (sharers > 1) {
    setXattrSharers(state, xattrBlock, sharers - 1);
    return;
  }
  xattrSharers.delete(xattrBlock);
  blocks.forget(xattrBlock);
  allocator.release(xattrBlock, 1);
}

/**
 * Takes the blocks of a body.
 *
 * @throws {LimitError} If it is too large or needs too many extents; nothing is taken then.
 */
export function placeBody(
  state: ModelState,
  dir: number,
  name: ByteString,
  body: FileBody,
): FileExtent[] {
  if (
    !Number.isSafeInteger(body.size) || body.size < 0 ||
    body.size > FILE_SIZE_MAX
  ) {
    throw new LimitError(
      `Cannot create "${
        pathIn(state, dir, name)
      }": size of ${body.size} bytes, want at most ${FILE_SIZE_MAX}`,
    );
  }
  const runs = logicalRuns(body);
  let total = 0;
  for (const run of runs) total += run.count;
  const lacking = total - state.groups.freeBlocks;
  if (lacking > 0) {
    throw new DeviceFullError(
      `Device of ${state.sb.blocksCount * BLOCK_SIZE} bytes is full: at least ${
        lacking * BLOCK_SIZE
      } bytes more are needed for ${quoteName(pathIn(state, dir, name))}`,
      { blocks: lacking },
    );
  }
  const extents: FileExtent[] = [];
  for (const run of runs) {
    appendExtents(extents, run.start, state.allocator.take(run.count));
    if (extents.length > BODY_EXTENTS_MAX) {
      releaseExtents(state, extents);
      throw new LimitError(
        `Cannot create "${
          pathIn(state, dir, name)
        }": it needs more than ${BODY_EXTENTS_MAX} extents, and overlaybd reads no more`,
      );
    }
  }
  return extents;
}

/** Blocks of all extents. */
export function countBlocks(extents: readonly FileExtent[]): number {
  return extents.reduce((sum, { count }) => sum + count, 0);
}

/** An extent tree without extents. */
export function emptyRoot(): Uint8Array {
  return buildExtentTree([], [], undefined).root;
}

/** Sets what attributes say, xattrs aside. */
export function setFields(
  inode: Inode,
  attributes: Omit<Attributes, "xattrs">,
): void {
  const time = storableTime(attributes.mtime, inode.extraSize);
  inode.mode = (inode.mode & S_IFMT) | (attributes.mode & 0o7777);
  inode.uid = attributes.uid;
  inode.gid = attributes.gid;
  inode.mtime = time;
  inode.atime = time;
  inode.ctime = time;
  inode.crtime = time;
}

/** Bounds a time for inodes without epoch bits; others are bounded when they are encoded. */
function storableTime(time: Timestamp, extraSize: number): Timestamp {
  // All of atime, ctime and mtime have their extra field, or none counts.
  if (INODE.SIZE_OLD + extraSize >= INODE.atimeExtra + 4) return time;
  const seconds = Math.min(Math.max(time.seconds, TIMESTAMP_MIN), 2 ** 31 - 1);
  return { seconds, nanoseconds: 0 };
}

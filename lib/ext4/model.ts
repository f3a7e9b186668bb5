/**
 * The build side of ext4: a file tree with inode numbers and block placement,
 * changed layer by layer and emitted as the metadata blocks that differ from
 * the device below.
 */

import {
  bytesFromLatin1,
  type ByteSource,
  type ByteString,
  invariant,
  LimitError,
  UnsupportedError,
  viewOf,
} from "../io/mod.ts";
import {
  type Attributes,
  placeXattrs,
  type XattrPlacement,
} from "./attributes.ts";
import {
  type BlockRun,
  DeviceFullError,
  type MappedRanges,
} from "./block_alloc.ts";
import { createState } from "./create.ts";
import { type Emission, emitState } from "./emit.ts";
import {
  appendExtents,
  buildExtentTree,
  extentNodeCount,
} from "./extent_build.ts";
import {
  COMPAT,
  DEVICE_MAJOR_MAX,
  DEVICE_MINOR_MAX,
  FAST_SYMLINK_MAX,
  type FileExtent,
  INO,
  INODE,
  type Inode,
  INODE_BLOCK_SIZE,
  INODE_FLAGS,
  LINK_MAX,
  NAME_MAX,
  RO_COMPAT,
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IFSOCK,
  type Timestamp,
  TIMESTAMP_MIN,
  writeDevice,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import { loadState } from "./load.ts";
import {
  type Directory,
  extentsOf,
  hasBlocks,
  type ModelState,
  pathIn,
  pathOf,
  setXattrSharers,
  xattrBlocks,
} from "./state.ts";
import { writeInodeXattrs } from "./xattr.ts";

/** Extents of one file that overlaybd's readers look at; they lose those behind. */
export const BODY_EXTENTS_MAX = 8192;
/** Bytes of the longest symlink target: the kernel wants a zero behind it in its block. */
export const SYMLINK_MAX = BLOCK_SIZE - 1;
/** Bytes of the largest file. Kernel: 2^32 - 1 blocks with extents. */
export const FILE_SIZE_MAX = (2 ** 32 - 1) * BLOCK_SIZE;

const SECTOR_SIZE = 512;
const BLOCK_SECTORS = BLOCK_SIZE / SECTOR_SIZE;

/** What an inode is. */
export type NodeType =
  | "file"
  | "directory"
  | "symlink"
  | "char"
  | "block"
  | "fifo"
  | "socket";

/** A range of a file that holds something. 512-byte sectors. */
export interface FileSectors {
  fileSector: number;
  sectors: number;
}

/** A file's body. */
export interface FileBody {
  /** Bytes. */
  size: number;
  /**
   * What holds something, in any order; the rest is a hole where it covers
   * whole blocks. Absent: everything. Each block that these touch must be
   * mapped by the layer, in at least one sector.
   */
  ranges?: readonly FileSectors[] | undefined;
}

/** A device node, FIFO or socket. */
export interface SpecialNode {
  type: "char" | "block" | "fifo" | "socket";
  /** Device number; 0 for the others. */
  major?: number;
  minor?: number;
}

/** Facts of an inode. */
export interface NodeStat {
  type: NodeType;
  /** 12 bits. */
  mode: number;
  uid: number;
  gid: number;
  /** Bytes; of a directory only right after an emission. */
  size: number;
  /** Hard links; of a directory only right after an emission. */
  links: number;
  mtime: Timestamp;
}

const TYPE_NAMES = new Map<number, NodeType>([
  [S_IFREG, "file"],
  [S_IFDIR, "directory"],
  [S_IFLNK, "symlink"],
  [S_IFCHR, "char"],
  [S_IFBLK, "block"],
  [S_IFIFO, "fifo"],
  [S_IFSOCK, "socket"],
]);
const SPECIAL_MODES = {
  char: S_IFCHR,
  block: S_IFBLK,
  fifo: S_IFIFO,
  socket: S_IFSOCK,
} as const;

/**
 * A file tree on a device. Nodes are inode numbers. Names are byte strings,
 * one name component each.
 *
 * Order of use: changes, then {@linkcode emit} and all of its blocks, then the
 * next layer's changes. An operation that throws an `ObdError` other than
 * `DeviceFullError` has changed nothing; after `DeviceFullError` too, but the
 * caller will hardly go on.
 *
 * Blocks of a file that was created and removed within one layer must not be
 * mapped by it: take the extents when the layer is complete ({@linkcode extents}).
 */
export class Ext4Model {
  /** Inode of the root directory. */
  readonly root: number = INO.root;
  readonly #state: ModelState;

  private constructor(state: ModelState) {
    this.#state = state;
  }

  /**
   * A new file system, empty but for its root directory (mode 0755, owner 0, time 0).
   *
   * @throws {LimitError} If the geometry is out of bounds ({@linkcode computeGeometry}).
   */
  static create(
    options: { virtualSize?: number; inodeRatio?: number } = {},
  ): Ext4Model {
    return new Ext4Model(createState(options.virtualSize, options.inodeRatio));
  }

  /**
   * The file system on a device, ours or another's, ready for the next layer.
   *
   * @param device The merged device; borrowed until the promise settles.
   * @param mapped Its merged index; kept.
   * @throws {UnsupportedError} For features that obd does not write.
   * @throws {FormatError} If the file system is malformed.
   */
  static async load(
    device: ByteSource,
    mapped: MappedRanges,
  ): Promise<Ext4Model> {
    return new Ext4Model(await loadState(device, mapped));
  }

  /** Bytes of the device. */
  get virtualSize(): number {
    return this.#state.sb.blocksCount * BLOCK_SIZE;
  }

  /** Bytes that are free; directories changed since the last emission not counted. */
  get freeBytes(): number {
    return this.#state.groups.freeBlocks * BLOCK_SIZE;
  }

  /** Inodes that are free. */
  get freeInodes(): number {
    return this.#state.groups.freeInodes;
  }

  /** The node with this name, or undefined. */
  lookup(dir: number, name: ByteString): number | undefined {
    return this.#directory(dir).children.get(name);
  }

  /** The parent of a directory; the root is its own. */
  parent(dir: number): number {
    return this.#directory(dir).parent;
  }

  /** Names and nodes of a directory, sorted by name. */
  children(dir: number): [name: ByteString, node: number][] {
    return [...this.#directory(dir).children].sort(([a], [b]) =>
      a < b ? -1 : a > b ? 1 : 0
    );
  }

  /** What a node is. */
  type(node: number): NodeType {
    const type = TYPE_NAMES.get(this.#state.inodes.mode(node) & S_IFMT);
    invariant(type !== undefined, `inode ${node} is not in use`);
    return type;
  }

  /** Facts of a node. */
  stat(node: number): NodeStat {
    const inode = this.#state.inodes.read(node);
    return {
      type: this.type(node),
      mode: inode.mode & 0o7777,
      uid: inode.uid,
      gid: inode.gid,
      size: inode.size,
      links: inode.links,
      mtime: inode.mtime,
    };
  }

  /** A node's blocks, in order of the file's; only read them. */
  extents(node: number): readonly FileExtent[] {
    return extentsOf(this.#state, node);
  }

  /** The path of a node, by search: for messages. */
  path(node: number): ByteString {
    return pathOf(this.#state, node);
  }

  /** Makes an empty directory. */
  mkdir(dir: number, name: ByteString, attributes: Attributes): number {
    const { ino, inode } = this.#newInode(dir, name, S_IFDIR, attributes);
    inode.flags = INODE_FLAGS.extents;
    inode.links = 2;
    inode.block = emptyRoot();
    this.#insert(dir, name, ino, inode, attributes);
    this.#state.directories.set(ino, {
      parent: dir,
      children: new Map(),
      subdirectories: 0,
    });
    this.#directory(dir).subdirectories++;
    this.#state.pending.directories.add(ino);
    return ino;
  }

  /**
   * Makes a regular file and places its body; no data is written.
   *
   * @returns The node and where its blocks are.
   * @throws {LimitError} If it is too large, or too scattered to be read by overlaybd.
   * @throws {DeviceFullError} If the device has no room for it.
   */
  createFile(
    dir: number,
    name: ByteString,
    attributes: Attributes,
    body: FileBody,
  ): { node: number; extents: readonly FileExtent[] } {
    this.#checkName(dir, name);
    placeXattrs(
      attributes.xattrs,
      this.#state.inodes.newXattrRoomSize,
      () => this.#pathIn(dir, name),
    );
    const extents = this.#placeBody(dir, name, body);
    let made: { ino: number; inode: Inode };
    try {
      made = this.#newInode(dir, name, S_IFREG, attributes);
    } catch (error) {
      this.#releaseExtents(extents);
      throw error;
    }
    const { ino, inode } = made;
    inode.flags = INODE_FLAGS.extents;
    inode.size = body.size;
    inode.blocks = countBlocks(extents) * BLOCK_SECTORS;
    if (extentNodeCount(extents.length) === 0) {
      inode.block = buildExtentTree(extents, [], undefined).root;
    } else {
      inode.block = emptyRoot();
      this.#state.trees.set(ino, { extents, nodes: [] });
      this.#state.pending.trees.add(ino);
    }
    if (body.size > 0x7fffffff) {
      this.#state.sb.featureRoCompat |= RO_COMPAT.largeFile;
    }
    this.#insert(dir, name, ino, inode, attributes);
    return { node: ino, extents };
  }

  /**
   * Makes a symlink.
   *
   * @throws {UnsupportedError} For a target that is empty or holds a zero byte.
   * @throws {LimitError} For a target of more than 4095 bytes.
   */
  symlink(
    dir: number,
    name: ByteString,
    attributes: Attributes,
    target: ByteString,
  ): number {
    if (target === "" || target.includes("\0")) {
      throw new UnsupportedError(
        "symlink target",
        `Cannot create symlink "${
          this.#pathIn(dir, name)
        }": its target is empty or holds a zero byte`,
      );
    }
    if (target.length > SYMLINK_MAX) {
      throw new LimitError(
        `Cannot create symlink "${
          this.#pathIn(dir, name)
        }": target of ${target.length} bytes, want at most ${SYMLINK_MAX}`,
      );
    }
    const { ino, inode } = this.#newInode(dir, name, S_IFLNK, attributes);
    inode.size = target.length;
    if (target.length <= FAST_SYMLINK_MAX) {
      inode.block = new Uint8Array(INODE_BLOCK_SIZE);
      inode.block.set(bytesFromLatin1(target));
    } else {
      inode.flags = INODE_FLAGS.extents;
      inode.block = emptyRoot();
      this.#state.pending.symlinks.set(ino, target);
    }
    this.#insert(dir, name, ino, inode, attributes);
    return ino;
  }

  /**
   * Makes a device node, FIFO or socket.
   *
   * @throws {UnsupportedError} If a device number has more than 12 + 20 bits.
   */
  mknod(
    dir: number,
    name: ByteString,
    attributes: Attributes,
    special: SpecialNode,
  ): number {
    const { major = 0, minor = 0, type } = special;
    if (major > DEVICE_MAJOR_MAX || minor > DEVICE_MINOR_MAX) {
      throw new UnsupportedError(
        "device number",
        `Cannot create device "${
          this.#pathIn(dir, name)
        }": number ${major}:${minor} passes ${DEVICE_MAJOR_MAX}:${DEVICE_MINOR_MAX}`,
      );
    }
    const mode = SPECIAL_MODES[type];
    const { ino, inode } = this.#newInode(dir, name, mode, attributes);
    inode.block = new Uint8Array(INODE_BLOCK_SIZE);
    if (type === "char" || type === "block") {
      writeDevice(viewOf(inode.block), 0, major, minor);
    }
    this.#insert(dir, name, ino, inode, attributes);
    return ino;
  }

  /**
   * Gives a node that is no directory another name.
   *
   * @throws {LimitError} If it has 65,000 already.
   */
  link(dir: number, name: ByteString, node: number): void {
    invariant(this.type(node) !== "directory", "a directory has one name");
    this.#checkName(dir, name);
    const inode = this.#state.inodes.read(node);
    if (inode.links >= LINK_MAX) {
      throw new LimitError(
        `Cannot link "${this.#pathIn(dir, name)}" to "${
          this.path(node)
        }": it has ${inode.links} names already`,
      );
    }
    inode.links++;
    this.#state.inodes.write(node, inode);
    this.#addName(dir, name, node);
  }

  /** Removes a name that is no directory, and the node with its last name. */
  unlink(dir: number, name: ByteString): void {
    const node = this.#child(dir, name);
    invariant(this.type(node) !== "directory", "a directory is not unlinked");
    this.#dropName(dir, name);
    this.#dropLink(node);
  }

  /** Removes a name with everything below it. */
  removeTree(dir: number, name: ByteString): void {
    const node = this.#child(dir, name);
    if (this.type(node) !== "directory") return this.unlink(dir, name);
    this.#dropName(dir, name);
    this.#directory(dir).subdirectories--;
    const stack = [node];
    for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
      for (const child of this.#directory(next).children.values()) {
        if (this.#state.directories.has(child)) stack.push(child);
        else this.#dropLink(child);
      }
      this.#state.directories.delete(next);
      this.#state.pending.directories.delete(next);
      this.#free(next, true);
    }
  }

  /** Replaces all attributes of a node. */
  setAttributes(node: number, attributes: Attributes): void {
    const { inodes } = this.#state;
    const placement = placeXattrs(
      attributes.xattrs,
      inodes.xattrRoomSize(node),
      () => this.path(node),
    );
    const inode = inodes.read(node);
    setFields(inode, attributes);
    inodes.write(node, inode);
    this.#setXattrs(node, placement);
  }

  /**
   * Ends the layer: places what is not placed yet and gives the blocks that
   * differ from the device below. The model then stands for the device with
   * this layer on it.
   *
   * @throws {DeviceFullError} If the metadata finds no room; the model is of no use then.
   */
  emit(): Emission {
    return emitState(this.#state);
  }

  #directory(ino: number): Directory {
    const directory = this.#state.directories.get(ino);
    invariant(directory !== undefined, `inode ${ino} is no directory`);
    return directory;
  }

  #child(dir: number, name: ByteString): number {
    const node = this.lookup(dir, name);
    invariant(node !== undefined, "the name is not there");
    return node;
  }

  #pathIn(dir: number, name: ByteString): ByteString {
    return pathIn(this.#state, dir, name);
  }

  #checkName(dir: number, name: ByteString): void {
    invariant(!this.#directory(dir).children.has(name), "the name is taken");
    if (name.length > NAME_MAX) {
      throw new LimitError(
        `Cannot create "${
          this.#pathIn(dir, name)
        }": name of ${name.length} bytes, want at most ${NAME_MAX}`,
      );
    }
    if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) {
      throw new UnsupportedError(
        "file name",
        `Cannot create "${
          this.#pathIn(dir, name)
        }": the name is empty, "." or "..", or holds "/" or a zero byte`,
      );
    }
  }

  /** Checks everything, then takes an inode. */
  #newInode(
    dir: number,
    name: ByteString,
    type: number,
    attributes: Attributes,
  ): { ino: number; inode: Inode } {
    this.#checkName(dir, name);
    const { inodes, groups } = this.#state;
    // Throws before anything is taken.
    placeXattrs(
      attributes.xattrs,
      inodes.newXattrRoomSize,
      () => this.#pathIn(dir, name),
    );
    const ino = groups.takeInode(type === S_IFDIR);
    if (ino === undefined) {
      throw new DeviceFullError(
        `Device of ${this.virtualSize} bytes is full: all ${this.#state.sb.inodesCount} inodes are in use`,
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

  #insert(
    dir: number,
    name: ByteString,
    ino: number,
    inode: Inode,
    attributes: Attributes,
  ): void {
    const { inodes } = this.#state;
    setFields(inode, attributes);
    inodes.clear(ino);
    inodes.write(ino, inode);
    const room = inodes.xattrRoomSize(ino);
    this.#setXattrs(
      ino,
      placeXattrs(attributes.xattrs, room, () => this.#pathIn(dir, name)),
    );
    this.#addName(dir, name, ino);
  }

  #addName(dir: number, name: ByteString, ino: number): void {
    this.#directory(dir).children.set(name, ino);
    this.#state.pending.directories.add(dir);
    this.#state.version++;
  }

  #dropName(dir: number, name: ByteString): void {
    this.#directory(dir).children.delete(name);
    this.#state.pending.directories.add(dir);
    this.#state.version++;
  }

  #dropLink(node: number): void {
    const inode = this.#state.inodes.read(node);
    if (inode.links > 1) {
      inode.links--;
      this.#state.inodes.write(node, inode);
    } else {
      this.#free(node, false);
    }
  }

  #free(node: number, isDirectory: boolean): void {
    const { inodes, groups, trees, pending, allocator } = this.#state;
    const inode = inodes.read(node);
    if (hasBlocks(inode)) this.#releaseExtents(this.extents(node));
    for (const block of trees.get(node)?.nodes ?? []) {
      allocator.release(block, 1);
    }
    trees.delete(node);
    pending.trees.delete(node);
    pending.symlinks.delete(node);
    pending.xattrs.delete(node);
    this.#dropXattrBlock(inode);
    inodes.clear(node);
    groups.releaseInode(node, isDirectory);
  }

  #releaseExtents(extents: readonly FileExtent[]): void {
    for (const { physicalBlock, count } of extents) {
      this.#state.allocator.release(physicalBlock, count);
    }
  }

  #setXattrs(node: number, { inline, block }: XattrPlacement): void {
    const { inodes, pending, sb } = this.#state;
    this.#state.version++;
    const fits = writeInodeXattrs(inodes.xattrRoom(node), inline);
    invariant(fits, "in-inode xattrs were measured wrong");
    if (inline.length + block.length > 0) sb.featureCompat |= COMPAT.extAttr;
    const inode = inodes.read(node);
    if (block.length > 0) {
      pending.xattrs.set(node, block);
      if (!this.#isShared(inode.xattrBlock)) return;
    } else {
      pending.xattrs.delete(node);
    }
    if (inode.xattrBlock === 0) return;
    this.#dropXattrBlock(inode);
    inode.blocks -= xattrBlocks(inode);
    inode.xattrBlock = 0;
    inodes.write(node, inode);
  }

  #isShared(block: number): boolean {
    return (this.#state.xattrSharers.get(block) ?? 1) > 1;
  }

  /** Takes one inode off an xattr block, and the block with the last one. */
  #dropXattrBlock({ xattrBlock }: Inode): void {
    if (xattrBlock === 0) return;
    const { xattrSharers, blocks, allocator } = this.#state;
    const sharers = xattrSharers.get(xattrBlock) ?? 1;
    if (sharers > 1) {
      setXattrSharers(this.#state, xattrBlock, sharers - 1);
      return;
    }
    xattrSharers.delete(xattrBlock);
    blocks.forget(xattrBlock);
    allocator.release(xattrBlock, 1);
  }

  #placeBody(
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
          this.#pathIn(dir, name)
        }": size of ${body.size} bytes, want at most ${FILE_SIZE_MAX}`,
      );
    }
    const runs = blockRuns(body);
    let total = 0;
    for (const run of runs) total += run.count;
    const lacking = total - this.#state.groups.freeBlocks;
    if (lacking > 0) {
      throw new DeviceFullError(
        `Device of ${this.virtualSize} bytes is full: at least ${
          lacking * BLOCK_SIZE
        } bytes more are needed for "${this.#pathIn(dir, name)}"`,
        { blocks: lacking },
      );
    }
    const extents: FileExtent[] = [];
    for (const run of runs) {
      appendExtents(extents, run.start, this.#state.allocator.take(run.count));
      if (extents.length > BODY_EXTENTS_MAX) {
        this.#releaseExtents(extents);
        throw new LimitError(
          `Cannot create "${
            this.#pathIn(dir, name)
          }": it needs more than ${BODY_EXTENTS_MAX} extents, and overlaybd reads no more`,
        );
      }
    }
    return extents;
  }
}

/** Logical blocks of a body that hold something, in order and disjoint. */
function blockRuns(body: FileBody): BlockRun[] {
  const blocks = Math.ceil(body.size / BLOCK_SIZE);
  if (body.ranges === undefined) {
    return blocks > 0 ? [{ start: 0, count: blocks }] : [];
  }
  const runs: BlockRun[] = [];
  const sorted = [...body.ranges].sort((a, b) => a.fileSector - b.fileSector);
  for (const { fileSector, sectors } of sorted) {
    const start = Math.floor(fileSector / BLOCK_SECTORS);
    const end = Math.min(
      Math.ceil((fileSector + sectors) / BLOCK_SECTORS),
      blocks,
    );
    if (sectors <= 0 || end <= start) continue;
    const last = runs.at(-1);
    if (last !== undefined && start <= last.start + last.count) {
      last.count = Math.max(last.count, end - last.start);
    } else {
      runs.push({ start, count: end - start });
    }
  }
  return runs;
}

function countBlocks(extents: readonly FileExtent[]): number {
  return extents.reduce((sum, { count }) => sum + count, 0);
}

function emptyRoot(): Uint8Array {
  return buildExtentTree([], [], undefined).root;
}

function setFields(inode: Inode, attributes: Attributes): void {
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

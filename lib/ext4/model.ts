/**
 * The build side of ext4: a file tree with inode numbers and block placement,
 * changed layer by layer and emitted as the metadata blocks that differ from
 * the device below.
 */

import {
  bytesFromLatin1,
  type ByteSource,
  type ByteString,
  FormatError,
  invariant,
  latin1FromBytes,
  LimitError,
  UnsupportedError,
  viewOf,
} from "../io/mod.ts";
import { type Attributes, placeXattrs } from "./attributes.ts";
import type { MappedRanges } from "./block_alloc.ts";
import type { FileBody } from "./body.ts";
import { createState } from "./create.ts";
import { type Emission, emitState } from "./emit.ts";
import { buildExtentTree, extentNodeCount } from "./extent_build.ts";
import {
  DEVICE_MAJOR_MAX,
  DEVICE_MINOR_MAX,
  FAST_SYMLINK_MAX,
  type FileExtent,
  INO,
  type Inode,
  INODE_BLOCK_SIZE,
  INODE_FLAGS,
  LINK_MAX,
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
  writeDevice,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import { loadState } from "./load.ts";
import {
  addName,
  checkName,
  countBlocks,
  dropLink,
  dropName,
  emptyRoot,
  freeNode,
  insertNode,
  newInode,
  placeBody,
  releaseExtents,
  setFields,
  setXattrs,
} from "./node_ops.ts";
import {
  directoryOf,
  extentsOf,
  type ModelState,
  pathIn,
  pathOf,
} from "./state.ts";

/** Bytes of the longest symlink target: the kernel wants a zero behind it in its block. */
export const SYMLINK_MAX = BLOCK_SIZE - 1;

const BLOCK_SECTORS = BLOCK_SIZE / 512;

/** What an inode is. */
export type NodeType =
  | "file"
  | "directory"
  | "symlink"
  | "char"
  | "block"
  | "fifo"
  | "socket";

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
 * A layer must map at least one sector of every block of the bodies that it
 * creates and keeps, and none of those that it creates and removes again: take
 * the extents when the layer is complete ({@linkcode extents}, {@linkcode onFree}).
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

  /**
   * Called with each node that lost its last name, at once: its number may be
   * given to another node of the same layer. For callers that keep something
   * by node, such as the bodies that their layer is to map.
   */
  set onFree(callback: ((node: number) => void) | undefined) {
    this.#state.onFree = callback;
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
    return directoryOf(this.#state, dir).children.get(name);
  }

  /** The parent of a directory; the root is its own. */
  parent(dir: number): number {
    return directoryOf(this.#state, dir).parent;
  }

  /** Names and nodes of a directory, sorted by name. */
  children(dir: number): [name: ByteString, node: number][] {
    return [...directoryOf(this.#state, dir).children].sort(([a], [b]) =>
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

  /**
   * The target of a symlink.
   *
   * @throws {FormatError} If the device below holds none.
   */
  readlink(node: number): ByteString {
    invariant(this.type(node) === "symlink", `inode ${node} is no symlink`);
    const target = this.#state.longTargets.get(node);
    if (target !== undefined) return target;
    const { size, block } = this.#state.inodes.read(node);
    if (size > FAST_SYMLINK_MAX) {
      throw new FormatError(`symlink ${node}`, "i_size", `is ${size}`);
    }
    return latin1FromBytes(block.subarray(0, size));
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
    const { ino, inode } = newInode(
      this.#state,
      dir,
      name,
      S_IFDIR,
      attributes,
    );
    inode.flags = INODE_FLAGS.extents;
    inode.links = 2;
    inode.block = emptyRoot();
    insertNode(this.#state, dir, name, ino, inode, attributes);
    this.#state.directories.set(ino, {
      parent: dir,
      children: new Map(),
      subdirectories: 0,
    });
    directoryOf(this.#state, dir).subdirectories++;
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
    checkName(this.#state, dir, name);
    placeXattrs(
      attributes.xattrs,
      this.#state.inodes.newXattrRoomSize,
      () => pathIn(this.#state, dir, name),
    );
    const extents = placeBody(this.#state, dir, name, body);
    let made: { ino: number; inode: Inode };
    try {
      made = newInode(this.#state, dir, name, S_IFREG, attributes);
    } catch (error) {
      releaseExtents(this.#state, extents);
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
    insertNode(this.#state, dir, name, ino, inode, attributes);
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
          pathIn(this.#state, dir, name)
        }": its target is empty or holds a zero byte`,
      );
    }
    if (target.length > SYMLINK_MAX) {
      throw new LimitError(
        `Cannot create symlink "${
          pathIn(this.#state, dir, name)
        }": target of ${target.length} bytes, want at most ${SYMLINK_MAX}`,
      );
    }
    const { ino, inode } = newInode(
      this.#state,
      dir,
      name,
      S_IFLNK,
      attributes,
    );
    inode.size = target.length;
    if (target.length <= FAST_SYMLINK_MAX) {
      inode.block = new Uint8Array(INODE_BLOCK_SIZE);
      inode.block.set(bytesFromLatin1(target));
    } else {
      inode.flags = INODE_FLAGS.extents;
      inode.block = emptyRoot();
      this.#state.longTargets.set(ino, target);
      this.#state.pending.symlinks.add(ino);
    }
    insertNode(this.#state, dir, name, ino, inode, attributes);
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
          pathIn(this.#state, dir, name)
        }": number ${major}:${minor} passes ${DEVICE_MAJOR_MAX}:${DEVICE_MINOR_MAX}`,
      );
    }
    const mode = SPECIAL_MODES[type];
    const { ino, inode } = newInode(this.#state, dir, name, mode, attributes);
    inode.block = new Uint8Array(INODE_BLOCK_SIZE);
    if (type === "char" || type === "block") {
      writeDevice(viewOf(inode.block), 0, major, minor);
    }
    insertNode(this.#state, dir, name, ino, inode, attributes);
    return ino;
  }

  /**
   * Gives a node that is no directory another name.
   *
   * @throws {LimitError} If it has 65,000 already.
   */
  link(dir: number, name: ByteString, node: number): void {
    invariant(this.type(node) !== "directory", "a directory has one name");
    checkName(this.#state, dir, name);
    const inode = this.#state.inodes.read(node);
    if (inode.links >= LINK_MAX) {
      throw new LimitError(
        `Cannot link "${pathIn(this.#state, dir, name)}" to "${
          this.path(node)
        }": it has ${inode.links} names already`,
      );
    }
    inode.links++;
    this.#state.inodes.write(node, inode);
    addName(this.#state, dir, name, node);
  }

  /** Removes a name that is no directory, and the node with its last name. */
  unlink(dir: number, name: ByteString): void {
    const node = this.#child(dir, name);
    invariant(this.type(node) !== "directory", "a directory is not unlinked");
    dropName(this.#state, dir, name);
    dropLink(this.#state, node);
  }

  /** Removes a name with everything below it. */
  removeTree(dir: number, name: ByteString): void {
    const node = this.#child(dir, name);
    if (this.type(node) !== "directory") return this.unlink(dir, name);
    dropName(this.#state, dir, name);
    directoryOf(this.#state, dir).subdirectories--;
    const stack = [node];
    for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
      for (const child of directoryOf(this.#state, next).children.values()) {
        if (this.#state.directories.has(child)) stack.push(child);
        else dropLink(this.#state, child);
      }
      this.#state.directories.delete(next);
      this.#state.pending.directories.delete(next);
      freeNode(this.#state, next, true);
    }
  }

  /** Replaces the attributes of a node but its xattrs. */
  setStat(node: number, attributes: Omit<Attributes, "xattrs">): void {
    const inode = this.#state.inodes.read(node);
    setFields(inode, attributes);
    this.#state.inodes.write(node, inode);
    this.#state.version++;
  }

  /** Replaces all attributes of a node. */
  setAttributes(node: number, attributes: Attributes): void {
    const { inodes } = this.#state;
    const placement = placeXattrs(
      attributes.xattrs,
      inodes.xattrRoomSize(node),
      () => this.path(node),
    );
    this.setStat(node, attributes);
    setXattrs(this.#state, node, placement);
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

  #child(dir: number, name: ByteString): number {
    const node = this.lookup(dir, name);
    invariant(node !== undefined, "the name is not there");
    return node;
  }
}

/**
 * Directory blocks from a directory's names: linear for small ones, an htree
 * for large ones. A directory that changes is written anew as a whole, so its
 * bytes depend on its content alone.
 */

import {
  bytesFromLatin1,
  type ByteString,
  LimitError,
  viewOf,
} from "../io/mod.ts";
import { direntBlockChecksum, dxBlockChecksum } from "./checksum.ts";
import { hashName, type HashOptions } from "./dirhash.ts";
import {
  DE,
  DIRENT_TAIL,
  direntSize,
  DX_INFO_LENGTH,
  DX_NODE_ENTRIES,
  DX_ROOT,
  DX_TAIL,
  dxNodeLimit,
  dxRootLimit,
  FILE_TYPE,
  writeDirentTail,
  writeDxEntries,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";

/**
 * Directories of more linear blocks than this get an htree. Up to here a
 * lookup reads no more than root, leaf and the odd split of an htree would
 * cost, and names stay sorted, which compresses better than hash order.
 */
export const LINEAR_BLOCKS_MAX = 3;

/** "." and "..": 12 bytes each. */
const DOT_SIZE = direntSize(2);

/** How a file system writes directories. */
export interface DirectoryFormat {
  /** Undefined without dir_index: all directories are linear. */
  hash: HashOptions | undefined;
  /** Blocks end in checksums. */
  metadataCsum: boolean;
  /** Entries hold the type. */
  filetype: boolean;
}

/** A directory to write. */
export interface DirectoryContent {
  ino: number;
  parent: number;
  /** Inode number by name; no "." or "..". */
  children: ReadonlyMap<ByteString, number>;
}

/** The layout of one directory, ready to be written block by block. */
export interface DirectoryPlan {
  /** Blocks of the directory. */
  blockCount: number;
  /** Whether it is an htree. */
  indexed: boolean;
  /**
   * Writes block `index` into `out` (4096 zero bytes).
   *
   * @param typeOf The `file_type` of an inode.
   * @param inodeSeed For checksums, else undefined.
   */
  write(
    index: number,
    out: Uint8Array,
    typeOf: (ino: number) => number,
    inodeSeed: number | undefined,
  ): void;
}

/**
 * Lays out a directory.
 *
 * @param pathOf Names the directory in errors.
 * @throws {LimitError} If it needs more than an htree of two index levels.
 */
export function planDirectory(
  content: DirectoryContent,
  format: DirectoryFormat,
  pathOf: () => ByteString,
): DirectoryPlan {
  const names = [...content.children.keys()].sort();
  const starts = packLeaves(names, format, 2 * DOT_SIZE);
  if (format.hash === undefined || starts.length - 1 <= LINEAR_BLOCKS_MAX) {
    return new LinearPlan(content, format, names, starts);
  }
  return planIndexed(content, format, names, format.hash, pathOf);
}

/** Whether names fit into one block, without sorting them. */
export function fitsOneBlock(
  children: ReadonlyMap<ByteString, number>,
  format: DirectoryFormat,
): boolean {
  let room = leafRoom(format) - 2 * DOT_SIZE;
  for (const name of children.keys()) {
    room -= direntSize(name.length);
    if (room < 0) return false;
  }
  return true;
}

function leafRoom(format: DirectoryFormat): number {
  return BLOCK_SIZE - (format.metadataCsum ? DIRENT_TAIL.SIZE : 0);
}

/** First name of each leaf, and the number of names at the end. `used`: bytes taken in the first leaf. */
function packLeaves(
  names: readonly ByteString[],
  format: DirectoryFormat,
  used: number,
): number[] {
  const room = leafRoom(format);
  const starts = [0];
  let at = used;
  names.forEach((name, i) => {
    const size = direntSize(name.length);
    if (at + size > room) {
      starts.push(i);
      at = 0;
    }
    at += size;
  });
  starts.push(names.length);
  return starts;
}

/** Writes one entry. Names are latin1, so code units are bytes. */
function putEntry(
  out: Uint8Array,
  view: DataView,
  at: number,
  recordLength: number,
  ino: number,
  type: number,
  name: ByteString,
): void {
  view.setUint32(at + DE.ino, ino, true);
  view.setUint16(at + DE.recordLength, recordLength, true);
  view.setUint8(at + DE.nameLength, name.length);
  view.setUint8(at + DE.fileType, type);
  for (let i = 0; i < name.length; i++) {
    out[at + DE.name + i] = name.charCodeAt(i);
  }
}

class LinearPlan implements DirectoryPlan {
  readonly blockCount: number;
  readonly indexed: boolean = false;
  protected readonly content: DirectoryContent;
  protected readonly format: DirectoryFormat;
  readonly #names: readonly ByteString[];
  readonly #starts: readonly number[];

  constructor(
    content: DirectoryContent,
    format: DirectoryFormat,
    names: readonly ByteString[],
    starts: readonly number[],
  ) {
    this.content = content;
    this.format = format;
    this.#names = names;
    this.#starts = starts;
    this.blockCount = starts.length - 1;
  }

  write(
    index: number,
    out: Uint8Array,
    typeOf: (ino: number) => number,
    inodeSeed: number | undefined,
  ): void {
    this.writeLeaf(index, out, typeOf, index === 0);
    if (inodeSeed !== undefined) {
      const sum = direntBlockChecksum(inodeSeed, out);
      writeDirentTail(viewOf(out), 0, BLOCK_SIZE, sum);
    }
  }

  /** Writes leaf `leaf`, "." and ".." in front if `dots` is set. */
  protected writeLeaf(
    leaf: number,
    out: Uint8Array,
    typeOf: (ino: number) => number,
    dots: boolean,
  ): void {
    const view = viewOf(out);
    const { ino, parent, children } = this.content;
    const room = leafRoom(this.format);
    const type = (of: number) => this.format.filetype ? typeOf(of) : 0;
    const dotType = this.format.filetype ? FILE_TYPE.directory : 0;
    const from = this.#starts[leaf]!;
    const to = this.#starts[leaf + 1]!;
    let at = 0;
    if (dots) {
      putEntry(out, view, 0, DOT_SIZE, ino, dotType, ".");
      const length = to > from ? DOT_SIZE : room - DOT_SIZE;
      putEntry(out, view, DOT_SIZE, length, parent, dotType, "..");
      at = 2 * DOT_SIZE;
    }
    for (let i = from; i < to; i++) {
      const name = this.#names[i]!;
      const child = children.get(name)!;
      const length = i + 1 < to ? direntSize(name.length) : room - at;
      putEntry(out, view, at, length, child, type(child), name);
      at += length;
    }
  }
}

/** Blocks: the root, then the nodes (with two index levels), then the leaves in order of their hashes. */
class IndexedPlan extends LinearPlan {
  override readonly blockCount: number;
  override readonly indexed = true;
  readonly #hashVersion: number;
  /** Lowest hash of each leaf; bit 0 set where the hash goes on from the leaf before. */
  readonly #leafHashes: Uint32Array;
  readonly #nodeCount: number;

  constructor(
    content: DirectoryContent,
    format: DirectoryFormat,
    names: readonly ByteString[],
    starts: readonly number[],
    leafHashes: Uint32Array,
    nodeCount: number,
    hashVersion: number,
  ) {
    super(content, format, names, starts);
    this.#leafHashes = leafHashes;
    this.#nodeCount = nodeCount;
    this.#hashVersion = hashVersion;
    this.blockCount = 1 + nodeCount + leafHashes.length;
  }

  override write(
    index: number,
    out: Uint8Array,
    typeOf: (ino: number) => number,
    inodeSeed: number | undefined,
  ): void {
    const nodes = this.#nodeCount;
    if (index > nodes) {
      this.writeLeaf(index - nodes - 1, out, typeOf, false);
      if (inodeSeed !== undefined) {
        const sum = direntBlockChecksum(inodeSeed, out);
        writeDirentTail(viewOf(out), 0, BLOCK_SIZE, sum);
      }
      return;
    }
    const at = index === 0 ? DX_ROOT.entries : DX_NODE_ENTRIES;
    if (index === 0) this.#writeRoot(out);
    else this.#writeNode(index - 1, out);
    if (inodeSeed !== undefined) {
      const sum = dxBlockChecksum(inodeSeed, out, at);
      const tail = BLOCK_SIZE - DX_TAIL.SIZE + DX_TAIL.checksum;
      viewOf(out).setUint32(tail, sum, true);
    }
  }

  #writeRoot(out: Uint8Array): void {
    const view = viewOf(out);
    const { ino, parent } = this.content;
    const type = this.format.filetype ? FILE_TYPE.directory : 0;
    const rest = BLOCK_SIZE - DX_ROOT.dotDot;
    putEntry(out, view, DX_ROOT.dot, DOT_SIZE, ino, type, ".");
    putEntry(out, view, DX_ROOT.dotDot, rest, parent, type, "..");
    view.setUint8(DX_ROOT.hashVersion, this.#hashVersion);
    view.setUint8(DX_ROOT.infoLength, DX_INFO_LENGTH);
    view.setUint8(DX_ROOT.indirectLevels, this.#nodeCount > 0 ? 1 : 0);
    const limit = dxRootLimit(BLOCK_SIZE, this.format.metadataCsum);
    if (this.#nodeCount === 0) {
      this.#writePairs(view, DX_ROOT.entries, limit, 0, this.#leafHashes);
      return;
    }
    const perNode = dxNodeLimit(BLOCK_SIZE, this.format.metadataCsum);
    writeDxEntries(view, DX_ROOT.entries, {
      limit,
      hashes: Uint32Array.from(
        { length: this.#nodeCount },
        (_, i) => this.#leafHashes[i * perNode]!,
      ),
      blocks: Uint32Array.from({ length: this.#nodeCount }, (_, i) => 1 + i),
    });
  }

  #writeNode(node: number, out: Uint8Array): void {
    const view = viewOf(out);
    view.setUint16(DE.recordLength, BLOCK_SIZE, true);
    const limit = dxNodeLimit(BLOCK_SIZE, this.format.metadataCsum);
    const first = node * limit;
    const hashes = this.#leafHashes.subarray(first, first + limit);
    this.#writePairs(view, DX_NODE_ENTRIES, limit, first, hashes);
  }

  #writePairs(
    view: DataView,
    at: number,
    limit: number,
    firstLeaf: number,
    hashes: Uint32Array,
  ): void {
    const base = 1 + this.#nodeCount + firstLeaf;
    const blocks = Uint32Array.from(hashes, (_, i) => base + i);
    writeDxEntries(view, at, { limit, hashes, blocks });
  }
}

function planIndexed(
  content: DirectoryContent,
  format: DirectoryFormat,
  names: readonly ByteString[],
  hash: HashOptions,
  pathOf: () => ByteString,
): DirectoryPlan {
  const major = new Uint32Array(names.length);
  const minor = new Uint32Array(names.length);
  names.forEach((name, i) => {
    const value = hashName(bytesFromLatin1(name), hash)!;
    major[i] = value.major;
    minor[i] = value.minor;
  });
  // Names are sorted, so their index breaks the last tie.
  const order = Uint32Array.from(names, (_, i) => i).sort((a, b) =>
    major[a]! - major[b]! || minor[a]! - minor[b]! || a - b
  );
  const sorted = Array.from(order, (i) => names[i]!);
  const starts = packLeaves(sorted, format, 0);
  const leafCount = starts.length - 1;
  const leafHashes = new Uint32Array(leafCount);
  for (let leaf = 1; leaf < leafCount; leaf++) {
    const first = starts[leaf]!;
    const here = major[order[first]!]!;
    leafHashes[leaf] = here === major[order[first - 1]!]! ? here + 1 : here;
  }
  const rootLimit = dxRootLimit(BLOCK_SIZE, format.metadataCsum);
  const nodeLimit = dxNodeLimit(BLOCK_SIZE, format.metadataCsum);
  const nodeCount = leafCount <= rootLimit
    ? 0
    : Math.ceil(leafCount / nodeLimit);
  if (nodeCount > rootLimit) {
    throw new LimitError(
      `Cannot write directory "${pathOf()}" of ${names.length} names: an htree holds ${
        rootLimit * nodeLimit
      } blocks of them`,
    );
  }
  return new IndexedPlan(
    content,
    format,
    sorted,
    starts,
    leafHashes,
    nodeCount,
    hash.version,
  );
}

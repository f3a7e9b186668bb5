/**
 * The map from a file's blocks to the device's: extent trees, and the block
 * maps of ext2 and ext3.
 */

import { FormatError, LimitError, viewOf } from "../io/mod.ts";
import { extentBlockChecksum } from "./checksum.ts";
import {
  EE,
  EH,
  EI,
  EXTENT_DEPTH_MAX,
  EXTENT_MAGIC,
  extentTailOffset,
  type FileExtent,
  type Inode,
  INODE_FLAGS,
  readExtent,
  readExtentHeader,
  readExtentIndex,
} from "./format.ts";
import type { BlockReader } from "./reader_blocks.ts";
import { demandChecksum } from "./reader_super.ts";

/** Extents of one file that are read; more is refused. A million covers 4 TiB of 4 MiB runs. */
export const FILE_EXTENTS_MAX = 1 << 20;
/** Blocks of one file's map that are read. A block map of 4 KiB blocks covers 1 TiB with as many. */
export const FILE_NODES_MAX = 1 << 18;

const DIRECT_POINTERS = 12;

/** Where a file's bytes are, and the blocks that say so. */
export interface FileMap {
  /** Ascending by `logicalBlock`, never overlapping; gaps are holes. */
  extents: FileExtent[];
  /** Blocks of the extent tree's nodes, or the indirect blocks. */
  nodes: number[];
}

/** What a map is read with. */
export interface MapContext {
  blocks: BlockReader;
  /** For messages. */
  ino: number;
  /** Set under metadata_csum: nodes carry checksums. */
  checksumSeed: number | undefined;
}

/**
 * Reads a file's whole map.
 *
 * @throws {FormatError} If the map is malformed or leaves the device.
 * @throws {IntegrityError} If a node's checksum is wrong.
 * @throws {LimitError} If it has more than {@linkcode FILE_EXTENTS_MAX} extents or {@linkcode FILE_NODES_MAX} nodes.
 */
export async function readFileMap(
  context: MapContext,
  inode: Inode,
): Promise<FileMap> {
  const map: FileMap = { extents: [], nodes: [] };
  if (inode.flags & INODE_FLAGS.extents) {
    await new ExtentTree(context, map).readRoot(inode.block);
  } else {
    await new BlockMap(context, map).readRoot(inode);
  }
  return map;
}

function addNode(context: MapContext, map: FileMap, block: number): void {
  if (map.nodes.length >= FILE_NODES_MAX) {
    throw new LimitError(
      `Cannot read inode ${context.ino}: its block map has more than ${FILE_NODES_MAX} nodes`,
    );
  }
  map.nodes.push(block);
}

function addExtent(context: MapContext, map: FileMap, e: FileExtent): void {
  if (map.extents.length >= FILE_EXTENTS_MAX) {
    throw new LimitError(
      `Cannot read inode ${context.ino}: it has more than ${FILE_EXTENTS_MAX} extents`,
    );
  }
  map.extents.push(e);
}

/**
 * One tree. Every node's logical blocks must lie within the range that its
 * parent gives it, and no node but the root is empty. So a block can stand in
 * one place only, and a loop or a shared node cannot keep the reader busy.
 */
class ExtentTree {
  readonly #context: MapContext;
  readonly #map: FileMap;
  readonly #name: string;

  constructor(context: MapContext, map: FileMap) {
    this.#context = context;
    this.#map = map;
    this.#name = `extent tree of inode ${context.ino}`;
  }

  async readRoot(iBlock: Uint8Array): Promise<void> {
    await this.#readNode(iBlock, undefined, 0, 2 ** 32);
  }

  #fail(field: string, problem: string): never {
    throw new FormatError(this.#name, field, problem);
  }

  /** Logical blocks of this node lie in [first, limit). */
  async #readNode(
    bytes: Uint8Array,
    expectedDepth: number | undefined,
    first: number,
    limit: number,
  ): Promise<void> {
    const view = viewOf(bytes);
    const header = readExtentHeader(view, 0);
    if (header.magic !== EXTENT_MAGIC) this.#fail("eh_magic", "is wrong");
    if (
      header.entries > header.max || extentTailOffset(header.max) > bytes.length
    ) {
      this.#fail("eh_entries", `is ${header.entries} of ${header.max}`);
    }
    if (
      header.depth > EXTENT_DEPTH_MAX ||
      (expectedDepth !== undefined && header.depth !== expectedDepth)
    ) {
      this.#fail("eh_depth", `is ${header.depth}`);
    }
    if (expectedDepth !== undefined) {
      if (header.entries === 0) this.#fail("eh_entries", "is 0 below the root");
      this.#verify(bytes, header.max);
    }
    if (header.depth === 0) this.#readLeaf(view, header.entries, first, limit);
    else await this.#readIndex(view, header, first, limit);
  }

  #verify(bytes: Uint8Array, max: number): void {
    const seed = this.#context.checksumSeed;
    if (seed === undefined) return;
    const tail = extentTailOffset(max);
    if (tail + 4 > bytes.length) this.#fail("eh_max", `is ${max}`);
    demandChecksum(
      this.#name,
      viewOf(bytes).getUint32(tail, true),
      extentBlockChecksum(seed, bytes, max),
    );
  }

  #readLeaf(view: DataView, entries: number, first: number, limit: number) {
    let next = first;
    for (let i = 0; i < entries; i++) {
      const extent = readExtent(view, EH.SIZE + i * EE.SIZE);
      if (extent.count === 0) this.#fail("ee_len", "is 0");
      if (
        extent.logicalBlock < next || extent.logicalBlock + extent.count > limit
      ) {
        this.#fail("ee_block", `${extent.logicalBlock} is out of order`);
      }
      this.#context.blocks.check(
        this.#name,
        extent.physicalBlock,
        extent.count,
      );
      next = extent.logicalBlock + extent.count;
      addExtent(this.#context, this.#map, extent);
    }
  }

  async #readIndex(
    view: DataView,
    header: { entries: number; depth: number },
    first: number,
    limit: number,
  ): Promise<void> {
    if (header.entries === 0) this.#fail("eh_entries", "of an index is 0");
    const at = (i: number) => readExtentIndex(view, EH.SIZE + i * EI.SIZE);
    for (let i = 0; i < header.entries; i++) {
      const { logicalBlock, child } = at(i);
      const end = i + 1 < header.entries ? at(i + 1).logicalBlock : limit;
      if (logicalBlock < first || logicalBlock >= end || end > limit) {
        this.#fail("ei_block", `${logicalBlock} is out of order`);
      }
      addNode(this.#context, this.#map, child);
      const bytes = await this.#context.blocks.block(this.#name, child);
      await this.#readNode(bytes, header.depth - 1, logicalBlock, end);
    }
  }
}

/** A map of ext2 and ext3: 12 block numbers, then one block each of single, double and triple indirection. */
class BlockMap {
  readonly #context: MapContext;
  readonly #map: FileMap;
  readonly #name: string;

  constructor(context: MapContext, map: FileMap) {
    this.#context = context;
    this.#map = map;
    this.#name = `block map of inode ${context.ino}`;
  }

  async readRoot(inode: Inode): Promise<void> {
    const view = viewOf(inode.block);
    for (let i = 0; i < DIRECT_POINTERS; i++) {
      this.#add(i, view.getUint32(i * 4, true));
    }
    const perBlock = this.#context.blocks.blockSize / 4;
    let logical = DIRECT_POINTERS;
    for (let level = 1; level <= 3; level++) {
      const pointer = view.getUint32((DIRECT_POINTERS + level - 1) * 4, true);
      if (pointer !== 0) await this.#readIndirect(pointer, level, logical);
      logical += perBlock ** level;
    }
  }

  async #readIndirect(
    block: number,
    level: number,
    logical: number,
  ): Promise<void> {
    addNode(this.#context, this.#map, block);
    const view = viewOf(await this.#context.blocks.block(this.#name, block));
    const perBlock = this.#context.blocks.blockSize / 4;
    const span = perBlock ** (level - 1);
    for (let i = 0; i < perBlock; i++) {
      const pointer = view.getUint32(i * 4, true);
      if (pointer === 0) continue;
      const at = logical + i * span;
      if (at >= 2 ** 32) {
        throw new FormatError(this.#name, "length", "passes 2^32 blocks");
      }
      if (level === 1) this.#add(at, pointer);
      else await this.#readIndirect(pointer, level - 1, at);
    }
  }

  #add(logicalBlock: number, physicalBlock: number): void {
    if (physicalBlock === 0) return;
    this.#context.blocks.check(this.#name, physicalBlock, 1);
    const last = this.#map.extents.at(-1);
    if (
      last && last.logicalBlock + last.count === logicalBlock &&
      last.physicalBlock + last.count === physicalBlock
    ) {
      last.count++;
      return;
    }
    addExtent(this.#context, this.#map, {
      logicalBlock,
      physicalBlock,
      count: 1,
      unwritten: false,
    });
  }
}

/** Inodes in their tables. The table blocks in memory are the only copy: what is loaded is what is written. */

import {
  checksumSeedOf,
  hasInodeChecksumHi,
  inodeChecksum,
  inodeChecksumSeed,
} from "./checksum.ts";
import {
  EXTRA_SIZE,
  INODE,
  type Inode,
  readInode,
  RO_COMPAT,
  type Superblock,
  writeInode,
} from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import type { Groups } from "./groups.ts";
import type { MetadataBlock, MetadataBlocks } from "./metadata_blocks.ts";

const NO_INODES = new Uint8Array(BLOCK_SIZE);
const EMPTY = new DataView(NO_INODES.buffer);

/** All inodes of a device. Numbers must be in bounds: callers check what comes from outside. */
export class Inodes {
  readonly #sb: Superblock;
  readonly #groups: Groups;
  readonly #blocks: MetadataBlocks;
  readonly #perBlock: number;
  readonly #size: number;
  /** Inodes whose checksum is out of date; only kept with metadata_csum. */
  readonly #stale: Set<number> | undefined;

  constructor(sb: Superblock, groups: Groups, blocks: MetadataBlocks) {
    this.#sb = sb;
    this.#groups = groups;
    this.#blocks = blocks;
    this.#size = sb.inodeSize;
    this.#perBlock = BLOCK_SIZE / sb.inodeSize;
    this.#stale = sb.featureRoCompat & RO_COMPAT.metadataCsum
      ? new Set()
      : undefined;
  }

  /** Decodes an inode; its `block` is a view of the table, not a copy. */
  read(ino: number): Inode {
    const view = this.#peek(ino)?.view ?? EMPTY;
    return readInode(view, this.#offset(ino), this.#size);
  }

  /** The bytes of an inode's slot; only read them. */
  slot(ino: number): Uint8Array {
    const at = this.#offset(ino);
    const bytes = this.#peek(ino)?.bytes ?? NO_INODES;
    return bytes.subarray(at, at + this.#size);
  }

  /** `i_mode` of an inode. */
  mode(ino: number): number {
    const block = this.#peek(ino);
    return block?.view.getUint16(this.#offset(ino) + INODE.mode, true) ?? 0;
  }

  /** `i_links_count` of an inode. */
  links(ino: number): number {
    const block = this.#peek(ino);
    return block?.view.getUint16(this.#offset(ino) + INODE.links, true) ?? 0;
  }

  /** Writes an inode's fields. */
  write(ino: number, inode: Inode): void {
    const block = this.#touch(ino);
    writeInode(block.view, this.#offset(ino), this.#size, inode);
  }

  /** The room for xattrs behind an inode's fields, for writing; empty in inodes that have no fields beyond 128 bytes. */
  xattrRoom(ino: number): Uint8Array {
    const bytes = this.#touch(ino).bytes;
    const at = this.#offset(ino);
    return bytes.subarray(at + this.#roomOffset(ino), at + this.#size);
  }

  /** Bytes of {@linkcode xattrRoom}. */
  xattrRoomSize(ino: number): number {
    return this.#size - this.#roomOffset(ino);
  }

  /** Bytes that a new inode has for xattrs. */
  get newXattrRoomSize(): number {
    return this.#size > INODE.SIZE_OLD
      ? this.#size - INODE.SIZE_OLD - EXTRA_SIZE
      : 0;
  }

  /** `i_extra_isize` of new inodes. */
  get newExtraSize(): number {
    return this.#size > INODE.SIZE_OLD ? EXTRA_SIZE : 0;
  }

  /** Zeroes an inode's whole slot. */
  clear(ino: number): void {
    const block = this.#touch(ino);
    const at = this.#offset(ino);
    block.bytes.fill(0, at, at + this.#size);
    this.#stale?.delete(ino);
  }

  /** The seed of an inode's checksums, or undefined without metadata_csum. */
  checksumSeed(ino: number): number | undefined {
    if (this.#stale === undefined) return undefined;
    const block = this.#peek(ino);
    const at = this.#offset(ino) + INODE.generation;
    const generation = block?.view.getUint32(at, true) ?? 0;
    return inodeChecksumSeed(checksumSeedOf(this.#sb), ino, generation);
  }

  /** Writes the checksums of all inodes that changed. */
  sync(): void {
    for (const ino of this.#stale ?? []) {
      const block = this.#touch(ino);
      const at = this.#offset(ino);
      const slot = block.bytes.subarray(at, at + this.#size);
      const sum = inodeChecksum(this.checksumSeed(ino)!, slot);
      block.view.setUint16(at + INODE.checksumLo, sum & 0xffff, true);
      if (hasInodeChecksumHi(slot)) {
        block.view.setUint16(at + INODE.checksumHi, sum >>> 16, true);
      }
    }
    this.#stale?.clear();
  }

  #roomOffset(ino: number): number {
    if (this.#size === INODE.SIZE_OLD) return this.#size;
    const view = this.#peek(ino)?.view ?? EMPTY;
    const extra = view.getUint16(this.#offset(ino) + INODE.extraSize, true);
    // As tune2fs -I leaves inodes: readers look for no attributes in them.
    if (extra === 0) return this.#size;
    return Math.min(INODE.SIZE_OLD + extra, this.#size);
  }

  #number(ino: number): number {
    const group = Math.floor((ino - 1) / this.#sb.inodesPerGroup);
    const index = ino - 1 - group * this.#sb.inodesPerGroup;
    return this.#groups.inodeTable(group) + Math.floor(index / this.#perBlock);
  }

  #offset(ino: number): number {
    return (ino - 1) % this.#perBlock * this.#size;
  }

  #peek(ino: number): MetadataBlock | undefined {
    return this.#blocks.peek(this.#number(ino));
  }

  #touch(ino: number): MetadataBlock {
    this.#stale?.add(ino);
    return this.#blocks.touch(this.#number(ino));
  }
}

/** Inodes: decoded, checked by themselves, and streamed table by table. */

import { FormatError, isZero, UnsupportedError, viewOf } from "../io/mod.ts";
import {
  hasInodeChecksumHi,
  inodeChecksum,
  inodeChecksumSeed,
} from "./checksum.ts";
import {
  INODE,
  type Inode,
  INODE_FLAGS,
  readDevice,
  readInode,
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IFSOCK,
} from "./format.ts";
import type { GroupBitmap } from "./reader_bitmaps.ts";
import { type BlockReader, METADATA_READ_MAX } from "./reader_blocks.ts";
import { demandChecksum, type GroupTable } from "./reader_super.ts";

/** Type of an inode, in `lib/tar`'s words where they have one. */
export type InodeType =
  | "file"
  | "directory"
  | "symlink"
  | "char"
  | "block"
  | "fifo"
  | "socket";

const TYPES: ReadonlyMap<number, InodeType> = new Map([
  [S_IFREG, "file"],
  [S_IFDIR, "directory"],
  [S_IFLNK, "symlink"],
  [S_IFCHR, "char"],
  [S_IFBLK, "block"],
  [S_IFIFO, "fifo"],
  [S_IFSOCK, "socket"],
]);

/** The type of a mode, or undefined if its type bits are none of the seven. */
export function inodeTypeOf(mode: number): InodeType | undefined {
  return TYPES.get(mode & S_IFMT);
}

/** Inode flags that change what the rest of the inode means and that obd does not read. */
const REFUSED_FLAGS: readonly (readonly [flag: number, name: string])[] = [
  [INODE_FLAGS.encrypt, "encrypt"],
  [INODE_FLAGS.inlineData, "inline_data"],
  [INODE_FLAGS.casefold, "casefold"],
  [INODE_FLAGS.verity, "verity"],
  [INODE_FLAGS.eaInode, "ea_inode"],
];

/** An inode with the bytes it was decoded from. */
export interface StoredInode {
  ino: number;
  inode: Inode;
  /** The whole slot; shared, never write to it. Copy it to keep it for long: it pins its window. */
  slot: Uint8Array;
}

/** What `stat(2)` would say. */
export interface InodeStat {
  ino: number;
  type: InodeType;
  /** 12 bits. */
  mode: number;
  uid: number;
  gid: number;
  links: number;
  /** Bytes. */
  size: number;
  /** 512-byte sectors in use, metadata of the file included. */
  sectors: number;
  atime: Inode["atime"];
  mtime: Inode["mtime"];
  ctime: Inode["ctime"];
  crtime: Inode["crtime"];
  /** 0 for all but devices. */
  devMajor: number;
  devMinor: number;
}

/** A piece of an inode table. */
export interface InodeRun {
  firstIno: number;
  count: number;
  /** `count` slots of `inodeSize` bytes; owned by the caller. */
  slots: Uint8Array;
  /** Whether the bitmap says that slot i (0-based in the run) is in use. */
  isUsed(i: number): boolean;
}

/** What inodes are decoded with. */
export interface InodeContext {
  inodeSize: number;
  inodesPerGroup: number;
  blockSize: number;
  /** The file system's seed, set under metadata_csum. */
  checksumSeed: number | undefined;
}

/**
 * Decodes and checks one slot of `inodeSize` bytes.
 *
 * @throws {FormatError} If the inode is malformed.
 * @throws {UnsupportedError} If its content is inline, encrypted, … (named).
 * @throws {IntegrityError} If its checksum is wrong.
 */
export function decodeInode(
  context: InodeContext,
  ino: number,
  slot: Uint8Array,
): StoredInode {
  const { inodeSize, checksumSeed } = context;
  const inode = readInode(viewOf(slot), 0, inodeSize);
  const extraRoom = inodeSize - INODE.SIZE_OLD;
  if (inode.extraSize > extraRoom || inode.extraSize % 4 !== 0) {
    throw new FormatError(
      `inode ${ino}`,
      "i_extra_isize",
      `is ${inode.extraSize}`,
    );
  }
  if (checksumSeed !== undefined) verify(checksumSeed, ino, inode, slot);
  for (const [flag, name] of REFUSED_FLAGS) {
    if (inode.flags & flag) {
      throw new UnsupportedError(
        name,
        `Cannot read inode ${ino}: it uses "${name}"`,
      );
    }
  }
  if (inode.size > 2 ** 32 * context.blockSize) {
    throw new FormatError(`inode ${ino}`, "i_size", `is ${inode.size}`);
  }
  return { ino, inode, slot };
}

function verify(
  fileSystemSeed: number,
  ino: number,
  inode: Inode,
  slot: Uint8Array,
): void {
  // mke2fs leaves reserved inodes blank. libext2fs: ext2fs_inode_csum_verify().
  if (isZero(slot)) return;
  const seed = inodeChecksumSeed(fileSystemSeed, ino, inode.generation);
  const computed = inodeChecksum(seed, slot);
  demandChecksum(
    `inode ${ino}`,
    inode.checksum,
    hasInodeChecksumHi(slot) ? computed : computed & 0xffff,
  );
}

/** @throws {FormatError} If the inode is free or of no type. */
export function statOfInode(
  { ino, inode }: StoredInode,
  blockSize: number,
): InodeStat {
  const type = inodeTypeOf(inode.mode);
  if (type === undefined || inode.links === 0) {
    throw new FormatError(
      `inode ${ino}`,
      "state",
      `is not in use (mode 0${inode.mode.toString(8)}, ${inode.links} links)`,
    );
  }
  const isDevice = type === "char" || type === "block";
  const device = isDevice ? readDevice(viewOf(inode.block), 0) : undefined;
  return {
    ino,
    type,
    mode: inode.mode & 0o7777,
    uid: inode.uid,
    gid: inode.gid,
    links: inode.links,
    size: inode.size,
    sectors: inode.flags & INODE_FLAGS.hugeFile
      ? inode.blocks * (blockSize / 512)
      : inode.blocks,
    atime: inode.atime,
    mtime: inode.mtime,
    ctime: inode.ctime,
    crtime: inode.crtime,
    devMajor: device?.major ?? 0,
    devMinor: device?.minor ?? 0,
  };
}

/** As the kernel's `ext4_inode_is_fast_symlink()`: the size does not decide, having no blocks does. */
export function isFastSymlink(inode: Inode, blockSize: number): boolean {
  const xattrSectors = inode.xattrBlock === 0 ? 0 : blockSize / 512;
  return inode.blocks - xattrSectors === 0;
}

/**
 * The inode tables from front to back in reads of at most 1 MiB, without
 * blocks at both ends of a read that hold no inode in use.
 *
 * @param bitmaps The inode bitmaps of all groups.
 */
export async function* readInodeRuns(
  blocks: BlockReader,
  context: InodeContext,
  groups: GroupTable,
  bitmaps: AsyncIterable<GroupBitmap>,
): AsyncGenerator<InodeRun> {
  const { inodesPerGroup, inodeSize, blockSize } = context;
  const perRead = Math.max(METADATA_READ_MAX, blockSize) / inodeSize;
  const perBlock = blockSize / inodeSize;
  for await (const { group, bitmap } of bitmaps) {
    const isUsed = (index: number) =>
      ((bitmap[index >>> 3]! >>> (index & 7)) & 1) === 1;
    const used = groups.usedInodes[group]!;
    for (let from = 0; from < used; from += perRead) {
      let first = from;
      let limit = Math.min(from + perRead, used);
      while (limit > first && !isUsed(limit - 1)) limit--;
      while (first < limit && !isUsed(first)) first++;
      if (first === limit) continue;
      first -= first % perBlock;
      const bytes = await blocks.run(
        "inode table",
        groups.inodeTables[group]! + first / perBlock,
        Math.ceil((limit - first) / perBlock),
      );
      yield {
        firstIno: group * inodesPerGroup + first + 1,
        count: limit - first,
        slots: bytes.subarray(0, (limit - first) * inodeSize),
        isUsed: (i) => isUsed(first + i),
      };
    }
  }
}

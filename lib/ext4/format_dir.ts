/**
 * Directory blocks: entries, checksum tails, htree roots and nodes.
 *
 * Spec: kernel docs, ext4/directory.rst. A directory block is a chain of
 * entries that covers it to its end; with metadata_csum its last 12 bytes are
 * a tail that looks like an unused entry. The interior blocks of an htree look
 * like one unused entry to a linear scan.
 *
 * ```text
 * htree root            htree node
 * 0x00 "." entry        0x00 unused entry, rec_len = block size
 * 0x0c ".." entry       0x08 limit u16, count u16, block u32
 * 0x18 root info, 8     0x10 hash u32, block u32 …
 * 0x20 limit, count, block
 * 0x28 hash, block …    both: 8 bytes of tail at the end with metadata_csum
 * ```
 */

import {
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IFSOCK,
} from "./format_inode.ts";

/** The longest name, in bytes. */
export const NAME_MAX = 255;
/** Subdirectories above which dir_nlink sets the link count to 1. Kernel: EXT4_LINK_MAX. */
export const LINK_MAX = 65000;

/** Byte offsets in a directory entry (`ext4_dir_entry_2`). */
export const DE = {
  ino: 0x00, // u32, 0 = unused
  recordLength: 0x04, // u16 bytes to the next entry
  nameLength: 0x06, // u8 bytes
  fileType: 0x07, // u8
  name: 0x08,
} as const;

/** `file_type` of entries. */
export const FILE_TYPE = {
  unknown: 0,
  regular: 1,
  directory: 2,
  charDevice: 3,
  blockDevice: 4,
  fifo: 5,
  socket: 6,
  symlink: 7,
} as const;

/** The `file_type` for an inode's mode; `unknown` for a mode of no type. */
export function fileTypeOfMode(mode: number): number {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return FILE_TYPE.regular;
    case S_IFDIR:
      return FILE_TYPE.directory;
    case S_IFCHR:
      return FILE_TYPE.charDevice;
    case S_IFBLK:
      return FILE_TYPE.blockDevice;
    case S_IFIFO:
      return FILE_TYPE.fifo;
    case S_IFSOCK:
      return FILE_TYPE.socket;
    case S_IFLNK:
      return FILE_TYPE.symlink;
    default:
      return FILE_TYPE.unknown;
  }
}

/** Bytes that an entry with a name of `nameLength` bytes needs. */
export function direntSize(nameLength: number): number {
  return DE.name + ((nameLength + 3) & ~3);
}

/** Decodes `rec_len`: 65535 or 0 stand for 65536 in 64 KiB blocks. Kernel: `ext4_rec_len_from_disk()`. */
export function readRecordLength(
  v: DataView,
  at: number,
  blockSize: number,
): number {
  const stored = v.getUint16(at + DE.recordLength, true);
  if (blockSize < 65536) return stored;
  if (stored === 65535 || stored === 0) return blockSize;
  return (stored & 65532) | ((stored & 3) << 16);
}

/** Encodes `rec_len`, a multiple of 4 of at most `blockSize`. */
export function writeRecordLength(
  v: DataView,
  at: number,
  length: number,
  blockSize: number,
): void {
  let stored = length;
  if (length >= 65536) stored = length === blockSize ? 65535 : 0;
  v.setUint16(at + DE.recordLength, stored, true);
}

/** One entry of a directory block. */
export interface DirectoryRecord {
  /** 0 = unused. */
  ino: number;
  recordLength: number;
  nameLength: number;
  fileType: number;
}

/** Decodes an entry's fixed part; the name follows at `at + DE.name`. Nothing is checked. */
export function readDirent(
  v: DataView,
  at: number,
  blockSize: number,
): DirectoryRecord {
  return {
    ino: v.getUint32(at + DE.ino, true),
    recordLength: readRecordLength(v, at, blockSize),
    nameLength: v.getUint8(at + DE.nameLength),
    fileType: v.getUint8(at + DE.fileType),
  };
}

/** Encodes an entry with its name (at most 255 bytes) and zeroes the name's padding. */
export function writeDirent(
  v: DataView,
  at: number,
  blockSize: number,
  entry: {
    ino: number;
    recordLength: number;
    fileType: number;
    name: Uint8Array;
  },
): void {
  v.setUint32(at + DE.ino, entry.ino, true);
  writeRecordLength(v, at, entry.recordLength, blockSize);
  v.setUint8(at + DE.nameLength, entry.name.length);
  v.setUint8(at + DE.fileType, entry.fileType);
  const room = Math.min(direntSize(entry.name.length), entry.recordLength);
  const name = new Uint8Array(
    v.buffer,
    v.byteOffset + at + DE.name,
    room - DE.name,
  );
  name.set(entry.name);
  name.fill(0, entry.name.length);
}

/** The checksum tail of a directory leaf (metadata_csum): 12 bytes at the end of the block. */
export const DIRENT_TAIL = {
  zero: 0x00, // u32 = 0
  recordLength: 0x04, // u16 = 12
  nameLength: 0x06, // u8 = 0
  fileType: 0x07, // u8 = 0xde
  checksum: 0x08, // u32 crc32c
  SIZE: 0x0c,
} as const;
/** `det_reserved_ft` of a tail. */
export const DIRENT_TAIL_TYPE = 0xde;

/** Whether a directory block ends in a checksum tail. */
export function hasDirentTail(
  v: DataView,
  at: number,
  blockSize: number,
): boolean {
  const tail = at + blockSize - DIRENT_TAIL.SIZE;
  return v.getUint32(tail + DIRENT_TAIL.zero, true) === 0 &&
    v.getUint16(tail + DIRENT_TAIL.recordLength, true) === DIRENT_TAIL.SIZE &&
    v.getUint8(tail + DIRENT_TAIL.nameLength) === 0 &&
    v.getUint8(tail + DIRENT_TAIL.fileType) === DIRENT_TAIL_TYPE;
}

/** Writes a checksum tail at the end of the block at `at`. */
export function writeDirentTail(
  v: DataView,
  at: number,
  blockSize: number,
  checksum: number,
): void {
  const tail = at + blockSize - DIRENT_TAIL.SIZE;
  v.setUint32(tail + DIRENT_TAIL.zero, 0, true);
  v.setUint16(tail + DIRENT_TAIL.recordLength, DIRENT_TAIL.SIZE, true);
  v.setUint8(tail + DIRENT_TAIL.nameLength, 0);
  v.setUint8(tail + DIRENT_TAIL.fileType, DIRENT_TAIL_TYPE);
  v.setUint32(tail + DIRENT_TAIL.checksum, checksum, true);
}

/** Byte offsets in an htree root block, behind the "." and ".." entries. */
export const DX_ROOT = {
  dot: 0x00, // entry of 12 bytes
  dotDot: 0x0c, // entry to the end of the block
  reserved: 0x18, // u32 = 0
  hashVersion: 0x1c, // u8
  infoLength: 0x1d, // u8 = 8
  indirectLevels: 0x1e, // u8: 0 = the root points to leaves
  unusedFlags: 0x1f, // u8
  entries: 0x20, // limit, count, first block; then pairs
} as const;
/** `info_length` of a root. */
export const DX_INFO_LENGTH = 8;
/** Byte offset of the entries in an htree node. */
export const DX_NODE_ENTRIES = 0x08;

/** Byte offsets at the start of the entries of a root or node; the first pair has no hash. */
export const DX_COUNT = {
  limit: 0x00, // u16 pairs that fit
  count: 0x02, // u16 pairs in use, the first included
  block: 0x04, // u32 logical block for hashes below the second pair's
} as const;

/** Byte offsets in a pair. */
export const DX_ENTRY = {
  hash: 0x00, // u32; bit 0 set: the hash continues from the block before
  block: 0x04, // u32 logical block of the directory
  SIZE: 0x08,
} as const;

/** The checksum tail of an htree root or node (metadata_csum), right behind `limit` pairs. */
export const DX_TAIL = {
  reserved: 0x00, // u32
  checksum: 0x04, // u32 crc32c
  SIZE: 0x08,
} as const;

/** Pairs that fit in the root of an htree. */
export function dxRootLimit(blockSize: number, metadataCsum: boolean): number {
  const room = blockSize - DX_ROOT.entries - (metadataCsum ? DX_TAIL.SIZE : 0);
  return Math.floor(room / DX_ENTRY.SIZE);
}

/** Pairs that fit in a node of an htree. */
export function dxNodeLimit(blockSize: number, metadataCsum: boolean): number {
  const room = blockSize - DX_NODE_ENTRIES - (metadataCsum ? DX_TAIL.SIZE : 0);
  return Math.floor(room / DX_ENTRY.SIZE);
}

/** The pairs of an htree root or node; `hashes[0]` is not stored and reads as 0. */
export interface DxEntries {
  limit: number;
  hashes: Uint32Array;
  blocks: Uint32Array;
}

/**
 * Decodes the pairs at `at` (`DX_ROOT.entries` or `DX_NODE_ENTRIES` in a block).
 *
 * @param room Bytes from `at` to the end of the block.
 * @returns Undefined if the counts do not fit into `room`.
 */
export function readDxEntries(
  v: DataView,
  at: number,
  room: number,
): DxEntries | undefined {
  const limit = v.getUint16(at + DX_COUNT.limit, true);
  const count = v.getUint16(at + DX_COUNT.count, true);
  if (count === 0 || count > limit || limit * DX_ENTRY.SIZE > room) {
    return undefined;
  }
  const hashes = new Uint32Array(count);
  const blocks = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    const pair = at + i * DX_ENTRY.SIZE;
    if (i > 0) hashes[i] = v.getUint32(pair + DX_ENTRY.hash, true);
    blocks[i] = v.getUint32(pair + DX_ENTRY.block, true);
  }
  return { limit, hashes, blocks };
}

/** Encodes pairs at `at`; `hashes[0]` gives way to limit and count. */
export function writeDxEntries(
  v: DataView,
  at: number,
  pairs: DxEntries,
): void {
  for (let i = 0; i < pairs.blocks.length; i++) {
    const pair = at + i * DX_ENTRY.SIZE;
    v.setUint32(pair + DX_ENTRY.hash, pairs.hashes[i]!, true);
    v.setUint32(pair + DX_ENTRY.block, pairs.blocks[i]!, true);
  }
  v.setUint16(at + DX_COUNT.limit, pairs.limit, true);
  v.setUint16(at + DX_COUNT.count, pairs.blocks.length, true);
}

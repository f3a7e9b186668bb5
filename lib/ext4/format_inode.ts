/**
 * Inodes, time stamps, device numbers and extent trees.
 *
 * Spec: kernel docs, ext4/inodes.rst, ext4/ifork.rst and fs/ext4/ext4_extents.h.
 */

/** File type bits of `i_mode`. */
export const S_IFMT = 0o170000;
export const S_IFIFO = 0o010000;
export const S_IFCHR = 0o020000;
export const S_IFDIR = 0o040000;
export const S_IFBLK = 0o060000;
export const S_IFREG = 0o100000;
export const S_IFLNK = 0o120000;
export const S_IFSOCK = 0o140000;

/** `i_flags` bits. */
export const INODE_FLAGS = {
  secureDelete: 0x1,
  undelete: 0x2,
  compressed: 0x4,
  sync: 0x8,
  immutable: 0x10,
  append: 0x20,
  nodump: 0x40,
  noatime: 0x80,
  encrypt: 0x800,
  /** The directory has an htree. */
  index: 0x1000,
  imagic: 0x2000,
  journalData: 0x4000,
  notail: 0x8000,
  dirsync: 0x10000,
  topdir: 0x20000,
  /** `i_blocks` counts file system blocks, not sectors. */
  hugeFile: 0x40000,
  extents: 0x80000,
  verity: 0x100000,
  eaInode: 0x200000,
  inlineData: 0x10000000,
  projectInherit: 0x20000000,
  casefold: 0x40000000,
} as const;

/** Byte offsets in an inode; those from 0x80 on exist as far as `i_extra_isize` says. */
export const INODE = {
  mode: 0x00, // u16
  uidLo: 0x02, // u16
  sizeLo: 0x04, // u32 bytes
  atime: 0x08, // i32 seconds
  ctime: 0x0c, // i32 seconds
  mtime: 0x10, // i32 seconds
  dtime: 0x14, // u32 seconds, or the next orphan
  gidLo: 0x18, // u16
  links: 0x1a, // u16
  blocksLo: 0x1c, // u32 sectors of 512 bytes
  flags: 0x20, // u32
  versionLo: 0x24, // u32
  block: 0x28, // 60 bytes: extent tree, block map, symlink target or device
  generation: 0x64, // u32
  fileAclLo: 0x68, // u32 block of xattrs
  sizeHi: 0x6c, // u32
  fragmentAddress: 0x70, // u32 obsolete
  blocksHi: 0x74, // u16
  fileAclHi: 0x76, // u16
  uidHi: 0x78, // u16
  gidHi: 0x7a, // u16
  checksumLo: 0x7c, // u16
  reserved: 0x7e, // u16
  SIZE_OLD: 0x80,
  extraSize: 0x80, // u16 bytes of what follows, itself included
  checksumHi: 0x82, // u16
  ctimeExtra: 0x84, // u32 nanoseconds << 2 | epoch
  mtimeExtra: 0x88, // u32
  atimeExtra: 0x8c, // u32
  crtime: 0x90, // i32 seconds
  crtimeExtra: 0x94, // u32
  versionHi: 0x98, // u32
  projectId: 0x9c, // u32
  SIZE: 0xa0,
} as const;

/** Bytes of `i_block`. */
export const INODE_BLOCK_SIZE = 60;
/** `i_extra_isize` that today's mke2fs and kernel use: everything up to the project id. */
export const EXTRA_SIZE = 0x20;
/** The longest symlink target that fits in the inode, in bytes. */
export const FAST_SYMLINK_MAX = INODE_BLOCK_SIZE - 1;

/** Seconds since 1970 and 0 … 999,999,999 nanoseconds. */
export interface Timestamp {
  seconds: number;
  nanoseconds: number;
}

/** Earliest and latest second of a 256-byte inode. Kernel: EXT4_TIMESTAMP_MIN, EXT4_EXTRA_TIMESTAMP_MAX. */
export const TIMESTAMP_MIN = -(2 ** 31);
export const TIMESTAMP_MAX = 2 ** 34 - 1 - 2 ** 31;

/** Decodes the two halves of a time stamp. Nanoseconds above a second count as 0. */
export function readTimestamp(low: number, extra: number): Timestamp {
  const nanoseconds = extra >>> 2;
  return {
    seconds: (low | 0) + (extra & 3) * 2 ** 32,
    nanoseconds: nanoseconds < 1_000_000_000 ? nanoseconds : 0,
  };
}

/**
 * Encodes a time stamp; one out of range becomes the nearest bound without
 * nanoseconds, as the kernel's `timestamp_truncate()` does.
 *
 * @returns `low` as an i32 and `extra` as a u32.
 */
export function encodeTimestamp(
  time: Timestamp,
): { low: number; extra: number } {
  const bounded = Math.min(
    Math.max(time.seconds, TIMESTAMP_MIN),
    TIMESTAMP_MAX,
  );
  const low = bounded | 0;
  const epoch = (bounded - low) / 2 ** 32;
  const nanoseconds = bounded === TIMESTAMP_MIN || bounded === TIMESTAMP_MAX
    ? 0
    : time.nanoseconds;
  return { low, extra: (nanoseconds * 4 + epoch) >>> 0 };
}

/** One inode, as stored. */
export interface Inode {
  /** Type and permission bits. */
  mode: number;
  uid: number;
  gid: number;
  /** Bytes. */
  size: number;
  links: number;
  /** `i_blocks` with its high half: 512-byte sectors, or blocks with the huge_file flag. */
  blocks: number;
  flags: number;
  atime: Timestamp;
  ctime: Timestamp;
  mtime: Timestamp;
  /** Zero where the inode has no room for it. */
  crtime: Timestamp;
  /** Seconds, or the next orphan's number. */
  dtime: number;
  generation: number;
  /** Block of extended attributes, or 0. */
  xattrBlock: number;
  /** `i_extra_isize`; 0 in 128-byte inodes. */
  extraSize: number;
  projectId: number;
  /** As stored; the high half is 0 where the inode has no room for it. */
  checksum: number;
  /** The 60 bytes of `i_block`. */
  block: Uint8Array;
}

/** Whether an inode of `extraSize` holds the 4-byte field at `offset`. */
function hasField(extraSize: number, offset: number): boolean {
  return INODE.SIZE_OLD + extraSize >= offset + 4;
}

/**
 * Decodes the inode at `at`, whose slot has `inodeSize` bytes.
 *
 * @returns The inode; its `block` is a view into `v`'s buffer (copy it to keep
 * it). `extraSize` is not checked; fields that lie past the slot read as absent.
 */
export function readInode(v: DataView, at: number, inodeSize: number): Inode {
  const u16 = (offset: number) => v.getUint16(at + offset, true);
  const u32 = (offset: number) => v.getUint32(at + offset, true);
  const extraSize = inodeSize > INODE.SIZE_OLD ? u16(INODE.extraSize) : 0;
  const usable = Math.min(extraSize, inodeSize - INODE.SIZE_OLD);
  const extra = (offset: number) => hasField(usable, offset) ? u32(offset) : 0;
  return {
    mode: u16(INODE.mode),
    uid: u16(INODE.uidLo) + u16(INODE.uidHi) * 2 ** 16,
    gid: u16(INODE.gidLo) + u16(INODE.gidHi) * 2 ** 16,
    size: u32(INODE.sizeLo) + u32(INODE.sizeHi) * 2 ** 32,
    links: u16(INODE.links),
    blocks: u32(INODE.blocksLo) + u16(INODE.blocksHi) * 2 ** 32,
    flags: u32(INODE.flags),
    atime: readTimestamp(u32(INODE.atime), extra(INODE.atimeExtra)),
    ctime: readTimestamp(u32(INODE.ctime), extra(INODE.ctimeExtra)),
    mtime: readTimestamp(u32(INODE.mtime), extra(INODE.mtimeExtra)),
    crtime: readTimestamp(extra(INODE.crtime), extra(INODE.crtimeExtra)),
    dtime: u32(INODE.dtime),
    generation: u32(INODE.generation),
    xattrBlock: u32(INODE.fileAclLo) + u16(INODE.fileAclHi) * 2 ** 32,
    extraSize,
    projectId: extra(INODE.projectId),
    checksum: u16(INODE.checksumLo) +
      (usable >= 4 ? u16(INODE.checksumHi) * 2 ** 16 : 0),
    block: new Uint8Array(
      v.buffer,
      v.byteOffset + at + INODE.block,
      INODE_BLOCK_SIZE,
    ),
  };
}

/**
 * Encodes an inode into a slot of `inodeSize` bytes; bytes of fields that it
 * does not name (version, in-inode xattrs) stay as they are.
 */
export function writeInode(
  v: DataView,
  at: number,
  inodeSize: number,
  inode: Inode,
): void {
  const u16 = (o: number, value: number) => v.setUint16(at + o, value, true);
  const u32 = (o: number, value: number) => v.setUint32(at + o, value, true);
  const extraSize = inodeSize > INODE.SIZE_OLD ? inode.extraSize : 0;
  const time = (offset: number, extraOffset: number, value: Timestamp) => {
    const { low, extra } = encodeTimestamp(value);
    v.setInt32(at + offset, low, true);
    if (hasField(extraSize, extraOffset)) u32(extraOffset, extra);
  };
  u16(INODE.mode, inode.mode);
  u16(INODE.uidLo, inode.uid & 0xffff);
  u16(INODE.uidHi, inode.uid >>> 16);
  u16(INODE.gidLo, inode.gid & 0xffff);
  u16(INODE.gidHi, inode.gid >>> 16);
  u32(INODE.sizeLo, inode.size % 2 ** 32);
  u32(INODE.sizeHi, Math.floor(inode.size / 2 ** 32));
  u16(INODE.links, inode.links);
  u32(INODE.blocksLo, inode.blocks % 2 ** 32);
  u16(INODE.blocksHi, Math.floor(inode.blocks / 2 ** 32));
  u32(INODE.flags, inode.flags);
  u32(INODE.dtime, inode.dtime);
  u32(INODE.generation, inode.generation);
  u32(INODE.fileAclLo, inode.xattrBlock % 2 ** 32);
  u16(INODE.fileAclHi, Math.floor(inode.xattrBlock / 2 ** 32));
  new Uint8Array(v.buffer, v.byteOffset + at + INODE.block, INODE_BLOCK_SIZE)
    .set(inode.block);
  if (inodeSize > INODE.SIZE_OLD) u16(INODE.extraSize, extraSize);
  time(INODE.atime, INODE.atimeExtra, inode.atime);
  time(INODE.ctime, INODE.ctimeExtra, inode.ctime);
  time(INODE.mtime, INODE.mtimeExtra, inode.mtime);
  if (hasField(extraSize, INODE.crtime)) {
    time(INODE.crtime, INODE.crtimeExtra, inode.crtime);
  }
  if (hasField(extraSize, INODE.projectId)) {
    u32(INODE.projectId, inode.projectId);
  }
  u16(INODE.checksumLo, inode.checksum & 0xffff);
  if (extraSize >= 4) u16(INODE.checksumHi, inode.checksum >>> 16);
}

/** Largest device numbers: 12 bits of major, 20 of minor. */
export const DEVICE_MAJOR_MAX = 0xfff;
export const DEVICE_MINOR_MAX = 0xfffff;

/** Decodes the device number in an `i_block` (at `at` in `v`): the old 16-bit form, else the new one. */
export function readDevice(
  v: DataView,
  at: number,
): { major: number; minor: number } {
  const old = v.getUint32(at, true);
  if (old !== 0) return { major: (old >>> 8) & 0xff, minor: old & 0xff };
  const dev = v.getUint32(at + 4, true);
  return {
    major: (dev >>> 8) & 0xfff,
    minor: (dev & 0xff) | ((dev >>> 12) & 0xfff00),
  };
}

/** Encodes a device number as the kernel chooses (`old_valid_dev`), into 8 bytes of an `i_block`. */
export function writeDevice(
  v: DataView,
  at: number,
  major: number,
  minor: number,
): void {
  const isOld = major < 256 && minor < 256;
  v.setUint32(at, isOld ? (major << 8) | minor : 0, true);
  const dev = (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12);
  v.setUint32(at + 4, isOld ? 0 : dev >>> 0, true);
}

/** `eh_magic`. */
export const EXTENT_MAGIC = 0xf30a;
/** Kernel: EXT4_MAX_EXTENT_DEPTH. */
export const EXTENT_DEPTH_MAX = 5;
/** Blocks of the longest initialised extent. */
export const EXTENT_LENGTH_MAX = 0x8000;
/** Entries in the root that lives in `i_block`. */
export const EXTENT_ROOT_ENTRIES = 4;

/** Byte offsets in an extent header. */
export const EH = {
  magic: 0x00, // u16
  entries: 0x02, // u16 count
  max: 0x04, // u16 count
  depth: 0x06, // u16: 0 = leaf
  generation: 0x08, // u32
  SIZE: 0x0c,
} as const;

/** Byte offsets in a leaf entry. */
export const EE = {
  block: 0x00, // u32 logical block
  length: 0x04, // u16 blocks; above 32768: uninitialised, minus 32768
  startHi: 0x06, // u16
  startLo: 0x08, // u32
  SIZE: 0x0c,
} as const;

/** Byte offsets in an index entry. */
export const EI = {
  block: 0x00, // u32 first logical block below
  leafLo: 0x04, // u32 block of the node below
  leafHi: 0x08, // u16
  unused: 0x0a, // u16
  SIZE: 0x0c,
} as const;

/** Header of an extent tree node. */
export interface ExtentHeader {
  magic: number;
  entries: number;
  max: number;
  depth: number;
  generation: number;
}

/** A run of blocks of a file. */
export interface FileExtent {
  /** First block in the file. */
  logicalBlock: number;
  /** First block on the device. */
  physicalBlock: number;
  /** Blocks. */
  count: number;
  /** Allocated but never written: reads as zeros. */
  unwritten: boolean;
}

/** An index entry of an extent tree. */
export interface ExtentIndex {
  logicalBlock: number;
  /** Block of the node below. */
  child: number;
}

/** Entries that fit in a tree node of `blockSize` bytes (a checksum tail fits behind them). */
export function extentNodeCapacity(blockSize: number): number {
  return Math.floor((blockSize - EH.SIZE) / EE.SIZE);
}

/** Offset of the crc32c behind a node with room for `max` entries. */
export function extentTailOffset(max: number): number {
  return EH.SIZE + EE.SIZE * max;
}

export function readExtentHeader(v: DataView, at: number): ExtentHeader {
  return {
    magic: v.getUint16(at + EH.magic, true),
    entries: v.getUint16(at + EH.entries, true),
    max: v.getUint16(at + EH.max, true),
    depth: v.getUint16(at + EH.depth, true),
    generation: v.getUint32(at + EH.generation, true),
  };
}

export function writeExtentHeader(
  v: DataView,
  at: number,
  h: ExtentHeader,
): void {
  v.setUint16(at + EH.magic, h.magic, true);
  v.setUint16(at + EH.entries, h.entries, true);
  v.setUint16(at + EH.max, h.max, true);
  v.setUint16(at + EH.depth, h.depth, true);
  v.setUint32(at + EH.generation, h.generation, true);
}

export function readExtent(v: DataView, at: number): FileExtent {
  const length = v.getUint16(at + EE.length, true);
  const unwritten = length > EXTENT_LENGTH_MAX;
  return {
    logicalBlock: v.getUint32(at + EE.block, true),
    physicalBlock: v.getUint32(at + EE.startLo, true) +
      v.getUint16(at + EE.startHi, true) * 2 ** 32,
    count: unwritten ? length - EXTENT_LENGTH_MAX : length,
    unwritten,
  };
}

export function writeExtent(v: DataView, at: number, e: FileExtent): void {
  v.setUint32(at + EE.block, e.logicalBlock, true);
  const length = e.unwritten ? e.count + EXTENT_LENGTH_MAX : e.count;
  v.setUint16(at + EE.length, length, true);
  v.setUint16(at + EE.startHi, Math.floor(e.physicalBlock / 2 ** 32), true);
  v.setUint32(at + EE.startLo, e.physicalBlock % 2 ** 32, true);
}

export function readExtentIndex(v: DataView, at: number): ExtentIndex {
  return {
    logicalBlock: v.getUint32(at + EI.block, true),
    child: v.getUint32(at + EI.leafLo, true) +
      v.getUint16(at + EI.leafHi, true) * 2 ** 32,
  };
}

export function writeExtentIndex(
  v: DataView,
  at: number,
  e: ExtentIndex,
): void {
  v.setUint32(at + EI.block, e.logicalBlock, true);
  v.setUint32(at + EI.leafLo, e.child % 2 ** 32, true);
  v.setUint16(at + EI.leafHi, Math.floor(e.child / 2 ** 32), true);
  v.setUint16(at + EI.unused, 0, true);
}

/**
 * Superblock and group descriptors.
 *
 * Spec: kernel docs, ext4/super.rst and ext4/group_descr.rst. Counters that
 * are split into `_lo`/`_hi` halves on disk are one Number here.
 */

import { getU64, setU64 } from "../io/mod.ts";

/** Byte offset of the superblock on the device, whatever the block size. */
export const SUPERBLOCK_OFFSET = 1024;
/** Bytes of a superblock. */
export const SUPERBLOCK_SIZE = 1024;
/** `s_magic`. */
export const SUPER_MAGIC = 0xef53;

/** Compatible features: safe to ignore. */
export const COMPAT = {
  dirPrealloc: 0x1,
  imagicInodes: 0x2,
  hasJournal: 0x4,
  extAttr: 0x8,
  resizeInode: 0x10,
  dirIndex: 0x20,
  sparseSuper2: 0x200,
  fastCommit: 0x400,
  stableInodes: 0x800,
  orphanFile: 0x1000,
} as const;

/** Incompatible features: a reader that does not know one must refuse. */
export const INCOMPAT = {
  compression: 0x1,
  filetype: 0x2,
  recover: 0x4,
  journalDev: 0x8,
  metaBg: 0x10,
  extents: 0x40,
  is64bit: 0x80,
  mmp: 0x100,
  flexBg: 0x200,
  eaInode: 0x400,
  dirdata: 0x1000,
  csumSeed: 0x2000,
  largedir: 0x4000,
  inlineData: 0x8000,
  encrypt: 0x10000,
  casefold: 0x20000,
} as const;

/** Features that a writer must know. */
export const RO_COMPAT = {
  sparseSuper: 0x1,
  largeFile: 0x2,
  btreeDir: 0x4,
  hugeFile: 0x8,
  /** Called uninit_bg by mke2fs: crc16 of descriptors, lazily initialised groups. */
  gdtCsum: 0x10,
  dirNlink: 0x20,
  extraIsize: 0x40,
  hasSnapshot: 0x80,
  quota: 0x100,
  bigalloc: 0x200,
  metadataCsum: 0x400,
  replica: 0x800,
  readonly: 0x1000,
  project: 0x2000,
  sharedBlocks: 0x4000,
  verity: 0x8000,
  orphanPresent: 0x10000,
} as const;

/** `s_state` bits. */
export const STATE = { clean: 1, errors: 2, orphans: 4 } as const;

/** `s_flags` bits. Names are hashed as signed or unsigned chars, as the machine that wrote them did. */
export const SUPER_FLAGS = {
  signedHash: 1,
  unsignedHash: 2,
  testFilesystem: 4,
} as const;

/** `s_errors`: what the kernel does when it finds an error. */
export const ERRORS = { continue: 1, remountReadOnly: 2, panic: 3 } as const;
/** `s_creator_os`. */
export const CREATOR_OS_LINUX = 0;
/** `s_rev_level` with dynamic inode sizes and features. */
export const REVISION_DYNAMIC = 1;
/** `s_checksum_type`: the only one defined, CRC-32C. */
export const CHECKSUM_CRC32C = 1;

/** Reserved inode numbers; the first free one is `firstIno` (11). */
export const INO = {
  bad: 1,
  root: 2,
  userQuota: 3,
  groupQuota: 4,
  bootLoader: 5,
  undelete: 6,
  resize: 7,
  journal: 8,
  exclude: 9,
  replica: 10,
  firstFree: 11,
} as const;

/** Byte offsets in the superblock. */
export const SB = {
  inodesCount: 0x00, // u32
  blocksCountLo: 0x04, // u32
  reservedBlocksLo: 0x08, // u32
  freeBlocksLo: 0x0c, // u32
  freeInodes: 0x10, // u32
  firstDataBlock: 0x14, // u32: 1 for 1 KiB blocks, else 0
  logBlockSize: 0x18, // u32: block size = 1024 << this
  logClusterSize: 0x1c, // u32
  blocksPerGroup: 0x20, // u32
  clustersPerGroup: 0x24, // u32
  inodesPerGroup: 0x28, // u32
  mtime: 0x2c, // u32 seconds
  wtime: 0x30, // u32 seconds
  mountCount: 0x34, // u16
  maxMountCount: 0x36, // u16, -1: never check
  magic: 0x38, // u16
  state: 0x3a, // u16
  errors: 0x3c, // u16
  minorRevision: 0x3e, // u16
  lastCheck: 0x40, // u32 seconds
  checkInterval: 0x44, // u32 seconds
  creatorOs: 0x48, // u32
  revision: 0x4c, // u32
  defResuid: 0x50, // u16
  defResgid: 0x52, // u16
  firstIno: 0x54, // u32
  inodeSize: 0x58, // u16 bytes
  blockGroupNumber: 0x5a, // u16: which copy this is
  featureCompat: 0x5c, // u32
  featureIncompat: 0x60, // u32
  featureRoCompat: 0x64, // u32
  uuid: 0x68, // 16 bytes
  volumeName: 0x78, // 16 bytes
  lastMounted: 0x88, // 64 bytes
  algorithmBitmap: 0xc8, // u32
  preallocBlocks: 0xcc, // u8
  preallocDirBlocks: 0xcd, // u8
  reservedGdtBlocks: 0xce, // u16
  journalUuid: 0xd0, // 16 bytes
  journalIno: 0xe0, // u32
  journalDevice: 0xe4, // u32
  lastOrphan: 0xe8, // u32 ino
  hashSeed: 0xec, // 4 × u32
  defHashVersion: 0xfc, // u8
  journalBackupType: 0xfd, // u8
  descriptorSize: 0xfe, // u16 bytes, with 64bit
  defaultMountOptions: 0x100, // u32
  firstMetaBg: 0x104, // u32
  mkfsTime: 0x108, // u32 seconds
  journalBlocks: 0x10c, // 17 × u32
  blocksCountHi: 0x150, // u32
  reservedBlocksHi: 0x154, // u32
  freeBlocksHi: 0x158, // u32
  minExtraSize: 0x15c, // u16 bytes
  wantExtraSize: 0x15e, // u16 bytes
  flags: 0x160, // u32
  raidStride: 0x164, // u16
  mmpInterval: 0x166, // u16
  mmpBlock: 0x168, // u64
  raidStripeWidth: 0x170, // u32
  logGroupsPerFlex: 0x174, // u8
  checksumType: 0x175, // u8
  reservedPad: 0x176, // u16
  kbytesWritten: 0x178, // u64
  snapshotIno: 0x180, // u32
  snapshotId: 0x184, // u32
  snapshotReservedBlocks: 0x188, // u64
  snapshotList: 0x190, // u32
  errorCount: 0x194, // u32
  errorDetails: 0x198, // 104 bytes: first and last error
  mountOptions: 0x200, // 64 bytes
  userQuotaIno: 0x240, // u32
  groupQuotaIno: 0x244, // u32
  overheadClusters: 0x248, // u32
  backupGroups: 0x24c, // 2 × u32, with sparse_super2
  encryptionAlgorithms: 0x254, // 4 bytes
  encryptionSalt: 0x258, // 16 bytes
  lostFoundIno: 0x268, // u32
  projectQuotaIno: 0x26c, // u32
  checksumSeed: 0x270, // u32, with csum_seed
  timesHi: 0x274, // 8 bytes: high bytes of times, error codes
  encoding: 0x27c, // u16
  encodingFlags: 0x27e, // u16
  orphanFileIno: 0x280, // u32
  reserved: 0x284, // 94 × u32
  checksum: 0x3fc, // u32 crc32c of everything before
  SIZE: 0x400,
} as const;

/** The fields of a superblock that mean something to obd. Unnamed fields are left as they are. */
export interface Superblock {
  inodesCount: number;
  blocksCount: number;
  reservedBlocks: number;
  freeBlocks: number;
  freeInodes: number;
  firstDataBlock: number;
  /** Block size = 1024 << this. */
  logBlockSize: number;
  /** Equal to `logBlockSize` unless bigalloc. */
  logClusterSize: number;
  blocksPerGroup: number;
  clustersPerGroup: number;
  inodesPerGroup: number;
  mtime: number;
  wtime: number;
  mountCount: number;
  /** 0xffff: no check by mount count. */
  maxMountCount: number;
  magic: number;
  state: number;
  errors: number;
  lastCheck: number;
  checkInterval: number;
  creatorOs: number;
  revision: number;
  firstIno: number;
  inodeSize: number;
  featureCompat: number;
  featureIncompat: number;
  featureRoCompat: number;
  /** 16 bytes. {@linkcode readSuperblock} copies them. */
  uuid: Uint8Array;
  reservedGdtBlocks: number;
  journalIno: number;
  lastOrphan: number;
  /** Four words; all zero means the built-in default seed. */
  hashSeed: readonly [number, number, number, number];
  defHashVersion: number;
  /** As stored: 0 without 64bit. {@linkcode descriptorSizeOf} gives the one to use. */
  descriptorSize: number;
  defaultMountOptions: number;
  firstMetaBg: number;
  mkfsTime: number;
  minExtraSize: number;
  wantExtraSize: number;
  flags: number;
  logGroupsPerFlex: number;
  checksumType: number;
  kbytesWritten: number;
  overheadClusters: number;
  /** Groups with backups under sparse_super2; 0 = none. */
  backupGroups: readonly [number, number];
  lostFoundIno: number;
  checksumSeed: number;
  orphanFileIno: number;
  checksum: number;
}

/** Decodes the superblock at `at`. Checks nothing, not even the magic. */
export function readSuperblock(v: DataView, at: number): Superblock {
  const u16 = (offset: number) => v.getUint16(at + offset, true);
  const u32 = (offset: number) => v.getUint32(at + offset, true);
  const split = (lo: number, hi: number) => u32(lo) + u32(hi) * 2 ** 32;
  return {
    inodesCount: u32(SB.inodesCount),
    blocksCount: split(SB.blocksCountLo, SB.blocksCountHi),
    reservedBlocks: split(SB.reservedBlocksLo, SB.reservedBlocksHi),
    freeBlocks: split(SB.freeBlocksLo, SB.freeBlocksHi),
    freeInodes: u32(SB.freeInodes),
    firstDataBlock: u32(SB.firstDataBlock),
    logBlockSize: u32(SB.logBlockSize),
    logClusterSize: u32(SB.logClusterSize),
    blocksPerGroup: u32(SB.blocksPerGroup),
    clustersPerGroup: u32(SB.clustersPerGroup),
    inodesPerGroup: u32(SB.inodesPerGroup),
    mtime: u32(SB.mtime),
    wtime: u32(SB.wtime),
    mountCount: u16(SB.mountCount),
    maxMountCount: u16(SB.maxMountCount),
    magic: u16(SB.magic),
    state: u16(SB.state),
    errors: u16(SB.errors),
    lastCheck: u32(SB.lastCheck),
    checkInterval: u32(SB.checkInterval),
    creatorOs: u32(SB.creatorOs),
    revision: u32(SB.revision),
    firstIno: u32(SB.firstIno),
    inodeSize: u16(SB.inodeSize),
    featureCompat: u32(SB.featureCompat),
    featureIncompat: u32(SB.featureIncompat),
    featureRoCompat: u32(SB.featureRoCompat),
    uuid: new Uint8Array(v.buffer, v.byteOffset + at + SB.uuid, 16).slice(),
    reservedGdtBlocks: u16(SB.reservedGdtBlocks),
    journalIno: u32(SB.journalIno),
    lastOrphan: u32(SB.lastOrphan),
    hashSeed: [
      u32(SB.hashSeed),
      u32(SB.hashSeed + 4),
      u32(SB.hashSeed + 8),
      u32(SB.hashSeed + 12),
    ],
    defHashVersion: v.getUint8(at + SB.defHashVersion),
    descriptorSize: u16(SB.descriptorSize),
    defaultMountOptions: u32(SB.defaultMountOptions),
    firstMetaBg: u32(SB.firstMetaBg),
    mkfsTime: u32(SB.mkfsTime),
    minExtraSize: u16(SB.minExtraSize),
    wantExtraSize: u16(SB.wantExtraSize),
    flags: u32(SB.flags),
    logGroupsPerFlex: v.getUint8(at + SB.logGroupsPerFlex),
    checksumType: v.getUint8(at + SB.checksumType),
    kbytesWritten: getU64(v, at + SB.kbytesWritten),
    overheadClusters: u32(SB.overheadClusters),
    backupGroups: [u32(SB.backupGroups), u32(SB.backupGroups + 4)],
    lostFoundIno: u32(SB.lostFoundIno),
    checksumSeed: u32(SB.checksumSeed),
    orphanFileIno: u32(SB.orphanFileIno),
    checksum: u32(SB.checksum),
  };
}

/** Encodes `sb` over the superblock at `at`; bytes of fields that it does not name stay as they are. */
export function writeSuperblock(v: DataView, at: number, sb: Superblock): void {
  const u16 = (o: number, value: number) => v.setUint16(at + o, value, true);
  const u32 = (o: number, value: number) => v.setUint32(at + o, value, true);
  const split = (lo: number, hi: number, value: number) => {
    u32(lo, value % 2 ** 32);
    u32(hi, Math.floor(value / 2 ** 32));
  };
  u32(SB.inodesCount, sb.inodesCount);
  split(SB.blocksCountLo, SB.blocksCountHi, sb.blocksCount);
  split(SB.reservedBlocksLo, SB.reservedBlocksHi, sb.reservedBlocks);
  split(SB.freeBlocksLo, SB.freeBlocksHi, sb.freeBlocks);
  u32(SB.freeInodes, sb.freeInodes);
  u32(SB.firstDataBlock, sb.firstDataBlock);
  u32(SB.logBlockSize, sb.logBlockSize);
  u32(SB.logClusterSize, sb.logClusterSize);
  u32(SB.blocksPerGroup, sb.blocksPerGroup);
  u32(SB.clustersPerGroup, sb.clustersPerGroup);
  u32(SB.inodesPerGroup, sb.inodesPerGroup);
  u32(SB.mtime, sb.mtime);
  u32(SB.wtime, sb.wtime);
  u16(SB.mountCount, sb.mountCount);
  u16(SB.maxMountCount, sb.maxMountCount);
  u16(SB.magic, sb.magic);
  u16(SB.state, sb.state);
  u16(SB.errors, sb.errors);
  u32(SB.lastCheck, sb.lastCheck);
  u32(SB.checkInterval, sb.checkInterval);
  u32(SB.creatorOs, sb.creatorOs);
  u32(SB.revision, sb.revision);
  u32(SB.firstIno, sb.firstIno);
  u16(SB.inodeSize, sb.inodeSize);
  u32(SB.featureCompat, sb.featureCompat);
  u32(SB.featureIncompat, sb.featureIncompat);
  u32(SB.featureRoCompat, sb.featureRoCompat);
  new Uint8Array(v.buffer, v.byteOffset + at + SB.uuid, 16).set(sb.uuid);
  u16(SB.reservedGdtBlocks, sb.reservedGdtBlocks);
  u32(SB.journalIno, sb.journalIno);
  u32(SB.lastOrphan, sb.lastOrphan);
  sb.hashSeed.forEach((word, i) => u32(SB.hashSeed + 4 * i, word));
  v.setUint8(at + SB.defHashVersion, sb.defHashVersion);
  u16(SB.descriptorSize, sb.descriptorSize);
  u32(SB.defaultMountOptions, sb.defaultMountOptions);
  u32(SB.firstMetaBg, sb.firstMetaBg);
  u32(SB.mkfsTime, sb.mkfsTime);
  u16(SB.minExtraSize, sb.minExtraSize);
  u16(SB.wantExtraSize, sb.wantExtraSize);
  u32(SB.flags, sb.flags);
  v.setUint8(at + SB.logGroupsPerFlex, sb.logGroupsPerFlex);
  v.setUint8(at + SB.checksumType, sb.checksumType);
  setU64(v, at + SB.kbytesWritten, sb.kbytesWritten);
  u32(SB.overheadClusters, sb.overheadClusters);
  sb.backupGroups.forEach((group, i) => u32(SB.backupGroups + 4 * i, group));
  u32(SB.lostFoundIno, sb.lostFoundIno);
  u32(SB.checksumSeed, sb.checksumSeed);
  u32(SB.orphanFileIno, sb.orphanFileIno);
  u32(SB.checksum, sb.checksum);
}

/** Bytes of one group descriptor in the table: 32, or what the superblock says with 64bit. */
export function descriptorSizeOf(sb: Superblock): number {
  return sb.featureIncompat & INCOMPAT.is64bit ? sb.descriptorSize : GD.SIZE;
}

/** Number of block groups. */
export function groupCountOf(sb: Superblock): number {
  return Math.ceil((sb.blocksCount - sb.firstDataBlock) / sb.blocksPerGroup);
}

/** Blocks of the group descriptor table, without the reserved ones behind it. */
export function descriptorBlocksOf(sb: Superblock): number {
  const blockSize = 1024 * 2 ** sb.logBlockSize;
  return Math.ceil(groupCountOf(sb) * descriptorSizeOf(sb) / blockSize);
}

/**
 * Whether a group holds a copy of the superblock and of the descriptor table
 * (group 0 holds the primary ones). Kernel: `ext4_bg_has_super()`.
 */
export function hasSuperblock(sb: Superblock, group: number): boolean {
  if (group === 0) return true;
  if (sb.featureCompat & COMPAT.sparseSuper2) {
    return sb.backupGroups[0] === group || sb.backupGroups[1] === group;
  }
  if (group === 1 || !(sb.featureRoCompat & RO_COMPAT.sparseSuper)) return true;
  if (group % 2 === 0) return false;
  return [3, 5, 7].some((base) => {
    let power = base;
    while (power < group) power *= base;
    return power === group;
  });
}

/** `bg_flags` bits. */
export const GROUP_FLAGS = {
  /** The inode bitmap and table were never written: read as zeros. */
  inodeUninit: 1,
  /** The block bitmap was never written: only the group's own metadata is in use. */
  blockUninit: 2,
  /** The inode table is zeroed: the kernel's lazy initialisation leaves it alone. */
  inodeZeroed: 4,
} as const;

/** Byte offsets in a group descriptor; those from 0x20 on exist with 64-byte descriptors only. */
export const GD = {
  blockBitmapLo: 0x00, // u32 block number
  inodeBitmapLo: 0x04, // u32 block number
  inodeTableLo: 0x08, // u32 block number
  freeBlocksLo: 0x0c, // u16 count
  freeInodesLo: 0x0e, // u16 count
  usedDirsLo: 0x10, // u16 count
  flags: 0x12, // u16
  excludeBitmapLo: 0x14, // u32 block number
  blockBitmapCsumLo: 0x18, // u16
  inodeBitmapCsumLo: 0x1a, // u16
  itableUnusedLo: 0x1c, // u16 count
  checksum: 0x1e, // u16 crc16, or low half of a crc32c
  SIZE: 0x20,
  blockBitmapHi: 0x20, // u32
  inodeBitmapHi: 0x24, // u32
  inodeTableHi: 0x28, // u32
  freeBlocksHi: 0x2c, // u16
  freeInodesHi: 0x2e, // u16
  usedDirsHi: 0x30, // u16
  itableUnusedHi: 0x32, // u16
  excludeBitmapHi: 0x34, // u32
  blockBitmapCsumHi: 0x38, // u16
  inodeBitmapCsumHi: 0x3a, // u16
  reserved: 0x3c, // u32
  SIZE_64: 0x40,
} as const;

/** One group descriptor. */
export interface GroupDescriptor {
  /** Block numbers on the device. */
  blockBitmap: number;
  inodeBitmap: number;
  inodeTable: number;
  freeBlocks: number;
  freeInodes: number;
  usedDirs: number;
  flags: number;
  /** Inodes at the end of the table that were never used. Valid with uninit_bg or metadata_csum. */
  itableUnused: number;
  /** crc32c of the bitmap (metadata_csum); only the low 16 bits with 32-byte descriptors. */
  blockBitmapCsum: number;
  inodeBitmapCsum: number;
  checksum: number;
}

/** Decodes a descriptor of `size` bytes (32, or 64 and more) at `at`. */
export function readGroupDescriptor(
  v: DataView,
  at: number,
  size: number,
): GroupDescriptor {
  const u16 = (offset: number) => v.getUint16(at + offset, true);
  const u32 = (offset: number) => v.getUint32(at + offset, true);
  const wide = size >= GD.SIZE_64;
  const block = (lo: number, hi: number) =>
    u32(lo) + (wide ? u32(hi) * 2 ** 32 : 0);
  const count = (lo: number, hi: number) =>
    u16(lo) + (wide ? u16(hi) * 2 ** 16 : 0);
  return {
    blockBitmap: block(GD.blockBitmapLo, GD.blockBitmapHi),
    inodeBitmap: block(GD.inodeBitmapLo, GD.inodeBitmapHi),
    inodeTable: block(GD.inodeTableLo, GD.inodeTableHi),
    freeBlocks: count(GD.freeBlocksLo, GD.freeBlocksHi),
    freeInodes: count(GD.freeInodesLo, GD.freeInodesHi),
    usedDirs: count(GD.usedDirsLo, GD.usedDirsHi),
    flags: u16(GD.flags),
    itableUnused: count(GD.itableUnusedLo, GD.itableUnusedHi),
    blockBitmapCsum: count(GD.blockBitmapCsumLo, GD.blockBitmapCsumHi),
    inodeBitmapCsum: count(GD.inodeBitmapCsumLo, GD.inodeBitmapCsumHi),
    checksum: u16(GD.checksum),
  };
}

/** Encodes a descriptor of `size` bytes; bytes of fields that it does not name stay as they are. */
export function writeGroupDescriptor(
  v: DataView,
  at: number,
  size: number,
  d: GroupDescriptor,
): void {
  const wide = size >= GD.SIZE_64;
  const block = (lo: number, hi: number, value: number) => {
    v.setUint32(at + lo, value % 2 ** 32, true);
    if (wide) v.setUint32(at + hi, Math.floor(value / 2 ** 32), true);
  };
  const count = (lo: number, hi: number, value: number) => {
    v.setUint16(at + lo, value & 0xffff, true);
    if (wide) v.setUint16(at + hi, value >>> 16, true);
  };
  block(GD.blockBitmapLo, GD.blockBitmapHi, d.blockBitmap);
  block(GD.inodeBitmapLo, GD.inodeBitmapHi, d.inodeBitmap);
  block(GD.inodeTableLo, GD.inodeTableHi, d.inodeTable);
  count(GD.freeBlocksLo, GD.freeBlocksHi, d.freeBlocks);
  count(GD.freeInodesLo, GD.freeInodesHi, d.freeInodes);
  count(GD.usedDirsLo, GD.usedDirsHi, d.usedDirs);
  v.setUint16(at + GD.flags, d.flags, true);
  count(GD.itableUnusedLo, GD.itableUnusedHi, d.itableUnused);
  count(GD.blockBitmapCsumLo, GD.blockBitmapCsumHi, d.blockBitmapCsum);
  count(GD.inodeBitmapCsumLo, GD.inodeBitmapCsumHi, d.inodeBitmapCsum);
  v.setUint16(at + GD.checksum, d.checksum, true);
}

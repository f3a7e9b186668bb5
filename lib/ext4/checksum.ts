/**
 * Checksums of ext4 metadata: crc16 for descriptors under uninit_bg, and
 * crc32c for everything under metadata_csum.
 *
 * Source: fs/ext4/super.c, inode.c, namei.c, extents.c, bitmap.c, xattr.c and
 * kernel docs, ext4/checksums.rst. A field that holds a checksum counts as
 * zero in it. All crc32c are running remainders without inversion, started
 * from a seed of the file system (the crc of its UUID) or of an inode.
 */

import { crc32c } from "../io/mod.ts";
import {
  DIRENT_TAIL,
  DX_COUNT,
  DX_ENTRY,
  DX_TAIL,
  extentTailOffset,
  GD,
  INCOMPAT,
  INODE,
  SB,
  type Superblock,
} from "./format.ts";

/** Byte offset of `h_checksum` in an xattr block's header. Kept here so that xattr.ts stays free of checksums. */
const XATTR_CHECKSUM_OFFSET = 0x10;
const ZEROS = new Uint8Array(8);

const CRC16_TABLE = /* @__PURE__ */ Uint16Array.from(
  { length: 256 },
  (_, b) => {
    let crc = b;
    for (let i = 0; i < 8; i++) {
      crc = crc & 1 ? (crc >>> 1) ^ 0xa001 : crc >>> 1;
    }
    return crc;
  },
);

/** The kernel's `crc16()`: polynomial 0x8005, reflected, no inversion. */
export function crc16(bytes: Uint8Array, seed: number): number {
  let crc = seed;
  for (const byte of bytes) {
    crc = (crc >>> 8) ^ CRC16_TABLE[(crc ^ byte) & 0xff]!;
  }
  return crc & 0xffff;
}

const scratch = new Uint8Array(8);
const scratchView = new DataView(scratch.buffer);

/** crc32c over a little-endian u32. */
function crc32cOfU32(value: number, seed: number): number {
  scratchView.setUint32(0, value, true);
  return crc32c(scratch.subarray(0, 4), seed);
}

/** crc32c over a little-endian u64. */
function crc32cOfU64(value: number, seed: number): number {
  scratchView.setUint32(0, value % 2 ** 32, true);
  scratchView.setUint32(4, Math.floor(value / 2 ** 32), true);
  return crc32c(scratch, seed);
}

/** The seed of all metadata_csum checksums: stored (csum_seed), else the crc of the UUID. */
export function checksumSeedOf(sb: Superblock): number {
  return sb.featureIncompat & INCOMPAT.csumSeed
    ? sb.checksumSeed
    : crc32c(sb.uuid, 0xffffffff);
}

/** `s_checksum` of 1024 superblock bytes. */
export function superblockChecksum(superblock: Uint8Array): number {
  return crc32c(superblock.subarray(0, SB.checksum), 0xffffffff);
}

/**
 * `bg_checksum` under uninit_bg.
 *
 * @param descriptor All bytes of the descriptor (32 or `s_desc_size`).
 */
export function groupChecksumCrc16(
  uuid: Uint8Array,
  group: number,
  descriptor: Uint8Array,
): number {
  let crc = crc16(uuid, 0xffff);
  scratchView.setUint32(0, group, true);
  crc = crc16(scratch.subarray(0, 4), crc);
  crc = crc16(descriptor.subarray(0, GD.checksum), crc);
  return crc16(descriptor.subarray(GD.SIZE), crc);
}

/** `bg_checksum` under metadata_csum: the low 16 bits of a crc32c. */
export function groupChecksumCrc32c(
  seed: number,
  group: number,
  descriptor: Uint8Array,
): number {
  let crc = crc32cOfU32(group, seed);
  crc = crc32c(descriptor.subarray(0, GD.checksum), crc);
  crc = crc32c(ZEROS.subarray(0, 2), crc);
  return crc32c(descriptor.subarray(GD.SIZE), crc) & 0xffff;
}

/**
 * Checksum of a block or inode bitmap.
 *
 * @param bitmap The bitmap's block.
 * @param bits Blocks (clusters) or inodes per group: only their bytes count.
 */
export function bitmapChecksum(
  seed: number,
  bitmap: Uint8Array,
  bits: number,
): number {
  return crc32c(bitmap.subarray(0, bits >>> 3), seed);
}

/** The seed of everything that belongs to one inode: its extents, its directory blocks, itself. */
export function inodeChecksumSeed(
  seed: number,
  ino: number,
  generation: number,
): number {
  return crc32cOfU32(generation, crc32cOfU32(ino, seed));
}

/**
 * Checksum of an inode.
 *
 * @param inodeSeed From {@linkcode inodeChecksumSeed}.
 * @param inode The whole slot.
 * @returns 32 bits; only the low 16 are stored where `i_extra_isize` leaves no
 * room for the rest ({@linkcode hasInodeChecksumHi}).
 */
export function inodeChecksum(inodeSeed: number, inode: Uint8Array): number {
  let crc = crc32c(inode.subarray(0, INODE.checksumLo), inodeSeed);
  crc = crc32c(ZEROS.subarray(0, 2), crc);
  crc = crc32c(inode.subarray(INODE.checksumLo + 2, INODE.SIZE_OLD), crc);
  if (inode.length <= INODE.SIZE_OLD) return crc;
  if (!hasInodeChecksumHi(inode)) {
    return crc32c(inode.subarray(INODE.SIZE_OLD), crc);
  }
  crc = crc32c(inode.subarray(INODE.SIZE_OLD, INODE.checksumHi), crc);
  crc = crc32c(ZEROS.subarray(0, 2), crc);
  return crc32c(inode.subarray(INODE.checksumHi + 2), crc);
}

/** Whether an inode slot has room for the high half of its checksum. */
export function hasInodeChecksumHi(inode: Uint8Array): boolean {
  return inode.length > INODE.SIZE_OLD &&
    inode[INODE.extraSize]! + inode[INODE.extraSize + 1]! * 256 >= 4;
}

/** Checksum of an extent tree block with room for `max` entries; it is stored behind them. */
export function extentBlockChecksum(
  inodeSeed: number,
  block: Uint8Array,
  max: number,
): number {
  return crc32c(block.subarray(0, extentTailOffset(max)), inodeSeed);
}

/** Checksum of a directory leaf, stored in its tail. */
export function direntBlockChecksum(
  inodeSeed: number,
  block: Uint8Array,
): number {
  return crc32c(
    block.subarray(0, block.length - DIRENT_TAIL.SIZE),
    inodeSeed,
  );
}

/**
 * Checksum of an htree root or node: everything up to the last pair in use,
 * then the tail with a zero checksum.
 *
 * @param entriesOffset `DX_ROOT.entries` or `DX_NODE_ENTRIES`; `limit` and
 * `count` there must fit into the block.
 */
export function dxBlockChecksum(
  inodeSeed: number,
  block: Uint8Array,
  entriesOffset: number,
): number {
  const u16 = (at: number) => block[at]! + block[at + 1]! * 256;
  const limit = u16(entriesOffset + DX_COUNT.limit);
  const count = u16(entriesOffset + DX_COUNT.count);
  const tail = entriesOffset + limit * DX_ENTRY.SIZE;
  let crc = crc32c(
    block.subarray(0, entriesOffset + count * DX_ENTRY.SIZE),
    inodeSeed,
  );
  crc = crc32c(block.subarray(tail, tail + DX_TAIL.checksum), crc);
  return crc32c(ZEROS.subarray(0, 4), crc);
}

/** Checksum of an xattr block, which belongs to its place on the device and to no inode. */
export function xattrBlockChecksum(
  seed: number,
  blockNumber: number,
  block: Uint8Array,
): number {
  let crc = crc32cOfU64(blockNumber, seed);
  crc = crc32c(block.subarray(0, XATTR_CHECKSUM_OFFSET), crc);
  crc = crc32c(ZEROS.subarray(0, 4), crc);
  return crc32c(block.subarray(XATTR_CHECKSUM_OFFSET + 4), crc);
}

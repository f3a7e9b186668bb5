/** Which file system a superblock is of. */

import { toHex } from "../io/mod.ts";
import { RO_COMPAT, SB, SUPER_MAGIC, SUPERBLOCK_SIZE } from "./format.ts";

/** Fields that mke2fs sets and that stay as they are while files come and go. */
const LASTING: readonly [offset: number, bytes: number][] = [
  [SB.inodesCount, 4],
  [SB.blocksCountLo, 4],
  [SB.logBlockSize, 4],
  [SB.blocksPerGroup, 4],
  [SB.inodesPerGroup, 4],
  [SB.firstIno, 4],
  [SB.inodeSize, 2],
  [SB.featureCompat, 4],
  [SB.featureIncompat, 4],
  [SB.uuid, 16],
  [SB.reservedGdtBlocks, 2],
  [SB.hashSeed, 16],
  [SB.descriptorSize, 2],
  [SB.mkfsTime, 4],
  [SB.blocksCountHi, 4],
  [SB.logGroupsPerFlex, 1],
  [SB.backupGroups, 8],
];
/** Set by whoever writes the first file that needs them. */
const ON_DEMAND = RO_COMPAT.largeFile | RO_COMPAT.hugeFile |
  RO_COMPAT.dirNlink | RO_COMPAT.extraIsize;

/**
 * Names a file system by what its superblock keeps for life, so that two copies
 * can be told to be of different ones.
 *
 * @param bytes The 1024 bytes at {@linkcode SUPERBLOCK_OFFSET}.
 * @returns Undefined if it is no superblock of ext4.
 */
export function fileSystemIdentity(bytes: Uint8Array): string | undefined {
  if (bytes.length < SUPERBLOCK_SIZE) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, SUPERBLOCK_SIZE);
  if (view.getUint16(SB.magic, true) !== SUPER_MAGIC) return undefined;
  const parts = LASTING.map(([offset, length]) =>
    toHex(bytes.subarray(offset, offset + length))
  );
  const features = view.getUint32(SB.featureRoCompat, true) & ~ON_DEMAND;
  return [...parts, features.toString(16)].join(".");
}

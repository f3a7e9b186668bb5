/** What obd demands of a superblock and of group descriptors before it trusts any other byte. */

import {
  type ByteSource,
  FormatError,
  IntegrityError,
  LimitError,
  readBytes,
  UnsupportedError,
  viewOf,
} from "../io/mod.ts";
import {
  checksumSeedOf,
  groupChecksumCrc16,
  groupChecksumCrc32c,
  superblockChecksum,
} from "./checksum.ts";
import {
  CHECKSUM_CRC32C,
  COMPAT,
  descriptorSizeOf,
  GD,
  GROUP_FLAGS,
  groupCountOf,
  type GroupDescriptor,
  INCOMPAT,
  INO,
  INODE,
  readGroupDescriptor,
  readSuperblock,
  REVISION_DYNAMIC,
  RO_COMPAT,
  STATE,
  SUPER_MAGIC,
  type Superblock,
  SUPERBLOCK_OFFSET,
  SUPERBLOCK_SIZE,
} from "./format.ts";

/** Groups of the largest device that is opened: 64 TiB of 4 KiB blocks. */
const GROUPS_MAX = 2 ** 19;
/** Kernel: EXT4_MAX_DESC_SIZE would be a block; mke2fs writes 64. */
const DESCRIPTOR_SIZE_MAX = 1024;
/** Bytes of the largest descriptor table, which is read whole: what the most groups take as mke2fs writes them. */
const DESCRIPTOR_TABLE_MAX = GROUPS_MAX * GD.SIZE_64;
const NAME = "ext4 superblock";

/** What mke2fs calls each feature, so that messages match the man page. */
const INCOMPAT_NAMES: Record<keyof typeof INCOMPAT, string> = {
  compression: "compression",
  filetype: "filetype",
  recover: "needs_recovery",
  journalDev: "journal_dev",
  metaBg: "meta_bg",
  extents: "extent",
  is64bit: "64bit",
  mmp: "mmp",
  flexBg: "flex_bg",
  eaInode: "ea_inode",
  dirdata: "dirdata",
  csumSeed: "metadata_csum_seed",
  largedir: "large_dir",
  inlineData: "inline_data",
  encrypt: "encrypt",
  casefold: "casefold",
};
const RO_COMPAT_NAMES: Record<keyof typeof RO_COMPAT, string> = {
  sparseSuper: "sparse_super",
  largeFile: "large_file",
  btreeDir: "btree_dir",
  hugeFile: "huge_file",
  gdtCsum: "uninit_bg",
  dirNlink: "dir_nlink",
  extraIsize: "extra_isize",
  hasSnapshot: "snapshot",
  quota: "quota",
  bigalloc: "bigalloc",
  metadataCsum: "metadata_csum",
  replica: "replica",
  readonly: "read-only",
  project: "project",
  sharedBlocks: "shared_blocks",
  verity: "verity",
  orphanPresent: "orphan_present",
};

/** Incompatible features that obd reads and continues on. */
export const SUPPORTED_INCOMPAT = INCOMPAT.filetype | INCOMPAT.extents |
  INCOMPAT.is64bit | INCOMPAT.flexBg | INCOMPAT.csumSeed;
/** Read-only compatible features that obd keeps right. */
export const SUPPORTED_RO_COMPAT = RO_COMPAT.sparseSuper |
  RO_COMPAT.largeFile | RO_COMPAT.hugeFile | RO_COMPAT.gdtCsum |
  RO_COMPAT.dirNlink | RO_COMPAT.extraIsize | RO_COMPAT.metadataCsum;

function refuse(name: string, why: string): never {
  throw new UnsupportedError(name, `Cannot open ext4 file system: ${why}`);
}

/** Refuses the lowest bit of `bits` that `supported` lacks, by its name. */
function refuseUnknown(
  kind: string,
  bits: number,
  supported: number,
  flags: Record<string, number>,
  names: Record<string, string>,
): void {
  const unknown = (bits & ~supported) >>> 0;
  if (unknown === 0) return;
  const bit = (unknown & -unknown) >>> 0;
  const key = Object.keys(flags).find((key) => flags[key] === bit);
  const name = key === undefined
    ? `${kind} bit 0x${bit.toString(16)}`
    : names[key]!;
  refuse(name, `feature "${name}" is not supported`);
}

function checkFeatures(sb: Superblock): void {
  if (sb.featureIncompat & INCOMPAT.recover) {
    refuse("needs_recovery", "its journal needs recovery (run e2fsck)");
  }
  if (sb.featureRoCompat & RO_COMPAT.orphanPresent) {
    refuse("orphan_present", "its orphan file is in use (run e2fsck)");
  }
  refuseUnknown(
    "incompat",
    sb.featureIncompat,
    SUPPORTED_INCOMPAT,
    INCOMPAT,
    INCOMPAT_NAMES,
  );
  refuseUnknown(
    "ro_compat",
    sb.featureRoCompat,
    SUPPORTED_RO_COMPAT,
    RO_COMPAT,
    RO_COMPAT_NAMES,
  );
  if (sb.lastOrphan !== 0) {
    refuse("orphans", "it has deleted inodes to clean up (run e2fsck)");
  }
  if (sb.state & STATE.errors) {
    refuse("errors", "it is marked as having errors (run e2fsck)");
  }
  if (!(sb.state & STATE.clean)) {
    refuse("unclean", "it was not unmounted cleanly (run e2fsck)");
  }
  if (sb.featureCompat & COMPAT.hasJournal && sb.journalIno === 0) {
    refuse("external journal", "its journal is on another device");
  }
}

/** Demands what the arithmetic of all other code rests on. Kernel: `__ext4_fill_super()`. */
function checkGeometry(sb: Superblock, deviceSize: number): void {
  const demand = (field: string, value: number, ok: boolean) => {
    if (!ok) throw new FormatError(NAME, field, `is ${value}`);
  };
  demand("s_log_block_size", sb.logBlockSize, sb.logBlockSize <= 6);
  const blockSize = 1024 * 2 ** sb.logBlockSize;
  const bits = blockSize * 8;
  demand(
    "s_log_cluster_size",
    sb.logClusterSize,
    sb.logClusterSize === sb.logBlockSize,
  );
  demand(
    "s_first_data_block",
    sb.firstDataBlock,
    sb.firstDataBlock === (blockSize === 1024 ? 1 : 0),
  );
  demand(
    "s_inode_size",
    sb.inodeSize,
    sb.inodeSize >= INODE.SIZE_OLD && sb.inodeSize <= blockSize &&
      Number.isInteger(Math.log2(sb.inodeSize)),
  );
  demand(
    "s_blocks_per_group",
    sb.blocksPerGroup,
    sb.blocksPerGroup >= 8 && sb.blocksPerGroup <= bits &&
      sb.blocksPerGroup % 8 === 0 && sb.clustersPerGroup === sb.blocksPerGroup,
  );
  demand(
    "s_inodes_per_group",
    sb.inodesPerGroup,
    sb.inodesPerGroup > 0 && sb.inodesPerGroup <= bits &&
      sb.inodesPerGroup % 8 === 0 &&
      sb.inodesPerGroup * sb.inodeSize % blockSize === 0,
  );
  demand("s_first_ino", sb.firstIno, sb.firstIno >= INO.firstFree);
  const size = descriptorSizeOf(sb);
  const smallest = sb.featureIncompat & INCOMPAT.is64bit ? GD.SIZE_64 : GD.SIZE;
  demand(
    "s_desc_size",
    size,
    size >= smallest && size <= DESCRIPTOR_SIZE_MAX &&
      Number.isInteger(Math.log2(size)),
  );
  // Compared in blocks: a hostile count times the block size may pass 2^53.
  if (
    sb.blocksCount <= sb.firstDataBlock ||
    sb.blocksCount > Math.floor(deviceSize / blockSize)
  ) {
    throw new FormatError(
      NAME,
      "s_blocks_count",
      `is ${sb.blocksCount} blocks of ${blockSize}, the device has ${deviceSize} bytes`,
    );
  }
  const groups = groupCountOf(sb);
  if (groups > GROUPS_MAX) {
    throw new LimitError(
      `Cannot open ext4 file system: it has ${groups} block groups, at most ${GROUPS_MAX} are supported`,
    );
  }
  if (groups * size > DESCRIPTOR_TABLE_MAX) {
    throw new LimitError(
      `Cannot open ext4 file system: its group descriptors have ${
        groups * size
      } bytes, at most ${DESCRIPTOR_TABLE_MAX} are supported`,
    );
  }
  demand(
    "s_inodes_count",
    sb.inodesCount,
    sb.inodesCount === groups * sb.inodesPerGroup,
  );
}

/**
 * Reads and checks the superblock of a device.
 *
 * @returns The decoded superblock and its 1024 bytes.
 * @throws {FormatError} If it is malformed.
 * @throws {UnsupportedError} If it needs a feature that obd does not handle, or recovery.
 * @throws {IntegrityError} If its checksum is wrong (metadata_csum).
 */
export async function loadSuperblock(
  device: ByteSource,
): Promise<{ superblock: Superblock; bytes: Uint8Array<ArrayBuffer> }> {
  if (device.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE) {
    throw new FormatError(NAME, "device", `has ${device.size} bytes`);
  }
  const bytes = await readBytes(device, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE);
  const superblock = readSuperblock(viewOf(bytes), 0);
  if (superblock.magic !== SUPER_MAGIC) {
    throw new FormatError(
      NAME,
      "s_magic",
      `is 0x${superblock.magic.toString(16)}, expected 0xef53`,
    );
  }
  if (superblock.revision !== REVISION_DYNAMIC) {
    refuse("revision", `revision ${superblock.revision} is not supported`);
  }
  // The checksum goes first: a flipped bit should not be reported as a strange feature.
  if (superblock.featureRoCompat & RO_COMPAT.metadataCsum) {
    if (superblock.checksumType !== CHECKSUM_CRC32C) {
      refuse("checksum type", `checksum type ${superblock.checksumType}`);
    }
    demandChecksum(NAME, superblock.checksum, superblockChecksum(bytes));
  }
  checkFeatures(superblock);
  checkGeometry(superblock, device.size);
  return { superblock, bytes };
}

/** @throws {IntegrityError} Unless the two checksums are equal. */
export function demandChecksum(
  what: string,
  stored: number,
  computed: number,
): void {
  if (stored === computed) return;
  throw new IntegrityError(
    `Checksum of ${what}`,
    `0x${computed.toString(16)}`,
    `0x${stored.toString(16)}`,
  );
}

/** The group descriptor table, kept as bytes and decoded on demand: devices have up to 2^19 groups. */
export class GroupTable {
  readonly count: number;
  readonly descriptorSize: number;
  /** The table's bytes, without the reserved blocks behind it. Never write to them. */
  readonly bytes: Uint8Array;
  /** First block of each group's inode table. */
  readonly inodeTables: Float64Array;
  /** Inodes at the start of each group's table that may be in use. */
  readonly usedInodes: Uint32Array;
  /** Whether the uninit flags and `itableUnused` mean anything. Kernel: `ext4_has_group_desc_csum()`. */
  readonly hasUninit: boolean;
  readonly #superblock: Superblock;
  readonly #view: DataView;

  private constructor(superblock: Superblock, bytes: Uint8Array) {
    this.#superblock = superblock;
    this.count = groupCountOf(superblock);
    this.descriptorSize = descriptorSizeOf(superblock);
    this.bytes = bytes;
    this.#view = viewOf(bytes);
    this.inodeTables = new Float64Array(this.count);
    this.usedInodes = new Uint32Array(this.count);
    this.hasUninit = (superblock.featureRoCompat &
      (RO_COMPAT.gdtCsum | RO_COMPAT.metadataCsum)) !== 0;
  }

  /**
   * Reads and checks the whole table.
   *
   * @throws {FormatError} If a descriptor points outside the device.
   * @throws {IntegrityError} If a descriptor's checksum is wrong.
   */
  static async load(
    device: ByteSource,
    superblock: Superblock,
  ): Promise<GroupTable> {
    const blockSize = 1024 * 2 ** superblock.logBlockSize;
    const length = groupCountOf(superblock) * descriptorSizeOf(superblock);
    const offset = (superblock.firstDataBlock + 1) * blockSize;
    if (offset + length > superblock.blocksCount * blockSize) {
      throw new FormatError(
        "ext4 group descriptors",
        "table",
        "passes the end",
      );
    }
    const table = new GroupTable(
      superblock,
      await readBytes(device, offset, length),
    );
    table.#check(blockSize);
    return table;
  }

  /** Decodes one descriptor, 0 ≤ group < count. */
  get(group: number): GroupDescriptor {
    return readGroupDescriptor(
      this.#view,
      group * this.descriptorSize,
      this.descriptorSize,
    );
  }

  /** Whether a group's bitmap was never written and stands for its initial content. */
  isUninit(d: GroupDescriptor, flag: number): boolean {
    return this.hasUninit && (d.flags & flag) !== 0;
  }

  #check(blockSize: number): void {
    const sb = this.#superblock;
    const metadataCsum = (sb.featureRoCompat & RO_COMPAT.metadataCsum) !== 0;
    const gdtCsum = (sb.featureRoCompat & RO_COMPAT.gdtCsum) !== 0;
    const seed = metadataCsum ? checksumSeedOf(sb) : 0;
    const tableBlocks = sb.inodesPerGroup * sb.inodeSize / blockSize;
    for (let group = 0; group < this.count; group++) {
      const d = this.get(group);
      const at = group * this.descriptorSize;
      const bytes = this.bytes.subarray(at, at + this.descriptorSize);
      const name = `group descriptor ${group}`;
      if (metadataCsum) {
        demandChecksum(
          name,
          d.checksum,
          groupChecksumCrc32c(seed, group, bytes),
        );
      } else if (gdtCsum) {
        demandChecksum(
          name,
          d.checksum,
          groupChecksumCrc16(sb.uuid, group, bytes),
        );
      }
      const within = (field: string, block: number, count: number) => {
        if (block <= sb.firstDataBlock || block + count > sb.blocksCount) {
          throw new FormatError(name, field, `is ${block}, not on the device`);
        }
      };
      within("bg_block_bitmap", d.blockBitmap, 1);
      within("bg_inode_bitmap", d.inodeBitmap, 1);
      within("bg_inode_table", d.inodeTable, tableBlocks);
      if (this.hasUninit && d.itableUnused > sb.inodesPerGroup) {
        throw new FormatError(name, "bg_itable_unused", `is ${d.itableUnused}`);
      }
      this.inodeTables[group] = d.inodeTable;
      const unused = this.isUninit(d, GROUP_FLAGS.inodeUninit)
        ? sb.inodesPerGroup
        : this.hasUninit
        ? d.itableUnused
        : 0;
      this.usedInodes[group] = sb.inodesPerGroup - unused;
    }
  }
}

/** File systems for `obd inspect`. */

import {
  type ByteSource,
  CancelledError,
  fromUtf8,
  readBytes,
  toHex,
  viewOf,
} from "../../io/mod.ts";
import { Ext4Reader } from "../../ext4/mod.ts";
import {
  type FileReport,
  guard,
  type InspectOptions,
  newReport,
} from "./report.ts";

/** Both file systems have their superblock here. */
const SUPERBLOCK = 1024;
/** Kernel ext4/super.rst: `s_magic`. */
const EXT4_MAGIC_AT = 0x38;
const EXT4_MAGIC = 0xef53;
/** Kernel ext4/super.rst: `s_volume_name`, 16 bytes. */
const EXT4_LABEL_AT = 0x78;
/** Kernel fs/erofs/erofs_fs.h: EROFS_SUPER_MAGIC_V1. */
const EROFS_MAGIC = 0xe0f5e1e2;

/** The file system on a device, by its superblock's magic. */
export async function sniffFileSystem(
  device: ByteSource,
): Promise<"ext4" | "erofs" | undefined> {
  if (device.size < SUPERBLOCK + 1024) return undefined;
  const view = viewOf(await readBytes(device, SUPERBLOCK, 64));
  if (view.getUint32(0, true) === EROFS_MAGIC) return "erofs";
  return view.getUint16(EXT4_MAGIC_AT, true) === EXT4_MAGIC
    ? "ext4"
    : undefined;
}

/** A raw EROFS device: recognised, not read. */
export function inspectErofs(source: ByteSource): FileReport {
  const report = newReport("erofs", "EROFS file system", source);
  report.notes.push("obd does not read EROFS");
  return report;
}

/** A raw ext4 device: superblock, and every inode in use. */
export function inspectExt4(
  source: ByteSource,
  options: InspectOptions,
): Promise<FileReport> {
  const report = newReport("ext4", "ext4 file system", source);
  return guard(report, async () => {
    const reader = await Ext4Reader.open(source);
    const { superblock: s, superblockBytes } = reader;
    const label = superblockBytes.subarray(EXT4_LABEL_AT, EXT4_LABEL_AT + 16);
    const end = label.indexOf(0);
    const name = fromUtf8(end < 0 ? label : label.subarray(0, end));
    Object.assign(report.facts, {
      fileSystemSize: reader.blocksCount * reader.blockSize,
      blockSize: reader.blockSize,
      blocks: reader.blocksCount,
      freeBlocks: s.freeBlocks,
      inodes: s.inodesCount,
      freeInodes: s.freeInodes,
      groups: reader.groups.count,
      features: `compat 0x${s.featureCompat.toString(16)}, incompat 0x${
        s.featureIncompat.toString(16)
      }, ro_compat 0x${s.featureRoCompat.toString(16)}`,
      ...(name === "" ? {} : { label: name }),
      ...(s.uuid.some((b) => b !== 0) ? { uuid: toHex(s.uuid) } : {}),
    });
    const counts: Record<string, number> = {};
    let bytes = 0;
    for await (const stored of reader.inodes()) {
      if (options.signal?.aborted) throw new CancelledError();
      // Reserved inodes are of no type, the root excepted.
      if (stored.ino < s.firstIno && stored.ino !== reader.root) continue;
      const stat = reader.statOf(stored);
      counts[stat.type] = (counts[stat.type] ?? 0) + 1;
      if (stat.type === "file") bytes += stat.size;
    }
    for (const [type, count] of Object.entries(counts).sort()) {
      report.facts[`${type}Inodes`] = count;
    }
    report.facts.fileBytes = bytes;
  });
}

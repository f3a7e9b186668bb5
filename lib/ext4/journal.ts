/**
 * The one thing obd wants to know of a journal: that it is empty.
 *
 * Spec: kernel docs, ext4/journal.rst. Big-endian, unlike the rest of ext4.
 */

import { FormatError, UnsupportedError, viewOf } from "../io/mod.ts";

/** Byte offsets in the journal's superblock, its first block. */
export const JBD2 = {
  magic: 0x00, // u32
  blockType: 0x04, // u32
  sequence: 0x08, // u32
  blockSize: 0x0c, // u32 bytes
  maxLength: 0x10, // u32 blocks
  firstBlock: 0x14, // u32
  firstSequence: 0x18, // u32
  start: 0x1c, // u32 block where the log starts, 0 = empty
  error: 0x20, // i32
} as const;

/** `h_magic`. */
export const JBD2_MAGIC = 0xc03b3998;
const SUPERBLOCK_V1 = 3;
const SUPERBLOCK_V2 = 4;

/**
 * Checks that a journal holds nothing to replay.
 *
 * @param block The first block of the journal.
 * @throws {FormatError} If it is no journal.
 * @throws {UnsupportedError} If it holds transactions or recorded an error.
 */
export function checkJournalEmpty(block: Uint8Array): void {
  const view = viewOf(block);
  if (view.getUint32(JBD2.magic) !== JBD2_MAGIC) {
    throw new FormatError("journal superblock", "h_magic", "is wrong");
  }
  const type = view.getUint32(JBD2.blockType);
  if (type !== SUPERBLOCK_V1 && type !== SUPERBLOCK_V2) {
    throw new FormatError("journal superblock", "h_blocktype", `is ${type}`);
  }
  if (view.getUint32(JBD2.start) !== 0 || view.getInt32(JBD2.error) !== 0) {
    throw new UnsupportedError(
      "needs_recovery",
      "Cannot open ext4 file system: its journal needs recovery (run e2fsck)",
    );
  }
}

/** What no reader looks at, and `obd verify` does: the trailer of a ZFile whose header is complete. */

import {
  type ByteSource,
  FormatError,
  IntegrityError,
  readBytes,
} from "../io/mod.ts";
import {
  digestOf,
  hasZFileMagic,
  readZFileFields,
  ZF,
  type ZFileFields,
  ZFLAG,
} from "./format.ts";

/** Fields that header and trailer must agree on. */
const SAME = [
  "indexOffset",
  "blockCount",
  "originalSize",
  "indexCrc",
  "blockSize",
  "algorithm",
  "dictSize",
  "verify",
] as const satisfies (keyof ZFileFields)[];

/**
 * Checks the trailer's digest, and that it says what the header says. A file
 * that ends with its jump table, which readers take, has none to be checked.
 *
 * @param source A ZFile that opens, borrowed.
 * @throws {FormatError} If the trailer is no trailer, or says something else.
 * @throws {IntegrityError} If its digest is wrong.
 */
export async function checkZFileTrailer(source: ByteSource): Promise<void> {
  const header = readZFileFields(await readBytes(source, 0, ZF.SIZE));
  const isComplete = (header.flags & ZFLAG.headerOverwrite) !== 0;
  const end = header.indexOffset + header.blockCount * 4;
  if (isComplete && source.size === end) return;
  const at = source.size - ZF.SIZE;
  if (isComplete && at !== end) {
    throw new FormatError(
      "ZFile",
      "size",
      `is ${source.size}: ${
        source.size - end
      } bytes lie behind the jump table, a trailer has ${ZF.SIZE}`,
    );
  }
  const bytes = await readBytes(source, at, ZF.SIZE);
  const trailer = readZFileFields(bytes);
  const kind = ZFLAG.header | ZFLAG.data | ZFLAG.sealed;
  if (
    !hasZFileMagic(bytes) ||
    (trailer.flags & kind) !== (ZFLAG.data | ZFLAG.sealed)
  ) {
    throw new FormatError(
      "ZFile trailer",
      "magic and flags",
      "are not of a sealed data file",
      { offset: at },
    );
  }
  if ((trailer.flags & ZFLAG.digest) !== 0) {
    const digest = digestOf(bytes);
    if (digest !== trailer.digest) {
      throw new IntegrityError(
        "ZFile trailer digest",
        hex(trailer.digest),
        hex(digest),
      );
    }
  }
  if (!isComplete) return;
  for (const field of SAME) {
    if (trailer[field] === header[field]) continue;
    throw new FormatError(
      "ZFile trailer",
      field,
      `is ${trailer[field]}, the header says ${header[field]}`,
      { offset: at },
    );
  }
}

function hex(crc: number): string {
  return `0x${crc.toString(16).padStart(8, "0")}`;
}

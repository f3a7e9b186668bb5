/**
 * Opens a ZFile as overlaybd does (zfile.cpp: load_jump_table, is_zfile), with
 * bounds on every number before it is used.
 */

import { crc32c } from "../compress/mod.ts";
import {
  type ByteSource,
  FormatError,
  IntegrityError,
  LimitError,
  mapConcurrent,
  readBytes,
  UnsupportedError,
} from "../io/mod.ts";
import {
  ALGORITHM,
  digestOf,
  GROUP_BYTES,
  hasZFileMagic,
  HEADER_SEED,
  readZFileFields,
  ZF,
  type ZFileCodec,
  type ZFileFields,
  ZFLAG,
} from "./format.ts";
import { JumpTable } from "./jump_table.ts";
import { ZFileSource } from "./zfile_source.ts";

/** Blocks that obd opens: 128 GiB of 4 KiB blocks, a table of 128 MiB. */
export const MAX_BLOCKS = 2 ** 25;
/** Smallest block size that obd opens; the tools write 4 KiB and more. */
const MIN_BLOCK_SIZE = 512;
/** Pieces that the table is read in. */
const TABLE_PIECE = 1 << 20;

/** Whether a source starts as a ZFile. Reads at most 512 bytes. */
export async function isZFile(source: ByteSource): Promise<boolean> {
  if (source.size < ZF.SIZE) return false;
  return isHeader(await readBytes(source, 0, ZF.SIZE));
}

function isHeader(bytes: Uint8Array): boolean {
  return hasZFileMagic(bytes) &&
    (readZFileFields(bytes).flags & ZFLAG.header) !== 0;
}

/**
 * Opens a ZFile. Reads the header, the trailer if it is needed, and the table.
 *
 * @param source The whole ZFile. Owned by the result; still the caller's if
 * this rejects.
 * @returns The decompressed content.
 * @throws {FormatError} If it is no ZFile, or breaks a rule of the format.
 * @throws {IntegrityError} If the header's digest or the table's CRC is wrong.
 * @throws {UnsupportedError} If its algorithm is neither LZ4 nor zstd.
 * @throws {LimitError} If it has more than {@linkcode MAX_BLOCKS} blocks.
 */
export async function openZFile(source: ByteSource): Promise<ZFileSource> {
  const fields = await readFields(source);
  const codec = checkFields(fields);
  const lengths = await readTable(source, fields);
  const table = new JumpTable(lengths, ZF.SIZE + fields.dictSize, fields);
  if (table.position(table.count) > fields.indexOffset) {
    throw new FormatError(
      "ZFile jump table",
      "sum",
      `ends at ${
        table.position(table.count)
      }, behind the table's start ${fields.indexOffset}`,
    );
  }
  return new ZFileSource(source, table, {
    codec,
    size: fields.originalSize,
    blockSize: fields.blockSize,
    verify: fields.verify,
  });
}

/** The complete set of fields: the header's when it was overwritten, else the trailer's. */
async function readFields(source: ByteSource): Promise<ZFileFields> {
  if (source.size < ZF.SIZE) {
    throw new FormatError("ZFile", "size", `is ${source.size}, less than 512`);
  }
  const first = await readBytes(source, 0, ZF.SIZE);
  if (!isHeader(first)) {
    throw new FormatError("ZFile header", "magic", "is wrong", { offset: 0 });
  }
  const header = readZFileFields(first);
  if ((header.flags & ZFLAG.digest) !== 0) {
    checkCrc("ZFile header digest", header.digest, digestOf(first));
  }
  if ((header.flags & ZFLAG.headerOverwrite) !== 0) {
    return checkTablePlace(header, source.size, "header", 0);
  }
  const at = source.size - ZF.SIZE;
  if (at < ZF.SIZE) {
    throw new FormatError("ZFile", "trailer", "is missing");
  }
  const last = await readBytes(source, at, ZF.SIZE);
  const trailer = readZFileFields(last);
  const kind = ZFLAG.header | ZFLAG.data | ZFLAG.sealed;
  if (
    !hasZFileMagic(last) || (header.flags & ZFLAG.data) === 0 ||
    (trailer.flags & kind) !== (ZFLAG.data | ZFLAG.sealed)
  ) {
    throw new FormatError(
      "ZFile trailer",
      "magic and flags",
      "are not of a sealed data file",
      { offset: at },
    );
  }
  // The trailer's own digest is not looked at: old writers left it wrong.
  return checkTablePlace(trailer, at, "trailer", at);
}

function checkTablePlace(
  fields: ZFileFields,
  end: number,
  what: string,
  offset: number,
): ZFileFields {
  if (fields.indexOffset + fields.blockCount * 4 <= end) return fields;
  throw new FormatError(
    `ZFile ${what}`,
    "index_offset",
    `is ${fields.indexOffset}: ${fields.blockCount} entries do not fit before ${end}`,
    { offset },
  );
}

function checkFields(fields: ZFileFields): ZFileCodec {
  const { blockSize, blockCount, originalSize, algorithm } = fields;
  if (
    blockSize < MIN_BLOCK_SIZE || blockSize > GROUP_BYTES ||
    (blockSize & (blockSize - 1)) !== 0
  ) {
    throw new FormatError(
      "ZFile",
      "block_size",
      `is ${blockSize}, not a power of two from ${MIN_BLOCK_SIZE} to ${GROUP_BYTES}`,
    );
  }
  if (blockCount > MAX_BLOCKS) {
    throw new LimitError(
      `Cannot open ZFile of ${blockCount} blocks: limit is ${MAX_BLOCKS}`,
    );
  }
  if (blockCount !== Math.ceil(originalSize / blockSize)) {
    throw new FormatError(
      "ZFile",
      "index_size",
      `is ${blockCount}, but ${originalSize} bytes make ${
        Math.ceil(originalSize / blockSize)
      } blocks`,
    );
  }
  if (algorithm === ALGORITHM.lz4) return "lz4";
  if (algorithm === ALGORITHM.zstd) return "zstd";
  throw new UnsupportedError(
    "ZFile algorithm",
    `Cannot open ZFile: algorithm ${algorithm} is neither LZ4 (1) nor zstd (2)`,
  );
}

/** The stored lengths, and one spare place for {@linkcode JumpTable}. */
async function readTable(
  source: ByteSource,
  fields: ZFileFields,
): Promise<Uint32Array> {
  const { blockCount, indexOffset } = fields;
  const lengths = new Uint32Array(blockCount + 1);
  const bytes = new Uint8Array(lengths.buffer, 0, blockCount * 4);
  const pieces = Array.from(
    { length: Math.ceil(bytes.length / TABLE_PIECE) },
    (_, i) => i * TABLE_PIECE,
  );
  await mapConcurrent(
    pieces,
    4,
    (at) =>
      source.pread(bytes.subarray(at, at + TABLE_PIECE), indexOffset + at),
  );
  if ((fields.flags & ZFLAG.digest) !== 0) {
    checkCrc(
      "ZFile jump table CRC",
      fields.indexCrc,
      crc32c(bytes, HEADER_SEED),
    );
  }
  return lengths;
}

function checkCrc(what: string, want: number, got: number): void {
  if (want !== got) throw new IntegrityError(what, hex(want), hex(got));
}

function hex(crc: number): string {
  return `0x${crc.toString(16).padStart(8, "0")}`;
}

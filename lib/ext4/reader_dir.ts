/** Reads the blocks of a directory in order; interior blocks of an htree hold no names and are skipped. */

import {
  type ByteString,
  FormatError,
  latin1FromBytes,
  viewOf,
} from "../io/mod.ts";
import { direntBlockChecksum, dxBlockChecksum } from "./checksum.ts";
import {
  DE,
  DIRENT_TAIL,
  direntSize,
  DX_COUNT,
  DX_ENTRY,
  DX_NODE_ENTRIES,
  DX_ROOT,
  DX_TAIL,
  hasDirentTail,
  readRecordLength,
} from "./format.ts";
import { demandChecksum } from "./reader_super.ts";

/** Most names read from one directory, or passed in one walk: as many as a default 64 GiB device has inodes. */
export const ENTRIES_MAX = 1 << 22;

/** A name in a directory. */
export interface DirectoryEntry {
  name: ByteString;
  ino: number;
  /** One of `FILE_TYPE`; `unknown` without the filetype feature. A hint: the inode decides. */
  fileType: number;
}

/** What the blocks of one directory are checked against. */
export interface DirectoryContext {
  ino: number;
  blockSize: number;
  inodesCount: number;
  /** Whether the fourth byte of an entry's head is a file type, or the high byte of a name length. */
  hasFileType: boolean;
  /** Whether the inode says that it has an htree. */
  indexed: boolean;
  /** Set under metadata_csum. */
  checksumSeed: number | undefined;
}

const SLASH = 0x2f;
const DOT = 0x2e;

/**
 * Decodes one directory block.
 *
 * @param index Logical number of the block: "." and ".." stand in block 0 only.
 * @param visit Called for each name but "." and "..". Returning true stops.
 * @returns Whether `visit` stopped the scan.
 * @throws {FormatError} If the block is malformed.
 * @throws {IntegrityError} If its checksum is wrong.
 */
export function scanDirectoryBlock(
  context: DirectoryContext,
  block: Uint8Array,
  index: number,
  visit: (entry: DirectoryEntry) => boolean | void,
): boolean {
  const view = viewOf(block);
  const { blockSize } = context;
  if (context.checksumSeed !== undefined) {
    verifyBlock(context, view, block, index, context.checksumSeed);
  }
  const fail = (at: number, field: string, problem: string): never => {
    throw new FormatError(
      `directory ${context.ino}, block ${index}`,
      field,
      problem,
      { offset: at },
    );
  };
  let position = 0;
  for (let at = 0; at < blockSize; position++) {
    if (at + DE.name > blockSize) fail(at, "entry", "passes the block");
    const length = readRecordLength(view, at, blockSize);
    const nameLength = block[at + DE.nameLength]!;
    if (
      length < direntSize(nameLength === 0 ? 1 : nameLength) &&
      !(nameLength === 0 && length >= DE.name)
    ) {
      fail(at, "rec_len", `is ${length} for a name of ${nameLength}`);
    }
    if (length % 4 !== 0 || at + length > blockSize) {
      fail(at, "rec_len", `is ${length}`);
    }
    const ino = view.getUint32(at + DE.ino, true);
    if (ino !== 0) {
      if (ino > context.inodesCount) fail(at, "inode", `is ${ino}`);
      if (nameLength === 0) fail(at, "name", "is empty");
      const name = block.subarray(at + DE.name, at + DE.name + nameLength);
      if (!isDots(name)) {
        if (index === 0 && position < 2) {
          fail(at, "entry", `${position} is not "${position ? ".." : "."}"`);
        }
        if (name.includes(SLASH) || name.includes(0)) {
          fail(at, "name", "has a slash or a NUL");
        }
        const entry = {
          name: nameText(name),
          ino,
          fileType: context.hasFileType ? block[at + DE.fileType]! : 0,
        };
        if (visit(entry)) return true;
      } else if (index !== 0 || position !== nameLength - 1) {
        fail(at, "name", "is a dot entry out of place");
      } else if (nameLength === 1 && ino !== context.ino) {
        fail(at, "inode", `of "." is ${ino}`);
      }
    }
    at += length;
  }
  return false;
}

function isDots(name: Uint8Array): boolean {
  return name[0] === DOT &&
    (name.length === 1 || (name.length === 2 && name[1] === DOT));
}

/** Short names dominate: a loop beats building an argument list. */
function nameText(name: Uint8Array): ByteString {
  if (name.length > 32) return latin1FromBytes(name);
  let text = "";
  for (let i = 0; i < name.length; i++) text += String.fromCharCode(name[i]!);
  return text;
}

/**
 * Which checksum a block has shows in its entries, as in the kernel's
 * `get_dx_countlimit()`: a leaf's are shortened by the tail, so one that
 * covers the whole block belongs to an htree.
 */
function verifyBlock(
  context: DirectoryContext,
  view: DataView,
  block: Uint8Array,
  index: number,
  seed: number,
): void {
  const name = `directory ${context.ino}, block ${index}`;
  const { blockSize } = context;
  const covers = (at: number) =>
    at + readRecordLength(view, at, blockSize) === blockSize;
  const isNode = covers(0);
  const isRoot = index === 0 && covers(DX_ROOT.dotDot) &&
    readRecordLength(view, 0, blockSize) === DX_ROOT.dotDot;
  if (context.indexed && (isNode || isRoot)) {
    const entries = isRoot ? DX_ROOT.entries : DX_NODE_ENTRIES;
    const limit = view.getUint16(entries + DX_COUNT.limit, true);
    const count = view.getUint16(entries + DX_COUNT.count, true);
    const tail = entries + limit * DX_ENTRY.SIZE;
    if (count > limit || tail + DX_TAIL.SIZE > blockSize) {
      throw new FormatError(name, "htree limit", `is ${limit}, count ${count}`);
    }
    demandChecksum(
      name,
      view.getUint32(tail + DX_TAIL.checksum, true),
      dxBlockChecksum(seed, block, entries),
    );
    return;
  }
  if (!hasDirentTail(view, 0, blockSize)) {
    throw new FormatError(name, "checksum", "is not there");
  }
  const at = blockSize - DIRENT_TAIL.SIZE + DIRENT_TAIL.checksum;
  demandChecksum(
    name,
    view.getUint32(at, true),
    direntBlockChecksum(seed, block),
  );
}

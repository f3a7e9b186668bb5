/** From a header and its extensions to an entry. */
import {
  type ByteString,
  FormatError,
  quoteName,
  UnsupportedError,
} from "../io/mod.ts";
import type { TarEntry, TarEntryType } from "./entry.ts";
import type { Extensions } from "./extensions.ts";
import type { TarHeader } from "./header.ts";
import { checkSymlink, cleanPath, cleanTarget } from "./path.ts";
import type { PaxRecords } from "./pax.ts";

/** Type bytes that need more than a table. */
export const TYPE = {
  file: 0x30,
  /** V7 had only this one for files and directories. */
  legacy: 0,
  gnuSparse: 0x53,
} as const;

const TYPES: Readonly<Record<number, TarEntryType>> = {
  [TYPE.legacy]: "file",
  [TYPE.file]: "file",
  0x31: "hardlink",
  0x32: "symlink",
  0x33: "char",
  0x34: "block",
  0x35: "directory",
  0x36: "fifo",
  0x37: "file", // contiguous
  [TYPE.gnuSparse]: "file",
};

const NO_XATTRS: TarEntry["xattrs"] = [];
const NO_RUNS: TarEntry["runs"] = [];
const NO_PATCHES: TarEntry["patches"] = [];

/** Linux: 12 bits of major number, 20 of minor (include/linux/kdev_t.h). */
const MAX_MAJOR = 0xfff;
const MAX_MINOR = 0xfffff;

function bad(field: string, problem: string, offset: number): FormatError {
  return new FormatError("tar entry", field, problem, { offset });
}

/**
 * Tells what an entry creates.
 *
 * @param name As written: a trailing slash makes a V7 file a directory.
 * @throws {UnsupportedError} For a type that containers do not have.
 */
export function entryTypeOf(
  type: number,
  name: ByteString,
  offset: number,
): TarEntryType {
  if (type === TYPE.legacy && name.endsWith("/")) return "directory";
  const known = TYPES[type];
  if (known !== undefined) return known;
  const shown = quoteName(String.fromCharCode(type));
  throw new UnsupportedError(
    `tar type ${shown}`,
    `Cannot take tar entry ${
      quoteName(name)
    } at offset ${offset}: type ${shown} is not supported`,
  );
}

/**
 * A uid or gid as the kernel would have it after `chown`: negative values wrap
 * to 32 bits, and −1 means "leave it", so it stays root's.
 */
function ownerOf(value: number, field: string, offset: number): number {
  if (value < -(2 ** 31) || value >= 2 ** 32) {
    throw bad(field, `${value} passes 32 bits`, offset);
  }
  const id = value >>> 0;
  return id === 0xffffffff ? 0 : id;
}

/** Seconds saturate at the safe integers; file systems keep far less. */
function timeOf(
  header: TarHeader,
  pax: PaxRecords | undefined,
): TarEntry["mtime"] {
  const { seconds, nanoseconds } = pax?.mtime ??
    { seconds: header.mtime, nanoseconds: 0 };
  if (Number.isSafeInteger(seconds)) return { seconds, nanoseconds };
  const bound = seconds < 0 ? Number.MIN_SAFE_INTEGER : Number.MAX_SAFE_INTEGER;
  return { seconds: bound, nanoseconds: 0 };
}

function deviceNumber(
  value: number,
  max: number,
  field: string,
  offset: number,
): number {
  if (value < 0 || value > max) {
    throw bad(
      field,
      `${value} is not in 0 … ${max}, the range of Linux`,
      offset,
    );
  }
  return value;
}

function sortedXattrs(pax: PaxRecords | undefined): TarEntry["xattrs"] {
  if (pax === undefined || pax.xattrs.size === 0) return NO_XATTRS;
  return [...pax.xattrs].sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0);
}

function linkTargetOf(
  type: TarEntryType,
  target: ByteString,
  path: ByteString,
  offset: number,
): ByteString {
  if (type === "symlink") {
    checkSymlink(target, path, offset);
    return target;
  }
  if (type !== "hardlink") return "";
  const clean = cleanTarget(target, "hard link target", offset);
  if (clean === "") {
    throw bad(
      `target of hard link ${quoteName(path)}`,
      "is the root directory",
      offset,
    );
  }
  return clean;
}

/**
 * Builds an entry but for its content: `size` 0, no runs, no patches.
 *
 * @param name As written, extensions applied.
 * @param device Called for devices only.
 * @param offset Byte offset of the entry's header in the tar, for errors.
 * @throws {FormatError | LimitError} When a value cannot be on a Linux file system.
 */
export function buildEntry(
  type: TarEntryType,
  name: ByteString,
  header: TarHeader,
  { pax, longLink }: Readonly<Extensions>,
  device: () => { major: number; minor: number },
  offset: number,
): TarEntry {
  const path = cleanPath(name, "path", offset);
  const isDevice = type === "char" || type === "block";
  const { major, minor } = isDevice ? device() : { major: 0, minor: 0 };
  return {
    path,
    type,
    mode: ((header.mode % 0o10000) + 0o10000) % 0o10000,
    uid: ownerOf(pax?.uid ?? header.uid, "uid", offset),
    gid: ownerOf(pax?.gid ?? header.gid, "gid", offset),
    mtime: timeOf(header, pax),
    xattrs: sortedXattrs(pax),
    linkTarget: linkTargetOf(
      type,
      longLink || (pax?.linkPath ?? header.linkName),
      path,
      offset,
    ),
    devMajor: isDevice
      ? deviceNumber(pax?.devMajor ?? major, MAX_MAJOR, "devmajor", offset)
      : 0,
    devMinor: isDevice
      ? deviceNumber(pax?.devMinor ?? minor, MAX_MINOR, "devminor", offset)
      : 0,
    size: 0,
    runs: NO_RUNS,
    patches: NO_PATCHES,
  };
}

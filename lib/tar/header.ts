/**
 * One tar header block of 512 bytes, in all dialects.
 *
 * ```text
 *        0 name 100 mode 108 uid 116 gid 124 size 136 mtime 148 checksum 156 type 157 linkname 257
 * ustar: 257 "ustar\0" 263 "00" 265 uname 297 gname 329 devmajor 337 devminor 345 prefix 500
 * star:  as ustar, but 345 prefix 476 atime 488 ctime 500 – 508 "tar\0"
 * GNU:   257 "ustar " 263 " \0" … 345 atime 357 ctime 369 – 386 four sparse segments of 12 + 12,
 *        482 "more follow" 483 real size 495
 * ```
 *
 * Numbers are octal text, or base-256 when the first bit is set: two's
 * complement, big-endian (GNU tar manual, "Extensions to the standard").
 * What counts as valid follows Go's archive/tar, since container runtimes read
 * layers with it: a layer that they refuse need not be accepted, but one that
 * they accept must mean the same here.
 */
import {
  type ByteString,
  FormatError,
  latin1FromBytes,
  quoteName,
} from "../io/mod.ts";

/** Which fields a header has behind the first 257 bytes. */
export type TarDialect = "v7" | "ustar" | "star" | "gnu";

/** The fields of one header block. */
export interface TarHeader {
  dialect: TarDialect;
  /** The type byte. */
  type: number;
  /** As written, prefix joined; not cleaned. */
  name: ByteString;
  linkName: ByteString;
  /** Bytes that follow, for types that have a body. */
  size: number;
  mode: number;
  uid: number;
  gid: number;
  /** Seconds. */
  mtime: number;
}

const SPACE = 0x20;
const CHECKSUM_AT = 148;

function bad(field: string, problem: string, offset: number): FormatError {
  return new FormatError("tar header", field, problem, { offset });
}

/** Bytes up to the first NUL, at most `length`. */
export function readCString(
  bytes: Uint8Array,
  at: number,
  length: number,
): ByteString {
  let end = at;
  const limit = at + length;
  while (end < limit && bytes[end] !== 0) end++;
  return end === at ? "" : latin1FromBytes(bytes.subarray(at, end));
}

/** Octal text between spaces and NULs; `undefined` when it is something else. Nothing at all is 0. */
function readOctal(
  bytes: Uint8Array,
  at: number,
  length: number,
): number | undefined {
  let end = at + length;
  while (at < end && (bytes[at] === SPACE || bytes[at] === 0)) at++;
  while (end > at && (bytes[end - 1] === SPACE || bytes[end - 1] === 0)) end--;
  let value = 0;
  for (; at < end && bytes[at] !== 0; at++) {
    const digit = bytes[at]! - 0x30;
    if (digit < 0 || digit > 7) return undefined;
    value = value * 8 + digit;
  }
  return value;
}

/** Base-256; `undefined` outside the range of a signed 64-bit integer. */
function readBase256(
  bytes: Uint8Array,
  at: number,
  length: number,
): number | undefined {
  const invert = (bytes[at]! & 0x40) === 0 ? 0 : 0xff;
  let value = (bytes[at]! ^ invert) & 0x7f;
  for (let i = 1; i < length; i++) {
    value = value * 256 + (bytes[at + i]! ^ invert);
    if (value >= 2 ** 63) return undefined;
  }
  return invert === 0 ? value : -value - 1;
}

/**
 * Reads a number in either form.
 *
 * @returns The value, above 2^53 only the nearest Number; `undefined` when it
 * is not a number.
 */
export function readNumber(
  bytes: Uint8Array,
  at: number,
  length: number,
): number | undefined {
  return (bytes[at]! & 0x80) !== 0
    ? readBase256(bytes, at, length)
    : readOctal(bytes, at, length);
}

/** @throws {FormatError} When the field is not a number. */
export function readNumberField(
  bytes: Uint8Array,
  at: number,
  length: number,
  field: string,
  offset: number,
): number {
  const value = readNumber(bytes, at, length);
  if (value === undefined) {
    const raw = latin1FromBytes(bytes.subarray(at, at + length));
    throw bad(field, `is not a number: ${quoteName(raw)}`, offset);
  }
  return value;
}

/** Whether the block is all zeros: one half of an archive's end. */
export function isZeroBlock(bytes: Uint8Array, at: number): boolean {
  for (let i = at; i < at + 512; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** The sum over the block, its own field as spaces. */
function sumOf(bytes: Uint8Array, at: number): number {
  let sum = 8 * SPACE;
  for (let i = at; i < at + 512; i++) sum += bytes[i]!;
  for (let i = at + CHECKSUM_AT; i < at + CHECKSUM_AT + 8; i++) {
    sum -= bytes[i]!;
  }
  return sum;
}

/** How many bytes outside the checksum have the high bit: old writers summed them as negative. */
function highBytes(bytes: Uint8Array, at: number): number {
  let count = 0;
  for (let i = 0; i < 512; i++) {
    if (i < CHECKSUM_AT || i >= CHECKSUM_AT + 8) count += bytes[at + i]! >>> 7;
  }
  return count;
}

function verifyChecksum(bytes: Uint8Array, at: number, offset: number): void {
  const stored = readOctal(bytes, at + CHECKSUM_AT, 8);
  const sum = sumOf(bytes, at);
  if (stored === sum || stored === sum - 256 * highBytes(bytes, at)) return;
  const got = stored === undefined ? "not a number" : `0${stored.toString(8)}`;
  throw bad(
    "checksum",
    `is ${got}, computed 0${sum.toString(8)}: not a tar, or damaged`,
    offset,
  );
}

function hasText(bytes: Uint8Array, at: number, text: string): boolean {
  for (let i = 0; i < text.length; i++) {
    if (bytes[at + i] !== text.charCodeAt(i)) return false;
  }
  return true;
}

function dialectOf(bytes: Uint8Array, at: number): TarDialect {
  if (!hasText(bytes, at + 257, "ustar")) return "v7";
  if (bytes[at + 262] === 0) {
    return hasText(bytes, at + 508, "tar\0") ? "star" : "ustar";
  }
  return hasText(bytes, at + 262, "  \0") ? "gnu" : "v7";
}

/**
 * GNU headers have no prefix. Go before 1.8 wrote one all the same, over the
 * two times; it is told by times that are not numbers.
 */
function gnuPrefix(bytes: Uint8Array, at: number): ByteString {
  const isTime = (field: number) =>
    bytes[field] === 0 || readNumber(bytes, field, 12) !== undefined;
  if (isTime(at + 345) && isTime(at + 357)) return "";
  const prefix = readCString(bytes, at + 345, 155);
  for (let i = 0; i < prefix.length; i++) {
    if (prefix.charCodeAt(i) >= 0x80) return "";
  }
  return prefix;
}

function readPrefix(
  bytes: Uint8Array,
  at: number,
  dialect: TarDialect,
): ByteString {
  switch (dialect) {
    case "v7":
      return "";
    case "gnu":
      return gnuPrefix(bytes, at);
    case "ustar":
      return readCString(bytes, at + 345, 155);
    case "star":
      return readCString(bytes, at + 345, 131);
  }
}

/**
 * Reads a header block that is not all zeros.
 *
 * @param bytes Borrowed; the block is `bytes[at … at + 512)`.
 * @param offset Byte offset of the block in the tar, for errors.
 * @throws {FormatError} When the checksum is wrong or a field is not a number.
 */
export function readHeader(
  bytes: Uint8Array,
  at: number,
  offset: number,
): TarHeader {
  verifyChecksum(bytes, at, offset);
  const dialect = dialectOf(bytes, at);
  const name = readCString(bytes, at, 100);
  const prefix = readPrefix(bytes, at, dialect);
  return {
    dialect,
    type: bytes[at + 156]!,
    name: prefix === "" ? name : `${prefix}/${name}`,
    linkName: readCString(bytes, at + 157, 100),
    size: readNumberField(bytes, at + 124, 12, "size", offset),
    mode: readNumberField(bytes, at + 100, 8, "mode", offset),
    uid: readNumberField(bytes, at + 108, 8, "uid", offset),
    gid: readNumberField(bytes, at + 116, 8, "gid", offset),
    mtime: readNumberField(bytes, at + 136, 12, "mtime", offset),
  };
}

/**
 * Reads the device numbers; a V7 header has none (0, 0).
 *
 * @throws {FormatError} When a field is not a number.
 */
export function readDevice(
  bytes: Uint8Array,
  at: number,
  dialect: TarDialect,
  offset: number,
): { major: number; minor: number } {
  if (dialect === "v7") return { major: 0, minor: 0 };
  return {
    major: readNumberField(bytes, at + 329, 8, "devmajor", offset),
    minor: readNumberField(bytes, at + 337, 8, "devminor", offset),
  };
}

/** The gzip member header and trailer (RFC 1952). */

import * as zlib from "node:zlib";
import { FormatError, LimitError } from "../io/mod.ts";

/** CRC-32 and ISIZE behind each member's deflate stream (§2.3.1). */
export const GZIP_TRAILER_SIZE = 8;
/** Largest header that is read; names and comments have no bound of their own. */
export const GZIP_HEADER_SIZE_MAX = 1024 * 1024;

/** FLG bits (§2.3.1). FTEXT (bit 0) means nothing to a decoder. */
const FHCRC = 0x02;
const FEXTRA = 0x04;
const FNAME = 0x08;
const FCOMMENT = 0x10;
const RESERVED = 0xe0;

/** Whether `bytes` starts like a gzip member. */
export function hasGzipMagic(bytes: Uint8Array): boolean {
  return bytes.length >= 2 && bytes[0] === 0x1f && bytes[1] === 0x8b;
}

/**
 * Size in bytes of the member header at the start of `bytes`.
 *
 * @returns undefined when `bytes` ends inside the header.
 * @throws {FormatError} If it is no header that a decoder may accept.
 * @throws {LimitError} If it is longer than {@linkcode GZIP_HEADER_SIZE_MAX}.
 */
export function gzipHeaderSize(bytes: Uint8Array): number | undefined {
  const magic = [0x1f, 0x8b, 8]; // ID1, ID2, CM = deflate
  for (let i = 0; i < Math.min(bytes.length, magic.length); i++) {
    if (bytes[i] !== magic[i]) {
      throw new FormatError(
        "gzip header",
        i < 2 ? "magic" : "compression method",
        `is ${bytes[i]}, expected ${magic[i]}`,
      );
    }
  }
  if (bytes.length < 10) return undefined;
  const flags = bytes[3]!;
  if ((flags & RESERVED) !== 0) {
    throw new FormatError("gzip header", "flags", "have reserved bits");
  }
  let at = 10;
  if ((flags & FEXTRA) !== 0) {
    if (bytes.length < at + 2) return undefined;
    at += 2 + (bytes[at]! | bytes[at + 1]! << 8);
  }
  for (const flag of [FNAME, FCOMMENT]) {
    if ((flags & flag) === 0) continue;
    const end = at < bytes.length ? bytes.indexOf(0, at) : -1;
    if (end < 0) return incomplete(bytes);
    at = end + 1;
  }
  if ((flags & FHCRC) !== 0) {
    if (bytes.length < at + 2) return incomplete(bytes);
    const want = bytes[at]! | bytes[at + 1]! << 8;
    if ((zlib.crc32(bytes.subarray(0, at)) & 0xffff) !== want) {
      throw new FormatError("gzip header", "CRC", "is wrong");
    }
    at += 2;
  }
  return at <= bytes.length ? at : incomplete(bytes);
}

function incomplete(bytes: Uint8Array): undefined {
  if (bytes.length >= GZIP_HEADER_SIZE_MAX) {
    throw new LimitError(
      `gzip header is longer than ${GZIP_HEADER_SIZE_MAX} bytes`,
    );
  }
}

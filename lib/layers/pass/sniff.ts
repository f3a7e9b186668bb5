/** What a layer blob is, from its first bytes; media types are often wrong. */

import { hasGzipMagic, hasZstdMagic } from "../../compress/mod.ts";
import { FormatError, isZero, UnsupportedError } from "../../io/mod.ts";
import type { LayerCompression } from "./types.ts";

/** Bytes that {@linkcode sniffLayer} wants to see, or the whole blob when that is shorter. */
export const SNIFF_SIZE = 512;

const FOREIGN: readonly (readonly [name: string, magic: readonly number[]])[] =
  [
    ["bzip2", [0x42, 0x5a, 0x68]],
    ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
    ["lz4", [0x04, 0x22, 0x4d, 0x18]],
  ];

/**
 * @throws {UnsupportedError} If it is another compression, by name, or nothing known.
 * @throws {FormatError} If it ends inside a tar header.
 */
export function sniffLayer(head: Uint8Array): LayerCompression {
  if (hasGzipMagic(head)) return "gzip";
  // A skippable frame may come first, as pzstd writes it.
  if (hasZstdMagic(head)) return "zstd";
  for (const [name, magic] of FOREIGN) {
    if (magic.every((byte, i) => head[i] === byte)) throw unsupported(name);
  }
  // GNU tar and Go both read an empty file as an empty archive.
  if (head.length === 0) return "none";
  if (head.length < SNIFF_SIZE) {
    throw new FormatError(
      "layer blob",
      "length",
      `is ${head.length} bytes, too short for a tar`,
    );
  }
  if (isZero(head) || hasTarChecksum(head)) return "none";
  throw new UnsupportedError(
    "layer compression",
    "Layer is neither a tar nor gzip nor zstd: its compression is unknown",
  );
}

function unsupported(name: string): UnsupportedError {
  return new UnsupportedError(
    `${name} layer`,
    `Layer is compressed with ${name}, which is not supported`,
  );
}

/** Any tar: the header's sum with its own field as spaces, signed or not (POSIX pax, ustar). */
function hasTarChecksum(header: Uint8Array): boolean {
  let unsigned = 0;
  let signed = 0;
  for (let i = 0; i < SNIFF_SIZE; i++) {
    const byte = i >= 148 && i < 156 ? 0x20 : header[i]!;
    unsigned += byte;
    signed += byte < 128 ? byte : byte - 256;
  }
  const field = String.fromCharCode(...header.subarray(148, 156));
  const text = field.replace(/\0.*$/s, "").trim();
  if (!/^[0-7]{1,7}$/.test(text)) return false;
  const sum = parseInt(text, 8);
  return sum === unsigned || sum === signed;
}

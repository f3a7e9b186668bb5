/** Archives written by hand, for forms that no tool writes today. */
import { bytesFromLatin1, concatBytes } from "../../lib/io/mod.ts";

/** Fields of a header; numbers become octal text, byte arrays are written as they are. */
export interface HeaderFields {
  name?: string;
  mode?: number | Uint8Array;
  uid?: number | Uint8Array;
  gid?: number | Uint8Array;
  size?: number | Uint8Array;
  mtime?: number | Uint8Array;
  type?: string;
  linkName?: string;
  /** Eight bytes at 257. */
  magic?: string;
  devMajor?: number | Uint8Array;
  devMinor?: number | Uint8Array;
  prefix?: string;
  /** Bytes at other places, written before the checksum. */
  raw?: Record<number, string | Uint8Array>;
  /** Replaces the checksum's computation. */
  checksum?: (block: Uint8Array) => string;
}

export const USTAR = "ustar\x0000";
export const GNU = "ustar  \0";
export const V7 = "\0\0\0\0\0\0\0\0";

/** Sum as the standard says: bytes unsigned, its own field as spaces. */
export function unsignedSum(block: Uint8Array): number {
  return block.reduce((sum, b, i) => sum + (i >= 148 && i < 156 ? 32 : b), 0);
}

/** Sum as old writers had it: bytes signed. */
export function signedSum(block: Uint8Array): number {
  return block.reduce(
    (sum, b, i) => sum + (i >= 148 && i < 156 ? 32 : b << 24 >> 24),
    0,
  );
}

/** A header block; ustar unless `magic` says otherwise. */
export function header(fields: HeaderFields): Uint8Array<ArrayBuffer> {
  const block = new Uint8Array(512);
  const text = (at: number, value: string | Uint8Array) =>
    block.set(typeof value === "string" ? bytesFromLatin1(value) : value, at);
  const number = (
    at: number,
    digits: number,
    value: number | Uint8Array,
  ) =>
    text(
      at,
      typeof value === "number"
        ? value.toString(8).padStart(digits, "0") + "\0"
        : value,
    );
  text(0, fields.name ?? "file");
  number(100, 7, fields.mode ?? 0o644);
  number(108, 7, fields.uid ?? 0);
  number(116, 7, fields.gid ?? 0);
  number(124, 11, fields.size ?? 0);
  number(136, 11, fields.mtime ?? 0);
  text(156, fields.type ?? "0");
  text(157, fields.linkName ?? "");
  text(257, fields.magic ?? USTAR);
  if (fields.devMajor !== undefined) number(329, 7, fields.devMajor);
  if (fields.devMinor !== undefined) number(337, 7, fields.devMinor);
  if (fields.prefix !== undefined) text(345, fields.prefix);
  for (const [at, value] of Object.entries(fields.raw ?? {})) {
    text(Number(at), value);
  }
  const sum = fields.checksum ??
    ((b) => unsignedSum(b).toString(8).padStart(6, "0") + "\0 ");
  text(148, sum(block));
  return block;
}

/** Content padded with zeros to whole blocks. */
export function padded(content: Uint8Array): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(Math.ceil(content.length / 512) * 512);
  out.set(content);
  return out;
}

/** A header and its body. `content` gives the size unless `fields.size` does. */
export function member(
  fields: HeaderFields,
  content: Uint8Array | string = "",
): Uint8Array<ArrayBuffer> {
  const bytes = typeof content === "string"
    ? bytesFromLatin1(content)
    : content;
  return concatBytes([
    header({ size: bytes.length, ...fields }),
    padded(bytes),
  ]);
}

/** One PAX record; the length counts itself. */
export function record(key: string, value: string): string {
  const rest = key.length + value.length + 3;
  let length = rest + 1;
  while (String(length).length + rest !== length) length++;
  return `${length} ${key}=${value}\n`;
}

/** A PAX header with records, for the next member. */
export function pax(
  records: readonly (readonly [key: string, value: string])[],
  type = "x",
): Uint8Array<ArrayBuffer> {
  const area = records.map(([k, v]) => record(k, v)).join("");
  return member({ name: "PaxHeaders/file", type }, area);
}

/** Base-256 in `length` bytes, two's complement. */
export function base256(value: bigint, length: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let i = length - 1, rest = value; i >= 0; i--, rest >>= 8n) {
    out[i] = Number(rest & 0xffn);
  }
  out[0]! |= 0x80;
  return out;
}

/** Members and the two zero blocks. */
export function archive(
  ...members: readonly Uint8Array[]
): Uint8Array<ArrayBuffer> {
  return concatBytes([...members, new Uint8Array(1024)]);
}

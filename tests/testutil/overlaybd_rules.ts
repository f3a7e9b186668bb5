/**
 * The rules of overlaybd's formats, checked on finished bytes by code that
 * shares nothing with lib/: what the real readers demand (refused otherwise),
 * and what our writers promise on top (deterministic, zeroed padding).
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import * as zlib from "node:zlib";

/** CRC-32C bit by bit, no inversions. */
export function slowCrc32c(bytes: Uint8Array, seed: number): number {
  let crc = seed >>> 0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = (crc & 1) !== 0 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    }
  }
  return crc >>> 0;
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

const u64 = (v: DataView, at: number) => Number(v.getBigUint64(at, true));
const hex = (bytes: Uint8Array) => bytes.toHex();

/** LZ4 block decoder by the letter of lz4_Block_format.md. */
export function slowLz4(src: Uint8Array, capacity: number): Uint8Array {
  const out: number[] = [];
  let at = 0;
  const take = () => {
    assert.ok(at < src.length, "LZ4 block ends early");
    return src[at++]!;
  };
  const extended = (nibble: number) => {
    let length = nibble;
    if (nibble === 15) {
      for (let byte = 255; byte === 255;) length += byte = take();
    }
    return length;
  };
  for (;;) {
    const token = take();
    const literals = extended(token >>> 4);
    for (let i = 0; i < literals; i++) out.push(take());
    if (at === src.length) break;
    const distance = take() | take() << 8;
    assert.ok(distance > 0 && distance <= out.length, "LZ4 distance");
    for (let i = extended(token & 15) + 4; i > 0; i--) {
      out.push(out[out.length - distance]!);
    }
  }
  assert.ok(out.length <= capacity, "LZ4 block too long");
  return Uint8Array.from(out);
}

/** What a ZFile is expected to be. */
export interface ZFileWish {
  codec: "lz4" | "zstd";
  blockSize: number;
  headerOverwrite?: boolean;
  content?: Uint8Array;
}

/** Asserts the rules of formats §2 and returns the content. */
export function checkZFile(file: Uint8Array, wish: ZFileWish): Uint8Array {
  const head = file.subarray(0, 512);
  const tail = file.subarray(file.length - 512);
  for (const block of [head, tail]) {
    assert.equal(hex(block.subarray(0, 8)), "5a46696c65000100");
    assert.equal(
      new TextDecoder().decode(block.subarray(8, 24)),
      "tuji.yyf@Alibaba",
    );
    const v = view(block);
    assert.equal(v.getUint32(24, true), 96);
    const zeroed = block.slice();
    zeroed.fill(0, 28, 32);
    assert.equal(v.getUint32(28, true), slowCrc32c(zeroed, 0), "digest");
    assert.equal(v.getUint32(68, true), 0);
    assert.equal(v.getUint32(72, true), wish.blockSize);
    assert.equal(block[76], wish.codec === "lz4" ? 1 : 2);
    assert.ok(block.subarray(77, 88).every((b) => b === 0));
    assert.equal(block[88], 1, "verify");
    assert.ok(block.subarray(89).every((b) => b === 0));
  }
  assert.equal(u64(view(head), 32), wish.headerOverwrite ? 0x1b : 0x13);
  assert.equal(u64(view(tail), 32), 0x16);
  if (wish.headerOverwrite) {
    assert.equal(hex(head.subarray(40, 68)), hex(tail.subarray(40, 68)));
  } else assert.ok(head.subarray(40, 68).every((b) => b === 0));

  const t = view(tail);
  const indexOffset = u64(t, 40);
  const count = u64(t, 48);
  const size = u64(t, 56);
  assert.equal(indexOffset + count * 4 + 512, file.length);
  assert.equal(count, Math.ceil(size / wish.blockSize));
  const table = file.subarray(indexOffset, indexOffset + count * 4);
  assert.equal(t.getUint32(64, true), slowCrc32c(table, 0), "index_crc");
  const content = new Uint8Array(size);
  const group = 65536 / wish.blockSize;
  let at = 512;
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const length = view(table).getUint32(i * 4, true);
    assert.ok(length > 4 && length <= 65536, "stored length");
    if (i % group === 0) sum = 0;
    if (i % group < group - 1) sum += length;
    assert.ok(sum < 65535, "group sum");
    const packed = file.subarray(at, at + length - 4);
    const crc = view(file).getUint32(at + length - 4, true);
    assert.equal(crc, slowCrc32c(packed, 100007), `block ${i} CRC`);
    if (wish.codec === "zstd") {
      assert.equal(hex(packed.subarray(0, 4)), "28b52ffd");
      // RFC 8878 3.1.1.1: content size present, no checksum, no dictionary.
      const descriptor = packed[4]!;
      assert.ok((descriptor & 0xe0) !== 0, "zstd frame without content size");
      assert.equal(descriptor & 7, 0, "zstd frame with checksum or dictionary");
    }
    const block = wish.codec === "lz4"
      ? slowLz4(packed, wish.blockSize)
      : zlib.zstdDecompressSync(packed);
    const want = Math.min(wish.blockSize, size - i * wish.blockSize);
    assert.equal(block.length, want, `block ${i} length`);
    content.set(block, i * wish.blockSize);
    at += length;
  }
  assert.equal(at, indexOffset);
  if (wish.content) assert.ok(Buffer.compare(content, wish.content) === 0);
  return content;
}

/** Asserts the rules of formats §3 and returns the payload. */
export function checkTarWrapper(
  file: Uint8Array,
  payloadSize: number,
): Uint8Array {
  const text = (at: number, length: number) =>
    String.fromCharCode(...file.subarray(at, at + length));
  for (const at of [0, 1024]) {
    assert.equal(text(at + 257, 8), "ustar\x0000");
    let sum = 0;
    for (let i = 0; i < 512; i++) {
      sum += i >= 148 && i < 156 ? 32 : file[at + i]!;
    }
    assert.equal(text(at + 148, 8), `${sum.toString(8).padStart(6)} \0`);
  }
  assert.equal(text(0, 14), "overlaybd.pax\0");
  assert.equal(text(156, 1), "x");
  assert.equal(text(1024, 17), "overlaybd.commit\0");
  assert.equal(text(1024 + 156, 1), "0");
  assert.equal(text(1024 + 124, 12), "          0 ");
  const recordLength = parseInt(text(124, 12), 8);
  assert.ok(recordLength <= 512);
  assert.equal(
    text(512, recordLength),
    `${recordLength} size=${payloadSize}\n`,
  );
  assert.ok(file.subarray(512 + recordLength, 1024).every((b) => b === 0));
  const end = 1536 + payloadSize;
  assert.equal(file.length, Math.ceil(end / 512) * 512 + 1024);
  assert.ok(file.subarray(end).every((b) => b === 0));
  return file.subarray(1536, end);
}

/** One decoded index entry; units are sectors. */
export interface LsmtEntry {
  offset: number;
  length: number;
  moffset: number;
  zeroed: boolean;
  tag: number;
}

/** Asserts the rules of formats §1.1–§1.4, §1.10 on a committed layer and returns its entries. */
export function checkLsmt(
  file: Uint8Array,
  kind: "native" | "warp",
  virtualSize: number,
): LsmtEntry[] {
  assert.ok(file.length >= 8192);
  const header = file.subarray(0, 4096);
  const trailer = file.subarray(file.length - 4096);
  for (const [block, flags] of [[header, 7], [trailer, 6]] as const) {
    assert.equal(
      hex(block.subarray(0, 24)),
      "4c534d5400010200657e63d29444084ca2d2c8ec4fcfae8a",
    );
    const v = view(block);
    assert.equal(v.getUint32(24, true), 390);
    assert.equal(v.getUint32(28, true), flags);
    assert.equal(u64(v, 48), virtualSize);
    for (const at of [56, 93]) {
      const text = String.fromCharCode(...block.subarray(at, at + 37));
      assert.match(text, /^[0-9A-F]{8}-([0-9A-F]{4}-){3}[0-9A-F]{12}\0$/);
    }
    assert.deepEqual([...block.subarray(130, 134)], [0, 0, 1, 1]);
    assert.ok(block.subarray(390).every((b) => b === 0), "padding");
  }
  assert.ok(header.subarray(32, 48).every((b) => b === 0));
  const indexOffset = u64(view(trailer), 32);
  const count = u64(view(trailer), 40);
  assert.equal(indexOffset % 512, 0);
  assert.ok(indexOffset >= 4096);
  assert.ok(count <= 1_000_000);
  assert.equal(indexOffset + count * 16 + 4096, file.length);
  const index = view(file.subarray(indexOffset, indexOffset + count * 16));
  const entries: LsmtEntry[] = [];
  for (let i = 0; i < count; i++) {
    const a = index.getBigUint64(i * 16, true);
    const b = index.getBigUint64(i * 16 + 8, true);
    const entry = {
      offset: Number(a & (1n << 50n) - 1n),
      length: Number(a >> 50n),
      moffset: Number(b & (1n << 55n) - 1n),
      zeroed: (b >> 55n & 1n) === 1n,
      tag: Number(b >> 56n),
    };
    if (entry.offset === 2 ** 50 - 1) {
      assert.equal(kind, "native", "warp indexes are not padded");
      assert.equal(entry.length + entry.moffset, 0);
      continue;
    }
    assert.ok(entries.length === i, "padding before an entry");
    entries.push(entry);
  }
  checkEntries(entries, kind, indexOffset / 512, virtualSize);
  return entries;
}

function checkEntries(
  entries: LsmtEntry[],
  kind: "native" | "warp",
  high: number,
  virtualSize: number,
): void {
  let before: LsmtEntry | undefined;
  for (const e of entries) {
    assert.ok(e.length >= 1 && e.length <= 16383, "length");
    assert.ok(e.offset + e.length <= virtualSize / 512, "beyond the device");
    if (before) assert.ok(before.offset + before.length <= e.offset, "order");
    if (e.tag === 0 && !(e.zeroed && kind === "warp")) {
      const end = e.zeroed ? e.moffset : e.moffset + e.length;
      assert.ok(e.moffset >= 8 && end <= high, "outside the data area");
    }
    assert.ok(e.tag <= (kind === "warp" && !e.zeroed ? 1 : 0), "tag");
    if (e.zeroed && kind === "warp") assert.equal(e.moffset, 0);
    if (
      before && before.offset + before.length === e.offset &&
      before.zeroed === e.zeroed && before.tag === e.tag &&
      (e.zeroed || before.moffset + before.length === e.moffset)
    ) assert.equal(before.length, 16383, "neighbours are not joined");
    before = e;
  }
  if (kind === "warp") {
    assert.ok(entries.some((e) => e.tag === 0), "all entries are remote");
  }
}

/** What a `gzip.meta` is expected to hold. */
export interface GzipMetaWish {
  gzipSize: number;
  uncompressedSize: number;
  checkpoints: { count: number; uncompressedOffset: ArrayLike<number> };
}

/** Asserts the rules of formats §4.1–§4.3. */
export function checkGzipMeta(file: Uint8Array, wish: GzipMetaWish): void {
  const v = view(file);
  const { count } = wish.checkpoints;
  assert.equal(hex(file.subarray(0, 8)), "6464677a69647800");
  assert.deepEqual([...file.subarray(8, 13)], [1, 0, 1, 6, 0]);
  assert.ok(v.getInt32(13, true) >= 65536);
  assert.equal(v.getInt32(17, true), 32768);
  assert.equal(v.getInt32(21, true), 29);
  assert.equal(u64(v, 25), count);
  assert.equal(u64(v, 33), wish.gzipSize);
  assert.equal(u64(v, 41), file.length);
  assert.equal(u64(v, 49), wish.uncompressedSize);
  assert.ok(file.subarray(57, 313).every((b) => b === 0));
  const start = u64(v, 313);
  assert.equal(start + u64(v, 321), file.length);
  assert.equal(v.getUint32(329, true), slowCrc32c(file.subarray(0, 329), 0));
  const entries = new Uint8Array(zlib.inflateSync(file.subarray(start)));
  assert.equal(entries.length, count * 29);
  const e = view(entries);
  let windowAt = 333;
  for (let i = 0; i < count; i++) {
    const at = i * 29;
    assert.equal(u64(e, at), wish.checkpoints.uncompressedOffset[i]);
    if (i === 0) assert.equal(u64(e, at), 0);
    else assert.ok(u64(e, at) > u64(e, at - 29));
    assert.ok(u64(e, at + 8) <= wish.gzipSize);
    assert.equal(u64(e, at + 16), windowAt);
    assert.ok(entries[at + 24]! <= 7);
    const length = e.getUint32(at + 25, true);
    const window = zlib.inflateSync(file.subarray(windowAt, windowAt + length));
    assert.equal(window.length, 32768);
    windowAt += length;
  }
  assert.equal(windowAt, start);
}

/** Asserts the rules of formats §5.1 on the uncompressed tar of a meta blob. */
export function checkMetaTar(tar: Uint8Array, names: string[]): void {
  const text = (at: number, length: number) =>
    String.fromCharCode(...tar.subarray(at, at + length));
  let at = 0;
  for (const name of names) {
    const size = parseInt(text(at + 124, 11), 8);
    const header = tar.slice(at, at + 512);
    let sum = 0;
    for (let i = 0; i < 512; i++) sum += i >= 148 && i < 156 ? 32 : header[i]!;
    const want = new Uint8Array(512);
    const put = (to: number, value: string) =>
      want.set(new TextEncoder().encode(value), to);
    put(0, name);
    put(100, "0000644\x000000000\x000000000\0");
    put(124, `${size.toString(8).padStart(11, "0")}\x0000000000000\0`);
    put(148, `${sum.toString(8).padStart(6, "0")}\0 0`);
    put(257, "ustar\x0000");
    assert.equal(hex(header), hex(want), name);
    const end = at + 512 + size;
    at = Math.ceil(end / 512) * 512;
    assert.ok(tar.subarray(end, at).every((b) => b === 0));
  }
  assert.equal(tar.length, at + 1024);
  assert.ok(tar.subarray(at).every((b) => b === 0));
}

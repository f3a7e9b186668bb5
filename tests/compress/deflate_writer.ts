/** A tiny writer of deflate streams by hand, for corner cases that no compressor makes. */

import * as zlib from "node:zlib";
import { concatBytes } from "../../lib/io/mod.ts";

/** Bits in deflate order, and the blocks that tests need. */
export class DeflateWriter {
  readonly #bits: number[] = [];
  /** What the stream decodes to. */
  readonly content: number[] = [];

  /** Bits written so far. */
  get bitLength(): number {
    return this.#bits.length;
  }

  put(value: number, count: number): this {
    for (let i = 0; i < count; i++) this.#bits.push((value >>> i) & 1);
    return this;
  }

  /** A Huffman code: most significant bit first. */
  putCode(code: number, count: number): this {
    for (let i = count - 1; i >= 0; i--) this.#bits.push((code >>> i) & 1);
    return this;
  }

  stored(bytes: Uint8Array, last = false, padding = 0): this {
    this.put(last ? 1 : 0, 1).put(0, 2);
    while (this.#bits.length % 8 !== 0) this.put(padding, 1);
    this.put(bytes.length, 16).put(bytes.length ^ 0xffff, 16);
    for (const byte of bytes) {
      this.put(byte, 8);
      this.content.push(byte);
    }
    return this;
  }

  startFixed(last = false): this {
    return this.put(last ? 1 : 0, 1).put(1, 2);
  }

  literal(byte: number): this {
    this.content.push(byte);
    return byte < 144
      ? this.putCode(0x30 + byte, 8)
      : this.putCode(0x190 + byte - 144, 9);
  }

  /** A match of length 3 with the fixed code. */
  match3(distance: number): this {
    this.putCode(1, 7);
    let symbol = 29;
    const base = (s: number) =>
      s < 2 ? s + 1 : (2 + (s & 1)) * 2 ** ((s >> 1) - 1) + 1;
    while (base(symbol) > distance) symbol--;
    this.putCode(symbol, 5);
    this.put(distance - base(symbol), symbol < 2 ? 0 : (symbol >> 1) - 1);
    for (let i = 0; i < 3; i++) {
      this.content.push(this.content[this.content.length - distance] ?? 0);
    }
    return this;
  }

  endBlock(): this {
    return this.putCode(0, 7);
  }

  /** A dynamic block with 1-bit codes for `byte` (11 … 244) and end of block. */
  dynamicRun(byte: number, count: number, last = false): this {
    this.put(last ? 1 : 0, 1).put(2, 2).put(0, 5).put(0, 5).put(14, 4);
    // Order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1: symbols 18 and 1 get one bit.
    for (let i = 0; i < 18; i++) this.put(i === 2 || i === 17 ? 1 : 0, 3);
    const zeros = (n: number) => {
      for (let left = n; left > 0;) {
        const step = left > 138 + 10 || left <= 138
          ? Math.min(left, 138)
          : left - 11;
        this.putCode(1, 1).put(step - 11, 7);
        left -= step;
      }
    };
    zeros(byte);
    this.putCode(0, 1);
    zeros(256 - byte - 1);
    this.putCode(0, 1); // end of block
    this.putCode(0, 1); // distance 0
    for (let i = 0; i < count; i++) {
      this.putCode(0, 1);
      this.content.push(byte);
    }
    return this.putCode(1, 1);
  }

  bytes(): Uint8Array<ArrayBuffer> {
    const out = new Uint8Array(Math.ceil(this.#bits.length / 8));
    this.#bits.forEach((bit, i) => out[i >>> 3]! |= bit << (i & 7));
    return out;
  }

  /** The stream as one gzip member. */
  gzip(): Uint8Array<ArrayBuffer> {
    return gzipMember(this.bytes(), Uint8Array.from(this.content));
  }
}

/** A gzip member around a finished deflate stream. */
export function gzipMember(
  deflated: Uint8Array,
  content: Uint8Array,
  header: Uint8Array = Uint8Array.of(0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255),
): Uint8Array<ArrayBuffer> {
  const trailer = new Uint8Array(8);
  const view = new DataView(trailer.buffer);
  view.setUint32(0, zlib.crc32(content), true);
  view.setUint32(4, content.length, true);
  return concatBytes([header, deflated, trailer]);
}

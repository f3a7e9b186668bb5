/**
 * Decodes a gzip blob that comes in pieces, as it comes: what there is of a
 * download is decoded while the rest is on its way.
 *
 * The runtime's own gunzip streams decode on the calling thread too, and cost
 * more than the decoding: they are not used for what a start waits for.
 */

import * as zlib from "node:zlib";
import { concatBytes, FormatError, viewOf } from "../io/mod.ts";
import {
  GZIP_TRAILER_SIZE,
  gzipHeaderSize,
  hasGzipMagic,
} from "./gzip_header.ts";
import { openRawInflate } from "./raw_inflate.ts";

/** Output that is handed on at once; the thread is busy that long. */
const OUTPUT_SIZE = 256 * 1024;

/** See the module comment. */
export class Gunzip implements Disposable {
  readonly #inflate = openRawInflate();
  readonly #output = new Uint8Array(OUTPUT_SIZE);
  /** Start of a header or trailer that is not whole yet. */
  #held: Uint8Array = new Uint8Array(0);
  #phase: "header" | "deflate" | "trailer" | "behind" = "header";
  #isFirst = true;
  #crc = 0;
  #size = 0;

  /**
   * Decodes one piece. What follows the last member is ignored, as gzip does.
   *
   * @param piece Borrowed until the iteration ends, which must be waited for.
   * @returns Views of one buffer, each good until the next is asked for.
   * @throws {FormatError} If the blob is malformed; nothing may follow.
   */
  *push(piece: Uint8Array): Generator<Uint8Array> {
    let at = 0;
    if (this.#held.length > 0) {
      piece = concatBytes([this.#held, piece]);
      this.#held = piece.subarray(0, 0);
    }
    for (;;) {
      const rest = piece.subarray(at);
      switch (this.#phase) {
        case "header": {
          if (!this.#isFirst) {
            if (rest.length < 2) return this.#hold(rest);
            if (!hasGzipMagic(rest)) {
              this.#phase = "behind";
              return;
            }
          }
          const size = gzipHeaderSize(rest);
          if (size === undefined) return this.#hold(rest);
          at += size;
          this.#inflate.reset();
          this.#crc = this.#size = 0;
          this.#isFirst = false;
          this.#phase = "deflate";
          break;
        }
        case "deflate":
          at += yield* this.#decode(rest);
          if (this.#phase === "deflate") return;
          break;
        case "trailer":
          if (rest.length < GZIP_TRAILER_SIZE) return this.#hold(rest);
          this.#checkTrailer(rest);
          at += GZIP_TRAILER_SIZE;
          this.#phase = "header";
          break;
        case "behind":
          return;
      }
    }
  }

  #hold(rest: Uint8Array): void {
    this.#held = rest.slice();
  }

  /** @returns Bytes used up; all of them, or those up to the member's end. */
  *#decode(input: Uint8Array): Generator<Uint8Array, number> {
    const inflate = this.#inflate;
    const output = this.#output;
    for (let at = 0;;) {
      const left = input.length - at;
      inflate.write(input, at, left, output, 0, output.length, false);
      at = input.length - inflate.availableIn;
      const length = output.length - inflate.availableOut;
      if (length > 0) {
        const decoded = output.subarray(0, length);
        this.#crc = zlib.crc32(decoded, this.#crc);
        this.#size += length;
        yield decoded;
      }
      // No room was left: it may hold more.
      if (length === output.length) continue;
      // Input is left and there was room: the member ended.
      if (at < input.length) this.#phase = "trailer";
      return at;
    }
  }

  #checkTrailer(trailer: Uint8Array): void {
    const view = viewOf(trailer);
    const wrong = view.getUint32(0, true) !== this.#crc
      ? "CRC-32"
      : view.getUint32(4, true) !== this.#size % 2 ** 32
      ? "ISIZE"
      : undefined;
    if (wrong) throw new FormatError("gzip trailer", wrong, "is wrong");
  }

  /** @throws {FormatError} If the blob ended inside a member. */
  finish(): void {
    if (this.#phase === "behind") return;
    if (this.#phase === "header" && !this.#isFirst && this.#held.length < 2) {
      return;
    }
    throw new FormatError("gzip blob", "length", `ends in its ${this.#phase}`);
  }

  /** Frees native memory; nothing may follow. */
  [Symbol.dispose](): void {
    this.#inflate.close();
  }
}

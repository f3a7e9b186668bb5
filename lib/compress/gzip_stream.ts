/**
 * Decodes the members of a gzip blob from its start, from one ring into another
 * place: for layers whose deflate blocks are so long that reading cannot begin
 * anywhere else. The counterpart of {@linkcode ZstdStream}.
 *
 * Checksums of members are not looked at: whoever uses this has better ones.
 */

import { FormatError } from "../io/mod.ts";
import type { ByteRing } from "./byte_ring.ts";
import {
  GZIP_HEADER_SIZE_MAX,
  GZIP_TRAILER_SIZE,
  gzipHeaderSize,
  hasGzipMagic,
} from "./gzip_header.ts";
import { openRawInflate, type RawInflate } from "./raw_inflate.ts";

/** Input given to the decoder at once. */
const INPUT_STEP = 256 * 1024;
/** Most headers are shorter. */
const HEADER_SIZE_USUAL = 512;

/** Why {@linkcode GzipStream.step} returned: bytes were decoded, it needs more input or room, or the input is over. */
export type GzipStep = "data" | "input" | "output" | "end";

/** See the module comment. Drive it with {@linkcode step}. */
export class GzipStream {
  /** Bytes of input that were used up; those below are not looked at again. */
  inputOffset = 0;
  /** Bytes that the last step decoded. */
  produced = 0;

  readonly #input: ByteRing;
  readonly #inflate: RawInflate = openRawInflate();
  #phase: "header" | "deflate" | "between" = "header";
  /** Whether the decoder may hold output that had no room. */
  #holds = false;

  /** @param input Holds the blob, from `inputOffset` on; at least 2 MiB. */
  constructor(input: ByteRing) {
    this.#input = input;
  }

  /** Frees native memory. */
  close(): void {
    this.#inflate.close();
  }

  /**
   * Goes on to the next event.
   *
   * @param inputEnd How far the input is there.
   * @param isEnd Whether it ends there.
   * @param output Gets decoded bytes at `[from, to)`.
   * @throws {FormatError} If the input is malformed or cut.
   */
  step(
    inputEnd: number,
    isEnd: boolean,
    output: Uint8Array,
    from: number,
    to: number,
  ): GzipStep {
    while (true) {
      const step = this.#phase === "deflate"
        ? this.#decode(inputEnd, isEnd, output, from, to)
        : this.#phase === "header"
        ? this.#readHeader(inputEnd, isEnd)
        : this.#lookBehindMember(inputEnd, isEnd);
      if (step !== undefined) return step;
    }
  }

  #readHeader(inputEnd: number, isEnd: boolean): GzipStep | undefined {
    const from = this.inputOffset;
    for (let size = HEADER_SIZE_USUAL;; size *= 4) {
      const most = from + Math.min(size, GZIP_HEADER_SIZE_MAX);
      const end = Math.min(inputEnd, most);
      const header = gzipHeaderSize(this.#input.copy(from, end));
      if (header !== undefined) {
        this.inputOffset += header;
        break;
      }
      if (end === inputEnd) return this.#starve(isEnd, "gzip header");
    }
    this.#inflate.reset();
    this.#holds = false;
    this.#phase = "deflate";
    return undefined;
  }

  #decode(
    inputEnd: number,
    isEnd: boolean,
    output: Uint8Array,
    from: number,
    to: number,
  ): GzipStep | undefined {
    const at = this.#input.at(this.inputOffset);
    const give = Math.min(
      inputEnd - this.inputOffset,
      this.#input.capacity - at,
      INPUT_STEP,
    );
    if (give === 0 && !this.#holds) {
      return this.#starve(isEnd, "deflate stream");
    }
    if (from >= to) return "output";
    const inflate = this.#inflate;
    const { bytes } = this.#input;
    inflate.write(bytes, at, give, output, from, to - from, false);
    this.inputOffset += give - inflate.availableIn;
    this.produced = to - from - inflate.availableOut;
    this.#holds = inflate.availableOut === 0;
    // Input is left and there is room: the member ended.
    if (inflate.availableIn > 0 && inflate.availableOut > 0) {
      this.#phase = "between";
    }
    return this.produced > 0 ? "data" : undefined;
  }

  /** The trailer, then another member, zero padding or the end. */
  #lookBehindMember(inputEnd: number, isEnd: boolean): GzipStep | undefined {
    const next = this.inputOffset + GZIP_TRAILER_SIZE;
    if (inputEnd < next) return this.#starve(isEnd, "gzip trailer");
    const head = this.#input.copy(next, Math.min(inputEnd, next + 2));
    if (head.length < 2 && !isEnd) return "input";
    // Padding or nothing: what there was of a tar is decoded.
    if (!hasGzipMagic(head)) return "end";
    this.inputOffset = next;
    this.#phase = "header";
    return undefined;
  }

  #starve(isEnd: boolean, where: string): "input" {
    if (!isEnd) return "input";
    throw new FormatError("gzip blob", "length", `ends in its ${where}`, {
      offset: this.inputOffset,
    });
  }
}

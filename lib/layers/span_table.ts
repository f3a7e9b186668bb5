/** Where the spans of a layer lie in its uncompressed tar. */

import { FormatError, UnsupportedError } from "../io/mod.ts";

/**
 * A span is decoded, checked and kept whole in memory, so a layer with larger
 * ones is refused by name. Real compressors end their blocks far below.
 */
export const MAX_SPAN_BYTES = 128 * 1024 * 1024;

const DIGEST_SIZE = 32;

/** Spans that cover `[0, size)` of the uncompressed tar in order and without gaps. */
export class SpanTable {
  readonly count: number;
  /** Bytes of the uncompressed tar. */
  readonly size: number;
  readonly #offsets: Float64Array;
  readonly #digests: Uint8Array | undefined;

  /**
   * @param offsets Uncompressed offset of each span, ascending from 0; borrowed.
   * @param size Bytes of the uncompressed tar.
   * @param digests SHA-256 of each span, 32 bytes each, back to back; borrowed.
   * @throws {FormatError} When the spans do not cover the tar.
   * @throws {UnsupportedError} When a span is larger than 128 MiB.
   */
  constructor(
    offsets: Float64Array,
    size: number,
    digests: Uint8Array | undefined,
  ) {
    const wrong = (field: string, problem: string) =>
      new FormatError("span table", field, problem);
    if (!Number.isSafeInteger(size) || size < 0) {
      throw wrong("size", `is ${size}`);
    }
    const { length: count } = offsets;
    if ((size > 0 || count > 0) && offsets[0] !== 0) {
      throw wrong("offset of span 0", `is ${offsets[0]}, expected 0`);
    }
    if (digests && digests.length !== count * DIGEST_SIZE) {
      throw wrong("digests", `are ${digests.length} bytes for ${count} spans`);
    }
    for (let i = 0; i < count; i++) {
      const end = i + 1 < count ? offsets[i + 1]! : size;
      const length = end - offsets[i]!;
      if (!Number.isSafeInteger(end) || length < 0) {
        throw wrong(`end of span ${i}`, `is ${end}`);
      }
      if (length > MAX_SPAN_BYTES) {
        throw new UnsupportedError(
          "large span",
          `Cannot serve lazily: span ${i} has ${length} bytes, at most ${MAX_SPAN_BYTES} are supported`,
        );
      }
    }
    this.count = count;
    this.size = size;
    this.#offsets = offsets;
    this.#digests = digests;
  }

  /** Spans of equal size; only the last may be shorter. */
  static regular(
    spanSize: number,
    size: number,
    digests: Uint8Array | undefined,
  ): SpanTable {
    const count = Math.ceil(size / spanSize);
    if (digests && digests.length !== count * DIGEST_SIZE) {
      throw new FormatError(
        "span table",
        "digests",
        `are ${digests.length} bytes for ${count} spans`,
      );
    }
    const offsets = Float64Array.from(
      { length: count },
      (_, i) => i * spanSize,
    );
    return new SpanTable(offsets, size, digests);
  }

  offsetOf(index: number): number {
    return this.#offsets[index]!;
  }

  sizeOf(index: number): number {
    const end = index + 1 < this.count ? this.#offsets[index + 1]! : this.size;
    return end - this.#offsets[index]!;
  }

  /** The SHA-256 of a span, borrowed; undefined when the layer has none. */
  digestOf(index: number): Uint8Array | undefined {
    return this.#digests?.subarray(
      index * DIGEST_SIZE,
      (index + 1) * DIGEST_SIZE,
    );
  }

  /** The last span that begins at or before `offset`, which is inside the tar. */
  find(offset: number): number {
    let low = 0;
    let high = this.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.#offsets[middle]! <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

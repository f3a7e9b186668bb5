/**
 * Decodes a span of a gzip blob from its checkpoint.
 *
 * The runtime ignores zlib's `dictionary` and has no `inflatePrime`, so the
 * window and the bit offset are brought about by valid deflate data instead:
 *
 * - the window goes through the decoder as one stored block, its output is
 *   thrown away;
 * - empty blocks follow whose bits add up to the wanted offset; the stream's
 *   first partial byte is merged into the last byte of them.
 */

import { FormatError, LimitError } from "../io/mod.ts";
import type { Checkpoint } from "./checkpoint_search.ts";
import { SPAN_SIZE_MAX } from "./gzip_index.ts";
import { GZIP_TRAILER_SIZE, gzipHeaderSize } from "./gzip_header.ts";
import { openRawInflate, type RawInflate, WINDOW_SIZE } from "./raw_inflate.ts";

/** What {@linkcode inflateAt} needs to know. */
export interface InflateRequest extends Pick<Checkpoint, "bits" | "window"> {
  /**
   * Compressed bytes from the checkpoint's partial byte (or, with `bits` 0, its
   * first whole byte) to the next checkpoint's `compressedOffset`, or more.
   */
  input: Uint8Array;
}

/** First byte of a checkpoint's input. */
export function inputStart(
  checkpoint: Pick<Checkpoint, "bits" | "compressedOffset">,
): number {
  return checkpoint.compressedOffset - (checkpoint.bits === 0 ? 0 : 1);
}

/**
 * The preludes for 0 … 7 leading bits: bytes, the last of them holding that
 * many bits of the prelude.
 *
 * An empty block with the fixed code has 10 bits. That reaches the even offsets
 * only; an empty block with a dynamic code of 93 bits reaches the odd ones.
 */
const PRELUDES: readonly Uint8Array[] = Array.from({ length: 8 }, makePrelude);

function makePrelude(_: unknown, offset: number): Uint8Array {
  const bits: number[] = [];
  const put = (value: number, count: number) => {
    for (let i = 0; i < count; i++) bits.push((value >>> i) & 1);
  };
  if (offset % 2 === 1) {
    put(0b100, 3); // not last, dynamic
    put(0, 5); // HLIT 257
    put(0, 5); // HDIST 1
    put(15, 4); // HCLEN 19, in the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1 15
    for (let i = 0; i < 19; i++) put(i === 2 || i === 17 ? 1 : 0, 3);
    // Code lengths 1 and 18 got one bit each: 0 → 1, 1 → 18.
    put(1, 1), put(138 - 11, 7);
    put(1, 1), put(118 - 11, 7); // 256 literals without a code
    put(0, 1); // end of block has 1 bit
    put(0, 1); // distance 0 too
    put(0, 1); // end of block
  }
  while (bits.length % 8 !== offset) {
    put(0b010, 3); // not last, fixed
    put(0, 7); // end of block
  }
  const bytes = new Uint8Array(Math.ceil(bits.length / 8));
  bits.forEach((bit, i) => bytes[i >>> 3]! |= bit << (i & 7));
  return bytes;
}

/** A stored block of a whole window: header, then the bytes. */
const STORED_HEADER = Uint8Array.of(0, 0x00, 0x80, 0xff, 0x7f);

const discarded = new Uint8Array(WINDOW_SIZE);

/**
 * Decodes spans, one after the other, each as its input comes.
 *
 * Goes on into later members of the blob where the span does; their CRCs are
 * not checked, since a span may start in the middle of a member.
 */
export class SpanDecoder {
  readonly #inflate: RawInflate = openRawInflate();
  #request: InflateRequest | undefined;
  #output: Uint8Array = new Uint8Array(0);
  /** Bytes used of the input, and made of the output. */
  #at = 0;
  #done = 0;
  #isStarted = false;
  #isBetweenMembers = false;

  /**
   * Starts a span; the one before may have been left where it was.
   *
   * @param request Its input is borrowed until the span is done; what is not
   * there yet may still change.
   * @param output Of the span's length, at most {@linkcode SPAN_SIZE_MAX} bytes; borrowed as the input is.
   * @throws {FormatError} If the checkpoint cannot be one.
   * @throws {LimitError} If `output` is too long.
   */
  start(request: InflateRequest, output: Uint8Array): void {
    const { bits, window } = request;
    if (output.length > SPAN_SIZE_MAX) {
      throw new LimitError(
        `Span of ${output.length} bytes is over the limit of ${SPAN_SIZE_MAX}`,
      );
    }
    if (window.length !== 0 && window.length !== WINDOW_SIZE) {
      throw bad(
        "window",
        `has ${window.length} bytes, expected ${WINDOW_SIZE}`,
      );
    }
    if (!(bits >= 0 && bits <= 7)) throw bad("bits", `are ${bits}`);
    this.#request = request;
    this.#output = output;
    this.#at = this.#done = 0;
    this.#isStarted = this.#isBetweenMembers = false;
  }

  /**
   * Decodes as far as the input goes.
   *
   * @param available Bytes of the input that are there; all of them: no more will come.
   * @returns Bytes of the output that are made; all of them: the span is done.
   * @throws {FormatError} If the input is malformed or ends first; only `start` may follow.
   */
  advance(available: number): number {
    const { input } = this.#request!;
    const output = this.#output;
    const inflate = this.#inflate;
    while (this.#done < output.length) {
      if (this.#at >= available) {
        if (available === input.length) throw ended();
        return this.#done;
      }
      if (!this.#isStarted) this.#begin();
      if (this.#isBetweenMembers && !this.#enterMember(available)) {
        return this.#done;
      }
      const left = available - this.#at;
      const room = output.length - this.#done;
      if (left === 0) continue;
      inflate.write(input, this.#at, left, output, this.#done, room, false);
      this.#at = available - inflate.availableIn;
      this.#done = output.length - inflate.availableOut;
      // Input is left and there is room: the member ended.
      this.#isBetweenMembers = this.#at < available &&
        this.#done < output.length;
    }
    return this.#done;
  }

  /** Brings the decoder to the checkpoint; the input's first byte is there. */
  #begin(): void {
    const { input, bits, window } = this.#request!;
    const inflate = this.#inflate;
    inflate.reset();
    if (window.length > 0) {
      feed(inflate, STORED_HEADER);
      feed(inflate, window);
    }
    if (bits > 0) {
      const prelude = PRELUDES[8 - bits]!.slice();
      const used = 8 - bits;
      prelude[prelude.length - 1]! |= (input[this.#at++]! >>> used) << used;
      feed(inflate, prelude);
    }
    this.#isStarted = true;
  }

  /** Steps over a trailer and the header behind it. @returns False when they are not there as a whole yet. */
  #enterMember(available: number): boolean {
    const { input } = this.#request!;
    const at = this.#at + GZIP_TRAILER_SIZE;
    const header = at < available
      ? gzipHeaderSize(input.subarray(at, available))
      : undefined;
    if (header === undefined) {
      if (available === input.length) throw ended();
      return false;
    }
    this.#at = at + header;
    this.#isBetweenMembers = false;
    this.#inflate.reset();
    return true;
  }

  /** Frees native memory; nothing may follow. */
  close(): void {
    this.#inflate.close();
  }
}

let decoder: SpanDecoder | undefined;

/**
 * Fills all of `output` with the bytes behind a checkpoint; see
 * {@linkcode SpanDecoder}, whose errors it throws.
 *
 * @param output Owned by the caller; undefined after an error.
 */
export function inflateAt(request: InflateRequest, output: Uint8Array): void {
  decoder ??= new SpanDecoder();
  decoder.start(request, output);
  decoder.advance(request.input.length);
}

/** Decodes bytes that give no output of interest. */
function feed(inflate: RawInflate, bytes: Uint8Array): void {
  let at = 0;
  while (at < bytes.length) {
    inflate.write(
      bytes,
      at,
      bytes.length - at,
      discarded,
      0,
      discarded.length,
      false,
    );
    const next = bytes.length - inflate.availableIn;
    if (next === at) throw bad("bits", "end the stream");
    at = next;
  }
}

function ended(): FormatError {
  return bad("input", "ends before the span does");
}

function bad(field: string, problem: string): FormatError {
  return new FormatError("gzip span", field, problem);
}

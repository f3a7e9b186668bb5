/**
 * Raw inflate that can stop at each block end.
 *
 * The runtime offers that only below its public API: the stream's handle takes
 * zlib's flush values, and `Z_BLOCK` stops at block ends. Those internals are
 * tested once for each thread before they are used; where they are not as
 * expected, {@linkcode PlainRawInflate} takes their place, with the same
 * results at a third of the speed.
 */

import * as zlib from "node:zlib";
import { FormatError } from "../io/mod.ts";
import { nativeCodec, type NativeHandle } from "./native_handle.ts";
import { Inflate, STATUS } from "./inflate.ts";

/** Bytes of history that a match may refer to (RFC 1951 §2). */
export const WINDOW_SIZE = 32768;

const Z_NO_FLUSH = 0;
const Z_BLOCK = 5; // zlib.h; not among the runtime's constants

/** A raw inflate decoder. */
export interface RawInflate {
  /** Input bytes that the last call left. */
  readonly availableIn: number;
  /** Output bytes that the last call left. */
  readonly availableOut: number;
  /**
   * Decodes until the input is used up, the output is full, a block ended (with
   * `stopAtBlock`) or the stream ended.
   *
   * When input and output are both left, it stopped at a block's end, and all
   * but the last byte's unused bits are consumed; a call that then does nothing
   * at all is at the end of the stream. `stopAtBlock` may or may not stop when
   * the block's end is also the end of the input or output.
   *
   * @throws {FormatError} If the input is malformed; only `reset` may follow.
   */
  write(
    input: Uint8Array,
    inputAt: number,
    inputSize: number,
    output: Uint8Array,
    outputAt: number,
    outputSize: number,
    stopAtBlock: boolean,
  ): void;
  /** Starts a new stream. */
  reset(): void;
  /** Frees native memory; nothing may follow. */
  close(): void;
}

/** zlib behind a node:zlib stream that is never used as a stream. */
class NativeRawInflate implements RawInflate {
  readonly #handle: NativeHandle;
  readonly #state: Uint32Array;
  #problem: string | undefined;

  constructor() {
    const { handle, state } = nativeCodec(zlib.createInflateRaw());
    this.#handle = handle;
    this.#state = state;
    this.#handle.onerror = (message) => {
      this.#problem = message;
    };
  }

  get availableIn(): number {
    return this.#state[1]!;
  }

  get availableOut(): number {
    return this.#state[0]!;
  }

  write(
    input: Uint8Array,
    inputAt: number,
    inputSize: number,
    output: Uint8Array,
    outputAt: number,
    outputSize: number,
    stopAtBlock: boolean,
  ): void {
    this.#handle.writeSync(
      stopAtBlock ? Z_BLOCK : Z_NO_FLUSH,
      input,
      inputAt,
      inputSize,
      output,
      outputAt,
      outputSize,
    );
    if (this.#problem !== undefined) throw malformed(this.#problem);
  }

  reset(): void {
    this.#problem = undefined;
    this.#handle.reset();
  }

  close(): void {
    this.#handle.close();
  }
}

const HISTORY_SIZE = 4 * WINDOW_SIZE;
/** More input than the longest block header or symbol needs. */
const CARRY_STEP = 1024;

/** {@linkcode RawInflate} over the TypeScript decoder. */
export class PlainRawInflate implements RawInflate {
  availableIn = 0;
  availableOut = 0;
  readonly #inflate = new Inflate();
  readonly #history = new Uint8Array(HISTORY_SIZE);
  /** Input that was reported as consumed but not decoded yet; the decoder's bit position counts from its start. */
  #carry = new Uint8Array(0);
  #ended = false;

  constructor() {
    this.reset();
  }

  reset(): void {
    this.#inflate.reset(0, 0, 0);
    this.#carry = new Uint8Array(0);
    this.#ended = false;
  }

  close(): void {}

  write(
    input: Uint8Array,
    inputAt: number,
    inputSize: number,
    output: Uint8Array,
    outputAt: number,
    outputSize: number,
    stopAtBlock: boolean,
  ): void {
    const inflate = this.#inflate;
    const inputEnd = inputAt + inputSize;
    const outputEnd = outputAt + outputSize;
    let at = inputAt;
    let to = outputAt;
    while (!this.#ended) {
      this.#makeRoom();
      // The carry goes first, with enough behind it to finish a symbol or header.
      const carried = this.#carry.length;
      let piece = input;
      let pieceStart = at;
      let pieceEnd = inputEnd;
      if (carried > 0) {
        const more = input.subarray(at, Math.min(inputEnd, at + CARRY_STEP));
        piece = new Uint8Array(carried + more.length);
        piece.set(this.#carry);
        piece.set(more, carried);
        pieceStart = 0;
        pieceEnd = piece.length;
      }
      inflate.bit += pieceStart * 8;
      const from = inflate.outputAt;
      const status = inflate.run(
        piece,
        pieceEnd,
        this.#history,
        Math.min(HISTORY_SIZE, from + outputEnd - to),
      );
      output.set(this.#history.subarray(from, inflate.outputAt), to);
      to += inflate.outputAt - from;
      if (status === STATUS.bad) throw malformed(inflate.problem);
      // Back to positions that count from a carry's start.
      const wholeBits = Math.floor(inflate.bit / 8);
      const usedTo = status === STATUS.needInput
        ? pieceEnd
        : Math.ceil(inflate.bit / 8);
      this.#carry = piece.slice(wholeBits, usedTo);
      inflate.bit -= wholeBits * 8;
      at += usedTo - pieceStart - carried;
      if (status === STATUS.streamEnd) this.#ended = true;
      if (status === STATUS.needInput && at === inputEnd) break;
      if (status === STATUS.needOutput && to === outputEnd) break;
      if (status === STATUS.blockEnd && stopAtBlock) break;
      if (status === STATUS.streamEnd) break;
    }
    this.availableIn = inputEnd - at;
    this.availableOut = outputEnd - to;
  }

  /** Slides the window to the start when less than a window of room is left. */
  #makeRoom(): void {
    const inflate = this.#inflate;
    if (inflate.outputAt < HISTORY_SIZE - WINDOW_SIZE) return;
    const from = inflate.outputAt - WINDOW_SIZE;
    this.#history.copyWithin(0, from, inflate.outputAt);
    inflate.outputAt = WINDOW_SIZE;
    inflate.historyStart = 0;
  }
}

function malformed(problem: string): FormatError {
  return new FormatError("deflate stream", "data", `is malformed: ${problem}`);
}

let nativeWorks: boolean | undefined;

/** Whether the runtime's internals behave as {@linkcode RawInflate} needs; tested once for each thread. */
export function hasNativeInflate(): boolean {
  nativeWorks ??= testNative();
  return nativeWorks;
}

/** The fastest decoder that works here. */
export function openRawInflate(): RawInflate {
  return hasNativeInflate() ? new NativeRawInflate() : new PlainRawInflate();
}

/**
 * Three blocks, then two foreign bytes: stored "ab", fixed with a match of 3
 * and "b", fixed empty and last. The second ends inside a byte.
 */
const TEST_STREAM = Uint8Array.of(
  ...[0x00, 0x02, 0x00, 0xfd, 0xff, 0x61, 0x62],
  ...[0x02, 0xc2, 0x24, 0xc0, 0x00],
  ...[0x11, 0x22],
);

function testNative(): boolean {
  let decoder: NativeRawInflate | undefined;
  try {
    decoder = new NativeRawInflate();
    const plain = new PlainRawInflate();
    const got = new Uint8Array(64);
    const want = new Uint8Array(64);
    for (let round = 0; round < 2; round++) {
      let at = 0;
      let to = 0;
      for (let call = 0; call < 5; call++) {
        const left = TEST_STREAM.length - at;
        decoder.write(TEST_STREAM, at, left, got, to, 64 - to, true);
        plain.write(TEST_STREAM, at, left, want, to, 64 - to, true);
        if (
          decoder.availableIn !== plain.availableIn ||
          decoder.availableOut !== plain.availableOut ||
          got.some((byte, i) => byte !== want[i])
        ) return false;
        at = TEST_STREAM.length - decoder.availableIn;
        to = 64 - decoder.availableOut;
      }
      if (at !== TEST_STREAM.length - 2) return false;
      decoder.reset();
      plain.reset();
      // An error must arrive before the call returns.
      try {
        decoder.write(Uint8Array.of(0xff, 0xff), 0, 2, got, 0, 64, true);
        return false;
      } catch (error) {
        if (!(error instanceof FormatError)) return false;
      }
      decoder.reset();
    }
    return true;
  } catch {
    return false;
  } finally {
    decoder?.close();
  }
}

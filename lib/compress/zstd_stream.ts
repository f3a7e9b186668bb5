/**
 * Decodes a sequence of zstd frames from one ring into another place.
 *
 * The runtime's decoder stops without a word behind the first frame, and at the
 * end of a cut one. So the frames are walked here, block by block: the decoder
 * is fed exactly what belongs to a frame, and a frame is over when its last
 * block and checksum went through. Skippable frames are passed over.
 *
 * It works below the runtime's public API, where output goes straight into the
 * caller's memory; {@linkcode ZstdStream} tests those internals once for each
 * thread.
 */

import * as zlib from "node:zlib";
import { FormatError, ObdError, UnsupportedError } from "../io/mod.ts";
import { nativeCodec, type NativeHandle } from "./native_handle.ts";
import type { ByteRing } from "./byte_ring.ts";
import {
  readZstdBlock,
  readZstdHeader,
  ZSTD_BLOCK_HEADER_SIZE,
  ZSTD_HEADER_SIZE_MAX,
} from "./zstd_header.ts";

/** Largest history a frame may need, in bytes: what `zstd -d` takes without `--long`. */
export const ZSTD_WINDOW_MAX = 128 * 1024 * 1024;
const WINDOW_LOG_MAX = 27;
/** A decoder whose window was larger is not kept for the next stream. */
const KEEP_WINDOW = 8 * 1024 * 1024;
/** Input given to the decoder at once. */
const INPUT_STEP = 256 * 1024;

/** A frame that has begun. */
export interface ZstdFrameStart {
  /** Offset of its first byte. */
  start: number;
  /** Decoded bytes, where the header has them. */
  contentSize: number | undefined;
}

/**
 * Why {@linkcode ZstdStream.step} returned: a frame begins, bytes were
 * decoded, it needs more input or room, or the input is over.
 */
export type ZstdStep = "frame" | "data" | "input" | "output" | "end";

/** See the module comment. Drive it with {@linkcode step}. */
export class ZstdStream {
  /** Frames met so far, skippable ones not counted. */
  frames = 0;
  /** Bytes of input that were used up; those below are not looked at again. */
  inputOffset: number;
  /** Bytes that the last step decoded. */
  produced = 0;
  /** Bytes of skippable frames since the last other frame. */
  skipped = 0;
  /** The last frame. */
  frame: ZstdFrameStart = { start: 0, contentSize: undefined };

  readonly #input: ByteRing;
  #native: NativeZstd | undefined;
  #phase: "between" | "skip" | "blocks" = "between";
  /** End of the skippable frame, or of the last block whose header was read. */
  #parsed = 0;
  #sawLast = false;
  #hasChecksum = false;
  #frameOutput = 0;
  /** Whether the decoder may hold output that had no room. */
  #holds = false;
  #windowSize = 0;

  /**
   * @param input Holds the stream from `inputOffset` on.
   * @param inputOffset Where the first frame starts.
   */
  constructor(input: ByteRing, inputOffset = 0) {
    this.#input = input;
    this.inputOffset = inputOffset;
  }

  /** Frees native memory, or keeps the decoder for the thread's next stream. */
  close(): void {
    const native = this.#native;
    this.#native = undefined;
    if (!native) return;
    if (this.#windowSize > KEEP_WINDOW || kept) native.close();
    else kept = native;
  }

  /**
   * Goes on to the next event.
   *
   * @param inputEnd How far the input is there.
   * @param isEnd Whether it ends there.
   * @param output Gets decoded bytes at `[from, to)`.
   * @throws {FormatError} If the input is malformed or cut.
   * @throws {UnsupportedError} If a frame needs a dictionary, or a window over {@linkcode ZSTD_WINDOW_MAX}.
   */
  step(
    inputEnd: number,
    isEnd: boolean,
    output: Uint8Array,
    from: number,
    to: number,
  ): ZstdStep {
    while (true) {
      if (this.#phase === "blocks") {
        const step = this.#decode(inputEnd, isEnd, output, from, to);
        if (step !== undefined) return step;
      } else if (this.#phase === "skip") {
        const end = Math.min(this.#parsed, inputEnd);
        this.skipped += end - this.inputOffset;
        this.inputOffset = end;
        if (end < this.#parsed) return this.#starve(isEnd);
        this.#phase = "between";
      } else {
        if (this.inputOffset === inputEnd) return isEnd ? "end" : "input";
        const step = this.#begin(inputEnd, isEnd);
        if (step !== undefined) return step;
      }
    }
  }

  #starve(isEnd: boolean): "input" {
    if (!isEnd) return "input";
    throw new FormatError("zstd stream", "length", "ends inside a frame", {
      offset: this.inputOffset,
    });
  }

  #begin(inputEnd: number, isEnd: boolean): ZstdStep | undefined {
    const start = this.inputOffset;
    const header = readZstdHeader(
      this.#input.copy(
        start,
        Math.min(inputEnd, start + ZSTD_HEADER_SIZE_MAX),
      ),
    );
    if (header === undefined) return this.#starve(isEnd);
    if (header.skippableSize !== undefined) {
      this.#parsed = start + header.headerSize + header.skippableSize;
      this.#phase = "skip";
      return undefined;
    }
    if (header.windowSize > ZSTD_WINDOW_MAX) {
      throw new UnsupportedError(
        "zstd window",
        `zstd frame at offset ${start} needs a window of ${header.windowSize} bytes, at most ${ZSTD_WINDOW_MAX} (zstd --long=27) are supported`,
      );
    }
    this.frames++;
    this.frame = { start, contentSize: header.contentSize };
    this.#windowSize = Math.max(this.#windowSize, header.windowSize);
    this.#hasChecksum = header.hasChecksum;
    this.#parsed = start + header.headerSize;
    this.#sawLast = false;
    this.#frameOutput = 0;
    this.#holds = false;
    this.#phase = "blocks";
    return "frame";
  }

  #decode(
    inputEnd: number,
    isEnd: boolean,
    output: Uint8Array,
    from: number,
    to: number,
  ): ZstdStep | undefined {
    this.#parseBlocks(inputEnd);
    const at = this.#input.at(this.inputOffset);
    const give = Math.min(
      Math.min(this.#parsed, inputEnd) - this.inputOffset,
      this.#input.capacity - at,
      INPUT_STEP,
    );
    if (give === 0 && !this.#holds) {
      if (!this.#sawLast || this.inputOffset < this.#parsed) {
        return this.#starve(isEnd);
      }
      this.#endFrame();
      return undefined;
    }
    if (from >= to) return "output";
    this.#native ??= takeNative();
    const { consumed, produced } = this.#native.write(
      this.#input.bytes,
      at,
      give,
      output,
      from,
      to - from,
    );
    if (consumed === 0 && produced === 0 && give > 0) {
      throw malformed("makes no progress");
    }
    this.inputOffset += consumed;
    this.#frameOutput += produced;
    this.#holds = produced === to - from;
    if (produced === 0) return undefined;
    this.produced = produced;
    this.skipped = 0;
    return "data";
  }

  /** Reads the headers of the blocks that the input holds. */
  #parseBlocks(inputEnd: number): void {
    const { bytes } = this.#input;
    while (
      !this.#sawLast && this.#parsed + ZSTD_BLOCK_HEADER_SIZE <= inputEnd &&
      this.#parsed <= this.inputOffset + INPUT_STEP
    ) {
      const byte = (i: number) => bytes[this.#input.at(this.#parsed + i)]!;
      const { storedSize, isLast } = readZstdBlock(
        byte(0) | byte(1) << 8 | byte(2) << 16,
      );
      this.#parsed += ZSTD_BLOCK_HEADER_SIZE + storedSize;
      if (!isLast) continue;
      this.#sawLast = true;
      if (this.#hasChecksum) this.#parsed += 4;
    }
  }

  #endFrame(): void {
    const { contentSize } = this.frame;
    if (contentSize !== undefined && contentSize !== this.#frameOutput) {
      throw malformed(
        `decodes to ${this.#frameOutput} bytes, its header says ${contentSize}`,
      );
    }
    this.#phase = "between";
  }
}

/** libzstd behind a node:zlib stream that is never used as a stream. */
class NativeZstd {
  readonly #handle: NativeHandle;
  readonly #state: Uint32Array;
  #problem: string | undefined;

  constructor() {
    const { handle, state } = nativeCodec(zlib.createZstdDecompress({
      params: { [zlib.constants.ZSTD_d_windowLogMax]: WINDOW_LOG_MAX },
    }));
    this.#handle = handle;
    this.#state = state;
    this.#handle.onerror = (message) => {
      this.#problem = message;
    };
  }

  write(
    input: Uint8Array,
    inputAt: number,
    inputSize: number,
    output: Uint8Array,
    outputAt: number,
    outputSize: number,
  ): { consumed: number; produced: number } {
    try {
      this.#handle.writeSync(
        zlib.constants.ZSTD_e_continue,
        input,
        inputAt,
        inputSize,
        output,
        outputAt,
        outputSize,
      );
    } catch (error) {
      this.#problem = error instanceof Error ? error.message : String(error);
    }
    if (this.#problem !== undefined) {
      throw malformed(`is malformed: ${this.#problem}`);
    }
    return {
      consumed: inputSize - this.#state[1]!,
      produced: outputSize - this.#state[0]!,
    };
  }

  reset(): void {
    this.#problem = undefined;
    this.#handle.reset();
  }

  close(): void {
    this.#handle.close();
  }
}

/** A decoder between two streams of this thread: making one costs more than a small frame. */
let kept: NativeZstd | undefined;
let works: boolean | undefined;

function takeNative(): NativeZstd {
  works ??= testNative();
  if (!works) {
    throw new ObdError("state", "This runtime's zstd decoder is not as needed");
  }
  const native = kept ?? new NativeZstd();
  kept = undefined;
  // It may have been left in the middle of a frame.
  native.reset();
  return native;
}

/** Two frames in one call after the other, then an error that must arrive before the call returns. */
function testNative(): boolean {
  try {
    const packed = zlib.zstdCompressSync(Uint8Array.of(1, 2, 3, 4, 5));
    const native = new NativeZstd();
    const got = new Uint8Array(8);
    for (let round = 0; round < 2; round++) {
      got.fill(0);
      const { consumed, produced } = native.write(
        packed,
        0,
        packed.length,
        got,
        0,
        got.length,
      );
      if (consumed !== packed.length || produced !== 5) return false;
      if (got[0] !== 1 || got[4] !== 5 || got[5] !== 0) return false;
    }
    try {
      native.write(new Uint8Array(8).fill(1), 0, 8, got, 0, 8);
      return false;
    } catch (error) {
      return error instanceof FormatError;
    }
  } catch {
    return false;
  }
}

function malformed(problem: string): FormatError {
  return new FormatError("zstd frame", "data", problem);
}

/**
 * One pass over a blob of zstd frames: its bytes, its spans, and where decoding
 * may start.
 *
 * Decoding can start at frames only. Small frames are grouped up to the span
 * size; large ones are cut into spans of that size, which have digests of their
 * own but can only be reached from the frame's start. The sink is told of both
 * with `split`: a span in the middle of a frame repeats the compressed offset
 * of the one before.
 *
 * Deterministic: where spans begin depends on the frames alone.
 */

import { FormatError } from "../io/mod.ts";
import type { ByteRing } from "./byte_ring.ts";
import { startOfStream } from "./checkpoint_search.ts";
import type { SpanSink } from "./gzip_index.ts";
import { SPAN_SIZE_SHORT } from "./span_plan.ts";
import { ZstdStream } from "./zstd_stream.ts";

/** Compressed bytes that a span may have beyond its content before the next frame starts another. */
const OVERHEAD_MAX = 256 * 1024;
/** So much of skippable frames is not read along with a span. */
const SKIPPED_MAX = 64 * 1024;

/** Options of {@linkcode ZstdIndexer}. */
export interface ZstdIndexerOptions {
  /** Holds the blob. */
  input: ByteRing;
  /** Takes the output. */
  output: ByteRing;
  sink: SpanSink;
  /** Uncompressed bytes of a span; default 1 MiB. */
  spanSize?: number | undefined;
  /** Largest decompressed size in bytes. */
  outputSizeMax: number;
}

/** See the module comment. Drive it with {@linkcode run}, as a `GzipIndexer`. */
export class ZstdIndexer {
  /** Bytes of output in the output ring so far. */
  uncompressedOffset = 0;

  readonly #stream: ZstdStream;
  readonly #output: ByteRing;
  readonly #sink: SpanSink;
  readonly #spanSize: number;
  readonly #outputSizeMax: number;
  /** Where the frame starts with which the next output begins a span. */
  #pending: number | undefined;
  #spanStart = 0;
  /** Frame from which the span is decoded. */
  #spanFrame = 0;

  constructor(options: ZstdIndexerOptions) {
    this.#stream = new ZstdStream(options.input);
    this.#output = options.output;
    this.#sink = options.sink;
    this.#spanSize = options.spanSize ?? SPAN_SIZE_SHORT;
    this.#outputSizeMax = options.outputSizeMax;
  }

  /** Frames met so far, skippable ones not counted. */
  get members(): number {
    return this.#stream.frames;
  }

  /** Blob bytes below this are no longer needed in the input ring. */
  get inputNeeded(): number {
    return this.#stream.inputOffset;
  }

  /** Frees native memory. */
  close(): void {
    this.#stream.close();
  }

  /**
   * Decodes as far as it can.
   *
   * @param inputEnd Bytes of the blob that are in the input ring, from {@linkcode inputNeeded} on.
   * @param isEnd Whether the blob ends there.
   * @param outputLimit How far the output ring may be written.
   * @throws {FormatError} If the blob is malformed, cut, or has other bytes than frames.
   * @throws {UnsupportedError} As `ZstdStream.step`.
   */
  run(
    inputEnd: number,
    isEnd: boolean,
    outputLimit: number,
  ): "input" | "output" | "nothing" {
    while (true) {
      const at = this.uncompressedOffset;
      const cuts = at - this.#spanStart === this.#spanSize;
      const startsSpan = this.#pending !== undefined || cuts;
      const spanEnd = (startsSpan ? at : this.#spanStart) + this.#spanSize;
      const from = this.#output.at(at);
      const room = Math.min(
        Math.min(spanEnd, outputLimit) - at,
        this.#output.capacity - from,
      );
      const step = this.#stream.step(
        inputEnd,
        isEnd,
        this.#output.bytes,
        from,
        from + room,
      );
      if (step === "end") return "nothing";
      if (step === "input" || step === "output") return step;
      if (step === "frame") {
        this.#meetFrame();
        continue;
      }
      if (startsSpan) this.#startSpan(at);
      this.uncompressedOffset += this.#stream.produced;
      if (this.uncompressedOffset > this.#outputSizeMax) {
        throw new FormatError(
          "zstd blob",
          "content",
          `decompresses to more than ${this.#outputSizeMax} bytes`,
        );
      }
      this.#sink.advance(this.uncompressedOffset);
    }
  }

  /** Decides whether the frame goes on with the span or starts one. */
  #meetFrame(): void {
    const { start, contentSize } = this.#stream.frame;
    const size = this.uncompressedOffset - this.#spanStart;
    // Without a size it may be as long as those before it, or a giant.
    const fits = contentSize === undefined
      ? size < this.#spanSize / 2
      : size + contentSize <= this.#spanSize;
    const isCompact = start - this.#spanFrame <= size + OVERHEAD_MAX &&
      this.#stream.skipped <= SKIPPED_MAX;
    const goesOn = this.uncompressedOffset > 0 &&
      this.#pending === undefined && fits && isCompact;
    if (!goesOn) this.#pending = start;
  }

  #startSpan(at: number): void {
    this.#spanFrame = this.#pending ?? this.#spanFrame;
    this.#pending = undefined;
    this.#spanStart = at;
    this.#sink.split(startOfStream(this.#spanFrame, at));
  }
}

/** The decode stage: blob bytes in, tar bytes and span commands out. */

import {
  type ByteRing,
  GzipIndexer,
  SpanPlan,
  type SpanSink,
  startOfStream,
  ZstdIndexer,
} from "../../compress/mod.ts";
import { FormatError } from "../../io/mod.ts";
import {
  type LayerCompression,
  PLAIN_SPAN_SIZE,
  TAR_SIZE_MAX,
} from "./types.ts";

/** A resumable decoder between two rings; see `GzipIndexer` for the rules. */
export interface LayerDecoder {
  readonly members: number;
  readonly inputNeeded: number;
  readonly uncompressedOffset: number;
  run(
    inputEnd: number,
    isEnd: boolean,
    outputLimit: number,
  ): "input" | "output" | "nothing";
  close(): void;
}

/** What {@linkcode openDecoder} needs. */
export interface DecoderSettings {
  compression: LayerCompression;
  /** Bytes of the blob. */
  blobSize: number;
  spanSize: number | undefined;
  sparseWindows: boolean | undefined;
}

/** The decoder for a format. */
export function openDecoder(
  settings: DecoderSettings,
  input: ByteRing,
  output: ByteRing,
  sink: SpanSink,
): LayerDecoder {
  if (settings.compression === "none") {
    return new PlainDecoder(input, output, sink);
  }
  const { blobSize, spanSize, sparseWindows } = settings;
  const options = { input, output, sink, outputSizeMax: TAR_SIZE_MAX };
  if (settings.compression === "zstd") {
    return new ZstdIndexer({ ...options, spanSize });
  }
  const plan = new SpanPlan({ blobSize, spanSize });
  return new GzipIndexer({ ...options, plan, sparseWindows });
}

/** A plain tar: bytes as they are, cut into spans of {@linkcode PLAIN_SPAN_SIZE}. */
class PlainDecoder implements LayerDecoder {
  readonly members = 0;
  inputNeeded = 0;
  readonly #input: ByteRing;
  readonly #output: ByteRing;
  readonly #sink: SpanSink;

  constructor(input: ByteRing, output: ByteRing, sink: SpanSink) {
    this.#input = input;
    this.#output = output;
    this.#sink = sink;
  }

  get uncompressedOffset(): number {
    return this.inputNeeded;
  }

  run(
    inputEnd: number,
    isEnd: boolean,
    outputLimit: number,
  ): "input" | "output" | "nothing" {
    while (true) {
      const from = this.inputNeeded;
      if (from === inputEnd) return isEnd ? "nothing" : "input";
      if (from >= TAR_SIZE_MAX) {
        throw new FormatError(
          "layer blob",
          "size",
          `is more than ${TAR_SIZE_MAX} bytes`,
        );
      }
      const spanEnd = from - (from % PLAIN_SPAN_SIZE) + PLAIN_SPAN_SIZE;
      const to = Math.min(spanEnd, inputEnd, outputLimit);
      if (to <= from) return "output";
      if (from % PLAIN_SPAN_SIZE === 0) {
        this.#sink.split(startOfStream(from, from));
      }
      let at = from;
      for (const view of this.#input.views(from, to)) {
        this.#output.put(at, view);
        at += view.length;
      }
      this.inputNeeded = to;
      this.#sink.advance(to);
    }
  }

  close(): void {}
}

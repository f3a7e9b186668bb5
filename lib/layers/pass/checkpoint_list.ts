/** The tables that the checkpoints of a pass become. */

import { type PackedCheckpoint, SPAN_SIZE_MAX } from "../../compress/mod.ts";
import { UnsupportedError } from "../../io/mod.ts";
import type {
  LayerCheckpoints,
  LayerCompression,
  LayerSpans,
} from "./types.ts";

/**
 * Checkpoints in columns, as they go from thread to thread: an object and a
 * buffer for each would be the most memory that the pass over a large layer
 * takes.
 */
export interface CheckpointColumns {
  compressedOffset: Float64Array;
  bits: Uint8Array;
  uncompressedOffset: Float64Array;
  /** Where each window ends in `windows`. */
  windowEnd: Float64Array;
  /** Back to back, each a zlib stream or empty. */
  windows: Uint8Array;
}

/** Collects checkpoints in their order. */
export class CheckpointList {
  readonly #compressedOffset: number[] = [];
  readonly #bits: number[] = [];
  readonly #uncompressedOffset: number[] = [];
  readonly #windowEnd: number[] = [];
  #windows = new Uint8Array(64 * 1024);
  #used = 0;

  /** Copies what it keeps. */
  push(checkpoint: PackedCheckpoint): void {
    const { window } = checkpoint;
    const end = this.#used + window.length;
    if (end > this.#windows.length) {
      const grown = new Uint8Array(Math.max(end, this.#windows.length * 2));
      grown.set(this.#windows);
      this.#windows = grown;
    }
    this.#windows.set(window, this.#used);
    this.#used = end;
    this.#compressedOffset.push(checkpoint.compressedOffset);
    this.#bits.push(checkpoint.bits);
    this.#uncompressedOffset.push(checkpoint.uncompressedOffset);
    this.#windowEnd.push(end);
  }

  /** All of them; buffers of their own. */
  columns(): CheckpointColumns {
    return {
      compressedOffset: Float64Array.from(this.#compressedOffset),
      bits: Uint8Array.from(this.#bits),
      uncompressedOffset: Float64Array.from(this.#uncompressedOffset),
      windowEnd: Float64Array.from(this.#windowEnd),
      windows: this.#windows.slice(0, this.#used),
    };
  }
}

/**
 * The tables of a finished pass.
 *
 * @throws {UnsupportedError} If a span is longer than can be decoded at once.
 */
export function makeTables(
  compression: LayerCompression,
  checkpoints: CheckpointColumns,
  digests: Uint8Array,
  tarSize: number,
): { spans: LayerSpans; checkpoints: LayerCheckpoints } {
  const { compressedOffset, windowEnd, windows } = checkpoints;
  const starts = checkpoints.uncompressedOffset;
  const size = starts.map((start, i) => (starts[i + 1] ?? tarSize) - start);
  for (let i = 0; i < size.length; i++) {
    if (size[i]! > SPAN_SIZE_MAX) {
      throw new UnsupportedError(
        `${compression} span`,
        `${compression} layer has no place to resume in ${size[i]} bytes from ${
          starts[i]
        }: it cannot be read lazily`,
      );
    }
  }
  const kept: number[] = [];
  for (let i = 0; i < starts.length && compression !== "none"; i++) {
    // Inside of a zstd frame or a long deflate block, spans repeat where it starts.
    if (i > 0 && compressedOffset[i]! <= compressedOffset[i - 1]!) continue;
    kept.push(i);
  }
  return {
    spans: {
      count: starts.length,
      uncompressedOffset: starts,
      size,
      sha256: digests,
    },
    checkpoints: {
      count: kept.length,
      compressedOffset: Float64Array.from(kept, (i) => compressedOffset[i]!),
      bits: Uint8Array.from(kept, (i) => checkpoints.bits[i]!),
      uncompressedOffset: Float64Array.from(kept, (i) => starts[i]!),
      window: kept.map((i) =>
        windows.subarray(windowEnd[i - 1] ?? 0, windowEnd[i])
      ),
    },
  };
}

/** Checkpoints as they come, their windows packed, and the tables they become. */

import * as zlib from "node:zlib";
import { type Checkpoint, SPAN_SIZE_MAX } from "../../compress/mod.ts";
import { concatBytes, UnsupportedError } from "../../io/mod.ts";
import type {
  LayerCheckpoints,
  LayerCompression,
  LayerSpans,
} from "./types.ts";

/** One checkpoint with its window as a zlib stream. */
export type PackedCheckpoint = Checkpoint;

/** Packs windows the way `gzip.meta` keeps them: zlib, level 6. */
export function packCheckpoint(checkpoint: Checkpoint): PackedCheckpoint {
  if (checkpoint.window.length === 0) return checkpoint;
  const window = zlib.deflateSync(checkpoint.window, { level: 6 });
  // Out of the runtime's shared buffer pool, so that it can be kept and transferred.
  return { ...checkpoint, window: concatBytes([window]) };
}

/**
 * The tables of a finished pass.
 *
 * @throws {UnsupportedError} If a span is longer than can be decoded at once.
 */
export function makeTables(
  compression: LayerCompression,
  checkpoints: readonly PackedCheckpoint[],
  digests: Uint8Array,
  tarSize: number,
): { spans: LayerSpans; checkpoints: LayerCheckpoints } {
  const starts = Float64Array.from(checkpoints, (c) => c.uncompressedOffset);
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
  const kept = compression === "none" ? [] : checkpoints.filter((c, i) =>
    // Inside of a zstd frame, spans repeat where the frame starts.
    i === 0 || compression !== "zstd" ||
    c.compressedOffset > checkpoints[i - 1]!.compressedOffset
  );
  return {
    spans: {
      count: starts.length,
      uncompressedOffset: starts,
      size,
      sha256: digests,
    },
    checkpoints: {
      count: kept.length,
      compressedOffset: Float64Array.from(kept, (c) => c.compressedOffset),
      bits: Uint8Array.from(kept, (c) => c.bits),
      uncompressedOffset: Float64Array.from(kept, (c) => c.uncompressedOffset),
      window: kept.map((c) => c.window),
    },
  };
}

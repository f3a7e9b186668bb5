/** The tables that the checkpoints of a pass become. */

import { type PackedCheckpoint, SPAN_SIZE_MAX } from "../../compress/mod.ts";
import { UnsupportedError } from "../../io/mod.ts";
import type {
  LayerCheckpoints,
  LayerCompression,
  LayerSpans,
} from "./types.ts";

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
    // Inside of a zstd frame or a long deflate block, spans repeat where it starts.
    i === 0 ||
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

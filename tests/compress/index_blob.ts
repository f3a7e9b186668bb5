/** Indexes a whole blob in memory, and reads it back from each checkpoint. */

import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import {
  ByteRing,
  type Checkpoint,
  GzipIndexer,
  inflateAt,
  INPUT_RING_SIZE,
  inputStart,
  OUTPUT_RING_SIZE,
  SpanPlan,
  type SpanSink,
} from "../../lib/compress/mod.ts";
import type { RawInflate } from "../../lib/compress/raw_inflate.ts";
import { concatBytes, equalBytes } from "../../lib/io/mod.ts";

export interface BlobIndex {
  content: Uint8Array;
  /** With windows as they are, not packed. */
  checkpoints: Checkpoint[];
  members: number;
}

/**
 * Feeds `blob` in pieces of `pieceSize`; a slow reader leaves the rings as full
 * as they get.
 *
 * @param options With `spanSize` 1 every boundary becomes a checkpoint, with 0
 * the spans are chosen as for a real layer; default 1 MiB.
 */
export function indexBlob(
  blob: Uint8Array,
  options: {
    pieceSize?: number;
    spanSize?: number;
    sparseWindows?: boolean;
    outputSizeMax?: number;
    inflate?: RawInflate;
  } = {},
): BlobIndex {
  const input = new ByteRing(new Uint8Array(INPUT_RING_SIZE));
  const output = new ByteRing(new Uint8Array(OUTPUT_RING_SIZE));
  const parts: Uint8Array[] = [];
  const checkpoints: Checkpoint[] = [];
  let advanced = 0;
  const sink: SpanSink = {
    advance(to) {
      assert.ok(to > advanced);
      parts.push(output.copy(advanced, to));
      advanced = to;
    },
    split(checkpoint) {
      assert.equal(checkpoint.uncompressedOffset, advanced);
      const packed = checkpoint.window;
      const window = packed.length > 0
        ? new Uint8Array(zlib.inflateSync(packed))
        : packed;
      checkpoints.push({ ...checkpoint, window });
    },
  };
  const spanSize = options.spanSize ?? 1024 * 1024;
  const indexer = new GzipIndexer({
    input,
    output,
    sink,
    plan: new SpanPlan({
      blobSize: blob.length,
      spanSize: spanSize === 0 ? undefined : spanSize,
    }),
    sparseWindows: options.sparseWindows,
    outputSizeMax: options.outputSizeMax ?? 2 ** 40,
    inflate: options.inflate,
  });
  try {
    const pieceSize = options.pieceSize ?? 1 << 20;
    let head = 0;
    while (true) {
      const room = input.capacity - (head - indexer.inputNeeded);
      const size = Math.min(pieceSize, room, blob.length - head);
      input.put(head, blob.subarray(head, head + size));
      head += size;
      const isEnd = head === blob.length;
      const need = indexer.run(head, isEnd, advanced + output.capacity);
      if (need === "nothing") break;
      assert.ok(need === "output" || !isEnd, "no more input at the end");
    }
    return {
      content: concatBytes(parts),
      checkpoints,
      members: indexer.members,
    };
  } finally {
    indexer.close();
  }
}

/** Reads every span from its checkpoint and compares. */
export function checkSpans(blob: Uint8Array, index: BlobIndex): void {
  const { checkpoints, content } = index;
  assert.equal(checkpoints[0]?.uncompressedOffset, 0);
  checkpoints.forEach((checkpoint, i) => {
    const next = checkpoints[i + 1];
    const end = next?.uncompressedOffset ?? content.length;
    const out = new Uint8Array(end - checkpoint.uncompressedOffset);
    const input = blob.subarray(
      inputStart(checkpoint),
      next?.compressedOffset ?? blob.length,
    );
    inflateAt({ ...checkpoint, input }, out);
    assert.ok(
      equalBytes(out, content.subarray(checkpoint.uncompressedOffset, end)),
      `span ${i} at ${checkpoint.uncompressedOffset}`,
    );
  });
}

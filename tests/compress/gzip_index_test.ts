import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { inflateAt, WINDOW_SIZE } from "../../lib/compress/mod.ts";
import { equalBytes, viewOf } from "../../lib/io/mod.ts";
import { golden } from "../testutil/requires.ts";
import { checkSpans, indexBlob } from "./index_blob.ts";

/** The entries of a gzip.meta (formats.md §4.1). */
function goldenEntries(meta: Uint8Array) {
  const view = viewOf(meta);
  const start = Number(view.getBigUint64(313, true));
  const length = Number(view.getBigUint64(321, true));
  const area = meta.subarray(start, start + length);
  const entries = new Uint8Array(zlib.inflateSync(area));
  const table = viewOf(entries);
  return Array.from({ length: entries.length / 29 }, (_, i) => {
    const windowAt = Number(table.getBigInt64(29 * i + 16, true));
    const windowSize = table.getUint32(29 * i + 25, true);
    return {
      uncompressedOffset: Number(table.getBigInt64(29 * i, true)),
      compressedOffset: Number(table.getBigInt64(29 * i + 8, true)),
      bits: entries[29 * i + 24]!,
      window: meta.subarray(windowAt, windowAt + windowSize),
    };
  });
}

for (
  const [blobName, metaName] of [
    ["unit/txt.gz", "unit/t.idx"],
    ["unit/L.tar.gz", "unit/g.idx"],
    ["layers/layer1.tar.gz", "turbo-gz/layer1.gzip.meta"],
    ["layers/layer2.tar.gz", "turbo-gz/layer2.gzip.meta"],
  ] as const
) {
  const blobPath = golden(blobName);
  const metaPath = golden(metaName);
  Deno.test({
    name: `GzipIndexer agrees with overlaybd's index of ${blobName}`,
    ignore: !blobPath || !metaPath,
    async fn() {
      const blob = await Deno.readFile(blobPath!);
      const want = goldenEntries(await Deno.readFile(metaPath!));
      const index = indexBlob(blob, { sparseWindows: false });
      assert.ok(
        equalBytes(index.content, new Uint8Array(zlib.gunzipSync(blob))),
      );
      assert.deepEqual(
        index.checkpoints.map((c) => [
          c.uncompressedOffset,
          c.compressedOffset,
          c.bits,
        ]),
        want.map((c) => [c.uncompressedOffset, c.compressedOffset, c.bits]),
      );
      for (const [i, { window }] of want.entries()) {
        const full = new Uint8Array(zlib.inflateSync(window));
        const ours = index.checkpoints[i]!.window;
        assert.ok(
          equalBytes(ours.length ? ours : new Uint8Array(WINDOW_SIZE), full),
        );
      }
      checkSpans(blob, index);
      const sparse = indexBlob(blob, { pieceSize: 10_007 });
      checkSpans(blob, sparse);
      let kept = 0;
      for (const { window } of sparse.checkpoints) {
        for (const byte of window) if (byte !== 0) kept++;
      }
      assert.ok(kept < sparse.checkpoints.length * WINDOW_SIZE * 0.7);
      // A single wrong byte in a window that is in use must show.
      const last = sparse.checkpoints.at(-1)!;
      if (last.window.length > 0) {
        const window = last.window.map((b) => b ^ 1);
        const out = new Uint8Array(WINDOW_SIZE);
        inflateAt({
          bits: last.bits,
          window,
          input: blob.subarray(last.compressedOffset - (last.bits ? 1 : 0)),
        }, out);
        const at = last.uncompressedOffset;
        assert.ok(
          !equalBytes(out, index.content.subarray(at, at + WINDOW_SIZE)),
        );
      }
    },
  });
}

/** Lazy reading with indexes that the real overlaybd tools wrote, through the real codec pool. */

import assert from "node:assert/strict";
import { gunzipSync, inflateSync } from "node:zlib";
import { CodecPool } from "../../lib/compress/mod.ts";
import { concatBytes, getU64, viewOf } from "../../lib/io/mod.ts";
import { CachedSource } from "../../lib/layers/cache/mod.ts";
import { type CheckpointTable, GunzipSource } from "../../lib/layers/gunzip.ts";
import { SpanCache } from "../../lib/layers/span_source.ts";
import { SpanTable } from "../../lib/layers/span_table.ts";
import { tempStore } from "../testutil/cache_store.ts";
import { sha256 } from "../testutil/gzip_layer.ts";
import { golden } from "../testutil/requires.ts";
import {
  seededRandom,
  testSourceContract,
} from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";

const BLOB = golden("layers/layer1.tar.gz");
const META = golden("turbo-gz/layer1.gzip.meta");

/** A gzip.meta, read without checks. */
function readIndex(
  meta: Uint8Array,
): { offsets: Float64Array; size: number; checkpoints: CheckpointTable } {
  const view = viewOf(meta);
  const start = getU64(view, 313);
  const stored = meta.subarray(start, start + getU64(view, 321));
  const entries = viewOf(meta[10] === 1 ? inflateSync(stored) : stored);
  const count = getU64(view, 25);
  return {
    offsets: Float64Array.from(
      { length: count },
      (_, i) => getU64(entries, i * 29),
    ),
    size: getU64(view, 49),
    checkpoints: {
      count,
      compressedOffset: (i) => getU64(entries, i * 29 + 8),
      bits: (i) => entries.getUint8(i * 29 + 24),
      window: (i) => {
        const at = getU64(entries, i * 29 + 16);
        return meta.subarray(at, at + entries.getUint32(i * 29 + 25, true));
      },
    },
  };
}

function loadLayer(withDigests: boolean) {
  const blob = Deno.readFileSync(BLOB!);
  const content = new Uint8Array(gunzipSync(blob));
  const { offsets, size, checkpoints } = readIndex(Deno.readFileSync(META!));
  const plain = new SpanTable(offsets, size, undefined);
  const digests = concatBytes(
    Array.from(
      offsets,
      (offset, i) => sha256(content.subarray(offset, offset + plain.sizeOf(i))),
    ),
  );
  const spans = withDigests ? new SpanTable(offsets, size, digests) : plain;
  return { blob, content, spans, checkpoints };
}

if (BLOB && META) {
  for (const withDigests of [true, false]) {
    testSourceContract(
      `GunzipSource, overlaybd's index, digests: ${withDigests}`,
      async () => {
        const { blob, content, spans, checkpoints } = loadLayer(withDigests);
        const pool = new CodecPool();
        const store = await tempStore();
        const compressed = new CachedSource(new TestSource(blob), {
          key: "layer1",
          store,
        });
        return {
          source: new GunzipSource(compressed, {
            digest: "layer1",
            spans,
            checkpoints,
            inflater: pool,
            cache: new SpanCache({ store, memoryBytes: 2 * 2 ** 20 }),
          }),
          content,
          cleanup: async () => {
            pool[Symbol.dispose]();
            await store[Symbol.asyncDispose]();
          },
        };
      },
    );
  }
}

Deno.test({
  name: "GunzipSource: no damage of a real blob gives wrong bytes",
  ignore: !BLOB || !META,
  fn: async () => {
    const { blob, content, spans, checkpoints } = loadLayer(true);
    using pool = new CodecPool();
    const random = seededRandom(11);
    let failed = 0;
    for (let round = 0; round < 12; round++) {
      const damaged = new TestSource(blob.slice());
      const at = Math.floor(random() * (blob.length - 20)) + 10;
      damaged.content[at]! ^= 1 << Math.floor(random() * 8);
      await using source = new GunzipSource(damaged, {
        digest: "layer1",
        spans,
        checkpoints,
        inflater: pool,
        cache: new SpanCache(),
        readaheadBytes: 0,
      });
      for (let i = 0; i < spans.count; i++) {
        const dst = new Uint8Array(spans.sizeOf(i));
        const offset = spans.offsetOf(i);
        try {
          await source.pread(dst, offset);
        } catch (error) {
          assert.equal((error as { code?: string }).code, "integrity");
          failed++;
          continue;
        }
        assert.deepEqual(dst, content.subarray(offset, offset + dst.length));
      }
    }
    assert.ok(failed >= 10, `${failed} spans failed`);
  },
});

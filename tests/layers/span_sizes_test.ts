/** What a read of a gzip layer costs with the spans that a build chooses. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { CodecPool } from "../../lib/compress/mod.ts";
import { concatBytes } from "../../lib/io/mod.ts";
import { GunzipSource, type SpanInflater } from "../../lib/layers/gunzip.ts";
import { type LayerScan, scanLayer } from "../../lib/layers/pass/mod.ts";
import { SpanCache } from "../../lib/layers/span_source.ts";
import { SpanTable } from "../../lib/layers/span_table.ts";
import { seededRandom } from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";
import { sampleBytes } from "../compress/samples.ts";

const MIB = 1024 * 1024;

async function scan(blob: Uint8Array): Promise<LayerScan> {
  async function* whole() {
    await Promise.resolve();
    yield blob;
  }
  const digest = createHash("sha256").update(blob).digest("hex");
  return await scanLayer(whole(), {
    blobSize: blob.length,
    expectedDigest: `sha256:${digest}`,
    threads: 1,
  });
}

/** The layer behind an empty cache; `lengths` are those of the spans that were decoded. */
function openCold(blob: Uint8Array, scanned: LayerScan, pool: CodecPool) {
  const { spans, checkpoints } = scanned;
  const lengths: number[] = [];
  const inflater: SpanInflater = {
    inflateSpan(job) {
      lengths.push(job.length);
      return pool.inflateSpan(job);
    },
  };
  const source = new GunzipSource(new TestSource(blob), {
    digest: scanned.blobDigest,
    spans: new SpanTable(
      spans.uncompressedOffset,
      scanned.tarSize,
      spans.sha256,
    ),
    checkpoints: {
      count: checkpoints.count,
      compressedOffset: (i) => checkpoints.compressedOffset[i]!,
      bits: (i) => checkpoints.bits[i]!,
      window: (i) => checkpoints.window[i]!,
    },
    inflater,
    cache: new SpanCache(),
  });
  return { source, lengths };
}

Deno.test("a random 4 KiB read of a cold gzip layer decodes one span of 2 MiB at most", async () => {
  const kinds = ["text", "random", "text", "zeros", "text", "text"] as const;
  const tar = concatBytes([
    new Uint8Array(512),
    // Longer runs of zeros make blocks of several MiB: see the next test.
    ...kinds.map((kind, i) =>
      sampleBytes(i, kind === "zeros" ? 300_000 : 2 * MIB + 17 * i, kind)
    ),
  ]);
  const blob = new Uint8Array(gzipSync(tar));
  const scanned = await scan(blob);
  const { spans } = scanned;
  assert.ok(spans.count >= 6, `${spans.count} spans`);
  await using pool = new CodecPool();
  const random = seededRandom(2);
  const page = new Uint8Array(4096);
  for (let round = 0; round < 60; round++) {
    const { source, lengths } = openCold(blob, scanned, pool);
    await using _ = source;
    const at = Math.floor(random() * (tar.length - 4096) / 512) * 512;
    const crossed = spans.uncompressedOffset.filter((start) =>
      start > at && start < at + 4096
    ).length;
    await source.pread(page, at);
    assert.deepEqual(page, tar.subarray(at, at + 4096));
    assert.equal(lengths.length, 1 + crossed, `read at ${at}`);
    for (const length of lengths) {
      assert.ok(length <= 2 * MIB, `${length}`);
    }
  }
});

Deno.test("blocks of 4 MiB make spans of one block, and they are read right", async () => {
  // zlib ends a block after 16,383 symbols: here up to 258 bytes each.
  const tar = new Uint8Array(20 * MIB);
  const random = seededRandom(8);
  for (let i = 0; i < 40; i++) {
    tar[Math.floor(random() * tar.length)] = 1 + Math.floor(random() * 255);
  }
  const blob = new Uint8Array(gzipSync(tar));
  const scanned = await scan(blob);
  const sizes = [...scanned.spans.size];
  assert.ok(sizes.length >= 3 && Math.max(...sizes) > 2 * MIB, `${sizes}`);
  await using pool = new CodecPool();
  const { source, lengths } = openCold(blob, scanned, pool);
  await using _ = source;
  const page = new Uint8Array(4096);
  for (let round = 0; round < 12; round++) {
    const at = Math.floor(random() * (tar.length - 4096) / 4096) * 4096;
    lengths.length = 0;
    await source.pread(page, at);
    assert.deepEqual(page, tar.subarray(at, at + 4096));
    assert.ok(lengths.length <= 2);
  }
});

Deno.test("neither threads nor pieces change the spans", async () => {
  const tar = sampleBytes(4, 9 * MIB, "text");
  const blob = new Uint8Array(gzipSync(tar));
  const digest = createHash("sha256").update(blob).digest("hex");
  async function* pieces(size: number) {
    for (let at = 0; at < blob.length; at += size) {
      await Promise.resolve();
      yield blob.subarray(at, at + size);
    }
  }
  const results: LayerScan[] = [];
  for (const [threads, size] of [[1, 1 << 20], [2, 77_777], [3, 1 << 18]]) {
    results.push(
      await scanLayer(pieces(size!), {
        blobSize: blob.length,
        expectedDigest: `sha256:${digest}`,
        threads,
      }),
    );
  }
  assert.ok(results[0]!.spans.count >= 5);
  assert.deepEqual(results[1], results[0]);
  assert.deepEqual(results[2], results[0]);
});

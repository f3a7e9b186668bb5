/** zstd layers of many frames: the pass over them, and random reads. */

import assert from "node:assert/strict";
import { zstdCompressSync } from "node:zlib";
import { CodecPool, zstdCompress } from "../../lib/compress/mod.ts";
import {
  concatBytes,
  FormatError,
  IntegrityError,
  UnsupportedError,
} from "../../lib/io/mod.ts";
import {
  decodeSpans,
  encodeSpans,
  isSeekable,
  type LayerScan,
  ReadStats,
  SpanCache,
  spanIndexOf,
  SpanTable,
  ZstdSource,
} from "../../lib/layers/mod.ts";
import { requires } from "../testutil/requires.ts";
import { seededRandom } from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";
import {
  chunked,
  Collector,
  compressWith,
  content,
  frames,
  scan,
  seekable,
  sha256,
  skippable,
  someTar,
} from "./helpers.ts";

const MIB = 2 ** 20;
const TAR = someTar(6);

/** Reads through the index as it would be stored. */
function openSource(
  blob: Uint8Array,
  scan: LayerScan,
  pool: CodecPool,
  stats?: ReadStats,
): { source: ZstdSource; inner: TestSource } {
  const index = decodeSpans(encodeSpans(spanIndexOf(scan, {
    mediaType: "application/vnd.oci.image.layer.v1.tar+zstd",
    spanSize: MIB,
  })));
  const spans = new SpanTable(
    index.spanOffset,
    index.tarSize,
    index.spanDigest,
  );
  const checkpoints = index.checkpoints!;
  assert.ok(isSeekable(blob.length, spans, checkpoints));
  const inner = new TestSource(blob.slice());
  const source = new ZstdSource(inner, {
    digest: scan.blobDigest,
    spans,
    checkpoints,
    decoder: pool,
    cache: new SpanCache({ memoryBytes: 3 * MIB }),
    stats,
  });
  return { source, inner };
}

/** Passes over a blob in every way, then reads the tar in random order. */
async function check(blob: Uint8Array, tar: Uint8Array): Promise<LayerScan> {
  const walker = new Collector();
  const scanned = await scan(blob, { walker });
  assert.deepEqual(walker.bytes(), tar);
  assert.equal(scanned.compression, "zstd");
  assert.equal(scanned.diffId, sha256(tar));
  assert.equal(scanned.tarSize, tar.length);
  using pool = new CodecPool({ threads: 1 });
  await using source = openSource(blob, scanned, pool).source;
  await readRandomly(source, tar);
  return scanned;
}

async function readRandomly(
  source: ZstdSource,
  tar: Uint8Array,
): Promise<void> {
  const random = seededRandom(7);
  for (let i = 0; i < 60; i++) {
    const offset = Math.floor(random() * tar.length);
    const length = Math.min(
      tar.length - offset,
      Math.floor(random() * (i % 10 === 0 ? 2 * MIB : 9000)),
    );
    const dst = new Uint8Array(length);
    await source.pread(dst, offset);
    assert.ok(
      Buffer.compare(dst, tar.subarray(offset, offset + length)) === 0,
      `${length} bytes at ${offset}`,
    );
  }
}

Deno.test("frames of 100 KB are grouped, with skippable ones between", async () => {
  const parts = frames(TAR, 100_000).flatMap((frame, i) => [
    ...(i % 3 === 0 ? [skippable(content(i), i % 16)] : []),
    frame,
    ...(i % 10 === 4
      ? [new Uint8Array(zstdCompressSync(new Uint8Array()))]
      : []),
  ]);
  const scanned = await check(concatBytes(parts), TAR);
  assert.equal(
    scanned.members,
    parts.filter((part) => part[0] === 0x28).length,
  );
  assert.equal(scanned.checkpoints.count, scanned.spans.count);
  assert.ok(scanned.spans.size.every((size) => size <= MIB));
  assert.ok(scanned.spans.count <= Math.ceil(TAR.length / 900_000));
});

Deno.test("frames of 3 MB have several spans each", async () => {
  const blob = concatBytes(frames(TAR, 3_000_000));
  const scanned = await check(blob, TAR);
  assert.deepEqual(await scan(blob, { threads: 3 }), scanned);
  assert.equal(scanned.members, Math.ceil(TAR.length / 3_000_000));
  assert.equal(scanned.checkpoints.count, scanned.members);
  assert.ok(scanned.spans.count > scanned.checkpoints.count);
  assert.ok(scanned.spans.size.every((size) => size <= MIB));
});

Deno.test("the seekable format and zstd:chunked", async () => {
  assert.ok((await check(seekable(TAR, 256 * 1024), TAR)).members > 20);
  assert.ok((await check(chunked(TAR), TAR)).members > 5);
});

Deno.test("one byte a frame, frames without a size, and nothing at all", async () => {
  const tar = content(4000);
  await check(concatBytes(frames(tar, 1)), tar);
  await check(
    new Uint8Array(zstdCompressSync(new Uint8Array())),
    new Uint8Array(),
  );
  await check(skippable(content(100)), new Uint8Array());
});

Deno.test("spans that are decoded together count as one load", async () => {
  const tar = TAR.subarray(0, 3_000_000);
  const blob = zstdCompress(tar);
  const scanned = await scan(blob);
  assert.ok(scanned.spans.count >= 3);
  using pool = new CodecPool({ threads: 1 });
  const stats = new ReadStats();
  const { source } = openSource(blob, scanned, pool, stats);
  await using _ = source;
  await Promise.all(
    [0, 1, 2].map((i) => source.pread(new Uint8Array(10), i * MIB)),
  );
  const { demand, ahead } = stats.counters();
  assert.equal(ahead.loads, 0);
  assert.equal(demand.loads, 1);
  assert.equal(demand.storedBytes, blob.length);
  assert.equal(demand.bytes, tar.length);
  assert.ok(demand.seconds.decode > 0);
});

Deno.test("a large skippable frame is not read along with a span", async () => {
  const [first, ...rest] = frames(TAR.subarray(0, 400_000), 100_000);
  const blob = concatBytes([first!, skippable(content(3 * MIB)), ...rest]);
  const tar = TAR.subarray(0, 400_000);
  const scanned = await check(blob, tar);
  assert.equal(scanned.spans.count, 2);
  using pool = new CodecPool({ threads: 1 });
  const { source, inner } = openSource(blob, scanned, pool);
  await using _ = source;
  await source.pread(new Uint8Array(10), 200_000);
  assert.ok(inner.bytesRead < MIB, `${inner.bytesRead} bytes read`);
});

for (
  const command of [
    ...[["-1"], ["-3"], ["-19"], ["-3", "--long=27"], ["-3", "-T2"]],
    ["--fast=5", "--no-check"],
  ]
) {
  Deno.test({
    name: `zstd ${command.join(" ")}, from a pipe and from a file`,
    ignore: !requires("zstd"),
    async fn() {
      const tar = someTar(3);
      const piped = await compressWith(["zstd", "-c", ...command], tar);
      await check(piped, tar);
      await check(
        await compressWith(["zstd", "-qc", ...command, "FILE"], tar),
        tar,
      );
    },
  });
}

Deno.test({
  name: "pzstd",
  ignore: !requires("pzstd"),
  async fn() {
    const tar = someTar(20);
    const blob = await compressWith(
      ["pzstd", "-1", "-p", "2", "-c", "FILE"],
      tar,
    );
    const scanned = await check(blob, tar);
    assert.ok(scanned.members > 1, `${scanned.members} frames`);
  },
});

Deno.test("bytes that were changed are never served", async () => {
  const blob = chunked(TAR);
  const scanned = await scan(blob);
  using pool = new CodecPool({ threads: 1 });
  for (let i = 1; i < 12; i++) {
    const { source, inner } = openSource(blob, scanned, pool);
    await using _ = source;
    inner.content[Math.floor(blob.length * i / 12)]! ^= 0x10;
    let failed = 0;
    for (let at = 0; at < TAR.length; at += MIB) {
      const dst = new Uint8Array(Math.min(MIB, TAR.length - at));
      try {
        await source.pread(dst, at);
      } catch (error) {
        assert.ok(error instanceof IntegrityError, String(error));
        failed++;
        continue;
      }
      assert.ok(Buffer.compare(dst, TAR.subarray(at, at + dst.length)) === 0);
    }
    assert.ok(failed >= 1 && failed <= 4, `${failed} reads failed`);
  }
});

Deno.test("malformed blobs are refused with a typed error", async () => {
  const good = concatBytes(frames(TAR.subarray(0, 300_000), 100_000));
  const random = seededRandom(3);
  const isTyped = (error: unknown) =>
    error instanceof FormatError || error instanceof UnsupportedError ||
    error instanceof IntegrityError;
  for (let i = 0; i < 300; i++) {
    const bad = good.slice();
    const at = Math.floor(random() * (i % 2 ? 40 : bad.length));
    bad[at] = Math.floor(random() * 256);
    const cut = i % 5 === 0
      ? bad.subarray(0, Math.floor(random() * bad.length))
      : bad;
    const walker = new Collector();
    try {
      await scan(cut, { walker });
    } catch (error) {
      assert.ok(isTyped(error), String(error));
    }
  }
  for (const cut of [good.length - 1, good.length - 100]) {
    await assert.rejects(scan(good.subarray(0, cut)), FormatError);
  }
  await assert.rejects(
    scan(concatBytes([good, content(10)])),
    FormatError,
  );
});

Deno.test("frames that need too much are refused by name", async () => {
  // Magic, no single segment, window exponent 21: 2 GiB.
  const frame = Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3);
  await assert.rejects(
    scan(concatBytes([frame, new Uint8Array(1000)])),
    (error) =>
      error instanceof UnsupportedError && /window of 2147483648/.test(
        error.message,
      ) && /--long=27/.test(error.message),
  );
  // With a dictionary.
  frame[4] = 0x01;
  frame[5] = 0;
  await assert.rejects(
    scan(concatBytes([frame, new Uint8Array(1000).fill(7)])),
    (error) =>
      error instanceof UnsupportedError && /dictionary/.test(error.message),
  );
});

Deno.test("a layer of one large frame is not seekable", async () => {
  const scanned = await scan(
    new Uint8Array(zstdCompressSync(new Uint8Array(40 * MIB))),
  );
  const index = spanIndexOf(scanned, { mediaType: "", spanSize: MIB });
  assert.equal(index.access, "checkpoints");
  assert.equal(index.spanOffset.length, 40);
  assert.equal(index.checkpoints!.count, 1);
  const spans = new SpanTable(
    index.spanOffset,
    index.tarSize,
    index.spanDigest,
  );
  assert.ok(!isSeekable(scanned.blobSize, spans, index.checkpoints!));
});

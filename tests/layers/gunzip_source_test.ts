import assert from "node:assert/strict";
import { CodecPool } from "../../lib/compress/mod.ts";
import {
  type ByteSource,
  CancelledError,
  DeadlineError,
  FormatError,
  IntegrityError,
  UnsupportedError,
} from "../../lib/io/mod.ts";
import { CachedSource, CacheStore } from "../../lib/layers/cache/mod.ts";
import {
  type GunzipOptions,
  GunzipSource,
  type SpanInflater,
} from "../../lib/layers/gunzip.ts";
import { VerifiedSource } from "../../lib/layers/plain_target.ts";
import { NeighbourPredictor } from "../../lib/layers/neighbours.ts";
import { StreamTracker } from "../../lib/layers/readahead.ts";
import { digestKey, SpanCache } from "../../lib/layers/span_source.ts";
import { MAX_SPAN_BYTES, SpanTable } from "../../lib/layers/span_table.ts";
import { fileWith, tempStore } from "../testutil/cache_store.ts";
import {
  type GzipLayer,
  makeGzipLayer,
  sha256,
  TestInflater,
} from "../testutil/gzip_layer.ts";
import {
  seededBytes,
  seededRandom,
  testSourceContract,
} from "../testutil/source_contract.ts";
import { RecordingLogger, TestSource } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";

const KIB = 1024;
const SPAN = 64 * KIB;

/** Bytes that compress a little, so that spans differ in compressed size. */
function content(length: number, seed = 1): Uint8Array<ArrayBuffer> {
  const bytes = seededBytes(length, seed);
  for (let i = 0; i < length; i += 3) bytes[i] = 65;
  return bytes;
}

function openLayer(
  layer: GzipLayer,
  more: Partial<GunzipOptions> = {},
): { source: GunzipSource; blob: TestSource; inflater: TestInflater } {
  const blob = new TestSource(layer.blob.slice());
  const inflater = new TestInflater();
  const source = new GunzipSource(blob, {
    digest: layer.digest,
    spans: layer.spans,
    checkpoints: layer.checkpoints,
    inflater,
    cache: new SpanCache(),
    ...more,
  });
  return { source, blob, inflater };
}

async function reads(
  source: { pread: GunzipSource["pread"] },
  want: Uint8Array,
  offset: number,
  length: number,
): Promise<void> {
  const dst = new Uint8Array(length);
  await source.pread(dst, offset);
  assert.deepEqual(dst, want.subarray(offset, offset + length));
}

const BIG = makeGzipLayer(content(1_500_001), SPAN);
const EIGHT = makeGzipLayer(content(8 * SPAN, 2), SPAN);
const EMPTY = makeGzipLayer(new Uint8Array(0), SPAN);

testSourceContract("GunzipSource", async () => {
  const store = await tempStore();
  return {
    source: openLayer(BIG, { cache: new SpanCache({ store }) }).source,
    content: BIG.content,
    cleanup: () => store[Symbol.asyncDispose](),
  };
});
testSourceContract("GunzipSource with hardly any memory", async () => {
  const store = await tempStore({ sizeBytes: 2 ** 20 });
  const cache = new SpanCache({ store, memoryBytes: 1, inFlightBytes: 1 });
  return {
    source: openLayer(BIG, { cache }).source,
    content: BIG.content,
    cleanup: () => store[Symbol.asyncDispose](),
  };
});
testSourceContract(
  "GunzipSource without a store and digests",
  () =>
    Promise.resolve({
      source: openLayer(BIG, { spans: BIG.plainSpans }).source,
      content: BIG.content,
    }),
);
testSourceContract("GunzipSource, empty", () =>
  Promise.resolve({
    source: openLayer(EMPTY).source,
    content: EMPTY.content,
  }));
testSourceContract("VerifiedSource over CachedSource", () => {
  const inner = new CachedSource(new TestSource(BIG.content), { key: "x" });
  const source = new VerifiedSource(inner, {
    digest: "sha256:x",
    spans: BIG.spans,
    cache: new SpanCache(),
  });
  return Promise.resolve({ source, content: BIG.content });
});

Deno.test("GunzipSource fetches just the compressed bytes of a span, once", async () => {
  const { source, blob, inflater } = openLayer(BIG);
  await using _ = source;
  await Promise.all([
    reads(source, BIG.content, 5 * SPAN + 100, 10),
    reads(source, BIG.content, 5 * SPAN + 5000, 10_000),
    reads(source, BIG.content, 6 * SPAN - 1, 1),
  ]);
  const start = BIG.checkpoints.compressedOffset(5);
  const end = BIG.checkpoints.compressedOffset(6);
  assert.deepEqual(blob.reads, [
    { offset: start, length: end - start, priority: "demand" },
  ]);
  assert.equal(inflater.jobs.length, 1);
  assert.ok(source.preadNow(new Uint8Array(SPAN), 5 * SPAN));
});

Deno.test("GunzipSource: equal spans of two layers are made once and stored once", async () => {
  await using store = await tempStore();
  const cache = new SpanCache({ store });
  const shared = content(4 * SPAN, 9);
  const one = openLayer(makeGzipLayer(shared, SPAN), { cache });
  const other = new Uint8Array(5 * SPAN);
  other.set(content(SPAN, 10));
  other.set(shared, SPAN);
  const two = openLayer(makeGzipLayer(other, SPAN), { cache });
  await using _one = one.source;
  await using _two = two.source;
  await reads(one.source, shared, 0, shared.length);
  await reads(two.source, other, 0, other.length);
  assert.equal(one.inflater.jobs.length, 4);
  assert.equal(two.inflater.jobs.length, 1);
  await store.settled();
  assert.equal(store.entryCount, 5);
});

Deno.test("GunzipSource: a wrong span fails every time, is logged once, never served nor kept", async () => {
  await using store = await tempStore();
  const logger = new RecordingLogger();
  const cache = new SpanCache({ store });
  const { source, blob } = openLayer(BIG, { cache, logger });
  await using _ = source;
  const start = BIG.checkpoints.compressedOffset(3);
  const good = blob.content.slice(start, start + SPAN);
  // Another span's bytes: valid deflate, wrong content.
  const from = BIG.checkpoints.compressedOffset(4);
  blob.content.copyWithin(start, from, from + 20_000);
  for (let i = 0; i < 3; i++) {
    const dst = new Uint8Array(2 * SPAN).fill(0xee);
    await assert.rejects(
      source.pread(dst, 3 * SPAN, {}),
      (error: unknown) =>
        error instanceof IntegrityError &&
        error.message.includes("Span 3") &&
        error.message.includes(BIG.digest),
    );
    assert.ok(dst.subarray(0, SPAN).every((b) => b === 0xee), "wrong bytes");
    assert.ok(!source.preadNow(new Uint8Array(10), 3 * SPAN));
  }
  assert.equal(logger.count("span.failed"), 1);
  const key = digestKey(BIG.spans.digestOf(3)!);
  await store.settled();
  assert.equal(store.get(key), undefined);
  assert.equal(cache.memory.get(key), undefined);
  // Others are served, and the span too once the source is right again.
  await reads(source, BIG.content, 4 * SPAN, 100);
  blob.content.set(good, start);
  await reads(source, BIG.content, 3 * SPAN, SPAN);
});

Deno.test("GunzipSource: wrong bytes in the cache below are fetched again", async () => {
  await using store = await tempStore();
  const blob = new TestSource(BIG.blob.slice());
  const cached = new CachedSource(blob, {
    key: BIG.digest,
    store,
    blockSize: 4 * KIB,
  });
  const start = BIG.checkpoints.compressedOffset(2);
  blob.content[start + 500]! ^= 0xff;
  await cached.pread(new Uint8Array(1), start + 500);
  blob.content[start + 500]! ^= 0xff;
  const source = new GunzipSource(cached, {
    digest: BIG.digest,
    spans: BIG.spans,
    checkpoints: BIG.checkpoints,
    inflater: new TestInflater(),
    cache: new SpanCache(),
  });
  await using _ = source;
  await reads(source, BIG.content, 2 * SPAN, SPAN);
});

Deno.test("GunzipSource: a blob's cache keeps what the span cache has no room for, and nothing else", async () => {
  await using spanStore = await tempStore({ sizeBytes: 2 ** 20 });
  await using blobStore = await tempStore();
  const blob = new TestSource(BIG.blob);
  const source = new GunzipSource(
    new CachedSource(blob, {
      key: BIG.digest,
      store: blobStore,
      blockSize: 4 * KIB,
    }),
    {
      digest: BIG.digest,
      spans: BIG.spans,
      checkpoints: BIG.checkpoints,
      inflater: new TestInflater(),
      cache: new SpanCache({ store: spanStore, memoryBytes: 1 }),
      readaheadBytes: 0,
    },
  );
  await using _ = source;
  await reads(source, BIG.content, 3 * SPAN, SPAN);
  const start = BIG.checkpoints.compressedOffset(3);
  const end = BIG.checkpoints.compressedOffset(4);
  assert.deepEqual(blob.reads, [
    { offset: start, length: end - start, priority: "demand" },
  ]);
  for (let span = 4; span < 19; span++) {
    await reads(source, BIG.content, span * SPAN, 1);
    await spanStore.settled();
  }
  assert.equal(blobStore.entryCount, 0);
  assert.equal(spanStore.stats.evictions, 0);
  // The sixteenth filled it: from now on spans are evicted.
  await reads(source, BIG.content, 0, SPAN);
  assert.ok(blobStore.entryCount > 0);
  await spanStore.settled();
  assert.equal(spanStore.stats.evictions, 1);
  const fetched = blob.reads.length;
  spanStore.drop(spanStore.get(digestKey(BIG.spans.digestOf(0)!))!);
  await reads(source, BIG.content, SPAN, 1); // out of memory with it
  const between = blob.reads.length;
  assert.ok(between > fetched);
  await reads(source, BIG.content, 0, SPAN);
  assert.equal(blob.reads.length, between, "from the blob's cache");
});

Deno.test("GunzipSource: spans survive a restart, damaged ones are made anew", async () => {
  const directory = await Deno.makeTempDir({ prefix: "obd-gunzip-" });
  try {
    for (const spans of [BIG.spans, BIG.plainSpans]) {
      const path = `${directory}/${spans === BIG.spans ? "with" : "without"}`;
      const open = () =>
        CacheStore.open({
          directory: path,
          sizeBytes: 8 * 2 ** 20,
          keepFreeBytes: 0,
        });
      {
        await using store = await open();
        const cache = new SpanCache({ store });
        const { source } = openLayer(BIG, { cache, spans });
        await using _ = source;
        await reads(source, BIG.content, 0, BIG.content.length);
      }
      const file = await Deno.open(`${path}/data`, { write: true });
      await file.seek(2 * SPAN + 7, Deno.SeekMode.Start);
      await file.write(new Uint8Array(100));
      file.close();
      await using store = await open();
      const cache = new SpanCache({ store });
      const { source, inflater } = openLayer(BIG, { cache, spans });
      await using _ = source;
      await reads(source, BIG.content, 0, BIG.content.length);
      assert.equal(inflater.jobs.length, 1);
      assert.equal(store.stats.corrupt, 1);
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("GunzipSource reads ahead of a sequential reader, several spans at once", async () => {
  const layer = makeGzipLayer(content(6_000_000), SPAN);
  const { source, blob, inflater } = openLayer(layer);
  await using _ = source;
  const ahead = () => inflater.jobs.filter((j) => j.priority === "prefetch");
  for (let at = 0; at < 1_000_000; at += 32 * KIB) {
    await reads(source, layer.content, at, 32 * KIB);
  }
  await until(() => inflater.running === 0);
  assert.ok(ahead().length >= 10, `${ahead().length} spans read ahead`);
  assert.ok(inflater.mostRunning >= 2);
  const seen = blob.reads.map((r) => r.offset);
  assert.equal(new Set(seen).size, seen.length, "a span was fetched twice");
  // The rest comes from memory, mostly without waiting.
  let now = 0;
  for (let at = 1_015_808; at < 6_000_000 - SPAN; at += 32 * KIB) {
    const dst = new Uint8Array(32 * KIB);
    if (source.preadNow(dst, at)) now++;
    else await source.pread(dst, at);
    assert.deepEqual(dst, layer.content.subarray(at, at + 32 * KIB));
    await until(() => inflater.running === 0);
  }
  assert.ok(now > 140, `${now} reads were served at once`);
});

Deno.test("GunzipSource does not read ahead of random reads", async () => {
  const layer = makeGzipLayer(content(12_000_000), SPAN);
  const { source, inflater } = openLayer(layer);
  await using _ = source;
  const random = seededRandom(4);
  for (let i = 0; i < 400; i++) {
    const offset = Math.floor(random() * (layer.content.length - 4096));
    await reads(source, layer.content, offset, 4096);
  }
  await until(() => inflater.running === 0);
  assert.ok(inflater.jobs.every((j) => j.priority === "demand"));
});

Deno.test("GunzipSource reads the neighbour ahead for readers of neighbours in any order", async () => {
  const layer = makeGzipLayer(content(12_000_000), SPAN);
  const { source, inflater } = openLayer(layer);
  await using _ = source;
  // Runs of six spans, in an order of their own, one small read of each.
  const random = seededRandom(5);
  let wanted = 0;
  for (let run = 0; run < 20; run++) {
    const first = Math.floor(random() * (layer.spans.count / 6 - 1)) * 6;
    for (let i = 0; i < 6; i++) {
      const known = inflater.jobs.length;
      await reads(source, layer.content, (first + i) * SPAN + 999, 4096);
      if (inflater.jobs.length > known) wanted++;
      await until(() => inflater.running === 0);
    }
  }
  const guessed = inflater.jobs.filter((j) => j.priority === "prefetch");
  assert.ok(guessed.length > wanted / 2, `${guessed.length} of ${wanted}`);
  // One too many at the end of each run, at most.
  assert.ok(inflater.jobs.length <= 20 * 7);
});

Deno.test("NeighbourPredictor guesses for neighbours, not for random reads or strides, and not in small layers", () => {
  const guesses = (count: number, indexes: Iterable<number>) => {
    const predictor = new NeighbourPredictor(count);
    let made = 0;
    for (const index of new Set(indexes)) {
      if (predictor.wanted(index) !== undefined) made++;
    }
    return made;
  };
  const random = seededRandom(6);
  const anywhere = (count: number) =>
    Array.from({ length: count / 2 }, () => Math.floor(random() * count));
  for (const count of [1, 7, 64, 200, 5000]) {
    assert.equal(guesses(count, anywhere(count)), 0, `random of ${count}`);
  }
  const strides = Array.from({ length: 500 }, (_, i) => 2 * i);
  assert.equal(guesses(1000, strides), 0);
  // Requests that span two neighbours each, far apart.
  assert.equal(guesses(8000, strides.flatMap((i) => [8 * i, 8 * i + 1])), 0);
  assert.equal(guesses(7, [0, 1, 2, 3, 4, 5, 6]), 0);
  const run = Array.from({ length: 500 }, (_, i) => i);
  // Not before the eighth, and nothing lies behind the last.
  assert.equal(guesses(500, run), 500 - 7 - 1);
  // Back and forth within clusters.
  const clusters = Array.from({ length: 50 }, (_, i) => 90 * i)
    .flatMap((at) => [4, 5, 3, 7, 6, 1, 2].map((i) => at + i));
  assert.ok(guesses(5000, clusters) > 250);
});

Deno.test("StreamTracker follows interleaved streams and bounds the window", () => {
  const tracker = new StreamTracker(4_000_000);
  const windows = new Set<number>();
  for (let i = 0; i < 200; i++) {
    for (const start of [0, 1e9, 2e9]) {
      // Two requests in flight arrive in the wrong order.
      const at = start + (i ^ 1) * 65536;
      const stream = tracker.note(at, 65536);
      if (stream) windows.add(stream.window);
    }
  }
  assert.deepEqual([...windows], [1048576, 2097152, 4_000_000]);
  // Strides that skip most of the data are not worth it.
  const sparse = new StreamTracker(4_000_000);
  for (let i = 0; i < 200; i++) {
    assert.equal(sparse.note(i * 400_000, 4096), undefined);
  }
  const off = new StreamTracker(0);
  for (let i = 0; i < 100; i++) {
    assert.equal(off.note(i * 65536, 65536), undefined);
  }
});

Deno.test("GunzipSource: a cancelled reader leaves the others; the last one stops the fetch", async () => {
  const { source, blob } = openLayer(BIG);
  await using _ = source;
  blob.gate = new Promise(() => {});
  const controls = [new AbortController(), new AbortController()];
  const pending = controls.map((c) =>
    source.pread(new Uint8Array(10), 0, { signal: c.signal })
  );
  for (const p of pending) p.catch(() => {});
  await until(() => blob.running === 1);
  controls[0]!.abort();
  await assert.rejects(pending[0]!, CancelledError);
  assert.equal(blob.cancelled, 0);
  controls[1]!.abort();
  await assert.rejects(pending[1]!, CancelledError);
  await until(() => blob.cancelled === 1);
  blob.gate = Promise.resolve();
  await reads(source, BIG.content, 0, 10);
});

Deno.test("GunzipSource: what hangs fails at its deadline; disposing ends what is left", async () => {
  const logger = new RecordingLogger();
  {
    const { source, blob } = openLayer(BIG, { deadlineMs: 30, logger });
    await using _ = source;
    blob.gate = new Promise(() => {});
    await assert.rejects(source.pread(new Uint8Array(1), 0), DeadlineError);
    assert.equal(logger.count("span.failed"), 1);
  }
  const { source, blob } = openLayer(BIG);
  blob.gate = new Promise(() => {});
  const left = source.pread(new Uint8Array(1), SPAN);
  left.catch(() => {});
  await until(() => blob.running === 1);
  await source[Symbol.asyncDispose]();
  await assert.rejects(left, CancelledError);
  assert.equal(blob.disposed, 1);
  await assert.rejects(source.pread(new Uint8Array(1), 0), { code: "state" });
});

Deno.test("GunzipSource: a layer whose blob stands still does not hold up another", async () => {
  const cache = new SpanCache({ inFlightBytes: 16 * SPAN });
  const stuck = openLayer(BIG, { cache });
  const { source } = openLayer(EIGHT, { cache });
  let open = () => {};
  stuck.blob.gate = new Promise<void>((resolve) => open = resolve);
  const all = Array.from(
    { length: BIG.spans.count },
    (_, i) => stuck.source.pread(new Uint8Array(1), i * SPAN),
  );
  assert.equal(cache.budget.taken, cache.budget.limit);
  const others = [0, 3, 7].map((i) =>
    reads(source, EIGHT.content, i * SPAN + 5, 100)
  );
  await Promise.all(others);
  open();
  await Promise.all(all);
  await source[Symbol.asyncDispose]();
  await stuck.source[Symbol.asyncDispose]();
});

Deno.test("GunzipSource: a demand read hurries the prefetch that it joins", async () => {
  const blob = new TestSource(BIG.blob);
  const cached = new CachedSource(blob, {
    key: "x",
    blockSize: 4 * KIB,
    maxFetchBytes: 4 * KIB,
  });
  const inflater = new TestInflater();
  const cache = new SpanCache({ inFlightBytes: 2 * SPAN });
  const source = new GunzipSource(cached, {
    digest: BIG.digest,
    spans: BIG.spans,
    checkpoints: BIG.checkpoints,
    inflater,
    cache,
  });
  await using _ = source;
  let open = () => {};
  blob.gate = new Promise<void>((resolve) => open = resolve);
  const read = (span: number, priority: "demand" | "prefetch") =>
    source.pread(new Uint8Array(1), span * SPAN, { priority });
  const all = [0, 1, 2, 3, 4].map((i) => read(i, "prefetch"));
  await new Promise((resolve) => setTimeout(resolve, 5));
  all.push(read(4, "demand"));
  await new Promise((resolve) => setTimeout(resolve, 5));
  open();
  await Promise.all(all);
  assert.deepEqual(
    inflater.jobs.map((j) => j.priority),
    ["prefetch", "prefetch", "demand", "prefetch", "prefetch"],
  );
});

Deno.test("GunzipSource: hurrying a span hurries the blocks that it waits for", async () => {
  const blob = new TestSource(BIG.blob);
  const cached = new CachedSource(blob, {
    key: "x",
    blockSize: 4 * KIB,
    maxFetchBytes: 4 * KIB,
  });
  const source = new GunzipSource(cached, {
    digest: BIG.digest,
    spans: BIG.spans,
    checkpoints: BIG.checkpoints,
    inflater: new TestInflater(),
    cache: new SpanCache(),
  });
  await using _ = source;
  let open = () => {};
  blob.gate = new Promise<void>((resolve) => open = resolve);
  const read = (span: number, priority: "demand" | "prefetch") =>
    source.pread(new Uint8Array(1), span * SPAN, { priority });
  const all = [read(0, "prefetch"), read(3, "prefetch")];
  await new Promise((resolve) => setTimeout(resolve, 5));
  all.push(read(3, "demand"));
  open();
  await Promise.all(all);
  // Eight blocks of span 0 were on their way; then those of span 3 came.
  const first = blob.reads.findIndex((r) => r.priority === "demand");
  assert.equal(first, 8);
  assert.ok(
    blob.reads[8]!.offset >=
      BIG.checkpoints.compressedOffset(3) - 4 * KIB,
  );
});

Deno.test("GunzipSource: a slow store does not slow reads", async () => {
  await using store = await tempStore({
    queueBytes: 2 * SPAN,
    wrapFile: (file) =>
      fileWith(file, {
        preadNow: () => false,
        pwrite: async (src, offset) => {
          await new Promise((resolve) => setTimeout(resolve, 200));
          await file.pwrite(src, offset);
        },
      }),
  });
  const cache = new SpanCache({ store, memoryBytes: 2 * SPAN });
  const { source } = openLayer(BIG, { cache });
  await using _ = source;
  const start = performance.now();
  for (let at = 0; at + 8192 <= BIG.content.length; at += 8192) {
    await reads(source, BIG.content, at, 8192);
  }
  const took = performance.now() - start;
  // 23 spans at 200 ms each would take 4.6 s.
  assert.ok(took < 2000, `${took} ms`);
  assert.ok(store.stats.skipped > 0);
});

Deno.test("VerifiedSource refuses bytes that are not what they should be", async () => {
  const bytes = seededBytes(1_000_000, 1);
  const digests = new Uint8Array(8 * 32);
  for (let i = 0; i < 8; i++) {
    digests.set(sha256(bytes.subarray(i * 131072, (i + 1) * 131072)), i * 32);
  }
  const spans = SpanTable.regular(131072, bytes.length, digests);
  const inner = new TestSource(bytes.slice());
  await using source = new VerifiedSource(inner, {
    digest: "sha256:plain",
    spans,
    cache: new SpanCache(),
  });
  inner.content[200_000]! ^= 1;
  await reads(source, bytes, 0, 1000);
  await assert.rejects(
    source.pread(new Uint8Array(1), 140_000),
    IntegrityError,
  );
  inner.content[200_000]! ^= 1;
  await reads(source, bytes, 0, bytes.length);
  assert.throws(
    () =>
      new VerifiedSource(new TestSource(bytes), {
        digest: "x",
        spans: SpanTable.regular(131072, bytes.length, undefined),
        cache: new SpanCache(),
      }),
    FormatError,
  );
});

Deno.test("span tables and checkpoints from outside are checked", () => {
  const table = (offsets: number[], size: number, digests?: Uint8Array) =>
    new SpanTable(Float64Array.from(offsets), size, digests);
  assert.throws(() => table([1], 10), FormatError);
  assert.throws(() => table([], 10), FormatError);
  assert.throws(() => table([0, 20], 10), FormatError);
  assert.throws(() => table([0, 5, 4], 10), FormatError);
  assert.throws(() => table([0], NaN), FormatError);
  assert.throws(() => table([0, NaN], 10), FormatError);
  assert.throws(() => table([0], 10, new Uint8Array(31)), FormatError);
  assert.throws(() => table([0], MAX_SPAN_BYTES + 1), UnsupportedError);
  assert.equal(table([0], MAX_SPAN_BYTES).find(MAX_SPAN_BYTES - 1), 0);
  const twice = table([0, 5, 5, 8], 10);
  assert.deepEqual([0, 4, 5, 7, 8, 9].map((o) => twice.find(o)), [
    0,
    0,
    2,
    2,
    3,
    3,
  ]);

  const open = (offsets: number[], bits: number[]) =>
    new GunzipSource(new TestSource(new Uint8Array(1000)), {
      digest: "x",
      spans: table([0, 5], 10),
      checkpoints: {
        count: offsets.length,
        compressedOffset: (i) => offsets[i]!,
        bits: (i) => bits[i]!,
        window: () => new Uint8Array(0),
      },
      inflater: new TestInflater(),
      cache: new SpanCache(),
    });
  open([10, 20], [0, 3]);
  for (
    const [offsets, bits] of [
      [[10], [0]],
      [[0, 20], [1, 0]],
      [[20, 10], [0, 0]],
      [[10, 1001], [0, 0]],
      [[10, 20], [0, 8]],
      [[10, 20.5], [0, 0]],
    ] as [number[], number[]][]
  ) assert.throws(() => open(offsets, bits), FormatError);
});

/** A cached blob that comes in pieces of 32 KiB, and what was streamed of it. */
function openArriving(damage?: { at: number; reads: number }) {
  const layer = makeGzipLayer(seededBytes(1_000_000, 8), 400 * KIB);
  const blob = new TestSource(layer.blob.slice());
  const gates: (() => void)[] = [];
  let reads = 0;
  const progressive: ByteSource = blob;
  progressive.preadProgressive = async (dst, offset, onProgress, options) => {
    await blob.pread(new Uint8Array(1), offset, options);
    reads++;
    for (let at = 0; at < dst.length;) {
      const next = Math.min(dst.length, at + 32 * KIB);
      dst.set(layer.blob.subarray(offset + at, offset + next), at);
      if (damage && at === 0 && reads <= damage.reads) dst[damage.at]! ^= 0xff;
      at = next;
      onProgress(at);
      await new Promise<void>((resolve, reject) => {
        gates.push(resolve);
        options?.signal?.addEventListener(
          "abort",
          () => reject(new CancelledError()),
        );
      });
    }
  };
  return { layer, blob, gates };
}

Deno.test("GunzipSource decodes a span that is waited for while it arrives", async () => {
  await using store = await tempStore();
  using pool = new CodecPool({ threads: 2 });
  const begun: string[] = [];
  const inflater: SpanInflater = {
    inflateSpan: (job) => (begun.push("whole"), pool.inflateSpan(job)),
    streamSpan: (job) => (begun.push("stream"), pool.streamSpan(job)),
  };
  const { layer, blob, gates } = openArriving();
  const source = new GunzipSource(new CachedSource(blob, { key: "x" }), {
    digest: layer.digest,
    spans: layer.spans,
    checkpoints: layer.checkpoints,
    inflater,
    cache: new SpanCache({ store }),
    readaheadBytes: 0,
  });
  await using _ = source;
  const step = async () => {
    await until(() => gates.length > 0);
    gates.shift()!();
  };
  const pieces = Math.ceil(
    (layer.checkpoints.compressedOffset(1) -
      layer.checkpoints.compressedOffset(0)) / (32 * KIB),
  );
  const reading = reads(source, layer.content, 100, 1000);
  for (let piece = 0; piece < pieces; piece++) {
    // From the second piece on: 64 KiB are there, and more to come.
    await until(() => gates.length > 0);
    assert.deepEqual(begun, piece < 1 ? [] : ["stream"]);
    await step();
  }
  await reading;
  assert.deepEqual(begun, ["stream"]);
  await reads(source, layer.content, 0, 400 * KIB);

  // Nobody waits for what is read ahead.
  const ahead = source.prefetch(400 * KIB, 1);
  for (let piece = 0; piece < pieces; piece++) await step();
  await ahead;
  assert.deepEqual(begun, ["stream", "whole"]);
  await reads(source, layer.content, 400 * KIB, 400 * KIB);

  // What breaks off leaves the thread free.
  const control = new AbortController();
  const broken = source.pread(new Uint8Array(10), 900 * KIB, {
    signal: control.signal,
  });
  await step();
  await until(() => begun.length === 3);
  control.abort();
  await assert.rejects(broken, CancelledError);
  const free = [0, 1].map(() =>
    pool.streamSpan({
      input: layer.blob.subarray(10),
      bits: 0,
      window: new Uint8Array(0),
      length: 10,
    })
  );
  assert.ok(free.every((span) => span !== undefined));
});

Deno.test("GunzipSource: wrong bytes that were decoded while they came are fetched again, and never served", async () => {
  for (const wrongReads of [1, 2]) {
    await using store = await tempStore();
    using pool = new CodecPool({ threads: 2 });
    const { layer, blob, gates } = openArriving({ at: 9, reads: wrongReads });
    const source = new GunzipSource(new CachedSource(blob, { key: "x" }), {
      digest: layer.digest,
      spans: layer.spans,
      checkpoints: layer.checkpoints,
      inflater: pool,
      cache: new SpanCache({ store }),
      readaheadBytes: 0,
    });
    await using _ = source;
    const opening = setInterval(() => gates.shift()?.(), 1);
    try {
      const dst = new Uint8Array(100).fill(0xee);
      const reading = source.pread(dst, 0);
      if (wrongReads === 1) {
        await reading;
        assert.deepEqual(dst, layer.content.subarray(0, 100));
      } else {
        await assert.rejects(reading, IntegrityError);
        assert.ok(dst.every((byte) => byte === 0xee));
      }
    } finally {
      clearInterval(opening);
    }
  }
});

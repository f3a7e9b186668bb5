import assert from "node:assert/strict";
import { Urgency } from "../../lib/io/mod.ts";
import { CachedSource } from "../../lib/layers/cache/mod.ts";
import { GunzipSource } from "../../lib/layers/gunzip.ts";
import { KIND, LsmtSource, SegmentColumns } from "../../lib/layers/lsmt/mod.ts";
import { CountedSource, ReadStats } from "../../lib/layers/read_stats.ts";
import { SpanCache } from "../../lib/layers/span_source.ts";
import { makeGzipLayer, TestInflater } from "../testutil/gzip_layer.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";

const SPAN = 64 * 1024;
const NOTHING = { queue: 0, fetch: 0, decode: 0 };
const NO_LOADS = { loads: 0, storedBytes: 0, bytes: 0, seconds: NOTHING };

/** A clock in seconds that is set by hand. */
function statsAt(): { stats: ReadStats; at: (seconds: number) => void } {
  let now = 0;
  const stats = new ReadStats(() => now * 1000);
  return { stats, at: (seconds) => void (now = seconds) };
}

/** A promise to be kept by hand. */
function gate(): { promise: Promise<void>; open: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { promise, open: resolve };
}

/** Lets everything happen that waits for nothing. */
function settled(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

Deno.test("ReadStats: waiting is counted once however many wait, and split by what is waited for", () => {
  const { stats, at } = statsAt();
  const endA = stats.wait();
  const one = stats.load(new Urgency("demand"));
  at(2);
  one.enter("fetch", 100);
  at(4);
  const urgency = new Urgency("prefetch");
  const two = stats.load(urgency);
  two.enter("fetch", 50);
  at(5);
  const endB = stats.wait();
  at(6);
  urgency.hurry();
  at(8);
  one.enter("decode");
  // Exact in the middle too: A for 8 s, B for 3.
  const middle = stats.counters();
  assert.equal(middle.waitSeconds, 11);
  assert.deepEqual(middle.waitingFor, {
    ...NOTHING,
    queue: 2,
    fetch: 6,
    other: 0,
  });
  at(10);
  one.end(1000);
  endA();
  at(12);
  two.enter("decode");
  at(14);
  two.end(500);
  at(15);
  endB();
  at(20);
  assert.deepEqual(stats.counters(), {
    waits: 2,
    waitSeconds: 20,
    waitingSeconds: 15,
    // From 8 to 10 one is decoded and one fetched: half of it each.
    waitingFor: { queue: 2, fetch: 9, decode: 3, other: 1 },
    demand: {
      loads: 2,
      storedBytes: 150,
      bytes: 1500,
      seconds: { queue: 2, fetch: 14, decode: 4 },
    },
    ahead: NO_LOADS,
  });
});

Deno.test("ReadStats: a load that failed is none, but its time counts; nothing after its end does", () => {
  const { stats, at } = statsAt();
  const urgency = new Urgency("prefetch");
  const load = stats.load(urgency);
  at(1);
  load.enter("fetch", 10);
  at(3);
  load.end();
  at(9);
  load.enter("decode", 10);
  load.end(100);
  urgency.hurry();
  assert.deepEqual(stats.counters(), {
    waits: 0,
    waitSeconds: 0,
    waitingSeconds: 0,
    waitingFor: { ...NOTHING, other: 0 },
    demand: NO_LOADS,
    ahead: {
      loads: 0,
      storedBytes: 10,
      bytes: 0,
      seconds: { queue: 1, fetch: 2, decode: 0 },
    },
  });
});

Deno.test("ReadStats: spans by who wanted them, their stages as they pass", async () => {
  const layer = makeGzipLayer(seededBytes(4 * SPAN, 5), SPAN);
  const blob = new TestSource(layer.blob);
  const inflater = new TestInflater();
  const { stats, at } = statsAt();
  await using source = new GunzipSource(blob, {
    digest: layer.digest,
    spans: layer.spans,
    checkpoints: layer.checkpoints,
    inflater,
    // One span at a time: the others wait for a place.
    cache: new SpanCache({ inFlightBytes: SPAN }),
    readaheadBytes: 0,
    stats,
  });
  const [fetched, decoded] = [gate(), gate()];
  blob.gate = fetched.promise;
  inflater.gate = decoded.promise;
  const dst = new Uint8Array(10);
  const reads = [source.pread(dst, 5), source.pread(dst, SPAN)];
  await settled();
  at(1);
  fetched.open();
  await settled();
  at(3);
  decoded.open();
  await Promise.all(reads);
  await source.prefetch(2 * SPAN, 1);
  const { demand, ahead } = stats.counters();
  const stored = [0, 1, 2].map((i) => source.unitAt(i * SPAN).blobLength);
  assert.deepEqual(demand, {
    loads: 2,
    storedBytes: stored[0]! + stored[1]!,
    bytes: 2 * SPAN,
    seconds: { queue: 3, fetch: 1, decode: 2 },
  });
  assert.deepEqual(ahead, {
    loads: 1,
    storedBytes: stored[2],
    bytes: SPAN,
    seconds: NOTHING,
  });
  // What is in memory is not loaded.
  await source.pread(dst, 2 * SPAN);
  assert.equal(stats.counters().demand.loads, 2);
});

Deno.test("ReadStats: a layer without spans counts its fetches", async () => {
  const inner = new TestSource(seededBytes(4 * SPAN, 6));
  const { stats, at } = statsAt();
  await using source = new CachedSource(inner, {
    key: "sha256:x",
    blockSize: SPAN,
    stats,
  });
  const fetched = gate();
  inner.gate = fetched.promise;
  // Three blocks, one fetch.
  const read = source.pread(new Uint8Array(2 * SPAN), SPAN / 2);
  await settled();
  at(2);
  fetched.open();
  await read;
  assert.deepEqual(stats.counters().demand, {
    loads: 1,
    storedBytes: 3 * SPAN,
    bytes: 3 * SPAN,
    seconds: { ...NOTHING, fetch: 2 },
  });
  inner.failure = new Error("gone");
  await assert.rejects(source.pread(new Uint8Array(1), 3 * SPAN), /gone/);
  assert.equal(stats.counters().demand.loads, 1);
});

Deno.test("CountedSource: reads that wait are counted, those of memory and of prefetch are not", async () => {
  const data = new TestSource(seededBytes(4096, 7));
  const columns = new SegmentColumns(0);
  columns.pushJoined(0, 8, 0, KIND.data, 0);
  const layer = { table: columns.finish(), data };
  await using device = new LsmtSource([layer], 8192);
  const { stats, at } = statsAt();
  const source = new CountedSource(device, stats);
  assert.equal(source.size, 8192);
  assert.ok(source.preadNow(new Uint8Array(512), 4096));
  assert.ok(!source.preadNow(new Uint8Array(512), 0));
  assert.deepEqual([...source.extents(0, 8192)], [...device.extents(0, 8192)]);
  const opened = gate();
  data.gate = opened.promise;
  const dst = new Uint8Array(512);
  const reads = [
    source.pread(dst, 0),
    source.pread(new Uint8Array(512), 0, { priority: "prefetch" }),
  ];
  await settled();
  at(3);
  opened.open();
  await Promise.all(reads);
  assert.deepEqual(dst, data.content.subarray(0, 512));
  data.failure = new Error("gone");
  await assert.rejects(source.pread(dst, 0), /gone/);
  at(5);
  const { waits, waitSeconds, waitingFor } = stats.counters();
  assert.deepEqual({ waits, waitSeconds, waitingFor }, {
    waits: 2,
    waitSeconds: 3,
    waitingFor: { ...NOTHING, other: 3 },
  });
});

import assert from "node:assert/strict";
import { replayTrace } from "../../lib/image/mod.ts";
import {
  CancelledError,
  MemorySource,
  ObdError,
  silentLogger,
} from "../../lib/io/mod.ts";
import { DEVICE_LAYER, SpanCache } from "../../lib/layers/mod.ts";
import { GunzipSource } from "../../lib/layers/gunzip.ts";
import { makeGzipLayer, TestInflater } from "../testutil/gzip_layer.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { Prefetched, traceImage } from "./trace_image.ts";

const MIB = 1024 * 1024;
const options = { logger: silentLogger, signal: new AbortController().signal };
const turn = () => new Promise((resolve) => setTimeout(resolve, 0));

function image() {
  const target = new Prefetched(64 * MIB);
  const rows = [{ offset: 0, length: 64 * MIB, from: 0 }];
  return { target, ...traceImage(64 * MIB, rows, [target]) };
}

/** Pieces that are no neighbours. */
const records = Array.from({ length: 40 }, (_, i) => ({
  layer: DEVICE_LAYER,
  offset: (40 - i) * MIB,
  length: 4096,
}));

Deno.test("replayTrace() fetches in order, many pieces at once", async () => {
  const { target, ...stack } = image();
  const open = Promise.withResolvers<void>();
  target.gate = open.promise;
  const replay = replayTrace(stack, records, options);
  await turn();
  assert.equal(target.running, 16);
  open.resolve();
  const result = await replay;
  assert.deepEqual(target.seen.map(([at]) => at / MIB), [
    ...Array.from({ length: 40 }, (_, i) => 40 - i),
  ]);
  assert.deepEqual(result, {
    jobs: 40,
    failures: 0,
    bytes: 40 * 65536,
    storedBytes: 40 * 32768,
  });
});

Deno.test("replayTrace() goes on behind failures, but not for ever", async () => {
  const { target, ...stack } = image();
  target.failure = new ObdError("registry", "away");
  const few = await replayTrace(stack, records.slice(0, 3), options);
  assert.deepEqual([few.jobs, few.failures, few.cutBy], [3, 3, undefined]);
  const result = await replayTrace(stack, records, {
    ...options,
    concurrency: 1,
  });
  assert.deepEqual([result.jobs, result.failures, result.cutBy], [
    32,
    32,
    "failures",
  ]);
  target.failure = new TypeError("a defect");
  await assert.rejects(replayTrace(stack, records, options), TypeError);
});

Deno.test("replayTrace() stops at what the caches can keep", async () => {
  const { target, ...stack } = image();
  const result = await replayTrace(stack, records, {
    ...options,
    limitBytes: 5 * 65536 + 1,
  });
  assert.equal(target.seen.length, 5);
  assert.deepEqual([result.jobs, result.cutBy], [5, "limit"]);
});

Deno.test("replayTrace() keeps to its rate, and stops when told", async () => {
  const { target, ...stack } = image();
  const started = performance.now();
  await replayTrace(stack, records.slice(0, 5), {
    ...options,
    bytesPerSecond: 4 * 32768 / 0.1,
  });
  assert.ok(performance.now() - started >= 99);
  assert.equal(target.seen.length, 5);
  const stop = new AbortController();
  target.seen.length = 0;
  target.gate = new Promise(() => {});
  const replay = replayTrace(stack, records, {
    ...options,
    signal: stop.signal,
    bytesPerSecond: 1000,
  });
  await turn();
  stop.abort();
  await assert.rejects(replay, CancelledError);
  assert.equal(target.seen.length, 1);
  assert.equal(target.running, 0);
});

Deno.test("replayTrace() tells layers its plan while it runs at full speed, however it ends", async () => {
  const layer = makeGzipLayer(seededBytes(8 * 65536, 1), 65536);
  await using gunzip = new GunzipSource(new MemorySource(layer.blob), {
    digest: layer.digest,
    spans: layer.spans,
    checkpoints: layer.checkpoints,
    inflater: new TestInflater(),
    cache: new SpanCache(),
  });
  const seen: { offset: number; length: number }[][] = [];
  let followed = 0;
  gunzip.followPlan = (ranges) => {
    seen.push([...ranges]);
    followed++;
    return () => followed--;
  };
  const during: number[] = [];
  gunzip.prefetch = () => {
    during.push(followed);
    return Promise.resolve();
  };
  const stack = traceImage(
    8 * 65536,
    [{ offset: 0, length: 8 * 65536, from: 0 }],
    [gunzip],
  );
  const wanted = [5, 1, 7].map((span) => ({
    layer: DEVICE_LAYER,
    offset: span * 65536 + 4096,
    length: 4096,
  }));
  await replayTrace(stack, wanted, options);
  assert.deepEqual([during, followed], [[1, 1, 1], 0]);
  const spans = seen[0]!.map(({ offset, length }) => {
    assert.equal(length, 65536);
    return offset / 65536;
  });
  assert.deepEqual(spans, [5, 1, 7]);

  await replayTrace(stack, wanted, { ...options, bytesPerSecond: 1e9 });
  assert.deepEqual([during.slice(3), seen.length], [[0, 0, 0], 1]);

  gunzip.prefetch = () => Promise.reject(new TypeError("a defect"));
  await assert.rejects(replayTrace(stack, wanted, options), TypeError);
  assert.deepEqual([seen.length, followed], [2, 0]);
});

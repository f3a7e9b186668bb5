import assert from "node:assert/strict";
import { replayTrace } from "../../lib/image/mod.ts";
import { CancelledError, ObdError, silentLogger } from "../../lib/io/mod.ts";
import { DEVICE_LAYER } from "../../lib/layers/mod.ts";
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
    isCut: false,
  });
});

Deno.test("replayTrace() goes on behind failures, but not for ever", async () => {
  const { target, ...stack } = image();
  target.failure = new ObdError("registry", "away");
  const few = await replayTrace(stack, records.slice(0, 3), options);
  assert.deepEqual([few.jobs, few.failures, few.isCut], [3, 3, false]);
  const result = await replayTrace(stack, records, {
    ...options,
    concurrency: 1,
  });
  assert.deepEqual([result.jobs, result.failures, result.isCut], [
    32,
    32,
    true,
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
  assert.deepEqual([result.jobs, result.isCut], [5, true]);
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

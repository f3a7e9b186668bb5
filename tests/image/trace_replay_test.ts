import assert from "node:assert/strict";
import { replayTrace } from "../../lib/image/mod.ts";
import {
  type ByteSource,
  CancelledError,
  ObdError,
  type ReadOptions,
  silentLogger,
} from "../../lib/io/mod.ts";
import { DEVICE_LAYER } from "../../lib/layers/mod.ts";

/** Notes what is read of it. */
class Noted implements ByteSource {
  readonly size = 4 * 1024 * 1024;
  readonly reads: [offset: number, length: number][] = [];
  failAt = -1;

  // deno-lint-ignore require-await
  async pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    assert.equal(options?.priority, "prefetch");
    this.reads.push([offset, dst.length]);
    if (offset === this.failAt) throw new ObdError("registry", "away");
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

const options = { logger: silentLogger, signal: new AbortController().signal };

Deno.test("replayTrace() reads in order, in bounds, in pieces of 1 MiB", async () => {
  const source = new Noted();
  const MiB = 1024 * 1024;
  const result = await replayTrace(source, [
    { layer: DEVICE_LAYER, offset: 4096, length: 8192 },
    { layer: 0, offset: 0, length: 4096 },
    { layer: DEVICE_LAYER, offset: source.size - 10, length: 4096 },
    { layer: DEVICE_LAYER, offset: source.size + 10, length: 4096 },
    { layer: DEVICE_LAYER, offset: 0, length: 2 * MiB + 5 },
  ], options);
  assert.deepEqual(source.reads, [
    [4096, 8192],
    [source.size - 10, 10],
    [0, MiB],
    [MiB, MiB],
    [2 * MiB, 5],
  ]);
  assert.deepEqual(result, {
    records: 5,
    bytes: 8192 + 10 + 2 * MiB + 5,
    failures: 0,
  });
});

Deno.test("replayTrace() goes on behind a failed read", async () => {
  const source = new Noted();
  source.failAt = 0;
  const result = await replayTrace(
    source,
    [0, 1, 2].map((i) => ({
      layer: DEVICE_LAYER,
      offset: i * 4096,
      length: 4096,
    })),
    options,
  );
  assert.equal(result.failures, 1);
  assert.equal(source.reads.length, 3);
});

Deno.test("replayTrace() keeps to its budget, and stops when told", async () => {
  const records = Array.from({ length: 5 }, (_, i) => ({
    layer: DEVICE_LAYER,
    offset: i * 100_000,
    length: 100_000,
  }));
  const started = performance.now();
  await replayTrace(new Noted(), records, {
    ...options,
    bytesPerSecond: 4_000_000,
    concurrency: 1,
  });
  assert.ok(performance.now() - started >= 98);
  const stop = new AbortController();
  const source = new Noted();
  const replay = replayTrace(source, records, {
    ...options,
    signal: stop.signal,
    bytesPerSecond: 1000,
    concurrency: 1,
  });
  stop.abort();
  await assert.rejects(replay, CancelledError);
  assert.ok(source.reads.length <= 1);
});

import assert from "node:assert/strict";
import { planPrefetch } from "../../lib/image/prefetch_plan.ts";
import { MemorySource } from "../../lib/io/mod.ts";
import {
  CachedSource,
  DEVICE_LAYER,
  GunzipSource,
  SpanCache,
} from "../../lib/layers/mod.ts";
import { makeGzipLayer, TestInflater } from "../testutil/gzip_layer.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { Prefetched, traceImage } from "./trace_image.ts";

const KIB = 1024;
const MIB = KIB * KIB;
const device = (offset: number, length: number) => ({
  layer: DEVICE_LAYER,
  offset,
  length,
});
const ranges = (jobs: { offset: number; length: number }[]) =>
  jobs.map((j) => [j.offset / KIB, j.length / KIB]);

Deno.test("planPrefetch() names each piece once, in order of first need, neighbours together", () => {
  const target = new Prefetched(64 * MIB);
  const image = traceImage(64 * MIB, [
    { offset: 0, length: 32 * MIB, from: 0 },
    { offset: 40 * MIB, length: MIB, from: 32 * MIB },
  ], [target]);
  const plan = planPrefetch(image, [
    device(10 * MIB + 4096, 4096),
    device(5 * MIB - 512, 1024), // on both sides of a border
    device(10 * MIB, 65 * KIB), // one new piece, behind the first
    device(10 * MIB - 4096, 4096), // and one before it
    device(40 * MIB, 4096), // elsewhere in the target
    device(35 * MIB, MIB), // a hole
    device(64 * MIB - 10, 10 * MIB), // past the end
    device(2 ** 52, 4096),
  ]);
  assert.deepEqual(ranges(plan), [
    [10 * KIB - 64, 192],
    [5 * KIB - 64, 128],
    [32 * KIB, 64],
  ]);
  // The blob is half as large as its content.
  assert.deepEqual(plan.map((j) => j.storedBytes / KIB), [96, 64, 32]);
  assert.ok(plan.every((j) => j.source === target));
});

Deno.test("planPrefetch() asks for little at first, then for 1 MiB of the blob at once", () => {
  const target = new Prefetched(64 * MIB);
  const image = traceImage(
    64 * MIB,
    [{ offset: 0, length: 64 * MIB, from: 0 }],
    [target],
  );
  const plan = planPrefetch(image, [device(0, 17 * MIB + 1)]);
  assert.deepEqual(ranges(plan).map(([, length]) => length! / KIB), [
    ...Array(8).fill(0.5),
    ...Array(8).fill(1),
    2,
    2,
    1 + 64 / KIB,
  ]);
  // What is needed much later does not delay what is needed now.
  const late = Array.from({ length: 100 }, (_, i) => device(i * 2 * 65536, 1));
  const far = planPrefetch(image, [...late, device(65536, 1)]);
  assert.deepEqual(ranges(far)[0], [0, 64]);
  const soon = planPrefetch(image, [
    ...late.slice(0, 50),
    device(65536, 1),
  ]);
  assert.deepEqual(ranges(soon)[0], [0, 192]);
});

Deno.test("planPrefetch() takes whole spans, leaves out what is at hand, reads overlaybd's records", async () => {
  const content = seededBytes(4 * 64 * KIB, 1);
  const layer = makeGzipLayer(content, 64 * KIB);
  await using gunzip = new GunzipSource(
    new CachedSource(new MemorySource(layer.blob), { key: "a" }),
    {
      digest: layer.digest,
      spans: layer.spans,
      checkpoints: layer.checkpoints,
      inflater: new TestInflater(),
      cache: new SpanCache(),
    },
  );
  const own = new Prefetched(MIB);
  const image = traceImage(
    8 * MIB,
    [
      { offset: 0, length: 256 * KIB, from: 0 },
      { offset: MIB, length: 4096, from: 0, isOwn: true },
      { offset: 2 * MIB, length: MIB, from: 0, isOwn: true, layer: 1 },
    ],
    [gunzip, new Prefetched(4096)],
    [new MemorySource(new Uint8Array(4096)), own],
  );
  const plan = planPrefetch(image, [
    device(MIB, 4096),
    device(130 * KIB, 512),
    { layer: 1, offset: 70 * KIB, length: 1 },
    { layer: 0, offset: 0, length: 4096 },
    { layer: 7, offset: 0, length: 4096 },
    { layer: 1, offset: 2 ** 50, length: 2 ** 50 },
  ]);
  assert.deepEqual(ranges(plan), [[128, 64], [64, 64]]);
  assert.equal(plan[0]!.source, gunzip);
  const unit = gunzip.unitAt(130 * KIB);
  assert.equal(plan[0]!.storedBytes, unit.blobLength);
  assert.equal(plan[1]!.source, own);
});

Deno.test("planPrefetch() ends at its bounds, whatever a trace says", () => {
  const rows = Array.from({ length: 4000 }, (_, i) => ({
    offset: i * 1024,
    length: 512,
    from: (4000 - i) * 512,
  }));
  const image = traceImage(4 * MIB, rows, [new Prefetched(4 * MIB)]);
  let given = 0;
  const endless = function* () {
    for (;; given++) yield device(0, 4 * MIB);
  };
  const plan = planPrefetch(image, endless());
  assert.ok(plan.length < 40, `${plan.length} jobs`);
  assert.ok(given < 2000, `${given} records`);
});

import assert from "node:assert/strict";
import {
  SPAN_SIZE_LONG,
  SPAN_SIZE_SHORT,
  SpanPlan,
} from "../../lib/compress/mod.ts";
import { mulberry32 } from "./samples.ts";

/** A made-up blob: blocks of equal output and blob bytes, all windows alike. */
interface Blocks {
  blobSize: number;
  /** Uncompressed and compressed bytes of a block. */
  size: number;
  packed: number;
  /** Bytes that a window takes in the index. */
  window: number;
}

/** Walks the blob as the indexer does; sizes of its spans, and what the index costs. */
function walk(blocks: Blocks): { sizes: number[]; index: number } {
  const { blobSize, size, packed, window } = blocks;
  const plan = new SpanPlan({ blobSize });
  const sizes: number[] = [];
  let index = 48 + 0;
  let start = 0;
  plan.start(0, 0);
  const count = Math.floor(blobSize / packed);
  for (let i = 1; i < count; i++) {
    const next = (i + 1) * size;
    if (plan.reaches((i + 1) * packed, next)) continue;
    const at = i * size;
    if (at === start) continue;
    sizes.push(at - start);
    start = at;
    index += 48 + window;
    plan.start(at, window);
  }
  return { sizes, index };
}

const most = (values: number[]) => values.reduce((a, b) => Math.max(a, b), 0);

Deno.test("spans are short where checkpoints are cheap", () => {
  for (const window of [0, 100, 600]) {
    const { sizes } = walk({
      blobSize: 100e6,
      size: 50_000,
      packed: 30_000,
      window,
    });
    assert.ok(most(sizes) <= SPAN_SIZE_SHORT, `${window}: ${most(sizes)}`);
    assert.ok(Math.min(...sizes) > SPAN_SIZE_SHORT - 2 * 50_000);
  }
});

Deno.test("spans grow to the long size where checkpoints are dear", () => {
  const { sizes, index } = walk({
    blobSize: 100e6,
    size: 80_000,
    packed: 28_000,
    window: 2500,
  });
  assert.ok(most(sizes) <= SPAN_SIZE_LONG);
  assert.ok(index < 100e6 * 0.0058);
});

Deno.test("no blob of more than 20 MB gets an index of more than 0.6 %", () => {
  const random = mulberry32(5);
  for (let round = 0; round < 300; round++) {
    const size = 16_384 + Math.floor(random() * 4e6);
    const ratio = 1 + random() ** 4 * 1000;
    const blocks = {
      blobSize: 20e6 + Math.floor(random() * 200e6),
      size,
      packed: Math.max(64, Math.ceil(size / ratio)),
      window: Math.floor(random() * 9000),
    };
    const { index, sizes } = walk(blocks);
    const where = JSON.stringify(blocks);
    // A span is never planned over 64 MiB, so that this is what the worst windows cost.
    if (most(sizes) < 60 * 2 ** 20) {
      assert.ok(index <= 0.006 * blocks.blobSize, `${index}: ${where}`);
    }
    assert.ok(most(sizes) <= 64 * 2 ** 20 + size, where);
  }
});

Deno.test("small blobs are treated as if they were of 20 MB", () => {
  const { sizes, index } = walk({
    blobSize: 1e6,
    size: 100_000,
    packed: 10_000,
    window: 2000,
  });
  assert.ok(most(sizes) <= SPAN_SIZE_SHORT);
  assert.ok(index < 0.0058 * 20e6);
});

Deno.test("once a span does not reach a position, it reaches none behind it", () => {
  const random = mulberry32(9);
  for (let round = 0; round < 200; round++) {
    const plan = new SpanPlan({ blobSize: 1e6 + random() * 100e6 });
    plan.start(0, 0);
    let compressed = 0;
    let uncompressed = 0;
    let reached = true;
    for (let i = 0; i < 400; i++) {
      compressed += random() * 60_000;
      uncompressed += random() * 400_000;
      const reaches = plan.reaches(compressed, uncompressed);
      assert.ok(reached || !reaches);
      reached = reaches;
      if (!reaches && random() < 0.3) {
        const window = Math.floor(random() * 8000);
        plan.start(uncompressed, window);
        reached = true;
      }
    }
  }
});

Deno.test("a given span size is kept, whatever it costs", () => {
  const plan = new SpanPlan({ blobSize: 30e6, spanSize: 65_536 });
  for (let at = 0; at < 30e6; at += 65_536) {
    plan.start(at, 33_000);
    assert.ok(plan.reaches(at, at + 65_536));
    assert.ok(!plan.reaches(at, at + 65_537));
  }
  for (const spanSize of [0, -1, NaN, 2 ** 26 + 1]) {
    assert.throws(() => new SpanPlan({ blobSize: 1, spanSize }), RangeError);
  }
});

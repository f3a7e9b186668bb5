import assert from "node:assert/strict";
import { equalBytes } from "../../lib/io/mod.ts";
import { GunzipSource } from "../../lib/layers/gunzip.ts";
import { SpanCache } from "../../lib/layers/span_source.ts";
import { WholeLayerPredictor } from "../../lib/layers/whole_layer.ts";
import { tempStore } from "../testutil/cache_store.ts";
import { makeGzipLayer, TestInflater } from "../testutil/gzip_layer.ts";
import { seededBytes, seededRandom } from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";

const KIB = 1024;
const SIZE = 1000;

function predictor(count: number, maxBytes = Infinity): WholeLayerPredictor {
  return new WholeLayerPredictor({ count, sizeOf: () => SIZE }, maxBytes);
}

/** All that it guesses now. */
function guesses(of: WholeLayerPredictor): number[] {
  const all: number[] = [];
  for (let next; (next = of.next()) !== undefined;) all.push(next);
  return all;
}

/** Numbers below `count` in an order of their own. */
function shuffled(count: number, seed: number): number[] {
  const random = seededRandom(seed);
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

Deno.test("WholeLayerPredictor guesses outwards from the last read, for who reads all of 32 spans", () => {
  const whole = predictor(1000);
  for (let i = 0; i < 31; i++) whole.read(3 * i, SIZE, false);
  assert.deepEqual(guesses(whole), []);
  whole.read(500, SIZE, false);
  // As many as half of those that were wanted; so many after one read.
  const first = [501, 499, 502, 498, 503, 497, 504, 496];
  assert.deepEqual(guesses(whole).slice(0, 8), first);
  whole.read(93, SIZE, false);
  assert.deepEqual(guesses(whole), [94]);
  whole.read(93, SIZE, false);
  assert.deepEqual(guesses(whole), []);
});

Deno.test("WholeLayerPredictor wants three quarters of the bytes read, in any pieces and once", () => {
  for (const [share, expected] of [[0.7, false], [0.8, true]] as const) {
    const whole = predictor(1000);
    for (let i = 0; i < 40; i++) {
      for (let at = 0; at < share * SIZE; at += 50) {
        whole.read(2 * i, 50, false);
      }
    }
    assert.equal(whole.next() !== undefined, expected, `${share}`);
  }
  // Bytes over a span's own are those of reads that are repeated.
  const repeated = predictor(1000);
  for (let i = 0; i < 20; i++) repeated.read(2 * i, 10 * SIZE, false);
  for (let i = 20; i < 40; i++) repeated.read(2 * i, 10, false);
  assert.equal(repeated.next(), undefined);
});

Deno.test("WholeLayerPredictor ends with a reader that stops: 16 guesses after the last read", () => {
  const whole = predictor(1000);
  for (let i = 0; i < 200; i++) whole.read(i, SIZE, false);
  assert.equal(guesses(whole).length, 16);
  assert.equal(guesses(whole).length, 0);
  whole.read(0, 1, false);
  assert.equal(guesses(whole).length, 16);
});

Deno.test("WholeLayerPredictor: a stream is no evidence, nor what it came to first", () => {
  const whole = predictor(1000);
  for (let i = 0; i < 500; i++) {
    whole.read(i, SIZE, true);
    whole.read(i, SIZE, false);
    assert.equal(whole.next(), undefined);
  }
  // Nor does what is read again of it make up for what others leave.
  const parts = predictor(1000);
  for (let i = 0; i < 100; i++) {
    parts.read(2 * i, 0.7 * SIZE, false);
    parts.read(2 * i + 1, SIZE, true);
    parts.read(2 * i + 1, SIZE, false);
    assert.equal(parts.next(), undefined);
  }
});

Deno.test("WholeLayerPredictor bounds what nobody came to, and ends with the layer", () => {
  const bounded = predictor(1000, 5 * SIZE);
  for (let i = 0; i < 100; i++) bounded.read(i, SIZE, false);
  assert.deepEqual(guesses(bounded), [100, 101, 102, 103, 104]);
  bounded.read(102, SIZE, false);
  assert.deepEqual(guesses(bounded), [105]);
  // A reader of everything, anywhere: each span is guessed or wanted first, once.
  const order = shuffled(300, 3);
  const whole = predictor(300);
  const seen = new Set<number>();
  let unconfirmed = 0;
  for (const [i, index] of order.entries()) {
    if (seen.has(index)) unconfirmed--;
    seen.add(index);
    whole.read(index, SIZE, false);
    for (const guess of guesses(whole)) {
      assert.ok(!seen.has(guess), `${guess} was guessed before`);
      seen.add(guess);
      unconfirmed++;
    }
    assert.ok(unconfirmed <= (i + 1) / 2 + 1, `${unconfirmed} after ${i}`);
  }
  assert.equal(seen.size, 300);
  assert.equal(unconfirmed, 0);
  whole.read(0, SIZE, false);
  assert.equal(whole.next(), undefined);
  assert.equal(predictor(0).next(), undefined);
});

const SPAN = 256 * KIB;
/** Spans of hardly anything, no two alike. */
const LAYER = makeGzipLayer(stamped(256), SPAN);
/** Places too far from each other to be neighbours or streams, in an order of their own. */
const PLACES = shuffled(64, 7).map((i) => 4 * i);

function stamped(count: number): Uint8Array {
  const bytes = new Uint8Array(count * SPAN);
  for (let i = 0; i < count; i++) bytes.set(seededBytes(16, i + 1), i * SPAN);
  return bytes;
}

async function withLayer(
  body: (source: GunzipSource, inflater: TestInflater) => Promise<void>,
  options: {
    store?: boolean;
    readaheadBytes?: number;
    inFlightBytes?: number;
  } = {},
): Promise<void> {
  await using store = options.store === false
    ? undefined
    : await tempStore({ sizeBytes: 512 * 2 ** 20 });
  const inflater = new TestInflater();
  const { readaheadBytes, inFlightBytes } = options;
  await using source = new GunzipSource(new TestSource(LAYER.blob), {
    digest: LAYER.digest,
    spans: LAYER.spans,
    checkpoints: LAYER.checkpoints,
    inflater,
    cache: new SpanCache({
      store,
      ...(inFlightBytes === undefined ? {} : { inFlightBytes }),
    }),
    ...(readaheadBytes === undefined ? {} : { readaheadBytes }),
  });
  await body(source, inflater);
}

/** Spans that were asked for ahead of any read. */
function ahead(inflater: TestInflater): number {
  return inflater.jobs.filter((job) => job.priority === "prefetch").length;
}

async function settled(inflater: TestInflater): Promise<void> {
  for (let quiet = 0; quiet < 3;) {
    await new Promise((resolve) => setTimeout(resolve, 2));
    quiet = inflater.running === 0 ? quiet + 1 : 0;
  }
}

/** Reads the first `length` bytes of spans, one after the other. */
async function readSpans(
  source: GunzipSource,
  inflater: TestInflater,
  indexes: readonly number[],
  length = SPAN,
): Promise<void> {
  for (const index of indexes) {
    const dst = new Uint8Array(length);
    await source.pread(dst, index * SPAN);
    const offset = index * SPAN;
    assert.ok(equalBytes(dst, LAYER.content.subarray(offset, offset + length)));
    await settled(inflater);
  }
}

Deno.test("SpanSource fetches ahead for a reader of everything, until it stops", async () => {
  await withLayer(async (source, inflater) => {
    await readSpans(source, inflater, PLACES.slice(0, 31));
    assert.equal(ahead(inflater), 0);
    await readSpans(source, inflater, PLACES.slice(31, 64));
    const made = inflater.jobs.length;
    // Half as many as were wanted, but for one; some of them were wanted since.
    assert.ok(ahead(inflater) >= 32, `${ahead(inflater)} were read ahead`);
    assert.ok(made <= 64 + 33, `${made} were made`);
    // Eight, and the read.
    assert.ok(inflater.mostRunning <= 9, `${inflater.mostRunning} at once`);
    await settled(inflater);
    assert.equal(inflater.jobs.length, made);
    // What is left of the layer comes without waiting for more and more of it.
    await readSpans(source, inflater, shuffled(256, 8));
    assert.equal(inflater.jobs.length, 256, "a span was made twice, or never");
    assert.ok(ahead(inflater) >= 128, `${ahead(inflater)} of 256`);
  });
});

Deno.test("SpanSource does not, for readers of parts, without a store, and when told not to", async () => {
  await withLayer(async (source, inflater) => {
    await readSpans(source, inflater, PLACES, 0.7 * SPAN);
    assert.equal(ahead(inflater), 0);
  });
  for (const options of [{ store: false }, { readaheadBytes: 0 }]) {
    await withLayer(async (source, inflater) => {
      await readSpans(source, inflater, PLACES);
      assert.equal(ahead(inflater), 0, JSON.stringify(options));
    }, options);
  }
});

Deno.test("SpanSource fetches a sequential reader's window ahead of it, not the layer", async () => {
  await withLayer(async (source, inflater) => {
    const indexes = Array.from({ length: 64 }, (_, i) => 100 + i);
    await readSpans(source, inflater, indexes);
    assert.ok(ahead(inflater) > 0);
    const made = inflater.jobs.length;
    assert.ok(made <= 64 + 5, `${made} were made for 64 and a window of four`);
  }, { readaheadBytes: 4 * SPAN });
});

Deno.test("SpanSource: a read goes before what is fetched for a reader of everything", async () => {
  await withLayer(async (source, inflater) => {
    await readSpans(source, inflater, PLACES.slice(0, 31));
    const known = inflater.jobs.length;
    const gate = Promise.withResolvers<void>();
    inflater.gate = gate.promise;
    const first = source.pread(new Uint8Array(SPAN), PLACES[31]! * SPAN);
    // The budget holds this span and the first guess; seven others queue.
    await until(() => inflater.running === 2);
    const second = source.pread(new Uint8Array(SPAN), PLACES[40]! * SPAN);
    gate.resolve();
    await Promise.all([first, second]);
    await settled(inflater);
    const order = inflater.jobs.slice(known).map((job) => job.priority);
    assert.deepEqual(order.slice(0, 4), [
      "demand",
      "prefetch",
      "demand",
      "prefetch",
    ]);
  }, { inFlightBytes: 2 * SPAN });
});

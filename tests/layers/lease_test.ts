/** Memory that is used again: nobody may see what it holds next. */

import assert from "node:assert/strict";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  CancelledError,
  equalBytes,
  ObdError,
  type ReadOptions,
} from "../../lib/io/mod.ts";
import {
  CachedSource,
  CacheStore,
  type CacheStoreOptions,
  type DataFile,
  Lease,
  MemoryCache,
} from "../../lib/layers/cache/mod.ts";
import { CodecPool } from "../../lib/compress/mod.ts";
import { GunzipSource, type SpanInflater } from "../../lib/layers/gunzip.ts";
import { SpanCache } from "../../lib/layers/span_source.ts";
import { SpareBuffers } from "../../lib/layers/spare_buffers.ts";
import { fileWith, tempStore } from "../testutil/cache_store.ts";
import {
  type GzipLayer,
  makeGzipLayer,
  sha256,
  TestInflater,
} from "../testutil/gzip_layer.ts";
import { seededBytes, seededRandom } from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";

// Also where the tests are started without their runner.
Deno.env.set("OBD_POISON_BUFFERS", "1");

const KIB = 1024;
const MIB = 1024 * KIB;
const SPAN = 64 * KIB;
const POISONED = 0xdb;

/** Leased bytes of one value, and whether they went back. */
function leased(length: number, value: number) {
  const bytes = new Uint8Array(length).fill(value);
  const made = {
    bytes,
    isBack: false,
    lease: new Lease(() => {
      made.isBack = true;
      bytes.fill(POISONED);
    }),
  };
  return made;
}

/** Without the endless comparison of large arrays that differ. */
function mustBe(dst: Uint8Array, offset: number): void {
  const want = CONTENT.subarray(offset, offset + dst.length);
  assert.ok(equalBytes(dst, want), `wrong bytes at ${offset}+${dst.length}`);
}

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

Deno.test("Lease goes back with its last release, and throws when it is misused", () => {
  let times = 0;
  const lease = new Lease(() => times++);
  lease.retain();
  lease.release();
  const end = lease.lend();
  end();
  end();
  assert.equal(times, 0);
  lease.release();
  assert.equal(times, 1);
  end();
  assert.throws(() => lease.release(), /released twice/);
  assert.throws(() => lease.retain(), /after its end/);
  assert.equal(times, 1);
});

Deno.test("Lease: one that ended keeps no memory from the collector", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const buffers = new SpareBuffers(MIB);
  const cache = new MemoryCache(MIB);
  const set = () => {
    const buffer = buffers.take(MIB)!;
    const lease = new Lease(() => buffers.give(buffer));
    const entry = cache.set("a", new Uint8Array(buffer), lease);
    lease.release();
    return entry;
  };
  const entry = set();
  cache.clear();
  await until(() => {
    collect();
    return buffers.bytes === 0;
  });
  assert.equal(entry.bytes, undefined);
});

Deno.test("SpareBuffers gives a buffer to one user at a time, and only where it fits", () => {
  const buffers = new SpareBuffers(4 * MIB);
  const small = buffers.take(1)!;
  const large = buffers.take(300_000)!;
  assert.ok(small.byteLength >= 1 && large.byteLength >= 300_000);
  assert.ok(buffers.take(1) !== small, "still in use");
  buffers.give(small);
  buffers.give(large);
  assert.ok(buffers.take(100_000) !== large, "most of it would be lost");
  assert.equal(buffers.take(300_000), large);
  assert.ok(buffers.take(300_000) !== large);
  assert.equal(buffers.take(1), small);
  assert.ok(buffers.take(1) !== small);
});

Deno.test("SpareBuffers: what went back is spoilt at once", () => {
  const buffers = new SpareBuffers(MIB);
  const buffer = buffers.take(1000)!;
  const view = new Uint8Array(buffer, 0, 1000);
  buffers.give(buffer);
  assert.ok(view.every((byte) => byte === POISONED));
});

Deno.test("SpareBuffers makes no more memory than its bound", () => {
  const buffers = new SpareBuffers(MIB);
  const held = Array.from({ length: 4 }, () => buffers.take(256 * KIB));
  assert.ok(held.every((buffer) => buffer !== undefined));
  assert.equal(buffers.bytes, MIB);
  assert.equal(buffers.take(1), undefined);
  buffers.give(held.pop()!);
  assert.ok(buffers.take(256 * KIB), "what went back is there again");
});

Deno.test("MemoryCache holds a lease until it evicts, and counts all of the memory", () => {
  const cache = new MemoryCache(4000);
  const items = [1, 2, 3].map((value) => leased(1500, value));
  const entries = items.map(({ bytes, lease }, i) => {
    const entry = cache.set(`${i}`, bytes, lease);
    lease.release();
    return entry;
  });
  assert.deepEqual(items.map((item) => item.isBack), [true, false, false]);
  assert.equal(entries[0]!.bytes, undefined);
  // Of bytes that are known by their key already, nothing is kept.
  const again = leased(1500, 3);
  assert.equal(cache.set("2", again.bytes, again.lease), entries[2]);
  again.lease.release();
  assert.ok(again.isBack && !items[2]!.isBack);
  cache.clear();
  cache.drop(entries[1]!);
  assert.ok(items.every((item) => item.isBack));
  assert.equal(cache.bytes, 0);
  cache.set("part", new Uint8Array(3000).subarray(0, 10));
  assert.equal(cache.bytes, 3000);
});

/** A data file whose writes wait, and fail where told. */
function slowFile(gate: () => Promise<unknown>) {
  return (file: DataFile): DataFile =>
    fileWith(file, {
      pwrite: async (src, offset) => {
        await gate();
        await file.pwrite(src, offset);
      },
    });
}

Deno.test("CacheStore holds a lease until its write has ended, also when the entry is dropped meanwhile", async () => {
  const gate = Promise.withResolvers<void>();
  await using store = await tempStore({
    sizeBytes: 16 * MIB,
    wrapFile: slowFile(() => gate.promise),
  });
  const items = [1, 2, 3].map((value) => leased(1000, value));
  const entries = items.map(({ bytes, lease }, i) => {
    const entry = store.put(`${i}`, bytes, sha256(bytes), lease)!;
    lease.release();
    return entry;
  });
  const known = leased(1000, 1);
  assert.equal(
    store.put("0", known.bytes, undefined, known.lease),
    entries[0],
  );
  known.lease.release();
  assert.ok(known.isBack, "nothing is kept of what is known");
  await tick();
  const whole = await store.readAll(entries[0]!);
  store.drop(entries[0]!); // being written
  store.drop(entries[2]!); // queued
  assert.ok(items.every((item) => !item.isBack));
  gate.resolve();
  await store.settled();
  assert.ok(items.every((item) => item.isBack));
  assert.deepEqual(whole, new Uint8Array(1000).fill(1), "a copy of it");
  const dst = new Uint8Array(1000);
  assert.ok(await store.pread(entries[1]!, dst, 0));
  assert.deepEqual(dst, new Uint8Array(1000).fill(2));
  assert.ok(!await store.pread(entries[0]!, dst, 0));
});

Deno.test("CacheStore lets go of what a failing disk did not take, and keeps nothing that it refuses", async () => {
  const gate = Promise.withResolvers<void>();
  gate.promise.catch(() => {}); // it may be rejected before it is waited for
  await using store = await tempStore({
    sizeBytes: 16 * MIB,
    wrapFile: slowFile(() => gate.promise),
    queueBytes: 3000,
  });
  const items = [1, 2, 3, 4].map((value) => leased(1000, value));
  const entries = items.map(({ bytes, lease }, i) => {
    const entry = store.put(`${i}`, bytes, undefined, lease);
    lease.release();
    return entry;
  });
  assert.equal(entries[3], undefined);
  assert.deepEqual(items.map((i) => i.isBack), [false, false, false, true]);
  gate.reject(new Error("disk failed"));
  await store.settled();
  assert.ok(items.every((item) => item.isBack));
  assert.ok(entries.slice(0, 3).every((entry) => entry!.state === "dead"));
});

/** Decodes after a random while, in memory that it is given, like a thread: also when nobody waits any more. */
class RandomInflater implements SpanInflater {
  readonly #inner = new TestInflater();
  readonly #random: () => number;
  readonly running = new Set<Promise<unknown>>();
  /** Jobs that used memory again, which others had before. */
  reused = 0;
  readonly #seen = new WeakSet<ArrayBufferLike>();

  constructor(random: () => number) {
    this.#random = random;
  }

  inflateSpan(job: Parameters<SpanInflater["inflateSpan"]>[0]) {
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    if (job.output) {
      if (this.#seen.has(job.output.buffer)) this.reused++;
      this.#seen.add(job.output.buffer);
    }
    const work = (async () => {
      for (let n = this.#random() * 4; n > 1; n--) await tick();
      // Half of a job that was called off has run: it writes all the same.
      const bytes = await this.#inner.inflateSpan(job);
      resolve(bytes);
    })().catch(reject);
    this.running.add(work);
    work.finally(() => this.running.delete(work));
    const onAbort = () => reject(new CancelledError());
    job.signal?.addEventListener("abort", onAbort, { once: true });
    return promise.finally(() =>
      job.signal?.removeEventListener("abort", onAbort)
    );
  }
}

interface Storm {
  name: string;
  seed: number;
  memoryBytes: number;
  store?: Partial<CacheStoreOptions>;
  /** Of the writes of the store, those that fail. */
  failing?: number;
  /** Of the reads, those that are called off. */
  cancelled?: number;
  /** Of the spans, the first that is wrong in the blob. */
  wrongSpan?: number;
  /** Whether the layer is closed under its readers. */
  closes?: boolean;
}

const CONTENT = seededBytes(40 * SPAN + 777, 11);
for (let i = 0; i < CONTENT.length; i += 3) CONTENT[i] = 65;
// The value that spoilt memory has does not occur in what is read.
for (let i = 0; i < CONTENT.length; i++) {
  if (CONTENT[i] === POISONED) CONTENT[i] = 0;
}
const LAYER: GzipLayer = makeGzipLayer(CONTENT, SPAN);

/** Many readers of few spans at once, all compared. @returns How often memory was used again. */
async function rage(storm: Storm): Promise<number> {
  const random = seededRandom(storm.seed);
  await using store = storm.store &&
    await tempStore({
      sizeBytes: 16 * MIB,
      retryMs: 1,
      wrapFile: slowFile(async () => {
        await tick();
        if (random() < (storm.failing ?? 0)) throw new Error("disk failed");
      }),
      ...storm.store,
    });
  const blob = LAYER.blob.slice();
  if (storm.wrongSpan !== undefined) {
    blob[LAYER.checkpoints.compressedOffset(storm.wrongSpan) + 100]! ^= 1;
  }
  const inflater = new RandomInflater(random);
  const source = new GunzipSource(
    new CachedSource(new TestSource(blob), { key: LAYER.digest }),
    {
      digest: LAYER.digest,
      spans: LAYER.spans,
      checkpoints: LAYER.checkpoints,
      inflater,
      cache: new SpanCache({ store, memoryBytes: storm.memoryBytes }),
    },
  );
  let closing: Promise<void> | undefined;
  let left = 400;
  const reader = async () => {
    while (left-- > 0) {
      if (storm.closes && left === 100) {
        closing = source[Symbol.asyncDispose]();
      }
      const length = 1 + Math.floor(random() * (random() < 0.1 ? 3 : 1) * SPAN);
      const offset = Math.floor(random() * (CONTENT.length - length));
      const dst = new Uint8Array(length);
      const control = new AbortController();
      const isCancelled = random() < (storm.cancelled ?? 0);
      const reading = source.pread(dst, offset, { signal: control.signal });
      if (isCancelled) {
        tick().then(() => random() < 0.5 ? tick() : undefined)
          .then(() => control.abort());
      }
      try {
        await reading;
      } catch (error) {
        assert.ok(error instanceof ObdError, String(error));
        const allowed = [
          ...(isCancelled || closing ? ["cancelled"] : []),
          ...(closing ? ["state"] : []),
          ...(storm.wrongSpan === undefined ? [] : ["integrity"]),
        ];
        assert.ok(allowed.includes(error.code), error.message);
        if (closing) return;
        continue;
      }
      mustBe(dst, offset);
      // Later, too: what was read is the reader's.
      await tick();
      mustBe(dst, offset);
    }
  };
  try {
    await Promise.all(Array.from({ length: 12 }, reader));
  } finally {
    await (closing ?? source[Symbol.asyncDispose]());
    await Promise.all(inflater.running);
  }
  await checkStored(store, storm);
  return inflater.reused;
}

/** What was written is what should have been, whatever became of the memory that it came from. */
async function checkStored(
  store: CacheStore | undefined,
  storm: Storm,
): Promise<void> {
  await store?.settled();
  for (let i = 0; store && i < LAYER.spans.count; i++) {
    const digest = LAYER.spans.digestOf(i)!;
    const entry = store.get(`sha256:${digest.toHex()}`);
    if (!entry || i === storm.wrongSpan) {
      assert.ok(entry === undefined);
      continue;
    }
    assert.equal(entry.state, "ready");
    const bytes = await store.readAll(entry);
    assert.deepEqual(sha256(bytes!), new Uint8Array(digest), `span ${i}`);
  }
}

const STORMS: Omit<Storm, "seed">[] = [
  { name: "no memory and no store", memoryBytes: 1 },
  { name: "evictions", memoryBytes: 4 * SPAN },
  { name: "a store", memoryBytes: 2 * SPAN, store: {} },
  {
    name: "a small store and a short queue",
    memoryBytes: 2 * SPAN,
    store: { sizeBytes: MIB, queueBytes: 3 * SPAN },
  },
  {
    name: "readers that leave",
    memoryBytes: 2 * SPAN,
    store: { sizeBytes: MIB },
    cancelled: 0.4,
  },
  {
    name: "a failing disk",
    memoryBytes: 2 * SPAN,
    store: {},
    failing: 0.3,
    cancelled: 0.1,
  },
  {
    name: "a wrong span",
    memoryBytes: 2 * SPAN,
    store: {},
    wrongSpan: 5,
    cancelled: 0.1,
  },
  {
    name: "a layer that is closed",
    memoryBytes: 3 * SPAN,
    store: {},
    closes: true,
    cancelled: 0.1,
  },
];

for (const storm of STORMS) {
  Deno.test(`Spans in memory that is used again are right: ${storm.name}`, async () => {
    let reused = 0;
    for (let seed = 1; seed <= 4; seed++) {
      reused += await rage({ ...storm, seed });
    }
    assert.ok(reused > 5, `memory was used again ${reused} times`);
  });
}

Deno.test("A reader that comes when a span has landed and is evicted already makes it anew", async () => {
  const gate = Promise.withResolvers<void>();
  const inflater = new TestInflater();
  inflater.gate = gate.promise;
  await using source = new GunzipSource(new TestSource(LAYER.blob.slice()), {
    digest: LAYER.digest,
    spans: LAYER.spans,
    checkpoints: LAYER.checkpoints,
    inflater,
    cache: new SpanCache({ memoryBytes: 1 }),
    readaheadBytes: 0,
  });
  const read = async (offset: number) => {
    const dst = new Uint8Array(100);
    await source.pread(dst, offset);
    mustBe(dst, offset);
  };
  const reads = [read(5), read(SPAN + 5)];
  while (inflater.running < 2) await tick();
  gate.resolve();
  // One in each turn, so that some come between landing and what follows it.
  for (let turn = 0; turn < 60; turn++) {
    await Promise.resolve();
    reads.push(read(5), read(SPAN + 5));
  }
  await Promise.all(reads);
});

/** Comes in pieces, some of which break off. */
class ArrivingSource extends TestSource {
  readonly #random = seededRandom(5);

  async preadProgressive(
    dst: Uint8Array,
    offset: number,
    onProgress: (available: number) => void,
    options: ReadOptions = {},
  ): Promise<void> {
    for (let at = 0; at < dst.length;) {
      const length = Math.min(dst.length - at, 50 * KIB);
      await this.pread(dst.subarray(at, at + length), offset + at, options);
      onProgress(at += length);
      if (this.#random() < 0.5) await tick();
      if (options.signal?.aborted) throw new CancelledError();
    }
  }
}

Deno.test("Spans from threads in memory that is used again are right, also of readers that leave while they arrive", async () => {
  const layer = makeGzipLayer(seededBytes(8 * MIB, 12), 256 * KIB);
  using pool = new CodecPool({ threads: 2 });
  const random = seededRandom(3);
  let streams = 0;
  for (let round = 0; round < 4; round++) {
    await using store = await tempStore({ sizeBytes: 64 * MIB });
    await using source = new GunzipSource(
      new CachedSource(new ArrivingSource(layer.blob), { key: layer.digest }),
      {
        digest: layer.digest,
        spans: layer.spans,
        checkpoints: layer.checkpoints,
        inflater: {
          inflateSpan: (job) => pool.inflateSpan(job),
          streamSpan: (job) => {
            const stream = pool.streamSpan(job);
            if (stream && job.output) streams++;
            return stream;
          },
        },
        cache: new SpanCache({ store, memoryBytes: MIB }),
      },
    );
    await Promise.all(Array.from({ length: 8 }, async () => {
      for (let n = 0; n < 30; n++) {
        const offset = Math.floor(random() * (layer.content.length - 5000));
        const dst = new Uint8Array(5000);
        const signal = random() < 0.3
          ? AbortSignal.timeout(random() * 8)
          : undefined;
        const isDone = await source.pread(dst, offset, { signal }).then(
          () => true,
          (error) => {
            assert.ok(signal && error instanceof CancelledError, String(error));
            return false;
          },
        );
        const want = layer.content.subarray(offset, offset + 5000);
        assert.ok(!isDone || equalBytes(dst, want), `wrong bytes at ${offset}`);
      }
    }));
  }
  assert.ok(streams > 0, `${streams} spans were decoded as they came`);
});

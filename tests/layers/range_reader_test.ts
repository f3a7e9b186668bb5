import assert from "node:assert/strict";
import {
  type ByteSource,
  CancelledError,
  type ReadOptions,
  Urgency,
} from "../../lib/io/mod.ts";
import { CachedSource, CacheStore } from "../../lib/layers/cache/mod.ts";
import { tempStore } from "../testutil/cache_store.ts";
import {
  seededBytes,
  testSourceContract,
} from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";

const BLOCK = 4096;
const CONTENT = seededBytes(40 * BLOCK, 5);

function open(
  store?: CacheStore,
): { source: CachedSource; inner: TestSource } {
  const inner = new TestSource(CONTENT);
  const source = new CachedSource(inner, {
    key: "sha256:x",
    store,
    blockSize: BLOCK,
    maxFetchBytes: 4 * BLOCK,
  });
  return { source, inner };
}

/** Reads a range once and says whether it was right. */
async function once(
  source: CachedSource,
  offset: number,
  length: number,
  options?: ReadOptions,
): Promise<void> {
  const dst = new Uint8Array(length);
  await source.preadOnce(dst, offset, options);
  assert.deepEqual(dst, CONTENT.subarray(offset, offset + length));
}

/** The source as it is for a reader that reads everything once. */
class OnceSource implements ByteSource {
  readonly size: number;
  readonly #inner: CachedSource;

  constructor(inner: CachedSource) {
    this.#inner = inner;
    this.size = inner.size;
  }

  pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    return this.#inner.preadOnce(dst, offset, options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#inner[Symbol.asyncDispose]();
  }
}

testSourceContract("CachedSource.preadOnce()", async () => {
  const store = await tempStore();
  return {
    source: new OnceSource(open(store).source),
    content: CONTENT,
    cleanup: () => store[Symbol.asyncDispose](),
  };
});

Deno.test("CachedSource.preadOnce() fetches the range as it is and stores nothing", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  await once(source, 1000, 3 * BLOCK);
  assert.deepEqual(inner.reads, [
    { offset: 1000, length: 3 * BLOCK, priority: "demand" },
  ]);
  assert.equal(store.entryCount, 0);
  await once(source, 1000, 3 * BLOCK, { priority: "prefetch" });
  assert.equal(inner.reads[1]?.priority, "prefetch");
});

Deno.test("CachedSource.preadOnce() uses and joins what the cache has of the range", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  await source.pread(new Uint8Array(1), 2 * BLOCK);
  await once(source, 1000, 3 * BLOCK);
  assert.deepEqual(
    inner.reads.slice(1).map((r) => [r.offset, r.length]),
    [[0, 2 * BLOCK], [3 * BLOCK, BLOCK]],
    "all but the block that is there",
  );
  // A block on its way is not fetched beside it.
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const block = source.pread(new Uint8Array(1), 20 * BLOCK);
  const range = once(source, 20 * BLOCK + 5, BLOCK - 5);
  gate.resolve();
  await Promise.all([block, range]);
  assert.equal(inner.reads.length, 4);
});

Deno.test("CachedSource.preadOnce() reads adjacent ranges of one turn together, up to the bound", async () => {
  const { source, inner } = open();
  await using _ = source;
  // The second and the third share a byte.
  await Promise.all([
    once(source, 2 * BLOCK, BLOCK),
    once(source, 0, BLOCK),
    once(source, BLOCK, BLOCK + 1),
    once(source, 3 * BLOCK, BLOCK, { priority: "prefetch" }),
    once(source, 4 * BLOCK, BLOCK),
    once(source, 5 * BLOCK, 10 * BLOCK, { priority: "prefetch" }),
    once(source, 15 * BLOCK + 1, BLOCK, { priority: "prefetch" }),
  ]);
  assert.deepEqual(
    inner.reads.map((r) => [r.offset / BLOCK, r.length / BLOCK, r.priority]),
    [
      [0, 3, "demand"],
      [3, 1, "prefetch"], // of another priority
      [4, 1, "demand"],
      [5, 10, "prefetch"], // larger than the bound: alone
      [15 + 1 / BLOCK, 1, "prefetch"], // not adjacent
    ],
  );
});

Deno.test("CachedSource.preadOnce(): one that leaves does not end the run, all that leave do", async () => {
  const { source, inner } = open();
  await using _ = source;
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const [first, second] = [new AbortController(), new AbortController()];
  const run = (at: number) => [
    once(source, at * BLOCK, BLOCK, { signal: first.signal }),
    once(source, (at + 1) * BLOCK, BLOCK, { signal: second.signal }),
  ];
  const left = run(0);
  await new Promise((resolve) => setTimeout(resolve, 0));
  first.abort();
  await assert.rejects(left[0]!, CancelledError);
  gate.resolve();
  await left[1];
  // Called off before it began: the other one is read alone.
  const late = run(8);
  await assert.rejects(late[0]!, CancelledError);
  await late[1];
  assert.deepEqual(
    inner.reads.map((r) => [r.offset / BLOCK, r.length / BLOCK]),
    [[0, 2], [9, 1]],
  );
  // Nobody is left.
  inner.gate = new Promise(() => {});
  const third = new AbortController();
  const options = { signal: third.signal };
  const gone = [
    once(source, 16 * BLOCK, BLOCK, options),
    once(source, 17 * BLOCK, BLOCK, options),
    once(source, 30 * BLOCK, BLOCK, options),
  ];
  await new Promise((resolve) => setTimeout(resolve, 0));
  assert.equal(inner.running, 2, "a run and a range alone");
  third.abort();
  for (const read of gone) await assert.rejects(read, CancelledError);
  assert.equal(inner.running, 0);
  assert.equal(inner.cancelled, 2);
});

Deno.test("CachedSource.preadOnce(): a run becomes demand with one of its ranges", async () => {
  const { source, inner } = open();
  await using _ = source;
  const seen: (Urgency | undefined)[] = [];
  const { pread } = inner;
  inner.pread = (dst, offset, options) => {
    seen.push(options?.urgency);
    return pread.call(inner, dst, offset, options);
  };
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const [one, other] = [new Urgency("prefetch"), new Urgency("prefetch")];
  const reads = [
    once(source, 0, BLOCK, { urgency: one }),
    once(source, BLOCK, BLOCK, { urgency: other }),
  ];
  await new Promise((resolve) => setTimeout(resolve, 0));
  assert.equal(seen.length, 1);
  assert.equal(seen[0]?.priority, "prefetch");
  other.hurry();
  assert.equal(seen[0]?.priority, "demand");
  gate.resolve();
  await Promise.all(reads);
});

Deno.test("CachedSource: closing fails what is read once, then disposes the inner source", async () => {
  const { source, inner } = open();
  inner.gate = new Promise(() => {});
  const reads = [
    once(source, 0, BLOCK),
    once(source, BLOCK, BLOCK),
    once(source, 9 * BLOCK, BLOCK),
  ];
  await new Promise((resolve) => setTimeout(resolve, 0));
  const failed = Promise.allSettled(reads);
  await source[Symbol.asyncDispose]();
  assert.equal(inner.running, 0);
  assert.equal(inner.disposed, 1);
  assert.ok((await failed).every((r) => r.status === "rejected"));
  await assert.rejects(once(source, 0, 1), { code: "state" });
});

Deno.test("CacheStore.hasRoomFor() is true while nothing need be evicted", async () => {
  await using store = await tempStore({ sizeBytes: 2 ** 20 });
  const bytes = seededBytes(2 ** 18, 1);
  for (let i = 0; i < 4; i++) {
    assert.ok(store.hasRoomFor(bytes.length), `entry ${i}`);
    assert.ok(store.put(`entry ${i}`, bytes));
  }
  assert.ok(!store.hasRoomFor(1), "queued entries count");
  await store.settled();
  assert.ok(!store.hasRoomFor(1), "full");
  assert.ok(!store.hasRoomFor(2 ** 19), "larger than is stored at all");
  store.drop(store.get("entry 0")!);
  assert.ok(store.hasRoomFor(bytes.length));
});

Deno.test("CachedSource.preadOnce() tells what has come of a range that is read alone", async () => {
  const { source, inner } = open();
  await using _ = source;
  const progressive: ByteSource = inner;
  const asked: number[] = [];
  progressive.preadProgressive = async (dst, offset, onProgress, options) => {
    asked.push(offset);
    onProgress(10);
    await inner.pread(dst, offset, options);
    onProgress(dst.length);
  };
  const told: [string, number][] = [];
  const read = (name: string, offset: number) =>
    source.preadOnce(
      new Uint8Array(BLOCK),
      offset,
      {},
      (available) => told.push([name, available]),
    );
  await read("alone", 3 * BLOCK + 5);
  assert.deepEqual(told, [["alone", 10], ["alone", BLOCK]]);
  assert.deepEqual(asked, [3 * BLOCK + 5]);
  // What others need too comes at once.
  await Promise.all([read("one", 0), read("two", BLOCK)]);
  assert.equal(told.length, 2);
  // And from a source that does not say.
  delete progressive.preadProgressive;
  await read("plain", 7 * BLOCK);
  assert.equal(told.length, 2);
});

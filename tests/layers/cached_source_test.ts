import assert from "node:assert/strict";
import {
  ByteBudget,
  CancelledError,
  FileSource,
  MemorySource,
  priorityOf,
  type ReadOptions,
  SliceSource,
} from "../../lib/io/mod.ts";
import { CachedSource, CacheStore } from "../../lib/layers/cache/mod.ts";
import { tempStore } from "../testutil/cache_store.ts";
import {
  seededBytes,
  type SourceCase,
  testSourceContract,
} from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";

const KIB = 1024;
const BLOCK = 4 * KIB;

/** A store whose directory goes away with it. */
async function withStore(
  run: (store: CacheStore) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "obd-cached-" });
  try {
    await using store = await CacheStore.open({
      directory,
      sizeBytes: 64 * 2 ** 20,
      keepFreeBytes: 0,
    });
    await run(store);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function cachedCase(
  bytes: number,
  blockSize: number,
  stored: boolean,
): Promise<SourceCase> {
  const content = seededBytes(bytes, 3);
  const store = stored ? await tempStore() : undefined;
  const source = new CachedSource(new TestSource(content), {
    key: "sha256:x",
    store,
    blockSize,
  });
  return {
    source,
    content,
    cleanup: async () => await store?.[Symbol.asyncDispose](),
  };
}

testSourceContract(
  "CachedSource",
  () => cachedCase(1_000_001, 64 * KIB, true),
);
testSourceContract(
  "CachedSource without a store",
  () => cachedCase(300_001, 4 * KIB, false),
);
testSourceContract("CachedSource, empty", () => cachedCase(0, 4 * KIB, true));

testSourceContract("MemorySource", () => {
  const content = seededBytes(500_000, 1);
  return Promise.resolve({ source: new MemorySource(content), content });
});
testSourceContract("SliceSource", () => {
  const content = seededBytes(500_000, 1);
  return Promise.resolve({
    source: new SliceSource(new MemorySource(content), 1234, 400_000),
    content: content.subarray(1234, 401_234),
  });
});
testSourceContract("FileSource", async () => {
  const path = await Deno.makeTempFile();
  const content = seededBytes(500_000, 1);
  await Deno.writeFile(path, content);
  return {
    source: await FileSource.open(path),
    content,
    cleanup: () => Deno.remove(path),
  };
});

function gate(): { open: () => void; wait: Promise<void> } {
  let open = () => {};
  const wait = new Promise<void>((resolve) => open = resolve);
  return { open, wait };
}

/** Reads as servers do, and compares. @returns Whether it had to wait. */
async function readRight(
  source: CachedSource,
  inner: TestSource,
  offset: number,
  length: number,
): Promise<boolean> {
  const dst = new Uint8Array(length);
  const waits = !source.preadNow(dst, offset);
  if (waits) await source.pread(dst, offset);
  assert.deepEqual(dst, inner.content.subarray(offset, offset + length));
  return waits;
}

async function turn(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 0));
}

Deno.test("CachedSource fetches a block once, however often it is wanted", () =>
  withStore(async (store) => {
    const inner = new TestSource(seededBytes(20 * BLOCK, 1));
    const { open, wait } = gate();
    inner.gate = wait;
    await using source = new CachedSource(inner, {
      key: "a",
      store,
      blockSize: BLOCK,
    });
    const reads = Array.from({ length: 30 }, async (_, i) => {
      const dst = new Uint8Array(100);
      await source.pread(dst, 5 * BLOCK + i);
      assert.deepEqual(
        dst,
        inner.content.subarray(5 * BLOCK + i, 5 * BLOCK + i + 100),
      );
    });
    await turn();
    open();
    await Promise.all(reads);
    assert.deepEqual(inner.reads, [
      { offset: 5 * BLOCK, length: BLOCK, priority: "demand" },
    ]);
    // And from the cache afterwards, also through another source.
    await store.settled();
    const dst = new Uint8Array(BLOCK);
    assert.ok(source.preadNow(dst, 5 * BLOCK));
    assert.deepEqual(dst, inner.content.subarray(5 * BLOCK, 6 * BLOCK));
    await using again = new CachedSource(new TestSource(inner.content), {
      key: "a",
      store,
      blockSize: BLOCK,
    });
    assert.ok(again.preadNow(dst, 5 * BLOCK));
    assert.equal(inner.reads.length, 1);
  }));

Deno.test("CachedSource joins adjacent blocks of one and of several reads", async () => {
  const inner = new TestSource(seededBytes(64 * BLOCK, 1));
  await using source = new CachedSource(inner, {
    key: "a",
    blockSize: BLOCK,
    maxFetchBytes: 8 * BLOCK,
  });
  await Promise.all([
    source.pread(new Uint8Array(3 * BLOCK), 10 * BLOCK),
    source.pread(new Uint8Array(10), 13 * BLOCK + 5),
    source.pread(new Uint8Array(BLOCK), 9 * BLOCK),
    source.pread(new Uint8Array(20 * BLOCK), 30 * BLOCK + 1),
  ]);
  assert.deepEqual(
    inner.reads.map((r) => [r.offset / BLOCK, r.length / BLOCK]),
    [
      [9, 5],
      [30, 8],
      [38, 8],
      [46, 5],
    ],
  );
});

Deno.test("CachedSource serves demand before prefetch and hurries what is joined", async () => {
  const inner = new TestSource(seededBytes(100 * BLOCK, 1));
  const { open, wait } = gate();
  inner.gate = wait;
  await using source = new CachedSource(inner, {
    key: "a",
    blockSize: BLOCK,
    maxFetchBytes: BLOCK,
  });
  const one = (block: number, priority: "demand" | "prefetch") =>
    source.pread(new Uint8Array(1), block * BLOCK, { priority });
  const reads = Array.from({ length: 12 }, (_, i) => one(i * 2, "prefetch"));
  await turn();
  assert.equal(inner.running, 8);
  reads.push(one(50, "demand"), one(22, "demand"));
  await turn();
  // Demand does not wait for prefetch that is under way.
  assert.equal(inner.running, 10);
  open();
  await Promise.all(reads);
  assert.equal(inner.mostRunning, 10);
  assert.deepEqual(
    inner.reads.slice(8).map((r) => [r.offset / BLOCK, r.priority]),
    [[50, "demand"], [22, "demand"], [16, "prefetch"], [18, "prefetch"], [
      20,
      "prefetch",
    ]],
  );
});

Deno.test("CachedSource hurries a fetch that the source below still keeps waiting", async () => {
  const inner = new TestSource(seededBytes(10 * BLOCK, 1));
  const { open, wait } = gate();
  inner.gate = wait;
  const seen: ReadOptions[] = [];
  const pread = inner.pread.bind(inner);
  inner.pread = (dst, offset, options = {}) => {
    seen.push(options);
    return pread(dst, offset, options);
  };
  await using source = new CachedSource(inner, { key: "a", blockSize: BLOCK });
  const reads = [
    source.pread(new Uint8Array(2 * BLOCK), 0, { priority: "prefetch" }),
    source.pread(new Uint8Array(1), 5 * BLOCK, { priority: "prefetch" }),
  ];
  await turn();
  reads.push(source.pread(new Uint8Array(1), BLOCK));
  await turn();
  assert.deepEqual(seen.map(priorityOf), ["demand", "prefetch"]);
  open();
  await Promise.all(reads);
});

Deno.test("CachedSource keeps the bytes in flight within the budget", async () => {
  const inner = new TestSource(seededBytes(100 * BLOCK, 1));
  const budget = new ByteBudget(3 * BLOCK);
  let most = 0;
  const pread = inner.pread.bind(inner);
  inner.pread = async (...args) => {
    most = Math.max(most, budget.taken);
    await turn();
    await pread(...args);
  };
  await using source = new CachedSource(inner, {
    key: "a",
    blockSize: BLOCK,
    maxFetchBytes: 2 * BLOCK,
    budget,
  });
  const dst = new Uint8Array(inner.size);
  await source.pread(dst, 0);
  assert.deepEqual(dst, inner.content);
  assert.ok(most <= 3 * BLOCK && most > 0);
  assert.ok(inner.mostRunning <= 2);
  assert.equal(budget.taken, 0);
});

Deno.test("CachedSource: a cancelled read stops its fetch, unless another waits", async () => {
  const inner = new TestSource(seededBytes(10 * BLOCK, 1));
  inner.gate = new Promise(() => {});
  await using source = new CachedSource(inner, { key: "a", blockSize: BLOCK });
  const a = new AbortController();
  const b = new AbortController();
  const first = source.pread(new Uint8Array(1), 0, { signal: a.signal });
  const second = source.pread(new Uint8Array(1), 1, { signal: b.signal });
  first.catch(() => {});
  second.catch(() => {});
  await turn();
  a.abort();
  await assert.rejects(first, CancelledError);
  await turn();
  assert.equal(inner.cancelled, 0);
  b.abort();
  await assert.rejects(second, CancelledError);
  await turn();
  assert.equal(inner.cancelled, 1);
  inner.gate = Promise.resolve();
  const dst = new Uint8Array(1);
  await source.pread(dst, 0);
  assert.equal(dst[0], inner.content[0]);

  // Another block of the same fetch is still wanted: it goes on.
  const { open, wait } = gate();
  inner.gate = wait;
  const c = new AbortController();
  const left = source.pread(dst, 4 * BLOCK, { signal: c.signal });
  const right = source.pread(dst, 5 * BLOCK + 9);
  left.catch(() => {});
  await turn();
  c.abort();
  await assert.rejects(left, CancelledError);
  open();
  await right;
  assert.equal(dst[0], inner.content[5 * BLOCK + 9]);
  assert.equal(inner.cancelled, 1);
  assert.deepEqual(inner.reads.at(-1), {
    offset: 4 * BLOCK,
    length: 2 * BLOCK,
    priority: "demand",
  });
});

Deno.test("CachedSource: a failed fetch fails its readers and is not remembered", () =>
  withStore(async (store) => {
    const inner = new TestSource(seededBytes(10 * BLOCK, 1));
    await using source = new CachedSource(inner, {
      key: "a",
      store,
      blockSize: BLOCK,
    });
    inner.failure = new Error("no network");
    const dst = new Uint8Array(3 * BLOCK);
    await assert.rejects(source.pread(dst, 0), /no network/);
    inner.failure = undefined;
    await source.pread(dst, 0);
    assert.deepEqual(dst, inner.content.subarray(0, 3 * BLOCK));
  }));

Deno.test("CachedSource.discard() makes it read again", () =>
  withStore(async (store) => {
    const inner = new TestSource(seededBytes(10 * BLOCK, 1));
    await using source = new CachedSource(inner, {
      key: "a",
      store,
      blockSize: BLOCK,
    });
    const dst = new Uint8Array(BLOCK);
    await source.pread(dst, 0);
    inner.content[0]! ^= 1;
    await source.pread(dst, 0);
    assert.notEqual(dst[0], inner.content[0]);
    assert.ok(source.discard(10, 1));
    await source.pread(dst, 0);
    assert.equal(dst[0], inner.content[0]);
    await store.settled();
    assert.ok(source.discard(0, inner.size));
    assert.ok(!source.discard(0, inner.size));
  }));

Deno.test("CachedSource: blocks of another size or blob are not mixed up", () =>
  withStore(async (store) => {
    const one = new TestSource(seededBytes(10 * BLOCK, 1));
    const two = new TestSource(seededBytes(10 * BLOCK, 2));
    const short = one.content.subarray(0, 9 * BLOCK + 7);
    const sources = [
      // The same name for a shorter blob: its last block has another length.
      new CachedSource(new TestSource(short), {
        key: "a",
        store,
        blockSize: BLOCK,
      }),
      new CachedSource(one, { key: "a", store, blockSize: BLOCK }),
      new CachedSource(one, { key: "a", store, blockSize: 2 * BLOCK }),
      new CachedSource(two, { key: "b", store, blockSize: BLOCK }),
    ];
    for (const [i, source] of sources.entries()) {
      const dst = new Uint8Array(source.size);
      await source.pread(dst, 0);
      const want = (i === 3 ? two : one).content.subarray(0, source.size);
      assert.deepEqual(dst, want, `source ${i}`);
    }
    for (const source of sources) await source[Symbol.asyncDispose]();
  }));

Deno.test("CachedSource: eviction under load never gives wrong bytes", async () => {
  await using store = await tempStore({ sizeBytes: 2 ** 20 });
  const inner = new TestSource(seededBytes(4_000_000, 1));
  await using source = new CachedSource(inner, {
    key: "a",
    store,
    blockSize: 64 * KIB,
  });
  const lane = async (seed: number) => {
    for (let i = 0; i < 60; i++) {
      const offset = (i * 611_953 + seed * 77_777) % 3_900_000;
      await readRight(source, inner, offset, 100_000);
    }
  };
  await Promise.all([1, 2, 3, 4].map(lane));
  await store.settled();
  assert.ok(store.stats.evictions > 10);
});

Deno.test("CachedSource reads ahead of a sequential reader when told to and when it can keep it", () =>
  withStore(async (store) => {
    const inner = new TestSource(seededBytes(6_000_000, 1));
    await using source = new CachedSource(inner, {
      key: "a",
      store,
      blockSize: 16 * BLOCK,
      readaheadBytes: 2_000_000,
    });
    const dst = new Uint8Array(8 * BLOCK);
    let waited = 0;
    let furthest = 0;
    for (let at = 0; at + dst.length <= 5_000_000; at += dst.length) {
      if (await readRight(source, inner, at, dst.length)) waited++;
      await turn();
      for (const read of inner.reads) {
        const end = read.offset + read.length;
        furthest = Math.max(furthest, end - at);
      }
    }
    // A reader proves itself by 256 KiB; from then on blocks are there first.
    assert.ok(waited < 15, `${waited} reads waited`);
    assert.ok(furthest <= 2_000_000 + 2 * 2 ** 20, `${furthest} bytes ahead`);
    const ahead = inner.reads.filter((r) => r.priority === "prefetch");
    assert.ok(ahead.length > 2, `${ahead.length} reads ahead`);
    const fetched = inner.reads.reduce((sum, r) => sum + r.length, 0);
    assert.ok(fetched <= inner.size, "a block was fetched twice");
    // Random reads, and a source that keeps nothing: nothing ahead.
    for (const options of [{ store }, {}]) {
      const other = new TestSource(seededBytes(6_000_000, 2));
      await using random = new CachedSource(other, {
        key: "b",
        blockSize: 16 * BLOCK,
        readaheadBytes: 2_000_000,
        ...options,
      });
      const step = options.store ? 1_000_000 : dst.length;
      for (let i = 0; i < 12; i++) {
        const at = options.store ? (i * 7 % 5) * step : i * step;
        await random.pread(dst, at);
        await turn();
      }
      assert.ok(other.reads.every((r) => r.priority === "demand"));
    }
  }));

Deno.test("CachedSource fetches nothing ahead while the store takes nothing: it would be fetched twice", async () => {
  // Too little space, always.
  await using store = await tempStore({ keepFreeBytes: 2 ** 52 });
  store.put("first", new Uint8Array(1));
  await store.settled();
  const inner = new TestSource(seededBytes(6_000_000, 1));
  await using source = new CachedSource(inner, {
    key: "a",
    store,
    blockSize: 16 * BLOCK,
    readaheadBytes: 2_000_000,
  });
  await source.prefetch(0, inner.size);
  assert.equal(inner.bytesRead, 0);
  const length = 16 * BLOCK;
  for (let at = 0; at + length <= inner.size; at += length) {
    await readRight(source, inner, at, length);
    await turn();
  }
  assert.ok(inner.bytesRead <= inner.size, `${inner.bytesRead} bytes`);
});

Deno.test("CachedSource.prefetch() brings blocks to the store, behind demand, once", () =>
  withStore(async (store) => {
    const inner = new TestSource(seededBytes(40 * BLOCK, 1));
    await using source = new CachedSource(inner, {
      key: "a",
      store,
      blockSize: BLOCK,
      maxFetchBytes: 8 * BLOCK,
    });
    await source.pread(new Uint8Array(1), 3 * BLOCK);
    await source.prefetch(2 * BLOCK - 1, 10 * BLOCK);
    assert.deepEqual(
      inner.reads.map((r) => [r.offset / BLOCK, r.length / BLOCK, r.priority]),
      [[3, 1, "demand"], [1, 2, "prefetch"], [4, 8, "prefetch"]],
    );
    const dst = new Uint8Array(10 * BLOCK);
    assert.ok(source.preadNow(dst, 2 * BLOCK - 1));
    await source.prefetch(BLOCK, 11 * BLOCK);
    assert.equal(inner.reads.length, 3);
    inner.failure = new TypeError("a defect");
    await assert.rejects(source.prefetch(20 * BLOCK, 1), TypeError);
    await assert.rejects(source.prefetch(40 * BLOCK, 1), RangeError);
    const bare = new TestSource(seededBytes(40 * BLOCK, 1));
    await using keeping = new CachedSource(bare, { key: "b" });
    await keeping.prefetch(0, 10 * BLOCK);
    assert.equal(bare.reads.length, 0);
  }));

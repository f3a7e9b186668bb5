import assert from "node:assert/strict";
import { ByteBudget, CancelledError } from "../../lib/io/mod.ts";
import { CachedSource, CacheStore } from "../../lib/layers/cache/mod.ts";
import { PieceFetcher } from "../../lib/layers/cache/piece_fetcher.ts";
import { StoredBlocks } from "../../lib/layers/cache/stored_blocks.ts";
import { ReadStats } from "../../lib/layers/read_stats.ts";
import { tempStore } from "../testutil/cache_store.ts";
import {
  seededBytes,
  testSourceContract,
} from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";

const PIECE = 64 * 1024;
/** Four pieces. */
const BLOCK = 4 * PIECE;
/** The last block has two pieces, the last piece 5 bytes. */
const CONTENT = seededBytes(20 * BLOCK + PIECE + 5, 11);

function open(
  store?: CacheStore,
  options: { budget?: ByteBudget; stats?: ReadStats } = {},
): { source: CachedSource; inner: TestSource } {
  const inner = new TestSource(CONTENT);
  const source = new CachedSource(inner, {
    key: "sha256:x",
    store,
    blockSize: BLOCK,
    ...options,
  });
  return { source, inner };
}

/** One without a source on top of it, which fetches one block at once. */
function openFetcher(
  store?: CacheStore,
): { fetcher: PieceFetcher; inner: TestSource } {
  const inner = new TestSource(CONTENT);
  const held = new StoredBlocks({
    store,
    key: "x",
    size: inner.size,
    blockSize: BLOCK,
  });
  const fetcher = new PieceFetcher(inner, held, {
    maxBlocks: 1,
    budget: new ByteBudget(2 ** 20),
    stats: undefined,
  });
  return { fetcher, inner };
}

/** Reads and compares a range. */
async function check(
  source: CachedSource,
  offset: number,
  length = 1,
  options?: Parameters<CachedSource["pread"]>[2],
): Promise<void> {
  const dst = new Uint8Array(length);
  await source.pread(dst, offset, options);
  assert.deepEqual(dst, CONTENT.subarray(offset, offset + length));
}

/** What was fetched: first piece, pieces, `d`emand or `p`refetch. */
function fetched(inner: TestSource): string[] {
  return inner.reads.map(({ offset, length, priority }) => {
    assert.equal(offset % PIECE, 0);
    return `${offset / PIECE}+${Math.ceil(length / PIECE)}${priority[0]}`;
  });
}

async function turn(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 0));
}

/** Keeps reads of blocks 10, 12, 14, 16 under way until it is let go; what they fetched is forgotten. */
async function occupy(
  source: CachedSource,
  inner: TestSource,
): Promise<() => Promise<void>> {
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const reads = [10, 12, 14, 16].map((block) => check(source, block * BLOCK));
  await turn();
  assert.deepEqual(fetched(inner), ["40+4d", "48+4d", "56+4d", "64+4d"]);
  inner.reads.length = 0;
  return async () => {
    gate.resolve();
    await Promise.all(reads);
  };
}

testSourceContract("CachedSource, blocks of several pieces", async () => {
  const store = await tempStore();
  return {
    source: open(store).source,
    content: CONTENT,
    cleanup: () => store[Symbol.asyncDispose](),
  };
});
testSourceContract(
  "CachedSource, blocks of several pieces without a store",
  () => Promise.resolve({ source: open().source, content: CONTENT }),
);

Deno.test("CachedSource fetches the block around a lone read, counted whole and stored as one", async () => {
  await using store = await tempStore();
  const budget = new ByteBudget(2 ** 25);
  const stats = new ReadStats();
  const { source, inner } = open(store, { budget, stats });
  await using _ = source;
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const read = check(source, 9 * PIECE + 7, 100);
  await turn();
  assert.equal(budget.taken, BLOCK);
  gate.resolve();
  await read;
  assert.equal(budget.taken, 0);
  assert.deepEqual(fetched(inner), ["8+4d"]);
  assert.equal(store.entryCount, 1);
  const { loads, storedBytes, bytes } = stats.counters().demand;
  assert.deepEqual([loads, storedBytes, bytes], [1, BLOCK, BLOCK]);
  const dst = new Uint8Array(BLOCK);
  for (const state of ["in memory", "written"]) {
    assert.ok(source.preadNow(dst, 2 * BLOCK), state);
    assert.deepEqual(dst, CONTENT.subarray(2 * BLOCK, 3 * BLOCK));
    await store.settled();
  }
  // The last block ends early.
  await check(source, CONTENT.length - 1);
  assert.equal(fetched(inner).at(-1), "80+2d");
  // A range over two blocks is one fetch of both.
  await check(source, 4 * BLOCK + 3 * PIECE, 2 * PIECE);
  assert.equal(fetched(inner).at(-1), "16+8d");
  assert.equal(inner.reads.length, 3);
});

Deno.test("CachedSource fetches no more than is wanted while four others wait, the rest when somebody comes to it", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  const release = await occupy(source, inner);
  const reads = [
    check(source, PIECE + 5),
    check(source, 6 * PIECE - 1, 2),
    check(source, CONTENT.length - 1),
  ];
  await turn();
  assert.deepEqual(fetched(inner), ["1+1d", "5+2d", "81+1d"]);
  await release();
  await Promise.all(reads);
  assert.equal(store.entryCount, 4 + 1 + 2 + 1);
  inner.reads.length = 0;
  // What is there is not fetched again: the block around it comes in parts.
  await check(source, 0);
  await check(source, 2 * PIECE);
  await check(source, BLOCK, BLOCK);
  await check(source, 80 * PIECE);
  assert.deepEqual(fetched(inner), ["0+1d", "2+2d", "4+1d", "7+1d", "80+1d"]);
  await check(source, 0, 4 * BLOCK);
  await check(source, 80 * PIECE, PIECE + 5);
  assert.deepEqual(fetched(inner).slice(5), ["8+8d"]);
});

Deno.test("CachedSource without a store keeps the four blocks that came last", async () => {
  const { source, inner } = open();
  await using _ = source;
  for (const block of [0, 1, 2, 3, 4]) await check(source, block * BLOCK, 9);
  for (const block of [4, 3, 2, 1]) await check(source, block * BLOCK, BLOCK);
  assert.equal(inner.reads.length, 5);
  await check(source, BLOCK - 1);
  assert.equal(inner.reads.length, 6);
});

Deno.test("CachedSource: many reads at once come by the piece, a long range by the block", async () => {
  const { source, inner } = open();
  await using _ = source;
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const reads = Array.from({ length: 12 }, (_, i) => check(source, i * BLOCK));
  await turn();
  // Those behind in the queue count too: the first sees eleven others.
  assert.ok(inner.reads.every(({ length }) => length === PIECE));
  assert.equal(inner.reads.length, 12);
  gate.resolve();
  await Promise.all(reads);
  // A long range is one run, however many pieces it has.
  inner.reads.length = 0;
  await check(source, 15 * BLOCK + PIECE, 10 * PIECE);
  assert.deepEqual(fetched(inner), ["60+12d"]);
});

Deno.test("CachedSource: who comes to a piece on its way joins its fetch, and keeps it when others leave", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const [first, second] = [new AbortController(), new AbortController()];
  const left = [
    check(source, 5 * PIECE, 1, { signal: first.signal }),
    check(source, 5 * PIECE + 9, 1, { signal: second.signal }),
  ];
  await turn();
  const joined = check(source, 7 * PIECE, PIECE);
  await turn();
  first.abort();
  second.abort();
  for (const read of left) await assert.rejects(read, CancelledError);
  // Nobody waits for piece 5, and still it is not fetched a second time.
  const again = check(source, 5 * PIECE, 10);
  await turn();
  assert.deepEqual(fetched(inner), ["4+4d"]);
  gate.resolve();
  await Promise.all([joined, again]);
  assert.equal(inner.cancelled, 0);

  // All leave: the fetch ends, and what only came along is not joined any more.
  inner.gate = new Promise(() => {});
  const third = new AbortController();
  const gone = check(source, 20 * PIECE, 1, { signal: third.signal });
  await turn();
  third.abort();
  inner.gate = Promise.resolve();
  await Promise.all([
    check(source, 21 * PIECE),
    assert.rejects(gone, CancelledError),
  ]);
  assert.equal(inner.cancelled, 1);
  assert.deepEqual(fetched(inner).slice(1), ["20+4d", "20+4d"]);
});

Deno.test("CachedSource does not fetch again what comes along with another piece", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  const release = await occupy(source, inner);
  inner.gate = new Promise(() => {});
  const leaves = new AbortController();
  const gone = check(source, PIECE, 1, { signal: leaves.signal });
  await turn();
  await release();
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const reads = [check(source, 3 * PIECE)];
  await turn();
  leaves.abort();
  await assert.rejects(gone, CancelledError);
  reads.push(check(source, 0));
  await turn();
  // Nobody has asked for piece 2 itself.
  assert.deepEqual(fetched(inner), ["1+1d", "2+2d", "0+2d"]);
  gate.resolve();
  await Promise.all(reads);
});

Deno.test("CachedSource: a failed fetch fails those who joined it, and what came along is fetched anew", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  inner.failure = new Error("no network");
  const reads = [check(source, 0)];
  await turn();
  reads.push(check(source, 3 * PIECE));
  const failed = Promise.allSettled(reads);
  gate.resolve();
  for (const { status } of await failed) assert.equal(status, "rejected");
  inner.failure = undefined;
  await check(source, 2 * PIECE);
  assert.deepEqual(fetched(inner), ["0+4d", "0+4d"]);
});

Deno.test("CachedSource.prefetch() goes by the block however much waits, and gives a waiting reader the block at once", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  const release = await occupy(source, inner);
  const fifth = check(source, 18 * BLOCK);
  await turn();
  assert.deepEqual(fetched(inner), ["72+1d"]);
  inner.reads.length = 0;
  const ahead = [source.prefetch(2 * BLOCK + PIECE, 1)];
  await turn();
  assert.deepEqual(fetched(inner), ["8+4p"]);
  // In one turn: the rest of block 4 is wanted anyway, block 5 is left to prefetch.
  ahead.push(source.prefetch(17 * PIECE, 4 * PIECE));
  const read = check(source, 18 * PIECE);
  await turn();
  assert.deepEqual(fetched(inner).slice(1), ["17+3d", "20+4p"]);
  await release();
  await Promise.all([...ahead, read, fifth]);
  assert.equal(inner.reads.length, 3);
});

Deno.test("CachedSource: blocks and pieces are found again by another source, with and without the other size", async () => {
  await using store = await tempStore();
  {
    const { source, inner } = open(store);
    await using _ = source;
    const release = await occupy(source, inner);
    const piece = check(source, 5 * PIECE);
    await turn();
    await release();
    await piece;
    await check(source, 0);
    await check(source, CONTENT.length - 1);
  }
  const { source, inner } = open(store);
  await using _ = source;
  const dst = new Uint8Array(10);
  for (const at of [0, BLOCK - 10, 5 * PIECE, 80 * PIECE]) {
    assert.ok(source.preadNow(dst, at), `${at}`);
    assert.deepEqual(dst, CONTENT.subarray(at, at + 10));
  }
  assert.ok(!source.preadNow(dst, 5 * PIECE - 1), "beyond what is there");
  // Over a whole block, what is missing of one, and the piece that is there.
  await check(source, 100, 6 * PIECE);
  assert.deepEqual(fetched(inner), ["4+1d", "6+2d"]);
  assert.ok(source.discard(BLOCK - 1, 2), "a block and a piece");
  assert.ok(!source.preadNow(dst, 0) && source.preadNow(dst, 5 * PIECE));
  assert.ok(!source.discard(0, BLOCK + PIECE));
  // A reader of pieces only finds the pieces, and no block by mistake.
  const small = new TestSource(CONTENT);
  await using pieces = new CachedSource(small, {
    key: "sha256:x",
    store,
    blockSize: PIECE,
  });
  await check(pieces, 5 * PIECE, PIECE);
  assert.equal(small.reads.length, 0);
  await check(pieces, 80 * PIECE);
  assert.deepEqual(fetched(small), ["80+1d"]);
});

Deno.test("CachedSource: an entry that goes away under a read is fetched, of a block by its pieces", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  await check(source, 0);
  await store.settled();
  store.preadNow = () => false;
  store.pread = (entry) => {
    store.drop(entry);
    return Promise.resolve(false);
  };
  await check(source, 100, 3 * PIECE);
  assert.deepEqual(fetched(inner), ["0+4d", "0+4d"]);
});

Deno.test("CachedSource: random readers that come and go get right bytes, each piece once", async () => {
  await using store = await tempStore();
  const { source, inner } = open(store);
  await using _ = source;
  const { pread } = inner;
  const times = new Map<number, number>();
  let running = 0;
  let most = 0;
  inner.pread = async (dst, offset, options) => {
    for (let at = 0; at < dst.length; at += PIECE) {
      const piece = (offset + at) / PIECE;
      times.set(piece, (times.get(piece) ?? 0) + 1);
    }
    most = Math.max(most, ++running);
    // Order of arrival is not the order of asking.
    const turns = 1 + (offset / PIECE) % 5;
    for (let i = 0; i < turns; i++) await turn();
    await pread.call(inner, dst, offset, options);
    running--;
  };
  const lane = async (seed: number, count: number) => {
    for (let i = 0; i < count; i++) {
      const offset = (i * 1_611_953 + seed * 777_777) % 5_200_000;
      const length = 1 + (i * 40_009 + seed * 13) % 100_000;
      // A signal that stays silent: readers hold what they wait for.
      const { signal } = new AbortController();
      if (i % 7 === 3) await source.prefetch(offset, length);
      else await check(source, offset, length, { signal });
    }
  };
  await Promise.all([0, 1].map((i) => lane(i, 3)));
  await Promise.all(Array.from({ length: 12 }, (_, i) => lane(2 + i, 25)));
  assert.ok([...times.values()].every((n) => n === 1), "fetched twice");
  assert.ok(most > 4, `${most} fetches at once`);
  const sizes = new Set(inner.reads.map(({ length }) => length));
  assert.ok(sizes.has(PIECE) && sizes.has(BLOCK), `${[...sizes]}`);
});

Deno.test("CachedSource: blocks and pieces that are evicted under load never give wrong bytes", async () => {
  await using store = await tempStore({ sizeBytes: 2 ** 20 });
  const { source, inner } = open(store);
  await using _ = source;
  const { pread } = inner;
  inner.pread = async (...args) => {
    await turn();
    await pread.apply(inner, args);
  };
  const lane = async (seed: number) => {
    for (let i = 0; i < 40; i++) {
      const offset = (i * 611_953 + seed * 777_777) % 5_100_000;
      const dst = new Uint8Array(1 + (i * 40_009 + seed * 13) % 200_000);
      if (!source.preadNow(dst, offset)) await source.pread(dst, offset);
      const want = CONTENT.subarray(offset, offset + dst.length);
      assert.deepEqual(dst, want);
    }
  };
  await lane(0);
  // So many wait at once that pieces come alone.
  const gate = Promise.withResolvers<void>();
  inner.gate = gate.promise;
  const lanes = Array.from({ length: 8 }, (_, i) => lane(1 + i));
  await until(() => inner.running > 5);
  gate.resolve();
  await Promise.all(lanes);
  await store.settled();
  assert.ok(store.stats.evictions > 10, `${store.stats.evictions} evictions`);
  const sizes = new Set(inner.reads.map(({ length }) => length));
  assert.ok(sizes.has(PIECE) && sizes.has(BLOCK), `${[...sizes]}`);
});

Deno.test("PieceFetcher: who hurries what has come already keeps nothing busy", async () => {
  await using store = await tempStore();
  const { fetcher, inner } = openFetcher(store);
  for (let block = 0; block < 5; block++) {
    const flight = fetcher.flightOf(4 * block);
    await flight.join();
    await turn();
    flight.urgency.hurry();
  }
  inner.reads.length = 0;
  const flight = fetcher.flightOf(41);
  flight.urgency.hurry();
  await flight.join();
  assert.deepEqual(
    fetched(inner),
    ["40+4d"],
    "around it, as nothing else runs",
  );
  await fetcher.close();
});

Deno.test("PieceFetcher: who hurries a flight that was given up fetches nothing", async () => {
  const { fetcher, inner } = openFetcher();
  const control = new AbortController();
  const left = fetcher.flightOf(5);
  const leaving = left.join(control.signal);
  control.abort();
  await assert.rejects(leaving, CancelledError);
  const next = fetcher.flightOf(5);
  left.urgency.hurry();
  assert.deepEqual(await next.join(), CONTENT.subarray(5 * PIECE, 6 * PIECE));
  for (let i = 0; i < 5; i++) await turn();
  assert.deepEqual(fetched(inner), ["4+4p"], "once, and as prefetch");
  await fetcher.close();
});

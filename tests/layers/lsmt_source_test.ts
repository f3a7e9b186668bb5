import assert from "node:assert/strict";
import {
  KIND,
  LsmtSource,
  SegmentColumns,
  stackVirtualSize,
} from "../../lib/layers/lsmt/mod.ts";
import { type ByteSource, MemorySource } from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";
import { WaitingSource } from "../testutil/sources.ts";

const SECTORS = 400;
const SIZE = SECTORS * 512;

function noise(random: () => number, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => 1 + Math.floor(random() * 255));
}

/** A random stack and the flat device that it must equal. */
function randomStack(
  seed: number,
  make: (bytes: Uint8Array) => ByteSource,
): { stack: LsmtSource; shadow: Uint8Array; mapped: Uint8Array } {
  const random = seeded(seed);
  const shadow = new Uint8Array(SIZE);
  const mapped = new Uint8Array(SECTORS); // 0 hole, 1 zeroed, 2 data
  const layers = Array.from({ length: 1 + Math.floor(random() * 5) }, () => {
    const data = noise(random, 100 * 512);
    // Ends inside a sector, and before some of what is mapped: zeros follow.
    const target = noise(random, 60 * 512 + 77);
    const columns = new SegmentColumns(0);
    for (let at = Math.floor(random() * 9); at < SECTORS;) {
      const length = Math.min(1 + Math.floor(random() * 20), SECTORS - at);
      const kind = Math.floor(random() * 3);
      const moffset = Math.floor(random() * 80);
      columns.pushJoined(at, length, moffset, kind, 0);
      const from = kind === KIND.data ? data : target;
      for (let i = at * 512; i < (at + length) * 512; i++) {
        shadow[i] = kind === KIND.zeroed
          ? 0
          : from[moffset * 512 + i - at * 512] ?? 0;
      }
      mapped.fill(kind === KIND.zeroed ? 1 : 2, at, at + length);
      at += length + Math.floor(random() * 12);
    }
    return { table: columns.finish(), data: make(data), target: make(target) };
  });
  return { stack: new LsmtSource(layers, SIZE), shadow, mapped };
}

for (
  const [name, make] of [
    ["waiting sources", (b: Uint8Array) => new WaitingSource(b)],
    ["sources at once", (b: Uint8Array) => new MemorySource(b)],
  ] as const
) {
  Deno.test(`LsmtSource equals a flat array over ${name}`, async () => {
    for (let seed = 1; seed <= 40; seed++) {
      const { stack, shadow } = randomStack(seed, make);
      const random = seeded(seed + 1000);
      await using _ = stack;
      const whole = new Uint8Array(SIZE).fill(0xee);
      await stack.pread(whole, 0);
      assert.deepEqual(whole, shadow, `seed ${seed}`);
      await Promise.all(Array.from({ length: 30 }, async () => {
        const offset = Math.floor(random() * SIZE);
        const length = Math.floor(random() ** 3 * (SIZE - offset + 1));
        const got = new Uint8Array(length + 2).fill(0xee);
        await stack.pread(got.subarray(1, length + 1), offset);
        assert.deepEqual(
          got.subarray(1, length + 1),
          shadow.subarray(offset, offset + length),
        );
        assert.equal(got[0], 0xee);
        assert.equal(got[length + 1], 0xee);
      }));
    }
  });
}

Deno.test("LsmtSource.preadNow() serves requests whose sources all can", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const { stack, shadow } = randomStack(seed, (b) => new MemorySource(b));
    const got = new Uint8Array(5000);
    for (let offset = 0; offset + 5000 <= SIZE; offset += 3333) {
      assert.equal(stack.preadNow(got, offset), true);
      assert.deepEqual(got, shadow.subarray(offset, offset + 5000));
    }
  }
  const { stack, mapped } = randomStack(3, (b) => new WaitingSource(b));
  const sector = new Uint8Array(512);
  for (let i = 0; i < SECTORS; i++) {
    // Without a waiting source in it, a hole is served at once all the same.
    if (mapped[i] !== 2) assert.equal(stack.preadNow(sector, i * 512), true);
  }
  assert.equal(stack.preadNow(sector, mapped.indexOf(2) * 512), false);
});

Deno.test("LsmtSource.extents() are maximal, gapless and right", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const { stack, mapped } = randomStack(seed, (b) => new MemorySource(b));
    const random = seeded(seed);
    const from = Math.floor(random() * SIZE);
    const length = Math.floor(random() * (SIZE - from + 1));
    let at = from;
    let before = "";
    for (const extent of stack.extents(from, length)) {
      assert.equal(extent.offset, at);
      assert.ok(extent.length > 0);
      assert.notEqual(extent.kind, before);
      before = extent.kind;
      for (let i = at; i < at + extent.length; i += 100) {
        const want = mapped[Math.floor(i / 512)] === 2 ? "data" : "hole";
        assert.equal(extent.kind, want, `seed ${seed} at ${i}`);
      }
      at += extent.length;
    }
    assert.equal(at, from + length);
  }
});

Deno.test("LsmtSource refuses ranges outside the device", async () => {
  const { stack } = randomStack(1, (b) => new MemorySource(b));
  for (const [offset, length] of [[SIZE, 1], [-1, 1], [SIZE - 1, 2]] as const) {
    await assert.rejects(
      stack.pread(new Uint8Array(length), offset),
      RangeError,
    );
    assert.throws(
      () => stack.preadNow(new Uint8Array(length), offset),
      RangeError,
    );
  }
  await stack.pread(new Uint8Array(0), SIZE);
  assert.deepEqual([...stack.extents(SIZE, 0)], []);
});

Deno.test("LsmtSource rejects only when no inner read is under way", async () => {
  const data = new WaitingSource(new Uint8Array(64 * 512).fill(1));
  const columns = new SegmentColumns(0);
  for (let i = 0; i < 30; i++) columns.push(i * 2, 1, 60 - i * 2, KIND.data, 0);
  const layer = { table: columns.finish(), data };
  await using stack = new LsmtSource([layer], 64 * 512);
  data.failAt = 58 * 512; // the second piece
  data.slowness = 500;
  await assert.rejects(
    stack.pread(new Uint8Array(64 * 512), 0),
    /injected/,
  );
  assert.equal(data.active, 0);
  assert.ok(data.peak > 10, `${data.peak} reads at once`);
});

Deno.test("LsmtSource waits for its reads when an inner one throws at once", async () => {
  const data = new WaitingSource(new Uint8Array(64 * 512).fill(1));
  data.slowness = 500;
  const columns = new SegmentColumns(0);
  columns.push(0, 1, 3, KIND.data, 0);
  columns.push(1, 1, 0, KIND.target, 0);
  const target: ByteSource = {
    size: 512,
    pread() {
      throw new Error("thrown, not rejected");
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  const layer = { table: columns.finish(), data, target };
  await using stack = new LsmtSource([layer], 1024);
  await assert.rejects(stack.pread(new Uint8Array(1024), 0), /thrown/);
  assert.equal(data.active, 0);
});

Deno.test("LsmtSource bounds the reads of one request", async () => {
  const data = new WaitingSource(new Uint8Array(4096).fill(1));
  const columns = new SegmentColumns(0);
  for (let i = 0; i < 1000; i++) columns.push(i * 2, 1, 3, KIND.data, 0);
  const layer = { table: columns.finish(), data };
  await using stack = new LsmtSource([layer], 2000 * 512);
  const got = new Uint8Array(2000 * 512).fill(9);
  await stack.pread(got, 0);
  assert.equal(data.peak, 256);
  for (let i = 0; i < 2000; i++) assert.equal(got[i * 512 + 511], (i + 1) % 2);
});

Deno.test("LsmtSource stops between batches when cancelled", async () => {
  const data = new WaitingSource(new Uint8Array(4096).fill(1));
  const columns = new SegmentColumns(0);
  for (let i = 0; i < 1000; i++) columns.push(i * 2, 1, 3, KIND.data, 0);
  const layer = { table: columns.finish(), data };
  await using stack = new LsmtSource([layer], 2000 * 512);
  await assert.rejects(
    stack.pread(new Uint8Array(2000 * 512), 0, {
      signal: AbortSignal.abort(),
    }),
    { code: "cancelled" },
  );
});

Deno.test("LsmtSource refuses target rows without a target", () => {
  const columns = new SegmentColumns(1);
  columns.push(0, 1, 0, KIND.target, 0);
  const layer = {
    table: columns.finish(),
    data: new MemorySource(new Uint8Array(0)),
  };
  assert.throws(() => new LsmtSource([layer], 512), TypeError);
});

Deno.test("LsmtSource disposes every source once", async () => {
  const sources: WaitingSource[] = [];
  const { stack } = randomStack(5, (bytes) => {
    const source = new WaitingSource(bytes);
    sources.push(source);
    return source;
  });
  await stack[Symbol.asyncDispose]();
  assert.ok(sources.length >= 2);
  assert.ok(sources.every((source) => source.disposed === 1));
});

Deno.test("stackVirtualSize() is that of the highest layer that has one", () => {
  const sizes = (...list: number[]) =>
    stackVirtualSize(list.map((virtualSize) => ({ virtualSize })));
  assert.equal(sizes(5, 0, 0), 5);
  assert.equal(sizes(5, 7, 0), 7);
  assert.equal(sizes(0, 0), 0);
  assert.equal(sizes(), 0);
});

Deno.test("SegmentTable.nextUnmapped() passes over rows that touch", () => {
  const columns = new SegmentColumns(4);
  columns.push(8, 8, 8, KIND.data, 0);
  columns.push(16, 4, 0, KIND.zeroed, 0);
  columns.push(24, 8, 16, KIND.data, 0);
  const table = columns.finish();
  assert.equal(table.nextUnmapped(0), 0);
  assert.equal(table.nextUnmapped(8 * 512), 20 * 512);
  assert.equal(table.nextUnmapped(17 * 512 + 3), 20 * 512);
  assert.equal(table.nextUnmapped(20 * 512), 20 * 512);
  assert.equal(table.nextUnmapped(25 * 512), 32 * 512);
  assert.equal(table.nextUnmapped(40 * 512), 40 * 512);
});

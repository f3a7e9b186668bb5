/** One suite that every `ByteSource` passes. */

import assert from "node:assert/strict";
import {
  type ByteSource,
  CancelledError,
  equalBytes,
  loadLibc,
} from "../../lib/io/mod.ts";

// Opened here, for good: inside a test the sanitizer would call it a leak.
loadLibc();

/** A source under test and what it must read as. */
export interface SourceCase {
  source: ByteSource;
  content: Uint8Array;
  /** Runs after the source was disposed. */
  cleanup?: () => Promise<void>;
}

/** A small deterministic generator (mulberry32): numbers in [0, 1). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Bytes that differ everywhere, the same for the same seed. */
export function seededBytes(
  length: number,
  seed: number,
): Uint8Array<ArrayBuffer> {
  const random = seededRandom(seed);
  const bytes = new Uint8Array(length);
  const words = new Uint32Array(bytes.buffer, 0, length >>> 2);
  for (let i = 0; i < words.length; i++) words[i] = random() * 2 ** 32;
  for (let i = words.length * 4; i < length; i++) bytes[i] = random() * 256;
  return bytes;
}

/** Reads one range, at once where that can be and then as everybody can, and compares it. */
async function readEqual(
  { source, content }: SourceCase,
  offset: number,
  length: number,
): Promise<void> {
  const want = content.subarray(offset, offset + length);
  // A guard on both sides: a source must not write outside `dst`.
  const guarded = new Uint8Array(length + 16);
  const dst = guarded.subarray(8, 8 + length);
  const check = () => {
    assert.ok(equalBytes(dst, want), `at ${offset}, ${length} bytes`);
    for (let i = 0; i < 8; i++) {
      assert.equal(guarded[i], 0xa5, "written before dst");
      assert.equal(guarded[8 + length + i], 0xa5, "written behind dst");
    }
  };
  guarded.fill(0xa5);
  if (source.preadNow?.(dst, offset)) check();
  guarded.fill(0xa5);
  await source.pread(dst, offset);
  check();
}

/** Registers the suite's tests for one kind of source. */
export function testSourceContract(
  name: string,
  make: () => Promise<SourceCase>,
): void {
  const test = (what: string, run: (c: SourceCase) => Promise<void>) =>
    Deno.test(`${name}: ${what}`, async () => {
      const subject = await make();
      try {
        await run(subject);
      } finally {
        await subject.source[Symbol.asyncDispose]();
        await subject.cleanup?.();
      }
    });

  test("has the size of its content", (c) => {
    assert.equal(c.source.size, c.content.length);
    return Promise.resolve();
  });

  test("reads at every border", async (c) => {
    const { size } = c.source;
    await readEqual(c, 0, Math.min(1, size));
    await readEqual(c, 0, 0);
    await readEqual(c, size, 0);
    if (size > 0) await readEqual(c, size - 1, 1);
    await readEqual(c, 0, size);
    await readEqual(c, Math.min(1, size), Math.max(0, size - 2));
  });

  test("rejects ranges outside", async (c) => {
    const { size } = c.source;
    const outside = [[size, 1], [0, size + 1], [size + 1, 0], [-1, 1]];
    for (const [offset, length] of [...outside, [0.5, 1], [NaN, 1]]) {
      const dst = new Uint8Array(length!);
      await assert.rejects(
        async () => await c.source.pread(dst, offset!),
        RangeError,
        `offset ${offset}, length ${length}`,
      );
      if (!c.source.preadNow) continue;
      assert.throws(() => c.source.preadNow!(dst, offset!), RangeError);
    }
  });

  test("random reads equal a flat array", async (c) => {
    const random = seededRandom(1);
    for (let i = 0; i < 200; i++) {
      const offset = Math.floor(random() * c.content.length);
      const most = Math.min(c.content.length - offset, 400_000);
      await readEqual(c, offset, Math.floor(random() ** 3 * most));
    }
  });

  test("concurrent reads do not mix", async (c) => {
    const random = seededRandom(2);
    const reads = Array.from({ length: 100 }, () => {
      const offset = Math.floor(random() * c.content.length);
      const most = Math.min(c.content.length - offset, 300_000);
      return readEqual(c, offset, Math.floor(random() * most));
    });
    await Promise.all(reads);
  });

  test("a cancelled read fails or is right, and others go on", async (c) => {
    const gone = AbortSignal.abort();
    const control = new AbortController();
    const attempts = [gone, control.signal].map(async (signal) => {
      const dst = new Uint8Array(c.content.length);
      try {
        await c.source.pread(dst, 0, { signal });
      } catch (error) {
        assert.ok(error instanceof CancelledError, String(error));
        return;
      }
      assert.ok(equalBytes(dst, c.content));
    });
    const other = readEqual(c, 0, c.content.length);
    control.abort();
    await Promise.all([...attempts, other]);
    await readEqual(c, 0, c.content.length);
  });

  test("prefetch reads are reads", async (c) => {
    const dst = new Uint8Array(c.content.length);
    await c.source.pread(dst, 0, { priority: "prefetch" });
    assert.ok(equalBytes(dst, c.content));
  });

  test("is disposed twice, also with reads in flight", async (c) => {
    const dst = new Uint8Array(c.content.length);
    const reading = c.source.pread(dst, 0).then(() => true, () => false);
    await Promise.all([
      c.source[Symbol.asyncDispose](),
      c.source[Symbol.asyncDispose](),
    ]);
    if (await reading) assert.ok(equalBytes(dst, c.content));
  });

  test("extents, if any, cover a range in order", (c) => {
    if (!c.source.extents) return Promise.resolve();
    const { size } = c.source;
    const offset = Math.floor(size / 3);
    let at = offset;
    for (const e of c.source.extents(offset, size - offset)) {
      assert.equal(e.offset, at);
      assert.ok(e.length > 0);
      if (e.kind !== "data") {
        const part = c.content.subarray(at, at + e.length);
        assert.ok(part.every((b) => b === 0), "zero extent with data");
      }
      at += e.length;
    }
    assert.equal(at, size);
    return Promise.resolve();
  });
}

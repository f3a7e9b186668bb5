/** zstd layers of one large frame: decoded once into a pinned file. */

import assert from "node:assert/strict";
import { statfsSync } from "node:fs";
import { zstdCompressSync } from "node:zlib";
import {
  DeadlineError,
  IntegrityError,
  LimitError,
  ObdError,
  UnsupportedError,
} from "../../lib/io/mod.ts";
import {
  CachedSource,
  CacheStore,
  type LayerScan,
  type PinnedOptions,
  PinnedSource,
  PinnedStore,
  SpanTable,
} from "../../lib/layers/mod.ts";
import { tempStore } from "../testutil/cache_store.ts";
import { seededRandom } from "../testutil/source_contract.ts";
import { RecordingLogger, TestSource } from "../testutil/test_source.ts";
import { requiresMount } from "../testutil/requires.ts";
import { unmount } from "../testutil/unmount.ts";
import { withTempDir } from "../image/helpers.ts";
import { content, scan } from "./helpers.ts";

const MIB = 2 ** 20;
const TAR = content(5 * MIB + 12_345);
const BLOB = new Uint8Array(zstdCompressSync(TAR));
let scanned: LayerScan;

async function open(
  store: PinnedStore,
  inner: TestSource | CachedSource,
  more: Partial<PinnedOptions> = {},
): Promise<PinnedSource> {
  scanned ??= await scan(BLOB);
  return await PinnedSource.open(inner, {
    digest: scanned.blobDigest,
    diffId: scanned.diffId,
    spans: new SpanTable(
      scanned.spans.uncompressedOffset,
      scanned.tarSize,
      scanned.spans.sha256,
    ),
    compressedStart: 0,
    store,
    ...more,
  });
}

async function reads(
  source: PinnedSource,
  offset: number,
  length: number,
): Promise<void> {
  const dst = new Uint8Array(length);
  await source.pread(dst, offset);
  assert.ok(
    Buffer.compare(dst, TAR.subarray(offset, offset + length)) === 0,
    `${length} bytes at ${offset}`,
  );
}

/** A blob whose bytes from `limit` on are not to be had yet. */
class GatedSource extends TestSource {
  readonly #limit: number;
  readonly #opened = Promise.withResolvers<void>();

  constructor(bytes: Uint8Array, limit: number) {
    super(bytes);
    this.#limit = limit;
  }

  open(): void {
    this.#opened.resolve();
  }

  override async pread(
    dst: Uint8Array,
    offset: number,
    options: { signal?: AbortSignal } = {},
  ): Promise<void> {
    if (offset >= this.#limit) {
      const aborted = new Promise<never>((_, reject) => {
        const fail = () => reject(new ObdError("cancelled", "aborted"));
        if (options.signal?.aborted) fail();
        options.signal?.addEventListener("abort", fail, { once: true });
      });
      await Promise.race([this.#opened.promise, aborted]);
    }
    await super.pread(dst, offset, options);
  }
}

async function sh(command: string, ...args: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(command, { args })
    .output();
  assert.ok(success, new TextDecoder().decode(stderr));
}

function pinnedFile(dir: string): string {
  return `${dir}/${scanned.diffId.slice("sha256:".length)}.tar`;
}

Deno.test("reads in random order, many at once", async () => {
  await using store = await PinnedStore.open();
  await using source = await open(store, new TestSource(BLOB));
  const random = seededRandom(5);
  await Promise.all(Array.from({ length: 50 }, () => {
    const offset = Math.floor(random() * TAR.length);
    const length = Math.floor(random() * 100_000);
    return reads(source, offset, Math.min(length, TAR.length - offset));
  }));
  await reads(source, 0, TAR.length);
});

Deno.test("a read waits only until the decoder has passed it", async () => {
  await using store = await PinnedStore.open();
  const inner = new GatedSource(BLOB, MIB);
  await using source = await open(store, inner);
  await reads(source, 1000, 5000);
  let isThere = false;
  const last = reads(source, TAR.length - 100, 100).then(() => isThere = true);
  await reads(source, 0, 100_000);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(isThere, false);
  const control = new AbortController();
  const given = source.pread(new Uint8Array(10), 4 * MIB, {
    signal: control.signal,
  });
  control.abort();
  await assert.rejects(given, { code: "cancelled" });
  inner.open();
  await last;
});

Deno.test("a decoder that stands still fails its readers", async () => {
  await using store = await PinnedStore.open();
  await using source = await open(store, new GatedSource(BLOB, 0), {
    deadlineMs: 300,
  });
  await assert.rejects(reads(source, 0, 10), DeadlineError);
});

Deno.test("what was decoded stays, is checked, and is not written again", async () => {
  await withTempDir(async (dir) => {
    {
      // Closed in the middle, as after a crash.
      await using store = await PinnedStore.open({
        directory: dir,
        keepFreeBytes: 0,
      });
      await using source = await open(store, new GatedSource(BLOB, MIB));
      await reads(source, 0, 10);
    }
    {
      await using store = await PinnedStore.open({
        directory: dir,
        keepFreeBytes: 0,
      });
      await using source = await open(store, new TestSource(BLOB));
      await reads(source, 0, TAR.length);
    }
    const path = pinnedFile(dir);
    const writtenAt = async () => (await Deno.stat(path)).mtime!.getTime();
    const before = await writtenAt();
    {
      // All of it is there: the blob is not read at all.
      await using store = await PinnedStore.open({
        directory: dir,
        keepFreeBytes: 0,
      });
      const inner = new TestSource(BLOB);
      inner.failure = new ObdError("registry", "not reachable");
      await using source = await open(store, inner);
      await reads(source, 0, TAR.length);
      assert.equal(inner.reads.length, 0);
    }
    assert.equal(await writtenAt(), before);
    {
      using file = await Deno.open(path, { write: true });
      await file.seek(2 * MIB + 5, Deno.SeekMode.Start);
      await file.write(new Uint8Array(100));
    }
    {
      await using store = await PinnedStore.open({
        directory: dir,
        keepFreeBytes: 0,
      });
      await using source = await open(store, new TestSource(BLOB));
      await reads(source, 0, TAR.length);
    }
    assert.ok(await writtenAt() > before);
    assert.ok(Buffer.compare(await Deno.readFile(path), TAR) === 0);
  });
});

Deno.test("a process is killed while it decodes", async () => {
  await withTempDir(async (dir) => {
    scanned ??= await scan(BLOB);
    await Deno.writeFile(`${dir}/blob`, BLOB);
    const child = new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--no-check"],
        new URL("kill_child.ts", import.meta.url).pathname,
        ...[`${dir}/blob`, `${dir}/pinned`],
      ],
      stdin: "null",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const reader = child.stdout.getReader();
    const { value } = await reader.read();
    child.kill("SIGKILL");
    await child.status;
    await reader.cancel();
    assert.equal(new TextDecoder().decode(value).trim(), "reading");
    const left = await Deno.readFile(pinnedFile(`${dir}/pinned`));
    assert.equal(left.length, TAR.length);
    assert.ok(Buffer.compare(left, TAR) !== 0, "it was not in the middle");
    await using store = await PinnedStore.open({
      directory: `${dir}/pinned`,
      keepFreeBytes: 0,
    });
    assert.equal(store.usedBytes, TAR.length);
    await using source = await open(store, new TestSource(BLOB));
    await reads(source, TAR.length - 10, 10);
    await reads(source, 0, TAR.length);
  });
});

Deno.test("what a crash tore is not believed", async () => {
  await withTempDir(async (dir) => {
    scanned ??= await scan(BLOB);
    const torn = TAR.slice();
    torn.fill(0, 3 * MIB - 7, 3 * MIB + 9);
    await Deno.writeFile(pinnedFile(dir), torn);
    await using store = await PinnedStore.open({
      directory: dir,
      keepFreeBytes: 0,
    });
    await using source = await open(store, new TestSource(BLOB));
    await reads(source, 3 * MIB - 100, 200);
    await reads(source, 0, TAR.length);
  });
});

Deno.test("a changed byte is never served", async () => {
  await using store = await PinnedStore.open();
  const bad = BLOB.slice();
  bad[Math.floor(bad.length * 0.7)]! ^= 0x20;
  const logger = new RecordingLogger();
  const inner = new TestSource(bad);
  await using source = await open(store, inner, { logger, retryMs: 200 });
  await reads(source, 0, 2 * MIB);
  await assert.rejects(reads(source, 0, TAR.length), IntegrityError);
  await assert.rejects(
    reads(source, TAR.length - 10, 10),
    (error) =>
      error instanceof IntegrityError && /Span \d of layer/.test(error.message),
  );
  // Repaired, it is read again.
  inner.content.set(BLOB);
  await new Promise((resolve) => setTimeout(resolve, 250));
  await reads(source, 0, TAR.length);
});

Deno.test("a cache below that is to blame is read anew", async () => {
  await using blobs = await tempStore();
  const inner = new TestSource(BLOB.slice());
  inner.content[BLOB.length >> 1]! ^= 1;
  const cached = new CachedSource(inner, { key: "x", store: blobs });
  const all = new Uint8Array(BLOB.length);
  await cached.pread(all, 0);
  inner.content.set(BLOB);
  await using store = await PinnedStore.open();
  await using source = await open(store, cached);
  await reads(source, 0, TAR.length);
});

Deno.test("so is one whose damage a decoder calls unsupported", async () => {
  await using blobs = await tempStore();
  const inner = new TestSource(BLOB.slice());
  // The frame wants a dictionary, says its header.
  inner.content[4]! |= 1;
  const cached = new CachedSource(inner, { key: "x", store: blobs });
  await cached.pread(new Uint8Array(BLOB.length), 0);
  inner.content.set(BLOB);
  await using store = await PinnedStore.open();
  await using source = await open(store, cached);
  await reads(source, 0, TAR.length);
});

Deno.test("a source that cannot be read is not taken for wrong bytes", async () => {
  const inner = new TestSource(BLOB);
  inner.failure = new UnsupportedError("ranges", "no ranges");
  await using store = await PinnedStore.open();
  await using source = await open(store, inner);
  await assert.rejects(reads(source, 0, 10), /^UnsupportedError: no ranges/);
});

Deno.test("a layer that does not fit is refused, and room is taken from the cache", async () => {
  await withTempDir(async (dir) => {
    await using small = await CacheStore.open({
      directory: `${dir}/small`,
      sizeBytes: 20 * MIB,
      keepFreeBytes: 0,
    });
    await using tight = await PinnedStore.open({
      directory: `${dir}/small/pinned`,
      store: small,
      keepFreeBytes: 0,
    });
    await assert.rejects(
      open(tight, new TestSource(BLOB)),
      (error) =>
        error instanceof LimitError &&
        /does not|has room for/.test(error.message) &&
        error.message.includes("--convert-unseekable"),
    );
    await using full = await PinnedStore.open({ keepFreeBytes: 2 ** 52 });
    await assert.rejects(open(full, new TestSource(BLOB)), /the disk has/);

    await using store = await CacheStore.open({
      directory: `${dir}/cache`,
      sizeBytes: 24 * MIB,
      keepFreeBytes: 0,
    });
    for (let i = 0; i < 23; i++) {
      store.put(`k${i}`, content(MIB, i));
      await store.settled();
    }
    assert.equal(store.storedBytes, 23 * MIB);
    await using pinned = await PinnedStore.open({
      directory: `${dir}/cache/pinned`,
      store,
      keepFreeBytes: 0,
    });
    const source = await open(pinned, new TestSource(BLOB));
    await store.settled();
    assert.ok(store.storedBytes <= 19 * MIB, `${store.storedBytes} stored`);
    const blocks = (await Deno.stat(`${dir}/cache/data`)).blocks! * 512;
    assert.ok(blocks <= 19 * MIB, `${blocks} on the disk`);
    // Unused, it makes room for another layer.
    await source[Symbol.asyncDispose]();
    const other = await pinned.pin(`sha256:${"0".repeat(64)}`, 7 * MIB, 7);
    assert.equal(pinned.usedBytes, 7 * MIB);
    await other.release();
  });
});

Deno.test("what layers that are open will still take of the disk is not given to another", async () => {
  await withTempDir(async (dir) => {
    const { bavail, bsize } = statfsSync(dir);
    const half = Math.floor(bavail * bsize * 0.6);
    await using store = await PinnedStore.open({
      directory: `${dir}/pinned`,
      keepFreeBytes: 0,
    });
    const digest = (digit: string) => `sha256:${digit.repeat(64)}`;
    const first = await store.pin(digest("1"), half, 1);
    await assert.rejects(store.pin(digest("2"), half, 1), {
      name: "LimitError",
      message: /the disk has .* free, .* promised to other layers/,
    });
    // Unused, it makes room.
    await first.release();
    const second = await store.pin(digest("2"), half, 1);
    assert.equal(store.usedBytes, half);
    await second.release();
  });
});

Deno.test({
  name: "on a disk that the cache has filled, entries make room for a layer",
  ignore: !requiresMount(),
  fn: () =>
    withTempDir(async (dir) => {
      const disk = `${dir}/disk`;
      await Deno.mkdir(disk);
      await sh("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk);
      try {
        await using cache = await CacheStore.open({
          directory: disk,
          sizeBytes: 128 * MIB,
          keepFreeBytes: 8 * MIB,
        });
        for (let i = 0; i < 40; i++) {
          cache.put(`k${i}`, content(MIB, i));
          await cache.settled();
        }
        const before = cache.storedBytes;
        assert.ok(before >= 16 * MIB, `${before} stored`);
        await using store = await PinnedStore.open({
          directory: `${disk}/pinned`,
          store: cache,
          keepFreeBytes: 8 * MIB,
        });
        // Not for what does not fit anyway.
        await assert.rejects(
          store.pin(`sha256:${"0".repeat(64)}`, 40 * MIB, 1),
          LimitError,
        );
        assert.equal(cache.storedBytes, before);
        await using source = await open(store, new TestSource(BLOB));
        await reads(source, 0, TAR.length);
        assert.ok(cache.storedBytes > 0);
        const { bavail, bsize } = statfsSync(disk);
        assert.ok(bavail * bsize >= 8 * MIB, `${bavail * bsize} free`);
      } finally {
        await unmount(disk);
      }
    }),
});

Deno.test("a file that somebody removed is made anew, with its directory", async () => {
  await withTempDir(async (dir) => {
    await using store = await PinnedStore.open({
      directory: `${dir}/pinned`,
      keepFreeBytes: 0,
    });
    const readAll = async () => {
      await using source = await open(store, new TestSource(BLOB));
      await reads(source, 0, TAR.length);
    };
    await readAll();
    await Deno.remove(pinnedFile(`${dir}/pinned`));
    await readAll();
    await Deno.remove(`${dir}/pinned`, { recursive: true });
    await readAll();
    assert.equal(store.usedBytes, TAR.length);
  });
});

Deno.test("a file that somebody made shorter is filled anew, never read as zeros", async () => {
  await withTempDir(async (dir) => {
    await using store = await PinnedStore.open({
      directory: dir,
      keepFreeBytes: 0,
    });
    const logger = new RecordingLogger();
    const inner = new GatedSource(BLOB, MIB);
    await using source = await open(store, inner, { logger });
    await using other = await open(store, new TestSource(BLOB));
    // While it is being filled.
    await reads(source, 1000, 5000);
    await Deno.truncate(pinnedFile(dir), 0);
    inner.open();
    await reads(source, TAR.length - 5000, 5000);
    await reads(source, 0, TAR.length);
    // When it was full, for all who read it.
    for (const length of [0, 2 * MIB]) {
      await Deno.truncate(pinnedFile(dir), length);
      assert.equal(source.preadNow(new Uint8Array(10), 4 * MIB), false);
      await Promise.all([
        reads(source, 3 * MIB, 5000),
        reads(other, 0, TAR.length),
        reads(source, TAR.length - 10, 10),
      ]);
    }
    assert.ok(logger.count("pinned.lost") > 0);
  });
});

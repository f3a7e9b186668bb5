/** The index on disk while a cache is in use: what a crash would leave. */

import assert from "node:assert/strict";
import { CacheStore, type DataFile } from "../../lib/layers/cache/mod.ts";
import {
  type JournalEntry,
  readJournal,
} from "../../lib/layers/cache/journal.ts";
import { JournalFile } from "../../lib/layers/cache/journal_file.ts";
import { fileWith } from "../testutil/cache_store.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { RecordingLogger } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";

const MIB = 2 ** 20;
const INTERVAL_MS = 2;

/** A cache whose syncs end when the test says so. */
class SlowDisk {
  readonly logger = new RecordingLogger();
  /** Syncs that wait. */
  readonly syncs: (() => void)[] = [];
  /** Most syncs at once. */
  most = 0;
  /** Free space. */
  free = 1000 * MIB;

  constructor(readonly directory: string) {}

  open(): Promise<CacheStore> {
    return CacheStore.open({
      directory: this.directory,
      sizeBytes: 16 * MIB,
      keepFreeBytes: 100 * MIB,
      logger: this.logger,
      flushIntervalMs: INTERVAL_MS,
      wrapFile: (file) => this.#wrap(file),
    });
  }

  /** What the index says now. */
  async index(): Promise<{ entries: JournalEntry[]; whole: boolean }> {
    const path = `${this.directory}/index`;
    const bytes = await Deno.readFile(path).catch(() => new Uint8Array());
    const slotLimit = 16 * MIB / 65536;
    return readJournal(bytes, {
      slotSize: 65536,
      slotLimit,
      maxEntrySize: MIB,
    });
  }

  /** Waits until a sync began, and lets it end. */
  async sync(): Promise<void> {
    await until(() => this.syncs.length > 0, "a sync");
    this.syncs.shift()!();
  }

  #wrap(file: DataFile): DataFile {
    return fileWith(file, {
      sync: async () => {
        const { promise, resolve } = Promise.withResolvers<void>();
        this.syncs.push(resolve);
        this.most = Math.max(this.most, this.syncs.length);
        await promise;
        await file.sync();
      },
      space: () => Promise.resolve({ free: this.free, total: 1000 * MIB }),
      punch: () => Promise.resolve(false),
      truncate: (length) => {
        this.free = 1000 * MIB;
        return file.truncate(length);
      },
    });
  }
}

async function onSlowDisk(run: (disk: SlowDisk) => Promise<void>) {
  const dir = await Deno.makeTempDir({ prefix: "obd-cache-index-test-" });
  try {
    await run(new SlowDisk(dir));
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** Many times the pause between two writes of the index. */
function longEnough(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 30 * INTERVAL_MS));
}

Deno.test("cache index: a sync that takes longer than the interval is the only one, and no entry is lost", () =>
  onSlowDisk(async (disk) => {
    const store = await disk.open();
    for (let i = 0; i < 5; i++) {
      store.put(`k${i}`, seededBytes(1000, i));
      await store.settled();
      await until(() => disk.syncs.length > 0, "a sync");
      store.put(`late${i}`, seededBytes(1000, 9));
      await store.settled();
      await longEnough();
      await disk.sync();
    }
    await disk.sync();
    await until(async () => (await disk.index()).entries.length === 10);
    assert.equal((await disk.index()).whole, true);
    // One that is under way belongs to the directory: closing waits for it.
    store.put("last", seededBytes(1000, 5));
    await store.settled();
    await until(() => disk.syncs.length > 0, "a sync");
    let closed = false;
    const closing = store[Symbol.asyncDispose]().then(() => closed = true);
    await longEnough();
    assert.equal(closed, false);
    await disk.sync();
    await closing;
    assert.equal((await disk.index()).entries.length, 11);
    assert.equal(disk.most, 1);
    assert.equal(disk.logger.count("cache.index-not-written"), 0);
  }));

Deno.test("cache index: what was emptied while the index was being written is not in it", () =>
  onSlowDisk(async (disk) => {
    disk.free = 101 * MIB;
    const store = await disk.open();
    for (let i = 0; i < 9; i++) store.put(`k${i}`, seededBytes(65536, i));
    await until(async () => {
      disk.syncs.shift()?.();
      return (await disk.index()).entries.length === 9;
    }, "an index");
    store.put("k9", seededBytes(65536, 9));
    await store.settled();
    await until(() => disk.syncs.length > 0, "a sync");
    disk.free = 1; // and there are no holes: the file is emptied
    store.put("new", seededBytes(400_000, 1)); // takes the place of some
    await store.settled();
    assert.equal(disk.logger.count("cache.reset"), 1);
    await disk.sync();
    await disk.sync();
    const keys = async () =>
      (await disk.index()).entries.map((entry) => entry.key).join();
    await until(async () => await keys() === "new", "an index of what is left");
    await store[Symbol.asyncDispose]();
  }));

Deno.test("cache index: one that is too large to be read is told of, and replaced", () =>
  onSlowDisk(async (disk) => {
    const path = `${disk.directory}/index`;
    await Deno.writeFile(path, new Uint8Array());
    await Deno.truncate(path, 512 * MIB + 1);
    const store = await disk.open();
    assert.equal(disk.logger.count("cache.index-ignored"), 1);
    store.put("k", seededBytes(1000, 1));
    await store.settled();
    await disk.sync();
    await until(async () => (await disk.index()).entries.length === 1);
    await store[Symbol.asyncDispose]();
    assert.ok((await Deno.stat(path)).size < MIB);
  }));

Deno.test("JournalFile: a long log is written in pieces, and what happens meanwhile is behind it", async () => {
  const dir = await Deno.makeTempDir({ prefix: "obd-cache-index-test-" });
  try {
    const journal = new JournalFile(`${dir}/index`, 65536);
    const entryOf = (slot: number, key = `key-${slot}`): JournalEntry => ({
      key,
      size: 65536,
      digest: String.fromCharCode(slot & 0xff).repeat(32),
      runs: [{ start: slot, count: 1 }],
    });
    const COUNT = 40_000;
    const gone = new Set<number>();
    let turns = 0;
    const other = setInterval(() => {
      if (++turns > 1) return;
      // One that is written already, and one that is not.
      for (const slot of [0, COUNT - 1]) {
        gone.add(slot);
        journal.removed(`key-${slot}`);
      }
      journal.added(entryOf(0, "newer"));
    }, 0);
    const slots = Array.from({ length: COUNT }, (_, slot) => slot);
    await journal.flush(
      () => {
        assert.ok(turns > 1, `${turns} turns of others`);
        return Promise.resolve();
      },
      () =>
        slots.values().map((slot) =>
          gone.has(slot) ? undefined : entryOf(slot)
        ),
    );
    clearInterval(other);
    assert.ok(journal.dirty);
    await journal.flush(() => Promise.resolve(), () => []);
    const { entries, whole } = readJournal(
      await Deno.readFile(`${dir}/index`),
      { slotSize: 65536, slotLimit: COUNT, maxEntrySize: MIB },
    );
    assert.ok(whole);
    assert.deepEqual(
      entries.map(({ key }) => key),
      [...slots.slice(1, -1).map((slot) => `key-${slot}`), "newer"],
    );
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

import assert from "node:assert/strict";
import { CheckAhead } from "../../lib/layers/cache/check_ahead.ts";
import type { CacheEntry } from "../../lib/layers/cache/entry.ts";
import { CacheStore } from "../../lib/layers/cache/mod.ts";
import { fileWith } from "../testutil/cache_store.ts";
import { seededBytes } from "../testutil/source_contract.ts";

const SIZE = 100_000;

/** Entries of an earlier run in their order, and checks of them that end when they are told to. */
class Run {
  readonly entries: CacheEntry[];
  readonly begun: number[] = [];
  readonly ahead: CheckAhead;
  readonly #end = new Map<CacheEntry, () => void>();

  constructor(count: number) {
    this.entries = Array.from({ length: count }, (_, i) => ({
      key: `${i}`,
      size: SIZE,
      state: "unchecked",
      digest: "",
      runs: [],
      bytes: undefined,
      lease: undefined,
      check: undefined,
      following: undefined,
      older: undefined,
      newer: undefined,
    }));
    for (const [i, entry] of this.entries.entries()) {
      entry.following = this.entries[i + 1];
    }
    this.ahead = new CheckAhead((entry) => this.#check(entry));
  }

  #check(entry: CacheEntry): Promise<undefined> {
    this.begun.push(Number(entry.key));
    return entry.check = new Promise<undefined>((resolve) =>
      this.#end.set(entry, () => {
        entry.check = undefined;
        entry.state = "ready";
        resolve(undefined);
      })
    );
  }

  /** Ends the checks that run, and those that begin then. */
  async settle(): Promise<void> {
    while (this.#end.size > 0) {
      for (const end of this.#end.values()) end();
      this.#end.clear();
      for (let i = 0; i < 5; i++) await Promise.resolve();
    }
  }

  /** A reader comes to an entry and waits for it. */
  async reach(index: number): Promise<void> {
    const entry = this.entries[index]!;
    if (entry.state === "ready") this.ahead.read(entry);
    else {
      if (!entry.check) this.#check(entry);
      this.ahead.reached(entry);
    }
    await this.settle();
  }
}

Deno.test("CheckAhead: stays a few entries ahead of who reads in the order of the run before", async () => {
  const run = new Run(20);
  await run.reach(3);
  assert.deepEqual(run.begun, [3, 4, 5, 6, 7, 8, 9, 10, 11]);
  await run.reach(4);
  await run.reach(6);
  assert.deepEqual(run.begun.slice(9), [12, 13]);
  // Read once more: nobody has come further.
  await run.reach(4);
  await run.reach(3);
  assert.equal(run.begun.length, 11);
  for (let i = 5; i < 20; i++) await run.reach(i);
  assert.deepEqual(
    run.begun,
    Array.from({ length: 17 }, (_, i) => i + 3),
  );
});

Deno.test("CheckAhead: at most two checks at once", async () => {
  const run = new Run(20);
  run.entries[0]!.state = "ready";
  run.ahead.reached(run.entries[0]!);
  assert.deepEqual(run.begun, [1, 2]);
  run.ahead.reached(run.entries[9]!);
  assert.deepEqual(run.begun, [1, 2]);
  await run.settle();
  // From where the reader is now; what was begun for it before counts.
  assert.deepEqual(run.begun, [1, 2, 10, 11, 12, 13, 14, 15]);
});

Deno.test("CheckAhead: wrong guesses are a few, and one for each entry that was waited for", async () => {
  const run = new Run(1000);
  let waits = 0;
  for (let i = 980; i >= 0; i -= 20) {
    await run.reach(i);
    waits++;
  }
  assert.equal(run.begun.length, waits + 8 + (waits - 1));
});

Deno.test("CheckAhead: checked, running and dead entries are passed over, for so far", async () => {
  const run = new Run(200);
  run.entries[1]!.state = "ready";
  run.entries[2]!.state = "dead";
  run.entries[3]!.check = Promise.resolve(undefined);
  await run.reach(0);
  assert.deepEqual(run.begun.slice(0, 3), [0, 4, 5]);
  const late = new Run(200);
  for (const entry of late.entries.slice(1, 100)) entry.state = "ready";
  await late.reach(0);
  assert.deepEqual(late.begun, [0]);
});

Deno.test("CacheStore: what the last run used next is ready before it is read", async () => {
  const directory = await Deno.makeTempDir({ prefix: "obd-check-ahead-" });
  const options = { directory, sizeBytes: 2 ** 24, keepFreeBytes: 0 };
  const bytes = (i: number) => seededBytes(SIZE, i);
  try {
    {
      await using store = await CacheStore.open(options);
      for (let i = 0; i < 12; i++) store.put(`k${i}`, bytes(i));
    }
    // One that is damaged is a miss like any other.
    const data = await Deno.open(`${directory}/data`, { write: true });
    await data.seek(5 * 2 ** 17 + 99, Deno.SeekMode.Start);
    await data.write(new Uint8Array([1, 2, 3]));
    data.close();
    let reads = 0;
    await using store = await CacheStore.open({
      ...options,
      wrapFile: (file) =>
        fileWith(file, {
          preadNow: () => false,
          pread: (dst, offset) => (reads++, file.pread(dst, offset)),
        }),
    });
    const entries = Array.from({ length: 12 }, (_, i) => store.get(`k${i}`)!);
    assert.deepEqual(
      new Uint8Array((await store.readAll(entries[2]!))!),
      bytes(2),
    );
    for (let i = 3; i <= 10; i++) {
      // Begun when the one before has ended, at the latest.
      assert.equal(entries[i]!.state === "unchecked", !!entries[i]!.check);
      await entries[i]!.check;
      await Promise.resolve();
    }
    assert.deepEqual(
      entries.map((entry) => entry.state),
      ["unchecked", "unchecked", ...Array(9).fill("ready"), "unchecked"]
        .with(5, "dead"),
    );
    assert.equal(store.stats.corrupt, 1);
    const before = reads;
    const part = new Uint8Array(10);
    assert.ok(await store.pread(entries[3]!, part, 500));
    assert.deepEqual(part, bytes(3).subarray(500, 510));
    assert.equal(await store.pread(entries[5]!, part, 500), false);
    // Nothing but the part itself, and the entry that comes next.
    assert.equal(reads, before + 2);
    await entries[11]!.check;
    assert.equal(entries[11]!.state, "ready");
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

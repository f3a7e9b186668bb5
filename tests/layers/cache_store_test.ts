import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { CacheStore } from "../../lib/layers/cache/mod.ts";
import { concatBytes, latin1FromBytes } from "../../lib/io/mod.ts";
import {
  readJournal,
  writeAddRecord,
  writeJournalHeader,
  writeRemoveRecord,
} from "../../lib/layers/cache/journal.ts";
import { SlotAllocator, type SlotRun } from "../../lib/layers/cache/slots.ts";
import { fileWith } from "../testutil/cache_store.ts";
import { seededBytes, seededRandom } from "../testutil/source_contract.ts";
import { requiresMount } from "../testutil/requires.ts";
import { RecordingLogger } from "../testutil/test_source.ts";
import { unmount } from "../testutil/unmount.ts";
import { until } from "../testutil/until.ts";

const MIB = 2 ** 20;

async function inTempDir(run: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-cache-test-" });
  try {
    await run(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

function openStore(
  directory: string,
  more: Partial<Parameters<typeof CacheStore.open>[0]> = {},
): Promise<CacheStore> {
  return CacheStore.open({
    directory,
    sizeBytes: 16 * MIB,
    keepFreeBytes: 0,
    ...more,
  });
}

function sha256(bytes: Uint8Array): Uint8Array {
  return createHash("sha256").update(bytes).digest();
}

async function mustRead(
  store: CacheStore,
  key: string,
  want: Uint8Array,
): Promise<void> {
  const entry = store.get(key);
  assert.ok(entry, `no entry "${key}"`);
  const part = new Uint8Array(Math.min(1000, want.length));
  const offset = want.length - part.length;
  assert.ok(await store.pread(entry, part, offset));
  assert.deepEqual(part, want.subarray(offset));
  assert.deepEqual(new Uint8Array((await store.readAll(entry))!), want);
}

Deno.test("CacheStore: what is put is read at once, from the file, and after a restart", () =>
  inTempDir(async (dir) => {
    const sizes = [1, 4096, 65535, 65536, 65537, 300_000, 3_000_000];
    const items = sizes.map((n, i) => seededBytes(n, i));
    {
      await using store = await openStore(dir);
      for (const [i, bytes] of items.entries()) {
        store.put(`k${i}`, bytes, i % 2 ? sha256(bytes) : undefined);
      }
      for (const [i, b] of items.entries()) await mustRead(store, `k${i}`, b);
      await store.settled();
      assert.equal(store.get("k0")!.state, "ready");
      for (const [i, b] of items.entries()) await mustRead(store, `k${i}`, b);
      assert.equal(store.stats.writes, items.length);
    }
    await using store = await openStore(dir);
    assert.equal(store.entryCount, items.length);
    assert.equal(store.storedBytes, sizes.reduce((a, b) => a + b));
    assert.equal(store.get("k1")!.state, "unchecked");
    for (const [i, b] of items.entries()) await mustRead(store, `k${i}`, b);
    assert.equal(store.get("k1")!.state, "ready");
  }));

Deno.test("CacheStore: a second owner is refused, in this process and in another", () =>
  inTempDir(async (dir) => {
    const first = await openStore(dir);
    const message = new RegExp(`process ${Deno.pid} uses it`);
    await assert.rejects(openStore(dir), { code: "conflict", message });
    const url = new URL("../../lib/layers/cache/mod.ts", import.meta.url);
    const script = `import { CacheStore } from ${JSON.stringify(url.href)};
      try { await CacheStore.open({ directory: ${JSON.stringify(dir)},
        sizeBytes: 1 << 20 }); } catch (e) { console.log(e.code); }`;
    await Deno.writeTextFile(`${dir}/other.ts`, script);
    const other = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", `${dir}/other.ts`],
      stderr: "inherit",
    }).output();
    assert.equal(new TextDecoder().decode(other.stdout), "conflict\n");
    await first[Symbol.asyncDispose]();
    await (await openStore(dir))[Symbol.asyncDispose]();
  }));

Deno.test("CacheStore: who only looks whether it is free is no owner", () =>
  inTempDir(async (dir) => {
    // As `obd mount` does before it starts a serve.
    const look = await Deno.open(`${dir}/lock`, { write: true, create: true });
    assert.ok(await look.tryLock(true));
    const opening = openStore(dir);
    await new Promise((resolve) => setTimeout(resolve, 5));
    look.close();
    await (await opening)[Symbol.asyncDispose]();
  }));

Deno.test({
  name: "CacheStore: who closes it gives it back, though a child has its files",
  ignore: Deno.build.os !== "linux",
  fn: () =>
    inTempDir(async (dir) => {
      const libc = Deno.dlopen("libc.so.6", {
        dup: { parameters: ["i32"], result: "i32" },
        close: { parameters: ["i32"], result: "i32" },
      });
      const { dup, close } = libc.symbols;
      const store = await openStore(dir);
      const fds: number[] = [];
      for (const { name } of [...Deno.readDirSync("/proc/self/fd")]) {
        let path = "";
        try {
          path = Deno.readLinkSync(`/proc/self/fd/${name}`);
        } catch {
          // Closed since: tests beside this one come and go.
        }
        // As between fork and exec: the same open file.
        if (path === `${dir}/lock`) fds.push(dup(Number(name)));
      }
      try {
        assert.ok(fds.length > 0);
        await store[Symbol.asyncDispose]();
        await (await openStore(dir))[Symbol.asyncDispose]();
      } finally {
        for (const fd of fds) close(fd);
        libc.close();
      }
    }),
});

Deno.test("CacheStore: a temporary cache works beside an owner and leaves nothing", () =>
  inTempDir(async (dir) => {
    await using _owner = await openStore(dir);
    const before = [...Deno.readDirSync(dir)].map((e) => e.name).sort();
    {
      await using store = await CacheStore.temporary({
        directory: dir,
        sizeBytes: 4 * MIB,
        keepFreeBytes: 0,
      });
      const bytes = seededBytes(100_000, 1);
      store.put("a", bytes);
      await store.settled();
      await mustRead(store, "a", bytes);
      assert.deepEqual(
        [...Deno.readDirSync(dir)].map((e) => e.name).sort(),
        before,
      );
    }
  }));

Deno.test("CacheStore: stays within its size and evicts what was used longest ago", () =>
  inTempDir(async (dir) => {
    await using store = await openStore(dir, { sizeBytes: 4 * MIB });
    const items = Array.from({ length: 40 }, (_, i) => seededBytes(200_000, i));
    for (const [i, bytes] of items.entries()) {
      store.put(`k${i}`, bytes);
      store.get("k0");
      await store.settled();
    }
    assert.ok(store.stats.evictions >= 24);
    assert.ok(store.storedBytes <= 4 * MIB);
    assert.ok((await Deno.stat(`${dir}/data`)).size <= 4 * MIB);
    await mustRead(store, "k0", items[0]!);
    await mustRead(store, "k39", items[39]!);
    assert.equal(store.get("k1"), undefined);
  }));

Deno.test("CacheStore: order of use survives a restart", () =>
  inTempDir(async (dir) => {
    {
      await using store = await openStore(dir, { sizeBytes: 4 * MIB });
      for (let i = 0; i < 16; i++) store.put(`k${i}`, seededBytes(250_000, i));
      await store.settled();
      store.get("k0");
    }
    await using store = await openStore(dir, { sizeBytes: 4 * MIB });
    store.put("new", seededBytes(250_000, 99));
    await store.settled();
    assert.ok(store.get("k0"));
    assert.equal(store.get("k1"), undefined);
  }));

Deno.test("CacheStore: reads are right while entries are evicted under them", () =>
  inTempDir(async (dir) => {
    await using store = await openStore(dir, {
      sizeBytes: 2 * MIB,
      // Without the page cache path every read may lose a race.
      wrapFile: (file) => fileWith(file, { preadNow: () => false }),
    });
    const random = seededRandom(5);
    const contents = Array.from(
      { length: 60 },
      (_, i) => seededBytes(30_000 + i * 2_000, i),
    );
    let served = 0;
    const lane = async () => {
      for (let n = 0; n < 150; n++) {
        const i = Math.floor(random() * contents.length);
        const want = contents[i]!;
        const entry = store.get(`k${i}`) ?? store.put(`k${i}`, want);
        if (!entry) continue;
        const offset = Math.floor(random() * (want.length - 5000));
        const dst = new Uint8Array(5000);
        if (!await store.pread(entry, dst, offset)) continue;
        assert.deepEqual(dst, want.subarray(offset, offset + 5000));
        served++;
        if (n % 10 === 0) await store.settled();
      }
    };
    await Promise.all(Array.from({ length: 8 }, lane));
    assert.ok(served > 300, `${served} served`);
    assert.ok(store.stats.evictions > 100);
  }));

Deno.test("CacheStore: a read that is overtaken by an eviction is a miss, not another entry's bytes", () =>
  inTempDir(async (dir) => {
    let open = () => {};
    const gate = new Promise<void>((resolve) => open = resolve);
    await using store = await openStore(dir, {
      wrapFile: (file) =>
        fileWith(file, {
          preadNow: () => false,
          pread: async (dst, offset) => {
            await gate;
            await file.pread(dst, offset);
          },
        }),
    });
    const entry = store.put("a", seededBytes(1000, 1))!;
    await store.settled();
    const dst = new Uint8Array(1000);
    const reading = store.pread(entry, dst, 0);
    store.drop(entry);
    store.put("b", seededBytes(1000, 2)); // takes the slot
    await store.settled();
    open();
    assert.equal(await reading, false);
    assert.deepEqual(dst, seededBytes(1000, 2), "the test missed its race");
  }));

Deno.test("CacheStore: damaged, swapped and truncated entries are dropped, the others stay", () =>
  inTempDir(async (dir) => {
    const items = Array.from({ length: 8 }, (_, i) => seededBytes(65536, i));
    {
      await using store = await openStore(dir);
      for (const [i, bytes] of items.entries()) store.put(`k${i}`, bytes);
    }
    const data = await Deno.readFile(`${dir}/data`);
    assert.equal(data.length, 8 * 65536);
    const slot = (i: number) => data.subarray(i * 65536, (i + 1) * 65536);
    slot(1)[70] = slot(1)[70]! ^ 1;
    const third = slot(3).slice();
    slot(3).set(slot(4));
    slot(4).set(third);
    await Deno.writeFile(`${dir}/data`, data.subarray(0, 7 * 65536 + 100));
    const logger = new RecordingLogger();
    await using store = await openStore(dir, { logger });
    const bad = [1, 3, 4, 7];
    for (const [i, bytes] of items.entries()) {
      if (!bad.includes(i)) await mustRead(store, `k${i}`, bytes);
      else {
        const entry = store.get(`k${i}`);
        const dst = new Uint8Array(10);
        assert.ok(!entry || !await store.pread(entry, dst, 0), `entry ${i}`);
        assert.equal(store.get(`k${i}`), undefined);
      }
    }
    assert.equal(logger.count("cache.corrupt"), 3);
    assert.equal(store.stats.corrupt, 3);
    // And they can be stored again.
    store.put("k1", items[1]!);
    await store.settled();
    await mustRead(store, "k1", items[1]!);
  }));

Deno.test("CacheStore: any damage of the index costs entries at most", () =>
  inTempDir(async (dir) => {
    const items = Array.from({ length: 6 }, (_, i) => seededBytes(5000, i));
    {
      await using store = await openStore(dir);
      for (const [i, bytes] of items.entries()) store.put(`k${i}`, bytes);
    }
    const index = await Deno.readFile(`${dir}/index`);
    const data = await Deno.readFile(`${dir}/data`);
    const random = seededRandom(7);
    for (let round = 0; round < 40; round++) {
      let bytes = index.slice();
      if (round % 4 === 0) {
        bytes = bytes.subarray(0, Math.floor(random() * bytes.length));
      } else {
        for (let n = 0; n < round % 4; n++) {
          bytes[Math.floor(random() * bytes.length)] = random() * 256;
        }
      }
      await Deno.writeFile(`${dir}/index`, bytes);
      await Deno.writeFile(`${dir}/data`, data);
      await using store = await openStore(dir);
      for (const [i, want] of items.entries()) {
        const entry = store.get(`k${i}`);
        const got = entry && await store.readAll(entry);
        if (got) assert.deepEqual(new Uint8Array(got), want);
      }
      store.put("new", items[0]!);
      await store.settled();
      await mustRead(store, "new", items[0]!);
    }
  }));

Deno.test("CacheStore: foreign files stay, a foreign index is an empty cache", () =>
  inTempDir(async (dir) => {
    await Deno.writeTextFile(`${dir}/notes.txt`, "mine");
    await Deno.writeTextFile(`${dir}/index`, "not an index");
    await Deno.writeTextFile(`${dir}/data`, "not data");
    {
      await using store = await openStore(dir);
      assert.equal(store.entryCount, 0);
      store.put("a", seededBytes(10, 1));
    }
    assert.equal(await Deno.readTextFile(`${dir}/notes.txt`), "mine");
    await using store = await openStore(dir);
    await mustRead(store, "a", seededBytes(10, 1));
  }));

Deno.test("CacheStore: a link in place of the data file is refused", () =>
  inTempDir(async (dir) => {
    await Deno.writeTextFile(`${dir}/victim`, "precious");
    await Deno.mkdir(`${dir}/cache`);
    await Deno.symlink(`${dir}/victim`, `${dir}/cache/data`);
    await assert.rejects(openStore(`${dir}/cache`));
    assert.equal(await Deno.readTextFile(`${dir}/victim`), "precious");
  }));

Deno.test("CacheStore: killed at any moment, it serves right bytes or none", () =>
  inTempDir(async (dir) => {
    const url = (p: string) => JSON.stringify(new URL(p, import.meta.url).href);
    await Deno.mkdir(`${dir}/cache`);
    await Deno.writeTextFile(
      `${dir}/writer.ts`,
      `import { CacheStore } from ${url("../../lib/layers/cache/mod.ts")};
       import { seededBytes } from ${url("../testutil/source_contract.ts")};
       import { until } from ${url("../testutil/until.ts")};
       const directory = ${JSON.stringify(`${dir}/cache`)};
       const store = await CacheStore.open({ directory, sizeBytes: 2 ** 21,
         keepFreeBytes: 0, flushIntervalMs: 5 });
       console.log("ready");
       const last = Number(Deno.args[0]);
       for (let i = 0; i !== last; i++) {
         const id = (i * 7) % 50;
         store.put("k" + id, seededBytes(50_000 + id * 1000, id));
         await store.settled();
         if (i % 5 === 0) await new Promise((r) => setTimeout(r, 2));
         if (i % 10 === 9) console.log(i);
       }
       store.put("end", new Uint8Array(1));
       await until(async () =>
         (await Deno.readTextFile(directory + "/index")).includes("end"));
       console.log(store.entryCount);
       setInterval(() => {}, 1000);`,
    );
    /** Kills a writer at one of its lines; returns how many entries it left, and the line. */
    const killed = async (lines: number, last = -1) => {
      const child = new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", `${dir}/writer.ts`, `${last}`],
        stdout: "piped",
        stderr: "inherit",
      }).spawn();
      let said: string[] = [];
      for await (
        const text of child.stdout.pipeThrough(new TextDecoderStream())
      ) {
        said = (said.join("\n") + text).split("\n");
        if (said.length > lines) break;
      }
      child.kill("SIGKILL");
      await child.status;
      await using store = await openStore(`${dir}/cache`, {
        sizeBytes: 2 * MIB,
      });
      let found = 0;
      for (let id = 0; id < 50; id++) {
        const entry = store.get(`k${id}`);
        const got = entry && await store.readAll(entry);
        if (!got) continue;
        found++;
        assert.deepEqual(
          new Uint8Array(got),
          seededBytes(50_000 + id * 1000, id),
        );
      }
      return { found, line: said[lines - 1] };
    };
    // One line for ten entries: a machine that is busy changes nothing but how
    // far the index is behind.
    for (const lines of [3, 9, 16]) await killed(lines);
    // Where it has caught up, all is there.
    const { found, line } = await killed(17, 150);
    assert.equal(`${found + 1}`, line);
    assert.ok(found >= 15, `${found} entries`);
  }));

Deno.test("CacheStore: a full disk stops storing once, reads go on, and it resumes", () =>
  inTempDir(async (dir) => {
    let full = true;
    const logger = new RecordingLogger();
    await using store = await openStore(dir, {
      logger,
      retryMs: 20,
      wrapFile: (file) =>
        fileWith(file, {
          pwrite: (src, offset) =>
            full
              ? Promise.reject(new Error("ENOSPC: no space left on device"))
              : file.pwrite(src, offset),
        }),
    });
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 10; i++) store.put(`k${i}`, seededBytes(1000, i));
      await store.settled();
      assert.equal(store.entryCount, 0);
      await new Promise((r) => setTimeout(r, 30));
    }
    assert.equal(logger.count("cache.write-failed"), 1);
    assert.ok(store.stats.skipped >= 30);
    full = false;
    store.put("k1", seededBytes(1000, 1));
    await store.settled();
    await mustRead(store, "k1", seededBytes(1000, 1));
    assert.equal(logger.count("cache.storing-again"), 1);
  }));

async function sh(...args: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(args[0]!, {
    args: args.slice(1),
  }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
}

Deno.test({
  name: "CacheStore: on a real full disk it serves what fits and never fails",
  ignore: !requiresMount(),
  fn: () =>
    inTempDir(async (dir) => {
      const path = `${dir}/disk`;
      await Deno.mkdir(path);
      await sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path);
      try {
        const logger = new RecordingLogger();
        {
          // Nothing kept free: writes do meet ENOSPC.
          await using store = await openStore(`${path}/a`, {
            sizeBytes: 64 * MIB,
            logger,
            retryMs: 1,
          });
          await Deno.writeFile(`${path}/ballast`, new Uint8Array(3 * MIB));
          for (let i = 0; i < 30; i++) {
            store.put(`k${i}`, seededBytes(700_000, i));
            await store.settled();
            const entry = store.get(`k${i % 7}`);
            const got = entry && await store.readAll(entry);
            if (got) {
              assert.deepEqual(
                new Uint8Array(got),
                seededBytes(700_000, i % 7),
              );
            }
            if (i === 15) await Deno.remove(`${path}/ballast`);
            await new Promise((resolve) => setTimeout(resolve, 2));
          }
          assert.ok(store.entryCount >= 2, `${store.entryCount} entries`);
        }
        await Deno.remove(`${path}/a`, { recursive: true });
        await using store = await openStore(`${path}/b`, {
          sizeBytes: 64 * MIB,
          keepFreeBytes: 2 * MIB,
          logger,
        });
        for (let i = 0; i < 20; i++) {
          store.put(`k${i}`, seededBytes(700_000, i));
          await store.settled();
          const used = (await Deno.stat(`${path}/b/data`)).blocks! * 512;
          assert.ok(used <= 6 * MIB, `${used} bytes used`);
        }
        await mustRead(store, "k19", seededBytes(700_000, 19));
      } finally {
        await unmount(path);
      }
    }),
});

Deno.test("CacheStore: gives space back when the file system runs low", () =>
  inTempDir(async (dir) => {
    let free = 1000 * MIB;
    let punched = 0;
    await using store = await openStore(dir, {
      keepFreeBytes: 100 * MIB,
      retryMs: 1,
      sizeBytes: 64 * MIB,
      wrapFile: (file) =>
        fileWith(file, {
          space: () => Promise.resolve({ free, total: 1000 * MIB }),
          punch: (_, length) => {
            punched += length;
            free += length;
            return Promise.resolve(true);
          },
        }),
    });
    for (let i = 0; i < 40; i++) store.put(`k${i}`, seededBytes(MIB, i % 3));
    await store.settled();
    const before = store.storedBytes;
    assert.ok(before >= 30 * MIB);
    free = 95 * MIB;
    await new Promise((r) => setTimeout(r, 1100)); // the next look at the disk
    store.put("new", seededBytes(MIB, 3));
    await store.settled();
    assert.ok(punched >= 6 * MIB, `${punched} given back`);
    assert.ok(store.storedBytes < before && store.storedBytes > 0);
    await mustRead(store, "new", seededBytes(MIB, 3));
  }));

Deno.test("CacheStore: with its index lost it takes no space that it does not know of", () =>
  inTempDir(async (dir) => {
    let diskSize = 20 * MIB;
    const taken = async () => (await Deno.stat(`${dir}/data`)).blocks! * 512;
    const open = () =>
      openStore(dir, {
        keepFreeBytes: 8 * MIB,
        wrapFile: (file) =>
          fileWith(file, {
            space: async () => ({
              free: diskSize - await taken(),
              total: diskSize,
            }),
          }),
      });
    {
      await using store = await open();
      for (let i = 0; i < 11; i++) {
        store.put(`k${i}`, seededBytes(MIB, i));
        await store.settled();
      }
      assert.equal(store.storedBytes, 11 * MIB);
    }
    await Deno.writeFile(`${dir}/index`, new Uint8Array(100));
    diskSize -= 2 * MIB; // somebody else's file
    await using store = await open();
    assert.equal(await taken(), 0);
    for (let i = 0; i < 20; i++) {
      store.put(`n${i}`, seededBytes(MIB, i));
      await store.settled();
    }
    await mustRead(store, "n19", seededBytes(MIB, 19));
    assert.ok(await taken() <= 10 * MIB);
  }));

Deno.test("CacheStore: without hole punching a low disk empties the file", () =>
  inTempDir(async (dir) => {
    let free = 1000 * MIB;
    const logger = new RecordingLogger();
    await using store = await openStore(dir, {
      logger,
      keepFreeBytes: 100 * MIB,
      wrapFile: (file) =>
        fileWith(file, {
          space: () => Promise.resolve({ free, total: 1000 * MIB }),
          punch: () => Promise.resolve(false),
          truncate: (length) => {
            free = 1000 * MIB;
            return file.truncate(length);
          },
        }),
    });
    for (let i = 0; i < 10; i++) store.put(`k${i}`, seededBytes(100_000, i));
    await store.settled();
    free = 1;
    await new Promise((r) => setTimeout(r, 1100));
    store.put("new", seededBytes(MIB, 3));
    await store.settled();
    assert.equal(logger.count("cache.reset"), 1);
    assert.equal(store.get("k0"), undefined);
    await mustRead(store, "new", seededBytes(MIB, 3));
  }));

Deno.test("CacheStore: a lost write-back empties the cache", () =>
  inTempDir(async (dir) => {
    let broken = false;
    const logger = new RecordingLogger();
    await using store = await openStore(dir, {
      logger,
      flushIntervalMs: 5,
      wrapFile: (file) =>
        fileWith(file, {
          sync: () =>
            broken ? Promise.reject(new Error("EIO: i/o error")) : file.sync(),
        }),
    });
    store.put("a", seededBytes(1000, 1));
    await store.settled();
    broken = true;
    store.put("b", seededBytes(1000, 2));
    await store.settled();
    await until(() => logger.count("cache.reset") > 0, "a reset");
    broken = false;
    assert.equal(store.get("a"), undefined);
    assert.equal(store.get("b"), undefined);
    assert.equal(logger.count("cache.reset"), 1);
    store.put("b", seededBytes(1000, 2));
    await store.settled();
    await mustRead(store, "b", seededBytes(1000, 2));
  }));

Deno.test("CacheStore: what was in a file that somebody emptied is lost, not zeros", () =>
  inTempDir(async (dir) => {
    const logger = new RecordingLogger();
    // One was there before this process, one is its own.
    const items = [MIB, 2 * MIB, 3 * MIB].map((n, i) => seededBytes(n, i));
    {
      await using store = await openStore(dir);
      store.put("k0", items[0]!);
    }
    await using store = await openStore(dir, { logger, retryMs: 0 });
    await mustRead(store, "k0", items[0]!);
    store.put("k1", items[1]!);
    await store.settled();
    await Deno.truncate(`${dir}/data`, 0);
    store.put("k2", items[2]!);
    await store.settled();
    for (const key of ["k0", "k1"]) assert.equal(store.get(key), undefined);
    assert.equal(logger.count("cache.reset"), 1);
    for (const i of [0, 1, 2]) store.put(`k${i}`, items[i]!);
    await store.settled();
    for (const i of [0, 1, 2]) await mustRead(store, `k${i}`, items[i]!);
    assert.equal(logger.count("cache.reset"), 1);
  }));

Deno.test("CacheStore: a slow disk delays no read and bounds what waits", () =>
  inTempDir(async (dir) => {
    let let_go = () => {};
    const stuck = new Promise<void>((resolve) => let_go = resolve);
    await using store = await openStore(dir, {
      queueBytes: 3 * MIB,
      wrapFile: (file) =>
        fileWith(file, {
          pwrite: async (src, offset) => {
            await stuck;
            await file.pwrite(src, offset);
          },
        }),
    });
    const kept = [];
    for (let i = 0; i < 10; i++) {
      kept.push(store.put(`k${i}`, seededBytes(MIB, i)) !== undefined);
    }
    assert.deepEqual(kept, [true, true, true, ...Array(7).fill(false)]);
    assert.equal(store.stats.skipped, 7);
    const dst = new Uint8Array(100);
    assert.ok(store.preadNow(store.get("k2")!, dst, 5000));
    assert.deepEqual(dst, seededBytes(MIB, 2).subarray(5000, 5100));
    let_go();
    await store.settled();
    await mustRead(store, "k2", seededBytes(MIB, 2));
  }));

Deno.test("CacheStore: an unreadable entry is a miss, and is dropped", () =>
  inTempDir(async (dir) => {
    const logger = new RecordingLogger();
    await using store = await openStore(dir, {
      logger,
      wrapFile: (file) =>
        fileWith(file, {
          preadNow: () => false,
          pread: () => Promise.reject(new Error("EIO: i/o error")),
        }),
    });
    const entry = store.put("a", seededBytes(1000, 1))!;
    await store.settled();
    assert.equal(await store.pread(entry, new Uint8Array(10), 0), false);
    assert.equal(store.get("a"), undefined);
    assert.equal(logger.count("cache.unreadable"), 1);
  }));

Deno.test("CacheStore: opens fast with 20,000 entries, and smaller when made smaller", () =>
  inTempDir(async (dir) => {
    const count = 20_000;
    const slot = 65536;
    const key = (i: number) => `${i}`.padStart(70, "0");
    const bytes = seededBytes(slot, 1);
    const digest = latin1FromBytes(sha256(bytes));
    const parts: Uint8Array[] = [writeJournalHeader(slot)];
    for (let i = 0; i < count; i++) {
      const runs = [{ start: i, count: 1 }];
      parts.push(writeAddRecord({ key: key(i), size: slot, digest, runs }));
    }
    await Deno.writeFile(`${dir}/index`, concatBytes(parts));
    const file = await Deno.open(`${dir}/data`, { write: true, create: true });
    await file.truncate(count * slot); // sparse: only entry 5 is there
    await file.seek(5 * slot, Deno.SeekMode.Start);
    await file.write(bytes);
    file.close();
    const start = performance.now();
    {
      await using store = await openStore(dir, { sizeBytes: count * slot });
      const took = performance.now() - start;
      assert.ok(took < 3_000, `${took} ms`); // about 80 ms alone on the machine
      assert.equal(store.entryCount, count);
      await mustRead(store, key(5), bytes);
      assert.equal(await store.readAll(store.get(key(4))!), undefined);
      // And the few behind these two that were looked at ahead.
      assert.ok(store.entryCount < count && store.entryCount >= count - 20);
    }
    await using store = await openStore(dir, { sizeBytes: 64 * MIB });
    assert.ok(store.entryCount > 1000 && store.entryCount <= 1024);
    assert.ok((await Deno.stat(`${dir}/data`)).size <= 64 * MIB);
    await mustRead(store, key(5), bytes);
  }));

Deno.test("index records: of slots claimed twice the newest claim wins, bad ones are left out", () => {
  const entry = (key: string, ...runs: [number, number][]) => ({
    key,
    size: runs.reduce((n, r) => n + r[1], 0) * 65536,
    digest: key.repeat(32),
    runs: runs.map(([start, count]) => ({ start, count })),
  });
  const read = (...records: Uint8Array[]) =>
    readJournal(concatBytes([writeJournalHeader(65536), ...records]), {
      slotSize: 65536,
      slotLimit: 100,
      maxEntrySize: 2 ** 24,
    });
  const keys = (...records: Uint8Array[]) =>
    read(...records).entries.map((e) => e.key).join("");
  const add = (key: string, ...runs: [number, number][]) =>
    writeAddRecord(entry(key, ...runs));
  const one = read(add("a", [0, 3], [7, 2]));
  assert.deepEqual(one, { entries: [entry("a", [0, 3], [7, 2])], whole: true });
  assert.equal(keys(add("a", [0, 4]), add("b", [4, 4])), "ab");
  assert.equal(keys(add("a", [0, 4]), add("b", [3, 4])), "b");
  assert.equal(
    keys(add("a", [3, 4]), add("b", [0, 4]), add("c", [9, 1])),
    "bc",
  );
  assert.equal(keys(add("a", [0, 9]), add("b", [1, 1]), add("c", [5, 1])), "c");
  assert.equal(keys(add("a", [0, 2], [1, 2])), ""); // overlaps itself
  assert.equal(
    keys(add("a", [0, 1]), add("b", [1, 1]), add("a", [2, 1])),
    "ba",
  );
  assert.equal(keys(add("a", [0, 1]), writeRemoveRecord("a")), "");
  assert.equal(keys(add("a", [99, 1]), add("b", [100, 1])), "a");
  assert.equal(keys(add("a", [0, 0]), add("b", [2 ** 32 - 1, 1])), "");
  const short = writeAddRecord({ ...entry("a", [0, 2]), size: 10 });
  assert.equal(keys(short), "");
  const torn = read(add("a", [0, 1]), add("b", [1, 1]).subarray(0, 30));
  assert.deepEqual([torn.entries.length, torn.whole], [1, false]);
});

Deno.test("SlotAllocator: entries lie in few runs, however often all were replaced", () => {
  const random = seededRandom(8);
  const slots = new SlotAllocator(16_384);
  const entries: SlotRun[][] = [];
  // Some forty times as much as it holds.
  for (let i = 0; i < 40_000; i++) {
    const count = 5 + Math.floor(random() * 28);
    while (slots.available < count) slots.release(entries.shift()!);
    entries.push(slots.allocate(count, 1024)!);
  }
  const runs = entries.reduce((sum, own) => sum + own.length, 0);
  const average = runs / entries.length;
  assert.ok(average < 7, `${average} runs of an entry on average`);
});

Deno.test("SlotAllocator never hands a slot out twice", () => {
  const random = seededRandom(3);
  const slots = new SlotAllocator(200, [{ start: 10, count: 5 }]);
  const owner = new Int32Array(200);
  owner.fill(1, 10, 15);
  const held = new Map<number, readonly SlotRun[]>([[1, [{
    start: 10,
    count: 5,
  }]]]);
  let refused = 0;
  for (let id = 2; id < 3000; id++) {
    if (random() < 0.45 && held.size > 0) {
      const [key] = [...held.keys()].slice(Math.floor(random() * held.size));
      for (const r of held.get(key!)!) {
        owner.fill(0, r.start, r.start + r.count);
      }
      slots.release(held.get(key!)!);
      held.delete(key!);
    }
    const count = 1 + Math.floor(random() * 12);
    const before = slots.available;
    const runs = slots.allocate(count, 4);
    if (!runs) {
      refused++;
      assert.equal(slots.available, before);
      continue;
    }
    assert.ok(runs.length <= 4);
    assert.equal(runs.reduce((n, r) => n + r.count, 0), count);
    for (const { start, count } of runs) {
      for (let i = start; i < start + count; i++) {
        assert.ok(i < 200);
        assert.equal(owner[i], 0);
        owner[i] = id;
      }
    }
    held.set(id, runs);
    assert.equal(slots.available, before - count);
  }
  assert.ok(refused > 0);
});

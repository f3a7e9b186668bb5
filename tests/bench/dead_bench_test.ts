import assert from "node:assert/strict";
import {
  clearRecord,
  readRecord,
  undoDeadBench,
  writeRecord,
} from "../../cmd/bench/dead_bench.ts";
import { runDirectory } from "../../cmd/bench/run_files.ts";

/** A process that does nothing, with arguments and environment to be told by. */
async function startSleeper(args: string[], env: Record<string, string> = {}) {
  const child = new Deno.Command("/bin/sh", {
    // The shell stays: its arguments are what is looked at.
    args: ["-c", "sleep 300 >/dev/null & echo; wait", "sh", ...args],
    env,
    stdout: "piped",
    detached: true,
  }).spawn();
  // Then both processes are there.
  const reader = child.stdout.getReader();
  await reader.read();
  await reader.cancel();
  const end = async () => {
    try {
      Deno.kill(-child.pid, "SIGKILL");
    } catch {
      // Ended already.
    }
    return (await child.status).signal;
  };
  return { pid: child.pid, end };
}

async function exists(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}

Deno.test("undoDeadBench() ends processes of that bench, and leaves names that a living one may have", async () => {
  const cache = await Deno.makeTempDir({ prefix: "obd-dead-bench-" });
  const id = crypto.randomUUID();
  const env = { OBD_BENCH_ID: id };
  const marked = await startSleeper([], env);
  const other = await startSleeper([`${cache}/work/run`], {
    OBD_BENCH_ID: crypto.randomUUID(),
  });
  // The process id of the dead one is another bench's now.
  const living = await startSleeper(["bench"]);
  const runDir = runDirectory(cache, living.pid);
  try {
    await Deno.mkdir(runDir, { recursive: true });
    assert.deepEqual(await undoDeadBench({ pid: living.pid, id }, cache), [
      "2 processes",
    ]);
    assert.equal(await marked.end(), "SIGTERM");
    assert.ok(await exists(runDir));
    assert.equal(await living.end(), "SIGKILL");
    assert.deepEqual(await undoDeadBench({ pid: living.pid, id }, cache), [
      runDir,
    ]);
    assert.ok(!await exists(runDir));
    assert.equal(await other.end(), "SIGKILL");
  } finally {
    for (const process of [marked, other, living]) await process.end();
    await Deno.remove(runDir, { recursive: true }).catch(() => {});
    await Deno.remove(cache, { recursive: true });
  }
});

Deno.test("readRecord() gives what was written, and nothing of a file that is none", async () => {
  const path = await Deno.makeTempFile();
  const before = Deno.env.get("OBD_BENCH_ID");
  try {
    using lock = await Deno.open(path, { read: true, write: true });
    assert.equal(await readRecord(lock), undefined);
    await writeRecord(lock);
    const record = await readRecord(lock);
    assert.equal(record?.pid, Deno.pid);
    assert.equal(record.id, Deno.env.get("OBD_BENCH_ID"));
    await clearRecord(lock);
    assert.equal(await readRecord(lock), undefined);
    for (
      const text of [
        '{"pid":4711,"id":"x"}',
        `{"pid":1,"id":"${record.id}"}`,
        `{"pid":"../etc","id":"${record.id}"}`,
        `{"pid":4711,"id":"${record.id}`,
      ]
    ) {
      await Deno.writeTextFile(path, text);
      assert.equal(await readRecord(lock), undefined, text);
    }
  } finally {
    if (before === undefined) Deno.env.delete("OBD_BENCH_ID");
    else Deno.env.set("OBD_BENCH_ID", before);
    await Deno.remove(path);
  }
});

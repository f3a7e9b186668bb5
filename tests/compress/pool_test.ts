import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import { CodecPool, inputStart } from "../../lib/compress/mod.ts";
import {
  CancelledError,
  DeadlineError,
  FormatError,
  IntegrityError,
  ObdError,
} from "../../lib/io/mod.ts";
import { indexBlob } from "./index_blob.ts";
import { until } from "../testutil/until.ts";
import { sampleBytes } from "./samples.ts";

const CONTENT = sampleBytes(11, 3_000_000, "text");
const BLOB = new Uint8Array(zlib.gzipSync(CONTENT));
const INDEX = indexBlob(BLOB, { spanSize: 300_000 });

function spanJob(i: number) {
  const checkpoint = INDEX.checkpoints[i]!;
  const next = INDEX.checkpoints[i + 1];
  const from = checkpoint.uncompressedOffset;
  const content = CONTENT.subarray(
    from,
    next?.uncompressedOffset ?? CONTENT.length,
  );
  return {
    content,
    job: {
      input: BLOB.subarray(
        inputStart(checkpoint),
        next?.compressedOffset ?? BLOB.length,
      ),
      bits: checkpoint.bits,
      window: checkpoint.window,
      length: content.length,
      sha256: new Uint8Array(createHash("sha256").update(content).digest()),
    },
  };
}

Deno.test("CodecPool.inflateSpan() gives every span, raw and packed windows, own and shared output", async () => {
  using pool = new CodecPool({ threads: 2 });
  assert.equal(pool.size, 0, "no thread before the first job");
  assert.ok(INDEX.checkpoints.length > 5);
  await Promise.all(INDEX.checkpoints.map(async (_, i) => {
    const { job, content } = spanJob(i);
    assert.deepEqual(await pool.inflateSpan(job), content);
    const output = new Uint8Array(new SharedArrayBuffer(job.length));
    const got = await pool.inflateSpan({
      ...job,
      window: job.window.length === 0
        ? job.window
        : new Uint8Array(zlib.deflateSync(job.window)),
      windowIsZlib: true,
      output,
      priority: "prefetch",
    });
    assert.ok(got === output);
    assert.deepEqual(new Uint8Array(output), content);
  }));
  assert.ok(pool.size <= 2);
  assert.equal(BLOB[0], 0x1f, "the caller keeps its input");
});

Deno.test("CodecPool posts a job's own bytes, not the tables that they lie in", async () => {
  const { job } = spanJob(3);
  const table = (bytes: Uint8Array) => {
    const all = new Uint8Array(bytes.length + 1000);
    all.set(bytes, 500);
    return all.subarray(500, 500 + bytes.length);
  };
  const posted: { window: Uint8Array; sha256: Uint8Array }[] = [];
  const { postMessage } = Worker.prototype;
  Worker.prototype.postMessage = function (this: Worker, message: never) {
    posted.push(message);
    postMessage.call(this, message);
  };
  try {
    using pool = new CodecPool({ threads: 1 });
    const { window, sha256 } = job;
    await pool.inflateSpan({
      ...job,
      window: table(window),
      sha256: table(sha256),
    });
    await pool.inflateSpan(job);
  } finally {
    Worker.prototype.postMessage = postMessage;
  }
  assert.equal(posted.length, 2);
  for (const { window, sha256 } of posted) {
    assert.equal(window.buffer.byteLength, window.length);
    assert.equal(sha256.buffer.byteLength, sha256.length);
  }
});

Deno.test("CodecPool.expectJob() starts a thread if none is idle, and only where there may be one", async () => {
  const soon = () => new Promise((resolve) => setTimeout(resolve, 20));
  {
    using pool = new CodecPool({ threads: 2 });
    pool.expectJob();
    pool.expectJob();
    assert.equal(pool.size, 0, "not at once: it holds the thread");
    await until(() => pool.size > 0);
    assert.equal(pool.size, 1);
    pool.expectJob();
    await soon();
    assert.equal(pool.size, 1, "one is idle");
    // Given to a job before it has started up, it takes no other.
    const jobs = [0, 1, 2].map((i) => pool.inflateSpan(spanJob(i).job));
    assert.equal(pool.size, 2);
    pool.expectJob();
    for (const [i, bytes] of (await Promise.all(jobs)).entries()) {
      assert.deepEqual(bytes, spanJob(i).content);
    }
    assert.equal(pool.size, 2, "as many as there may be");
  }
  const pool = new CodecPool({ threads: 2, idleMs: 100 });
  await pool.inflateSpan(spanJob(0).job);
  assert.equal(pool.size, 1);
  await until(() => pool.size === 0); // idle ones end
  pool.expectJob();
  await until(() => pool.size === 1);
  await until(() => pool.size === 0); // also one that got no job
  pool.expectJob();
  pool[Symbol.dispose]();
  pool.expectJob();
  await soon();
  assert.equal(pool.size, 0);
});

Deno.test("CodecPool fails jobs with typed errors and goes on", async () => {
  using pool = new CodecPool({ threads: 1 });
  const { job, content } = spanJob(2);
  await assert.rejects(
    pool.inflateSpan({ ...job, sha256: new Uint8Array(32) }),
    IntegrityError,
  );
  await assert.rejects(
    pool.inflateSpan({ ...job, input: job.input.subarray(0, 1000) }),
    FormatError,
  );
  await assert.rejects(
    pool.inflateSpan({
      ...job,
      input: new Uint8Array(1000).fill(0xff),
      bits: 0,
    }),
    FormatError,
  );
  await assert.rejects(
    pool.inflateSpan({ ...job, window: new Uint8Array(10) }),
    FormatError,
  );
  await assert.rejects(
    pool.inflateSpan({
      ...job,
      window: new Uint8Array(zlib.deflateSync(new Uint8Array(100_000))),
      windowIsZlib: true,
    }),
    FormatError,
  );
  assert.deepEqual(await pool.inflateSpan(job), content);
});

Deno.test("CodecPool replaces a crashed worker", async () => {
  using pool = new CodecPool({ threads: 1 });
  const crashed = pool.crashForTest();
  const { job, content } = spanJob(1);
  const after = pool.inflateSpan(job);
  await assert.rejects(
    crashed,
    (error) => error instanceof ObdError && error.code === "state",
  );
  assert.deepEqual(await after, content);
  assert.equal(pool.size, 1);
});

Deno.test("CodecPool serves demand before prefetch and lets queued jobs go", async () => {
  using pool = new CodecPool({ threads: 1 });
  const { job } = spanJob(0);
  const order: string[] = [];
  const control = new AbortController();
  const jobs = [
    pool.inflateSpan(job).then(() => order.push("first")),
    pool.inflateSpan({ ...job, priority: "prefetch" }).then(() =>
      order.push("prefetch")
    ),
    pool.inflateSpan(job).then(() => order.push("demand")),
  ];
  const cancelled = pool.inflateSpan({ ...job, signal: control.signal });
  control.abort();
  await assert.rejects(cancelled, CancelledError);
  await Promise.all(jobs);
  assert.deepEqual(order, ["first", "demand", "prefetch"]);
  await assert.rejects(
    pool.inflateSpan({ ...job, signal: AbortSignal.abort() }),
    CancelledError,
  );
});

Deno.test("CodecPool ends idle workers, hung jobs and everything on dispose", async () => {
  const pool = new CodecPool({ threads: 2, idleMs: 20 });
  const digest = await pool.sha256(CONTENT);
  assert.equal(
    digest.toHex(),
    createHash("sha256").update(CONTENT).digest("hex"),
  );
  assert.equal(pool.size, 1);
  await until(() => pool.size === 0);
  const pending = pool.inflateSpan(spanJob(0).job);
  pool[Symbol.dispose]();
  await assert.rejects(pending, CancelledError);
  await assert.rejects(pool.sha256(CONTENT), CancelledError);

  using slow = new CodecPool({ threads: 1, jobTimeoutMs: 0 });
  await assert.rejects(
    slow.sha256(new Uint8Array(200_000_000)),
    DeadlineError,
  );
});

/** A process of its own: other tests have workers too. Prints the highest nice value of its threads after a job of each kind. */
const NICE_SCRIPT = `
import { CodecPool } from ${
  JSON.stringify(new URL("../../lib/compress/mod.ts", import.meta.url).href)
};
const nice = () => Math.max(...[...Deno.readDirSync("/proc/self/task")].map(
  ({ name }) => Number(Deno.readTextFileSync("/proc/self/task/" + name + "/stat")
    .replace(/^.*\\) /, "").split(" ")[16])));
using pool = new CodecPool({ threads: 1 });
const seen = [nice()];
for (const priority of ["demand", "prefetch", "prefetch", "demand"]) {
  await pool.sha256(new Uint8Array(10), { priority });
  seen.push(nice());
}
console.log(JSON.stringify(seen));
`;

const CAP_SYS_NICE = 23; // capabilities(7)

Deno.test("CodecPool works ahead behind everything else on the machine", async () => {
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", NICE_SCRIPT],
    cwd: new URL("../../", import.meta.url),
  }).output();
  const text = new TextDecoder();
  assert.equal(text.decode(stderr).replaceAll(/^.*Check.*\n/gm, ""), "");
  const seen: number[] = JSON.parse(text.decode(stdout));
  const own = seen[0]!;
  const status = await Deno.readTextFile("/proc/self/status");
  const capabilities = BigInt(`0x${/^CapEff:\t(\w+)$/m.exec(status)![1]}`);
  const mayRaise = (capabilities >> BigInt(CAP_SYS_NICE) & 1n) === 1n;
  assert.deepEqual(
    seen,
    mayRaise
      ? [own, own, own + 10, own + 10, own]
      // Tried with one step, and left alone.
      : [own, own, own + 1, own + 1, own + 1],
  );
});

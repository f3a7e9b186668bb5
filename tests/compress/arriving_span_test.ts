/** Spans that are decoded while their input arrives. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import { CodecPool, inputStart, type SpanJob } from "../../lib/compress/mod.ts";
import { SpanDecoder } from "../../lib/compress/inflate_at.ts";
import {
  CancelledError,
  concatBytes,
  DeadlineError,
  FormatError,
  IntegrityError,
  ObdError,
} from "../../lib/io/mod.ts";
import { indexBlob } from "./index_blob.ts";
import { mulberry32, sampleBytes } from "./samples.ts";

const FNAME = 0x08;

/** A member with a name in its header, which makes the header long. */
function member(content: Uint8Array, name: number): Uint8Array {
  const plain = new Uint8Array(zlib.gzipSync(content));
  plain[3] = FNAME;
  return concatBytes([
    plain.subarray(0, 10),
    new Uint8Array(name).fill(97),
    Uint8Array.of(0),
    plain.subarray(10),
  ]);
}

const CONTENT = concatBytes([
  sampleBytes(1, 200_000, "text"),
  sampleBytes(2, 70_000, "random"),
  sampleBytes(3, 150_000, "pattern"),
  sampleBytes(4, 1, "text"),
  sampleBytes(5, 200_000, "text"),
]);
const BLOB = concatBytes([
  member(CONTENT.subarray(0, 300_000), 0),
  member(CONTENT.subarray(300_000, 300_010), 3000),
  member(CONTENT.subarray(300_010), 5),
]);
const INDEX = indexBlob(BLOB, { spanSize: 90_000 });

/** A span of BLOB, its input in shared memory. */
function spanJob(i: number): SpanJob & { content: Uint8Array } {
  const checkpoint = INDEX.checkpoints[i]!;
  const next = INDEX.checkpoints[i + 1];
  const content = CONTENT.subarray(
    checkpoint.uncompressedOffset,
    next?.uncompressedOffset ?? CONTENT.length,
  );
  const bytes = BLOB.subarray(
    inputStart(checkpoint),
    next?.compressedOffset ?? BLOB.length,
  );
  const input = new Uint8Array(new SharedArrayBuffer(bytes.length));
  input.set(bytes);
  return {
    content,
    input,
    bits: checkpoint.bits,
    window: checkpoint.window,
    length: content.length,
    sha256: new Uint8Array(createHash("sha256").update(content).digest()),
  };
}

const SPANS = INDEX.checkpoints.map((_, i) => i);

Deno.test("SpanDecoder gives the same bytes however the input comes, and looks at nothing that has not come", () => {
  const decoder = new SpanDecoder();
  const random = mulberry32(1);
  for (const i of SPANS) {
    const job = spanJob(i);
    // Also byte by byte, which stops everywhere in headers and trailers.
    for (const step of [1, 7, 1000, 30_000]) {
      if (step === 1 && job.input.length > 60_000) continue;
      const input = new Uint8Array(job.input.length).fill(0xaa);
      const output = new Uint8Array(job.length);
      decoder.start({ ...job, input }, output);
      let before = 0;
      for (let at = 0; at < input.length;) {
        const next = Math.min(
          input.length,
          at + 1 + Math.floor(random() * 2 * step - 1),
        );
        input.set(job.input.subarray(at, next), at);
        at = next;
        const done = decoder.advance(at);
        assert.ok(done >= before);
        assert.deepEqual(
          output.subarray(before, done),
          job.content.subarray(before, done),
        );
        before = done;
      }
      assert.equal(before, output.length, `span ${i} in steps of ${step}`);
    }
  }
  decoder.close();
});

Deno.test("SpanDecoder refuses input that ends first or is damaged, and goes on with another span", () => {
  const decoder = new SpanDecoder();
  const random = mulberry32(2);
  for (let round = 0; round < 300; round++) {
    const job = spanJob(SPANS[round % SPANS.length]!);
    const input = new Uint8Array(job.input);
    const isCut = round % 2 === 0;
    const length = isCut
      ? Math.floor(random() * (input.length - 40))
      : input.length;
    if (!isCut) input[Math.floor(random() * length)]! ^= 1 << (round % 8);
    const output = new Uint8Array(job.length);
    decoder.start({ ...job, input: input.subarray(0, length) }, output);
    let done = 0;
    try {
      for (let at = 0; at < length && done < output.length;) {
        at = Math.min(length, at + 1 + Math.floor(random() * 40_000));
        done = decoder.advance(at);
      }
      if (length === 0) decoder.advance(0);
      assert.ok(!isCut, "a cut span was decoded");
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
    }
    const good = spanJob(round % SPANS.length);
    const out = new Uint8Array(good.length);
    decoder.start(good, out);
    assert.equal(decoder.advance(good.input.length), out.length);
    assert.deepEqual(out, good.content);
  }
  decoder.close();
});

Deno.test("CodecPool.streamSpan() gives what inflateSpan() does, and lets other jobs pass", async () => {
  using pool = new CodecPool({ threads: 2 });
  for (const i of SPANS) {
    const job = spanJob(i);
    const whole = job.input.slice();
    job.input.fill(0xaa);
    const span = pool.streamSpan(
      i % 2 === 0 ? job : {
        ...job,
        window: job.window.length === 0
          ? job.window
          : new Uint8Array(zlib.deflateSync(job.window)),
        windowIsZlib: job.window.length > 0,
      },
    );
    assert.ok(span);
    for (let at = 0; at < whole.length;) {
      const next = Math.min(whole.length, at + 20_000);
      job.input.set(whole.subarray(at, next), at);
      at = next;
      span.advance(at);
      const other = spanJob((i + 1) % SPANS.length);
      assert.deepEqual(await pool.inflateSpan(other), other.content);
    }
    assert.deepEqual(await span.bytes, job.content);
    span.advance(job.input.length); // too late, of no effect
    span.drop();
    const again = new Uint8Array(new SharedArrayBuffer(job.length));
    const own = pool.streamSpan({ ...job, output: again })!;
    own.advance(job.input.length);
    assert.equal(await own.bytes, again);
    assert.deepEqual(new Uint8Array(again), job.content);
  }
});

Deno.test("CodecPool.streamSpan() takes one span for each thread, while a thread is free", async () => {
  using pool = new CodecPool({ threads: 2 });
  const open = [0, 1].map((i) => pool.streamSpan(spanJob(i))!);
  assert.equal(pool.size, 2);
  assert.equal(pool.streamSpan(spanJob(2)), undefined);
  open[0]!.drop();
  await assert.rejects(open[0]!.bytes, CancelledError);
  const third = spanJob(2);
  open[0] = pool.streamSpan(third)!;
  open[0].advance(third.input.length);
  assert.deepEqual(await open[0].bytes, third.content);
  open[1]!.drop();
  const control = new AbortController();
  const called = pool.streamSpan({ ...spanJob(1), signal: control.signal })!;
  control.abort();
  await assert.rejects(called.bytes, CancelledError);
  assert.equal(
    pool.streamSpan({ ...spanJob(1), signal: control.signal }),
    undefined,
  );
  // All threads at work: it would wait for them.
  const jobs = [0, 1].map((i) => pool.inflateSpan(spanJob(i)));
  assert.equal(pool.streamSpan(third), undefined);
  await Promise.all(jobs);
});

Deno.test("CodecPool.streamSpan() fails with typed errors, and the thread goes on", async () => {
  using pool = new CodecPool({ threads: 1 });
  const run = (job: SpanJob) => {
    const span = pool.streamSpan(job)!;
    span.advance(Math.floor(job.input.length / 2));
    span.advance(job.input.length);
    span.advance(job.input.length);
    return span.bytes;
  };
  const job = spanJob(1);
  await assert.rejects(
    run({ ...job, sha256: new Uint8Array(32) }),
    IntegrityError,
  );
  await assert.rejects(run({ ...job, window: new Uint8Array(3) }), FormatError);
  await assert.rejects(
    run({ ...job, window: new Uint8Array(30), windowIsZlib: true }),
    FormatError,
  );
  await assert.rejects(
    run({ ...job, input: job.input.subarray(0, 1000) }),
    FormatError,
  );
  const damaged = spanJob(1);
  damaged.input.fill(0xff, 100, 200);
  await assert.rejects(
    run(damaged),
    (error) => error instanceof FormatError || error instanceof IntegrityError,
  );
  assert.deepEqual(await run(job), job.content);
  assert.equal(pool.size, 1);
});

Deno.test("CodecPool.streamSpan(): an idle thread stays for a span that arrives; a crash, a hang and the end fail it", async () => {
  const pool = new CodecPool({ threads: 1, idleMs: 10 });
  const job = spanJob(0);
  const slow = pool.streamSpan(job)!;
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(pool.size, 1);
  slow.advance(job.input.length);
  assert.deepEqual(await slow.bytes, job.content);
  while (pool.size > 0) await new Promise((go) => setTimeout(go, 5));

  const lost = pool.streamSpan(job)!;
  await assert.rejects(pool.crashForTest());
  await assert.rejects(
    lost.bytes,
    (error) => error instanceof ObdError && error.code === "state",
  );
  lost.advance(job.input.length);
  lost.drop();
  const last = pool.streamSpan(job)!;
  pool[Symbol.dispose]();
  await assert.rejects(last.bytes, CancelledError);
  assert.equal(pool.streamSpan(job), undefined);

  using hanging = new CodecPool({ threads: 1, jobTimeoutMs: 0 });
  const late = hanging.streamSpan(job)!;
  late.advance(job.input.length);
  await assert.rejects(late.bytes, DeadlineError);
});

Deno.test("CodecPool says once when no thread looks at a job's memory any more, and never of a thread that was ended", async () => {
  const pool = new CodecPool({ threads: 1 });
  const freed: string[] = [];
  const named = (name: string, i = 0) => ({
    ...spanJob(i),
    onFree: () => freed.push(name),
  });
  const late = named("done late");
  const whole = pool.streamSpan(late)!;
  const dropped = named("dropped");
  // One for each thread: this one has none.
  assert.equal(pool.streamSpan(dropped), undefined);
  whole.advance(late.input.length);
  await whole.bytes;
  assert.deepEqual(freed.splice(0), ["done late"]);

  const control = new AbortController();
  const { signal } = control;
  const span = pool.streamSpan(dropped)!;
  span.advance(1000);
  const running = pool.inflateSpan({ ...named("running"), signal });
  const waiting = pool.inflateSpan({ ...named("waiting"), signal });
  span.drop();
  control.abort();
  await assert.rejects(span.bytes, CancelledError);
  await assert.rejects(running, CancelledError);
  await assert.rejects(waiting, CancelledError);
  await assert.rejects(
    pool.inflateSpan({ ...named("too late"), signal }),
    CancelledError,
  );
  assert.deepEqual(freed.splice(0), ["waiting", "too late"]);
  await pool.sha256(Uint8Array.of(1)); // the thread does one after the other
  assert.deepEqual(freed.splice(0), ["running", "dropped"]);

  const wrong = named("wrong");
  const failing = pool.streamSpan({ ...wrong, sha256: new Uint8Array(32) })!;
  failing.advance(wrong.input.length);
  await assert.rejects(failing.bytes, IntegrityError);
  assert.deepEqual(freed.splice(0), ["wrong"]);

  const lost = pool.streamSpan(named("lost"))!;
  const left = pool.streamSpan(named("left"));
  assert.equal(left, undefined);
  await assert.rejects(pool.crashForTest());
  await assert.rejects(lost.bytes, ObdError);
  const ended = pool.streamSpan(named("ended"))!;
  ended.drop();
  await assert.rejects(ended.bytes, CancelledError);
  pool[Symbol.dispose]();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.deepEqual(freed, []);
});

/** The work that probes time: always the same, done by as many threads as there are cores. */

import assert from "node:assert/strict";
import { deflateRawSync } from "node:zlib";
import { between, SpeedProbe } from "../../cmd/bench/speed_probe.ts";
import {
  SpeedWork,
  WORK_BYTES,
  WORK_DIGEST,
  WORK_NAME,
  workBytes,
} from "../../cmd/bench/speed_work.ts";
import { equalBytes, IntegrityError, toHex } from "../../lib/io/mod.ts";

/** The bytes by another way: exact integers, and matches as slices of what is there. */
function bytesOfTheWork(): Uint8Array {
  let state = 1n;
  const mask = (1n << 32n) - 1n;
  const out: number[] = [];
  while (out.length < WORK_BYTES) {
    state = (state ^ state << 13n) & mask;
    state ^= state >> 17n;
    state = (state ^ state << 5n) & mask;
    const random = Number(state);
    if (out.length < 32768 || (random & 3) === 0) {
      out.push(64 + Math.floor(random / 2 ** 26));
      continue;
    }
    const distance = Math.floor(random / 2 ** 17) + 1;
    const length = 3 + (random >>> 2 & 7);
    // A match may reach into itself: its period is its distance.
    const from = out.length - distance;
    const period = out.slice(from, from + length);
    for (let i = 0; i < length; i++) out.push(period[i % period.length]!);
  }
  return Uint8Array.from(out.slice(0, WORK_BYTES));
}

Deno.test("workBytes() are the bytes of WORK_DIGEST, however they are made", async () => {
  const bytes = new Uint8Array(bytesOfTheWork());
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  assert.equal(toHex(new Uint8Array(digest)), WORK_DIGEST);
  assert.ok(equalBytes(workBytes(), bytes));
  // Neither stored nor nearly nothing: inflating them is work.
  const share = deflateRawSync(bytes).length / bytes.length;
  assert.ok(share > 0.3 && share < 0.5, `deflated to ${share}`);
});

Deno.test("SpeedWork refuses to have done other work", () => {
  new SpeedWork().run();
  const other = workBytes();
  other[WORK_BYTES - 1]! ^= 1;
  assert.throws(
    () => new SpeedWork(deflateRawSync(other)).run(),
    IntegrityError,
  );
});

Deno.test("SpeedProbe times the work on every core", async () => {
  const { signal } = new AbortController();
  using probe = await SpeedProbe.start(signal);
  assert.ok(probe.method.includes(WORK_NAME), probe.method);
  assert.match(
    probe.method,
    new RegExp(`, ${navigator.hardwareConcurrency} threads? at once$`),
  );
  const { seconds, cpuSeconds } = await probe.measure(signal);
  // The clock runs at least as long as any thread, which cannot be quicker than inflate.
  assert.ok(cpuSeconds > 0.01 && seconds > 0.01, `${cpuSeconds}, ${seconds}`);
  assert.ok(cpuSeconds < 1.5 * seconds, `${cpuSeconds}, ${seconds}`);
});

Deno.test("between() is the mean of the probes around a run", () => {
  assert.deepEqual(
    between({ seconds: 0.3, cpuSeconds: 0.2 }, {
      seconds: 0.5,
      cpuSeconds: 0.25,
    }),
    { seconds: 0.4, cpuSeconds: 0.225 },
  );
});

Deno.test("SpeedProbe ends with its signal and leaves no thread behind", async () => {
  const stop = new AbortController();
  using probe = await SpeedProbe.start(stop.signal);
  const waiting = probe.measure(stop.signal);
  stop.abort(new Error("enough"));
  await assert.rejects(waiting);
  await assert.rejects(SpeedProbe.start(stop.signal));
});

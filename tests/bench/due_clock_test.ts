import assert from "node:assert/strict";
import { DueClock } from "../../cmd/bench/due_clock.ts";
import { loadLibc } from "../../lib/io/mod.ts";

// Kept for the life of the process: not something that a test leaks.
loadLibc();

Deno.test("DueClock: nobody is woken early, and each as if alone", async () => {
  const clock = new DueClock(0.25);
  // All have begun to wait before the first is due, also on a busy machine.
  const started = performance.now() + 300;
  const woken: number[] = [];
  // Longer than one sleep, twice the same, close to each other, and not in order.
  const waits = [130, 40, 3, 3, 3.1, 2.95, 17, 60];
  await Promise.all(waits.map(async (ms) => {
    await clock.until(started + ms);
    assert.ok(performance.now() >= started + ms, `${ms} ms`);
    woken.push(ms);
  }));
  assert.deepEqual(woken, waits.toSorted((a, b) => a - b));
  await clock.until(started);
  await clock.stop();
});

Deno.test("DueClock.tick wakes those that are due", async () => {
  const clock = new DueClock(0.25);
  // Long enough to begin to wait, also on a busy machine.
  const due = performance.now() + 100;
  let isAwake = false;
  clock.until(due).then(() => isAwake = true);
  // Nothing else can wake it: the event loop does not go round.
  while (performance.now() < due);
  await Promise.resolve();
  assert.ok(!isAwake);
  clock.tick();
  await Promise.resolve();
  assert.ok(isAwake);
  await clock.stop();
});

Deno.test("DueClock.stop wakes all, and nobody waits afterwards", async () => {
  const clock = new DueClock(0.25);
  const started = performance.now();
  const waiting = [1000, 100_000].map((ms) => clock.until(started + ms));
  await clock.stop();
  await Promise.all(waiting);
  await clock.until(started + 100_000);
  assert.ok(performance.now() - started < 1000);
});

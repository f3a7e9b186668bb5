import assert from "node:assert/strict";
import { firstRead } from "../../cmd/first_read.ts";

Deno.test("firstRead() waits for a read, for its deadline, and for nothing once it is called off", async () => {
  const stats = { reads: 0 };
  const never = new AbortController();
  let isDone = false;
  const waiting = firstRead(stats, never.signal, 60_000).then(() =>
    isDone = true
  );
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(isDone, false);
  stats.reads = 1;
  await waiting;
  await firstRead({ reads: 0 }, never.signal, 10);
  const control = new AbortController();
  const called = firstRead({ reads: 0 }, control.signal, 60_000);
  control.abort();
  await assert.rejects(called, { code: "cancelled" });
});

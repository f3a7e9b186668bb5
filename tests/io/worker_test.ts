import { deepEqual } from "node:assert/strict";
import { delay, startWorker, withDeadline } from "../../lib/io/mod.ts";

Deno.test("loadRole(): what is posted before the role's module listens is not lost", async () => {
  const worker = startWorker(
    new URL("./late_role.ts", import.meta.url).href,
    "obd:late",
  );
  try {
    const replies: number[] = [];
    await withDeadline("the replies", 120_000, async () => {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.onmessage = ({ data }) => {
        if (replies.push(data) === 20) resolve();
      };
      // Before it starts, while it waits, and when it listens.
      for (let i = 0; i < 20; i++) {
        worker.postMessage(i);
        await delay(20);
      }
      await promise;
    });
    deepEqual(replies, Array.from({ length: 20 }, (_, i) => i + 1));
  } finally {
    worker.terminate();
  }
});

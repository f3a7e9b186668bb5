/** What a bench waits for: commands that end, services that are ready. */

import assert from "node:assert/strict";
import { ended } from "../../cmd/bench/clock.ts";
import { BenchProcess } from "../../cmd/bench/process.ts";
import { waitForReady } from "../../cmd/bench/ready.ts";
import { CancelledError } from "../../lib/io/mod.ts";

const LONG_MS = 600_000;
const NEVER = new AbortController().signal;

/** Fails when it is still waiting while the process ends by itself. */
const SLEEP = ["sleep", "10"];

Deno.test("ended, waitForReady: a signal that was there before is heard", async () => {
  const signal = AbortSignal.abort(new CancelledError("Stopped"));
  await using process = new BenchProcess(SLEEP);
  await assert.rejects(
    ended(process, { deadlineMs: LONG_MS, signal }, "wait"),
    /^CancelledError: Stopped$/,
  );
  for (
    const ready of [
      { kind: "exit" },
      { kind: "log", text: "never" },
      { kind: "http", port: 1, path: "/" },
    ] as const
  ) {
    await assert.rejects(
      waitForReady(process, ready, LONG_MS, signal),
      /^CancelledError: Stopped$/,
    );
  }
  assert.equal(process.ended, false);
});

Deno.test("ended: what takes too long is named", async () => {
  await using process = new BenchProcess(SLEEP);
  await assert.rejects(
    ended(process, { deadlineMs: 100, signal: NEVER }, "pull the image"),
    /Cannot pull the image: it took more than 0\.1 s/,
  );
});

Deno.test("waitForReady: a text is found across the pieces that a service writes", async () => {
  const path = await Deno.makeTempFile();
  try {
    // Pieces are of 64 KiB at most.
    const before = "x".repeat(65_536 - 5);
    await Deno.writeTextFile(
      path,
      `${before}it is ready${"y".repeat(200_000)}`,
    );
    await using process = new BenchProcess([
      "sh",
      "-c",
      'cat "$1"; sleep 1; exit 1',
      "sh",
      path,
    ]);
    const ready = { kind: "log", text: "it is ready" } as const;
    await waitForReady(process, ready, LONG_MS, NEVER);
  } finally {
    await Deno.remove(path);
  }
});

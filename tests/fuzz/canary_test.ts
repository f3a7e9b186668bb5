/** The harness finds what is broken: every kind of defect, in readers made for it. */

import assert from "node:assert/strict";
import { loadLibc } from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";
import { readFinding, writeFinding } from "./findings.ts";
import { runFuzz } from "./run.ts";
import { Supervisor } from "./supervisor.ts";

loadLibc(); // not a leak of the first test

const MODULE = new URL("canaries.ts", import.meta.url).href;
/** Filling the heap takes half a second of computing, and must not look like a hang on a slow machine. */
const DEADLINE_MS = 4000;

Deno.test({
  name: "every broken reader is found, a good one is not",
  ignore: !requires("prlimit"),
  async fn() {
    const directory = await Deno.makeTempDir({ prefix: "obd-fuzz-test-" });
    try {
      const report = await runFuzz({
        module: MODULE,
        seed: 1,
        iterations: 10 * 40,
        directory,
        deadlineMs: DEADLINE_MS,
        jobs: 2,
        findingsPerTarget: 1,
        shrinksInChildren: false,
      });
      const found = Object.fromEntries(
        report.findings.map(({ target, kind }) => [target, kind]),
      );
      assert.deepEqual(found, {
        "canary-untyped": "untyped",
        "canary-unhandled": "untyped",
        "canary-wrong-bytes": "wrong-bytes",
        "canary-hang": "hang",
        "canary-wait": "hang",
        "canary-crash": "crash",
        "canary-memory": "memory",
        "canary-heap": "memory",
        "canary-allocation": "untyped",
      });
      // Written down, smaller, and still broken when read again.
      const wrong = report.findings.find((f) => f.kind === "wrong-bytes")!;
      const saved = await readFinding(wrong.path);
      assert.equal(saved.bytes.length, 2);
      assert.deepEqual([saved.bytes[0], saved.bytes[1]! % 2], [0x4d, 1]);
      await using supervisor = new Supervisor({
        module: MODULE,
        deadlineMs: DEADLINE_MS,
        directory,
      });
      assert.equal((await supervisor.replay(wrong.path)).kind, "wrong-bytes");
      const good = { ...saved, iteration: -2, bytes: Uint8Array.of(0x4d, 2) };
      const path = await writeFinding(directory, good);
      assert.equal((await supervisor.replay(path)).kind, "read");
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});

/** A short run of the long task, with a fixed seed: every target, nothing found. */

import assert from "node:assert/strict";
import { loadLibc } from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";
import { LoadedTarget } from "./input.ts";
import { Random } from "./random.ts";
import { runFuzz } from "./run.ts";
import { attempt, type Outcome } from "./target.ts";
import { TARGETS } from "./targets/mod.ts";

loadLibc(); // not a leak of the first test

const MODULE = new URL("targets/mod.ts", import.meta.url).href;
const ITERATIONS = 2500;
/** Starts programs for each input: `tar_differential_test.ts` is its smoke. */
const SLOW = ["tar-gnu"];
/** Seeds that readers rightly refuse as they are: formats.md §13. */
const REFUSED = new Set([
  "lsmt: unit/w1 (warp)",
  "layer: unit/tw_gnu",
  "json: localhost/x@sha256:abc",
]);
/** Some readers choose how they read: one of so many ways must do. */
const ATTEMPTS = 40;

Deno.test({
  name: "seeds are in order before they are changed",
  // Targets start threads and open files that live as long as the process.
  sanitizeResources: false,
  sanitizeOps: false,
  async fn() {
    for (const target of TARGETS.filter((t) => !SLOW.includes(t.name))) {
      const { seeds } = await LoadedTarget.load(target);
      for (const seed of seeds.filter((s) => !s.onlyOwn)) {
        const input = {
          bytes: new Uint8Array(seed.bytes),
          repaired: false,
          changes: [],
        };
        let outcome: Outcome = { kind: "refused" };
        for (let i = 0; i < ATTEMPTS; i++) {
          outcome = await attempt(seed, input, new Random(i, seed.name));
          if (outcome.kind === "read") break;
        }
        const name = `${target.name}: ${seed.name}`;
        const want = REFUSED.has(name) ? "refused" : "read";
        const why = "error" in outcome ? outcome.error.stack : "";
        assert.equal(outcome.kind, want, `${name}: ${why}`);
      }
    }
  },
});

Deno.test({
  name: `${ITERATIONS} mutations find nothing`,
  ignore: !requires("prlimit"),
  async fn() {
    const directory = await Deno.makeTempDir({ prefix: "obd-fuzz-test-" });
    try {
      const report = await runFuzz({
        module: MODULE,
        seed: 20_250_301,
        iterations: ITERATIONS,
        targets: TARGETS.map((t) => t.name).filter((n) => !SLOW.includes(n)),
        directory,
        deadlineMs: 10_000,
        jobs: 2,
        findingsPerTarget: 3,
        shrinksInChildren: false,
      });
      assert.deepEqual(
        report.findings.map(({ target, kind, message, stack }) =>
          `${target}: ${kind}: ${message}\n${stack}`
        ),
        [],
      );
      let refused = 0;
      for (const target of report.targets) {
        assert.ok(target.read + target.refused > 0, `${target.name}: nothing`);
        assert.ok(target.read > 0, `${target.name}: everything was refused`);
        refused += target.refused;
      }
      // Changes that change nothing would prove nothing.
      assert.ok(refused > ITERATIONS / 4, `only ${refused} were refused`);
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});

/**
 * Runs every test that this machine can run and ends with
 * `N passed, N failed, N skipped` alone on a line.
 *
 * Why a runner: `deno test` has no skip at run time and no machine-readable
 * summary that survives a type error or a module that throws. So the counts
 * come from its JUnit file, a bad exit without a recorded failure counts as a
 * failure, and the reasons for skips come from the file that
 * `testutil/requires.ts` writes.
 *
 * `deno task test [PATH…] [--filter TEXT]`
 */

import { parseJUnit } from "./testutil/junit.ts";

const ROOT = new URL("..", import.meta.url).pathname;
const DEADLINE_MS = 40 * 60_000;

interface Outcome {
  passed: number;
  failed: number;
  skipped: number;
}

async function runTests(
  args: string[],
  junitPath: string,
  skipPath: string,
): Promise<Outcome> {
  const selected = args.some((a) => !a.startsWith("-"));
  const command = new Deno.Command(Deno.execPath(), {
    args: [
      "test",
      "-A",
      "--parallel",
      "--sanitize-ops",
      "--sanitize-resources",
      `--junit-path=${junitPath}`,
      ...args,
      ...(selected ? [] : ["tests/"]),
    ],
    cwd: ROOT,
    env: {
      NO_COLOR: "1",
      // Builds leave nothing behind that the next run would find.
      OBD_DEDUP_DB: "none",
      // Who reads memory that went back to be used again gets wrong bytes.
      OBD_POISON_BUFFERS: "1",
      // Where Debian keeps e2fsprogs and friends, also for users whose PATH leaves it out.
      PATH: `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/sbin`,
      OBD_SKIP_FILE: skipPath,
      DENO_JOBS: Deno.env.get("DENO_JOBS") ??
        String(Math.max(2, navigator.hardwareConcurrency)),
    },
    stdin: "null",
  });
  const child = command.spawn();
  const timer = setTimeout(() => {
    console.error(`tests did not finish in ${DEADLINE_MS / 60_000} minutes`);
    child.kill("SIGKILL");
  }, DEADLINE_MS);
  const { code } = await child.status;
  clearTimeout(timer);

  const counts = parseJUnit(
    await Deno.readTextFile(junitPath).catch(() => ""),
  );
  if (code !== 0 && counts.failed === 0) {
    console.error(`deno test ended with ${code} and recorded no failure`);
    counts.failed = 1;
  }
  if (counts.passed + counts.failed === 0) {
    console.error("no test was executed");
    counts.failed = 1;
  }
  return counts;
}

if (import.meta.main) {
  const scratch = await Deno.makeTempDir({ prefix: "obd-tests-" });
  let outcome: Outcome;
  let reasons: string[];
  try {
    const skips = `${scratch}/skips`;
    await Deno.writeTextFile(skips, "");
    outcome = await runTests(Deno.args, `${scratch}/junit.xml`, skips);
    reasons = (await Deno.readTextFile(skips)).split("\n").filter((l) => l);
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
  for (const reason of new Set(reasons)) console.log(`skipped: ${reason}`);
  console.log(
    `${outcome.passed} passed, ${outcome.failed} failed, ${outcome.skipped} skipped`,
  );
  Deno.exit(outcome.failed > 0 ? 1 : 0);
}

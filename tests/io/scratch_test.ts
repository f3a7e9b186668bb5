/** Temporary directories of processes that were killed go; all others stay. */

import assert from "node:assert/strict";
import { exists, Scratch } from "../../lib/io/mod.ts";
import { until } from "../testutil/until.ts";

const PREFIX = "obd-scratch-test-";

/** A process that makes one, says where, and waits. */
async function elsewhere(): Promise<
  { path: string; kill(): Promise<void> } & Disposable
> {
  const lib = import.meta.resolve("../../lib/io/mod.ts");
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["eval", "--no-lock"],
      `import { Scratch } from ${JSON.stringify(lib)};
      const { path } = await Scratch.make("${PREFIX}");
      console.log(path);
      setInterval(() => {}, 1000);`,
    ],
    stdout: "piped",
    stdin: "null",
  }).spawn();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let path = "";
  while (!path.endsWith("\n")) {
    const { value, done } = await reader.read();
    assert.ok(!done, "the process ended");
    path += value;
  }
  await reader.cancel();
  const kill = async () => {
    child.kill("SIGKILL");
    await child.status;
  };
  return {
    path: path.trim(),
    kill,
    [Symbol.dispose]: () => {
      try {
        child.kill("SIGKILL");
      } catch {
        // It has ended.
      }
    },
  };
}

/** As if it had been made an hour ago. */
async function makeOld(path: string): Promise<void> {
  const then = new Date(Date.now() - 3_600_000);
  await Deno.utime(`${path}/lock`, then, then);
}

Deno.test("Scratch: removed with what is in it; what a killed process left, by the next", async () => {
  using living = await elsewhere();
  using killed = await elsewhere();
  using young = await elsewhere();
  const foreign = await Deno.makeTempDir({ prefix: PREFIX });
  try {
    for (const { path } of [living, killed]) {
      await Deno.mkdir(`${path}/0`);
      await Deno.writeTextFile(`${path}/0/blob`, "x");
      await makeOld(path);
    }
    await killed.kill();
    await young.kill();
    let own: string;
    {
      await using scratch = await Scratch.make(PREFIX);
      own = scratch.path;
      await Deno.writeTextFile(`${own}/more`, "x");
      assert.deepEqual(
        await Promise.all(
          [own, living.path, killed.path, young.path, foreign].map(exists),
        ),
        [true, true, false, true, true],
      );
    }
    assert.equal(await exists(own), false);
    // Its lock goes with its process.
    await living.kill();
    await makeOld(young.path);
    await until(async () => {
      await using _scratch = await Scratch.make(PREFIX);
      return !await exists(living.path) && !await exists(young.path);
    });
  } finally {
    for (const path of [living.path, killed.path, young.path, foreign]) {
      await Deno.remove(path, { recursive: true }).catch(() => {});
    }
  }
});

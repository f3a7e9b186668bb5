/** The files of one run of a bench. */

import assert from "node:assert/strict";
import { diskUse } from "../../cmd/bench/run_files.ts";

const NEVER = new AbortController().signal;

Deno.test("diskUse() adds up, and what went meanwhile costs no run", async () => {
  const dir = await Deno.makeTempDir();
  try {
    for (const name of ["a", "b"]) {
      await Deno.mkdir(`${dir}/${name}`);
      await Deno.writeFile(`${dir}/${name}/x`, new Uint8Array(100_000).fill(1));
    }
    const one = await diskUse([`${dir}/a`], NEVER);
    assert.ok(one >= 100_000 && one < 200_000, `${one}`);
    const paths = ["a", "gone", "b"].map((name) => `${dir}/${name}`);
    assert.equal(await diskUse(paths, NEVER), 2 * one);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

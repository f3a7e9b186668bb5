/** `deno task compile`, up to the runtime base that is not downloaded here. */

import assert from "node:assert/strict";

const ROOT = new URL("../../", import.meta.url).pathname;

Deno.test("deno task compile gets as far as the base binary", async () => {
  const temp = await Deno.makeTempDir({ prefix: "obd-compile-" });
  try {
    const { code, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["task", "compile", `${temp}/obd`],
      cwd: ROOT,
      // Any ELF file: it proves the module graph, the result does not run.
      env: { DENORT_BIN: Deno.execPath(), NO_COLOR: "1" },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
      signal: AbortSignal.timeout(120_000),
    }).output();
    assert.equal(code, 0, new TextDecoder().decode(stderr));
    const { size: whole } = await Deno.stat(`${temp}/obd`);
    const { size: base } = await Deno.stat(Deno.execPath());
    assert.ok(whole > base + 200_000, `${whole} bytes on a base of ${base}`);
  } finally {
    await Deno.remove(temp, { recursive: true });
  }
});

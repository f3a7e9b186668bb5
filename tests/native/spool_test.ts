/** The tar of a layer under conversion leaves nothing behind, however it ends. */

import assert from "node:assert/strict";
import { ObdError, readBytes } from "../../lib/io/mod.ts";
import { TarSpool } from "../../lib/layers/mod.ts";
import { file, makeImage, writeLayout } from "../testutil/oci_image.ts";
import { Random } from "../testutil/random_layers.ts";
import { OBD, withTempDir } from "../image/helpers.ts";

Deno.test("TarSpool: nameless, read back while it grows", async () => {
  await withTempDir(async (dir) => {
    using spool = new TarSpool(dir);
    assert.deepEqual([...Deno.readDirSync(dir)], []);
    spool.push(new Uint8Array([1, 2, 3]));
    spool.push(new Uint8Array());
    spool.push(new Uint8Array([4]));
    assert.equal(spool.size, 4);
    await using source = await spool.source();
    assert.deepEqual(
      await readBytes(source, 0, source.size),
      new Uint8Array([1, 2, 3, 4]),
    );
    spool.push(new Uint8Array(10));
    await using later = await spool.source();
    assert.equal(later.size, 14);
    assert.deepEqual([...Deno.readDirSync(dir)], []);
  });
});

Deno.test("TarSpool names the place that cannot be written to", () => {
  assert.throws(
    () => new TarSpool("/nonexistent/place"),
    (error) =>
      error instanceof ObdError && /"\/nonexistent\/place"/.test(error.message),
  );
});

Deno.test("a conversion that is interrupted leaves no temporary files", async () => {
  await withTempDir(async (dir) => {
    const random = new Random(2);
    const entries = Array.from(
      { length: 8 },
      (_, i) => file(`f${i}`, random.bytes(1_500_000)),
    );
    const layout = `${dir}/l`;
    const layers = [{ entries }, { entries: [...entries, file("g", "h")] }];
    await writeLayout(layout, [{ tag: "v1", image: makeImage({ layers }) }]);
    const temp = `${dir}/tmp`;
    await Deno.mkdir(temp);
    const [program, ...args] = OBD;
    const process = new Deno.Command(program!, {
      args: [...args, "build", "--format", "overlaybd", `oci:${layout}:v1`],
      env: { TMPDIR: temp },
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    const deadline = performance.now() + 20_000;
    while (
      [...Deno.readDirSync(temp)].length === 0 && performance.now() < deadline
    ) await new Promise((resolve) => setTimeout(resolve, 5));
    process.kill("SIGTERM");
    const { code } = await process.status;
    assert.notEqual(code, 0);
    assert.deepEqual([...Deno.readDirSync(temp)], []);
    const index = await Deno.readTextFile(`${layout}/index.json`);
    assert.ok(!index.includes("overlaybd"));
  });
});

/** An export that is refused after its image was opened keeps nothing open. */

import assert from "node:assert/strict";
import { writeLayout } from "../testutil/oci_image.ts";
import { until } from "../testutil/until.ts";
import {
  build,
  content,
  imageOf,
  ServeProcess,
  withTempDir,
  writeConfig,
} from "./harness.ts";

/** Files below a directory that a process holds open. */
async function openBelow(pid: number, directory: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir(`/proc/${pid}/fd`)) {
    const target = await Deno.readLink(`/proc/${pid}/fd/${name}`)
      .catch(() => "");
    if (target.startsWith(`${directory}/`)) found.push(target);
  }
  return found;
}

Deno.test("an export whose name NBD cannot say is refused, and its image closed", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/images`;
    const image = await imageOf({ a: content(1, 100_000) });
    await writeLayout(layout, [{ tag: "v1", image }]);
    await build(`oci:${layout}:v1`);
    await using serve = await ServeProcess.start(await writeConfig(dir, []));
    using api = serve.api();
    const add = (name: string) =>
      api.addExport({ name, image: `oci:${layout}:v1` });
    await add("right");
    assert.notDeepEqual(await openBelow(serve.pid, layout), []);
    // A read that was called off has its file until the kernel is through with it.
    const allClosed = () =>
      until(
        async () => (await openBelow(serve.pid, layout)).length === 0,
        "closing the image",
      );
    await api.removeExport("right");
    await allClosed();
    for (const name of ["€".repeat(2000), "a\0b"]) {
      await assert.rejects(add(name), /Bad export name/);
      await allClosed();
    }
  });
});

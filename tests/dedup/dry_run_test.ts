/** `obd build --dry-run` makes no database; without it, there is one. */

import assert from "node:assert/strict";
import { withTempDir } from "../image/helpers.ts";
import { obd } from "../cmd/run_obd.ts";
import { file, makeImage, putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";

Deno.test("obd build --dry-run leaves the place of the database as it is", () =>
  withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const entries = [file("etc/a", new Uint8Array(5000))];
    await putImage(server, "app", "v1", makeImage({ layers: [{ entries }] }));
    const database = `${dir}/made/conversions.db`;
    const build = async (...flags: string[]) => {
      const { code, stderr } = await obd([
        ...["build", `${server.host}/app:v1`, "--vsize", "1"],
        ...["--dedup-db", `sqlite:${database}`, "--debug", ...flags],
      ]);
      assert.equal(code, 0, stderr);
      // Whatever does not work with a database, the build goes on without.
      assert.doesNotMatch(stderr, /going on without/);
    };
    await build("--dry-run");
    assert.deepEqual([...Deno.readDirSync(dir)], []);
    await build();
    const before = await Deno.readFile(database);
    await build("--dry-run");
    assert.deepEqual(await Deno.readFile(database), before);
  }));

/** A trace of a `config.v1.json` has no image to be pushed beside. */

import assert from "node:assert/strict";
import { encodeTrace } from "../../lib/layers/mod.ts";
import { assertOneLine, obd, withTempDir } from "../cmd/run_obd.ts";
import { lsmtImage } from "../testutil/lsmt_image.ts";

Deno.test("a trace cannot be pushed to a configuration, whatever its path looks like", () =>
  withTempDir(async (dir) => {
    await Deno.mkdir(`${dir}/app`);
    await Deno.writeFile(
      `${dir}/layer`,
      lsmtImage({
        virtualSize: 1 << 20,
        data: new Uint8Array(512),
        entries: [{ offset: 0, length: 1, moffset: 8 }],
      }) as Uint8Array<ArrayBuffer>,
    );
    const lowers = [{ file: `${dir}/layer` }];
    await Deno.writeTextFile(
      `${dir}/app/config.v1.json`,
      JSON.stringify({ lowers }),
    );
    await Deno.writeFile(
      `${dir}/trace`,
      encodeTrace([{ layer: 0, offset: 0, length: 512 }]),
    );
    const push = (image: string, ...more: string[]) =>
      obd(["trace", "push", image, "trace", ...more], { cwd: dir });
    for (const more of [[], ["--acceleration-layer", "x"]]) {
      // The first one could be a reference.
      for (const path of ["app/config.v1.json", `${dir}/app/config.v1.json`]) {
        const ended = await push(path, ...more);
        assert.equal(ended.code, 2, ended.stderr);
        assertOneLine(ended, /config\.v1\.json" is a configuration file/);
      }
    }
  }));

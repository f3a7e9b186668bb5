/** `obd serve --check`: what serve would refuse before it asks anybody. */

import assert from "node:assert/strict";
import { obd, withTempDir } from "./harness.ts";

Deno.test("--check names what no image and no platform can be", async () => {
  await withTempDir(async (dir) => {
    const image = "registry.example/app:1";
    const cases: [Record<string, unknown>, RegExp | undefined][] = [
      [{ images: [{ image, platform: "linux/arm64" }] }, undefined],
      [{ images: [{ image: `oci:${dir}/none:1` }] }, undefined],
      // Looked for when it is opened.
      [{ images: [{ config: `${dir}/none.json` }] }, undefined],
      [
        { images: [{ export: "x", image: "registry.example/App:1" }] },
        /^obd: Cannot open export "x": Bad reference "registry\.example\/App:1"/,
      ],
      [
        { images: [{ image, platform: "arm64" }] },
        /^obd: Cannot open export ".*app:1": Bad platform "arm64"/,
      ],
    ];
    for (const [config, problem] of cases) {
      const path = `${dir}/serve.json`;
      await Deno.writeTextFile(path, JSON.stringify(config));
      const ended = await obd("serve", "--config", path, "--check");
      const said = JSON.stringify([config, ended]);
      assert.equal(ended.code, problem === undefined ? 0 : 1, said);
      if (problem !== undefined) assert.match(ended.stderr, problem, said);
    }
  });
});

/** `obd mount` of images that the real overlaybd tools made, by their `config.v1.json`: ext4 and EROFS, TurboOCI and native. */

import { deepEqual, equal, ok } from "node:assert/strict";
import { runTool } from "../testutil/debian_image.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import { golden, requires, requiresMount } from "../testutil/requires.ts";

const tools = [
  requiresMount(),
  requires("nbdfuse", "losetup", "mount", "tar"),
].every((has) => has);

/** The lowers of a `config.v1.json`; undefined where the golden data is not there. */
function lowersOf(folder: string, layers: string[]) {
  const fs = folder.endsWith("erofs") ? "erofs" : "ext4";
  const lowers = layers.map((layer) =>
    folder.startsWith("native")
      ? { file: golden(`${folder}/${layer}.overlaybd.commit`) }
      : {
        file: golden(`${folder}/${layer}.${fs}.fs.meta`),
        targetFile: golden(`layers/${layer}.tar.gz`),
        gzipIndex: golden(`${folder}/${layer}.gzip.meta`),
      }
  );
  const whole = lowers.every((lower) =>
    Object.values(lower).every((path) => path !== undefined)
  );
  return whole ? lowers : undefined;
}

/** Files of a layer as tar unpacks it, without whiteouts and its hard link to a lower file. */
async function unpack(layer: string, to: string): Promise<string[]> {
  await Deno.mkdir(to);
  await runTool(
    "tar",
    "-xzf",
    golden(`layers/${layer}.tar.gz`)!,
    "-C",
    to,
    "--exclude=.wh.*",
    "--exclude=hard-to-lower",
  );
  const out = await runTool("find", to, "-type", "f", "-printf", "%P\\0");
  return out.split("\0").filter((path) => path !== "");
}

for (
  const [folder, fsType, layers] of [
    ["turbo-gz", "ext4", ["layer1", "layer2"]],
    ["turbo-gz-erofs", "erofs", ["layer1", "layer2e"]],
    ["native-zstd", "ext4", ["layer1", "layer2"]],
  ] as const
) {
  const lowers = lowersOf(folder, [...layers]);
  Deno.test({
    name: `mount of the golden ${folder} image`,
    ignore: !tools || lowers === undefined,
    fn: async () => {
      await using box = await ObdSandbox.make();
      const [config, dir] = [`${box.dir}/config.v1.json`, `${box.dir}/at`];
      await Deno.writeTextFile(config, JSON.stringify({ lowers }));
      await Deno.mkdir(dir);
      const mounted = await box.json("mount", "config.v1.json", dir);
      equal(mounted.image, config);
      equal(mounted.fsType, fsType);
      const files = await unpack(layers[1], `${box.dir}/layer`);
      ok(files.length > 0);
      for (const path of files) {
        deepEqual(
          await Deno.readFile(`${dir}/${path}`),
          await Deno.readFile(`${box.dir}/layer/${path}`),
          path,
        );
      }
      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await box.leftovers(), []);
    },
  });
}

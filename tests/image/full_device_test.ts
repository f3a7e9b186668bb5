/** Devices so full that layers must use blocks again that lower layers map. */

import { deepEqual, equal, ok } from "node:assert/strict";
import { Ext4Reader, openImage } from "../../lib/image/mod.ts";
import { isZero, readBytes } from "../../lib/io/mod.ts";
import {
  file,
  makeImage,
  opaque,
  whiteout,
  writeLayout,
} from "../testutil/oci_image.ts";
import { Random } from "../testutil/random_layers.ts";
import { sameTree } from "../testutil/device_tree.ts";
import { requires } from "../testutil/requires.ts";
import {
  build,
  dumpImage,
  imageTree,
  removeTags,
  sh,
  testEnvironment,
  withTempDir,
} from "./helpers.ts";

const SIZE = 4 * 2 ** 20;
const random = new Random(99);
const bytes = (length: number) => random.bytes(length).fill(0x41, 0, 1);

/** Each layer replaces all that the one below has with shorter files: nothing fits but on used blocks. */
const layers = [0, 1, 2, 3].map((i) => ({
  entries: [
    ...(i === 0 ? [] : i === 2 ? [opaque("")] : [whiteout(`l${i - 1}`)]),
    ...Array.from(
      { length: 90 },
      (_, j) => file(`l${i}/f${j}`, bytes(i === 0 ? 32_768 : 25_000 + j)),
    ),
  ],
}));
const image = makeImage({ layers });

Deno.test("build: a body on blocks of lower layers shows nothing of them", async () => {
  await withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const source = `oci:${dir}:v1`;
    await build({ source, virtualSize: SIZE });
    await using environment = await testEnvironment();
    await using opened = await openImage(environment, source);
    const reader = await Ext4Reader.open(opened.source);
    let partial = 0;
    for await (const { ino, path } of reader.walk()) {
      const { type, size } = await reader.stat(ino);
      if (type !== "file") continue;
      const j = Number(path.slice(path.indexOf("/f") + 2));
      await using body = await reader.openFile(ino);
      const content = layers[3]!.entries.find((e) => e.path === `l3/f${j}`)!
        .content as Uint8Array;
      deepEqual(await readBytes(body, 0, size), content, path);
      const last = (await reader.extents(ino)).at(-1)!;
      const end = size - last.logicalBlock * 4096;
      const rest = last.count * 4096 - end;
      if (rest === 0) continue;
      partial++;
      const behind = await readBytes(
        opened.source,
        last.physicalBlock * 4096 + end,
        rest,
      );
      ok(isZero(behind), `${path}: bytes behind its end`);
    }
    equal(partial, 90);
    if (requires("e2fsck")) {
      await dumpImage(source, `${dir}/full.raw`);
      await sh(["e2fsck", "-fn", `${dir}/full.raw`]);
    }
  });
});

Deno.test("build: on a full device too, any prefix can be continued", async () => {
  await withTempDir(async (dir) => {
    const digests: string[] = [];
    const trees: string[][] = [];
    for (let k = 0; k <= layers.length; k++) {
      const layout = `${dir}/${k}`;
      const prefix = makeImage({ layers: image.layers.slice(0, k || 1) });
      await writeLayout(layout, [
        { tag: "v1", image },
        { tag: "prefix", image: prefix },
      ]);
      const options = { virtualSize: SIZE };
      if (k > 0) await build({ source: `oci:${layout}:prefix`, ...options });
      else await removeTags(layout, (tag) => tag === "prefix");
      const { report } = await build({
        source: `oci:${layout}:v1`,
        ...options,
      });
      const { meta, layers: reports } = report.platforms[0]!;
      equal(reports.filter((l) => l.reused).length, k);
      digests.push(meta.digest);
      trees.push(await imageTree(`oci:${layout}:v1`));
    }
    equal(new Set(digests).size, 1, digests.join("\n"));
    for (const tree of trees) sameTree(tree, trees[0]!);
  });
});

/** Everything that obd writes keeps every rule of overlaybd's readers (tests/testutil/OVERLAYBD_RULES.md). */

import assert from "node:assert/strict";
import { gunzipSync, gzipSync, zstdCompressSync } from "node:zlib";
import { concatBytes } from "../../lib/io/mod.ts";
import type { PublishOptions } from "../../lib/image/mod.ts";
import {
  file,
  type LayerDescription,
  layerTar,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import {
  checkImage,
  checkNativeBlob,
} from "../testutil/overlaybd_image_rules.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { golden } from "../testutil/requires.ts";
import { build, OBD, sh, withTempDir } from "../image/helpers.ts";
import { imageDigest } from "./helpers.ts";

const VSIZE = 2 ** 30;

/** Layers of every compression, empty ones at the bottom, in the middle and on top. */
function layersOfAllKinds(): LayerDescription[] {
  const [a, b, c, d] = randomLayers(90, 4);
  const cut = (tar: Uint8Array) => Math.floor(tar.length / 1024) * 512;
  const members = layerTar(c!);
  const frames = layerTar(d!);
  return [
    { entries: [] },
    { entries: a! },
    { entries: b!, compression: "none" },
    { entries: [] },
    {
      entries: members,
      blob: concatBytes([
        gzipSync(members.subarray(0, cut(members))),
        gzipSync(members.subarray(cut(members))),
      ]),
    },
    {
      entries: frames,
      mediaType: "application/vnd.oci.image.layer.v1.tar+zstd",
      blob: new Uint8Array(zstdCompressSync(frames)),
    },
    { entries: [], compression: "none" },
  ];
}

/** Builds in the given way and checks what came out under each tag. */
async function checkBuild(
  layers: LayerDescription[],
  options: Omit<PublishOptions, "source">,
  want: Record<string, string>,
): Promise<void> {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    await writeLayout(layout, [{ tag: "v1", image: makeImage({ layers }) }]);
    await build({
      source: `oci:${layout}:v1`,
      virtualSize: VSIZE,
      ...options,
    });
    for (const [tag, kinds] of Object.entries(want)) {
      const found = checkImage(layout, tag, {
        virtualSize: VSIZE,
        ...options.native,
      });
      const letters = found.kinds.map((kind) => kind[0]).join("");
      assert.match(letters, new RegExp(`^${kinds}$`), tag);
    }
  });
}

Deno.test("rules: TurboOCI and native LZ4 of layers of all kinds", () =>
  checkBuild(layersOfAllKinds(), { formats: ["turbo", "overlaybd"] }, {
    "v1-obd": "t{7}",
    "v1-overlaybd": "n{7}",
  }));

Deno.test("rules: native zstd in blocks of 32 KiB, Docker's types", () =>
  checkBuild(layersOfAllKinds(), {
    formats: ["overlaybd"],
    native: { codec: "zstd", blockSize: 32768 },
    nativeTypes: "docker",
  }, { "v1-overlaybd": "n{7}" }));

Deno.test("rules: --compat overlaybd is a stack of both kinds", () =>
  checkBuild(layersOfAllKinds(), { compat: true }, { "v1-obd": "ttttnnt" }));

Deno.test("rules: flattened", () =>
  checkBuild(layersOfAllKinds(), {
    flatten: true,
    formats: ["turbo", "overlaybd"],
  }, { "v1-obd": "t{7}", "v1-overlaybd": "n" }));

Deno.test("rules: layers that became several", () => {
  const entries = Array.from(
    { length: 400 },
    (_, i) => file(`f${i}`, "x".repeat(600 + (i % 3) * 4096)),
  );
  return checkBuild([{ entries }, { entries: [file("top", "y")] }], {
    formats: ["turbo", "overlaybd"],
    maxEntries: 60,
  }, { "v1-obd": "t{5,}", "v1-overlaybd": "n{2,}" });
});

Deno.test({
  name: "rules: golden layers",
  ignore: golden("layers/layer2.tar.gz") === undefined,
  fn: async () => {
    const layers = await Promise.all([1, 2].map(async (n) => {
      const blob = await Deno.readFile(golden(`layers/layer${n}.tar.gz`)!);
      return { entries: new Uint8Array(gunzipSync(blob)), blob };
    }));
    await checkBuild(layers, { formats: ["turbo", "overlaybd"] }, {
      "v1-obd": "tt",
      "v1-overlaybd": "nn",
    });
  },
});

Deno.test("rules: merged layers", () =>
  withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    const layers = layersOfAllKinds();
    await writeLayout(layout, [{ tag: "v1", image: makeImage({ layers }) }]);
    const source = `oci:${layout}:v1`;
    await build({ source, virtualSize: VSIZE, compat: true });
    for (
      const [codec, kib] of [["lz4", 4], ["zstd", 16]] as const
    ) {
      const out = `${dir}/${codec}`;
      await sh([
        ...[...OBD, "merge", "--algorithm", codec],
        ...["--block-size", String(kib), `oci:${layout}:v1-obd`, out],
      ]);
      const blockSize = kib * 1024;
      const blob = await Deno.readFile(out);
      const wish = { virtualSize: VSIZE, codec, blockSize };
      assert.ok(checkNativeBlob(blob, wish).entries.length > 0);
      // TurboOCI and native layers below, one native layer above: the same device.
      const config = `${dir}/${codec}.json`;
      const lowers = [{ file: out }];
      await Deno.writeTextFile(config, JSON.stringify({ lowers }));
      assert.equal(
        await imageDigest(config),
        await imageDigest(`oci:${layout}:v1-obd`),
      );
    }
  }));

/** Layers that were converted before are found by their chain, and what is put on them is what a whole conversion gives. */

import assert from "node:assert/strict";
import {
  file,
  makeImage,
  makeLayer,
  writeLayout,
} from "../testutil/oci_image.ts";
import { Random, randomLayers } from "../testutil/random_layers.ts";
import {
  build,
  layoutTags,
  removeTags,
  withTempDir,
} from "../image/helpers.ts";
import { imageDigest, readImage } from "./helpers.ts";

const VSIZE = 2 ** 30;

/** Three layers; the second ends in zeros, which are not stored but keep their place. */
function layersOf() {
  const [a, b, c] = randomLayers(77, 3);
  const zeros = new Uint8Array(100_000);
  zeros.set(new Random(1).bytes(20_000));
  return [a!, [...b!, file("zzz-last", zeros)], c!].map((entries) =>
    makeLayer({ entries })
  );
}

for (const formats of [["overlaybd"], ["turbo", "overlaybd"]] as const) {
  Deno.test(`shared lower layers are not converted again: ${formats}`, async () => {
    await withTempDir(async (dir) => {
      const layers = layersOf();
      const whole = makeImage({ layers });
      const base = makeImage({ layers: layers.slice(0, 2) });
      const alone = `${dir}/alone`;
      await writeLayout(alone, [{ tag: "v2", image: whole }]);
      await build({ source: `oci:${alone}:v2`, virtualSize: VSIZE, formats });

      const both = `${dir}/both`;
      await writeLayout(both, [
        { tag: "v1", image: base },
        { tag: "v2", image: whole },
      ]);
      await build({ source: `oci:${both}:v1`, virtualSize: VSIZE, formats });
      const { report } = await build({
        source: `oci:${both}:v2`,
        virtualSize: VSIZE,
        formats,
      });
      for (const { layers, format } of report.platforms) {
        assert.deepEqual(
          layers.map((l) => l.reused),
          [true, true, false],
          format,
        );
        assert.ok(layers.every((l) => l.entries > 0));
      }
      const tags = (await layoutTags(alone)).entries().filter(([tag]) =>
        tag.startsWith("v2-")
      );
      for (const [tag, digest] of tags) {
        assert.equal((await layoutTags(both)).get(tag), digest, tag);
      }
      // Once more: nothing is converted, the same image comes out.
      const again = await build({
        source: `oci:${both}:v2`,
        virtualSize: VSIZE,
        formats,
      });
      assert.ok(
        again.report.platforms.every((p) => p.layers.every((l) => l.reused)),
      );
    });
  });
}

Deno.test("what a chain's tag names is checked", async () => {
  await withTempDir(async (dir) => {
    const layers = layersOf();
    const other = makeImage({
      layers: [...layers.slice(0, 1), makeLayer({ entries: [file("x", "y")] })],
    });
    const layout = `${dir}/l`;
    await writeLayout(layout, [
      { tag: "v1", image: makeImage({ layers: layers.slice(0, 2) }) },
      { tag: "other", image: other },
    ]);
    const options = { virtualSize: VSIZE, formats: ["overlaybd"] } as const;
    await build({ source: `oci:${layout}:v1`, ...options });
    const want = await imageDigest(`oci:${layout}:v1-overlaybd`);
    const right = await readImage(layout, "v1-overlaybd");
    await build({ source: `oci:${layout}:other`, ...options });
    const planted = (await layoutTags(layout)).get("other-overlaybd")!;
    // Every chain tag now names the other image.
    const path = `${layout}/index.json`;
    const index = JSON.parse(await Deno.readTextFile(path));
    const key = "org.opencontainers.image.ref.name";
    for (const entry of index.manifests) {
      if (/^obd-/.test(entry.annotations?.[key] ?? "")) {
        const bytes = await Deno.stat(
          `${layout}/blobs/${planted.replace(":", "/")}`,
        );
        Object.assign(entry, { digest: planted, size: bytes.size });
      }
    }
    await Deno.writeTextFile(path, JSON.stringify(index));
    await removeTags(layout, (tag) => tag === "v1-overlaybd");
    const { report, warnings } = await build({
      source: `oci:${layout}:v1`,
      ...options,
    });
    assert.ok(warnings.some((w) => w.includes("not reusing layers")));
    assert.equal(report.platforms[0]!.layers[1]!.reused, false);
    assert.equal(await imageDigest(`oci:${layout}:v1-overlaybd`), want);
    assert.deepEqual(
      (await readImage(layout, "v1-overlaybd")).layers,
      right.layers,
    );
  });
});

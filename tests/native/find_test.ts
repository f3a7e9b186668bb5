/** A plain image is opened through a native conversion of it, where there is no meta image. */

import assert from "node:assert/strict";
import { openImage, type OpenImageOptions } from "../../lib/image/mod.ts";
import {
  type MadeImage,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import {
  build,
  layoutTags,
  removeTags,
  testEnvironment,
  withTempDir,
} from "../image/helpers.ts";

const VSIZE = 2 ** 30;
const FOUND = ["digest", "tag", "referrer"] as const;

function imageOf(seed: number): MadeImage {
  const layers = randomLayers(seed, 2).map((entries) => ({ entries }));
  return makeImage({ layers });
}

/** What opens an image, by the digest of its manifest; or why nothing does. */
async function opener(
  image: string,
  options: OpenImageOptions = {},
): Promise<{ meta: string | undefined; kinds: string; warnings: string }> {
  await using environment = await testEnvironment();
  const warnings = () => environment.log.warnings.join("\n");
  try {
    await using opened = await openImage(environment, image, {
      metaFrom: FOUND,
      ...options,
    });
    return {
      meta: opened.metaDigest,
      kinds: opened.layers.map((l) => l.kind).join(),
      warnings: warnings(),
    };
  } catch (error) {
    return { meta: undefined, kinds: String(error), warnings: warnings() };
  }
}

Deno.test("native conversions are found by tag, digest tag and referrer", async () => {
  await withTempDir(async (dir) => {
    const image = imageOf(51);
    const cases = [
      { name: "v1-overlaybd" },
      { name: "v1-overlaybd", nativeTypes: "docker" },
      { name: "v1-overlaybd", flatten: true, kinds: "native" },
      {
        name: "v1-overlaybd",
        flatten: true,
        nativeTypes: "docker",
        kinds: "native",
      },
      { name: "v1-overlaybd", way: "tag" },
      { name: undefined, tag: false, way: "referrer" },
      {
        name: `${image.manifest.digest.replace(":", "-")}-overlaybd`,
        source: `@${image.manifest.digest}`,
        way: "digest",
      },
    ] as const;
    for (const [i, made] of cases.entries()) {
      const { name, way, kinds, source, ...options } = {
        way: undefined,
        kinds: "native,native",
        source: ":v1",
        ...made,
      };
      const layout = `${dir}/${i}`;
      await writeLayout(layout, [{ tag: "v1", image }]);
      const { report } = await build({
        source: `oci:${layout}${source}`,
        virtualSize: VSIZE,
        formats: ["overlaybd"],
        ...options,
      });
      const { digest } = report.platforms[0]!.meta;
      if (name) assert.equal((await layoutTags(layout)).get(name), digest);
      const got = await opener(`oci:${layout}:v1`, {
        metaFrom: way ? [way] : FOUND,
      });
      assert.deepEqual(
        got,
        { meta: digest, kinds, warnings: got.warnings },
        JSON.stringify(made),
      );
      // They have no digests of spans.
      const strict = await opener(`oci:${layout}:v1`, { requireSpans: true });
      assert.match(strict.kinds, /No meta image/);
    }
  });
});

Deno.test("a meta image goes before a native conversion", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    await writeLayout(layout, [{ tag: "v1", image: imageOf(52) }]);
    await build({
      source: `oci:${layout}:v1`,
      virtualSize: VSIZE,
      formats: ["overlaybd", "turbo"],
      tag: "v1-overlaybd",
    });
    // The turbo one was made too, under a name that nobody looks for.
    const { kinds } = await opener(`oci:${layout}:v1`);
    assert.equal(kinds, "turbo,turbo");
    const one = await opener(`oci:${layout}:v1`, { metaFrom: ["tag"] });
    assert.equal(one.kinds, "native,native");
  });
});

for (const nativeTypes of ["oci", "docker"] as const) {
  Deno.test(`a conversion that the tag left behind is not used (${nativeTypes})`, async () => {
    await withTempDir(async (dir) => {
      const layout = `${dir}/l`;
      await writeLayout(layout, [{ tag: "v1", image: imageOf(53) }]);
      const source = `oci:${layout}:v1`;
      await build({
        source,
        virtualSize: VSIZE,
        formats: ["overlaybd"],
        nativeTypes,
      });
      await removeTags(layout, (tag) => tag === "v1");
      const path = `${layout}/index.json`;
      const old = JSON.parse(await Deno.readTextFile(path));
      await writeLayout(layout, [{ tag: "v1", image: imageOf(54) }]);
      const index = JSON.parse(await Deno.readTextFile(path));
      index.manifests.push(...old.manifests);
      await Deno.writeTextFile(path, JSON.stringify(index));
      const { meta, warnings } = await opener(source);
      assert.equal(meta, undefined);
      assert.match(
        warnings,
        nativeTypes === "oci"
          ? /v1-overlaybd.*its subject is/
          : /v1-overlaybd.*its top layer is of chain/,
      );
    });
  });
}

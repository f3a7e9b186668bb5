/** The same input gives the same bytes: whenever, wherever, on how many threads, in how many steps. */

import { deepEqual, equal } from "node:assert/strict";
import { createHash } from "node:crypto";
import { deflateRawSync, gunzipSync } from "node:zlib";
import {
  file,
  type LayerEntry,
  type MadeImage,
  makeImage,
  makeLayer,
  writeLayout,
} from "../testutil/oci_image.ts";
import { Random, randomLayers } from "../testutil/random_layers.ts";
import { golden } from "../testutil/requires.ts";
import { build, OBD, removeTags, run, sh, withTempDir } from "./helpers.ts";

/** Everything in a layout's blobs, by name. */
async function blobsOf(layout: string): Promise<string[]> {
  const names: string[] = [];
  for await (const entry of Deno.readDir(`${layout}/blobs/sha256`)) {
    names.push(entry.name);
  }
  return names.sort();
}

/** A build by the program itself, in a process of its own. */
async function buildApart(
  layout: string,
  tag: string,
  more: string[] = [],
  options: Parameters<typeof run>[1] = {},
): Promise<{ meta: { digest: string }; layers: { reused: boolean }[] }> {
  return JSON.parse(
    await sh(
      [...OBD, "build", `oci:${layout}:${tag}`, "--json", ...more],
      options,
    ),
  );
}

/** Layers of which one is large enough for threads. */
function stackWithLargeLayer(): MadeImage {
  const random = new Random(5);
  const [first, second, third] = randomLayers(11, 3);
  const large: LayerEntry[] = Array.from(
    { length: 6 },
    (_, i) => file(`large-${i}`, random.bytes(700_000)),
  );
  return makeImage({
    layers: [
      { entries: first! },
      { entries: [...second!, ...large] },
      { entries: third!, compression: "none" },
    ],
  });
}

Deno.test("build: other directories, time zones and numbers of jobs give the same blobs and manifests", async () => {
  await withTempDir(async (dir) => {
    const image = stackWithLargeLayer();
    const variants: [string, string[], Record<string, string>][] = [
      ["1", [], { TZ: "UTC" }],
      ["2", ["--jobs", "1"], { TZ: "Asia/Tokyo", LC_ALL: "tr_TR.UTF-8" }],
      ["a/long/way/3", ["--jobs", "4"], { TZ: "America/New_York" }],
    ];
    const results: { digest: string; blobs: string[] }[] = [];
    for (const [name, more, env] of variants) {
      const layout = `${dir}/${name}`;
      await writeLayout(layout, [{ tag: "v1", image }]);
      const { meta } = await buildApart(layout, "v1", more, {
        env: { ...env, TMPDIR: layout },
        cwd: layout,
      });
      results.push({ digest: meta.digest, blobs: await blobsOf(layout) });
    }
    deepEqual(results[1], results[0]);
    deepEqual(results[2], results[0]);
  });
});

/**
 * For every k: layers 1..k are built first, then the whole image, which takes
 * the first k over. Byte for byte what one go gives.
 */
async function checkContinued(
  dir: string,
  image: MadeImage,
  buildWhole: typeof buildApart,
): Promise<void> {
  const whole = `${dir}/whole`;
  await writeLayout(whole, [{ tag: "v1", image }]);
  const want = await build({ source: `oci:${whole}:v1` });
  const { digest } = want.report.platforms[0]!.meta;
  const wantBlobs = new Set(await blobsOf(whole));
  for (let k = 1; k <= image.layers.length; k++) {
    const layout = `${dir}/${k}`;
    const prefix = makeImage({ layers: image.layers.slice(0, k) });
    await writeLayout(layout, [
      { tag: "v1", image },
      { tag: "prefix", image: prefix },
    ]);
    await build({ source: `oci:${layout}:prefix` });
    const got = await buildWhole(layout, "v1");
    deepEqual(
      got.layers.map((l) => l.reused),
      image.layers.map((_, i) => i < k),
      `layers taken over, k = ${k}`,
    );
    equal(got.meta.digest, digest, `k = ${k}`);
    const has = new Set(await blobsOf(layout));
    deepEqual([...wantBlobs].filter((b) => !has.has(b)), [], `k = ${k}`);
  }
}

async function buildHere(
  layout: string,
  tag: string,
): ReturnType<typeof buildApart> {
  const { report } = await build({ source: `oci:${layout}:${tag}` });
  const { meta, layers } = report.platforms[0]!;
  return { meta, layers: [...layers] };
}

for (const seed of [21, 22, 23, 24]) {
  Deno.test(`build: continued after any layer, random layers (seed ${seed})`, async () => {
    await withTempDir(async (dir) => {
      const image = makeImage({
        layers: randomLayers(seed, 5).map((entries, i) => ({
          entries,
          compression: i === 1 ? "none" : "gzip",
        })),
      });
      await checkContinued(dir, image, buildHere);
    });
  });
}

Deno.test("build: continued after any layer in a new process", async () => {
  await withTempDir((dir) =>
    checkContinued(dir, stackWithLargeLayer(), buildApart)
  );
});

const goldens = ["layers/layer1.tar.gz", "layers/layer2.tar.gz"].map(golden);

Deno.test({
  name: "build: continued after any layer, golden layers and one more",
  ignore: goldens.includes(undefined),
  fn: () =>
    withTempDir(async (dir) => {
      const layers = await Promise.all(goldens.map(async (path) => {
        const blob = new Uint8Array(await Deno.readFile(path!));
        return makeLayer({ entries: new Uint8Array(gunzipSync(blob)), blob });
      }));
      const image = makeImage({
        layers: [...layers, { entries: randomLayers(3, 1)[0]! }],
      });
      await checkContinued(dir, image, buildHere);
    }),
});

Deno.test("build: layers without entries, and the same layer twice", async () => {
  await withTempDir(async (dir) => {
    const some = makeLayer({ entries: randomLayers(9, 1)[0]! });
    const empty = makeLayer({ entries: [] });
    const image = makeImage({ layers: [empty, some, empty, some, some] });
    await checkContinued(dir, image, buildHere);
  });
});

Deno.test("build: a full build after tags were lost equals the first one", async () => {
  await withTempDir(async (dir) => {
    const image = stackWithLargeLayer();
    await writeLayout(dir, [{ tag: "v1", image }]);
    const first = await buildHere(dir, "v1");
    await removeTags(dir, (tag) => tag !== "v1");
    const again = await buildHere(dir, "v1");
    deepEqual(again, first);
    equal(again.layers.some((l) => l.reused), false);
    const reused = await buildHere(dir, "v1");
    equal(reused.meta.digest, first.meta.digest);
    equal(reused.layers.every((l) => l.reused), true);
  });
});

Deno.test({
  name:
    "the runtime's deflate gives the bytes that meta images were built with",
  ignore: Deno.build.arch !== "x86_64",
  fn: () => {
    // A change here changes the digests of all meta images: raise META_FORMAT_VERSION with it.
    const input = new Random(1).bytes(100_000);
    input.fill(0, 30_000, 60_000);
    const digest = (level: number) =>
      createHash("sha256").update(deflateRawSync(input, { level }))
        .digest("hex");
    equal(
      digest(1),
      "33744543820c21dfe4a7a960f29cb8e92c7dffbe68e3d4af7b5848431cbc6786",
    );
    equal(
      digest(6),
      "c3ef42625002fbb02f112ee12f2382f0608338717941c57502ce07e3cf097a5e",
    );
    equal(
      digest(9),
      "f85666e6ca2bfb2895a48464bc4c350ff0f905dbf77b0ad6e80ab1c11ce81077",
    );
  },
});

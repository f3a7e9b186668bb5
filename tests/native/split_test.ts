/**
 * Layers with more map entries than readers take become several layers. The
 * limit is lowered here; bench/scale.ts has real ones.
 */

import assert from "node:assert/strict";
import {
  inspect,
  openImage,
  publishImage,
  verifyImage,
} from "../../lib/image/mod.ts";
import { MemorySource } from "../../lib/io/mod.ts";
import {
  type BlockRun,
  entriesOf,
  joinedRuns,
  layerRanges,
  LsmtSource,
  mergeLayers,
  openLayer,
  readMetaBlob,
  SegmentColumns,
} from "../../lib/layers/mod.ts";
import { sameTree } from "../testutil/device_tree.ts";
import {
  blobPath,
  dir,
  file,
  makeImage,
  makeLayer,
  whiteout,
  writeLayout,
} from "../testutil/oci_image.ts";
import { checkLsmt, checkZFile } from "../testutil/overlaybd_rules.ts";
import { Random, randomLayers } from "../testutil/random_layers.ts";
import { requires } from "../testutil/requires.ts";
import {
  build,
  dumpImage,
  imageTree,
  layoutTags,
  removeTags,
  sh,
  testEnvironment,
  withTempDir,
} from "../image/helpers.ts";
import {
  checkNative,
  deviceDigest,
  imageDigest,
  readImage,
  type StoredImage,
} from "./helpers.ts";

const VSIZE = 2 ** 30;
const PART = "io.obd.part";
const TARGET = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";
const NULL_UUID = "00000000-0000-0000-0000-000000000000";

/** Three layers; the last one changes inodes that lie blocks apart from each other. */
function testLayers() {
  const [a, b] = randomLayers(31, 2);
  const random = new Random(8);
  const dirs = Array.from({ length: 10 }, (_, i) => `many/${i}`);
  const many = dirs.flatMap((path) => [
    dir(path),
    ...Array.from(
      { length: 33 },
      (_, i) => file(`${path}/${i}`, random.bytes(1 + random.below(500))),
    ),
  ]);
  return [
    [...a!, ...many],
    b!,
    [...dirs.map((path) => dir(path, { mode: 0o700 })), whiteout("many/3/7")],
  ].map((entries) => makeLayer({ entries }));
}

async function writeImages(layout: string): Promise<void> {
  const layers = testLayers();
  const imageOf = (count: number) =>
    makeImage({
      layers: layers.slice(0, count),
      config: {
        history: layers.slice(0, count).flatMap((_, i) => [
          { created_by: `step ${i}` },
          { created_by: "nothing", empty_layer: true },
        ]),
      },
    });
  await writeLayout(layout, [
    { tag: "v1", image: imageOf(2) },
    { tag: "v2", image: imageOf(3) },
  ]);
}

/** Number of parts of each source layer, by the annotations. */
function partsOf(image: StoredImage): number[] {
  const parts: number[] = [];
  let expected = 1;
  for (const { annotations } of image.layers) {
    const [index, count] = (annotations[PART] ?? "1/1").split("/").map(Number);
    assert.equal(index, expected);
    if (index === 1) parts.push(count!);
    else assert.equal(count, parts.at(-1));
    expected = index === count ? 1 : index! + 1;
  }
  assert.equal(expected, 1, "no part is missing");
  assert.equal(image.diffIds.length, image.layers.length);
  assert.equal(
    image.history.filter((step) => step.empty_layer !== true).length,
    image.layers.length,
  );
  return parts;
}

for (const limit of [6, 40]) {
  Deno.test(`layers split at ${limit} entries show what whole ones show`, async () => {
    await withTempDir(async (temp) => {
      const formats = ["turbo", "overlaybd"] as const;
      const options = { virtualSize: VSIZE, formats };
      const whole = `${temp}/whole`;
      const split = `${temp}/split`;
      for (const layout of [whole, split]) await writeImages(layout);
      await build({ source: `oci:${whole}:v2`, ...options });
      const { report } = await build({
        source: `oci:${split}:v2`,
        ...options,
        maxEntries: limit,
      });
      const source = await readImage(split, "v2");
      const targets = source.layers.map((l) => l.digest);

      const turbo = await readImage(split, "v2-obd");
      const turboParts = partsOf(turbo);
      assert.ok(turboParts[0]! > 1, "the first layer was split");
      assert.deepEqual(
        turbo.layers.map((l) => l.annotations[TARGET]),
        targets.flatMap((t, i) => Array(turboParts[i]).fill(t)),
      );
      for (const { digest } of turbo.layers) {
        const blob = await Deno.readFile(blobPath(split, digest));
        const { members } = await readMetaBlob(new MemorySource(blob));
        const lsmt = checkZFile(members.get("ext4.fs.meta")!, {
          codec: "lz4",
          blockSize: 32768,
          headerOverwrite: true,
        });
        assert.ok(checkLsmt(lsmt, "warp", VSIZE).length <= limit);
      }

      const native = await readImage(split, "v2-overlaybd");
      const nativeParts = partsOf(native);
      assert.equal(nativeParts.some((n) => n > 1), limit === 6);
      let before = NULL_UUID;
      for (const { digest } of native.layers) {
        const blob = await Deno.readFile(blobPath(split, digest));
        const layer = lsmtOf(blob);
        assert.ok(layer.entries.length <= limit);
        assert.equal(layer.parentUuid, before);
        before = layer.uuid;
      }
      for (const [i, { layers }] of report.platforms.entries()) {
        assert.deepEqual(
          layers.map((l) => l.parts ?? 1),
          [turboParts, nativeParts][i],
        );
      }
      const image = `oci:${split}:v2`;
      const want = await imageDigest(`oci:${whole}:v2-obd`);
      for (const name of ["v2-obd", "v2-overlaybd", "v2"]) {
        assert.equal(await imageDigest(`oci:${split}:${name}`), want, name);
      }
      sameTree(
        await imageTree(image),
        await imageTree(`oci:${whole}:v2-overlaybd`),
      );
      await using environment = await testEnvironment();
      for (const name of ["v2-obd", "v2-overlaybd"]) {
        const found = await verifyImage(environment, `oci:${split}:${name}`);
        assert.deepEqual(found.findings, [], name);
      }
      await using opened = await openImage(environment, image, {
        metaFrom: ["tag"],
      });
      assert.equal(opened.layers.length, turbo.layers.length);
      const shown = await inspect(environment, image, {});
      assert.ok(shown.what === "image");
      assert.equal(shown.problem, undefined);
      assert.deepEqual(
        shown.layers.map((l) => l.number),
        turboParts.flatMap((n, i) => Array(n).fill(i + 1)),
      );
    });
  });
}

/** Entries and UUIDs of a native blob; zeros may be stored where entries are scarce. */
function lsmtOf(blob: Uint8Array) {
  const payload = blob.subarray(1536);
  const size = Number(
    /^\d+ size=(\d+)\n/.exec(
      new TextDecoder().decode(blob.subarray(512, 560)),
    )?.[1],
  );
  const lsmt = checkZFile(payload.subarray(0, size), {
    codec: "lz4",
    blockSize: 4096,
    headerOverwrite: true,
  });
  const text = (at: number) =>
    new TextDecoder().decode(lsmt.subarray(at, at + 36));
  return {
    entries: checkLsmt(lsmt, "native", VSIZE),
    uuid: text(56),
    parentUuid: text(93),
  };
}

Deno.test("split layers are found again, continued, and built alike in one go", async () => {
  await withTempDir(async (temp) => {
    const both = ["turbo", "overlaybd"] as const;
    for (const formats of [["turbo"], ["overlaybd"], both] as const) {
      const options = { virtualSize: VSIZE, formats, maxEntries: 6 };
      const name = formats.join("-");
      const alone = `${temp}/alone-${name}`;
      const steps = `${temp}/steps-${name}`;
      for (const layout of [alone, steps]) await writeImages(layout);
      await build({ source: `oci:${alone}:v2`, ...options });
      await build({ source: `oci:${steps}:v1`, ...options });
      const { report, warnings } = await build({
        source: `oci:${steps}:v2`,
        ...options,
      });
      assert.deepEqual(warnings, []);
      for (const { layers } of report.platforms) {
        assert.deepEqual(layers.map((l) => l.reused), [true, true, false]);
      }
      for (const format of formats) {
        const tag = format === "turbo" ? "v2-obd" : "v2-overlaybd";
        assert.deepEqual(
          await readImage(steps, tag),
          await readImage(alone, tag),
        );
      }
    }
  });
});

Deno.test("--flatten splits as well; one limit's layers are not taken for another's", async () => {
  await withTempDir(async (temp) => {
    const layout = `${temp}/l`;
    await writeImages(layout);
    const formats = ["turbo", "overlaybd"] as const;
    const options = { virtualSize: VSIZE, formats, flatten: true };
    await build({ source: `oci:${layout}:v2`, ...options });
    const whole = await imageDigest(`oci:${layout}:v2-overlaybd`);
    const { report } = await build({
      source: `oci:${layout}:v2`,
      ...options,
      maxEntries: 6,
    });
    assert.ok(report.platforms.every((p) => p.layers.every((l) => !l.reused)));
    const native = await readImage(layout, "v2-overlaybd");
    assert.equal(partsOf(native).length, 1);
    partsOf(await readImage(layout, "v2-obd"));
    for (const tag of ["v2-obd", "v2-overlaybd"]) {
      assert.equal(await imageDigest(`oci:${layout}:${tag}`), whole, tag);
    }
  });
});

Deno.test("an image that lost a part is not used, and verify says so", async () => {
  await withTempDir(async (temp) => {
    const layout = `${temp}/l`;
    await writeImages(layout);
    await build({ source: `oci:${layout}:v1`, maxEntries: 40 });
    await removeTags(layout, (tag) => tag.startsWith("obd-"));
    const image = await readImage(layout, "v1-obd");
    assert.ok(partsOf(image)[0]! > 1);
    const cases: [string, (parts: string[]) => string[]][] = [
      ["it starts with the second", ([_, ...rest]) => [...rest, rest.at(-1)!]],
      ["it does not end", ([a, ...rest]) => [a!, ...rest.slice(0, -1), a!]],
      ["two are swapped", ([a, b, ...rest]) => [b!, a!, ...rest]],
      ["one is there twice", ([a, _, ...rest]) => [a!, a!, ...rest]],
      ["another number", ([a, ...rest]) => [`${a}0`, ...rest]],
      ["no number", (all) => ["", ...all.slice(1)]],
      ["not a number", (all) => ["1/x", ...all.slice(1)]],
    ];
    const count = partsOf(image)[0]!;
    const annotations = image.layers.slice(0, count).map((l) =>
      l.annotations[PART]!
    );
    for (const [name, change] of cases) {
      const changed = change(annotations);
      const layers = changed.map((part, i) => {
        const { [PART]: _, ...rest } = image.layers[i]!.annotations;
        return {
          ...image.layers[i]!,
          annotations: part === "" ? rest : { ...rest, [PART]: part },
        };
      });
      await replaceManifest(layout, "v1-obd", {
        layers: [...layers, ...image.layers.slice(count)],
      });
      await using environment = await testEnvironment();
      const { findings } = await verifyImage(
        environment,
        `oci:${layout}:v1-obd`,
      );
      assert.ok(findings.length > 0, name);
      await assert.rejects(
        openImage(environment, `oci:${layout}:v1-obd`),
        { code: "format" },
        name,
      );
      await assert.rejects(
        openImage(environment, `oci:${layout}:v1`, { metaFrom: ["tag"] }),
        { code: "not-found" },
        name,
      );
      assert.match(environment.log.warnings.join("\n"), /does not fit/, name);
    }
  });
});

/** Changes fields of a tag's manifest in place of the tag. */
async function replaceManifest(
  layout: string,
  tag: string,
  fields: object,
): Promise<void> {
  const index = JSON.parse(await Deno.readTextFile(`${layout}/index.json`));
  const entry = index.manifests.find((
    m: { annotations?: Record<string, string> },
  ) => m.annotations?.["org.opencontainers.image.ref.name"] === tag);
  const manifest = JSON.parse(
    await Deno.readTextFile(blobPath(layout, entry.digest)),
  );
  const bytes = new TextEncoder().encode(
    JSON.stringify({ ...manifest, ...fields }),
  );
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  const digest = `sha256:${new Uint8Array(hash).toHex()}`;
  await Deno.writeFile(blobPath(layout, digest), bytes);
  Object.assign(entry, { digest, size: bytes.length });
  await Deno.writeTextFile(`${layout}/index.json`, JSON.stringify(index));
}

Deno.test({
  name: "e2fsck is content with a split image",
  ignore: !requires("e2fsck"),
  fn: () =>
    withTempDir(async (temp) => {
      const layout = `${temp}/l`;
      await writeImages(layout);
      await build({ source: `oci:${layout}:v2`, maxEntries: 10 });
      await dumpImage(`oci:${layout}:v2-obd`, `${temp}/raw`);
      await sh(["e2fsck", "-fn", `${temp}/raw`]);
    }),
});

Deno.test("a build of one's own for a split image needs no registry", async () => {
  await withTempDir(async (temp) => {
    const layout = `${temp}/l`;
    await writeImages(layout);
    await using environment = await testEnvironment();
    const report = await publishImage(environment, {
      source: `oci:${layout}:v1`,
      maxEntries: 6,
      dryRun: true,
    });
    const [platform] = report.platforms;
    assert.ok(platform!.layers[0]!.parts! > 1);
  });
});

Deno.test("more parts than readers stack are refused before anything is pushed", async () => {
  await withTempDir(async (temp) => {
    const layout = `${temp}/l`;
    const files = Array.from({ length: 600 }, (_, i) => file(`f${i}`, `${i}`));
    const image = makeImage({ layers: [{ entries: files }] });
    await writeLayout(layout, [{ tag: "v1", image }]);
    const options = { source: `oci:${layout}:v1`, maxEntries: 4 };
    await assert.rejects(build(options), {
      code: "limit",
      message: /^Cannot write image of \d{3} layers, .* stack 255$/,
    });
    assert.deepEqual([...(await layoutTags(layout)).keys()], ["v1"]);
  });
});

Deno.test("layerRanges(): every run in one range, none with too many entries", () => {
  const random = new Random(4);
  for (let round = 0; round < 200; round++) {
    const runs: BlockRun[] = [];
    let at = 0;
    for (let i = random.below(60); i > 0; i--) {
      const start = at + 4096 * random.below(3);
      const blocks = random.below(9) === 0 ? 5000 : 1 + random.below(5);
      at = start + 4096 * blocks;
      runs.push({ start, end: at, zeroed: random.below(3) === 0 });
    }
    const size = at + 4096;
    const limit = 3 + random.below(12);
    const ranges = layerRanges(runs, size, limit);
    assert.equal(ranges[0]!.start, 0);
    assert.equal(ranges.at(-1)!.end, size);
    for (const [i, { start, end }] of ranges.entries()) {
      if (i > 0) assert.equal(start, ranges[i - 1]!.end);
      const inside = runs.filter((r) => r.start >= start && r.start < end);
      for (const run of inside) assert.ok(run.end <= end);
      const entries = inside.reduce((sum, run) => sum + entriesOf(run), 0);
      assert.ok(entries <= limit, `${entries} entries`);
    }
    // A device in shreds, in fewer.
    const joined = [...joinedRuns(runs, 4096)];
    const covers = (b: number) => joined.some((r) => r.start <= b && b < r.end);
    for (const run of runs) assert.ok(covers(run.start) && covers(run.end - 1));
    for (const [i, run] of joined.entries()) {
      if (i > 0) assert.ok(run.start - joined[i - 1]!.end > 4096);
    }
  }
});

Deno.test("mergeLayers(): a stack in shreds is joined, zeros where entries are scarce are stored", async () => {
  await withTempDir(async (temp) => {
    const random = new Random(12);
    const size = 4096 * 2000;
    const bytes = random.bytes(size);
    const columns = new SegmentColumns(0);
    for (let block = 0; block < 1999; block += 2 + random.below(6)) {
      if (random.below(4) === 0) {
        bytes.fill(0, block * 4096, block * 4096 + 4096);
      }
      columns.push(block * 8, 8, block * 8, 0, 0);
    }
    await using device = new LsmtSource([
      { table: columns.finish(), data: new MemorySource(bytes) },
    ], size);
    const want = await deviceDigest(device);
    for (const maxEntries of [20, 150, 1_000_000]) {
      const path = `${temp}/${maxEntries}`;
      await mergeLayers(device, path, {}, { maxEntries });
      const blob = await Deno.readFile(path);
      if (maxEntries > 1000) checkNative(blob, { virtualSize: size });
      const layer = await openLayer(new MemorySource(blob), "native");
      assert.ok(layer.entryCount <= maxEntries, `${layer.entryCount}`);
      await using merged = new LsmtSource([layer], size);
      assert.equal(await deviceDigest(merged), want);
    }
  });
});

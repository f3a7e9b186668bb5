/** `obd build --base`: layers on top of images that other tools converted. */

import assert from "node:assert/strict";
import { gunzipSync } from "node:zlib";
import { FileSource } from "../../lib/io/mod.ts";
import {
  blockRuns,
  KIND,
  SegmentColumns,
  writeNativeBlob,
} from "../../lib/layers/mod.ts";
import { sameTree } from "../testutil/device_tree.ts";
import {
  blobPath,
  digestOf,
  file,
  type LayerDescription,
  makeImage,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { golden, requires } from "../testutil/requires.ts";
import {
  build,
  dumpImage,
  imageTree,
  OBD,
  run,
  sh,
  testEnvironment,
  withTempDir,
} from "../image/helpers.ts";
import { verifyImage } from "../../lib/image/mod.ts";
import { readImage } from "./helpers.ts";

const PREFIX = "containerd.io/snapshot/overlaybd";
const OCI = "application/vnd.oci.image";

/** One layer of an image as overlaybd's convertor writes it. */
interface Converted {
  blob: Uint8Array;
  diffId?: string;
  /** Digest of the layer that it points into. */
  target?: string;
}

/** Adds a converted image to a layout. */
async function addConverted(
  layout: string,
  tag: string,
  layers: Converted[],
  historySteps = layers.length,
): Promise<void> {
  const put = async (bytes: Uint8Array) => {
    const digest = digestOf(bytes);
    await Deno.writeFile(blobPath(layout, digest), bytes);
    return { digest, size: bytes.length };
  };
  const json = (value: unknown) =>
    new TextEncoder().encode(JSON.stringify(value));
  const descriptors = [];
  const diffIds = [];
  for (const { blob, diffId, target } of layers) {
    const { digest, size } = await put(blob);
    diffIds.push(diffId ?? digest);
    descriptors.push({
      mediaType: target ? `${OCI}.layer.v1.tar+gzip` : `${OCI}.layer.v1.tar`,
      digest,
      size,
      annotations: {
        [`${PREFIX}/version`]: target ? "0.1.0-turbo.ociv1" : "0.1.0",
        [`${PREFIX}/blob-digest`]: digest,
        [`${PREFIX}/blob-size`]: String(size),
        ...(target
          ? {
            [`${PREFIX}/turbo-oci/target-digest`]: target,
            [`${PREFIX}/turbo-oci/target-media-type`]:
              `${OCI}.layer.v1.tar+gzip`,
          }
          : {}),
      },
    });
  }
  const config = await put(json({
    architecture: "amd64",
    os: "linux",
    rootfs: { type: "layers", diff_ids: diffIds },
    history: Array.from({ length: historySteps }, () => ({ created_by: "x" })),
  }));
  const manifest = await put(json({
    schemaVersion: 2,
    mediaType: `${OCI}.manifest.v1+json`,
    config: { mediaType: `${OCI}.config.v1+json`, ...config },
    layers: descriptors,
  }));
  const path = `${layout}/index.json`;
  const index = JSON.parse(await Deno.readTextFile(path));
  index.manifests.push({
    mediaType: `${OCI}.manifest.v1+json`,
    ...manifest,
    annotations: { "org.opencontainers.image.ref.name": tag },
  });
  await Deno.writeTextFile(path, JSON.stringify(index));
}

/** The golden layers, and one more, as a plain image in a layout. */
async function goldenSource(layout: string): Promise<{ targets: string[] }> {
  const layers: LayerDescription[] = [];
  const targets: string[] = [];
  for (const n of [1, 2]) {
    const blob = await Deno.readFile(golden(`layers/layer${n}.tar.gz`)!);
    layers.push({ entries: new Uint8Array(gunzipSync(blob)), blob });
    targets.push(digestOf(blob));
  }
  layers.push({ entries: [file("on-top", "of all"), file("zzz/deep", "er")] });
  await writeLayout(layout, [{ tag: "v1", image: makeImage({ layers }) }]);
  return { targets };
}

async function converted(
  folder: string,
  layer: number,
  targets: string[],
): Promise<Converted> {
  if (folder.startsWith("native")) {
    return {
      blob: await Deno.readFile(
        golden(`${folder}/layer${layer}.overlaybd.commit`)!,
      ),
    };
  }
  const blob = await Deno.readFile(
    golden(`${folder}/layer${layer}.turboOCIv1.tar.gz`)!,
  );
  return {
    blob,
    diffId: digestOf(new Uint8Array(gunzipSync(blob))),
    target: targets[layer - 1]!,
  };
}

/** What the tools do in different ways is not compared. */
async function contentOf(image: string): Promise<string[]> {
  return (await imageTree(image)).filter((line) =>
    JSON.parse(line).path !== "lost+found"
  );
}

const hasGolden = golden("native-lz4/layer2.overlaybd.commit") !== undefined;

for (
  const [name, folders] of [
    ["native-lz4", ["native-lz4"]],
    ["two native layers", ["native-zstd", "native-zstd"]],
    ["turbo-gz", ["turbo-gz"]],
    ["two turbo layers", ["turbo-gz", "turbo-gz"]],
  ] as const
) {
  Deno.test({
    name: `build --base: golden ${name} below, both formats on top`,
    ignore: !hasGolden,
    fn: () =>
      withTempDir(async (dir) => {
        const layout = `${dir}/l`;
        const { targets } = await goldenSource(layout);
        const layers = [];
        for (const [i, folder] of folders.entries()) {
          layers.push(await converted(folder, i + 1, targets));
        }
        await addConverted(layout, "v0_obd", layers);
        const source = `oci:${layout}:v1`;
        const { report, warnings } = await build({
          source,
          base: `oci:${layout}:v0_obd`,
          formats: ["turbo", "overlaybd"],
        });
        for (const { layers } of report.platforms) {
          assert.deepEqual(
            layers.map((l) => l.reusedFrom?.by),
            [1, 2, 3].map((n) => n <= folders.length ? "base" : undefined),
          );
        }
        // The golden native layers have UUIDs that nobody knows.
        assert.equal(
          warnings.some((w) => w.includes("nothing proves")),
          folders[0].startsWith("native"),
        );
        const base = await readImage(layout, "v0_obd");
        for (const tag of ["v1-obd", "v1-overlaybd"]) {
          const made = await readImage(layout, tag);
          assert.deepEqual(
            made.layers.slice(0, folders.length),
            base.layers,
          );
          assert.deepEqual(
            made.diffIds.slice(0, folders.length),
            base.diffIds,
          );
          await using environment = await testEnvironment();
          const { findings } = await verifyImage(
            environment,
            `oci:${layout}:${tag}`,
          );
          assert.deepEqual(findings, []);
        }
        const turbo = await contentOf(`oci:${layout}:v1-obd`);
        sameTree(turbo, await contentOf(`oci:${layout}:v1-overlaybd`));
        assert.ok(turbo.some((line) => line.includes("zzz/deep")));
        // The plain image is opened through it too.
        sameTree(turbo, await contentOf(source));
      }),
  });
}

Deno.test({
  name: "build --base: a file system of mke2fs 1.47 below",
  ignore: !requires("mke2fs", "e2fsck", "debugfs"),
  fn: () =>
    withTempDir(async (dir) => {
      const tree = `${dir}/tree`;
      await Deno.mkdir(`${tree}/etc`, { recursive: true });
      await Deno.writeTextFile(`${tree}/etc/made`, "by mke2fs");
      const raw = `${dir}/raw`;
      const mke2fs = ["mke2fs", "-q", "-t", "ext4", "-b", "4096"];
      const options = ["-O", "metadata_csum,resize_inode,^has_journal"];
      await sh([...mke2fs, ...options, "-d", tree, raw, "256M"]);
      const blob = `${dir}/blob`;
      {
        await using device = await FileSource.open(raw);
        const columns = new SegmentColumns(1);
        columns.push(0, device.size / 512, 0, KIND.data, 0);
        const table = columns.finish();
        await writeNativeBlob(
          blob,
          {
            device,
            runs: () => blockRuns(table, device.size),
            virtualSize: device.size,
          },
          {},
        );
      }
      const layout = `${dir}/l`;
      const layers = [
        { entries: [file("etc/made", "by mke2fs")] },
        {
          entries: [
            file("etc/added", "by obd"),
            file("big", "x".repeat(99_999)),
          ],
        },
      ];
      await writeLayout(layout, [{ tag: "v1", image: makeImage({ layers }) }]);
      await addConverted(layout, "base", [{ blob: await Deno.readFile(blob) }]);
      for (const format of ["turbo", "overlaybd"]) {
        const { code, stderr, stdout } = await run([
          ...OBD,
          "build",
          "--dedup-db",
          "none",
          "--base",
          `oci:${layout}:base`,
          "--format",
          format,
          `oci:${layout}:v1`,
        ]);
        assert.equal(code, 0, stderr);
        assert.match(stdout, /layer 1 .*reused from .* \(base\)/);
        const tag = format === "turbo" ? "v1-obd" : "v1-overlaybd";
        const dump = `${dir}/${format}.raw`;
        await dumpImage(`oci:${layout}:${tag}`, dump);
        assert.equal((await Deno.stat(dump)).size, 256 << 20);
        await sh(["e2fsck", "-fn", dump]);
        const cat = (path: string) =>
          sh(["debugfs", "-R", `cat ${path}`, dump]);
        assert.equal(await cat("/etc/made"), "by mke2fs");
        assert.equal(await cat("/etc/added"), "by obd");
        assert.equal((await cat("/big")).length, 99_999);
      }
    }),
});

Deno.test({
  name: "build --base: overlaybd's journalled base layer below all",
  ignore: golden("unit/ext4_64") === undefined || !requires("debugfs"),
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/l`;
      const layers = [
        { entries: [file("a", "one")] },
        { entries: [file("b", "two")] },
      ];
      const image = makeImage({ layers });
      await writeLayout(layout, [{ tag: "v1", image }]);
      const floor = { blob: await Deno.readFile(golden("unit/ext4_64")!) };
      // By itself it is no layer of the source: the first one comes on top of it.
      await addConverted(layout, "floor", [floor]);
      const source = `oci:${layout}:v1`;
      await build({ source, base: `oci:${layout}:floor`, tag: "made" });
      const made = await readImage(layout, "made");
      assert.equal(made.layers.length, 3);
      assert.equal(made.layers[0]!.digest, digestOf(floor.blob));
      await build({ source, tag: "plain" });
      const tree = await contentOf(`oci:${layout}:made`);
      const paths = tree.map((l) => JSON.parse(l).path);
      // The root directory is the floor's.
      const plain = await contentOf(`oci:${layout}:plain`);
      sameTree(
        tree.filter((_, i) => paths[i] !== ""),
        plain.filter((l) => JSON.parse(l).path !== ""),
      );
      assert.ok(paths.includes("a") && paths.includes("b"), paths.join());
      // And going on from that one: the floor is told from the source's layers.
      await build({ source, base: `oci:${layout}:made`, tag: "again" });
      assert.deepEqual(
        (await readImage(layout, "again")).layers,
        made.layers,
      );
    }),
});

Deno.test("build --base: what does not fit is refused by name", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    const entries = [file("a", "one")];
    const one = makeImage({ layers: [{ entries }] });
    const two = makeImage({ layers: [{ entries: [file("b", "two")] }] });
    await writeLayout(layout, [
      { tag: "one", image: one },
      { tag: "two", image: two },
    ]);
    const other = `${dir}/other`;
    await writeLayout(other, [{ tag: "one", image: one }]);
    const source = `oci:${layout}:one`;
    await build({
      source: `oci:${layout}:two`,
      formats: ["turbo", "overlaybd"],
    });
    const cases: [base: string, want: RegExp][] = [
      [`oci:${layout}:two-obd`, /layer 1 points to sha256:/],
      [`oci:${layout}:two-overlaybd`, /layer 1 is of chain/],
      [`oci:${layout}:two`, /it is no converted image/],
      [`oci:${other}:one`, /must be in the registry, or the layout/],
      [`oci:${layout}:nothing`, /nothing/],
    ];
    for (const [base, want] of cases) {
      await assert.rejects(build({ source, base }), want);
    }
  });
});

Deno.test("build --base: layers of another repository of the registry are mounted", async () => {
  await using server = await RegistryServer.start();
  const lower = { entries: [file("a", "one")] };
  const one = makeImage({ layers: [lower] });
  const two = makeImage({
    layers: [lower, { entries: [file("b", "two")] }],
  });
  await putImage(server, "conv", "v1", one);
  await putImage(server, "app", "v2", two);
  await build({ source: `${server.host}/conv:v1`, formats: ["overlaybd"] });
  server.requests.length = 0;
  const { report } = await build({
    source: `${server.host}/app:v2`,
    base: `${server.host}/conv:v1-overlaybd`,
    formats: ["overlaybd"],
  });
  assert.deepEqual(
    report.platforms[0]!.layers.map((l) => l.reusedFrom?.by),
    ["base", undefined],
  );
  const mounts = server.requests.filter((r) => r.query.includes("mount="));
  assert.equal(mounts.length, 1);
  // The lower source layer is not read again.
  const read = server.requests.filter((r) =>
    r.method === "GET" && r.path.endsWith(one.layers[0]!.digest)
  );
  assert.deepEqual(read, []);
  const paths = (await contentOf(`${server.host}/app:v2-overlaybd`)).map((
    line,
  ) => JSON.parse(line).path);
  assert.ok(paths.includes("a") && paths.includes("b"));
});

Deno.test("build --base: a history that is one step short makes no file system of the first layer", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    const layers = ["a", "b", "c"].map((name) => ({
      entries: [file(name, name)],
    }));
    // As tools leave it that add a layer and no step.
    const config = { history: [{ created_by: "x" }] };
    await writeLayout(layout, [
      { tag: "two", image: makeImage({ layers: layers.slice(0, 2), config }) },
      { tag: "three", image: makeImage({ layers }) },
    ]);
    const formats = ["overlaybd"] as const;
    await build({ source: `oci:${layout}:two`, formats });
    const { report } = await build({
      source: `oci:${layout}:three`,
      base: `oci:${layout}:two-overlaybd`,
      formats,
    });
    assert.deepEqual(
      report.platforms[0]!.layers.map(({ reused }) => reused),
      [true, true, false],
    );
    const made = await readImage(layout, "three-overlaybd");
    assert.equal(made.layers.length, 3);
  });
});

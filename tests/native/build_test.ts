/** `obd build --format overlaybd`: what is written, by independent rules, and that it shows what TurboOCI shows. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { concatBytes } from "../../lib/io/mod.ts";
import { sameTree } from "../testutil/device_tree.ts";
import {
  blobPath,
  file,
  layerTar,
  type MadeImage,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { Random, randomLayers } from "../testutil/random_layers.ts";
import { golden, requires } from "../testutil/requires.ts";
import {
  build,
  dumpImage,
  imageTree,
  layoutTags,
  OBD,
  run,
  sh,
  withTempDir,
} from "../image/helpers.ts";
import { checkNative, imageDigest, readImage } from "./helpers.ts";

const VSIZE = 2 ** 30;
const NULL_UUID = "00000000-0000-0000-0000-000000000000";

/** Three layers of every kind of entry, with zeros in files and files over files. */
function testImage(): MadeImage {
  const random = new Random(3);
  const [a, b, c] = randomLayers(21, 3);
  const holed = new Uint8Array(900_000);
  holed.set(random.bytes(100_000), 300_000);
  return makeImage({
    layers: [
      {
        entries: [
          ...a!,
          file("zeros", new Uint8Array(50_000)),
          file("holed", holed),
        ],
      },
      { entries: [...b!, file("big", random.bytes(2_600_000))] },
      { entries: [...c!, file("zeros", "not any more")], compression: "none" },
    ],
    config: {
      history: [{ created_by: "a" }, { created_by: "b" }, { created_by: "c" }],
    },
  });
}

Deno.test("both formats in one run: native layers keep every rule and show the same device", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    const image = testImage();
    await writeLayout(layout, [{ tag: "v1", image }]);
    const { report } = await build({
      source: `oci:${layout}:v1`,
      virtualSize: VSIZE,
      formats: ["turbo", "overlaybd"],
    });
    assert.deepEqual(report.platforms.map((p) => p.format), [
      "turbo",
      "overlaybd",
    ]);
    const native = await readImage(layout, "v1-overlaybd");
    assert.equal(
      native.mediaType,
      "application/vnd.oci.image.manifest.v1+json",
    );
    assert.equal(
      native.artifactType,
      "application/vnd.containerd.overlaybd.native.v1+json",
    );
    assert.equal(native.subject?.digest, image.manifest.digest);
    assert.equal(native.history.length, 3);
    let chain = "";
    let before = NULL_UUID;
    for (const [i, layer] of native.layers.entries()) {
      assert.equal(
        layer.mediaType,
        "application/vnd.oci.image.layer.v1.tar",
      );
      const blob = await Deno.readFile(blobPath(layout, layer.digest));
      const prefix = "containerd.io/snapshot/overlaybd";
      assert.equal(layer.annotations[`${prefix}/version`], "0.1.0");
      assert.equal(layer.annotations[`${prefix}/blob-digest`], layer.digest);
      assert.equal(
        layer.annotations[`${prefix}/blob-size`],
        String(blob.length),
      );
      assert.equal(native.diffIds[i], layer.digest);
      const { uuid, parentUuid, entries } = checkNative(blob, {
        virtualSize: VSIZE,
      });
      const { diffId } = image.layers[i]!;
      chain = i === 0
        ? diffId
        : `sha256:${
          createHash("sha256").update(`${chain} ${diffId}`).digest("hex")
        }`;
      assert.equal(
        uuid.replaceAll("-", ""),
        chain.slice(7, 39).toUpperCase(),
      );
      assert.equal(parentUuid, before);
      before = uuid;
      if (i === 0) assert.ok(entries.some((e) => e.zeroed), "zeros left out");
    }
    const turbo = `oci:${layout}:v1-obd`;
    const own = `oci:${layout}:v1-overlaybd`;
    assert.equal(await imageDigest(own), await imageDigest(turbo));
    sameTree(await imageTree(own), await imageTree(turbo));
  });
});

Deno.test("a native image is the same alone, on any number of threads, anywhere", async () => {
  const image = testImage();
  const digests = new Set<string>();
  for (
    const [jobs, formats] of [
      [1, ["overlaybd"]],
      [3, ["overlaybd", "turbo"]],
      [2, ["turbo", "overlaybd"]],
    ] as const
  ) {
    await withTempDir(async (dir) => {
      const layout = `${dir}/${jobs}`;
      await writeLayout(layout, [{ tag: "v1", image }]);
      await build({
        source: `oci:${layout}:v1`,
        virtualSize: VSIZE,
        formats,
        jobs,
      });
      digests.add((await layoutTags(layout)).get("v1-overlaybd")!);
    });
  }
  assert.equal(digests.size, 1);
});

Deno.test("zstd, larger blocks, Docker's types, a name of one's own", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    await writeLayout(layout, [{ tag: "v1", image: testImage() }]);
    await build({
      source: `oci:${layout}:v1`,
      tag: "mine",
      virtualSize: VSIZE,
      formats: ["turbo", "overlaybd"],
      native: { codec: "zstd", blockSize: 32768 },
      nativeTypes: "docker",
    });
    const native = await readImage(layout, "mine-overlaybd");
    const docker = "application/vnd.docker.";
    assert.equal(
      native.mediaType,
      `${docker}distribution.manifest.v2+json`,
    );
    assert.equal(native.subject, undefined);
    assert.equal(native.artifactType, undefined);
    for (const layer of native.layers) {
      assert.equal(layer.mediaType, `${docker}image.rootfs.diff.tar`);
      checkNative(await Deno.readFile(blobPath(layout, layer.digest)), {
        virtualSize: VSIZE,
        codec: "zstd",
        blockSize: 32768,
      });
    }
    assert.equal(
      await imageDigest(`oci:${layout}:mine-overlaybd`),
      await imageDigest(`oci:${layout}:mine`),
    );
  });
});

Deno.test("--flatten: one native layer with the tree of all", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    await writeLayout(layout, [{ tag: "v1", image: testImage() }]);
    const source = `oci:${layout}:v1`;
    await build({ source, virtualSize: VSIZE });
    await build({
      source,
      tag: "flat",
      virtualSize: VSIZE,
      flatten: true,
      formats: ["overlaybd", "turbo"],
    });
    const native = await readImage(layout, "flat");
    assert.equal(native.layers.length, 1);
    assert.equal(native.diffIds.length, 1);
    assert.deepEqual(native.history.map((h) => h.empty_layer ?? false), [
      true,
      true,
      false,
    ]);
    const { parentUuid } = checkNative(
      await Deno.readFile(blobPath(layout, native.layers[0]!.digest)),
      { virtualSize: VSIZE },
    );
    assert.equal(parentUuid, NULL_UUID);
    assert.equal(
      await imageDigest(`oci:${layout}:flat`),
      await imageDigest(`oci:${layout}:flat-obd`),
    );
    sameTree(
      await imageTree(`oci:${layout}:flat`),
      await imageTree(`oci:${layout}:v1-obd`),
    );
  });
});

Deno.test("--flatten --compat overlaybd of both formats, the top layer native in either", async () => {
  await withTempDir(async (dir) => {
    const tar = layerTar([file("b", "two")]);
    const blob = new Uint8Array(zstdCompressSync(tar));
    const mediaType = "application/vnd.oci.image.layer.v1.tar+zstd";
    const image = makeImage({
      layers: [
        { entries: [file("a", "one")] },
        { entries: tar, blob, mediaType },
      ],
    });
    await writeLayout(dir, [{ tag: "v1", image }]);
    const source = `oci:${dir}:v1`;
    // What is to be told of it is told once, not once for each format.
    const both = ["--format", "turbo,overlaybd", "--dry-run"];
    const { code, stderr } = await run([...OBD, "build", source, ...both]);
    assert.equal(code, 0, stderr);
    assert.equal(stderr.match(/only obd can read/g)?.length, 1, stderr);
    await build({
      source,
      formats: ["turbo", "overlaybd"],
      compat: true,
      flatten: true,
      virtualSize: VSIZE,
    });
    assert.equal((await readImage(dir, "v1-obd")).layers.length, 2);
    assert.equal((await readImage(dir, "v1-overlaybd")).layers.length, 1);
    sameTree(
      await imageTree(`${source}-overlaybd`),
      await imageTree(`${source}-obd`),
    );
  });
});

Deno.test("--compat overlaybd: only layers that TurboOCI cannot read are native", async () => {
  await withTempDir(async (dir) => {
    const [a, b, c] = randomLayers(8, 3);
    const tar = layerTar(b!);
    const half = Math.floor(tar.length / 1024) * 512;
    const members = concatBytes([
      gzipSync(tar.subarray(0, half)),
      gzipSync(tar.subarray(half)),
    ]);
    const layout = `${dir}/l`;
    const image = makeImage({
      layers: [{ entries: a! }, { entries: tar, blob: members }, {
        entries: c!,
      }],
    });
    const plain = makeImage({
      layers: [{ entries: a! }, { entries: tar }, { entries: c! }],
    });
    await writeLayout(layout, [
      { tag: "v1", image },
      { tag: "plain", image: plain },
    ]);
    await build({
      source: `oci:${layout}:v1`,
      virtualSize: VSIZE,
      compat: true,
    });
    await build({ source: `oci:${layout}:plain`, virtualSize: VSIZE });
    const mixed = await readImage(layout, "v1-obd");
    const version = "containerd.io/snapshot/overlaybd/version";
    assert.deepEqual(mixed.layers.map((l) => l.annotations[version]), [
      "0.1.0-turbo.ociv1",
      "0.1.0",
      "0.1.0-turbo.ociv1",
    ]);
    assert.equal(
      mixed.artifactType,
      "application/vnd.containerd.overlaybd.turbo.v1+json",
    );
    assert.equal(
      await imageDigest(`oci:${layout}:v1-obd`),
      await imageDigest(`oci:${layout}:plain-obd`),
    );
  });
});

Deno.test({
  name:
    "golden layers natively: a clean file system, the tree of the TurboOCI build",
  ignore: golden("layers/layer2.tar.gz") === undefined || !requires("e2fsck"),
  fn: () =>
    withTempDir(async (dir) => {
      const { gunzipSync } = await import("node:zlib");
      const layers = await Promise.all([1, 2].map(async (n) => {
        const blob = await Deno.readFile(golden(`layers/layer${n}.tar.gz`)!);
        return { entries: new Uint8Array(gunzipSync(blob)), blob };
      }));
      const layout = `${dir}/l`;
      await writeLayout(layout, [{ tag: "g", image: makeImage({ layers }) }]);
      await build({
        source: `oci:${layout}:g`,
        virtualSize: VSIZE,
        formats: ["turbo", "overlaybd"],
      });
      const native = await readImage(layout, "g-overlaybd");
      for (const { digest } of native.layers) {
        checkNative(await Deno.readFile(blobPath(layout, digest)), {
          virtualSize: VSIZE,
        });
      }
      const own = `oci:${layout}:g-overlaybd`;
      assert.equal(
        await imageDigest(own),
        await imageDigest(`oci:${layout}:g-obd`),
      );
      await dumpImage(own, `${dir}/raw`);
      await sh(["e2fsck", "-fn", `${dir}/raw`]);
    }),
});

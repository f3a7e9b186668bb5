/** Images with zstd layers, built and read as a whole. */

import assert from "node:assert/strict";
import { zstdCompressSync } from "node:zlib";
import { openImage } from "../../lib/image/mod.ts";
import { concatBytes } from "../../lib/io/mod.ts";
import { zstdCompress } from "../../lib/compress/mod.ts";
import {
  build,
  imageTree,
  layoutTags,
  testEnvironment,
  withTempDir,
} from "../image/helpers.ts";
import {
  blobPath,
  file,
  layerTar,
  makeImage,
  whiteout,
  writeLayout,
} from "../testutil/oci_image.ts";
import {
  chunked,
  content,
  frames,
  seekable,
  skippable,
  someTar,
} from "./helpers.ts";

const OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd";
const OCI_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip";

const BASE = someTar(3);
const SECOND = layerTar([file("d/new", "hello"), whiteout("d/f3")]);
const THIRD = layerTar([file("top", "x".repeat(5000))]);

Deno.test("an image of zstd layers has the tree of its tars", async () => {
  await withTempDir(async (dir) => {
    const plain = makeImage({
      layers: [BASE, SECOND, THIRD].map((entries) => ({
        entries,
        compression: "none" as const,
      })),
    });
    const zstd = makeImage({
      layers: [
        { entries: BASE, blob: chunked(BASE), mediaType: OCI_ZSTD },
        {
          entries: SECOND,
          blob: concatBytes([
            skippable(new Uint8Array(9)),
            ...frames(SECOND, 700),
          ]),
          // Media types are often wrong: the content tells.
          mediaType: OCI_GZIP,
        },
        { entries: THIRD, blob: seekable(THIRD, 1000), mediaType: OCI_ZSTD },
      ],
    });
    const layout = `${dir}/layout`;
    await writeLayout(layout, [
      { tag: "plain", image: plain },
      { tag: "zstd", image: zstd },
    ]);
    await build({ source: `oci:${layout}:plain` });
    await build({ source: `oci:${layout}:zstd` });
    const want = await imageTree(`oci:${layout}:plain-obd`);
    assert.deepEqual(await imageTree(`oci:${layout}:zstd-obd`), want);
    // Other readers must fail to open the layers: told gzip, without its index.
    const digest = (await layoutTags(layout)).get("zstd-obd")!;
    const manifest = JSON.parse(
      await Deno.readTextFile(blobPath(layout, digest)),
    );
    for (const { annotations } of manifest.layers) {
      const target = Object.entries(annotations).find(([key]) =>
        key.endsWith("target-media-type")
      );
      assert.equal(target?.[1], OCI_GZIP);
      assert.equal(annotations["io.obd.target-type"], OCI_ZSTD);
    }
  });
});

Deno.test("a zstd layer that changed in the registry is not served", async () => {
  await withTempDir(async (dir) => {
    const blob = concatBytes(frames(BASE, 200_000));
    const image = makeImage({
      layers: [{ entries: BASE, blob, mediaType: OCI_ZSTD }],
    });
    const layout = `${dir}/layout`;
    await writeLayout(layout, [{ tag: "v1", image }]);
    await build({ source: `oci:${layout}:v1` });
    const path = blobPath(layout, image.layers[0]!.digest);
    const bad = blob.slice();
    bad[bad.length >> 1]! ^= 1;
    await Deno.writeFile(path, bad);
    await assert.rejects(imageTree(`oci:${layout}:v1-obd`), /SHA-256|Spans? /);
  });
});

Deno.test("a zstd layer of one frame that says it is a tar", async () => {
  await withTempDir(async (dir) => {
    const image = makeImage({
      layers: [{
        entries: THIRD,
        blob: zstdCompress(THIRD),
        mediaType: "application/vnd.oci.image.layer.v1.tar",
      }],
    });
    const layout = `${dir}/layout`;
    await writeLayout(layout, [{ tag: "v1", image }]);
    await build({ source: `oci:${layout}:v1` });
    const tree = await imageTree(`oci:${layout}:v1-obd`);
    assert.ok(tree.some((line) => line.includes('"top"')));
  });
});

Deno.test("a layer of one large frame is decoded when served, or made native", async () => {
  await withTempDir(async (dir) => {
    const tar = layerTar([
      file("zeros", new Uint8Array(33 * 2 ** 20)),
      file("tail", content(300_000)),
    ]);
    const layers = (compression: "none" | "zstd") => [{
      entries: tar,
      ...(compression === "none" ? { compression } : {
        blob: new Uint8Array(zstdCompressSync(tar)),
        mediaType: OCI_ZSTD,
      }),
    }];
    const layout = `${dir}/layout`;
    await writeLayout(layout, [
      { tag: "plain", image: makeImage({ layers: layers("none") }) },
      { tag: "zstd", image: makeImage({ layers: layers("zstd") }) },
    ]);
    const plain = await build({ source: `oci:${layout}:plain` });
    assert.deepEqual(plain.report.platforms[0]!.warnings, []);
    const want = await imageTree(`oci:${layout}:plain-obd`);
    const { report } = await build({ source: `oci:${layout}:zstd` });
    const [foreign, warning, ...more] = report.platforms[0]!.warnings;
    assert.match(foreign!, /it is zstd, which only obd can read/);
    assert.match(warning!, /zstd frames are too large.*--convert-unseekable/);
    assert.deepEqual(more, []);
    assert.deepEqual(await imageTree(`oci:${layout}:zstd-obd`), want);
    const native = await build({
      source: `oci:${layout}:zstd`,
      tag: "zstd-native",
      convertUnseekable: true,
    });
    assert.deepEqual(native.report.platforms[0]!.warnings, []);
    assert.deepEqual(await imageTree(`oci:${layout}:zstd-native`), want);
    await using environment = await testEnvironment();
    await using opened = await openImage(
      environment,
      `oci:${layout}:zstd-native`,
      { metaFrom: ["digest", "tag"] },
    );
    assert.equal(opened.layers[0]!.kind, "native");
  });
});

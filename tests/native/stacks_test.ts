/** Layers of different tools and kinds in one stack, and building on top of them. */

import assert from "node:assert/strict";
import { gunzipSync } from "node:zlib";
import { Ext4Model } from "../../lib/ext4/mod.ts";
import { type ByteSource, FileSource, MemorySource } from "../../lib/io/mod.ts";
import {
  blockRuns,
  type Bodies,
  chainUuid,
  ImageSpace,
  KIND,
  layerContent,
  LayerStack,
  LsmtSource,
  type OpenedLayer,
  openLayer,
  scanInto,
  SegmentColumns,
  singleLayerDevice,
  stackLayer,
  stackVirtualSize,
  writeNativeBlob,
} from "../../lib/layers/mod.ts";
import { deviceTree, sameTree } from "../testutil/device_tree.ts";
import { digestOf, file, makeLayer, opaque } from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { golden, requires } from "../testutil/requires.ts";
import { sh, withTempDir } from "../image/helpers.ts";
import { checkNative, deviceDigest } from "./helpers.ts";

/** One layer of a stack under test; `target` for warp layers. */
interface Layer {
  opened: OpenedLayer;
  target?: ByteSource;
}

/** The merged device of layers; borrows them. */
function deviceOf(layers: readonly Layer[]): LsmtSource {
  return new LsmtSource(
    layers.map(({ opened: { table, data }, target }) => ({
      table,
      data,
      target,
    })),
    stackVirtualSize(layers.map((l) => l.opened)),
  );
}

async function close(layers: readonly Layer[]): Promise<void> {
  for (const { opened } of layers) await opened.data[Symbol.asyncDispose]();
}

/**
 * Builds one OCI layer on top of others, both ways.
 *
 * @returns The layer as TurboOCI and as a native layer.
 */
async function buildOn(
  below: readonly Layer[],
  blob: Uint8Array<ArrayBuffer>,
  tar: Uint8Array<ArrayBuffer>,
  dir: string,
): Promise<{ warp: Layer; native: Layer }> {
  // The stack would dispose of the layers, which are used again.
  const stack = new LayerStack();
  for (const { opened } of below) stack.add(opened);
  const model = await Ext4Model.load(stack.device(), stack.table());
  const space = new ImageSpace(model);
  const bodies: Bodies = new Map();
  await scanInto(model, bodies, below.length, space, {
    blob: (async function* () {
      yield await Promise.resolve(blob);
    })(),
    digest: digestOf(blob),
    size: blob.length,
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    diffId: digestOf(tar),
    spanSize: 2 ** 20,
    threads: 1,
    warn: () => {},
  });
  const emission = model.emit();
  const content = layerContent(
    model,
    emission,
    bodies,
    below.length,
    stack.table(),
  );
  const { virtualSize } = space;
  const name = `${dir}/${crypto.randomUUID()}`;
  const target = new MemorySource(tar);
  const parts = await stackLayer(content, { virtualSize }, stack, name);
  const opened = parts[0]!;
  const device = singleLayerDevice(parts, target, virtualSize);
  const runs = () => blockRuns(device.table, virtualSize);
  await writeNativeBlob(name, { device, runs, virtualSize }, {});
  checkNative(await Deno.readFile(name), { virtualSize });
  const native = await openLayer(await FileSource.open(name), "native");
  return { warp: { opened, target }, native: { opened: native } };
}

async function openFile(path: string, target?: Uint8Array): Promise<Layer> {
  const opened = await openLayer(
    await FileSource.open(path),
    target ? "warp" : "native",
  );
  return target ? { opened, target: new MemorySource(target) } : { opened };
}

/** A blob and its tar. */
async function layerFile(name: string) {
  const blob = await Deno.readFile(golden(`layers/${name}`)!);
  return { blob, tar: new Uint8Array(gunzipSync(blob)) };
}

/** What all stacks of the two golden layers must show, except where the tools differ. */
async function contentTree(layers: readonly Layer[]): Promise<string[]> {
  return (await deviceTree(deviceOf(layers))).filter((line) =>
    JSON.parse(line).path !== "lost+found"
  );
}

const hasGolden = golden("native-lz4/layer1.overlaybd.commit") !== undefined;

for (const under of ["native-lz4", "native-zstd", "turbo-gz"]) {
  Deno.test({
    name:
      `building on golden ${under}: native and TurboOCI on top show the same`,
    ignore: !hasGolden,
    fn: () =>
      withTempDir(async (dir) => {
        const first = await layerFile("layer1.tar.gz");
        const second = await layerFile("layer2.tar.gz");
        const base = under === "turbo-gz"
          ? await openFile(golden(`${under}/layer1.ext4.fs.meta`)!, first.tar)
          : await openFile(golden(`${under}/layer1.overlaybd.commit`)!);
        const { warp, native } = await buildOn(
          [base],
          second.blob,
          second.tar,
          dir,
        );
        assert.equal(
          await deviceDigest(deviceOf([base, native])),
          await deviceDigest(deviceOf([base, warp])),
        );
        // One more layer on the mixed stack, from either form of the second.
        const third = makeLayer({
          entries: [
            file("on-top", "of all"),
            opaque("dir"),
            file("dir/x", "y"),
          ],
        });
        const onNative = await buildOn(
          [base, native],
          third.bytes,
          third.tar,
          dir,
        );
        const onWarp = await buildOn([base, warp], third.bytes, third.tar, dir);
        assert.equal(
          await deviceDigest(deviceOf([base, native, onNative.warp])),
          await deviceDigest(deviceOf([base, warp, onWarp.native])),
        );
        sameTree(
          await contentTree([base, warp, onWarp.native]),
          await contentTree([base, native, onNative.native]),
        );
        const tree = await contentTree([base, native, onNative.native]);
        assert.ok(tree.some((line) => line.includes('"on-top"')));
        await close([base, warp, native]);
        for (const l of [onNative, onWarp]) await close([l.warp, l.native]);
      }),
  });
}

Deno.test({
  name: "building on the journalled base layer ext4_64",
  ignore: golden("unit/ext4_64") === undefined || !requires("e2fsck"),
  fn: () =>
    withTempDir(async (dir) => {
      const base = await openFile(golden("unit/ext4_64")!);
      const [entries] = randomLayers(4, 1);
      const layer = makeLayer({ entries: entries! });
      const { warp, native } = await buildOn(
        [base],
        layer.bytes,
        layer.tar,
        dir,
      );
      sameTree(
        await deviceTree(deviceOf([base, native])),
        await deviceTree(deviceOf([base, warp])),
      );
      await close([base, warp, native]);
    }),
});

Deno.test({
  name: "building on a file system as mke2fs makes it",
  ignore: !requires("mke2fs", "e2fsck"),
  fn: () =>
    withTempDir(async (dir) => {
      const raw = `${dir}/raw`;
      await Deno.writeFile(raw, new Uint8Array());
      await Deno.truncate(raw, 256 * 2 ** 20);
      await sh([
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-O",
        "^has_journal",
        raw,
      ]);
      // The raw image as a native layer, by our own writer.
      const path = `${dir}/base`;
      {
        await using image = await FileSource.open(raw);
        const table = fullTable(image.size);
        await writeNativeBlob(
          path,
          {
            device: image,
            runs: () => blockRuns(table, image.size),
            virtualSize: image.size,
          },
          {},
        );
      }
      const base = await openFile(path);
      const [entries] = randomLayers(6, 1);
      const layer = makeLayer({ entries: entries! });
      const { warp, native } = await buildOn(
        [base],
        layer.bytes,
        layer.tar,
        dir,
      );
      const device = deviceOf([base, native]);
      assert.equal(
        await deviceDigest(device),
        await deviceDigest(deviceOf([base, warp])),
      );
      const dump = `${dir}/dump`;
      const bytes = new Uint8Array(device.size);
      await device.pread(bytes, 0);
      await Deno.writeFile(dump, bytes);
      await sh(["e2fsck", "-fn", dump]);
      await close([base, warp, native]);
    }),
});

/** One row over a whole device. */
function fullTable(size: number) {
  const columns = new SegmentColumns(1);
  columns.push(0, size / 512, 0, KIND.data, 0);
  return columns.finish();
}

Deno.test("chainUuid() is upper case and hyphenated", () => {
  assert.equal(
    chainUuid(`sha256:0123456789abcdef0123456789abcdef${"f".repeat(32)}`),
    "01234567-89AB-CDEF-0123-456789ABCDEF",
  );
});

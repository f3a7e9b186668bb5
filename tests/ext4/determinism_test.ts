import assert from "node:assert/strict";
import { Ext4Model } from "../../lib/ext4/mod.ts";
import { requires } from "../testutil/requires.ts";
import { Disk, type LayerBytes } from "./writer_disk.ts";
import {
  type Change,
  drawChange,
  listDevice,
  mapBodies,
  random,
  sameLines,
  Shadow,
} from "./writer_tree.ts";

const tools = requires("e2fsck");
const LAYERS = 5;

interface Options {
  virtualSize: number;
  inodeRatio: number;
}

function drawLayers(seed: number, changes: number): Change[][] {
  const rnd = random(seed);
  return Array.from(
    { length: LAYERS },
    () => Array.from({ length: changes }, () => drawChange(rnd)),
  );
}

/** Builds all layers in one model, checking each; gives the bytes of each. */
async function buildAtOnce(
  options: Options,
  layers: Change[][],
  fsck: boolean,
): Promise<LayerBytes[]> {
  const model = Ext4Model.create(options);
  const shadow = new Shadow();
  await using disk = await Disk.create(options.virtualSize);
  const out: LayerBytes[] = [];
  for (const layer of layers) {
    for (const change of layer) change(model, shadow, disk);
    out.push(disk.apply(model.emit()));
    if (fsck) await disk.check();
    await using source = await disk.source();
    sameLines(await listDevice(source), shadow.list());
  }
  return out;
}

/** Builds all layers, each from a model loaded anew from where `reload` says. */
async function buildReloading(
  options: Options,
  layers: Change[][],
  reload: (layer: number) => boolean,
): Promise<LayerBytes[]> {
  let model = Ext4Model.create(options);
  const shadow = new Shadow();
  await using disk = await Disk.create(options.virtualSize);
  const out: LayerBytes[] = [];
  for (const [i, layer] of layers.entries()) {
    if (i > 0 && reload(i)) {
      await using source = await disk.source();
      model = await Ext4Model.load(source, disk.ranges());
    }
    for (const change of layer) change(model, shadow);
    out.push(disk.apply(model.emit()));
    mapBodies(model, disk);
  }
  return out;
}

for (
  const { seed, size, changes, inodeRatio = 4096 } of [
    { seed: 1, size: 2 ** 30, changes: 60 },
    { seed: 2, size: 2 ** 30, changes: 250 },
    { seed: 3, size: 2 ** 28 + 40 * 4096, changes: 120 },
    // Small enough that never-mapped blocks below are used, then blocks for a second time.
    { seed: 4, size: 5 * 2 ** 20, changes: 120 },
    // Here inodes too.
    { seed: 5, size: 6 * 2 ** 20, changes: 120, inodeRatio: 16384 },
  ]
) {
  Deno.test({
    name:
      `random layers are what was asked for, and continue alike (seed ${seed})`,
    ignore: !tools,
    fn: async () => {
      const layers = drawLayers(seed, changes);
      const options = { virtualSize: size, inodeRatio };
      const once = await buildAtOnce(options, layers, true);
      for (let k = 1; k < LAYERS; k++) {
        assert.deepEqual(
          await buildReloading(options, layers, (i) => i === k),
          once,
          `reloaded before layer ${k}`,
        );
      }
      assert.deepEqual(await buildReloading(options, layers, () => true), once);
    },
  });
}

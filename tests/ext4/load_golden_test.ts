/** Layers of ours on top of what overlaybd's own tools made. */

import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { Ext4Model, Ext4Reader } from "../../lib/ext4/mod.ts";
import { MemorySource } from "../../lib/io/mod.ts";
import {
  LsmtSource,
  type OpenedLayer,
  openLayer,
  type StackLayer,
  stackVirtualSize,
} from "../../lib/layers/mod.ts";
import { golden, requires } from "../testutil/requires.ts";
import { Disk } from "./writer_disk.ts";
import {
  drawChange,
  listDevice,
  random,
  sameLines,
  Shadow,
  shadowOf,
} from "./writer_tree.ts";

type Layer = StackLayer & OpenedLayer;

async function native(file: string): Promise<Layer> {
  const blob = await Deno.readFile(golden(file)!);
  return await openLayer(new MemorySource(blob), "native");
}

async function turbo(folder: string, name: string): Promise<Layer> {
  const meta = await Deno.readFile(golden(`${folder}/${name}.ext4.fs.meta`)!);
  const target = await Deno.readFile(golden(`layers/${name}.tar.gz`)!);
  return {
    ...await openLayer(new MemorySource(meta), "warp"),
    target: new MemorySource(zlib.gunzipSync(target)),
  };
}

const STACKS: {
  name: string;
  needs: string;
  layers: () => Promise<Layer[]>;
}[] = [
  ...["turbo-gz", "turbo-tar"].map((folder) => ({
    name: folder,
    needs: `${folder}/layer2.ext4.fs.meta`,
    layers: () =>
      Promise.all(["layer1", "layer2"].map((name) => turbo(folder, name))),
  })),
  {
    // Its free counts are wrong as it comes.
    name: "native-lz4",
    needs: "native-lz4/layer2.overlaybd.commit",
    layers: () =>
      Promise.all(
        [1, 2].map((i) => native(`native-lz4/layer${i}.overlaybd.commit`)),
      ),
  },
  {
    // Every sector of it is mapped, and it has a journal.
    name: "ext4_64",
    needs: "unit/ext4_64",
    layers: async () => [await native("unit/ext4_64")],
  },
];

for (const stack of STACKS) {
  Deno.test({
    name: `layers continue on overlaybd's ${stack.name}`,
    ignore: golden(stack.needs) === undefined || !requires("e2fsck"),
    fn: async () => {
      const layers = await stack.layers();
      await using device = new LsmtSource(layers, stackVirtualSize(layers));
      await using disk = await Disk.create(device.size);
      await disk.copy(device);
      const shadow: Shadow = await shadowOf(device);
      const model = await Ext4Model.load(device, device);
      // The one thing that e2fsck says of their images is about this directory.
      model.removeTree(model.root, "lost+found");
      shadow.root.children.delete("lost+found");
      const rnd = random(3);
      for (let layer = 0; layer < 3; layer++) {
        for (let i = 0; i < 80; i++) drawChange(rnd)(model, shadow, disk);
        disk.apply(model.emit());
        await disk.check();
        await using source = await disk.source();
        sameLines(await listDevice(source), shadow.list());
        const { superblock } = await Ext4Reader.open(source);
        assert.equal(superblock.blocksCount * 4096, device.size);
      }
    },
  });
}

/** Layers of entries applied to a model in memory, and the tree that comes out. */

import { DeviceFullError, Ext4Model } from "../../lib/ext4/mod.ts";
import type { ByteString } from "../../lib/io/mod.ts";
import { LayerApplier } from "../../lib/layers/apply.ts";
import { type Bodies, ImageSpace } from "../../lib/layers/mod.ts";
import { type TarEntry, TarWalker } from "../../lib/tar/mod.ts";
import { type LayerEntry, layerTar } from "../testutil/oci_image.ts";

/** What came out of some layers. */
export interface Applied {
  model: Ext4Model;
  bodies: Bodies;
  space: ImageSpace;
  warnings: string[];
  /** Path to a line: type, mode, owner, time, links, target. */
  tree: Record<string, string>;
}

/** Applies layers, bottom first. Between layers the model emits, as a build has it. */
export function applyLayers(
  layers: readonly (readonly LayerEntry[])[],
  virtualSize = 64 * 2 ** 20,
): Applied {
  const model = Ext4Model.create({ virtualSize });
  const bodies: Bodies = new Map();
  const warnings: string[] = [];
  const space = new ImageSpace(model);
  for (const [i, entries] of layers.entries()) {
    const applier = new LayerApplier(
      model,
      bodies,
      i,
      space,
      (line) => warnings.push(line),
    );
    const walker = new TarWalker({ onEntry: (entry) => applier.add(entry) });
    walker.push(layerTar(entries));
    walker.finish();
    if (space.fullLayer === undefined) model.emit();
  }
  const tree: Record<string, string> = {};
  if (space.fullLayer === undefined) describe(model, bodies, "", tree);
  return { model, bodies, space, warnings, tree };
}

/** Applies entries without a tar, for files that are too large to make. */
export function applyEntries(
  layers: readonly Iterable<Partial<TarEntry>>[],
  virtualSize: number,
): ImageSpace {
  const model = Ext4Model.create({ virtualSize });
  const space = new ImageSpace(model);
  for (const [i, entries] of layers.entries()) {
    const applier = new LayerApplier(model, new Map(), i, space, () => {});
    for (const entry of entries) {
      applier.add({
        path: "",
        type: "file",
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: { seconds: 0, nanoseconds: 0 },
        xattrs: [],
        linkTarget: "",
        devMajor: 0,
        devMinor: 0,
        size: 0,
        runs: [],
        patches: [],
        ...entry,
      });
    }
    if (space.fullLayer !== undefined) continue;
    try {
      model.emit();
    } catch (error) {
      if (!(error instanceof DeviceFullError)) throw error;
      space.setFull(i);
    }
  }
  return space;
}

/** Names of the tree only. */
export function pathsOf(
  layers: readonly (readonly LayerEntry[])[],
): string[] {
  return Object.keys(applyLayers(layers).tree).filter((p) => p !== "").sort();
}

/** The node of a path. */
export function nodeAt(model: Ext4Model, path: ByteString): number {
  let node = model.root;
  for (const part of path.split("/")) {
    const next = model.lookup(node, part);
    if (next === undefined) throw new Error(`"${path}" is not there`);
    node = next;
  }
  return node;
}

function describe(
  model: Ext4Model,
  bodies: Bodies,
  path: string,
  tree: Record<string, string>,
): void {
  const node = path === "" ? model.root : nodeAt(model, path);
  const { type, mode, uid, gid, mtime, links, size } = model.stat(node);
  const time = `${mtime.seconds}.${String(mtime.nanoseconds).padStart(9, "0")}`;
  const parts = [type, mode.toString(8), `${uid}:${gid}`, time];
  if (type === "file") {
    parts.push(`size ${size}`, `layer ${bodies.get(node)?.layer ?? "-"}`);
  }
  if (type !== "directory" && links > 1) parts.push(`links ${links}`);
  if (type === "symlink") parts.push(`-> ${model.readlink(node)}`);
  tree[path] = parts.join(" ");
  if (type !== "directory") return;
  for (const [name] of model.children(node)) {
    describe(model, bodies, path === "" ? name : `${path}/${name}`, tree);
  }
}

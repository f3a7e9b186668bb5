/** Layers applied to a file system: hostile trees, and what the reader makes of the result. */

import {
  type ByteSource,
  type ByteString,
  checkRange,
} from "../../../lib/io/mod.ts";
import {
  BLOCK_SIZE,
  type Emission,
  Ext4Model,
  Ext4Reader,
} from "../../../lib/ext4/mod.ts";
import { LayerApplier } from "../../../lib/layers/apply.ts";
import { type Bodies, ImageSpace, WarpMap } from "../../../lib/layers/mod.ts";
import { mapBody } from "../../../lib/layers/bodies.ts";
import { TarWalker } from "../../../lib/tar/mod.ts";
import {
  type LayerEntry,
  layerTar,
  posixAcl,
} from "../../testutil/oci_image.ts";
import type { Mutant } from "../mutant.ts";
import { Random } from "../random.ts";
import { putTarChecksum } from "../seeds.ts";
import { must, type Seed, type Target } from "../target.ts";

const DEVICE_SIZE = 48 * 2 ** 20;
/** Room for a layer's tar; a "mutation" is a layer of its own. */
const TAR_MAX = 256 * 1024;

/** A device of blocks in memory. */
class BlockMap implements ByteSource {
  readonly size = DEVICE_SIZE;
  readonly #blocks = new Map<number, Uint8Array>();

  apply({ blocks, zeroed }: Emission): void {
    for (const { block, count } of zeroed) {
      for (let i = 0; i < count; i++) this.#blocks.delete(block + i);
    }
    for (const { block, bytes } of blocks) {
      this.#blocks.set(block, bytes.slice());
    }
  }

  // deno-lint-ignore require-await -- a range error must reject, not throw
  async pread(dst: Uint8Array, offset: number): Promise<void> {
    checkRange(this.size, offset, dst.length);
    for (let done = 0; done < dst.length;) {
      const at = (offset + done) % BLOCK_SIZE;
      const length = Math.min(BLOCK_SIZE - at, dst.length - done);
      const block = this.#blocks.get(Math.floor((offset + done) / BLOCK_SIZE));
      if (block) dst.set(block.subarray(at, at + length), done);
      else dst.fill(0, done, done + length);
      done += length;
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Few names, so that entries meet: replaced, removed, below what is no directory. */
const NAMES = ["a", "b", "c", "d", "e", ".", "long".repeat(60)];

/** One in so many parts of an entry is such that nobody can apply it, which ends its layer. */
const BAD = 60;

function path(random: Random, bad: number): ByteString {
  const parts = Array.from(
    { length: random.length(3) },
    () => random.oneIn(bad) ? ".." : random.pick(NAMES),
  );
  const text = parts.join("/");
  switch (random.below(8)) {
    case 0:
      return `/${text}`;
    case 1:
      return `./${text}`;
    case 2:
      return `${text}/.wh.${random.pick(NAMES)}`;
    case 3:
      return random.oneIn(2) ? `${text}/.wh..wh..opq` : `.wh.${parts[0]}`;
    default:
      return text;
  }
}

/** @param bad See {@linkcode BAD}. */
function entry(random: Random, bad = BAD): LayerEntry {
  const type = random.pick(
    [
      ...(["file", "file", "file", "directory", "directory"] as const),
      ...(["symlink", "hardlink", "char", "fifo"] as const),
    ],
  );
  const isLink = type === "symlink" || type === "hardlink";
  return {
    path: path(random, bad),
    type,
    mode: random.below(0o10000),
    uid: random.below(2 ** 21 - 1),
    gid: random.below(2 ** 21 - 1),
    mtime: random.below(2 ** 33),
    ...(type === "file" ? { content: random.bytes(random.below(6000)) } : {}),
    ...(type === "symlink" ? { linkTarget: path(random, bad) } : {}),
    ...(type === "hardlink"
      ? { linkTarget: random.oneIn(bad) ? path(random, bad) : "keep" }
      : {}),
    ...(type === "char" ? { devMajor: 1, devMinor: random.below(300) } : {}),
    ...(random.oneIn(5) && !isLink
      ? {
        xattrs: {
          "user.x": random.bytes(random.below(random.oneIn(bad) ? 9000 : 90)),
          "trusted.y": "1",
          "security.capability": random.bytes(random.pick([0, 20, 24])),
          "system.posix_acl_access": random.oneIn(bad)
            ? random.bytes(random.pick([0, 4, 28, 36]))
            : posixAcl([[1, 7, 0], [4, 5, 0], [0x20, 5, 0]]),
        },
      }
      : {}),
  };
}

function layer(random: Random, entries: number): Uint8Array {
  return layerTar(Array.from({ length: entries }, () => entry(random)));
}

/** The layer below: in order, with what the next one may meet. */
const BASE = layerTar([
  { path: "a", type: "directory" },
  { path: "a/a", type: "directory" },
  { path: "a/b", content: "body" },
  { path: "b", type: "symlink", linkTarget: "a/a" },
  { path: "c", content: "other" },
  { path: "a/c", type: "hardlink", linkTarget: "c" },
  { path: "keep", content: "linked" },
]);

/** Applies layers as a build does; undefined if the device is full. */
function build(
  model: Ext4Model,
  tars: readonly Uint8Array[],
  disk: BlockMap,
): Bodies | undefined {
  const bodies: Bodies = new Map();
  const space = new ImageSpace(model);
  for (const [i, tar] of tars.entries()) {
    const applier = new LayerApplier(model, bodies, i, space, () => {});
    const walker = new TarWalker({ onEntry: (entry) => applier.add(entry) });
    walker.push(tar);
    walker.finish();
    if (space.fullLayer !== undefined) return undefined;
    disk.apply(model.emit());
  }
  return bodies;
}

/** Compares the model's tree with what the reader reads of its blocks. */
async function compareTrees(model: Ext4Model, disk: BlockMap): Promise<void> {
  const reader = await Ext4Reader.open(disk);
  const seen = new Set<ByteString>();
  for await (const found of reader.walk()) {
    const got = reader.statOf(found);
    const want = model.stat(found.ino);
    const about = `"${found.path}"`;
    must(
      found.path === "" || model.path(found.ino) !== "" || got.links > 0,
      `${about} has no name`,
    );
    must(got.type === want.type, `${about} is a ${got.type}`);
    must(got.mode === want.mode, `Mode of ${about}`);
    must(got.uid === want.uid && got.gid === want.gid, `Owner of ${about}`);
    must(got.links === want.links, `Links of ${about}: ${got.links}`);
    must(got.size === want.size, `Size of ${about}: ${got.size}`);
    if (got.type === "symlink") {
      must(
        await reader.readlink(found.ino) === model.readlink(found.ino),
        `Target of ${about}`,
      );
    }
    await reader.xattrs(found.ino);
    seen.add(found.path);
  }
  const expect = (node: number, at: ByteString) => {
    for (const [name, child] of model.children(node)) {
      const below = at === "" ? name : `${at}/${name}`;
      must(seen.delete(below), `"${below}" cannot be read`);
      if (model.type(child) === "directory") expect(child, below);
    }
  };
  expect(model.root, "");
  seen.delete("");
  must(seen.size === 0, `The reader finds more: ${[...seen].join(", ")}`);
}

const nothingBelow = {
  highestMapped: () => 0,
  isMapped: () => false,
  nextUnmapped: (offset: number) => offset,
};

async function applyAll(tar: Uint8Array): Promise<void> {
  const model = Ext4Model.create({ virtualSize: DEVICE_SIZE });
  const disk = new BlockMap();
  const bodies = build(model, [BASE, tar], disk);
  if (!bodies) return;
  const map = new WarpMap();
  for (const [node, body] of bodies) {
    for (
      const { offset, bytes } of mapBody(
        body,
        model.extents(node),
        nothingBelow,
        map,
      )
    ) must(offset + bytes.length <= DEVICE_SIZE, "A patch is off the device");
  }
  // Throws what nobody catches if two mappings meet.
  map.sorted();
  await compareTrees(model, disk);
}

function repair(mutant: Mutant): void {
  for (let at = 0; at + 512 <= mutant.length; at += 512) {
    const changed = mutant.changes.some(([start, end]) =>
      start < at + 512 && end > at
    );
    // Bodies here are noise, whose bytes do not matter.
    if (changed) putTarChecksum(mutant, at);
  }
}

function seeds(): Seed[] {
  const made = Array.from({ length: 6 }, (_, i): Seed => {
    const bytes = layerTar(
      Array.from({ length: 12 }, (_, n) => ({
        ...entry(new Random(i * 100 + n, "apply seeds"), Infinity),
        path: `d${i}/n${n}`,
        linkTarget: "keep",
      })),
    );
    return {
      name: `layer ${i}`,
      bytes,
      repair,
      read: ({ bytes }) => applyAll(bytes),
    };
  });
  return [
    ...made,
    ...[3, 12, 40].map((entries): Seed => ({
      name: `${entries} entries that meet`,
      bytes: new Uint8Array(TAR_MAX),
      onlyOwn: true,
      mutate: (mutant, random) => mutant.replace(layer(random, entries)),
      read: ({ bytes }) => applyAll(bytes),
    })),
  ];
}

/** Targets of this file. */
export const APPLY_TARGETS: Target[] = [{
  name: "apply",
  summary: "hostile layers applied to a file system, which is read back",
  weight: 30,
  load: () => Promise.resolve(seeds()),
}];

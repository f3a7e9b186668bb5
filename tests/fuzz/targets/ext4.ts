/** ext4: the reader over a whole tree, and the model that continues on what it reads. */

import { type ByteSource, MemorySource, viewOf } from "../../../lib/io/mod.ts";
import {
  type Attributes,
  BLOCK_SIZE,
  Ext4Model,
  Ext4Reader,
} from "../../../lib/ext4/mod.ts";
import {
  LayerStack,
  LsmtSource,
  openLayer,
  openLsmtLayer,
  SegmentColumns,
} from "../../../lib/layers/mod.ts";
import { KIND } from "../../../lib/layers/lsmt/segment_table.ts";
import { requires } from "../../testutil/requires.ts";
import type { Mutant, Ranges } from "../mutant.ts";
import type { Random } from "../random.ts";
import { allBytes, goldenBytes, sourceOf } from "../seeds.ts";
import { must, type Seed, type Target } from "../target.ts";

/** Entries of one walk; whole trees of the small images. */
const ENTRIES_MAX = 700;
/** Bodies up to this size are gone through; a changed size may be any. */
const FILE_MAX = 2 ** 40;

/** Stands for the tar behind the golden metadata: no tree depends on it. */
const TAR = new Uint8Array(64 * 1024);

/** Reads everything, as far as it goes. */
async function readTree(
  device: ByteSource,
  random: Random,
): Promise<void> {
  const reader = await Ext4Reader.open(device);
  if (random.oneIn(4)) { for await (const _ of reader.bitmaps("block")); }
  if (random.oneIn(4)) { for await (const _ of reader.inodes()); }
  let entries = 0;
  for await (const entry of reader.walk()) {
    if (++entries > ENTRIES_MAX) break;
    const { type, ino, size } = reader.statOf(entry);
    must(size >= 0, "A size is negative");
    await reader.xattrs(ino);
    if (type === "symlink") await reader.readlink(ino);
    if (type === "file") await readFile(reader, ino);
  }
  await reader.lookup("c/name-7").catch(() => {});
}

async function readFile(reader: Ext4Reader, ino: number): Promise<void> {
  await using body = await reader.openFile(ino);
  if (body.size > FILE_MAX) return;
  let at = 0;
  for (const { offset, length } of body.extents!(0, body.size)) {
    must(offset === at && length > 0, "Extents of a body have a gap");
    at += length;
  }
  must(at === body.size, "Extents do not reach the body's end");
  const part = new Uint8Array(Math.min(body.size, 4096));
  await body.pread(part, 0);
  await body.pread(part, body.size - part.length);
}

/** Blocks that hold something, the first ones more than once. */
function busy(bytes: Uint8Array, blockSize: number): Ranges {
  const ranges: [number, number][] = [];
  for (let at = 0; at < bytes.length; at += blockSize) {
    const block = bytes.subarray(at, at + blockSize);
    if (block.every((byte) => byte === 0)) continue;
    let end = blockSize;
    while (block[end - 1] === 0) end--;
    ranges.push([at, at + end]);
  }
  return [...ranges, ...ranges.slice(0, ranges.length >>> 2)];
}

/** Aligned numbers mostly: all of ext4 is made of them. */
function mutateWords(hot: Ranges): (mutant: Mutant, random: Random) => void {
  return (mutant, random) => {
    for (let n = random.length(6); n > 0; n--) {
      const [start, end] = random.pick(hot);
      const at = start + (random.below(end - start) & ~3);
      const old = at + 4 <= mutant.length
        ? viewOf(mutant.bytes).getUint32(at, true)
        : 0;
      const value = random.pick([
        ...[0, 1, 2, 0xffff, 0xffffffff, 0x7fffffff, 0x8000],
        ...[old + 1, old - 1, old ^ (1 << random.below(32)), random.below(512)],
        ...[random.next(), mutant.length >>> 12, mutant.length >>> 10],
      ]);
      const width = random.pick([1, 2, 2, 4, 4]);
      const shift = width === 4 ? 0 : random.below(4 / width) * width;
      mutant.put(at + shift, width, BigInt(value >>> 0));
    }
  };
}

// ---- images -----------------------------------------------------------------------

const attributes: Attributes = {
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtime: { seconds: 0, nanoseconds: 0 },
  xattrs: [],
};

/** A file system of ours: directories with and without htree, xattrs, links, sparse bodies. */
function ownImage(): Uint8Array<ArrayBuffer> {
  const size = 4 * 2 ** 20;
  const model = Ext4Model.create({ virtualSize: size, inodeRatio: 8192 });
  const dir = model.mkdir(model.root, "c", attributes);
  for (let i = 0; i < 130; i++) {
    model.createFile(
      dir,
      `name-${i}`.padEnd(i % 90, "n"),
      {
        ...attributes,
        mode: 0o644,
        xattrs: i % 10 === 0 ? [["user.x", new Uint8Array(i * 3).fill(i)]] : [],
      },
      { size: i % 7 * 1500 },
    );
  }
  const inner = model.mkdir(dir, "inner", attributes);
  model.link(inner, "hard", model.lookup(dir, "name-0")!);
  model.symlink(inner, "slow", attributes, "t".repeat(200));
  model.symlink(inner, "fast", attributes, "short");
  const ranges = Array.from({ length: 30 }, (_, i) => ({
    fileSector: i * 16,
    sectors: 8,
  }));
  model.createFile(inner, "tree", attributes, { size: 2 ** 18, ranges });
  const bytes = new Uint8Array(size);
  for (const { block, bytes: content } of model.emit().blocks) {
    bytes.set(content, block * BLOCK_SIZE);
  }
  return bytes;
}

/** A small file system of e2fsprogs; the same bytes every time. */
async function madeImage(
  options: readonly string[],
  size: string,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  if (!requires("mke2fs", "debugfs")) return undefined;
  const directory = await Deno.makeTempDir({ prefix: "obd-fuzz-" });
  try {
    const image = `${directory}/image`;
    await e2fs("mke2fs", ["-q", "-F", ...options, image, size]);
    // Not `mke2fs -d`, which takes the times of files that are made just now.
    const commands = ["mkdir a", "mkdir a/b", "mkdir c"];
    const write = (name: string, bytes: Uint8Array) => {
      const from = `${directory}/${commands.length}`;
      Deno.writeFileSync(from, bytes);
      commands.push(`write ${from} ${name}`);
    };
    commands.push("cd /c");
    for (let i = 0; i < 30; i++) {
      write(`name-${i}`, new TextEncoder().encode(`body ${i}\n`));
    }
    commands.push("cd /");
    write("large", new Uint8Array(40_000).fill(7));
    // debugfs leaves blocks of zeros out.
    const holes = new Uint8Array(60 * 8192);
    for (let i = 0; i < 60; i++) holes.fill(i + 1, i * 8192, i * 8192 + 4096);
    write("holes", holes);
    commands.push(
      "cd /a/b",
      "symlink short ../../c/name-1",
      `symlink long ${"long/".repeat(30)}`,
      "cd /",
      "ea_set holes user.v value",
      "mknod pipe p",
    );
    await Deno.writeTextFile(`${directory}/script`, commands.join("\n"));
    await e2fs("debugfs", ["-w", "-f", `${directory}/script`, image]);
    return await Deno.readFile(image);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Runs a tool of e2fsprogs at a fixed time. */
async function e2fs(tool: string, args: readonly string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(tool, {
    args: [...args],
    env: {
      PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin`,
      E2FSPROGS_FAKE_TIME: "1700000000",
    },
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
}

/** Always the same identity, so that the same seed makes the same inputs. */
const FIXED = [
  ...["-U", "11111111-2222-3333-4444-555555555555"],
  ...["-E", "hash_seed=11111111-2222-3333-4444-555555555555,root_owner=0:0"],
];

async function images(): Promise<[name: string, bytes: Uint8Array][]> {
  const none = "^metadata_csum,^has_journal,^resize_inode";
  const made: [string, string[], string][] = [
    [
      "ext4, 1 KiB blocks",
      ["-t", "ext4", "-b", "1024", "-N", "96", "-O", `${none},uninit_bg`],
      "1M",
    ],
    ["ext2", ["-t", "ext2", "-b", "1024", "-N", "96"], "1M"],
    ["ext4 with checksums", ["-t", "ext4", "-b", "1024", "-N", "96"], "3M"],
    [
      "ext4, 4 KiB blocks",
      ["-t", "ext4", "-b", "4096", "-N", "96", "-O", none],
      "2M",
    ],
  ];
  const found: [string, Uint8Array][] = [["ours", ownImage()]];
  for (const [name, options, size] of made) {
    const bytes = await madeImage([...options, ...FIXED], size);
    if (bytes) found.push([name, bytes]);
  }
  return found;
}

function readerSeed(name: string, bytes: Uint8Array): Seed {
  const hot = busy(bytes, 1024);
  return {
    name,
    bytes,
    hot,
    mutate: mutateWords(hot),
    read: ({ bytes }, random) => readTree(sourceOf(bytes), random),
  };
}

// ---- the model ---------------------------------------------------------------------

/** Changes about everything that can be changed, and writes the layer. */
function changeAll(model: Ext4Model, random: Random): void {
  const { root } = model;
  for (const [name, node] of model.children(root)) {
    model.setAttributes(node, { ...attributes, mode: 0o700 });
    if (model.type(node) !== "directory") continue;
    for (const [, child] of model.children(node).slice(0, 20)) {
      model.extents(child);
      model.stat(child);
      model.setAttributes(child, {
        ...attributes,
        xattrs: [["user.y", new Uint8Array(200)]],
      });
    }
    if (random.oneIn(2)) model.removeTree(root, name);
  }
  for (let i = 0; i < 20; i++) {
    model.createFile(root, `new${i}`, attributes, { size: i * 3000 });
  }
  for (const { block, bytes } of model.emit().blocks) {
    must(
      block >= 0 && block < model.virtualSize / BLOCK_SIZE &&
        bytes.length === BLOCK_SIZE,
      `Block ${block} lies outside of the device`,
    );
  }
}

function modelSeed(name: string, bytes: Uint8Array): Seed {
  const hot = busy(bytes, BLOCK_SIZE);
  const columns = new SegmentColumns(bytes.length / BLOCK_SIZE);
  const blocks = [...new Set(hot.map(([start]) => start))].sort((a, b) =>
    a - b
  );
  for (const at of blocks) {
    columns.push(at / 512, BLOCK_SIZE / 512, at / 512, KIND.data, 0);
  }
  const mapped = columns.finish();
  return {
    name,
    bytes,
    hot,
    mutate: mutateWords(hot),
    async read({ bytes }, random) {
      changeAll(await Ext4Model.load(sourceOf(bytes), mapped), random);
    },
  };
}

// ---- golden metadata ------------------------------------------------------------------

/** What overlaybd's tools made of layer 1, and layer 2 on top of a layer 1 that is in order. */
async function goldenSeeds(builds: boolean): Promise<Seed[]> {
  const [one, two] = ["layer1", "layer2"].map((name) =>
    goldenBytes(`turbo-gz/${name}.ext4.fs.meta`)
  );
  if (!one || !two) return [];
  const open = async (bytes: Uint8Array) =>
    (await openLayer(new MemorySource(bytes), "warp")).data;
  const first = await allBytes(await open(one));
  const second = await allBytes(await open(two));
  return [["layer1", first], ["layer1+2", second]].map((pair): Seed => {
    const [name, bytes] = pair as [string, Uint8Array];
    const data: Ranges = busy(bytes.subarray(4096, -8192), 4096).map((
      [start, end],
    ) => [start + 4096, end + 4096]);
    return {
      name,
      bytes,
      hot: data,
      mutate: mutateWords(data),
      async read({ bytes: input }, random) {
        const files = name === "layer1" ? [input] : [first, input];
        const layers = await Promise.all(files.map(async (file) => {
          const data = sourceOf(file);
          return { ...await openLsmtLayer(data, "warp"), data, containers: [] };
        }));
        if (!builds) {
          await using device = new LsmtSource(
            layers.map((layer) => ({
              ...layer,
              target: new MemorySource(TAR),
            })),
            2 ** 30,
          );
          return await readTree(device, random);
        }
        await using stack = new LayerStack();
        for (const layer of layers) stack.add(layer);
        changeAll(
          await Ext4Model.load(stack.device(), stack.table()),
          random,
        );
      },
    };
  });
}

/** Targets of this file. */
export const EXT4_TARGETS: Target[] = [
  {
    name: "ext4",
    summary: "the ext4 reader: superblock to bodies, whole trees",
    weight: 60,
    load: async () =>
      (await images()).map(([name, bytes]) => readerSeed(name, bytes)),
  },
  {
    name: "ext4-golden",
    summary: "the ext4 reader over overlaybd's metadata, through the layers",
    weight: 10,
    load: () => goldenSeeds(false),
  },
  {
    name: "ext4-model",
    summary: "continuing on a file system: load, change, emit",
    weight: 15,
    load: async () => [
      ...(await images()).filter(([name]) =>
        name === "ours" || name.includes("4 KiB blocks")
      ).map(([name, bytes]) => modelSeed(name, bytes)),
      ...await goldenSeeds(true),
    ],
  },
];

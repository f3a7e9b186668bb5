/** Damaged devices: loading and changing them ends in a typed error or in order, and soon. */

import assert from "node:assert/strict";
import {
  BLOCK_SIZE,
  Ext4Model,
  type MappedRanges,
} from "../../lib/ext4/mod.ts";
import {
  FormatError,
  isZero,
  MemorySource,
  ObdError,
  UnsupportedError,
  viewOf,
} from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";
import { attrs, Disk, run } from "./writer_disk.ts";
import { random } from "./writer_tree.ts";

const SIZE = 16 * 2 ** 20;
const ROUNDS = Number(Deno.env.get("OBD_FUZZ_ROUNDS") ?? 200);

function build(): Uint8Array {
  const model = Ext4Model.create({ virtualSize: SIZE, inodeRatio: 8192 });
  for (let d = 0; d < 5; d++) {
    const dir = model.mkdir(model.root, `dir${d}`, attrs(0o755));
    for (let i = 0; i < 120; i++) {
      model.createFile(
        dir,
        `file-with-a-name-${i}`.padEnd(d * 40, "n"),
        attrs(0o644, {
          xattrs: [["user.x", new Uint8Array((i % 30) * 8).fill(i)]],
        }),
        { size: i * 40 },
      );
    }
    const inner = model.mkdir(dir, "inner", attrs(0o755));
    model.link(
      inner,
      "hard",
      model.lookup(dir, "file-with-a-name-7".padEnd(d * 40, "n"))!,
    );
    model.symlink(inner, "slow", attrs(0o777), "t".repeat(200));
    const ranges = Array.from({ length: 30 }, (_, i) => ({
      fileSector: i * 16,
      sectors: 8,
    }));
    model.createFile(inner, "tree", attrs(0o644), { size: 2 ** 18, ranges });
  }
  const bytes = new Uint8Array(SIZE);
  for (const { block, bytes: b } of model.emit().blocks) {
    bytes.set(b, block * BLOCK_SIZE);
  }
  return bytes;
}

function rangesOf(bytes: Uint8Array): MappedRanges {
  const mapped: boolean[] = [];
  for (let at = 0; at < bytes.length; at += BLOCK_SIZE) {
    mapped.push(!isZero(bytes.subarray(at, at + BLOCK_SIZE)));
  }
  return {
    highestMapped: () => (mapped.lastIndexOf(true) + 1) * BLOCK_SIZE,
    isMapped: (offset) => mapped[Math.floor(offset / BLOCK_SIZE)] ?? false,
  };
}

/** Loads, changes about everything, and emits. */
async function exercise(bytes: Uint8Array, ranges: MappedRanges) {
  const model = await Ext4Model.load(new MemorySource(bytes), ranges);
  const { root } = model;
  for (const [name, node] of model.children(root)) {
    model.setAttributes(node, attrs(0o700));
    if (model.type(node) !== "directory") continue;
    for (const [, child] of model.children(node).slice(0, 20)) {
      model.extents(child);
      model.setAttributes(
        child,
        attrs(0o600, { xattrs: [["user.y", new Uint8Array(200)]] }),
      );
    }
    if (name !== "dir1") model.removeTree(root, name);
  }
  for (let i = 0; i < 50; i++) {
    model.createFile(root, `new${i}`, attrs(0o644), { size: i * 3000 });
  }
  for (const block of model.emit().blocks) {
    assert.equal(block.bytes.length, 4096);
  }
}

/** Damages a device again and again; gives how often that was noticed. */
async function damage(good: Uint8Array, seed: number, rounds: number) {
  const ranges = rangesOf(good);
  const used: number[] = [];
  for (let at = 0; at < good.length; at += BLOCK_SIZE) {
    if (!isZero(good.subarray(at, at + BLOCK_SIZE))) used.push(at);
  }
  await exercise(good, ranges);
  const rnd = random(seed);
  const bytes = good.slice();
  const view = viewOf(bytes);
  let refused = 0;
  for (let round = 0; round < rounds; round++) {
    const touched: number[] = [];
    for (let n = 1 + rnd(8); n > 0; n--) {
      // Half of the hits go to superblock, descriptors, bitmaps and first inodes.
      const block = used[rnd(rnd(2) === 0 ? 12 : used.length)]!;
      const at = block +
        4 * rnd((block === 0 ? 1400 : BLOCK_SIZE) / 4);
      const old = view.getUint32(at, true);
      const now = [0, 1, 0xffff, 0xffffffff, rnd(256), old ^ 2 ** rnd(32)];
      view.setUint32(at, now[rnd(6)]!, true);
      touched.push(at);
    }
    const start = performance.now();
    try {
      await exercise(bytes, ranges);
    } catch (error) {
      const stack = (error as Error).stack;
      const where = `round ${round}, bytes ${touched}: ${stack}`;
      assert.ok(error instanceof ObdError, where);
      refused++;
    }
    assert.ok(performance.now() - start < 3000, `round ${round} is slow`);
    for (const at of touched) {
      bytes.set(good.subarray(at, at + 4), at);
    }
  }
  return refused;
}

Deno.test("damaged devices of ours end in a typed error or in order", async () => {
  const refused = await damage(build(), 99, ROUNDS);
  assert.ok(refused > ROUNDS / 20 && refused < ROUNDS, `${refused} refused`);
});

Deno.test({
  name:
    "damaged devices without any checksums end in a typed error or in order",
  ignore: !requires("mke2fs"),
  fn: async () => {
    await using disk = await Disk.made(SIZE, async (path, dir) => {
      const tree = `${dir}/tree`;
      for (let d = 0; d < 4; d++) {
        await Deno.mkdir(`${tree}/dir${d}/inner`, { recursive: true });
        for (let i = 0; i < 100; i++) {
          await Deno.writeTextFile(
            `${tree}/dir${d}/${"n".repeat(d * 40)}${i}`,
            i % 20 === 0 ? "x".repeat(i * 99) : "",
          );
        }
        await Deno.symlink("t".repeat(99), `${tree}/dir${d}/inner/slow`);
      }
      const features =
        "none,ext_attr,dir_index,filetype,extent,flex_bg,large_file,extra_isize";
      await run("mke2fs", [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-O",
        features,
        "-d",
        tree,
        path,
      ]);
    });
    const refused = await damage(await Deno.readFile(disk.path), 7, ROUNDS);
    assert.ok(refused > ROUNDS / 20 && refused < ROUNDS, `${refused} refused`);
  },
});

Deno.test({
  name: "an xattr block with more users than it counts is refused",
  ignore: !requires("mke2fs", "debugfs"),
  fn: async () => {
    await using disk = await Disk.made(16 * 2 ** 20, async (path, dir) => {
      await Deno.mkdir(`${dir}/tree`);
      await Deno.writeTextFile(`${dir}/tree/one`, "");
      await Deno.writeTextFile(`${dir}/tree/two`, "");
      await Deno.writeTextFile(`${dir}/value`, "v".repeat(700));
      const args = ["-q", "-F", "-t", "ext4", "-b", "4096"];
      await run("mke2fs", [...args, "-d", `${dir}/tree`, path]);
      const write = (request: string) =>
        run("debugfs", ["-w", "-R", request, path]);
      await write(`ea_set -f ${dir}/value /one user.big`);
      const stat = await run("debugfs", ["-R", "stat /one", path]);
      const block = /File ACL: (\d+)/.exec(stat)![1]!;
      assert.notEqual(block, "0");
      await write(`sif /two file_acl ${block}`);
    });
    await using source = await disk.source();
    await assert.rejects(
      Ext4Model.load(source, disk.ranges()),
      (error: unknown) =>
        error instanceof FormatError && error.field === "h_refcount",
    );
  },
});

for (
  const { feature, args } of [
    { feature: "block size", args: ["-b", "1024"] },
    { feature: "no extents", args: ["-b", "4096", "-O", "^extents,^64bit"] },
    { feature: "inline_data", args: ["-b", "4096", "-O", "inline_data"] },
    { feature: "meta_bg", args: ["-b", "4096", "-O", "meta_bg,^resize_inode"] },
    { feature: "bigalloc", args: ["-b", "4096", "-O", "bigalloc"] },
  ]
) {
  Deno.test({
    name: `a file system with ${feature} is refused by name`,
    ignore: !requires("mke2fs"),
    fn: async () => {
      await using disk = await Disk.made(64 * 2 ** 20, async (path) => {
        await run("mke2fs", ["-q", "-F", "-t", "ext4", ...args, path]);
      });
      await using source = await disk.source();
      await assert.rejects(
        Ext4Model.load(source, disk.ranges()),
        (error: unknown) =>
          error instanceof UnsupportedError && error.feature === feature,
      );
    },
  });
}

import assert from "node:assert/strict";
import { Ext4Model, Ext4Reader } from "../../lib/ext4/mod.ts";
import { requires } from "../testutil/requires.ts";
import { attrs, Disk, run } from "./writer_disk.ts";
import {
  drawChange,
  listDevice,
  random,
  sameLines,
  Shadow,
  shadowOf,
} from "./writer_tree.ts";

const tools = requires("e2fsck", "mke2fs", "debugfs", "tune2fs");
const MIB = 2 ** 20;

/** A tree with everything that a loaded model must not lose. */
async function makeTree(dir: string): Promise<string> {
  const root = `${dir}/tree`;
  await Deno.mkdir(`${root}/many`, { recursive: true });
  await Deno.mkdir(`${root}/a/b/c`, { recursive: true });
  for (let i = 0; i < 700; i++) {
    const name = `${root}/many/${"long-name-".repeat(4)}${i}`;
    await Deno.writeTextFile(name, i % 5 === 0 ? "x".repeat(i * 20) : "");
  }
  await Deno.writeTextFile(`${root}/a/one`, "hard links");
  await Deno.link(`${root}/a/one`, `${root}/a/b/two`);
  await Deno.link(`${root}/a/one`, `${root}/three`);
  await Deno.symlink("target", `${root}/a/fast`);
  await Deno.symlink("t".repeat(100), `${root}/a/slow`);
  return root;
}

async function mke2fs(
  path: string,
  dir: string,
  args: readonly string[],
): Promise<void> {
  const tree = await makeTree(dir);
  await run("mke2fs", ["-q", "-F", "-b", "4096", "-d", tree, ...args, path]);
}

const DEVICES: {
  name: string;
  size: number;
  args: string[];
  /** The last second that its inodes hold. */
  latest?: number;
  after?: (path: string) => Promise<void>;
}[] = [
  {
    name: "mke2fs defaults (metadata_csum, journal)",
    size: 64 * MIB,
    args: ["-t", "ext4"],
  },
  {
    name: "metadata_csum, groups of their own, three groups",
    size: 300 * MIB,
    args: ["-t", "ext4", "-O", "^flex_bg,^has_journal"],
  },
  {
    name: "uninit_bg, 32-byte descriptors",
    size: 200 * MIB,
    args: [
      "-t",
      "ext4",
      "-O",
      "^metadata_csum,uninit_bg,^64bit,^metadata_csum_seed",
    ],
  },
  {
    name: "overlaybd's features",
    size: 256 * MIB,
    args: [
      "-t",
      "ext4",
      "-O",
      "none,ext_attr,resize_inode,dir_index,sparse_super2,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize",
      "-G",
      "1",
    ],
  },
  {
    name: "128-byte inodes, no directory index",
    size: 64 * MIB,
    latest: 2 ** 31 - 1,
    args: [
      "-t",
      "ext4",
      "-I",
      "128",
      "-O",
      "^dir_index,^metadata_csum,^metadata_csum_seed",
    ],
  },
  {
    name: "block maps of ext3",
    size: 64 * MIB,
    args: ["-t", "ext3"],
    after: async (path) => {
      await run("tune2fs", ["-O", "extents,uninit_bg", path]);
      await run("e2fsck", ["-fy", path], [0, 1]);
    },
  },
  {
    name: "a shared xattr block",
    size: 64 * MIB,
    args: ["-t", "ext4"],
    after: shareXattrBlock,
  },
];

/** Lets three files use one xattr block, as the kernel does for equal xattrs. */
async function shareXattrBlock(path: string): Promise<void> {
  const value = `${path}.value`;
  await Deno.writeTextFile(value, "v".repeat(700));
  await run("debugfs", [
    "-w",
    "-R",
    `ea_set -f ${value} /three user.big`,
    path,
  ]);
  const stat = await run("debugfs", ["-R", "stat /three", path]);
  const block = /File ACL: (\d+)/.exec(stat)![1]!;
  assert.notEqual(block, "0");
  const name = "many/" + "long-name-".repeat(4);
  for (const file of [`${name}1`, `${name}2`]) {
    await run("debugfs", ["-w", "-R", `sif ${file} file_acl ${block}`, path]);
  }
  await run("e2fsck", ["-fy", path], [0, 1]);
}

for (const device of DEVICES) {
  Deno.test({
    name: `layers continue on another's file system: ${device.name}`,
    ignore: !tools,
    fn: async () => {
      const make = async (path: string, dir: string) => {
        await mke2fs(path, dir, device.args);
        await device.after?.(path);
      };
      await using disk = await Disk.made(device.size, make);
      await disk.check();
      let shadow: Shadow;
      let model: Ext4Model;
      {
        await using source = await disk.source();
        shadow = await shadowOf(source);
        assert.ok(shadow.root.children.size > 3);
        model = await Ext4Model.load(source, disk.ranges());
      }
      const rnd = random(device.size / MIB);
      for (let layer = 0; layer < 3; layer++) {
        await using source = await disk.source();
        const again = await Ext4Model.load(source, disk.ranges());
        const changes = Array.from(
          { length: 60 },
          () => drawChange(rnd, device.latest),
        );
        const copy = structuredClone(shadow.root);
        for (const change of changes) change(model, shadow, disk);
        const reloaded = new Shadow();
        Object.assign(reloaded.root, copy);
        for (const change of changes) change(again, reloaded);
        const bytes = disk.apply(model.emit());
        await disk.check();
        await using changed = await disk.source();
        sameLines(await listDevice(changed), shadow.list());
        await using scratch = await Disk.create(disk.size);
        assert.deepEqual(scratch.apply(again.emit()), bytes);
      }
    },
  });
}

Deno.test({
  name: "attributes of inodes that tune2fs made larger are where readers look",
  ignore: !tools,
  fn: async () => {
    await using disk = await Disk.made(64 * MIB, async (path, dir) => {
      const features = "^flex_bg,^metadata_csum";
      await mke2fs(path, dir, ["-t", "ext4", "-I", "128", "-O", features]);
      await run("tune2fs", ["-I", "256", path]);
      await run("e2fsck", ["-fy", path], [0, 1]);
    });
    await using source = await disk.source();
    const model = await Ext4Model.load(source, disk.ranges());
    const ino = model.lookup(model.root, "three")!;
    const value = new Uint8Array([1, 2, 3]);
    const xattrs: [string, Uint8Array][] = [["user.a", value]];
    model.setAttributes(ino, attrs(0o600, { xattrs }));
    disk.apply(model.emit());
    await disk.check();
    await using changed = await disk.source();
    const reader = await Ext4Reader.open(changed);
    // 0 until the kernel writes the inode: it has no room for attributes.
    assert.equal((await reader.inode(ino)).inode.extraSize, 0);
    assert.deepEqual(await reader.xattrs(ino), [["user.a", value]]);
  },
});

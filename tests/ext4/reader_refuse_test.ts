/** What Ext4Reader refuses: features by name, file systems that need recovery, hostile structures. */

import assert from "node:assert/strict";
import {
  FormatError,
  LimitError,
  MemorySource,
  NotFoundError,
  ObdError,
  UnsupportedError,
  viewOf,
} from "../../lib/io/mod.ts";
import {
  EE,
  EH,
  EI,
  GD,
  INCOMPAT,
  INO,
  INODE,
  INODE_FLAGS,
  readSuperblock,
  REVISION_DYNAMIC,
  SB,
  STATE,
  SUPER_MAGIC,
  SUPERBLOCK_OFFSET,
  SUPERBLOCK_SIZE,
  writeSuperblock,
} from "../../lib/ext4/format.ts";
import { JBD2 } from "../../lib/ext4/journal.ts";
import { Ext4Reader, type ReaderOptions } from "../../lib/ext4/reader.ts";
import { requires } from "../testutil/requires.ts";
import {
  debugfsWrite,
  makeSourceTree,
  run,
  withTempDir,
} from "./reader_images.ts";

const ready = requires("mke2fs", "debugfs", "python3");

/** Options of mke2fs, then the feature that must be named. */
const REFUSED: [options: string[], feature: string][] = [
  [["-O", "meta_bg,^resize_inode"], "meta_bg"],
  [["-O", "bigalloc"], "bigalloc"],
  [["-O", "quota"], "quota"],
  [["-O", "project"], "project"],
  [["-O", "inline_data"], "inline_data"],
  [["-O", "encrypt"], "encrypt"],
  [["-O", "casefold"], "casefold"],
  [["-O", "ea_inode"], "ea_inode"],
  [["-O", "large_dir"], "large_dir"],
  [["-O", "mmp"], "mmp"],
  [["-O", "verity"], "verity"],
];

/** Commands of debugfs on a plain image, then the feature or state that must be named. */
const BROKEN: [command: string, feature: string][] = [
  ["feature needs_recovery", "needs_recovery"],
  ["feature orphan_present", "orphan_present"],
  ["feature shared_blocks", "shared_blocks"],
  ["set_super_value last_orphan 12", "orphans"],
  ["set_super_value state 3", "errors"],
  ["set_super_value state 0", "unclean"],
  ["set_super_value rev_level 0", "revision"],
  ["set_super_value journal_inum 0", "external journal"],
  ["set_super_value feature_incompat 0x80000042", "incompat bit 0x80000000"],
  ["set_super_value feature_ro_compat 0x01000003", "ro_compat bit 0x1000000"],
];

/** Makes an image without files. */
async function emptyImage(
  directory: string,
  options: string[],
): Promise<string> {
  const image = `${directory}/image`;
  await run("mke2fs", ["-q", "-F", "-t", "ext4", ...options, image, "16M"]);
  return image;
}

async function refusal(image: string): Promise<UnsupportedError> {
  const bytes = await Deno.readFile(image);
  try {
    await Ext4Reader.open(new MemorySource(bytes));
  } catch (error) {
    assert.ok(error instanceof UnsupportedError, String(error));
    return error;
  }
  assert.fail("opened");
}

for (const [options, feature] of REFUSED) {
  Deno.test({
    name: `Ext4Reader.open() refuses ${feature} by name`,
    ignore: !ready,
    fn: () =>
      withTempDir(async (directory) => {
        const error = await refusal(await emptyImage(directory, options));
        assert.equal(error.feature, feature);
        assert.ok(error.message.includes(feature), error.message);
      }),
  });
}

for (const [command, feature] of BROKEN) {
  Deno.test({
    name: `Ext4Reader.open() refuses after "${command}"`,
    ignore: !ready,
    fn: () =>
      withTempDir(async (directory) => {
        const image = await emptyImage(directory, ["-O", "^metadata_csum"]);
        await debugfsWrite(image, [command]);
        assert.equal((await refusal(image)).feature, feature);
      }),
  });
}

Deno.test({
  name: "Ext4Reader.open() refuses a journal that is not empty",
  ignore: !ready,
  fn: () =>
    withTempDir(async (directory) => {
      const image = await emptyImage(directory, ["-O", "^metadata_csum"]);
      const bytes = await Deno.readFile(image);
      const reader = await Ext4Reader.open(new MemorySource(bytes));
      const [first] = await reader.extents(8);
      const at = first!.physicalBlock * reader.blockSize;
      viewOf(bytes).setUint32(at + JBD2.start, 1);
      await Deno.writeFile(image, bytes);
      assert.equal((await refusal(image)).feature, "needs_recovery");
    }),
});

const images = new Map<string, Promise<Uint8Array<ArrayBuffer>>>();

/** Gives `body` the bytes of an image with a full tree and no checksums, to tamper with. Made once for each set of options. */
async function withTree(
  options: string[],
  body: (bytes: Uint8Array<ArrayBuffer>) => Promise<void>,
): Promise<void> {
  const key = options.join(" ");
  let image = images.get(key);
  if (image === undefined) images.set(key, image = makeImage(options));
  await body((await image).slice());
}

async function makeImage(options: string[]): Promise<Uint8Array<ArrayBuffer>> {
  let bytes = new Uint8Array();
  await withTempDir(async (directory) => {
    await Deno.mkdir(`${directory}/source`);
    await makeSourceTree(`${directory}/source`);
    const image = `${directory}/image`;
    await run("mke2fs", [
      ...["-q", "-F", "-b", "1024", ...options],
      ...["-d", `${directory}/source`, image, "16M"],
    ]);
    bytes = await Deno.readFile(image);
  });
  return bytes;
}

const PLAIN = ["-t", "ext4", "-O", "^metadata_csum,^has_journal"];

function open(bytes: Uint8Array, options?: ReaderOptions): Promise<Ext4Reader> {
  return Ext4Reader.open(new MemorySource(bytes), options);
}

/** Byte offset of an inode on the device. */
function slotOffset(reader: Ext4Reader, ino: number): number {
  const { inodesPerGroup, inodeSize } = reader.superblock;
  const group = Math.floor((ino - 1) / inodesPerGroup);
  return reader.group(group).inodeTable * reader.blockSize +
    ((ino - 1) % inodesPerGroup) * inodeSize;
}

async function walkAll(reader: Ext4Reader): Promise<void> {
  for await (const entry of reader.walk()) await reader.fileMap(entry);
}

Deno.test({
  name: "superblock fields out of range are format errors",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const view = viewOf(bytes);
      const cases: [offset: number, value: number][] = [
        [SB.logBlockSize, 7],
        [SB.logBlockSize, 0xffffffff],
        [SB.blocksCountLo, 0xffffffff],
        [SB.blocksCountHi, 0xffffffff],
        [SB.blocksCountLo, 0],
        [SB.blocksPerGroup, 0],
        [SB.blocksPerGroup, 7],
        [SB.blocksPerGroup, 16384],
        [SB.inodesPerGroup, 0],
        [SB.inodesPerGroup, 0xfffffff8],
        [SB.inodesCount, 0xffffffff],
        [SB.firstDataBlock, 0],
        [SB.firstIno, 1],
        [SB.inodeSize, 0],
        [SB.inodeSize, 200],
        [SB.inodeSize, 0x8000],
        [SB.magic, 0],
      ];
      for (const [offset, value] of cases) {
        const at = SUPERBLOCK_OFFSET + offset;
        const before = view.getUint32(at, true);
        view.setUint32(at, value, true);
        await assert.rejects(open(bytes), FormatError, `${offset}: ${value}`);
        view.setUint32(at, before, true);
      }
      const table = view.getUint32(2048 + 8, true);
      view.setUint32(2048 + 8, 0x7fffffff, true);
      await assert.rejects(open(bytes), FormatError);
      view.setUint32(2048 + 8, table, true);
      await assert.rejects(open(bytes.subarray(0, 2047)), FormatError);
      await assert.rejects(open(bytes.subarray(0, 1 << 20)), FormatError);
      await walkAll(await open(bytes));
    }),
});

Deno.test("a descriptor table larger than any that is made is not read", async () => {
  const bytes = new Uint8Array(SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE);
  const view = viewOf(bytes);
  const table = (descriptorSize: number) =>
    writeSuperblock(view, SUPERBLOCK_OFFSET, {
      ...readSuperblock(view, SUPERBLOCK_OFFSET),
      magic: SUPER_MAGIC,
      revision: REVISION_DYNAMIC,
      state: STATE.clean,
      logBlockSize: 2,
      logClusterSize: 2,
      blocksPerGroup: 8,
      clustersPerGroup: 8,
      blocksCount: 2 ** 22,
      inodesPerGroup: 16,
      inodesCount: 16 * 2 ** 19,
      inodeSize: 256,
      firstIno: INO.firstFree,
      featureIncompat: INCOMPAT.is64bit | INCOMPAT.extents,
      descriptorSize,
    });
  let largest = 0;
  class Device extends MemorySource {
    override readonly size: number = 2 ** 34;
    override pread(dst: Uint8Array, offset: number): Promise<void> {
      largest = Math.max(largest, dst.length);
      dst.set(bytes.subarray(offset, offset + dst.length));
      return Promise.resolve();
    }
  }
  table(128);
  await assert.rejects(Ext4Reader.open(new Device(bytes)), LimitError);
  assert.equal(largest, SUPERBLOCK_SIZE);
  table(64);
  await assert.rejects(Ext4Reader.open(new Device(bytes)), FormatError);
  assert.equal(largest, 2 ** 19 * 64);
});

Deno.test({
  name: "hostile directories are format errors",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const view = viewOf(bytes);
      const reader = await open(bytes);
      const deep = await reader.lookup("usr/lib/deep");
      const [extent] = await reader.extents(deep);
      const at = extent!.physicalBlock * reader.blockSize;
      // "." and "..", then one name.
      const third = at + 24;
      const cases: [offset: number, size: 8 | 16 | 32, value: number][] = [
        [third + 4, 16, 0],
        [third + 4, 16, 8],
        [third + 4, 16, 14],
        [third + 4, 16, 0xfffc],
        [third + 6, 8, 255 - 8],
        [third, 32, 0xffffffff],
        // The directory itself, and its parent, below itself.
        [third, 32, deep],
        [third, 32, 2],
        // "/" and "" and NUL in names.
        [third + 8, 8, 0x2f],
        [third + 8, 8, 0],
        [third + 6, 8, 0],
        [at, 32, 2],
        [at + 8, 8, 0x61],
        [at + 6, 8, 2],
      ];
      for (const [offset, size, value] of cases) {
        const before = bytes.slice(at, at + 64);
        if (size === 8) view.setUint8(offset, value);
        else if (size === 16) view.setUint16(offset, value, true);
        else view.setUint32(offset, value, true);
        await assert.rejects(
          walkAll(await open(bytes)),
          FormatError,
          `${offset - at} ${value}`,
        );
        bytes.set(before, at);
      }
      const slot = slotOffset(reader, deep);
      for (const size of [0, 1, 1025, 1 << 30]) {
        const before = view.getUint32(slot + INODE.sizeLo, true);
        view.setUint32(slot + INODE.sizeLo, size, true);
        await assert.rejects(walkAll(await open(bytes)), FormatError);
        view.setUint32(slot + INODE.sizeLo, before, true);
      }
      view.setUint32(slot + INODE.sizeHi, 1, true);
      await assert.rejects(
        walkAll(await open(bytes)),
        (error: unknown) =>
          error instanceof FormatError && error.field === "i_size",
      );
      view.setUint32(slot + INODE.sizeHi, 0, true);
      await walkAll(await open(bytes));
    }),
});

Deno.test({
  name: "loops and disorder in extent trees are format errors",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const view = viewOf(bytes);
      const reader = await open(bytes);
      const ino = await reader.lookup("usr/lib/numbers");
      const slot = slotOffset(reader, ino);
      const root = slot + INODE.block;
      const [extent] = await reader.extents(ino);
      const original = bytes.slice(root, root + 60);
      const index = (depth: number, child: number) => {
        view.setUint16(root + EH.entries, 1, true);
        view.setUint16(root + EH.depth, depth, true);
        view.setUint32(root + EH.SIZE + EI.block, 0, true);
        view.setUint32(root + EH.SIZE + EI.leafLo, child, true);
        view.setUint16(root + EH.SIZE + EI.leafHi, 0, true);
      };
      const fails = async (what: string) => {
        const again = await open(bytes);
        await assert.rejects(again.extents(ino), FormatError, what);
        bytes.set(original, root);
      };
      // A node that is its own child, at the same depth.
      const node = extent!.physicalBlock * reader.blockSize;
      index(2, extent!.physicalBlock);
      bytes.set(bytes.slice(root, root + 60), node);
      view.setUint16(node + EH.depth, 1, true);
      await fails("loop");
      index(6, extent!.physicalBlock);
      await fails("depth");
      index(1, 0xffffffff);
      await fails("child past the end");
      index(1, 0);
      await fails("child at block 0");
      bytes.fill(0, node, node + 1024);
      index(1, extent!.physicalBlock);
      await fails("no magic");
      view.setUint16(root + EH.entries, 5, true);
      await fails("more entries than fit");
      view.setUint16(root + EH.max, 5, true);
      await fails("more room than there is");
      view.setUint16(root + EH.SIZE + 4, 0, true);
      await fails("empty extent");
      view.setUint32(root + EH.SIZE + 8, 0xfffffff0, true);
      await fails("extent past the end");
      // The same extent twice.
      view.setUint16(root + EH.entries, 2, true);
      bytes.copyWithin(root + 24, root + 12, root + 24);
      await fails("overlap");
      assert.ok((await (await open(bytes)).extents(ino)).length > 0);
    }),
});

Deno.test({
  name: "a block map that points to itself ends with a limit",
  ignore: !ready,
  fn: () =>
    withTree(["-t", "ext2"], async (bytes) => {
      const view = viewOf(bytes);
      const reader = await open(bytes);
      const ino = await reader.lookup("usr/lib/numbers");
      const [extent] = await reader.extents(ino);
      const block = extent!.physicalBlock;
      for (let at = 0; at < 1024; at += 4) {
        view.setUint32(block * 1024 + at, block, true);
      }
      const slot = slotOffset(reader, ino);
      view.setUint32(slot + INODE.block + 14 * 4, block, true);
      await assert.rejects((await open(bytes)).extents(ino), LimitError);
      view.setUint32(slot + INODE.block, 0xfffffff0, true);
      await assert.rejects((await open(bytes)).extents(ino), FormatError);
    }),
});

Deno.test({
  name: "uninit flags mean nothing without uninit_bg or metadata_csum",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const view = viewOf(bytes);
      // The descriptor table of 1 KiB blocks is in block 2; this one has 64-byte descriptors.
      view.setUint16(2048 + GD.flags, 3, true);
      const all = view.getUint32(SUPERBLOCK_OFFSET + SB.inodesPerGroup, true);
      view.setUint16(2048 + GD.itableUnusedLo, all, true);
      const reader = await open(bytes);
      await walkAll(reader);
      for await (const { group, uninit } of reader.bitmaps("inode", 0, 1)) {
        assert.deepEqual([group, uninit], [0, false]);
      }
    }),
});

Deno.test({
  name: "inodes that obd does not read are refused by name",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const view = viewOf(bytes);
      const reader = await open(bytes);
      const ino = await reader.lookup("etc/one");
      const at = slotOffset(reader, ino) + INODE.flags;
      const before = view.getUint32(at, true);
      for (
        const name of ["encrypt", "inlineData", "verity", "eaInode"] as const
      ) {
        view.setUint32(at, before | INODE_FLAGS[name], true);
        await assert.rejects(
          (await open(bytes)).openFile(ino),
          UnsupportedError,
          name,
        );
      }
      view.setUint32(at, before, true);
      const extra = slotOffset(reader, ino) + INODE.extraSize;
      for (const size of [30, 132, 0xfffc]) {
        view.setUint16(extra, size, true);
        await assert.rejects((await open(bytes)).inode(ino), FormatError);
      }
    }),
});

Deno.test({
  name: "lookup() follows links, and stops at loops, files and the root",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const reader = await open(bytes);
      const one = await reader.lookup("etc/one");
      const twenty = await reader.lookup("usr/lib/deep/er/still/twenty");
      const same: [path: string, ino: number][] = [
        ["usr/link", one],
        ["/etc//./one", one],
        ["usr/hard", one],
        ["usr/../../../etc/one", one],
        ["usr/absolute/er/still/twenty", twenty],
        ["usr/absolute/../deep/er/still/twenty", twenty],
        ["", 2],
        ["/", 2],
        ["..", 2],
      ];
      for (const [path, ino] of same) {
        assert.equal(await reader.lookup(path), ino, path);
      }
      const usr = await reader.lookup("usr");
      assert.equal(
        await reader.lookup("../lib", { from: usr }),
        await reader.lookup("usr/lib"),
      );
      // Behind an absolute link ".." ends at the root, not at the start.
      const path = "absolute/../../../../etc/one";
      assert.equal(await reader.lookup(path, { from: usr }), one);
      const link = await reader.lookup("usr/link", { follow: false });
      assert.equal(await reader.readlink(link), "../etc/one");
      for (
        const path of [
          "nope",
          "etc/one/x",
          "etc/one/",
          "usr/link/",
          "etc/link59",
        ]
      ) {
        await assert.rejects(reader.lookup(path), NotFoundError, path);
      }
      // Paths are bytes, and messages are for people.
      await assert.rejects(reader.lookup("etc/gr\xc3\xb6\xc3\x9fe"), {
        message: 'Cannot find "etc/größe": no "größe" there',
      });
      await assert.rejects(reader.lookup("loop1"), LimitError);
      const state = (error: unknown) =>
        error instanceof ObdError && error.code === "state";
      await assert.rejects(reader.openFile(usr), state);
      await assert.rejects(reader.readlink(one), state);
      await assert.rejects(reader.readdir(one), state);
      for (const ino of [0, -1, 1.5, 1 << 30]) {
        await assert.rejects(reader.stat(ino), FormatError);
      }
    }),
});

Deno.test({
  name: "time stamps beyond 2038 with nanoseconds are read as debugfs set them",
  ignore: !ready,
  fn: () =>
    withTempDir(async (directory) => {
      const image = await emptyImage(directory, ["-O", "^has_journal"]);
      // Epoch 1, 123,456,789 ns; epoch 0, 999,999,999 ns before 1970.
      await debugfsWrite(image, [
        "set_inode_field / mtime @0x10",
        "set_inode_field / mtime_extra 0x1d6f3455",
        "set_inode_field / ctime @0xfffffffe",
        "set_inode_field / ctime_extra 0xee6b27fc",
      ]);
      const reader = await open(await Deno.readFile(image));
      const { mtime, ctime } = await reader.stat(2);
      assert.deepEqual(mtime, {
        seconds: 2 ** 32 + 16,
        nanoseconds: 123_456_789,
      });
      assert.deepEqual(ctime, { seconds: -2, nanoseconds: 999_999_999 });
    }),
});

Deno.test({
  name: "having blocks, not its size, says where a link's target is",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const view = viewOf(bytes);
      const reader = await open(bytes);
      const inBlock = await reader.lookup("etc/link60", { follow: false });
      view.setUint32(slotOffset(reader, inBlock) + INODE.sizeLo, 50, true);
      const inInode = await reader.lookup("etc/link59", { follow: false });
      const slot = slotOffset(reader, inInode);
      // An xattr block of 1 KiB; what is in it does not matter here.
      view.setUint32(slot + INODE.fileAclLo, 100, true);
      view.setUint32(slot + INODE.blocksLo, 2, true);
      const again = await open(bytes);
      assert.equal(await again.readlink(inBlock), "s".repeat(50));
      assert.equal(await again.readlink(inInode), "s".repeat(59));
    }),
});

Deno.test({
  name: "unwritten extents read as zeros whatever lies below",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const reader = await open(bytes);
      const ino = await reader.lookup("usr/lib/numbers");
      const [extent] = await reader.extents(ino);
      assert.ok(extent!.count > 1);
      const at = slotOffset(reader, ino) + INODE.block + EH.SIZE;
      viewOf(bytes).setUint16(at + EE.length, 0x8000 + extent!.count, true);
      const again = await open(bytes);
      assert.equal((await again.extents(ino))[0]!.unwritten, true);
      await using body = await again.openFile(ino);
      const length = extent!.count * reader.blockSize;
      assert.deepEqual([...body.extents!(0, body.size)][0], {
        offset: 0,
        length: Math.min(length, body.size),
        kind: "zero",
      });
      const part = new Uint8Array(3000).fill(0xff);
      await body.pread(part, 100);
      assert.ok(part.every((byte) => byte === 0));
    }),
});

Deno.test({
  name: "tiny caches and concurrent calls read the same",
  ignore: !ready,
  fn: () =>
    withTree(PLAIN, async (bytes) => {
      const large = await open(bytes);
      const small = await open(bytes, {
        inodeCacheBytes: 0,
        blockCacheBytes: 0,
      });
      const paths = async (reader: Ext4Reader) => {
        const found: string[] = [];
        for await (const { path, ino } of reader.walk()) {
          found.push(`${ino} ${path}`);
        }
        return found;
      };
      const [a, b, c] = await Promise.all([
        paths(large),
        paths(large),
        paths(small),
      ]);
      assert.ok(a!.length > 300);
      assert.deepEqual(b, a);
      assert.deepEqual(c, a);
    }),
});

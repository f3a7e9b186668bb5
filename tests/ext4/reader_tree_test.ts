/** The reader against images of mke2fs in many feature sets, compared with the source tree. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { FileSource, latin1FromBytes, readBytes } from "../../lib/io/mod.ts";
import { Ext4Reader, type InodeStat } from "../../lib/ext4/reader.ts";
import { requires } from "../testutil/requires.ts";
import {
  debugfs,
  listSource,
  makeSourceTree,
  run,
  type SourceEntry,
  withTempDir,
} from "./reader_images.ts";

const ready = requires("mke2fs", "debugfs", "e2fsck", "find", "python3");

const FIND_TYPES: Record<InodeStat["type"], string> = {
  file: "f",
  directory: "d",
  symlink: "l",
  char: "c",
  block: "b",
  fifo: "p",
  socket: "s",
};

const FEATURE_SETS: Record<string, string[]> = {
  "ext4 as mke2fs makes it": ["-t", "ext4"],
  "uninit_bg, 32-byte descriptors, no flex_bg": [
    ...["-t", "ext4", "-b", "1024"],
    ...["-O", "^has_journal,^metadata_csum,uninit_bg,^64bit,^flex_bg"],
  ],
  "ext2 with block maps": ["-t", "ext2", "-b", "1024"],
  "ext3 with a journal": ["-t", "ext3", "-b", "4096"],
  "metadata_csum_seed and orphan_file": [
    ...["-t", "ext4", "-b", "1024"],
    ...["-O", "metadata_csum_seed,orphan_file"],
  ],
  "sparse_super2 as overlaybd makes it": [
    ...["-t", "ext4", "-b", "4096", "-G", "1"],
    ...["-O", "^has_journal,^metadata_csum,sparse_super2"],
  ],
  "metadata_csum without 64bit": ["-t", "ext4", "-O", "^64bit"],
  "128-byte inodes": ["-t", "ext4", "-I", "128", "-O", "^metadata_csum"],
  "2 KiB blocks": ["-t", "ext4", "-b", "2048"],
  "64 KiB blocks": ["-t", "ext4", "-b", "65536"],
  "htrees of e2fsck -D": ["-t", "ext4", "-b", "1024", "htree"],
};

for (const [name, options] of Object.entries(FEATURE_SETS)) {
  Deno.test({
    name: `Ext4Reader reads ${name}`,
    ignore: !ready,
    fn: () =>
      withTempDir(async (directory) => {
        const source = `${directory}/source`;
        const image = `${directory}/image`;
        await Deno.mkdir(source);
        await makeSourceTree(source);
        const htree = options.includes("htree");
        const mke2fs = options.filter((option) => option !== "htree");
        await run("mke2fs", [
          "-q",
          "-F",
          ...mke2fs,
          // Another user's tree does not belong to root.
          ...["-E", `root_owner=${Deno.uid()}:${Deno.gid()}`],
          ...["-d", source, image, "160M"],
        ]);
        if (htree) await run("e2fsck", ["-fyD", image], { codes: [0, 1] });
        await using device = await FileSource.open(image);
        await compare(await Ext4Reader.open(device), source);
        await compareBitmaps(await Ext4Reader.open(device), image);
      }),
  });
}

/** Compares all of a tree with its source. */
async function compare(
  reader: Ext4Reader,
  source: string,
): Promise<void> {
  const expected = await listSource(source);
  const seen = new Set<string>();
  for await (const entry of reader.walk()) {
    if (entry.path.split("/")[0] === "lost+found") continue;
    const stat = reader.statOf(entry);
    const want = expected.get(entry.path);
    assert.ok(want, `unexpected path "${entry.path}"`);
    await compareEntry(reader, stat, want, entry.path);
    if (stat.type === "file") {
      await compareContent(reader, stat, `${source}/`, entry.path);
    }
    assert.equal(
      await reader.lookup(entry.path, { follow: false }),
      entry.ino,
      entry.path,
    );
    seen.add(entry.path);
  }
  assert.deepEqual([...expected.keys()].filter((path) => !seen.has(path)), []);
}

async function compareEntry(
  reader: Ext4Reader,
  stat: InodeStat,
  want: SourceEntry,
  path: string,
): Promise<void> {
  const isRoot = path === "";
  const got = {
    type: FIND_TYPES[stat.type],
    mode: stat.mode,
    uid: stat.uid,
    gid: stat.gid,
    // lost+found adds a link to the root.
    links: isRoot ? stat.links - 1 : stat.links,
    size: stat.type === "directory" ? want.size : stat.size,
    // mke2fs stamps the root itself.
    mtime: isRoot ? want.mtime : stat.mtime.seconds,
    target: stat.type === "symlink" ? await reader.readlink(stat.ino) : "",
  };
  assert.deepEqual(got, want, path);
  if (path === "etc/null") {
    assert.deepEqual([stat.devMajor, stat.devMinor], [1, 3]);
  }
  if (path === "etc/bigdev") {
    assert.deepEqual([stat.devMajor, stat.devMinor], [259, 70000]);
  }
}

/** Compares bytes; a huge hole by its extents and its end. */
async function compareContent(
  reader: Ext4Reader,
  stat: InodeStat,
  source: string,
  path: string,
): Promise<void> {
  await using body = await reader.openFile(stat.ino);
  assert.equal(body.size, stat.size);
  if (path === "usr/lib/huge-hole") {
    const far = 3 * 2 ** 30;
    const { blockSize } = reader;
    assert.deepEqual([...body.extents!(0, body.size)], [
      { offset: 0, length: far, kind: "hole" },
      { offset: far, length: blockSize, kind: "data" },
      {
        offset: far + blockSize,
        length: body.size - far - blockSize,
        kind: "hole",
      },
    ]);
    const around = latin1FromBytes(await readBytes(body, far - 2, 8));
    assert.equal(around, "\0\0far\0\0\0");
    const end = await readBytes(body, body.size - 10, 10);
    assert.deepEqual(end, new Uint8Array(10));
    return;
  }
  const got = await readBytes(body, 0, body.size);
  // deno-lint-ignore no-control-regex -- any name but plain ASCII
  if (/[^\x00-\x7f]/.test(path)) {
    const text = path.endsWith("\xff") ? "latin1" : "utf8";
    assert.equal(latin1FromBytes(got), text);
    return;
  }
  const want = await Deno.readFile(source + path);
  assert.equal(sha256(got), sha256(want), path);
  let covered = 0;
  for (const { offset, length, kind } of body.extents!(0, body.size)) {
    assert.equal(offset, covered);
    covered += length;
    if (kind !== "data") {
      assert.ok(got.subarray(offset, covered).every((byte) => byte === 0));
    }
  }
  assert.equal(covered, body.size);
  if (body.size > 4097) await compareSlices(body, got);
}

async function compareSlices(
  body: Awaited<ReturnType<Ext4Reader["openFile"]>>,
  whole: Uint8Array,
): Promise<void> {
  for (let i = 0; i < 40; i++) {
    const offset = (i * 7919 * 13) % (whole.length - 1);
    const length = Math.min(1 + (i * 1021) % 9000, whole.length - offset);
    assert.deepEqual(
      await readBytes(body, offset, length),
      whole.slice(offset, offset + length),
    );
  }
}

/** Compares what the bitmaps say with the counts that debugfs prints. */
async function compareBitmaps(
  reader: Ext4Reader,
  image: string,
): Promise<void> {
  const stats = await debugfs(image, "stats");
  const number = (label: string) =>
    Number(new RegExp(`${label}:\\s+(\\d+)`).exec(stats)![1]);
  let freeBlocks = 0;
  let freeInodes = 0;
  const { superblock: sb } = reader;
  for await (const { group, bitmap, descriptor } of reader.bitmaps("block")) {
    const first = sb.firstDataBlock + group * sb.blocksPerGroup;
    const bits = Math.min(sb.blocksPerGroup, sb.blocksCount - first);
    const free = zeroBits(bitmap, bits);
    assert.equal(free, descriptor.freeBlocks, `group ${group}`);
    freeBlocks += free;
  }
  for await (const { bitmap, descriptor } of reader.bitmaps("inode")) {
    const free = zeroBits(bitmap, sb.inodesPerGroup);
    assert.equal(free, descriptor.freeInodes);
    freeInodes += free;
  }
  assert.equal(freeBlocks, number("Free blocks"));
  assert.equal(freeInodes, number("Free inodes"));
  let used = 0;
  for await (const { ino, inode } of reader.inodes()) {
    used++;
    if (ino >= sb.firstIno) assert.notEqual(inode.mode, 0);
  }
  assert.equal(used, sb.inodesCount - freeInodes);
}

function zeroBits(bitmap: Uint8Array, bits: number): number {
  let count = 0;
  for (let i = 0; i < bits; i++) {
    if (((bitmap[i >>> 3]! >>> (i & 7)) & 1) === 0) count++;
  }
  return count;
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

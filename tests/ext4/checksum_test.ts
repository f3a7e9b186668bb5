import assert from "node:assert/strict";
import {
  bytesFromLatin1,
  crc32c,
  IntegrityError,
  MemorySource,
  viewOf,
} from "../../lib/io/mod.ts";
import {
  bitmapChecksum,
  crc16,
  groupChecksumCrc16,
  groupChecksumCrc32c,
  hasInodeChecksumHi,
  superblockChecksum,
} from "../../lib/ext4/checksum.ts";
import { SUPERBLOCK_OFFSET } from "../../lib/ext4/format.ts";
import { Ext4Reader } from "../../lib/ext4/reader.ts";
import { requires } from "../testutil/requires.ts";
import { debugfsWrite, run, withTempDir } from "./reader_images.ts";

const CHECK = bytesFromLatin1("123456789");

Deno.test("crc16() and crc32c() give the check values of their catalogue", () => {
  assert.equal(crc16(CHECK, 0), 0xbb3d); // CRC-16/ARC
  assert.equal(crc16(CHECK, 0xffff), 0x4b37); // CRC-16/MODBUS
  assert.equal(~crc32c(CHECK, 0xffffffff) >>> 0, 0xe3069283); // RFC 3720
});

Deno.test("crc32c() of pieces is crc32c() of the whole, at any split and length", () => {
  const bytes = Uint8Array.from({ length: 67 }, (_, i) => (i * 151) & 255);
  const bitwise = (input: Uint8Array, seed: number) => {
    let crc = seed;
    for (const byte of input) {
      crc ^= byte;
      for (let i = 0; i < 8; i++) {
        crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
      }
    }
    return crc >>> 0;
  };
  for (let end = 0; end <= bytes.length; end++) {
    const part = bytes.subarray(0, end);
    assert.equal(crc32c(part, 12345), bitwise(part, 12345));
    const first = crc32c(bytes.subarray(0, end), 99);
    assert.equal(crc32c(bytes.subarray(end), first), crc32c(bytes, 99));
  }
});

Deno.test("checksums count their own field as zero, and nothing else", () => {
  const descriptor = Uint8Array.from({ length: 64 }, (_, i) => i);
  const uuid = new Uint8Array(16).fill(5);
  const sums = (bytes: Uint8Array) => [
    groupChecksumCrc16(uuid, 3, bytes),
    groupChecksumCrc32c(77, 3, bytes),
  ];
  const want = sums(descriptor);
  for (let at = 0; at < 64; at++) {
    const changed = descriptor.slice();
    changed[at]! ^= 0x10;
    const isField = at === 0x1e || at === 0x1f;
    sums(changed).forEach((sum, i) =>
      assert.equal(sum === want[i], isField, `byte ${at}`)
    );
  }
  assert.equal(
    bitmapChecksum(1, new Uint8Array(10), 64),
    crc32c(new Uint8Array(8), 1),
  );
  const superblock = new Uint8Array(1024);
  const sum = superblockChecksum(superblock);
  superblock.fill(9, 1020);
  assert.equal(superblockChecksum(superblock), sum);
  assert.equal(hasInodeChecksumHi(new Uint8Array(128)), false);
  assert.equal(hasInodeChecksumHi(new Uint8Array(256)), false);
});

/** A file of 300 single blocks with holes between, for a tree of extents; and 300 names. */
const MAKE_SOURCE = `
import os, sys
os.chdir(sys.argv[1])
with open("holes", "wb") as f:
    for i in range(300):
        f.seek(i * 8192)
        f.write(b"x" * 1024)
os.mkdir("d")
for i in range(900):
    open("d/a-name-that-fills-a-block-%d" % i, "w").close()
`;

Deno.test({
  name: "a flipped byte of any metadata is an IntegrityError",
  ignore: !requires("mke2fs", "debugfs", "e2fsck", "python3"),
  fn: () =>
    withTempDir(async (directory) => {
      const image = `${directory}/image`;
      await Deno.mkdir(`${directory}/source`);
      await run("python3", ["-c", MAKE_SOURCE, `${directory}/source`]);
      await Deno.writeTextFile(`${directory}/value`, "v".repeat(700));
      await run("mke2fs", [
        ...["-q", "-F", "-t", "ext4", "-b", "1024", "-O", "^has_journal"],
        ...["-N", "2000", "-d", `${directory}/source`, image, "16M"],
      ]);
      await debugfsWrite(image, [`ea_set -f ${directory}/value d user.v`]);
      await run("e2fsck", ["-fyD", image], { codes: [0, 1] });
      const bytes = await Deno.readFile(image);
      for (const [what, at] of await findPlaces(bytes)) {
        bytes[at]! ^= 0x04;
        await assert.rejects(
          readAll(bytes),
          (error) => error instanceof IntegrityError,
          what,
        );
        bytes[at]! ^= 0x04;
      }
      await readAll(bytes);
    }),
});

/** A byte in each kind of metadata that has a checksum. */
async function findPlaces(bytes: Uint8Array): Promise<[string, number][]> {
  const reader = await Ext4Reader.open(new MemorySource(bytes));
  const { blockSize } = reader;
  const group = reader.group(0);
  const file = await reader.inode(await reader.lookup("holes"));
  const directory = await reader.inode(await reader.lookup("d"));
  const fileMap = await reader.fileMap(file);
  const directoryMap = await reader.fileMap(directory);
  assert.ok(fileMap.nodes.length >= 2, "the file has a tree");
  const first = directoryMap.extents[0]!.physicalBlock * blockSize;
  const levels = bytes[first + 0x1e]!;
  assert.ok(levels <= 1);
  const physical = (logical: number) => {
    const e = directoryMap.extents.find((e) =>
      logical >= e.logicalBlock && logical < e.logicalBlock + e.count
    )!;
    return (e.physicalBlock + logical - e.logicalBlock) * blockSize;
  };
  const below = viewOf(bytes).getUint32(first + 0x24, true);
  const slot = group.inodeTable * blockSize +
    (file.ino - 1) * reader.superblock.inodeSize;
  return [
    ["superblock", SUPERBLOCK_OFFSET + 0x78],
    ["group descriptor", 2 * blockSize + 0x0c],
    ["block bitmap", group.blockBitmap * blockSize],
    ["inode bitmap", group.inodeBitmap * blockSize],
    ["inode", slot + 0x10],
    ["inode, behind the old part", slot + 0x94],
    ["extent node", fileMap.nodes[0]! * blockSize + 12],
    ["htree root", first + 0x28],
    ["htree child", physical(below) + 0x10],
    ["directory leaf", physical(2) + 0x0a],
    ["xattr block", directory.inode.xattrBlock * blockSize + 0x28],
  ];
}

async function readAll(bytes: Uint8Array): Promise<void> {
  const reader = await Ext4Reader.open(new MemorySource(bytes));
  for await (const _ of reader.bitmaps("block"));
  for await (const _ of reader.bitmaps("inode"));
  for await (const entry of reader.walk()) {
    await reader.fileMap(entry);
    await reader.storedXattrs(entry);
  }
}

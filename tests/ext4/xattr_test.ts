import assert from "node:assert/strict";
import {
  bytesFromLatin1,
  FileSource,
  FormatError,
  viewOf,
} from "../../lib/io/mod.ts";
import { aclFromExt4, aclToExt4 } from "../../lib/ext4/acl.ts";
import { xattrBlockChecksum } from "../../lib/ext4/checksum.ts";
import { INODE } from "../../lib/ext4/format.ts";
import { Ext4Reader } from "../../lib/ext4/reader.ts";
import {
  compareXattrs,
  fromStoredXattr,
  joinXattrName,
  readInodeXattrs,
  readXattrBlock,
  splitXattrName,
  type StoredXattr,
  toStoredXattr,
  writeInodeXattrs,
  writeXattrBlock,
  XATTR_MAGIC,
  xattrAreaSize,
  xattrEntryHash,
  XE,
  XH,
} from "../../lib/ext4/xattr.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { debugfs, debugfsWrite, run, withTempDir } from "./reader_images.ts";

const bytes = (text: string) => bytesFromLatin1(text);
const stored = (index: number, name: string, value: string): StoredXattr => ({
  index,
  name: bytes(name),
  value: bytes(value),
});

/** A version 2 ACL: u::rw-, u:1000:r--, g::r--, g:4000000000:rwx, m::rwx, o::---. */
const ACL_V2 = Uint8Array.fromHex(
  "02000000" + "01000600ffffffff" + "02000400e8030000" + "04000400ffffffff" +
    "0800070000286bee" + "10000700ffffffff" + "20000000ffffffff",
);
const ACL_V1 = Uint8Array.fromHex(
  "01000000" + "01000600" + "02000400e8030000" + "04000400" +
    "0800070000286bee" + "10000700" + "20000000",
);

Deno.test("ACLs translate between their two forms", () => {
  assert.deepEqual(aclToExt4(ACL_V2), ACL_V1);
  assert.deepEqual(aclFromExt4(ACL_V1), ACL_V2);
  assert.deepEqual(aclFromExt4(aclToExt4(bytes("\x02\0\0\0"))).length, 4);
});

Deno.test("malformed ACLs are refused", () => {
  const changed = (acl: Uint8Array, at: number, value: number) => {
    const copy = acl.slice();
    copy[at] = value;
    return copy;
  };
  for (
    const acl of [
      new Uint8Array(),
      ACL_V1,
      ACL_V2.slice(0, -1),
      changed(ACL_V2, 4, 3),
      changed(ACL_V2, 6, 8),
    ]
  ) assert.throws(() => aclToExt4(acl), FormatError);
  for (
    const acl of [
      new Uint8Array(3),
      ACL_V2,
      ACL_V1.slice(0, -1),
      ACL_V1.slice(0, 14),
      changed(ACL_V1, 4, 0x40),
      changed(ACL_V1, 7, 1),
    ]
  ) assert.throws(() => aclFromExt4(acl), FormatError);
});

Deno.test("names split into index and rest, and join again", () => {
  const cases: [string, number, string][] = [
    ["user.mime", 1, "mime"],
    ["system.posix_acl_access", 2, ""],
    ["system.posix_acl_default", 3, ""],
    ["trusted.overlay.opaque", 4, "overlay.opaque"],
    ["security.capability", 6, "capability"],
    ["system.nfs4_acl", 7, "nfs4_acl"],
    ["user.\xff\xfe", 1, "\xff\xfe"],
  ];
  for (const [name, index, rest] of cases) {
    assert.deepEqual(splitXattrName(name), { index, rest });
    assert.equal(joinXattrName(index, rest), name);
  }
  for (const name of ["user.", "user", "foo.bar", "", "os2.x"]) {
    assert.equal(splitXattrName(name), undefined, name);
  }
  assert.equal(joinXattrName(99, "x"), undefined);
  assert.equal(toStoredXattr(`user.${"n".repeat(256)}`, bytes("")), undefined);
  const acl = toStoredXattr("system.posix_acl_access", ACL_V2)!;
  assert.deepEqual(acl.value, ACL_V1);
  assert.deepEqual(fromStoredXattr(acl), ["system.posix_acl_access", ACL_V2]);
});

Deno.test("compareXattrs() is an ordering: index, length, bytes", () => {
  const sorted = [
    stored(1, "z", ""),
    stored(1, "aa", ""),
    stored(1, "ab", ""),
    stored(1, "\xff\xff", ""),
    stored(2, "", ""),
    stored(6, "a", ""),
  ];
  sorted.forEach((a, i) =>
    sorted.forEach((b, j) =>
      assert.equal(Math.sign(compareXattrs(a, b)), Math.sign(i - j))
    )
  );
});

Deno.test("areas fit to the byte and not one more", () => {
  const xattrs = [stored(1, "abc", "value"), stored(6, "capability", "")];
  const need = 4 + xattrAreaSize(xattrs);
  const room = new Uint8Array(need).fill(0xff);
  assert.equal(writeInodeXattrs(room.subarray(4), xattrs), false);
  assert.ok(room.every((byte) => byte === 0xff));
  assert.equal(writeInodeXattrs(room, xattrs), true);
  assert.deepEqual(readInodeXattrs(room), xattrs);
  assert.equal(writeInodeXattrs(room, []), true);
  assert.deepEqual(readInodeXattrs(room), []);

  const block = new Uint8Array(4096);
  const free = 4096 - XH.SIZE - xattrAreaSize([stored(1, "big", "")]);
  const full = [stored(1, "big", "v".repeat(free))];
  assert.equal(writeXattrBlock(block, full), true);
  assert.deepEqual(readXattrBlock(block), full);
  const more = [stored(1, "big", "v".repeat(free + 1))];
  assert.equal(writeXattrBlock(block, more), false);
});

Deno.test("blocks are sorted and hashed whatever the order given", () => {
  const xattrs = [
    stored(6, "selinux", "label"),
    stored(1, "bb", "2"),
    stored(1, "c", "1"),
  ];
  const [a, b] = [new Uint8Array(1024), new Uint8Array(1024)];
  writeXattrBlock(a, xattrs);
  writeXattrBlock(b, [...xattrs].reverse());
  assert.deepEqual(a, b);
  assert.deepEqual(
    readXattrBlock(a).map(({ name }) => String.fromCharCode(...name)),
    ["c", "bb", "selinux"],
  );
  assert.notEqual(viewOf(a).getUint32(XH.hash, true), 0);
});

Deno.test("an empty value has no place", () => {
  const block = new Uint8Array(1024);
  writeXattrBlock(block, [stored(1, "a", "")]);
  assert.equal(viewOf(block).getUint16(XH.SIZE + XE.valueOffset, true), 0);
});

Deno.test("malformed areas are refused", () => {
  const block = () => {
    const bytes = new Uint8Array(1024);
    writeXattrBlock(bytes, [stored(1, "a", "value")]);
    return bytes;
  };
  const broken = (change: (view: DataView, bytes: Uint8Array) => void) => {
    const copy = block();
    change(viewOf(copy), copy);
    assert.throws(() => readXattrBlock(copy), FormatError);
  };
  broken((view) => view.setUint32(XH.magic, 1, true));
  broken((view) => view.setUint32(XH.blocks, 2, true));
  broken((view) => view.setUint16(XH.SIZE + XE.valueOffset, 1020, true));
  broken((view) => view.setUint16(XH.SIZE + XE.valueOffset, 36, true));
  broken((view) => view.setUint32(XH.SIZE + XE.valueSize, 0xffffffff, true));
  broken((view) => view.setUint32(XH.SIZE + XE.valueInode, 12, true));
  broken((_, bytes) => bytes.fill(0xff, XH.SIZE));
  // Many entries whose values are the same bytes.
  broken((view, bytes) => {
    for (let at = XH.SIZE; at < 300; at += 20) {
      bytes.copyWithin(at, XH.SIZE, XH.SIZE + 20);
      view.setUint16(at + XE.valueOffset, 400, true);
      view.setUint32(at + XE.valueSize, 600, true);
    }
  });
  const inode = new Uint8Array(96);
  viewOf(inode).setUint32(0, XATTR_MAGIC, true);
  assert.deepEqual(readInodeXattrs(inode), []);
  inode.fill(1, 4);
  assert.throws(() => readInodeXattrs(inode), FormatError);
});

Deno.test("xattrEntryHash() takes name bytes as unsigned", () => {
  assert.equal(xattrEntryHash(bytes("\xff"), bytes("")), 0xff);
});

/** Attributes by path; values are text, or hex behind 0x. */
const WANTED: Record<string, [string, string][]> = {
  small: [["user.a", "1"]],
  several: [["security.x", "s"], ["trusted.y", "t"], ["user.empty", ""]],
  block: [["user.big", "B".repeat(700)], ["user.little", "l"]],
};

for (const features of ["metadata_csum", "^metadata_csum"]) {
  Deno.test({
    name: `Ext4Reader.xattrs() reads what debugfs wrote: ${features}`,
    ignore: !requires("mke2fs", "debugfs"),
    fn: () =>
      withTempDir(async (directory) => {
        const image = `${directory}/image`;
        await Deno.mkdir(`${directory}/source`);
        const script: string[] = [];
        for (const [path, xattrs] of Object.entries(WANTED)) {
          await Deno.writeTextFile(`${directory}/source/${path}`, "");
          for (const [name, value] of xattrs) {
            await Deno.writeTextFile(`${directory}/${name}`, value);
            script.push(`ea_set -f ${directory}/${name} ${path} ${name}`);
          }
        }
        await run("mke2fs", [
          ...["-q", "-F", "-t", "ext4", "-b", "1024", "-O", features],
          ...["-d", `${directory}/source`, image, "8M"],
        ]);
        await debugfsWrite(image, script);
        await run("e2fsck", ["-fn", image]);
        await using device = await FileSource.open(image);
        const reader = await Ext4Reader.open(device);
        for (const [path, want] of Object.entries(WANTED)) {
          const got = await reader.xattrs(await reader.lookup(path));
          const text = got.map(([name, value]) => [
            name,
            String.fromCharCode(...value),
          ]);
          assert.deepEqual(text, want, path);
        }
        const block = await reader.inode(await reader.lookup("block"));
        assert.notEqual(block.inode.xattrBlock, 0);
      }),
  });
}

Deno.test({
  name:
    "e2fsck and debugfs accept what writeXattrBlock() and writeInodeXattrs() write",
  ignore: !requires("mke2fs", "debugfs", "e2fsck"),
  fn: () =>
    withTempDir(async (directory) => {
      const image = `${directory}/image`;
      await Deno.mkdir(`${directory}/source`);
      await Deno.writeTextFile(`${directory}/source/file`, "");
      await run("mke2fs", [
        ...["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum"],
        ...["-d", `${directory}/source`, image, "8M"],
      ]);
      // debugfs makes a block and says where it is; ours replaces it.
      await Deno.writeTextFile(`${directory}/value`, "v".repeat(900));
      await debugfsWrite(image, [`ea_set -f ${directory}/value file user.v`]);
      const inBlock = [
        toStoredXattr("user.v", bytes("new\0value"))!,
        toStoredXattr("user.zz", bytes("x".repeat(2000)))!,
        toStoredXattr("security.capability", bytes("\x01\0\0\x02"))!,
        toStoredXattr("system.posix_acl_access", ACL_V2)!,
        toStoredXattr("user.none", bytes(""))!,
      ];
      const inInode = [
        toStoredXattr("trusted.t", bytes("tt"))!,
        toStoredXattr("user.i", bytes("inode"))!,
        toStoredXattr("user.e", bytes(""))!,
      ];
      await replaceXattrs(image, "file", inInode, inBlock);
      await run("e2fsck", ["-fn", image]);
      const listed = await debugfs(image, "ea_list file");
      for (const name of ["user.v (9)", "user.zz (2000)", "trusted.t (2)"]) {
        assert.ok(listed.includes(name), listed);
      }
      const got = await debugfs(image, "ea_get file user.i");
      assert.ok(got.includes("inode"), got);
      await using device = await FileSource.open(image);
      const reader = await Ext4Reader.open(device);
      const ours = await reader.xattrs(await reader.lookup("file"));
      assert.deepEqual(ours.map(([name]) => name), [
        "security.capability",
        "system.posix_acl_access",
        "trusted.t",
        "user.e",
        "user.i",
        "user.none",
        "user.v",
        "user.zz",
      ]);
      assert.deepEqual(ours[1]![1], ACL_V2);
    }),
});

/** Lists a file's attributes as the kernel gives them, "name=hex" sorted. */
const PRINT_XATTRS = `
import os, sys
for name in sorted(os.listxattr(sys.argv[1])):
    print(name + "=" + os.getxattr(sys.argv[1], name).hex())
`;

Deno.test({
  name: "the kernel reads what writeXattrBlock() and writeInodeXattrs() write",
  ignore: !requires("mke2fs", "debugfs", "python3") || !requiresMount(),
  fn: () =>
    withTempDir(async (directory) => {
      const image = `${directory}/image`;
      const mountpoint = `${directory}/mnt`;
      await Deno.mkdir(mountpoint);
      await Deno.writeTextFile(`${directory}/value`, "v".repeat(900));
      await run("mke2fs", [
        ...["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum"],
        ...["-d", mountpoint, image, "8M"],
      ]);
      await debugfsWrite(image, [
        `write ${directory}/value file`,
        `ea_set -f ${directory}/value file user.v`,
      ]);
      const inBlock = [
        toStoredXattr("user.v", bytes("value"))!,
        toStoredXattr("user.aaaa", bytes(""))!,
        toStoredXattr("security.z", bytes("z"))!,
        toStoredXattr("system.posix_acl_access", ACL_V2)!,
      ];
      const inInode = [
        toStoredXattr("user.i", bytes("inode"))!,
        toStoredXattr("trusted.t", bytes("tt"))!,
      ];
      await replaceXattrs(image, "file", inInode, inBlock);
      await run("mount", ["-o", "ro,loop", "-t", "ext4", image, mountpoint]);
      let out: Uint8Array;
      try {
        out = await run("python3", ["-c", PRINT_XATTRS, `${mountpoint}/file`]);
      } finally {
        await run("umount", [mountpoint]);
      }
      assert.deepEqual(new TextDecoder().decode(out).trim().split("\n"), [
        "security.z=7a",
        `system.posix_acl_access=${ACL_V2.toHex()}`,
        "trusted.t=7474",
        "user.aaaa=",
        "user.i=696e6f6465",
        "user.v=76616c7565",
      ]);
    }),
});

/** Overwrites a file's attributes in place, in an image without checksums. */
async function replaceXattrs(
  image: string,
  path: string,
  inInode: StoredXattr[],
  inBlock: StoredXattr[],
): Promise<void> {
  const file = await Deno.readFile(image);
  await using device = await FileSource.open(image);
  const reader = await Ext4Reader.open(device);
  const ino = await reader.lookup(path);
  const { inode } = await reader.inode(ino);
  const at = inode.xattrBlock * reader.blockSize;
  const block = file.subarray(at, at + reader.blockSize);
  assert.equal(writeXattrBlock(block, inBlock), true);
  // Without the feature the checksum stays 0; computing it must not change the block.
  const before = block.slice();
  xattrBlockChecksum(0, 1, block);
  assert.deepEqual(block, before);
  const { inodeSize } = reader.superblock;
  const slot = reader.group(0).inodeTable * reader.blockSize +
    (ino - 1) * inodeSize;
  const room = file.subarray(
    slot + INODE.SIZE_OLD + inode.extraSize,
    slot + inodeSize,
  );
  assert.equal(writeInodeXattrs(room, inInode), true);
  await Deno.writeFile(image, file);
}

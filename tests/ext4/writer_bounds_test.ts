/** Both sides of every structural boundary, judged by e2fsck, debugfs and the reader. */

import assert from "node:assert/strict";
import { hashName } from "../../lib/ext4/dirhash.ts";
import {
  BLOCK_SIZE,
  BODY_EXTENTS_MAX,
  DeviceFullError,
  Ext4Model,
} from "../../lib/ext4/mod.ts";
import {
  bytesFromLatin1,
  LimitError,
  UnsupportedError,
} from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";
import { attrs, Disk, layerTest } from "./writer_disk.ts";
import { random } from "./writer_tree.ts";

const tools = requires("e2fsck", "debugfs");
const GIB = 2 ** 30;

layerTest("symlinks of 1, 59, 60 and 4095 bytes", {}, (model) => {
  for (const length of [1, 59, 60, 4095]) {
    model.symlink(model.root, `l${length}`, attrs(0o777), "s".repeat(length));
  }
  assert.throws(
    () => model.symlink(model.root, "x", attrs(0o777), "s".repeat(4096)),
    LimitError,
  );
  assert.throws(
    () => model.symlink(model.root, "x", attrs(0o777), ""),
    UnsupportedError,
  );
}, async (disk, reader) => {
  for (const length of [1, 59, 60, 4095]) {
    const ino = await reader.lookup(`l${length}`, { follow: false });
    assert.equal(await reader.readlink(ino), "s".repeat(length));
  }
  const [fast, slow] = await disk.debugfs(["stat l59", "stat l60"]);
  assert.match(fast!, /Blockcount: 0\n[^]*Fast link dest: "s{59}"/);
  assert.match(slow!, /Blockcount: 8\n[^]*EXTENTS:\n\(0\):\d+/);
});

const EXTENT_COUNTS = [1, 4, 5, 340, 341, 1360, 1361, BODY_EXTENTS_MAX];
layerTest("extent trees of every depth", {}, (model) => {
  for (const count of EXTENT_COUNTS) {
    const { extents } = model.createFile(
      model.root,
      `f${count}`,
      attrs(0o644),
      scattered(count),
    );
    assert.equal(extents.length, count);
  }
  const free = model.freeBytes;
  assert.throws(
    () =>
      model.createFile(
        model.root,
        "too-many",
        attrs(0o644),
        scattered(BODY_EXTENTS_MAX + 1),
      ),
    /"too-many".*8192 extents/,
  );
  assert.equal(model.freeBytes, free);
}, async (disk, reader) => {
  for (const count of EXTENT_COUNTS) {
    const ino = await reader.lookup(`f${count}`);
    const extents = await reader.extents(ino);
    assert.equal(extents.length, count);
    extents.forEach((e, i) => assert.equal(e.logicalBlock, 2 * i));
    const nodes = count <= 4 ? 0 : Math.ceil(count / 340) +
      (Math.ceil(count / 340) > 4 ? 1 : 0);
    assert.equal((await reader.stat(ino)).sectors, (count + nodes) * 8);
  }
  const [dump] = await disk.debugfs(["dump_extents f1361"]);
  assert.match(dump!, /^ *2\/ *2 +1\/ *1/m);
});

/** A body whose every other block is a hole. */
function scattered(count: number) {
  const ranges = Array.from(
    { length: count },
    (_, i) => ({ fileSector: i * 16, sectors: 8 }),
  );
  return { size: (2 * count - 1) * BLOCK_SIZE, ranges };
}

layerTest("bodies around block and sector sizes", {}, (model) => {
  for (const size of [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 1 << 20]) {
    model.createFile(model.root, `f${size}`, attrs(0o644), { size });
  }
  // A hole at the end, only holes, ranges that overlap or come unsorted.
  const sparse = (name: string, size: number, ranges: number[][]) =>
    model.createFile(model.root, name, attrs(0o644), {
      size,
      ranges: ranges.map(([a, n]) => ({ fileSector: a!, sectors: n! })),
    });
  assert.equal(sparse("tail", 1 << 20, [[0, 1]]).extents.length, 1);
  assert.equal(sparse("nothing", 1 << 20, []).extents.length, 0);
  assert.deepEqual(
    sparse("mixed", 1 << 20, [[20, 1], [7, 2], [0, 4], [21, 3]]).extents.map((
      e,
    ) => [e.logicalBlock, e.count]),
    [[0, 3]],
  );
  assert.equal(sparse("past the end", 4096, [[0, 800]]).extents[0]!.count, 1);
}, async (_, reader) => {
  for (const size of [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 1 << 20]) {
    const stat = await reader.stat(await reader.lookup(`f${size}`));
    assert.equal(stat.size, size);
    assert.equal(stat.sectors, Math.ceil(size / 4096) * 8);
  }
});

layerTest("a file of 50 GiB", { virtualSize: 64 * GIB }, (model) => {
  const { extents } = model.createFile(model.root, "big", attrs(0o644), {
    size: 50 * GIB - 1000,
  });
  assert.equal(extents.length, 400);
}, async (_, reader) => {
  const ino = await reader.lookup("big");
  const extents = await reader.extents(ino);
  assert.equal(extents.reduce((n, e) => n + e.count, 0), 50 * GIB / 4096);
  assert.equal((await reader.stat(ino)).size, 50 * GIB - 1000);
  let next = 0;
  for (const extent of extents) {
    assert.equal(extent.logicalBlock, next);
    next += extent.count;
  }
});

layerTest("a sparse file of almost 16 TiB", {}, (model) => {
  const size = (2 ** 32 - 1) * BLOCK_SIZE;
  model.createFile(model.root, "sparse", attrs(0o644), {
    size,
    ranges: [{ fileSector: 0, sectors: 8 }, {
      fileSector: size / 512 - 1,
      sectors: 1,
    }],
  });
  assert.throws(
    () => model.createFile(model.root, "x", attrs(0o644), { size: size + 1 }),
    LimitError,
  );
});

/** 4-byte names: entries of 12 bytes, 339 beside "." and ".." in a block. */
const shortName = (i: number) => i.toString(36).padStart(4, "0");
/** 255-byte names: entries of 264 bytes, 15 in a block. */
const longName = (i: number) => `${i}-`.padEnd(255, "n");

for (
  const [what, count, name, blocks, levels] of [
    ["one block", 339, shortName, 1, undefined],
    ["two blocks", 340, shortName, 2, undefined],
    ["three blocks", 15 * 3, longName, 3, undefined],
    ["four leaves", 15 * 3 + 1, longName, 5, 0],
    ["a full root", 15 * 508, longName, 509, 0],
    ["one node", 15 * 508 + 1, longName, 1 + 1 + 509, 1],
    ["two nodes", 15 * 511 + 1, longName, 1 + 2 + 512, 1],
  ] as const
) {
  layerTest(
    `a directory of ${what}`,
    { inodeRatio: 8192 },
    (model) => {
      const dir = model.mkdir(model.root, "dir", attrs(0o755));
      for (let i = 0; i < count; i++) {
        model.mknod(dir, name(i), attrs(0o600), { type: "fifo" });
      }
    },
    async (disk, reader) => {
      const ino = await reader.lookup("dir");
      assert.equal((await reader.stat(ino)).size, blocks * BLOCK_SIZE);
      assert.equal((await reader.readdir(ino)).length, count);
      const [dump] = await disk.debugfs(["htree_dump dir"]);
      const found = /Indirect levels: (\d)/.exec(dump!)?.[1];
      assert.equal(found && Number(found), levels);
    },
  );
}

layerTest("equal hashes on both sides of a leaf's end", {}, (model) => {
  const options = { version: 1, signed: true, seed: [0, 0, 0, 0] } as const;
  const name = (i: number) => `collide-${i}-`.padEnd(20, "c");
  const hashed = Array.from({ length: 200_000 }, (_, i) => ({
    name: name(i),
    hash: hashName(bytesFromLatin1(name(i)), options)!.major,
  })).sort((a, b) => a.hash - b.hash);
  const perLeaf = Math.floor(BLOCK_SIZE / 28);
  let found = 0;
  hashed.forEach(({ hash }, i) => {
    if (found > 2 || i < 5 * perLeaf || hashed[i + 1]?.hash !== hash) return;
    // The first of the pair is the last of the second leaf.
    const before = hashed.slice(i + 1 - 2 * perLeaf, i);
    const after = hashed.slice(i, i + 3 * perLeaf);
    const dir = model.mkdir(model.root, `dir${found++}`, attrs(0o755));
    for (const { name } of [...before, ...after]) {
      model.mknod(dir, name, attrs(0o600), { type: "fifo" });
    }
  });
  assert.ok(found > 0);
}, async (disk) => {
  const [dump] = await disk.debugfs(["htree_dump dir0"]);
  assert.match(dump!, /Entry #2: Hash 0x[0-9a-f]{7}[13579bdf]\b/);
});

layerTest("65,000 names of a file", {}, (model) => {
  const { node } = model.createFile(model.root, "f", attrs(0o644), { size: 9 });
  for (let i = 1; i < 65000; i++) model.link(model.root, `n${i}`, node);
  assert.throws(() => model.link(model.root, "more", node), /"more".*65000/);
});

layerTest(
  "names of 255 and 256 bytes, and names that cannot be",
  {},
  (model) => {
    model.mkdir(model.root, "n".repeat(255), attrs(0o755));
    assert.throws(
      () => model.mkdir(model.root, "n".repeat(256), attrs(0o755)),
      LimitError,
    );
    for (const name of ["", ".", "..", "a/b", "a\0b"]) {
      assert.throws(
        () => model.mkdir(model.root, name, attrs(0o755)),
        UnsupportedError,
      );
    }
  },
);

/** A file with `user.a` of this many bytes, and more attributes. */
const withXattrs = (
  model: Ext4Model,
  name: string,
  xattrs: [string, number][],
) =>
  model.createFile(
    model.root,
    name,
    attrs(0o644, {
      xattrs: xattrs.map(([n, size]) => [n, new Uint8Array(size).fill(65)]),
    }),
    { size: 0 },
  );

layerTest("xattrs that just fit", {}, (model) => {
  withXattrs(model, "inline", [["user.a", 68]]);
  withXattrs(model, "block", [["user.a", 69]]);
  withXattrs(model, "full", [["user.a", 4040]]);
  withXattrs(model, "both", [["user.a", 4040], ["security.b", 68]]);
  withXattrs(model, "empty", [["user.a", 0], ["trusted.b", 0]]);
  assert.throws(
    () => withXattrs(model, "gr\xc3\xb6\xc3\x9fe", [["user.large", 4041]]),
    /"größe".*"user.large"/,
  );
  for (const name of ["system.foo", "foo", "user.", "system.richacl"]) {
    assert.throws(
      () => withXattrs(model, "y", [[name, 1]]),
      (error: Error) =>
        error instanceof UnsupportedError && error.message.includes(name) &&
        error.message.includes('"y"'),
    );
  }
}, async (disk, reader) => {
  for (
    const [name, blocks, sizes] of [
      ["inline", 0, [68]],
      ["block", 1, [69]],
      ["full", 1, [4040]],
      ["both", 1, [68, 4040]],
      ["empty", 0, [0, 0]],
    ] as const
  ) {
    const ino = await reader.lookup(name);
    assert.equal((await reader.stat(ino)).sectors, blocks * 8);
    const found = await reader.xattrs(ino);
    assert.deepEqual(found.map(([, v]) => v.length), sizes);
  }
  const [list] = await disk.debugfs(["ea_list both"]);
  assert.match(list!, /user\.a \(4040\)/);
  assert.match(list!, /security\.b \(68\)/);
});

layerTest("devices, owners and times at their bounds", {}, (model) => {
  const devices = [[0, 0], [255, 255], [256, 0], [0, 256], [4095, 1048575]];
  for (const [major, minor] of devices) {
    const device = { type: "block", major: major!, minor: minor! } as const;
    model.mknod(model.root, `b${major}-${minor}`, attrs(0o600), device);
  }
  assert.throws(
    () => model.mknod(model.root, "b", attrs(0), { type: "char", major: 4096 }),
    /"b".*4096:0/,
  );
  for (const type of ["fifo", "socket"] as const) {
    model.mknod(model.root, type, attrs(0o6755), { type });
  }
  const times = [
    [-(2 ** 31), 0],
    [-1, 999_999_999],
    [0, 1],
    [2 ** 31 - 1, 5],
    [2 ** 31, 5],
    [2 ** 32 + 7, 123_456_789],
    [2 ** 34 - 2 ** 31 - 1, 0],
  ];
  times.forEach(([seconds, nanoseconds], i) =>
    model.createFile(
      model.root,
      `t${i}`,
      attrs(0o7777, {
        uid: 2 ** 32 - 2,
        gid: 65536,
        mtime: { seconds: seconds!, nanoseconds: nanoseconds! },
      }),
      { size: 0 },
    )
  );
  const late = { seconds: 2 ** 40, nanoseconds: 7 };
  model.mkdir(model.root, "late", attrs(0o755, { mtime: late }));
}, async (disk, reader) => {
  const stat = async (name: string) =>
    await reader.stat(await reader.lookup(name));
  const { devMajor, devMinor } = await stat("b4095-1048575");
  assert.deepEqual([devMajor, devMinor], [4095, 1048575]);
  const t5 = await stat("t5");
  assert.deepEqual(t5.mtime, {
    seconds: 2 ** 32 + 7,
    nanoseconds: 123_456_789,
  });
  assert.deepEqual(t5.atime, t5.mtime);
  assert.equal(t5.uid, 2 ** 32 - 2);
  assert.equal((await stat("late")).mtime.seconds, 2 ** 34 - 2 ** 31 - 1);
  const [out] = await disk.debugfs(["stat t1"]);
  assert.match(out!, /Mode: +07777 /);
  assert.match(out!, /mtime: 0xffffffff:ee6b27fc/);
});

Deno.test({
  name: "a device can be filled to its last block and not beyond",
  ignore: !tools,
  fn: async () => {
    // The last group is short.
    const size = 300 * 2 ** 20 + 7 * BLOCK_SIZE;
    const model = Ext4Model.create({ virtualSize: size });
    await using disk = await Disk.create(size);
    disk.apply(model.emit());
    const free = model.freeBytes;
    assert.throws(
      () => model.createFile(model.root, "f", attrs(0o644), { size: free + 1 }),
      (error: unknown) =>
        error instanceof DeviceFullError && error.missingBlocks === 1 &&
        error.message.includes('4096 bytes more are needed for "f"'),
    );
    const { extents } = model.createFile(model.root, "f", attrs(0o644), {
      size: free,
    });
    const last = extents.at(-1)!;
    assert.equal(last.physicalBlock + last.count, size / BLOCK_SIZE);
    disk.apply(model.emit());
    assert.equal(model.freeBytes, 0);
    await disk.check();
    model.unlink(model.root, "f");
    disk.apply(model.emit());
    await disk.check();
    assert.equal(model.freeBytes, free);
  },
});

Deno.test({
  name: "all inodes can be used and used again",
  ignore: !tools,
  fn: async () => {
    const model = Ext4Model.create({ virtualSize: 2 ** 28 });
    await using disk = await Disk.create(model.virtualSize);
    const free = model.freeInodes;
    for (let i = 0; i < free; i++) {
      model.createFile(model.root, `f${i}`, attrs(0o644), { size: 0 });
    }
    assert.throws(
      () => model.mkdir(model.root, "d", attrs(0o755)),
      (error: unknown) =>
        error instanceof DeviceFullError && error.missingInodes === 1,
    );
    disk.apply(model.emit());
    await disk.check();
    const rnd = random(7);
    for (let i = 0; i < 100; i++) {
      const name = `f${rnd(free)}`;
      if (model.lookup(model.root, name)) model.unlink(model.root, name);
    }
    const again = model.freeInodes;
    for (let i = 0; i < again; i++) {
      model.createFile(model.root, `g${i}`, attrs(0o644), { size: 0 });
    }
    disk.apply(model.emit());
    await disk.check();
  },
});

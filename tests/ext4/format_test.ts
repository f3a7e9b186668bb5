import assert from "node:assert/strict";
import { viewOf } from "../../lib/io/mod.ts";
import {
  DE,
  DIRENT_TAIL,
  direntSize,
  DX_ROOT,
  dxNodeLimit,
  dxRootLimit,
  EE,
  EH,
  EI,
  encodeTimestamp,
  extentNodeCapacity,
  fileTypeOfMode,
  GD,
  type GroupDescriptor,
  hasDirentTail,
  hasSuperblock,
  INODE,
  type Inode,
  readDevice,
  readDirent,
  readDxEntries,
  readExtent,
  readExtentHeader,
  readExtentIndex,
  readGroupDescriptor,
  readInode,
  readRecordLength,
  readSuperblock,
  readTimestamp,
  SB,
  TIMESTAMP_MAX,
  TIMESTAMP_MIN,
  writeDevice,
  writeDirent,
  writeDirentTail,
  writeDxEntries,
  writeExtent,
  writeExtentHeader,
  writeExtentIndex,
  writeGroupDescriptor,
  writeInode,
  writeRecordLength,
  writeSuperblock,
} from "../../lib/ext4/format.ts";
import { XE, XH } from "../../lib/ext4/xattr.ts";

/** A small deterministic generator (mulberry32). */
function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

Deno.test("offset tables ascend without duplicates", () => {
  const tables = {
    SB,
    GD,
    INODE,
    EH,
    EE,
    EI,
    DE,
    DIRENT_TAIL,
    DX_ROOT,
    XH,
    XE,
  };
  for (const [name, table] of Object.entries(tables)) {
    const entries = Object.entries(table)
      .filter(([key]) => !key.startsWith("SIZE"));
    for (let i = 1; i < entries.length; i++) {
      const [key, offset] = entries[i]!;
      assert.ok(offset > entries[i - 1]![1], `${name}.${key}`);
    }
  }
  assert.ok(SB.checksum + 4 === SB.SIZE && GD.reserved + 4 === GD.SIZE_64);
  assert.ok(INODE.projectId + 4 === INODE.SIZE);
});

Deno.test("readX(writeX(bytes)) gives back every byte that has a name", () => {
  const next = random(1);
  const bytes = (length: number) =>
    Uint8Array.from({ length }, () => Math.floor(next() * 256));
  for (let round = 0; round < 50; round++) {
    const sb = bytes(1024);
    const sbCopy = sb.slice().fill(0);
    const superblock = readSuperblock(viewOf(sb), 0);
    // A u64 above 2^53 is only near; real counters never get there.
    superblock.kbytesWritten = Math.floor(superblock.kbytesWritten / 2 ** 12);
    writeSuperblock(viewOf(sbCopy), 0, superblock);
    assert.deepEqual(readSuperblock(viewOf(sbCopy), 0), superblock);

    for (const size of [32, 64]) {
      const gd = bytes(size);
      // Block numbers have 48 bits; a Number could not keep 64.
      for (const at of [0x22, 0x26, 0x2a]) {
        gd.fill(0, at, Math.min(at + 2, size));
      }
      const out = gd.slice();
      out.fill(0, 0, GD.excludeBitmapLo);
      out.fill(0, GD.blockBitmapCsumLo, 32);
      writeGroupDescriptor(
        viewOf(out),
        0,
        size,
        readGroupDescriptor(viewOf(gd), 0, size),
      );
      assert.deepEqual(out, gd);
    }

    const slot = bytes(256);
    slot.fill(0, INODE.sizeHi + 2, INODE.sizeHi + 4);
    viewOf(slot).setUint16(INODE.extraSize, 32, true);
    for (const at of [INODE.ctimeExtra, INODE.mtimeExtra, INODE.atimeExtra]) {
      viewOf(slot).setUint32(at, 999_999_999 * 4 + round % 4, true);
    }
    viewOf(slot).setUint32(INODE.crtimeExtra, round % 4, true);
    // The bounds of time lose their nanoseconds; keep clear of them.
    for (const at of [INODE.atime, INODE.ctime, INODE.mtime, INODE.crtime]) {
      viewOf(slot).setInt32(at, round * 1000, true);
    }
    const inode = readInode(viewOf(slot), 0, 256);
    const copy = slot.slice();
    copy.fill(0, INODE.sizeLo, INODE.versionLo);
    writeInode(viewOf(copy), 0, 256, inode);
    assert.deepEqual(copy, slot);
  }
});

Deno.test("group descriptors split wide fields at the right bit", () => {
  const wide: GroupDescriptor = {
    blockBitmap: 0x1_2345_6789,
    inodeBitmap: 0x2_3456_789a,
    inodeTable: 0x3_4567_89ab,
    freeBlocks: 0x1_8000,
    freeInodes: 0x2_8001,
    usedDirs: 0x3_8002,
    flags: 7,
    itableUnused: 0x4_8003,
    blockBitmapCsum: 0xdeadbeef,
    inodeBitmapCsum: 0xfeedface,
    checksum: 0xabcd,
  };
  const view = new DataView(new ArrayBuffer(64));
  writeGroupDescriptor(view, 0, 64, wide);
  assert.deepEqual(readGroupDescriptor(view, 0, 64), wide);
  assert.equal(readGroupDescriptor(view, 0, 32).freeBlocks, 0x8000);
  const lo = view.getUint32(GD.blockBitmapLo, true);
  const hi = view.getUint32(GD.blockBitmapHi, true);
  assert.equal(BigInt(wide.blockBitmap), (BigInt(hi) << 32n) | BigInt(lo));
});

Deno.test("time stamps keep seconds and nanoseconds across all epochs", () => {
  const seconds = [
    ...[TIMESTAMP_MIN + 1, -1, 0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1],
    ...[2 ** 32, 2 ** 33 + 5, TIMESTAMP_MAX - 1],
  ];
  for (const at of seconds) {
    for (const nanoseconds of [0, 1, 999_999_999]) {
      const time = { seconds: at, nanoseconds };
      const { low, extra } = encodeTimestamp(time);
      assert.deepEqual(readTimestamp(low, extra), time);
      // The kernel's arithmetic in 64 bits.
      const epoch = BigInt(extra & 3);
      assert.equal(BigInt.asIntN(32, BigInt(low)) + (epoch << 32n), BigInt(at));
    }
  }
  const late = encodeTimestamp({ seconds: 2 ** 40, nanoseconds: 5 });
  assert.deepEqual(readTimestamp(late.low, late.extra), {
    seconds: TIMESTAMP_MAX,
    nanoseconds: 0,
  });
  const early = encodeTimestamp({ seconds: -(2 ** 40), nanoseconds: 5 });
  assert.deepEqual(readTimestamp(early.low, early.extra), {
    seconds: TIMESTAMP_MIN,
    nanoseconds: 0,
  });
});

Deno.test("writeInode() leaves fields out that a small inode has no room for", () => {
  const inode: Inode = {
    ...readInode(new DataView(new ArrayBuffer(256)), 0, 256),
    mtime: { seconds: 5, nanoseconds: 6 },
    crtime: { seconds: 7, nanoseconds: 8 },
    checksum: 0x12345678,
    extraSize: 32,
  };
  const small = new Uint8Array(256);
  writeInode(viewOf(small), 0, 128, inode);
  assert.ok(small.subarray(128).every((byte) => byte === 0));
  const got = readInode(viewOf(small), 0, 128);
  assert.deepEqual(got.mtime, { seconds: 5, nanoseconds: 0 });
  assert.equal(got.checksum, 0x5678);
  assert.deepEqual(got.crtime, { seconds: 0, nanoseconds: 0 });
});

Deno.test("device numbers use the old form where it fits", () => {
  const view = new DataView(new ArrayBuffer(8));
  const cases = [[0, 0], [1, 3], [255, 255], [256, 0], [8, 256], [
    4095,
    1048575,
  ]];
  for (const [major, minor] of cases as [number, number][]) {
    writeDevice(view, 0, major, minor);
    assert.deepEqual(readDevice(view, 0), { major, minor });
    const isOld = major < 256 && minor < 256;
    assert.equal(view.getUint32(4, true) === 0, isOld);
  }
});

Deno.test("extents keep 48-bit blocks and tell unwritten from full length", () => {
  const view = new DataView(new ArrayBuffer(12));
  for (const count of [1, 32767, 32768]) {
    for (const unwritten of [false, true]) {
      if (unwritten && count === 32768) continue;
      const extent = {
        logicalBlock: 0xfffffff0,
        physicalBlock: 0xfedc_ba98_7654,
        count,
        unwritten,
      };
      writeExtent(view, 0, extent);
      assert.deepEqual(readExtent(view, 0), extent);
    }
  }
  const index = { logicalBlock: 7, child: 0x1234_5678_9abc };
  writeExtentIndex(view, 0, index);
  assert.deepEqual(readExtentIndex(view, 0), index);
  const header = {
    magic: 0xf30a,
    entries: 3,
    max: 4,
    depth: 1,
    generation: 9,
  };
  writeExtentHeader(view, 0, header);
  assert.deepEqual(readExtentHeader(view, 0), header);
  assert.equal(extentNodeCapacity(4096), 340);
});

Deno.test("directory entries, tails and record lengths of 64 KiB blocks", () => {
  assert.deepEqual([1, 4, 5, 255].map(direntSize), [12, 12, 16, 264]);
  const block = new Uint8Array(4096).fill(0xff);
  const view = viewOf(block);
  const name = new TextEncoder().encode("hello");
  writeDirent(view, 8, 4096, {
    ino: 77,
    recordLength: 16,
    fileType: fileTypeOfMode(0o100644),
    name,
  });
  assert.deepEqual(readDirent(view, 8, 4096), {
    ino: 77,
    recordLength: 16,
    nameLength: 5,
    fileType: 1,
  });
  assert.deepEqual(block.slice(16, 25), Uint8Array.of(...name, 0, 0, 0, 0xff));
  assert.equal(hasDirentTail(view, 0, 4096), false);
  writeDirentTail(view, 0, 4096, 0x1234);
  assert.equal(hasDirentTail(view, 0, 4096), true);
  for (const length of [12, 65532, 65536]) {
    writeRecordLength(view, 0, length, 65536);
    assert.equal(readRecordLength(view, 0, 65536), length);
  }
});

Deno.test("htree pairs round-trip and their counts are checked", () => {
  assert.deepEqual(
    [dxRootLimit(4096, false), dxNodeLimit(4096, false)],
    [508, 511],
  );
  assert.deepEqual(
    [dxRootLimit(4096, true), dxNodeLimit(4096, true)],
    [507, 510],
  );
  const view = new DataView(new ArrayBuffer(64));
  const pairs = {
    limit: 8,
    hashes: Uint32Array.of(0, 0x10, 0xfffffff0),
    blocks: Uint32Array.of(1, 2, 3),
  };
  writeDxEntries(view, 0, pairs);
  assert.deepEqual(readDxEntries(view, 0, 64), pairs);
  assert.equal(readDxEntries(view, 0, 63), undefined);
  view.setUint16(2, 9, true);
  assert.equal(readDxEntries(view, 0, 64), undefined);
});

Deno.test("hasSuperblock() follows sparse_super and sparse_super2", () => {
  const sb = readSuperblock(new DataView(new ArrayBuffer(1024)), 0);
  const groups = (count: number) =>
    Array.from({ length: count }, (_, group) => group)
      .filter((group) => hasSuperblock(sb, group));
  assert.equal(groups(10).length, 10);
  sb.featureRoCompat = 1;
  assert.deepEqual(groups(60), [0, 1, 3, 5, 7, 9, 25, 27, 49]);
  sb.featureCompat = 0x200;
  sb.backupGroups = [0, 0];
  assert.deepEqual(groups(60), [0]);
  sb.backupGroups = [1, 59];
  assert.deepEqual(groups(60), [0, 1, 59]);
});

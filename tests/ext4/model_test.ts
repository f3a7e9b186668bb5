import assert from "node:assert/strict";
import { deflateSync } from "node:zlib";
import { createState } from "../../lib/ext4/create.ts";
import {
  BLOCK_SIZE,
  computeGeometry,
  type Emission,
  Ext4Model,
  Ext4Reader,
  type MappedRanges,
  SpaceCounter,
  virtualSizeFor,
} from "../../lib/ext4/mod.ts";
import { LimitError, MemorySource } from "../../lib/io/mod.ts";
import { attrs } from "./writer_disk.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** A device in memory that takes layers. */
class MemoryDisk {
  readonly bytes: Uint8Array;
  readonly mapped = new Set<number>();

  constructor(size: number) {
    this.bytes = new Uint8Array(size);
  }

  apply(emission: Emission): void {
    for (const { block, bytes } of emission.blocks) {
      this.bytes.set(bytes, block * BLOCK_SIZE);
      this.mapped.add(block);
    }
    for (const { block, count } of emission.zeroed) {
      const from = block * BLOCK_SIZE;
      this.bytes.fill(0, from, from + count * BLOCK_SIZE);
    }
  }

  load(more: Partial<MappedRanges> = {}): Promise<Ext4Model> {
    const { mapped } = this;
    return Ext4Model.load(new MemorySource(this.bytes), {
      highestMapped: () => (Math.max(...mapped) + 1) * BLOCK_SIZE,
      isMapped: (offset) => mapped.has(Math.floor(offset / BLOCK_SIZE)),
      ...more,
    });
  }
}

function snapshot(emission: Emission) {
  return {
    blocks: [...emission.blocks].map(({ block, bytes }) =>
      `${block} ${bytes.toBase64()}`
    ),
    zeroed: emission.zeroed,
  };
}

Deno.test("lookup, children, parent, type and stat tell what was made", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  const { root } = model;
  const dir = model.mkdir(root, "d", attrs(0o750, { uid: 7, gid: 8 }));
  const { node } = model.createFile(dir, "f", attrs(0o600), { size: 10 });
  model.link(root, "hard", node);
  model.symlink(root, "a", attrs(0o777), "t");
  assert.equal(model.lookup(root, "d"), dir);
  assert.equal(model.lookup(root, "nothing"), undefined);
  assert.deepEqual(model.children(root).map(([name]) => name), [
    "a",
    "d",
    "hard",
  ]);
  assert.equal(model.parent(dir), root);
  assert.equal(model.parent(root), root);
  assert.equal(model.type(node), "file");
  assert.equal(model.path(dir), "d");
  const { type, mode, uid, gid, links } = model.stat(dir);
  assert.deepEqual({ type, mode, uid, gid, links }, {
    type: "directory",
    mode: 0o750,
    uid: 7,
    gid: 8,
    links: 2,
  });
  assert.equal(model.stat(node).links, 2);
  model.removeTree(root, "d");
  assert.equal(model.stat(node).links, 1);
  assert.throws(() => model.lookup(dir, "f"), TypeError);
  assert.throws(() => model.unlink(root, "gone"), TypeError);
});

Deno.test("readlink() gives targets of any length, loaded ones too", async () => {
  const disk = new MemoryDisk(MIB);
  const model = Ext4Model.create({ virtualSize: MIB });
  const targets = [1, 59, 60, 4095].map((length) =>
    "\xfft".repeat(length / 2 + 1).slice(0, length)
  );
  for (const target of targets) {
    model.symlink(model.root, `${target.length}`, attrs(0o777), target);
  }
  disk.apply(model.emit());
  for (const one of [model, await disk.load()]) {
    assert.deepEqual(
      targets.map((t) => one.readlink(one.lookup(one.root, `${t.length}`)!)),
      targets,
    );
  }
  assert.throws(() => model.readlink(model.root), TypeError);
});

Deno.test("setStat() leaves xattrs alone", async () => {
  const disk = new MemoryDisk(MIB);
  const model = Ext4Model.create({ virtualSize: MIB });
  const { node } = model.createFile(
    model.root,
    "f",
    attrs(0o644, {
      xattrs: [["user.a", new Uint8Array(8)], ["user.b", new Uint8Array(800)]],
    }),
    { size: 0 },
  );
  disk.apply(model.emit());
  const { xattrs: _, ...stat } = attrs(0o600, { uid: 9 });
  model.setStat(node, stat);
  disk.apply(model.emit());
  const reader = await Ext4Reader.open(new MemorySource(disk.bytes));
  const { mode, uid } = await reader.stat(node);
  assert.deepEqual([mode, uid], [0o600, 9]);
  assert.deepEqual((await reader.xattrs(node)).map(([n, v]) => [n, v.length]), [
    ["user.a", 8],
    ["user.b", 800],
  ]);
});

Deno.test("onFree is told of every node that is gone", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  const dir = model.mkdir(model.root, "d", attrs(0o755));
  const { node } = model.createFile(dir, "f", attrs(0o600), { size: 10 });
  const link = model.symlink(dir, "s", attrs(0o777), "t");
  model.link(model.root, "hard", node);
  const freed: number[] = [];
  model.onFree = (gone) => freed.push(gone);
  model.removeTree(model.root, "d");
  assert.deepEqual(freed, [link, dir]);
  model.unlink(model.root, "hard");
  assert.deepEqual(freed, [link, dir, node]);
});

Deno.test("a layer without changes is empty", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  const dir = model.mkdir(model.root, "d", attrs(0o755));
  const { node } = model.createFile(dir, "f", attrs(0o644), { size: 10 });
  model.emit();
  model.setAttributes(dir, attrs(0o755));
  model.setAttributes(node, attrs(0o644));
  model.setAttributes(node, attrs(0o600));
  model.setAttributes(node, attrs(0o644));
  const { blockCount, zeroed } = model.emit();
  assert.deepEqual({ blockCount, zeroed }, { blockCount: 0, zeroed: [] });
});

Deno.test("changed attributes cost one block of inodes", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  const dir = model.mkdir(model.root, "d", attrs(0o755));
  model.emit();
  model.setAttributes(dir, attrs(0o700));
  assert.equal(model.emit().blockCount, 1);
});

Deno.test("blocks come sorted, once, not all zero, and twice the same", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  for (let i = 0; i < 2000; i++) {
    model.createFile(model.root, `f${i}`, attrs(0o644), { size: i });
  }
  const emission = model.emit();
  const blocks = [...emission.blocks];
  assert.equal(blocks.length, emission.blockCount);
  blocks.forEach(({ block, bytes }, i) => {
    assert.ok(i === 0 || block > blocks[i - 1]!.block);
    assert.ok(bytes.length === BLOCK_SIZE && bytes.some((b) => b !== 0));
  });
  assert.deepEqual([...emission.blocks], blocks);
  model.mkdir(model.root, "d", attrs(0o755));
  assert.throws(() => [...emission.blocks], TypeError);
});

Deno.test("bodies come first, metadata behind them, the next layer above", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  const { dataStart } = computeGeometry(GIB);
  const file = (name: string) =>
    model.createFile(model.root, name, attrs(0o644), { size: 3 * BLOCK_SIZE })
      .extents[0]!.physicalBlock;
  assert.equal(file("a"), dataStart);
  assert.equal(file("b"), dataStart + 3);
  const layer1 = [...model.emit().blocks].map(({ block }) => block);
  assert.equal(layer1.at(-1), dataStart + 6);
  // The root's block stays where it is.
  assert.equal(file("c"), dataStart + 7);
  const layer2 = [...model.emit().blocks].map(({ block }) => block);
  assert.equal(layer2.at(-1), dataStart + 6);
});

Deno.test("blocks freed within their own layer are not mapped by it", async () => {
  const disk = new MemoryDisk(64 * MIB);
  const kept = Ext4Model.create({ virtualSize: 64 * MIB });
  disk.apply(kept.emit());
  const before = kept.freeBytes;
  kept.createFile(kept.root, "f", attrs(0o644), { size: MIB });
  kept.unlink(kept.root, "f");
  assert.equal(kept.freeBytes, before);
  disk.apply(kept.emit());
  const loaded = await disk.load();
  const place = (model: Ext4Model) =>
    model.createFile(model.root, "g", attrs(0o644), { size: MIB }).extents;
  const extents = place(kept);
  const first = computeGeometry(64 * MIB).dataStart + 1;
  assert.equal(extents[0]!.physicalBlock, first);
  assert.deepEqual(place(loaded), extents);
});

Deno.test("a full device gives its unmapped blocks first, however they are asked for", async () => {
  const disk = new MemoryDisk(16 * MIB);
  const model = Ext4Model.create({ virtualSize: 16 * MIB });
  disk.apply(model.emit());
  const { dataStart, blocksCount } = computeGeometry(16 * MIB);
  for (let block = dataStart; block < blocksCount; block++) {
    if (block % 7 < 4 || block > 3000) disk.mapped.add(block);
  }
  const nextUnmapped = (offset: number) => {
    let block = Math.floor(offset / BLOCK_SIZE);
    while (disk.mapped.has(block)) block++;
    return Math.max(offset, block * BLOCK_SIZE);
  };
  const place = async (more: { nextUnmapped?: typeof nextUnmapped }) => {
    const model = await disk.load(more);
    const blocks: number[] = [];
    for (let i = 0; i < 70; i++) {
      const body = { size: (1 + i) * BLOCK_SIZE };
      const made = model.createFile(model.root, `f${i}`, attrs(0o644), body);
      for (const { physicalBlock, count } of made.extents) {
        for (let i = 0; i < count; i++) blocks.push(physicalBlock + i);
      }
    }
    return blocks;
  };
  const blocks = await place({});
  assert.deepEqual(await place({ nextUnmapped }), blocks);
  const unmapped = blocks.findIndex((block) => disk.mapped.has(block));
  assert.ok(unmapped > 1000);
  for (const part of [blocks.slice(0, unmapped), blocks.slice(unmapped)]) {
    assert.deepEqual(part, part.toSorted((a, b) => a - b));
  }
  assert.ok(blocks.slice(unmapped).every((block) => disk.mapped.has(block)));
});

Deno.test("metadata above all bodies moves the next layer's bodies above it", () => {
  const { allocator } = createState(GIB);
  const start = allocator.take(1)[0]!.start;
  allocator.endLayer([start + 1000]);
  assert.equal(allocator.take(1)[0]!.start, start + 1001);
});

Deno.test("inode blocks that became zero and stay so are the same to a loaded model", async () => {
  // 64 inodes in 4 blocks.
  const disk = new MemoryDisk(MIB);
  const kept = Ext4Model.create({ virtualSize: MIB });
  const names = Array.from({ length: kept.freeInodes }, (_, i) => `f${i}`);
  for (const name of names) {
    kept.mknod(kept.root, name, attrs(0o600), { type: "fifo" });
  }
  disk.apply(kept.emit());
  for (const name of names) kept.unlink(kept.root, name);
  const cleared = kept.emit();
  assert.deepEqual(cleared.zeroed, [{ block: 5, count: 3 }]);
  disk.apply(cleared);
  const loaded = await disk.load();
  const change = (model: Ext4Model) => {
    for (const name of names) {
      model.mknod(model.root, name, attrs(0o600), { type: "fifo" });
    }
    for (const name of names.slice(10)) model.unlink(model.root, name);
    return snapshot(model.emit());
  };
  const expected = change(kept);
  assert.deepEqual(expected.zeroed, []);
  assert.deepEqual(change(loaded), expected);
});

Deno.test("attributes move between inode and block, and keep their block", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  const sized = (size: number) =>
    attrs(0o644, { xattrs: [["user.a", new Uint8Array(size).fill(1)]] });
  const { node } = model.createFile(model.root, "f", sized(500), { size: 0 });
  model.emit();
  const free = model.freeBytes;
  model.setAttributes(node, sized(600));
  assert.equal(model.emit().blockCount, 1);
  assert.equal(model.freeBytes, free);
  model.setAttributes(node, sized(10));
  model.emit();
  assert.equal(model.freeBytes, free + BLOCK_SIZE);
  model.setAttributes(node, sized(700));
  model.unlink(model.root, "f");
  model.emit();
  assert.equal(model.freeBytes, free + BLOCK_SIZE);
});

Deno.test("an operation that is refused changes nothing", () => {
  const model = Ext4Model.create({ virtualSize: GIB });
  model.emit();
  const { freeBytes, freeInodes } = model;
  const bad = attrs(0o644, { xattrs: [["nonsense", new Uint8Array(1)]] });
  const long = "n".repeat(256);
  for (
    const attempt of [
      () => model.createFile(model.root, "f", bad, { size: MIB }),
      () => model.mkdir(model.root, "f", bad),
      () => model.createFile(model.root, long, attrs(0), { size: MIB }),
      () => model.symlink(model.root, "f", attrs(0), "t".repeat(5000)),
      () => model.setAttributes(model.root, bad),
      () => model.createFile(model.root, "f", attrs(0), { size: 2 * GIB }),
    ]
  ) {
    assert.throws(attempt);
  }
  assert.deepEqual([model.freeBytes, model.freeInodes], [
    freeBytes,
    freeInodes,
  ]);
  assert.equal(model.emit().blockCount, 0);
});

Deno.test("a large device costs little more than a small one", () => {
  const cost = (virtualSize: number) => {
    const model = Ext4Model.create({ virtualSize });
    for (let i = 0; i < 100; i++) {
      model.createFile(model.root, `f${i}`, attrs(0o644), { size: 9000 });
    }
    let bytes = 0;
    for (const { bytes: block } of model.emit().blocks) {
      bytes += deflateSync(block).length;
    }
    return bytes;
  };
  const more = cost(64 * GIB) - cost(GIB);
  assert.ok(more < 16384, `${more} bytes`);
});

Deno.test("computeGeometry() covers the device and refuses what cannot be", () => {
  for (const size of [MIB, MIB + 5000, 128 * MIB, 128 * MIB + 4096, 64 * GIB]) {
    const g = computeGeometry(size);
    assert.equal(g.blocksCount, Math.floor(size / BLOCK_SIZE));
    assert.equal(g.groupCount, Math.ceil(g.blocksCount / 32768));
    assert.ok(g.dataStart < g.blocksCount);
    assert.ok(2 ** g.logGroupsPerFlex >= g.groupCount);
  }
  assert.equal(
    computeGeometry(64 * GIB).inodesPerGroup *
      computeGeometry(64 * GIB).groupCount,
    4_194_304,
  );
  const largest = 16 * 2 ** 40 - BLOCK_SIZE;
  assert.ok(computeGeometry(largest).blocksCount < 2 ** 32);
  for (const size of [0, MIB - 1, largest + 1, NaN, 1.5 * MIB + 0.5]) {
    assert.throws(() => computeGeometry(size), LimitError);
  }
  for (const ratio of [0, 1023, 2 ** 31]) {
    assert.throws(() => computeGeometry(GIB, ratio), LimitError);
  }
});

Deno.test("virtualSizeFor() names the smallest device that holds the need", () => {
  for (const blocks of [1, 1e6, 1e7, 1e9]) {
    const size = virtualSizeFor({ blocks, inodes: 1000 });
    const room = (bytes: number) => {
      const g = computeGeometry(bytes);
      return g.blocksCount - g.dataStart;
    };
    assert.ok(room(size) >= blocks);
    if (size > GIB) assert.ok(room(size - GIB) < blocks);
  }
  assert.equal(virtualSizeFor({ blocks: 1, inodes: 5_000_000 }), 77 * GIB);
  assert.throws(
    () => virtualSizeFor({ blocks: 2 ** 33, inodes: 1 }),
    LimitError,
  );
});

Deno.test("SpaceCounter never counts less than the model takes", () => {
  const model = Ext4Model.create({ virtualSize: GIB, inodeRatio: 4096 });
  const counter = new SpaceCounter();
  const free = { bytes: model.freeBytes, inodes: model.freeInodes };
  for (const [count, length] of [[300, 8], [700, 255], [7000, 41]] as const) {
    const dirName = `d${count}`;
    const dir = model.mkdir(model.root, dirName, attrs(0o755));
    counter.add({ type: "directory", nameLength: dirName.length });
    for (let i = 0; i < count; i++) {
      const name = `${i}-`.padEnd(length, "n");
      const body = i % 100 === 0
        ? {
          size: MIB,
          ranges: Array.from({ length: 40 }, (_, i) => ({
            fileSector: i * 20,
            sectors: 3,
          })),
        }
        : { size: i };
      model.createFile(dir, name, attrs(0o644), body);
      counter.add({ type: "file", nameLength: length, body });
    }
  }
  model.symlink(model.root, "l", attrs(0), "t".repeat(100));
  counter.add({ type: "symlink", nameLength: 1, targetLength: 100 });
  model.emit();
  const { blocks, inodes } = counter.need;
  const taken = (free.bytes - model.freeBytes) / BLOCK_SIZE;
  assert.ok(blocks >= taken && blocks < taken * 1.2, `${blocks} for ${taken}`);
  // The root is counted, and was there before.
  assert.equal(inodes, free.inodes - model.freeInodes + 1);
  assert.equal(counter.virtualSize(), GIB);
});

Deno.test("SpaceCounter counts the extent trees of large files", () => {
  const model = Ext4Model.create();
  const counter = new SpaceCounter();
  const free = model.freeBytes;
  // An extent holds 128 MiB, an inode four extents.
  const sizes = [GIB / 2, GIB / 2 + 1, 3 * GIB, 45 * GIB];
  for (const size of sizes) {
    model.createFile(model.root, `f${size}`, attrs(0o644), { size });
    counter.add({ type: "file", nameLength: 12, body: { size } });
  }
  model.emit();
  const taken = (free - model.freeBytes) / BLOCK_SIZE;
  assert.ok(counter.need.blocks >= taken, `${counter.need.blocks} < ${taken}`);
});

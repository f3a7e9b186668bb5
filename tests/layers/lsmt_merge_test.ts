import assert from "node:assert/strict";
import {
  KIND,
  mergeTables,
  SegmentColumns,
  type SegmentTable,
} from "../../lib/layers/lsmt/mod.ts";
import { LimitError } from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";

const DEVICE = 600; // sectors

function randomTable(random: () => number): SegmentTable {
  const columns = new SegmentColumns(0);
  let at = Math.floor(random() * 30);
  const density = random() * 40;
  while (at < DEVICE) {
    const length = Math.min(1 + Math.floor(random() * 25), DEVICE - at);
    columns.pushJoined(
      at,
      length,
      Math.floor(random() * 1000),
      Math.floor(random() * 3),
      0,
    );
    at += length + (random() < 0.4 ? 0 : Math.floor(random() * density));
  }
  return columns.finish();
}

/** What one sector of a table maps to, found by looking at every row. */
function paint(shadow: string[], table: SegmentTable, layer: number): void {
  for (let row = 0; row < table.count; row++) {
    for (let i = 0; i < table.length[row]!; i++) {
      const kind = table.kind[row]!;
      const moffset = kind === KIND.zeroed ? 0 : table.moffset[row]! + i;
      shadow[table.offset[row]! + i] = `${layer}:${kind}:${moffset}`;
    }
  }
}

function checkOrder(table: SegmentTable): void {
  for (let row = 0; row < table.count; row++) {
    assert.ok(table.length[row]! > 0, `row ${row} is empty`);
  }
  for (let row = 1; row < table.count; row++) {
    const end = table.offset[row - 1]! + table.length[row - 1]!;
    assert.ok(end <= table.offset[row]!, `row ${row} overlaps`);
  }
}

/** Layers of small rows in stretches that mostly miss each other, so that many rows in a row come from one. */
function stretchedTable(random: () => number, size: number): SegmentTable {
  const columns = new SegmentColumns(0);
  let at = Math.floor(random() * size);
  const end = Math.min(size, at + Math.floor(random() * size));
  let moffset = 0;
  while (at < end) {
    const length = Math.min(1 + Math.floor(random() * 3), end - at);
    columns.push(at, length, moffset += 5, Math.floor(random() * 3), 0);
    at += length + (random() < 0.3 ? 1 : 0) +
      (random() < 0.01 ? Math.floor(random() * 500) : 0);
  }
  return columns.finish();
}

function checkMerge(
  tables: readonly SegmentTable[],
  size: number,
  what: string,
): void {
  const merged = mergeTables(tables);
  const want = new Array<string>(size).fill("hole");
  tables.forEach((table, layer) => paint(want, table, layer));
  const got = new Array<string>(size).fill("hole");
  checkOrder(merged);
  for (let row = 0; row < merged.count; row++) {
    for (let i = 0; i < merged.length[row]!; i++) {
      const kind = merged.kind[row]!;
      const moffset = kind === KIND.zeroed ? 0 : merged.moffset[row]! + i;
      got[merged.offset[row]! + i] = `${merged.layer[row]}:${kind}:${moffset}`;
    }
  }
  assert.deepEqual(got, want, what);
  assert.equal(merged.offset.length, merged.count);
}

Deno.test("mergeTables() equals painting sector by sector", () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = seeded(seed);
    const count = 1 + Math.floor(random() * 9);
    const tables = Array.from({ length: count }, () => randomTable(random));
    checkMerge(tables, DEVICE, `seed ${seed}`);
  }
});

Deno.test("mergeTables() equals painting where many rows come from one layer", () => {
  const size = 5000;
  for (let seed = 1; seed <= 60; seed++) {
    const random = seeded(seed);
    const count = 2 + Math.floor(random() * 5);
    const tables = Array.from(
      { length: count },
      () => stretchedTable(random, size),
    );
    checkMerge(tables, size, `seed ${seed}`);
  }
});

Deno.test("find() and isMapped() agree with a scan", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const table = randomTable(seeded(seed));
    for (let sector = 0; sector <= DEVICE + 1; sector++) {
      let want = 0;
      while (
        want < table.count &&
        table.offset[want]! + table.length[want]! <= sector
      ) want++;
      assert.equal(table.find(sector), want);
      const covered = want < table.count && table.offset[want]! <= sector;
      assert.equal(table.isMapped(sector * 512, 1), covered);
      assert.equal(table.isMapped(sector * 512 + 511, 1), covered);
      assert.equal(table.isMapped(sector * 512, 0), false);
    }
    const last = table.count - 1;
    assert.equal(
      table.highestMapped(),
      (table.offset[last]! + table.length[last]!) * 512,
    );
  }
  const empty = new SegmentColumns(0).finish();
  assert.equal(empty.highestMapped(), 0);
  assert.equal(empty.find(0), 0);
  assert.equal(empty.isMapped(0, 2 ** 40), false);
});

Deno.test("mergeTables() takes 255 layers and refuses 256", () => {
  const one = () => {
    const columns = new SegmentColumns(1);
    columns.push(0, 1, 8, KIND.data, 0);
    return columns.finish();
  };
  const tables = Array.from({ length: 255 }, one);
  const merged = mergeTables(tables);
  assert.equal(merged.count, 1);
  assert.equal(merged.layer[0], 254);
  assert.throws(() => mergeTables([...tables, one()]), LimitError);
  assert.equal(mergeTables([]).count, 0);
});

Deno.test("mergeTables() keeps sectors above 2^32 exact", () => {
  const lower = new SegmentColumns(1);
  lower.push(2 ** 40, 2 ** 31, 2 ** 43, KIND.target, 0);
  const upper = new SegmentColumns(1);
  upper.push(2 ** 40 + 10, 1, 8, KIND.data, 0);
  const merged = mergeTables([lower.finish(), upper.finish()]);
  assert.deepEqual([...merged.offset], [
    2 ** 40,
    2 ** 40 + 10,
    2 ** 40 + 11,
  ]);
  assert.deepEqual([...merged.length], [10, 1, 2 ** 31 - 11]);
  assert.deepEqual([...merged.moffset], [2 ** 43, 8, 2 ** 43 + 11]);
});

Deno.test("SegmentColumns.sort() orders any insertion order the same way", () => {
  const random = seeded(7);
  const rows = Array.from({ length: 5000 }, (_, i) => ({
    offset: i * 3 + (i % 2) * 2 ** 39,
    length: 1 + (i % 3),
    moffset: i * 1000,
    kind: i % 3,
  }));
  rows.sort(() => random() - 0.5);
  const columns = new SegmentColumns(0);
  for (const r of rows) columns.push(r.offset, r.length, r.moffset, r.kind, 0);
  columns.sort();
  rows.sort((a, b) => a.offset - b.offset);
  const table = columns.finish();
  assert.deepEqual([...table.offset], rows.map((r) => r.offset));
  assert.deepEqual([...table.length], rows.map((r) => r.length));
  assert.deepEqual([...table.moffset], rows.map((r) => r.moffset));
  assert.deepEqual([...table.kind], rows.map((r) => r.kind));
});

Deno.test("SegmentColumns.pushJoined() joins only what continues", () => {
  const columns = new SegmentColumns(0);
  columns.pushJoined(0, 8, 8, KIND.data, 0);
  columns.pushJoined(8, 8, 16, KIND.data, 0); // continues
  columns.pushJoined(16, 8, 25, KIND.data, 0); // a gap in the file
  columns.pushJoined(25, 8, 33, KIND.data, 0); // a gap on the device
  columns.pushJoined(33, 8, 41, KIND.target, 0); // another kind
  columns.pushJoined(41, 8, 5, KIND.zeroed, 0);
  columns.pushJoined(49, 8, 9, KIND.zeroed, 0); // zeros have no place
  columns.pushJoined(57, 2 ** 31 - 1, 0, KIND.zeroed, 0); // too long a row
  const table = columns.finish();
  assert.deepEqual([...table.offset], [0, 16, 25, 33, 41, 57]);
  assert.deepEqual([...table.length], [16, 8, 8, 8, 16, 2 ** 31 - 1]);
});

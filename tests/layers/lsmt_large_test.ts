/** Maps of devices of many TiB: rows and entries have few bits for lengths. */

import assert from "node:assert/strict";
import { LimitError, MemorySink, MemorySource } from "../../lib/io/mod.ts";
import {
  KIND,
  LsmtSource,
  mergeLayers,
  openLsmtLayer,
  SegmentColumns,
} from "../../lib/layers/mod.ts";
import {
  FLAG,
  NULL_UUID,
  writeHeaderTrailer,
} from "../../lib/layers/lsmt/format.ts";
import { LayerWriter, openWritableLayer } from "../../lib/layers/lsmt/mod.ts";

const TIB = 2 ** 40;
const SECTOR = 512;

Deno.test("a sparse writable layer of 3 TiB without a hole is mapped whole", async () => {
  const virtualSize = 3 * TIB;
  const header = writeHeaderTrailer({
    flags: FLAG.header | FLAG.data | FLAG.sparse,
    indexOffset: 0,
    indexCount: 0,
    virtualSize,
    uuid: NULL_UUID,
    parentUuid: NULL_UUID,
    userTag: "",
  });
  const { table } = await openWritableLayer(
    {
      data: new MemorySource(header),
      openIndex: () => Promise.reject(new Error("there is none")),
      // As file systems say it that do not know holes.
      storedRanges: (start) => [{ start, end: 4096 + virtualSize }],
    },
    "native",
    0,
  );
  assert.equal(table.mappedBytes, virtualSize);
  for (const sector of [0, 2 ** 31, 2 ** 32 + 7, virtualSize / SECTOR - 1]) {
    const row = table.find(sector);
    const at = table.moffset[row]! + sector - table.offset[row]!;
    assert.equal(at, sector + 8, `sector ${sector}`);
  }
});

Deno.test("LayerWriter.zero() takes 3 TiB at once", async () => {
  const sink = new MemorySink();
  const writer = await LayerWriter.start(sink, "native", {
    virtualSize: 4 * TIB,
  });
  writer.zero(TIB, 3 * TIB);
  await writer.finish();
  const { table } = await openLsmtLayer(
    new MemorySource(sink.bytes()),
    "native",
  );
  assert.ok(table.isMapped(TIB, SECTOR));
  assert.equal(table.nextUnmapped(TIB), 4 * TIB);
});

Deno.test("mergeLayers() refuses what one layer cannot say however it is joined", async () => {
  const columns = new SegmentColumns(0);
  for (let tib = 0; tib < 16; tib++) {
    columns.push(tib * 2 ** 31, 2 ** 31, 0, KIND.zeroed, 0);
  }
  const device = new LsmtSource([{
    table: columns.finish(),
    data: new MemorySource(new Uint8Array()),
  }], 16 * TIB);
  const dir = await Deno.makeTempDir({ prefix: "obd-lsmt-large-" });
  try {
    await assert.rejects(mergeLayers(device, `${dir}/merged`), LimitError);
    assert.deepEqual([...Deno.readDirSync(dir)], []);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

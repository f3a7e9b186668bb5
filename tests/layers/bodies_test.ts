import { deepEqual, equal } from "node:assert/strict";
import { FileBody, mapBody, WarpMap } from "../../lib/layers/mod.ts";
import type { FileExtent, MappedRanges } from "../../lib/ext4/mod.ts";

const NOTHING: MappedRanges = {
  highestMapped: () => 0,
  isMapped: () => false,
};
const ALL: MappedRanges = {
  highestMapped: () => 2 ** 40,
  isMapped: () => true,
};

/** Segments of a map in sectors: `target OFFSET+LENGTH<TAR` or `zero OFFSET+LENGTH`. */
function segments(
  body: FileBody,
  extents: FileExtent[],
  below: MappedRanges,
): { map: string[]; stored: string[] } {
  const map = new WarpMap();
  const stored = mapBody(body, extents, below, map);
  const table = map.sorted();
  const lines: string[] = [];
  for (let i = 0; i < table.count; i++) {
    const range = `${table.offset[i]}+${table.length[i]}`;
    lines.push(
      table.kind[i] === 1
        ? `target ${range}<${table.moffset[i]}`
        : `other ${range}`,
    );
  }
  return {
    map: lines,
    stored: stored.map((s) => `${s.offset / 512}+${s.bytes.length / 512}`),
  };
}

const extent = (
  logicalBlock: number,
  physicalBlock: number,
  count: number,
): FileExtent => ({ logicalBlock, physicalBlock, count, unwritten: false });

Deno.test("mapBody(): one run in one extent, the rest of its block stays a hole", () => {
  const body = new FileBody(0, {
    runs: [{ fileSector: 0, tarSector: 70, sectors: 3 }],
    patches: [],
  });
  deepEqual(segments(body, [extent(0, 100, 1)], NOTHING), {
    map: ["target 800+3<70"],
    stored: [],
  });
});

Deno.test("mapBody(): what lower layers map in the rest of a block is hidden", () => {
  const body = new FileBody(0, {
    runs: [{ fileSector: 0, tarSector: 70, sectors: 3 }],
    patches: [],
  });
  deepEqual(segments(body, [extent(0, 100, 1)], ALL).map, [
    "target 800+3<70",
    "other 803+5",
  ]);
});

Deno.test("mapBody(): a run over several extents is split where they are", () => {
  const body = new FileBody(0, {
    runs: [{ fileSector: 0, tarSector: 1000, sectors: 20 }],
    patches: [],
  });
  const extents = [extent(0, 100, 1), extent(1, 300, 1), extent(2, 200, 1)];
  deepEqual(segments(body, extents, NOTHING).map, [
    "target 800+8<1000",
    "target 1600+4<1016",
    "target 2400+8<1008",
  ]);
});

Deno.test("mapBody(): patches between and beside runs are stored, also over an extent's end", () => {
  const body = new FileBody(0, {
    runs: [{ fileSector: 0, tarSector: 50, sectors: 6 }],
    patches: [
      { fileSector: 6, bytes: new Uint8Array(4 * 512).fill(1) },
      { fileSector: 17, bytes: new Uint8Array(512).fill(2) },
    ],
  });
  const extents = [extent(0, 100, 1), extent(1, 300, 2)];
  const got = segments(body, extents, ALL);
  deepEqual(got.stored, ["806+2", "2400+2", "2409+1"]);
  deepEqual(got.map, [
    "target 800+6<50",
    "other 2402+7",
    "other 2410+6",
  ]);
});

Deno.test("mapBody(): a sparse file's runs go to their own blocks", () => {
  const body = new FileBody(0, {
    runs: [
      { fileSector: 16, tarSector: 10, sectors: 8 },
      { fileSector: 800, tarSector: 18, sectors: 2 },
    ],
    patches: [],
  });
  const extents = [extent(2, 500, 1), extent(100, 501, 1)];
  deepEqual(segments(body, extents, ALL).map, [
    "target 4000+10<10",
    "other 4010+6",
  ]);
});

Deno.test("FileBody gives back what it was made of", () => {
  for (
    const content of [
      { runs: [{ fileSector: 0, tarSector: 3, sectors: 4 }], patches: [] },
      { runs: [{ fileSector: 8, tarSector: 3, sectors: 4 }], patches: [] },
      { runs: [], patches: [{ fileSector: 0, bytes: new Uint8Array(512) }] },
    ]
  ) {
    const body = new FileBody(7, content);
    equal(body.layer, 7);
    deepEqual({ runs: body.runs, patches: body.patches }, content);
  }
});

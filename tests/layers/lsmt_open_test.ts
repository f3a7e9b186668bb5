import assert from "node:assert/strict";
import { openLsmtLayer } from "../../lib/layers/lsmt/mod.ts";
import { FormatError, MemorySource, ObdError } from "../../lib/io/mod.ts";
import { lsmtImage, type RawLsmt, seeded } from "../testutil/lsmt_image.ts";

const DATA = new Uint8Array(16 * 512).fill(7);
const D = { offset: 0, length: 8, moffset: 8 }; // a good data entry
const LIMIT = 8 + 16; // first sector behind the data area

function open(raw: RawLsmt, kind: "native" | "warp" | "auto" = "native") {
  return openLsmtLayer(
    new MemorySource(lsmtImage({ data: DATA, ...raw })),
    kind,
  );
}

const accepted: [string, RawLsmt, "native" | "warp"][] = [
  ["no index at all", { entries: [] }, "native"],
  ["no index, said to lie anywhere", {
    entries: [],
    indexOffset: 2 ** 50,
  }, "native"],
  ["flags of a sparse layer sealed in place", {
    entries: [D],
    headerFlags: 0x13,
    trailerFlags: 0x16,
  }, "native"],
  ["unknown flag bits", {
    entries: [D],
    headerFlags: 0x7 | 0x28,
    trailerFlags: 0x6 | 0x28,
  }, "native"],
  ["entries that touch", {
    entries: [D, { offset: 8, length: 8, moffset: 16 }],
  }, "native"],
  ["zeroed at the end of data", {
    entries: [{ offset: 0, length: 8, moffset: LIMIT, zeroed: true }],
  }, "native"],
  ["zeroed at the start of data", {
    entries: [{ offset: 0, length: 8, moffset: 8, zeroed: true }],
  }, "native"],
  ["any tag in a native layer", {
    entries: [{ ...D, tag: 9 }, { offset: 8, length: 1, moffset: 8, tag: 3 }],
  }, "native"],
  ["warp: zeroed at 0", {
    entries: [{ offset: 0, length: 8, moffset: 0, zeroed: true }],
  }, "warp"],
  ["warp: target far away", {
    entries: [D, { offset: 8, length: 8, moffset: 2 ** 43, tag: 1 }],
  }, "warp"],
  ["warp: tags from 4", {
    entries: [{ ...D, tag: 4 }, { offset: 8, length: 8, moffset: 0, tag: 5 }],
  }, "warp"],
];

for (const [what, raw, kind] of accepted) {
  Deno.test(`openLsmtLayer() accepts ${what}`, async () => {
    const layer = await open(raw, kind);
    assert.equal(layer.entryCount, raw.entries!.length);
    assert.equal(layer.kind, kind);
  });
}

const refused: [string, RawLsmt, "native" | "warp", RegExp][] = [
  [
    "a trailer in the header's place",
    { headerFlags: 6 },
    "native",
    /header.*flags/,
  ],
  ["an index file", { headerFlags: 5 }, "native", /flags/],
  [
    "a header in the trailer's place",
    { trailerFlags: 7 },
    "native",
    /trailer.*flags/,
  ],
  ["an unsealed trailer", { trailerFlags: 2 }, "native", /flags/],
  ["an index trailer", { trailerFlags: 4 }, "native", /flags/],
  [
    "too many entries",
    { indexCount: 1_000_001 },
    "native",
    /index_size.*1000001/,
  ],
  ["a huge count", { indexCount: 2n ** 64n - 1n }, "native", /index_size/],
  [
    "more entries than fit",
    { entries: [D], indexCount: 2 },
    "native",
    /index_offset/,
  ],
  [
    "an index behind the trailer",
    {
      entries: [D],
      indexOffset: 2n ** 63n,
    },
    "native",
    /index_offset/,
  ],
  [
    "a virtual size of 2^53",
    { virtualSize: 2n ** 53n },
    "native",
    /virtual_size/,
  ],
  [
    "disordered entries",
    {
      entries: [{ ...D, offset: 8 }, D],
    },
    "native",
    /entry 1/,
  ],
  [
    "overlapping entries",
    {
      entries: [D, { offset: 7, length: 1, moffset: 8 }],
    },
    "native",
    /entry 1/,
  ],
  [
    "data in the header",
    {
      entries: [{ offset: 0, length: 1, moffset: 7 }],
    },
    "native",
    /data area/,
  ],
  [
    "data that begins in the header",
    {
      entries: [{ offset: 0, length: 2, moffset: 7 }],
    },
    "native",
    /data area/,
  ],
  [
    "data across the end",
    {
      entries: [{ offset: 0, length: 2, moffset: LIMIT - 1 }],
    },
    "native",
    /data area/,
  ],
  [
    "data at the end",
    {
      entries: [{ offset: 0, length: 0, moffset: LIMIT }],
    },
    "native",
    /data area/,
  ],
  [
    "empty data at 8",
    {
      entries: [{ offset: 0, length: 0, moffset: 8 }],
    },
    "native",
    /data area/,
  ],
  [
    "zeroed at 0",
    {
      entries: [{ offset: 0, length: 8, moffset: 0, zeroed: true }],
    },
    "native",
    /zeroed/,
  ],
  [
    "zeroed behind the end",
    {
      entries: [{ offset: 0, length: 8, moffset: LIMIT + 1, zeroed: true }],
    },
    "native",
    /zeroed/,
  ],
  [
    "sectors above 2^44",
    {
      entries: [{ offset: 2 ** 44, length: 1, moffset: 8 }],
    },
    "native",
    /2\^44/,
  ],
  [
    "warp: own data outside",
    {
      entries: [{ offset: 0, length: 1, moffset: LIMIT }],
    },
    "warp",
    /data area/,
  ],
  [
    "warp: target above 2^44",
    {
      entries: [D, { offset: 8, length: 1, moffset: 2n ** 54n, tag: 1 }],
    },
    "warp",
    /2\^44/,
  ],
  [
    "warp: three tags",
    {
      entries: [D, { offset: 8, length: 1, moffset: 8, tag: 2 }],
    },
    "warp",
    /tag/,
  ],
];

for (const [what, raw, kind, message] of refused) {
  Deno.test(`openLsmtLayer() refuses ${what}`, async () => {
    await assert.rejects(open(raw, kind), (error: unknown) => {
      assert.ok(error instanceof FormatError, String(error));
      assert.match(error.message, message);
      return true;
    });
  });
}

Deno.test("openLsmtLayer() says why an all-remote layer is refused", async () => {
  const image = lsmtImage({
    entries: [{ offset: 0, length: 8, moffset: 4, tag: 1 }],
  });
  await assert.rejects(
    openLsmtLayer(new MemorySource(image), "warp"),
    /all entries are remote/,
  );
});

Deno.test("openLsmtLayer() drops padding before it checks the order", async () => {
  const padding = { offset: 2 ** 50 - 1, length: 0, moffset: 0 };
  const layer = await open({
    entries: [padding, D, padding, { offset: 8, length: 1, moffset: 8 }],
  });
  assert.equal(layer.entryCount, 2);
});

Deno.test("openLsmtLayer() tells warp from native by the tags on auto", async () => {
  const both = [D, { offset: 8, length: 8, moffset: 0, tag: 1 }];
  assert.equal((await open({ entries: both }, "auto")).kind, "warp");
  assert.equal((await open({ entries: [D] }, "auto")).kind, "native");
});

Deno.test("openLsmtLayer() refuses short and unsealed files", async () => {
  const image = lsmtImage({ entries: [D], data: DATA });
  for (const size of [0, 24, 4096, 8191]) {
    await assert.rejects(
      openLsmtLayer(new MemorySource(image.subarray(0, size)), "native"),
      FormatError,
    );
  }
  const writable = lsmtImage({ entries: [D], data: DATA, headerFlags: 3 });
  await assert.rejects(
    openLsmtLayer(
      new MemorySource(writable.subarray(0, writable.length - 4096)),
      "native",
    ),
    /never sealed/,
  );
});

Deno.test("openLsmtLayer() survives mutations", async () => {
  const random = seeded(42);
  const good = lsmtImage({
    data: DATA,
    entries: [D, { offset: 8, length: 8, moffset: 3, tag: 1 }],
  });
  const hot = [0, 28, 4096 + DATA.length, good.length - 4096 + 28];
  let refusals = 0;
  for (let i = 0; i < 3000; i++) {
    const bad = good.slice(
      0,
      random() < 0.1 ? Math.floor(random() * good.length) : good.length,
    );
    for (let n = 1 + Math.floor(random() * 4); n > 0; n--) {
      const base = hot[Math.floor(random() * hot.length)]!;
      const at = base + Math.floor(random() * 32);
      if (at < bad.length) bad[at] = Math.floor(random() * 256);
    }
    try {
      await openLsmtLayer(new MemorySource(bad), i % 2 ? "warp" : "native");
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
      refusals++;
    }
  }
  assert.ok(refusals > 500, `${refusals}`);
});

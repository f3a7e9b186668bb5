import assert from "node:assert/strict";
import {
  FLAG,
  hasLsmtMagic,
  HT,
  NULL_UUID,
  PADDING_OFFSET,
  readHeaderTrailer,
  readSegment,
  writeHeaderTrailer,
  writePadding,
  writeSegment,
} from "../../lib/layers/lsmt/mod.ts";
import { FormatError, viewOf } from "../../lib/io/mod.ts";
import { rawEntry, seeded } from "../testutil/lsmt_image.ts";

Deno.test("HT fields ascend without overlap and end at USED", () => {
  const sizes: Record<string, number> = {
    magic0: 8,
    magic1: 16,
    size: 4,
    flags: 4,
    indexOffset: 8,
    indexSize: 8,
    virtualSize: 8,
    uuid: 37,
    parentUuid: 37,
    reserved: 2,
    version: 1,
    subVersion: 1,
    userTag: 256,
  };
  let at = 0;
  for (const [field, size] of Object.entries(sizes)) {
    assert.equal(HT[field as keyof typeof HT], at, field);
    at += size;
  }
  assert.equal(at, HT.USED);
});

Deno.test("writeHeaderTrailer() then readHeaderTrailer() is identity", () => {
  const fields = {
    flags: FLAG.data | FLAG.sealed,
    indexOffset: 2 ** 40 + 512,
    indexCount: 999_999,
    virtualSize: 64 * 2 ** 30,
    uuid: "11111111-2222-3333-4444-5555555555AF",
    parentUuid: NULL_UUID,
    userTag: "x".repeat(256),
  };
  const bytes = writeHeaderTrailer(fields);
  assert.equal(bytes.length, 4096);
  assert.deepEqual(readHeaderTrailer(bytes, "trailer", 0), fields);
  assert.ok(hasLsmtMagic(bytes));
  assert.ok(bytes.subarray(390).every((b) => b === 0));
  assert.throws(
    () => writeHeaderTrailer({ ...fields, userTag: "x".repeat(257) }),
    RangeError,
  );
  assert.throws(
    () => writeHeaderTrailer({ ...fields, uuid: "nonsense" }),
    TypeError,
  );
});

Deno.test("every bit of both magics counts", () => {
  const good = writeHeaderTrailer({
    flags: 6,
    indexOffset: 0,
    indexCount: 0,
    virtualSize: 0,
    uuid: NULL_UUID,
    parentUuid: NULL_UUID,
    userTag: "",
  });
  for (let bit = 0; bit < 24 * 8; bit++) {
    const bad = good.slice();
    bad[bit >> 3]! ^= 1 << (bit & 7);
    assert.throws(() => readHeaderTrailer(bad, "header", 0), FormatError);
  }
});

Deno.test("readSegment() and writeSegment() agree with a BigInt oracle", () => {
  const random = seeded(1);
  const edges = [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 50 - 1];
  const pick = (limit: number) =>
    random() < 0.3
      ? Math.min(edges[Math.floor(random() * edges.length)]!, limit - 1)
      : Math.floor(random() * limit);
  for (let i = 0; i < 20_000; i++) {
    const segment = {
      offset: pick(2 ** 50),
      length: random() < 0.2 ? 16383 : pick(2 ** 14),
      moffset: pick(2 ** 53),
      zeroed: random() < 0.5,
      tag: pick(256),
    };
    const want = rawEntry(segment);
    assert.deepEqual(readSegment(viewOf(want), 0), segment);
    const got = new Uint8Array(18).fill(0xaa);
    writeSegment(viewOf(got), 1, segment);
    assert.deepEqual(got.subarray(1, 17), want);
    assert.equal(got[0], 0xaa);
    assert.equal(got[17], 0xaa);
  }
});

Deno.test("entries look as overlaybd writes them", () => {
  const cases: [string, Parameters<typeof writeSegment>[2]][] = [
    ["00000000000020000800000000000000", {
      offset: 0,
      length: 8,
      moffset: 8,
      zeroed: false,
      tag: 0,
    }],
    ["10000000000010001900000000008000", {
      offset: 16,
      length: 4,
      moffset: 25,
      zeroed: true,
      tag: 0,
    }],
  ];
  for (const [hex, segment] of cases) {
    const bytes = new Uint8Array(16);
    writeSegment(viewOf(bytes), 0, segment);
    assert.equal(bytes.toHex(), hex);
  }
  const padding = new Uint8Array(16);
  writePadding(viewOf(padding), 0);
  assert.equal(padding.toHex(), "ffffffffffff03000000000000000000");
  assert.equal(readSegment(viewOf(padding), 0).offset, PADDING_OFFSET);
});

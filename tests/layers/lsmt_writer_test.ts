import assert from "node:assert/strict";
import {
  LayerWriter,
  LsmtSource,
  openLayer,
  type StackLayer,
  WarpMap,
  writeWarpLayer,
  writeWarpLayers,
} from "../../lib/layers/mod.ts";
import {
  equalBytes,
  LimitError,
  MemorySink,
  MemorySource,
  readBytes,
} from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";
import { checkLsmt } from "../testutil/overlaybd_rules.ts";

const SECTORS = 3000;
const SIZE = SECTORS * 512;

interface Piece {
  kind: "data" | "zero" | "target";
  offset: number;
  length: number;
  from: number;
}

/** Disjoint random pieces in random order, and the device that they make. */
function randomPieces(seed: number, kinds: Piece["kind"][]) {
  const random = seeded(seed);
  const target = Uint8Array.from(
    { length: SIZE },
    () => Math.floor(random() * 256),
  );
  const shadow = new Uint8Array(SIZE).fill(0xdd); // as the layer below
  const pieces: Piece[] = [];
  for (let at = Math.floor(random() * 3); at < SECTORS;) {
    const length = Math.min(1 + Math.floor(random() ** 3 * 80), SECTORS - at);
    const kind = kinds[Math.floor(random() * kinds.length)]!;
    const from = Math.floor(random() * (SECTORS - length)) * 512;
    const piece = { kind, offset: at * 512, length: length * 512, from };
    pieces.push(piece);
    const range = shadow.subarray(piece.offset, piece.offset + piece.length);
    if (kind === "zero") range.fill(0);
    else range.set(target.subarray(from, from + piece.length));
    at += length + (random() < 0.5 ? 0 : Math.floor(random() * 9));
  }
  for (let i = pieces.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [pieces[i], pieces[j]] = [pieces[j]!, pieces[i]!];
  }
  return { pieces, target, shadow };
}

async function deviceOf(layers: StackLayer[]): Promise<Uint8Array> {
  const full = new MemorySink();
  const base = await LayerWriter.start(full, "native", { virtualSize: SIZE });
  await base.write(0, new Uint8Array(SIZE).fill(0xdd));
  await base.finish();
  const below = await openLayer(new MemorySource(full.bytes()));
  await using device = new LsmtSource([below, ...layers], SIZE);
  return await readBytes(device, 0, SIZE);
}

Deno.test("LayerWriter: native layers read as written", async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const { pieces, target, shadow } = randomPieces(seed, ["data", "zero"]);
    const sink = new MemorySink();
    const writer = await LayerWriter.start(sink, "native", {
      virtualSize: SIZE,
      uuid: "11111111-2222-3333-4444-555555555555",
      userTag: "tag",
    });
    for (const p of pieces) {
      if (p.kind === "zero") writer.zero(p.offset, p.length);
      else {
        await writer.write(
          p.offset,
          target.subarray(p.from, p.from + p.length),
        );
      }
    }
    const summary = await writer.finish();
    const entries = checkLsmt(sink.bytes(), "native", SIZE);
    assert.equal(summary.size, sink.length);
    assert.equal(summary.entryCount, entries.length);
    const layer = await openLayer(new MemorySource(sink.bytes()), "native");
    assert.equal(layer.uuid, "11111111-2222-3333-4444-555555555555");
    assert.equal(layer.userTag, "tag");
    const got = await deviceOf([layer]);
    assert.ok(equalBytes(got, shadow), `seed ${seed}`);
  }
});

Deno.test("writeWarpLayers(): warp layers read as written, whole or split", async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const { pieces, target, shadow } = randomPieces(
      seed,
      ["data", "zero", "target", "target", "target"],
    );
    for (const maxEntries of [1_000_000, 40, 3]) {
      const map = new WarpMap();
      for (const p of pieces) {
        if (p.kind === "zero") map.addZeroed(p.offset, p.length);
        if (p.kind === "target") map.addTarget(p.offset, p.length, p.from);
      }
      const blocks = pieces.filter((p) => p.kind === "data").map((p) => ({
        offset: p.offset,
        bytes: target.subarray(p.from, p.from + p.length),
      }));
      const sinks: MemorySink[] = [];
      const summaries = await writeWarpLayers({
        open: (index) => {
          assert.equal(index, sinks.length);
          sinks.push(new MemorySink());
          return Promise.resolve(sinks[index]!);
        },
        close: (index, summary) => {
          assert.equal(summary.size, sinks[index]!.length);
          return Promise.resolve();
        },
      }, { virtualSize: SIZE, map, blocks, maxEntries });
      assert.equal(summaries.length, sinks.length);
      if (maxEntries === 1_000_000) assert.equal(sinks.length, 1);
      const layers = await Promise.all(sinks.map(async (sink) => {
        const entries = checkLsmt(sink.bytes(), "warp", SIZE);
        assert.ok(entries.length <= maxEntries);
        return {
          ...await openLayer(new MemorySource(sink.bytes()), "warp"),
          target: new MemorySource(target),
        };
      }));
      const got = await deviceOf(layers);
      assert.ok(equalBytes(got, shadow), `seed ${seed}`);
    }
  }
});

Deno.test("writers: the same ranges in another order give the same index", async () => {
  const { pieces } = randomPieces(3, ["zero", "target"]);
  const make = async (list: Piece[]) => {
    const map = new WarpMap();
    for (const p of list) {
      if (p.kind === "zero") map.addZeroed(p.offset, p.length);
      else map.addTarget(p.offset, p.length, p.from);
    }
    const sink = new MemorySink();
    await writeWarpLayer(sink, { virtualSize: SIZE, map, blocks: [] });
    return sink.bytes().slice();
  };
  assert.deepEqual(await make(pieces), await make(pieces.toReversed()));
});

Deno.test("LayerWriter splits runs at 16383 sectors and joins neighbours", async () => {
  const virtualSize = 64 * 2 ** 30;
  const block = new Uint8Array(4096).fill(1);
  for (const sectors of [1, 16382, 16383, 16384, 32766, 32767, 100_000]) {
    const map = new WarpMap();
    for (let at = 0; at < sectors; at += 1000) {
      const length = Math.min(1000, sectors - at) * 512;
      map.addTarget(2 ** 20 + at * 512, length, 512 * (77 + at));
    }
    map.addZeroed(2 ** 35, sectors * 512);
    const sink = new MemorySink();
    await writeWarpLayer(sink, {
      virtualSize,
      map,
      blocks: [{ offset: 0, bytes: block }, { offset: 4096, bytes: block }],
    });
    const entries = checkLsmt(sink.bytes(), "warp", virtualSize);
    const runs = Math.ceil(sectors / 16383);
    assert.equal(entries.length, 1 + 2 * runs);
    assert.equal(entries[0]!.length, 16);
    assert.equal(entries[runs]!.moffset, 77 + (runs - 1) * 16383);
  }
});

Deno.test("LayerWriter: an empty native layer has no index", async () => {
  const sink = new MemorySink();
  const writer = await LayerWriter.start(sink, "native", { virtualSize: 512 });
  assert.deepEqual(await writer.finish(), {
    size: 8192,
    entryCount: 0,
    dataSize: 0,
  });
  assert.equal(checkLsmt(sink.bytes(), "native", 512).length, 0);
});

Deno.test("LayerWriter refuses what would be read wrongly", async () => {
  const start = (kind: "native" | "warp" = "native") =>
    LayerWriter.start(new MemorySink(), kind, { virtualSize: 8192 });
  const block = new Uint8Array(512);
  for (const virtualSize of [-512, 100, 2 ** 49 + 512, NaN]) {
    await assert.rejects(
      LayerWriter.start(new MemorySink(), "native", { virtualSize }),
      RangeError,
    );
  }
  const writer = await start();
  await assert.rejects(writer.write(100, block), RangeError);
  await assert.rejects(writer.write(0, new Uint8Array(100)), RangeError);
  await assert.rejects(writer.write(8192, block), RangeError);
  assert.throws(() => writer.zero(7680, 1024), RangeError);
  assert.throws(() => writer.map(0, 512, 0), TypeError);
  await writer.write(512, block);
  writer.zero(0, 1024);
  await assert.rejects(writer.finish(), /sector 1 twice/);
  const remote = await start("warp");
  remote.map(0, 512, 0);
  await assert.rejects(remote.finish(), /entry of its own/);
  assert.throws(() => new WarpMap().addTarget(0, 512, 3), RangeError);
});

Deno.test("writeWarpLayers() finds overlaps between its layers", async () => {
  const map = new WarpMap();
  for (let i = 0; i < 50; i++) map.addTarget(i * 2048 + 1024, 512, 0);
  const blocks = Array.from({ length: 50 }, (_, i) => ({
    offset: i * 2048,
    bytes: new Uint8Array(i === 7 ? 1536 : 512),
  }));
  await assert.rejects(
    writeWarpLayers({
      open: () => Promise.resolve(new MemorySink()),
      close: () => Promise.resolve(),
    }, { virtualSize: SIZE, map, blocks, maxEntries: 10 }),
    /twice/,
  );
});

Deno.test("a million entries are written, one more is refused", async () => {
  const virtualSize = 64 * 2 ** 30;
  const write = async (count: number) => {
    const map = new WarpMap();
    for (let i = 1; i < count; i++) map.addTarget(i * 8192, 4096, i * 512);
    const sink = new MemorySink();
    const blocks = [{ offset: 0, bytes: new Uint8Array(512) }];
    await writeWarpLayer(sink, { virtualSize, map, blocks });
    return sink;
  };
  const sink = await write(1_000_000);
  const layer = await openLayer(new MemorySource(sink.bytes()), "warp");
  assert.equal(layer.entryCount, 1_000_000);
  await assert.rejects(write(1_000_001), LimitError);
});

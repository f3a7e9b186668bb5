/**
 * Loading the merged index of a stack of 100 layers with 10,000 entries each:
 * every layer's index read and checked, then all merged. Budget: 200 ms.
 *
 * `deno run -A bench/merged_index.ts [--layers N] [--entries N] [--rounds N]`
 *
 * Three shapes: layers that each lie behind the one before (`behind`, what a
 * build makes as long as the device has room), layers over each other all over
 * the device (`over`), and a base with nearly everything under many small
 * layers (`base`). Prints medians in milliseconds, and the same as multiples of
 * sorting as many random 64-bit keys (typed array, native), as a measure of the
 * machine.
 */

import { cpuUsage } from "node:process";
import { parseArgs } from "node:util";
import { MemorySink, MemorySource } from "../lib/io/mod.ts";
import { LayerWriter, mergeTables, openLsmtLayer } from "../lib/layers/mod.ts";
import { Random } from "../tests/testutil/random_layers.ts";

const SECTOR = 512;
const BUDGET_MS = 200;

const { values } = parseArgs({
  options: {
    layers: { type: "string", default: "100" },
    entries: { type: "string", default: "10000" },
    rounds: { type: "string", default: "9" },
  },
});
const layerCount = Number(values.layers);
const entryCount = Number(values.entries);

/** A warp layer that maps `count` ranges of 1 to 16 sectors between two places, each apart from the next. */
async function makeLayer(
  random: Random,
  count: number,
  from: number,
  to: number,
): Promise<MemorySource> {
  const sink = new MemorySink();
  const virtualSize = 2 ** 40;
  const layer = await LayerWriter.start(sink, "warp", { virtualSize });
  const step = Math.floor((to - from) / count);
  await layer.write(from * SECTOR, new Uint8Array(SECTOR));
  for (let i = 1; i < count; i++) {
    const offset = from + i * step + random.below(Math.max(1, step >> 2));
    const length = 1 + random.below(Math.max(1, Math.min(16, step >> 1)));
    const position = random.below(2 ** 24);
    layer.map(offset * SECTOR, length * SECTOR, position * SECTOR);
  }
  await layer.finish();
  return new MemorySource(sink.bytes());
}

const SHAPES: Record<string, (random: Random) => Promise<MemorySource[]>> = {
  behind: (random) =>
    Promise.all(Array.from({ length: layerCount }, (_, i) => {
      const size = entryCount * 20;
      return makeLayer(random, entryCount, i * size, (i + 1) * size);
    })),
  over: (random) =>
    Promise.all(Array.from({ length: layerCount }, () => {
      const from = random.below(entryCount);
      return makeLayer(random, entryCount, from, from + entryCount * 20);
    })),
  base: (random) => {
    const total = layerCount * entryCount;
    const large = Math.floor(total * 0.9);
    const small = Math.max(2, Math.floor((total - large) / (layerCount - 1)));
    return Promise.all(
      Array.from(
        { length: layerCount },
        (_, i) =>
          i === 0
            ? makeLayer(random, large, 0, large * 20)
            : makeLayer(random, small, 0, large * 20),
      ),
    );
  },
};

const median = (list: number[]) =>
  list.toSorted((a, b) => a - b)[list.length >> 1]!;

/** Milliseconds to sort as many random keys as the layers have entries. */
function sortKeys(): number {
  const random = new Random(1);
  const keys = new BigUint64Array(layerCount * entryCount);
  const halves = new Uint32Array(keys.buffer);
  for (let i = 0; i < halves.length; i++) halves[i] = random.below(2 ** 32);
  const start = performance.now();
  keys.sort();
  return performance.now() - start;
}

for (const [shape, make] of Object.entries(SHAPES)) {
  const layers = await make(new Random(5));
  const times = { load: [], cpu: [], merge: [], reference: [] } as Record<
    string,
    number[]
  >;
  let rows = 0;
  for (let round = 0; round < Number(values.rounds); round++) {
    const before = cpuUsage();
    const start = performance.now();
    const tables = [];
    for (const layer of layers) {
      tables.push((await openLsmtLayer(layer, "warp")).table);
    }
    const opened = performance.now();
    rows = mergeTables(tables).count;
    const end = performance.now();
    const { user, system } = cpuUsage(before);
    times.load!.push(end - start);
    times.cpu!.push((user + system) / 1000);
    times.merge!.push(end - opened);
    times.reference!.push(sortKeys());
  }
  const round = (value: number) => Math.round(value * 100) / 100;
  const load = median(times.load!);
  const reference = median(times.reference!);
  console.log(JSON.stringify({
    bench: "merged_index",
    shape,
    layers: layerCount,
    entries: layerCount * entryCount,
    rows,
    loadMs: round(load),
    cpuMs: round(median(times.cpu!)),
    slowestMs: round(Math.max(...times.load!)),
    mergeMs: round(median(times.merge!)),
    referenceMs: round(reference),
    ratio: round(load / reference),
    budgetMs: BUDGET_MS,
  }));
}

/**
 * How much memory does `obd build` take? Peak RSS (VmHWM) of the whole process
 * for 50,000 entries, for 200,000, and for a layer of 2 GB. Budget: 200 MB up
 * to 50,000 entries, and 1 KiB for each further one, whatever the layers'
 * bytes.
 *
 * `deno run -A bench/build_memory.ts [--case NAME] [--jobs N]`
 *
 * Writes one JSON line per case: peak in bytes, the budget, and whether it held.
 */

import { parseArgs } from "node:util";
import { file, tarEntry } from "../tests/testutil/oci_image.ts";
import {
  buildPeak,
  manyFiles,
  memoryBudget,
  MIB,
  writeImage,
} from "./generated_image.ts";

interface Case {
  name: string;
  entries: number;
  /** Pieces of each layer's tar. */
  layers: (() => Iterable<Uint8Array>)[];
}

/** Few files, many bytes. */
function* manyBytes(gigabytes: number): Iterable<Uint8Array> {
  const size = 100_000_000;
  const piece = new Uint8Array(MIB);
  for (let i = 0; i < piece.length; i++) piece[i] = (i >> 8) & 0xff;
  for (let i = 0; i < gigabytes * 10; i++) {
    // A header for the whole body, then the body in pieces.
    const head = tarEntry(file(`blob-${i}`, new Uint8Array(0))).slice();
    head.set(new TextEncoder().encode(size.toString(8).padStart(11, "0")), 124);
    head.fill(32, 148, 156);
    const sum = head.reduce((a, b) => a + b, 0);
    head.set(
      new TextEncoder().encode(`${sum.toString(8).padStart(6, "0")}\0 `),
      148,
    );
    yield head;
    for (let at = 0; at < size; at += piece.length) {
      yield piece.subarray(0, Math.min(piece.length, size - at));
    }
    yield new Uint8Array((512 - size % 512) % 512);
  }
  yield new Uint8Array(1024);
}

const CASES: Case[] = [
  {
    name: "50,000 entries in 3 layers",
    entries: 50_000,
    layers: ["base", "python", "app"].map((name, i) => () =>
      manyFiles(name, [30_000, 12_000, 6_080][i]!)
    ),
  },
  {
    name: "200,000 entries in 2 layers",
    entries: 200_000,
    layers: ["base", "app"].map((name) => () => manyFiles(name, 96_150)),
  },
  { name: "2 GB layer", entries: 20, layers: [() => manyBytes(2)] },
];

async function main(): Promise<void> {
  const { values } = parseArgs({
    args: Deno.args,
    options: { case: { type: "string" }, jobs: { type: "string" } },
  });
  for (const each of CASES) {
    if (values.case && !each.name.includes(values.case)) continue;
    const layout = await Deno.makeTempDir({ prefix: "obd-bench-" });
    try {
      await writeImage(layout, each.layers);
      const { peak, seconds } = await buildPeak(layout, values.jobs);
      const budget = memoryBudget(each.entries);
      console.log(JSON.stringify({
        bench: "build_memory",
        case: each.name,
        peakMiB: Math.round(peak / MIB),
        budgetMiB: Math.round(budget / MIB),
        ratio: Number((peak / budget).toFixed(2)),
        isWithin: peak <= budget,
        seconds: Number(seconds.toFixed(1)),
      }));
    } finally {
      await Deno.remove(layout, { recursive: true });
    }
  }
}

await main();

/**
 * How much does it help that many readers wait at once? Reads of 4 KiB at
 * random, each of another span, with empty caches and a registry that is 10 ms
 * away: one reader against sixteen, alternating in one run. Budget: sixteen get
 * at least 8 times the reads per second of one.
 *
 * `deno run -A bench/cold_parallel.ts [--rtt MS] [--rounds N] [--reads N]`
 *
 * Writes one JSON line per measurement and one for the summary.
 */

import process from "node:process";
import { parseArgs } from "node:util";
import {
  median,
  openCold,
  pushDebianImage,
  seededRandom,
} from "./far_image.ts";
import { FarRegistry } from "./far_registry.ts";

const READ_BYTES = 4096;
/** Reads are this far from each other: more than a span. */
const DISTANCE_BYTES = 1.5 * 2 ** 20;
const READERS = 16;

const { values } = parseArgs({
  args: Deno.args,
  options: {
    rtt: { type: "string", default: "10" },
    rounds: { type: "string", default: "3" },
    reads: { type: "string", default: "128" },
    format: { type: "string", default: "turbo" },
  },
});

interface Measured {
  readers: number;
  reads: number;
  seconds: number;
  readsPerSecond: number;
  requests: number;
  fetchedBytes: number;
  cpuSeconds: number;
  /** Of the registry and the link, which share the machine with what is measured. */
  farCpuSeconds: number;
}

async function measure(
  registry: FarRegistry,
  dir: string,
  readers: number,
  count: number,
): Promise<Measured> {
  const host = await registry.link({ rttMs: Number(values.rtt) });
  const tag = values.format === "turbo" ? "v1-obd" : "v1-overlaybd";
  await using cold = await openCold(`${host}/app:${tag}`, dir);
  const { source } = cold.image;
  const places = somePlaces(source, count);
  const before = await registry.traffic();
  const cpu = process.cpuUsage();
  const started = performance.now();
  const lane = async () => {
    const dst = new Uint8Array(READ_BYTES);
    for (let at; (at = places.pop()) !== undefined;) {
      if (!source.preadNow(dst, at)) await source.pread(dst, at);
    }
  };
  await Promise.all(Array.from({ length: readers }, lane));
  const seconds = (performance.now() - started) / 1000;
  const used = process.cpuUsage(cpu);
  const after = await registry.traffic();
  return {
    readers,
    reads: count,
    seconds,
    readsPerSecond: count / seconds,
    requests: after.requests - before.requests,
    fetchedBytes: after.bytes - before.bytes,
    cpuSeconds: (used.user + used.system) / 1e6,
    farCpuSeconds: after.cpuSeconds - before.cpuSeconds,
  };
}

/** Offsets on the device whose bytes come from far apart in the layers, in random order. */
function somePlaces(
  source: Awaited<ReturnType<typeof openCold>>["image"]["source"],
  count: number,
): number[] {
  const places: number[] = [];
  let content = 0;
  let next = 0;
  for (const extent of source.extents(0, source.size)) {
    if (extent.kind !== "data") continue;
    let device = extent.offset;
    // Layers hold their content about in the device's order.
    for (const origin of source.origins(extent.offset, extent.length)) {
      if (origin.isTarget || values.format !== "turbo") {
        for (; next + READ_BYTES <= content + origin.length;) {
          places.push(device + Math.max(0, next - content));
          next = Math.max(next, content) + DISTANCE_BYTES;
        }
        content += origin.length;
      }
      device += origin.length;
    }
  }
  if (places.length < count) {
    throw new Error(`The image has ${places.length} places only`);
  }
  const random = seededRandom(7);
  for (let i = places.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [places[i], places[j]] = [places[j]!, places[i]!];
  }
  return places.slice(0, count);
}

async function main(): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-cold-parallel-" });
  try {
    await using registry = await FarRegistry.start();
    await pushDebianImage(registry, dir);
    const results = new Map<number, Measured[]>([[1, []], [READERS, []]]);
    for (let round = 0; round < Number(values.rounds); round++) {
      for (const [readers, rows] of results) {
        const result = await measure(
          registry,
          dir,
          readers,
          Number(values.reads),
        );
        rows.push(result);
        console.log(JSON.stringify({ round, ...result }));
      }
    }
    const middle = (readers: number, of: (row: Measured) => number) =>
      median(results.get(readers)!.map(of));
    const one = middle(1, (row) => row.readsPerSecond);
    const many = middle(READERS, (row) => row.readsPerSecond);
    console.log(JSON.stringify({
      bench: "cold_parallel",
      deno: Deno.version.deno,
      arch: Deno.build.arch,
      cores: navigator.hardwareConcurrency,
      rttMs: Number(values.rtt),
      format: values.format,
      one,
      many,
      ratio: many / one,
      budget: 8,
      // Of many readers; wall time × cores bounds the sum.
      cpuMsPerRead: middle(READERS, (row) => 1000 * row.cpuSeconds / row.reads),
      farCpuMsPerRead: middle(
        READERS,
        (row) => 1000 * row.farCpuSeconds / row.reads,
      ),
    }));
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

await main();

/**
 * How much does it help that many readers wait at once? Reads of 4 KiB at
 * random, each of a place that was not read yet, with empty caches and a
 * registry that is 10 ms away: one reader against sixteen, alternating in one
 * run. Budget: sixteen get at least 8 times the reads per second of one.
 *
 * `deno run -A bench/cold_parallel.ts [--rtt MS] [--rounds N] [--case NAME]…`
 *
 * Writes one JSON line per measurement and one per case.
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
const READERS = 16;
/** Reads before the clock: threads start, code is compiled. */
const FIRST_READS = 24;
const MAX_READS = 256;
const KIB = 1024;

/** How the same image is stored, and how far reads are from each other: more than what is fetched for one. */
interface Case {
  image: string;
  /** Its layers keep their content themselves. */
  isNative?: boolean;
  distanceBytes: number;
  spanSize?: number;
}

const CASES: Readonly<Record<string, Case>> = {
  native: {
    image: "app:v1-overlaybd",
    isNative: true,
    distanceBytes: 512 * KIB,
  },
  turbo: { image: "app:v1-obd", distanceBytes: 1536 * KIB },
  // For what is read at random: `obd build --span-size 256`.
  "turbo-short-spans": {
    image: "short:v1-obd",
    distanceBytes: 512 * KIB,
    spanSize: 256 * KIB,
  },
};

const { values } = parseArgs({
  args: Deno.args,
  options: {
    rtt: { type: "string", default: "10" },
    rounds: { type: "string", default: "3" },
    case: { type: "string", multiple: true, default: Object.keys(CASES) },
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

type Source = Awaited<ReturnType<typeof openCold>>["image"]["source"];

async function measure(
  registry: FarRegistry,
  dir: string,
  stored: Case,
  readers: number,
): Promise<Measured> {
  const host = await registry.link({ rttMs: Number(values.rtt) });
  await using cold = await openCold(`${host}/${stored.image}`, dir);
  const { source } = cold.image;
  const places = somePlaces(source, stored);
  await readAll(source, places.splice(0, FIRST_READS), READERS);
  const reads = places.length;
  const before = await registry.traffic();
  const cpu = process.cpuUsage();
  const started = performance.now();
  await readAll(source, places, readers);
  const seconds = (performance.now() - started) / 1000;
  const used = process.cpuUsage(cpu);
  const after = await registry.traffic();
  return {
    readers,
    reads,
    seconds,
    readsPerSecond: reads / seconds,
    requests: after.requests - before.requests,
    fetchedBytes: after.bytes - before.bytes,
    cpuSeconds: (used.user + used.system) / 1e6,
    farCpuSeconds: after.cpuSeconds - before.cpuSeconds,
  };
}

/** Reads all places, so many at once. Empties the list. */
async function readAll(
  source: Source,
  places: number[],
  readers: number,
): Promise<void> {
  const lane = async () => {
    const dst = new Uint8Array(READ_BYTES);
    for (let at; (at = places.pop()) !== undefined;) {
      if (!source.preadNow(dst, at)) await source.pread(dst, at);
    }
  };
  await Promise.all(Array.from({ length: readers }, lane));
}

/** Offsets on the device whose bytes come from far apart in the layers, in random order. */
function somePlaces(
  source: Source,
  { isNative = false, distanceBytes }: Case,
): number[] {
  const places: number[] = [];
  let content = 0;
  let next = 0;
  for (const extent of source.extents(0, source.size)) {
    if (extent.kind !== "data") continue;
    let device = extent.offset;
    // Layers hold their content about in the device's order. A TurboOCI layer's
    // own file is metadata, which came with the meta image.
    for (const origin of source.origins(extent.offset, extent.length)) {
      if (origin.isTarget || isNative) {
        for (; next + READ_BYTES <= content + origin.length;) {
          places.push(device + Math.max(0, next - content));
          next = Math.max(next, content) + distanceBytes;
        }
        content += origin.length;
      }
      device += origin.length;
    }
  }
  const random = seededRandom(7);
  for (let i = places.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [places[i], places[j]] = [places[j]!, places[i]!];
  }
  if (places.length < 2 * FIRST_READS) {
    throw new Error(`The image has ${places.length} places only`);
  }
  return places.slice(0, FIRST_READS + MAX_READS);
}

async function main(): Promise<void> {
  const cases = values.case.map((name) => {
    const stored = CASES[name];
    if (!stored) throw new Error(`No case "${name}"`);
    return { name, ...stored };
  });
  const dir = await Deno.makeTempDir({ prefix: "obd-cold-parallel-" });
  try {
    await using registry = await FarRegistry.start();
    const sizes = new Map<string, { metaBytes: number; imageBytes: number }>();
    for (const { image, spanSize } of cases) {
      const name = image.split(":")[0]!;
      if (sizes.has(name)) continue;
      sizes.set(name, await pushDebianImage(registry, dir, { name, spanSize }));
    }
    const rows: (Measured & { name: string })[] = [];
    for (let round = 0; round < Number(values.rounds); round++) {
      for (const stored of cases) {
        for (const readers of [1, READERS]) {
          const result = await measure(registry, dir, stored, readers);
          rows.push({ name: stored.name, ...result });
          console.log(JSON.stringify({ round, case: stored.name, ...result }));
        }
      }
    }
    for (const { name, image, isNative } of cases) {
      const middle = (readers: number, of: (row: Measured) => number) =>
        median(
          rows.filter((r) => r.name === name && r.readers === readers).map(of),
        );
      const one = middle(1, (row) => row.readsPerSecond);
      const many = middle(READERS, (row) => row.readsPerSecond);
      const { metaBytes, imageBytes } = sizes.get(image.split(":")[0]!)!;
      console.log(JSON.stringify({
        bench: "cold_parallel",
        deno: Deno.version.deno,
        arch: Deno.build.arch,
        cores: navigator.hardwareConcurrency,
        rttMs: Number(values.rtt),
        case: name,
        one,
        many,
        ratio: many / one,
        budget: 8,
        // Of many readers; wall time × cores bounds the sum.
        cpuMsPerRead: middle(
          READERS,
          (row) => 1000 * row.cpuSeconds / row.reads,
        ),
        farCpuMsPerRead: middle(
          READERS,
          (row) => 1000 * row.farCpuSeconds / row.reads,
        ),
        ...(isNative ? {} : { metaPercent: 100 * metaBytes / imageBytes }),
      }));
    }
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

await main();

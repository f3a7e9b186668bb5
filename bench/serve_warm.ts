/**
 * Warm reads over NBD through a real `obd serve` of a real built image, against
 * `nbdkit file` on its dump: same client, taking turns, same run.
 *
 * Budget: sequential ≥ 0.8 × nbdkit, 4 KiB random at
 * depth 16 ≥ 1.0 ×.
 *
 *     deno run -A bench/serve_warm.ts [--layout DIR] [--image TAG] [--rounds 5] [--seconds 1] [--only NAME]
 *
 * DIR is an OCI layout with a meta image at TAG (default `v1-obd`); without it
 * the Debian test image is made and built. Only data is read: holes are what
 * nobody waits for. Everything is in both caches and in the page cache when the
 * measuring begins. Prints a JSON line per figure.
 */

import { parseArgs } from "node:util";
import { readBytes } from "../lib/io/mod.ts";
import { NbdClient } from "../lib/nbd/mod.ts";
import { obd, ServeProcess, writeConfig } from "../tests/serve/harness.ts";
import { builtDebianLayout, dataExtents } from "./serve_image.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    layout: { type: "string" },
    image: { type: "string", default: "v1-obd" },
    only: { type: "string", default: "" },
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "1" },
  },
});

const SEQUENTIAL_BYTES = 256 * 1024;
const BLOCK = 4096;
const BUDGET = { sequential: 0.8, random: 1.0 };

/** Where the image has data, in pieces of one size. */
interface Data {
  sequential: number[];
  blocks: number[];
}

async function findData(client: NbdClient): Promise<Data> {
  const data: Data = { sequential: [], blocks: [] };
  for await (const { offset, length } of dataExtents(client)) {
    const end = offset + length;
    for (
      let at = offset;
      at + SEQUENTIAL_BYTES <= end;
      at += SEQUENTIAL_BYTES
    ) {
      data.sequential.push(at);
    }
    const first = Math.ceil(offset / BLOCK) * BLOCK;
    for (let at = first; at + BLOCK <= end; at += BLOCK) data.blocks.push(at);
  }
  return data;
}

/** Reads these places with `depth` requests under way, until the time is over; reads per second. */
async function measure(
  uri: string,
  places: (n: number) => number,
  length: number,
  depth: number,
): Promise<number> {
  await using client = await NbdClient.connect(uri);
  const start = performance.now();
  const end = start + Number(values.seconds) * 1000;
  let next = 0;
  const lane = async () => {
    const dst = new Uint8Array(length);
    while (performance.now() < end) {
      await client.readRequest(dst, places(next++));
    }
  };
  await Promise.all(Array.from({ length: depth }, lane));
  return next / (performance.now() - start) * 1000;
}

/** Processor time of a process so far, in seconds. */
function cpuSeconds(pid: number): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  // utime and stime (proc(5) 14 and 15) in ticks of 10 ms.
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

function median(numbers: number[]): number {
  return numbers.toSorted((a, b) => a - b)[numbers.length >> 1]!;
}

const dir = await Deno.makeTempDir({ prefix: "obd-bench-" });
const children: Deno.ChildProcess[] = [];
try {
  const layout = values.layout ?? await builtDebianLayout(dir);
  const image = `oci:${layout}:${values.image}`;
  const raw = `${dir}/app.raw`;
  const dumped = await obd("dump", "-q", image, raw);
  if (dumped.code !== 0) throw new Error(dumped.stderr);
  const socket = `${dir}/nbdkit.sock`;
  const nbdkit = new Deno.Command("nbdkit", {
    args: ["-f", "-r", "-U", socket, "file", raw],
    stdin: "null",
  }).spawn();
  children.push(nbdkit);
  const config = await writeConfig(dir, [{ export: "app", image }], {
    workers: navigator.hardwareConcurrency,
    cacheConfig: { cacheDir: `${dir}/blobs`, cacheSizeGB: 2 },
    gzipCacheConfig: { cacheDir: `${dir}/gzip`, cacheSizeGB: 2 },
  });
  await using serve = await ServeProcess.start(config);
  const sides = {
    nbdkit: { uri: `nbd+unix:///?socket=${socket}`, pid: nbdkit.pid },
    obd: { uri: serve.uri("app"), pid: serve.pid },
  };
  const data = await warmUp(sides.obd.uri, sides.nbdkit.uri);
  console.log(JSON.stringify({
    bench: "serve_warm",
    dataMb: Math.round(data.blocks.length * BLOCK / 1e6),
    cpus: navigator.hardwareConcurrency,
    deno: Deno.version.deno,
  }));
  let state = 12345;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return data.blocks[state % data.blocks.length]!;
  };
  const sequential = (n: number) =>
    data.sequential[n % data.sequential.length]!;
  const figures = [
    {
      name: "sequential, 256 KiB, depth 4",
      unit: "MB/s",
      scale: SEQUENTIAL_BYTES / 1e6,
      budget: BUDGET.sequential,
      run: (uri: string) => measure(uri, sequential, SEQUENTIAL_BYTES, 4),
    },
    {
      name: "random 4 KiB, depth 1",
      unit: "reads/s",
      scale: 1,
      run: (uri: string) => measure(uri, random, BLOCK, 1),
    },
    {
      name: "random 4 KiB, depth 16",
      unit: "reads/s",
      scale: 1,
      budget: BUDGET.random,
      run: (uri: string) => measure(uri, random, BLOCK, 16),
    },
  ];
  for (const { name, unit, scale, budget, run } of figures) {
    if (!name.includes(values.only)) continue;
    const results = { obd: [] as number[], nbdkit: [] as number[] };
    const cpu = { obd: 0, nbdkit: 0 };
    const count = { obd: 0, nbdkit: 0 };
    // The first round warms up both.
    for (let round = 0; round <= Number(values.rounds); round++) {
      for (const side of ["nbdkit", "obd"] as const) {
        const { uri, pid } = sides[side];
        const before = cpuSeconds(pid);
        const start = performance.now();
        const perSecond = await run(uri);
        if (round === 0) continue;
        results[side].push(perSecond);
        cpu[side] += cpuSeconds(pid) - before;
        count[side] += perSecond * (performance.now() - start) / 1000;
      }
    }
    const [ours, theirs] = [median(results.obd), median(results.nbdkit)];
    const ratio = ours / theirs;
    console.log(JSON.stringify({
      name,
      unit,
      obd: Math.round(ours * scale),
      nbdkit: Math.round(theirs * scale),
      ratio: Number(ratio.toFixed(2)),
      ...(budget === undefined
        ? {}
        : { budget, isWithinBudget: ratio >= budget }),
      // Steady also on a machine that has other work.
      cpuUsPerRead: {
        obd: Number((cpu.obd * 1e6 / count.obd).toFixed(1)),
        nbdkit: Number((cpu.nbdkit * 1e6 / count.nbdkit).toFixed(1)),
      },
    }));
  }
} finally {
  for (const child of children) {
    child.kill("SIGKILL");
    await child.status;
  }
  await Deno.remove(dir, { recursive: true });
}

/** Reads all data of both once, and sees that it is the same. */
async function warmUp(ours: string, theirs: string): Promise<Data> {
  await using a = await NbdClient.connect(ours);
  await using b = await NbdClient.connect(theirs);
  const step = 4 * 1024 * 1024;
  for await (const { offset, length } of dataExtents(a)) {
    for (let at = offset; at < offset + length; at += step) {
      const count = Math.min(step, offset + length - at);
      const [x, y] = await Promise.all([
        readBytes(a, at, count),
        readBytes(b, at, count),
      ]);
      for (let i = 0; i < x.length; i++) {
        if (x[i] !== y[i]) throw new Error(`other bytes at ${at + i}`);
      }
    }
  }
  // Spans are written to the cache behind the reads.
  await new Promise((resolve) => setTimeout(resolve, 3000));
  return await findData(a);
}

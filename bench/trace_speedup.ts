/**
 * What does a recorded trace save of a cold start? The reads of a real program
 * start (python3 with a good part of its library, in the Debian test image, out
 * of a mount) are played again, with the same reads at once and the same
 * pauses, from an image with empty caches and a far registry: without and with
 * the trace, alternating in one run. The clock runs from the opening of the
 * image to the program's last read.
 *
 * Budgets: at 20 ms at least 1.5 times as fast with the trace; at 5 ms and
 * 500 Mbit/s at most 0.8 of the time.
 *
 * `deno run -A bench/trace_speedup.ts [--rounds N] [--rtt MS]
 * [--image v1-obd|v1-overlaybd]`
 *
 * Needs root, nbdfuse, a loop device. Writes one JSON line per measurement and
 * one per link for the summary.
 */

import process from "node:process";
import { parseArgs } from "node:util";
import {
  type OpenedImage,
  replayTrace,
  type TraceRecord,
  TraceRecorder,
} from "../lib/image/mod.ts";
import { silentLogger } from "../lib/io/mod.ts";
import { median, openCold, pushDebianImage } from "./far_image.ts";
import { type FarLink, FarRegistry } from "./far_registry.ts";
import { type Pattern, playPattern, recordStart } from "./start_pattern.ts";

const MODULES = [
  "asyncio, ctypes, decimal, email, http.server, json, logging.config",
  "multiprocessing, pydoc, sqlite3, ssl, unittest, urllib.request",
  "xml.dom.minidom, xmlrpc.client, zipfile",
].join(", ");
const COMMAND = ["python3", "-c", `import ${MODULES}`];

const RECORDINGS = 3;
const LINKS: (FarLink & { budget: number })[] = [
  { rttMs: 20, budget: 1.5 },
  { rttMs: 5, bytesPerSecond: 500e6 / 8, budget: 1 / 0.8 },
];

const { values } = parseArgs({
  args: Deno.args,
  options: {
    rounds: { type: "string", default: "5" },
    image: { type: "string", default: "v1-obd" },
    rtt: { type: "string" },
  },
});

interface Measured {
  withTrace: boolean;
  ms: number;
  openMs: number;
  requests: number;
  connections: number;
  fetchedBytes: number;
  cpuSeconds: number;
}

async function measure(
  reference: string,
  registry: FarRegistry,
  dir: string,
  pattern: Pattern,
  trace: readonly TraceRecord[] | undefined,
): Promise<Measured> {
  const cpu = process.cpuUsage();
  const started = performance.now();
  await using cold = await openCold(reference, dir);
  const openMs = performance.now() - started;
  const stop = new AbortController();
  const replay = trace && startReplay(cold.image, trace, stop.signal);
  await playPattern(cold.image.source, pattern);
  const ms = performance.now() - started;
  const used = process.cpuUsage(cpu);
  stop.abort();
  await replay?.catch(() => {});
  const { requests, connections, bytes } = await registry.traffic();
  return {
    withTrace: trace !== undefined,
    ms,
    openMs,
    requests,
    connections,
    fetchedBytes: bytes,
    cpuSeconds: (used.user + used.system) / 1e6,
  };
}

function startReplay(
  image: OpenedImage,
  trace: readonly TraceRecord[],
  signal: AbortSignal,
) {
  return replayTrace(image, trace, { logger: silentLogger, signal });
}

/** Pauses of a pattern, together. */
function thinkMs({ reads }: Pattern): number {
  return reads.reduce(
    (sum, read, i) =>
      i === 0 || reads[i - 1]!.after !== read.after ? sum + read.thinkMs : sum,
    0,
  );
}

/** The pattern of the start, recorded on an image whose caches are warm. */
async function record(
  registry: FarRegistry,
  dir: string,
): Promise<{ pattern: Pattern; trace: readonly TraceRecord[] }> {
  await using warm = await openCold(
    `${registry.host}/app:${values.image}`,
    dir,
  );
  // The first fills the caches; of the others the one that the machine disturbed least.
  await recordStart(warm.image.source, dir, COMMAND);
  const patterns: Pattern[] = [];
  for (let i = 0; i < RECORDINGS; i++) {
    patterns.push(await recordStart(warm.image.source, dir, COMMAND));
  }
  patterns.sort((a, b) => thinkMs(a) - thinkMs(b));
  const pattern = patterns[0]!;
  const recorder = new TraceRecorder();
  for (const { offset, length } of pattern.reads) recorder.note(offset, length);
  return { pattern, trace: recorder.records };
}

async function main(): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-trace-speedup-" });
  try {
    await using registry = await FarRegistry.start();
    await pushDebianImage(registry, dir);
    const { pattern, trace } = await record(registry, dir);
    console.log(JSON.stringify({
      reads: pattern.reads.length,
      readBytes: pattern.reads.reduce((sum, r) => sum + r.length, 0),
      thinkMs: thinkMs(pattern),
      traceBytes: trace.reduce((sum, r) => sum + r.length, 0),
    }));
    const links = values.rtt === undefined
      ? LINKS
      : [{ rttMs: Number(values.rtt), budget: 1.5 }];
    for (const { budget, ...link } of links) {
      const times = { with: [] as number[], without: [] as number[] };
      for (let round = 0; round < Number(values.rounds); round++) {
        for (const records of [undefined, trace]) {
          const host = await registry.link(link);
          const reference = `${host}/app:${values.image}`;
          const result = await measure(
            reference,
            registry,
            dir,
            pattern,
            records,
          );
          times[records ? "with" : "without"].push(result.ms);
          console.log(JSON.stringify({ round, ...link, ...result }));
        }
      }
      console.log(JSON.stringify({
        bench: "trace_speedup",
        deno: Deno.version.deno,
        arch: Deno.build.arch,
        cores: navigator.hardwareConcurrency,
        ...link,
        image: values.image,
        withoutMs: median(times.without),
        withMs: median(times.with),
        ratio: median(times.without) / median(times.with),
        budget,
      }));
    }
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

await main();

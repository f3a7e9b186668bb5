/** Results of a bench: what its lines of JSON say, and statistics over them. */

import type { LayerReads } from "../../lib/image/mod.ts";
import type { Measurement } from "./measurement.ts";
import { type Limit, readAmplification } from "./limit.ts";
import { type StageName, STAGES, stagesOf } from "./stages.ts";

/** One run of one contender. A failure is a result too. */
export interface RunResult {
  workload: string;
  contender: string;
  /** From 1. */
  round: number;
  /** Mean of the speed probes right before and right after it; absent in results of older versions. */
  probe?: ProbeTimes;
  measurement?: Measurement;
  failure?: string;
}

/** What the work of a speed probe took: the same always, so it is the machine's speed. */
export interface ProbeTimes {
  /** Until the last thread was done. */
  seconds: number;
  /** Of each thread: hardly changed by what else runs on the machine, unlike the seconds. */
  cpuSeconds: number;
}

/** Where it was measured, and how. */
export interface MachineFacts {
  cpu: string;
  cores: number;
  memoryBytes: number;
  kernel: string;
  /** Versions by program. */
  versions: Record<string, string>;
  commit: string | null;
  /** Source tree or bundle, and its digest; absent in results of older versions. */
  program?: string;
  /** When, in ISO 8601. */
  started: string;
  command: string[];
  /** `full` runs containers as root; `reduced` replays reads as an ordinary user. */
  mode: "full" | "reduced";
  /** What a reduced result does not have. */
  leavesOut: string[];
  /** What the speed probes time; absent in results of older versions. */
  probeMethod?: string;
  link: {
    rate: string | null;
    bytesPerSecond: number | null;
    rttMs: number;
    method: string;
  };
}

/** One image of a bench. */
export interface ImageFacts {
  workload: string;
  reference: string;
  digest: string;
  /** Of all layers. */
  compressedBytes: number;
  layers: { digest: string; size: number }[];
  build: BuildFacts;
  /** Of the native image, where there is one. */
  native?: BuildFacts & { layers: { digest: string; size: number }[] };
}

/** What a build cost. */
export interface BuildFacts {
  /** With what an earlier bench left in the registry: see `layersReused`. */
  seconds: number;
  /** Layers that had been built before; absent in results where nobody counted. */
  layersReused?: number;
  /** Of the meta image, or of the native image. */
  bytes: number;
  /** Of its manifest; absent in results of older versions. */
  digest?: string;
}

/** What a service reads until it is available, recorded once. */
export interface Touched {
  workload: string;
  /** Where recording failed; nothing else is known then. */
  failure?: string;
  /** Distinct blocks of 4 KiB, as bytes. */
  bytes: number;
  /** What they take as the layers are stored. */
  storedBytes: number;
  layers: LayerReads[];
  limit?: Limit;
}

/** One bench. */
export interface Session {
  machine: MachineFacts;
  images: ImageFacts[];
  touched: Touched[];
  runs: RunResult[];
}

/** Where half of the values lie below; and the ends. */
export interface Spread {
  median: number;
  min: number;
  max: number;
}

/** Undefined without values. */
export function spreadOf(values: readonly number[]): Spread | undefined {
  if (values.length === 0) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 === 1
    ? sorted[middle]!
    : (sorted[middle - 1]! + sorted[middle]!) / 2;
  return { median, min: sorted[0]!, max: sorted.at(-1)! };
}

/** CPU seconds of the speed probes of some runs; undefined without any. */
export function probesOf(runs: readonly RunResult[]): Spread | undefined {
  return spreadOf(runs.flatMap(({ probe }) => probe ? [probe.cpuSeconds] : []));
}

/** All runs of one contender on one workload. */
export interface Summary {
  workload: string;
  contender: string;
  runs: number;
  failures: string[];
  firstRequest?: Spread;
  opened?: Spread;
  root?: Spread;
  firstByte?: Spread;
  ready?: Spread;
  /** Each run's, in their order. */
  readyRuns: number[];
  bytes?: Spread;
  requests?: Spread;
  /** Bytes that were read of the block device. */
  edgeBytes?: Spread;
  /** Reads of it that were not answered at once. */
  waits?: Spread;
  /** Loads of spans that these waited for, and that nobody did. */
  demandLoads?: Spread;
  aheadLoads?: Spread;
  /** Bytes fetched for each byte read of the block device. */
  amplification?: Spread;
  /** Bytes fetched for each byte that what the service touches takes in its layers. */
  perTouched?: Spread;
  cpuSeconds?: Spread;
  machineCpuSeconds?: Spread;
  peakRssBytes?: Spread;
  diskBytes?: Spread;
  steadyRate?: Spread;
  steadyCpuSeconds?: Spread;
  processes: ProcessSummary[];
  /** Where the time until `ready` went. */
  stages?: Partial<Record<StageName, Spread>>;
  /** Median of `ready` against that of plain OCI. */
  ratio?: number;
  /** Median of `ready` against the limit. */
  limitMultiple?: number;
  /** Median of `steadyRate` against that of plain OCI. */
  steadyRatio?: number;
  /** The same of `steadyCpuSeconds`. */
  steadyCpuRatio?: number;
}

/** One program of a contender. */
export interface ProcessSummary {
  name: string;
  cpuSeconds: Spread;
  peakRssBytes?: Spread;
}

/** Contenders that are plain OCI, best first. */
const PLAIN = ["oci", "umoci"];

/** One summary for each contender of each workload, in the order of their first runs. */
export function summarize(
  runs: readonly RunResult[],
  touched: readonly Touched[] = [],
): Summary[] {
  const groups = new Map<string, RunResult[]>();
  for (const run of runs) {
    const key = `${run.workload}\0${run.contender}`;
    groups.set(key, [...groups.get(key) ?? [], run]);
  }
  const summaries = [...groups.values()].map((group) =>
    summarizeOne(group, touched.find((t) => t.workload === group[0]!.workload))
  );
  for (const summary of summaries) {
    const plain = plainOf(summaries, summary.workload);
    const ratio = quotient(summary.ready, plain?.ready);
    const steady = quotient(summary.steadyRate, plain?.steadyRate);
    if (ratio !== undefined) summary.ratio = ratio;
    if (steady !== undefined) summary.steadyRatio = steady;
    const cpu = quotient(summary.steadyCpuSeconds, plain?.steadyCpuSeconds);
    if (cpu !== undefined) summary.steadyCpuRatio = cpu;
  }
  return summaries;
}

/** What the others are compared with: the best plain OCI that ever got ready. */
export function plainOf(
  summaries: readonly Summary[],
  workload: string,
): Summary | undefined {
  const plain = summaries.filter((s) =>
    s.workload === workload && s.ready && PLAIN.includes(s.contender)
  );
  return plain.sort((a, b) =>
    PLAIN.indexOf(a.contender) - PLAIN.indexOf(b.contender)
  )[0];
}

function quotient(
  a: Spread | undefined,
  b: Spread | undefined,
): number | undefined {
  return a && b && b.median > 0 ? a.median / b.median : undefined;
}

function summarizeOne(
  results: RunResult[],
  touched: Touched | undefined,
): Summary {
  const measured = results.flatMap((r) => r.measurement ? [r.measurement] : []);
  const spread = (value: (m: Measurement) => number | undefined) =>
    spreadOf(measured.map(value).filter((n) => n !== undefined));
  const stored = touched?.storedBytes ?? 0;
  const all = {
    firstRequest: spread((m) => m.traffic.firstRequestSeconds),
    opened: spread((m) => m.openedSeconds),
    root: spread((m) => m.rootSeconds),
    firstByte: spread((m) => m.firstByteSeconds),
    ready: spread((m) => m.readySeconds),
    bytes: spread((m) => m.traffic.bytes),
    requests: spread((m) => m.traffic.requests),
    edgeBytes: spread((m) => m.edge?.bytes),
    waits: spread((m) => m.reading?.waits),
    demandLoads: spread((m) => m.reading?.demand.loads),
    aheadLoads: spread((m) => m.reading?.ahead.loads),
    amplification: spread((m) =>
      readAmplification(m.traffic.bytes, m.edge?.bytes)
    ),
    perTouched: spread((m) => readAmplification(m.traffic.bytes, stored)),
    cpuSeconds: spread((m) => m.cost.cpuSeconds),
    machineCpuSeconds: spread((m) => m.cost.machineCpuSeconds),
    peakRssBytes: spread((m) => m.cost.peakRssBytes),
    diskBytes: spread((m) => m.diskBytes),
    steadyRate: spread((m) => m.steadyRate),
    steadyCpuSeconds: spread((m) => m.steadyCpuSeconds),
  };
  const limit = touched?.limit?.totalSeconds;
  const { workload, contender } = results[0]!;
  return {
    workload,
    contender,
    runs: results.length,
    failures: results.flatMap((r) => r.failure === undefined ? [] : r.failure),
    readyRuns: measured.map((m) => m.readySeconds),
    processes: summarizeProcesses(measured),
    ...(measured.length > 0 ? { stages: summarizeStages(measured) } : {}),
    ...Object.fromEntries(
      Object.entries(all).filter(([, value]) => value !== undefined),
    ),
    ...(all.ready && limit ? { limitMultiple: all.ready.median / limit } : {}),
  };
}

function summarizeStages(
  measured: readonly Measurement[],
): NonNullable<Summary["stages"]> {
  const all = measured.map(stagesOf);
  const spreads = STAGES.map((name) => [
    name,
    spreadOf(all.map((stages) => stages[name]).filter((s) => s !== undefined)),
  ]);
  return Object.fromEntries(spreads.filter(([, value]) => value !== undefined));
}

function summarizeProcesses(measured: readonly Measurement[]) {
  const names = new Set(
    measured.flatMap((m) => m.cost.processes.map((p) => p.name)),
  );
  return [...names].map((name): ProcessSummary => {
    const own = measured.map((m) =>
      m.cost.processes.find((p) => p.name === name)
    );
    const memory = spreadOf(
      own.map((p) => p?.peakRssBytes).filter((n) => n !== undefined),
    );
    return {
      name,
      // A run in which nobody saw it is one in which it cost nothing.
      cpuSeconds: spreadOf(own.map((p) => p?.cpuSeconds ?? 0))!,
      ...(memory ? { peakRssBytes: memory } : {}),
    };
  }).sort((a, b) => b.cpuSeconds.median - a.cpuSeconds.median);
}

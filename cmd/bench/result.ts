/** Results of a bench: statistics, the table for people, what a line of JSON says. */

import type { Measurement } from "./contenders.ts";

/** One run of one contender. A failure is a result too. */
export interface RunResult {
  workload: string;
  contender: string;
  /** From 1. */
  round: number;
  measurement?: Measurement;
  failure?: string;
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

/** All runs of one contender on one workload. */
export interface Summary {
  workload: string;
  contender: string;
  runs: number;
  failures: string[];
  root?: Spread;
  firstByte?: Spread;
  ready?: Spread;
  bytes?: Spread;
  requests?: Spread;
  cpuSeconds?: Spread;
  peakRssBytes?: Spread;
  diskBytes?: Spread;
  steadyRate?: Spread;
  /** Median of `ready` against that of plain OCI by containerd. */
  ratio?: number;
}

/** One summary for each contender of each workload, in the order of their first runs. */
export function summarize(results: readonly RunResult[]): Summary[] {
  const groups = new Map<string, RunResult[]>();
  for (const result of results) {
    const key = `${result.workload}\0${result.contender}`;
    groups.set(key, [...groups.get(key) ?? [], result]);
  }
  const summaries = [...groups.values()].map(summarizeOne);
  for (const summary of summaries) {
    const plain = summaries.find((s) =>
      s.workload === summary.workload && s.contender === "oci"
    );
    if (plain?.ready && summary.ready && plain.ready.median > 0) {
      summary.ratio = summary.ready.median / plain.ready.median;
    }
  }
  return summaries;
}

function summarizeOne(results: RunResult[]): Summary {
  const measured = results.flatMap((r) => r.measurement ? [r.measurement] : []);
  const spread = (value: (m: Measurement) => number | undefined) =>
    spreadOf(measured.map(value).filter((n) => n !== undefined));
  const all = {
    root: spread((m) => m.rootSeconds),
    firstByte: spread((m) => m.firstByteSeconds),
    ready: spread((m) => m.readySeconds),
    bytes: spread((m) => m.traffic.bytes),
    requests: spread((m) => m.traffic.requests),
    cpuSeconds: spread((m) => m.cost.cpuSeconds),
    peakRssBytes: spread((m) => m.cost.peakRssBytes),
    diskBytes: spread((m) => m.diskBytes),
    steadyRate: spread((m) => m.steadyRate),
  };
  const { workload, contender } = results[0]!;
  return {
    workload,
    contender,
    runs: results.length,
    failures: results.flatMap((r) => r.failure === undefined ? [] : r.failure),
    ...Object.fromEntries(
      Object.entries(all).filter(([, value]) => value !== undefined),
    ),
  };
}

/** The table for a terminal. */
export function renderTable(summaries: readonly Summary[]): string {
  const lines: string[] = [];
  const workloads = new Set(summaries.map((s) => s.workload));
  for (const workload of workloads) {
    const rows = summaries.filter((s) => s.workload === workload);
    lines.push(workload, ...alignColumns([HEADER, ...rows.map(row)]));
    for (const { contender, failures, runs } of rows) {
      if (failures.length === 0) continue;
      lines.push(
        `  ${contender} failed in ${failures.length} of ${runs} runs: ${
          failures[0]
        }`,
      );
    }
    lines.push("");
  }
  return lines.join("\n").trimEnd();
}

const HEADER = [
  "contender",
  "ready s",
  "min–max",
  "× oci",
  "root s",
  "first byte s",
  "MB fetched",
  "requests",
  "CPU s",
  "RSS MB",
  "disk MB",
  "req/s",
];

function row(s: Summary): string[] {
  const megabytes = (spread: Spread | undefined) =>
    spread ? (spread.median / 1e6).toFixed(1) : "-";
  const seconds = (spread: Spread | undefined) =>
    spread ? spread.median.toFixed(2) : "-";
  const count = (spread: Spread | undefined) =>
    spread ? spread.median.toFixed(0) : "-";
  return [
    s.contender,
    s.ready ? seconds(s.ready) : "failed",
    s.ready ? `${s.ready.min.toFixed(2)}–${s.ready.max.toFixed(2)}` : "-",
    s.ratio === undefined ? "-" : s.ratio.toFixed(3),
    seconds(s.root),
    seconds(s.firstByte),
    megabytes(s.bytes),
    count(s.requests),
    seconds(s.cpuSeconds),
    megabytes(s.peakRssBytes),
    megabytes(s.diskBytes),
    count(s.steadyRate),
  ];
}

function alignColumns(rows: string[][]): string[] {
  const widths = rows[0]!.map((_, i) =>
    Math.max(...rows.map((r) => r[i]!.length))
  );
  return rows.map((r) =>
    "  " +
    r.map((cell, i) =>
      i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)
    ).join("  ")
  );
}

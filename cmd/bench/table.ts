/** The tables of a result for a terminal. */

import type {
  BuildFacts,
  ImageFacts,
  Session,
  Spread,
  Summary,
  Touched,
} from "./result.ts";
import { probesOf, summarize } from "./result.ts";
import { limitStages, type StageName } from "./stages.ts";

/** All that a terminal shows of one bench. */
export function renderSession(session: Session): string {
  const { machine } = session;
  const lines = [`link: ${machine.link.method}`];
  const speed = speedText(session);
  if (speed !== undefined) lines.push(`machine's speed: ${speed}`);
  for (const text of machine.leavesOut) lines.push(`left out: ${text}`);
  for (const image of session.images) lines.push(imageLine(image));
  lines.push(
    renderTable(summarize(session.runs, session.touched), session.touched),
  );
  return lines.join("\n");
}

/** How fast the machine was, and how far that drifted; undefined without probes. */
export function speedText({ machine, runs }: Session): string | undefined {
  const probes = probesOf(runs);
  if (!probes) return undefined;
  const [median, min, max] = [probes.median, probes.min, probes.max]
    .map((s) => s.toFixed(3));
  const { probeMethod } = machine;
  return `${median} s (${min}–${max}) around each run${
    probeMethod === undefined ? "" : `: ${probeMethod}`
  }`;
}

function imageLine(
  { workload, compressedBytes, layers, build, native }: ImageFacts,
): string {
  const built = (what: string, { bytes, seconds, layersReused }: BuildFacts) =>
    `${what} ${megabytes(bytes, 2)} MB${
      compressedBytes > 0
        ? ` (${(bytes / compressedBytes * 100).toFixed(2)} %)`
        : ""
    } built in ${seconds.toFixed(1)} s${
      layersReused ? `, ${layersReused} of its layers were there already` : ""
    }`;
  return [
    `image of ${workload}: ${
      megabytes(compressedBytes)
    } MB in ${layers.length} ${layers.length === 1 ? "layer" : "layers"}`,
    built("meta image", build),
    ...(native ? [built("native image", native)] : []),
  ].join(", ");
}

/** Three tables and the costs of each workload. */
export function renderTable(
  summaries: readonly Summary[],
  touched: readonly Touched[] = [],
): string {
  const lines: string[] = [];
  const workloads = new Set(summaries.map((s) => s.workload));
  for (const workload of workloads) {
    const own = summaries.filter((s) => s.workload === workload);
    const reads = touched.find((t) => t.workload === workload);
    lines.push(workload);
    if (reads) lines.push(`  ${limitLine(reads)}`);
    lines.push(
      ...columns(own, TIMES),
      ...columns(own, COSTS),
      ...stageLines(own, reads),
      ...own.flatMap(processLine),
    );
    lines.push(...failureLines(own));
    lines.push("");
  }
  return lines.join("\n").trimEnd();
}

/** What all contenders failed of the same way is said once. */
function failureLines(summaries: readonly Summary[]): string[] {
  const failed = new Map<string, string[]>();
  for (const { contender, failures, runs } of summaries) {
    const [first] = failures;
    if (first === undefined) continue;
    const how = `failed in ${failures.length} of ${runs} runs: ${first}`;
    failed.set(how, [...failed.get(how) ?? [], contender]);
  }
  return [...failed].map(([how, names]) => `  ${names.join(", ")} ${how}`);
}

function limitLine({ failure, bytes, storedBytes, limit }: Touched): string {
  if (failure !== undefined) return `limit: not known: ${failure}`;
  const touched = `touches ${megabytes(bytes)} MB, ${
    megabytes(storedBytes)
  } MB as stored`;
  if (!limit) return touched;
  const { totalSeconds, warmSeconds, transferSeconds, rttSeconds } = limit;
  return `limit: ${totalSeconds.toFixed(2)} s = ${
    warmSeconds.toFixed(2)
  } warm start + ${transferSeconds.toFixed(2)} transfer + ${
    rttSeconds.toFixed(3)
  } round trip; ${touched}`;
}

function processLine({ contender, processes }: Summary): string[] {
  if (processes.length === 0) return [];
  const texts = processes.map((p) =>
    `${p.name} ${p.cpuSeconds.median.toFixed(2)} s${
      p.peakRssBytes ? ` ${megabytes(p.peakRssBytes.median, 0)} MB` : ""
    }`
  );
  return [`  ${contender}: ${texts.join(", ")}`];
}

const STAGE_COLUMNS: readonly (readonly [title: string, name: StageName])[] = [
  ["request", "command"],
  ["open", "open"],
  ["mount", "mount"],
  ["wait: place", "queue"],
  ["network", "fetch"],
  ["decode", "decode"],
  ["other", "other"],
  ["service", "service"],
];

/** Where the time went, in seconds, and what of it the limit has. */
function stageLines(
  summaries: readonly Summary[],
  reads: Touched | undefined,
): string[] {
  if (!summaries.some((s) => s.stages)) return [];
  const limit = reads?.limit && limitStages(reads.limit);
  const cell = (value: number | undefined) => value?.toFixed(2) ?? "-";
  return alignColumns([
    ["where it went", ...STAGE_COLUMNS.map(([title]) => title)],
    ...summaries.map(({ contender, stages }) => [
      contender,
      ...STAGE_COLUMNS.map(([, name]) => cell(stages?.[name]?.median)),
    ]),
    ...(limit
      ? [["the limit", ...STAGE_COLUMNS.map(([, name]) => cell(limit[name]))]]
      : []),
  ]);
}

type Column = readonly [title: string, cell: (s: Summary) => string];

const TIMES: readonly Column[] = [
  ["contender", (s) => s.contender],
  ["ready s", (s) => s.ready ? seconds(s.ready) : "failed"],
  [
    "min–max",
    (s) =>
      s.ready ? `${s.ready.min.toFixed(2)}–${s.ready.max.toFixed(2)}` : "-",
  ],
  ["× oci", (s) => factor(s.ratio, 3)],
  ["× limit", (s) => factor(s.limitMultiple, 2)],
  ["root s", (s) => seconds(s.root)],
  ["first byte s", (s) => seconds(s.firstByte)],
  ["req/s", (s) => count(s.steadyRate)],
  ["× oci", (s) => factor(s.steadyRatio, 2)],
  [
    "CPU ms/req",
    (s) =>
      s.steadyCpuSeconds ? (s.steadyCpuSeconds.median * 1000).toFixed(3) : "-",
  ],
  ["× oci", (s) => factor(s.steadyCpuRatio, 2)],
];

const COSTS: readonly Column[] = [
  ["", (s) => s.contender],
  ["MB fetched", (s) => inMegabytes(s.bytes)],
  ["requests", (s) => count(s.requests)],
  ["÷ read", (s) => factor(s.amplification?.median, 2)],
  ["÷ touched", (s) => factor(s.perTouched?.median, 2)],
  ["CPU s", (s) => seconds(s.cpuSeconds)],
  ["RSS MB", (s) => inMegabytes(s.peakRssBytes)],
  ["disk MB", (s) => inMegabytes(s.diskBytes)],
];

function columns(
  summaries: readonly Summary[],
  table: readonly Column[],
): string[] {
  return alignColumns([
    table.map(([title]) => title),
    ...summaries.map((s) => table.map(([, cell]) => cell(s))),
  ]);
}

function seconds(spread: Spread | undefined): string {
  return spread ? spread.median.toFixed(2) : "-";
}

function count(spread: Spread | undefined): string {
  return spread ? spread.median.toFixed(0) : "-";
}

function inMegabytes(spread: Spread | undefined): string {
  return spread ? megabytes(spread.median) : "-";
}

function megabytes(bytes: number, digits = 1): string {
  return (bytes / 1e6).toFixed(digits);
}

function factor(value: number | undefined, digits: number): string {
  return value === undefined ? "-" : value.toFixed(digits);
}

/** Rows of cells in columns of equal width; the first is aligned to the left. */
export function alignColumns(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, i) =>
    Math.max(...rows.map((r) => r[i]!.length))
  );
  return rows.map((r) =>
    ("  " +
      r.map((cell, i) =>
        i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)
      ).join("  ")).trimEnd()
  );
}

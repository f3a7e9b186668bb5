/** Shares iterations or time among targets and lanes, and collects what was found. */

import { type Finding, findingKey, writeFinding } from "./findings.ts";
import {
  addResult,
  emptyResult,
  type Slice,
  type SliceResult,
} from "./protocol.ts";
import { loadTargets, Supervisor } from "./supervisor.ts";
import type { Target } from "./target.ts";

/** What to run. */
export interface RunOptions {
  /** URL of the module that exports `TARGETS`. */
  module: string;
  seed: number;
  /** In all, shared by weight; or */
  iterations?: number | undefined;
  /** seconds in all, shared by weight. */
  seconds?: number | undefined;
  /** Names; all if there are none. */
  targets?: readonly string[] | undefined;
  /** First iteration. */
  from?: number | undefined;
  /** Where reproducers go. */
  directory: string;
  /** Computing time of one input. */
  deadlineMs: number;
  /** Processes at once. */
  jobs: number;
  /** A target is given up after so many different findings. */
  findingsPerTarget: number;
  /** Whether hangs, crashes and greedy inputs are made smaller, which costs minutes. */
  shrinksInChildren?: boolean | undefined;
  log?(line: string): void;
}

/** What came of one target. */
export interface TargetReport extends SliceResult {
  name: string;
  findings: number;
}

/** A defect that was written down. */
export interface WrittenFinding extends Finding {
  /** Of the JSON. */
  path: string;
  /** How often it was met. */
  count: number;
}

/** What came of a run. */
export interface RunReport {
  targets: TargetReport[];
  findings: WrittenFinding[];
}

/** Iterations of a slice: short enough that the lanes end together. */
const SLICE_ITERATIONS = 25_000;

/** Runs targets; findings are written as soon as they are met. */
export async function runFuzz(options: RunOptions): Promise<RunReport> {
  const targets = await chooseTargets(options);
  const found = new Findings(options);
  const reports = new Map<string, SliceResult>();
  const slices = plan(targets, options);
  const lane = async () => {
    await using supervisor = new Supervisor(options);
    for (let slice; (slice = slices.shift()) !== undefined;) {
      const name = slice.target;
      if (found.isGivenUp(name)) continue;
      const stop = new GivenUp();
      try {
        const result = await supervisor.run(slice, async (finding) => {
          await found.add(finding, supervisor);
          if (found.isGivenUp(name)) throw stop;
        });
        const report = reports.get(name) ?? emptyResult(result.next);
        reports.set(name, report);
        addResult(report, result);
        options.log?.(
          `${name}: ${report.read + report.refused} inputs so far`,
        );
      } catch (error) {
        if (error !== stop) throw error;
        options.log?.(`${name}: given up, too much is wrong with it`);
      }
    }
  };
  await Promise.all(Array.from({ length: options.jobs }, lane));
  return {
    targets: targets.map(({ name }) => ({
      name,
      ...(reports.get(name) ?? emptyResult(0)),
      findings: found.ofTarget(name),
    })),
    findings: found.written,
  };
}

/** Ends a slice early. */
class GivenUp extends Error {}

async function chooseTargets(options: RunOptions): Promise<Target[]> {
  const all = await loadTargets(options.module);
  const names = options.targets ?? [];
  if (names.length === 0) return all;
  return names.map((name) => {
    const target = all.find((t) => t.name === name);
    if (!target) throw new Error(`No target "${name}"; see --list`);
    return target;
  });
}

function plan(targets: readonly Target[], options: RunOptions): Slice[] {
  const total = targets.reduce((sum, { weight }) => sum + weight, 0);
  const { iterations, seconds, seed, from: start = 0 } = options;
  const slices: Slice[] = [];
  for (const { name: target, weight } of targets) {
    if (iterations === undefined) {
      const milliseconds = (seconds ?? 60) * options.jobs * 1000 * weight /
        total;
      slices.push({
        target,
        seed,
        from: start,
        to: Number.MAX_SAFE_INTEGER,
        milliseconds,
      });
      continue;
    }
    const end = start + Math.ceil(iterations * weight / total);
    for (let from = start; from < end; from += SLICE_ITERATIONS) {
      const to = Math.min(end, from + SLICE_ITERATIONS);
      slices.push({ target, seed, from, to, milliseconds: undefined });
    }
  }
  return slices;
}

/** Different findings, each written once. */
class Findings {
  readonly written: WrittenFinding[] = [];
  readonly #byKey = new Map<string, WrittenFinding>();
  readonly #options: RunOptions;

  constructor(options: RunOptions) {
    this.#options = options;
  }

  ofTarget(name: string): number {
    return this.written.filter((f) => f.target === name).length;
  }

  isGivenUp(name: string): boolean {
    return this.ofTarget(name) >= this.#options.findingsPerTarget;
  }

  async add(finding: Finding, supervisor: Supervisor): Promise<void> {
    const { bytes: _, ...record } = finding;
    const key = findingKey(record);
    const known = this.#byKey.get(key);
    if (known) {
      known.count++;
      return;
    }
    const entry: WrittenFinding = { ...finding, path: "", count: 1 };
    this.#byKey.set(key, entry);
    this.written.push(entry);
    const { directory, log } = this.#options;
    entry.path = await writeFinding(directory, finding);
    log?.(
      `FOUND ${finding.target}: ${finding.kind}: ${finding.message} (${entry.path})`,
    );
    const needsChildren = ["hang", "crash", "memory"].includes(finding.kind);
    if (!needsChildren || this.#options.shrinksInChildren === false) return;
    const smaller = await supervisor.shrinkInChildren(finding);
    entry.bytes = smaller.bytes;
    await writeFinding(directory, smaller);
  }
}

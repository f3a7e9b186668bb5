/** Two results side by side: did something change, or is it noise? */

import { UsageError } from "../../lib/io/mod.ts";
import {
  type RunResult,
  type Session,
  type Spread,
  spreadOf,
  summarize,
} from "./result.ts";
import {
  isExplained,
  speedRatio,
  type SpeedRatios,
  speedRatios,
} from "./speed_ratio.ts";
import { alignColumns } from "./table.ts";

/** Fewer runs hardly ever reach as far as noise does. */
const RUNS_FOR_NOISE = 3;

/** What a verdict does not say. */
const MACHINE_SPEED =
  `machine's speed: further off than noise, but no further than the same work around
these runs ("machine", second ÷ first). A change of that size may hide in it.`;

/** What a comparison says of one contender on one workload. */
export interface Comparison {
  workload: string;
  contender: string;
  /** Seconds until the service was available; undefined where every run failed or none was. */
  first?: Spread;
  second?: Spread;
  /** Runs that failed. */
  failures: [first: number, second: number];
  /** Second median ÷ first median. */
  ratio?: number;
  /** The same of the speed probes of these runs: above 1 the second's machine was slower. */
  machineRatio?: number;
  /** How likely, at most, the verdict is another than "within noise" though nothing changed. */
  chance?: number;
  verdict: Verdict;
}

/**
 * The second median lies within the first's minimum and maximum; or no further
 * outside than the machine's speed differed; or on which side of them.
 */
export type Verdict =
  | "within noise"
  | "machine's speed"
  | "faster"
  | "slower"
  | "only in the first"
  | "only in the second"
  | "failed";

/** Compares all runs of one result with those of another. */
export function compareResults(
  first: readonly Session[],
  second: readonly Session[],
): Comparison[] {
  const [a, b] = [runsOf(first), runsOf(second)];
  const speed = speedRatios(first, second);
  const names = new Map<string, [string, string]>();
  for (const { workload, contender } of [...a, ...b]) {
    names.set(`${workload}\0${contender}`, [workload, contender]);
  }
  return [...names.values()].map(([workload, contender]) => {
    const pick = (runs: RunResult[]) =>
      runs.filter((r) => r.workload === workload && r.contender === contender);
    return compareOne(workload, contender, pick(a), pick(b), speed);
  });
}

/**
 * How likely, at most, the median of `second` runs lies outside of what `first`
 * runs span though nothing changed. All orders of all runs are as likely then,
 * and half of the second ones have to come before, or after, all of the first.
 */
export function chanceOutside(first: number, second: number): number {
  let likely = 2;
  for (let i = 0; i < Math.ceil(second / 2); i++) {
    likely *= (second - i) / (first + second - i);
  }
  return Math.min(1, likely);
}

function runsOf(sessions: readonly Session[]): RunResult[] {
  return sessions.flatMap((session) => session.runs);
}

function compareOne(
  workload: string,
  contender: string,
  a: RunResult[],
  b: RunResult[],
  speed: SpeedRatios,
): Comparison {
  const ready = (runs: RunResult[]) =>
    runs.flatMap((r) => r.measurement ? [r.measurement.readySeconds] : []);
  const failed = (runs: RunResult[]) =>
    runs.filter((r) => r.failure !== undefined).length;
  const times = [ready(a), ready(b)] as const;
  const [first, second] = [spreadOf(times[0]), spreadOf(times[1])];
  const machineRatio = speed.isKnown ? speedRatio(a, b) : undefined;
  return {
    workload,
    contender,
    ...(first ? { first } : {}),
    ...(second ? { second } : {}),
    failures: [failed(a), failed(b)],
    ...(first && second && first.median > 0
      ? { ratio: second.median / first.median }
      : {}),
    ...(machineRatio === undefined ? {} : { machineRatio }),
    ...(first && second
      ? { chance: chanceOutside(times[0].length, times[1].length) }
      : {}),
    verdict: a.length === 0
      ? "only in the second"
      : b.length === 0
      ? "only in the first"
      : verdictOf(first, second, speed.explains ? machineRatio : undefined),
  };
}

function verdictOf(
  first: Spread | undefined,
  second: Spread | undefined,
  machineRatio: number | undefined,
): Verdict {
  if (!first || !second) return "failed";
  const { median } = second;
  if (median >= first.min && median <= first.max) return "within noise";
  if (machineRatio !== undefined && isExplained(first, median, machineRatio)) {
    return "machine's speed";
  }
  return median < first.min ? "faster" : "slower";
}

/** What makes two results hard to compare, in words. */
export function differences(
  first: readonly Session[],
  second: readonly Session[],
): string[] {
  const facts: [string, (s: Session) => string][] = [
    ["mode", (s) => s.machine.mode],
    ["link", (s) => s.machine.link.rate ?? "not shaped"],
    ["round trip", (s) => `${s.machine.link.rttMs} ms`],
    ["CPU", (s) => `${s.machine.cores} × ${s.machine.cpu}`],
    ["kernel", (s) => s.machine.kernel],
    ["commit", (s) => s.machine.commit ?? "unknown"],
    ["program", (s) => s.machine.program ?? "unknown"],
    [
      "images",
      (s) => [...new Set(s.images.map((i) => i.digest))].sort().join(", "),
    ],
  ];
  const all = (sessions: readonly Session[], of: (s: Session) => string) =>
    [...new Set(sessions.map(of))].join(" and ");
  const notes = facts.flatMap(([name, of]) => {
    const [a, b] = [all(first, of), all(second, of)];
    return a === b ? [] : [`${name}: ${a} against ${b}`];
  });
  notes.push(...mixtures("first", first), ...mixtures("second", second));
  const fewest = Math.min(
    ...summarize(runsOf(first)).map((s) => s.readyRuns.length),
  );
  if (fewest < RUNS_FOR_NOISE) {
    notes.push(
      `runs: the first result has as few as ${fewest}, whose spread says little about noise`,
    );
  }
  return [...notes, ...speedRatios(first, second).notes];
}

/** Benches of one workload in one file that cannot have one median. */
function mixtures(name: string, sessions: readonly Session[]): string[] {
  const settings = new Map<string, Set<string>>();
  for (const { machine: { mode, link }, runs } of sessions) {
    for (const { workload } of runs) {
      const found = settings.get(workload) ?? new Set();
      const rate = link.rate ?? "not shaped";
      settings.set(workload, found.add(`${mode}, ${rate}, ${link.rttMs} ms`));
    }
  }
  return [...settings].filter(([, found]) => found.size > 1).map((
    [workload, found],
  ) =>
    `${workload}: the ${name} result has runs of ${
      [...found].join(" and ")
    }, which are taken together`
  );
}

/** The comparison for a terminal. */
export function renderComparison(
  comparisons: readonly Comparison[],
  notes: readonly string[],
): string {
  if (comparisons.length === 0) {
    throw new UsageError("There are no runs to compare");
  }
  const cell = (s: Spread | undefined, failures: number) =>
    (s
      ? `${s.median.toFixed(2)} (${s.min.toFixed(2)}–${s.max.toFixed(2)})`
      : "-") + (failures > 0 ? `, ${failures} failed` : "");
  const lines = notes.map((note) => `mind: ${note}`);
  for (const workload of new Set(comparisons.map((c) => c.workload))) {
    const own = comparisons.filter((c) => c.workload === workload);
    lines.push(
      workload,
      ...alignColumns([
        ["contender", "first s", "second s", "ratio", "machine", "verdict"],
        ...own.map((c) => [
          c.contender,
          cell(c.first, c.failures[0]),
          cell(c.second, c.failures[1]),
          c.ratio === undefined ? "-" : c.ratio.toFixed(3),
          c.machineRatio === undefined ? "-" : c.machineRatio.toFixed(3),
          c.verdict,
        ]),
      ]),
      "",
    );
  }
  const chances = comparisons.flatMap((c) => c.chance ?? []);
  if (chances.length > 0) lines.push(byChance(chances));
  if (comparisons.some((c) => c.verdict === "machine's speed")) {
    lines.push(MACHINE_SPEED);
  }
  return lines.join("\n").trimEnd();
}

function byChance(chances: readonly number[]): string {
  const expected = chances.reduce((sum, chance) => sum + chance, 0);
  return `chance: of ${chances.length} medians up to ${
    expected.toFixed(1)
  } would lie outside of the
first's lowest to highest though nothing changed; with more runs, fewer.`;
}

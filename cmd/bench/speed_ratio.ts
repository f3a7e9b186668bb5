/** What the speed probes of two results say: how much of a difference may be the machine's. */

import {
  type MachineFacts,
  probesOf,
  type RunResult,
  type Session,
  type Spread,
  spreadOf,
} from "./result.ts";

/** Highest ÷ lowest probe of a machine whose speed one median describes. */
const STEADY_MAX = 1.25;
/** Seconds ÷ CPU seconds of probes that had the processors for themselves. */
const IDLE_MAX = 1.25;

/** Whether probes of two results can be compared, and what for. */
export interface SpeedRatios {
  /** Both have probes, and of the same work. */
  isKnown: boolean;
  /** On the same kind of machine too: all that differs between the two is how fast it was. */
  explains: boolean;
  /** What is to be kept in mind, in words. */
  notes: string[];
}

/** Looks at the probes of two results as a whole. */
export function speedRatios(
  first: readonly Session[],
  second: readonly Session[],
): SpeedRatios {
  const sides = [["first", first], ["second", second]] as const;
  const missing = sides.flatMap(([name, sessions]) =>
    sessions.flatMap((s) => s.runs).some((r) =>
        r.measurement !== undefined && r.probe === undefined
      )
      ? [name]
      : []
  );
  const unknown = (why: string): SpeedRatios => ({
    isKnown: false,
    explains: false,
    notes: [`machine's speed: ${why}, so a drift looks like a change`],
  });
  if (missing.length > 0) {
    return unknown(
      `runs of the ${missing.join(" and the ")} result have no probe of it`,
    );
  }
  const all = [...first, ...second].map((s) => s.machine);
  const differ = (of: (machine: MachineFacts) => unknown) =>
    new Set(all.map(of)).size > 1;
  if (differ((m) => m.probeMethod)) {
    return unknown("the probes are of other work");
  }
  const kinds: [string, (machine: MachineFacts) => unknown][] = [
    ["processors", (m) => m.cpu],
    ["versions of the runtime", (m) => m.versions["deno"]],
  ];
  const others = kinds.filter(([, of]) => differ(of)).map(([name]) => name);
  const notes = others.length > 0
    ? [`machine's speed: other ${others.join(", ")}: it explains no difference`]
    : [];
  for (const [name, sessions] of sides) {
    const runs = sessions.flatMap((s) => s.runs);
    const cpu = probesOf(runs);
    if (!cpu) continue;
    if (cpu.max > cpu.min * STEADY_MAX) notes.push(unsteady(name, cpu));
    const elapsed = spreadOf(
      runs.flatMap((r) => r.probe ? [r.probe.seconds] : []),
    )!;
    if (elapsed.median > cpu.median * IDLE_MAX) {
      notes.push(busy(name, elapsed, cpu));
    }
  }
  return { isKnown: true, explains: others.length === 0, notes };
}

function unsteady(name: string, { min, max }: Spread): string {
  return `machine's speed: the ${name} result's probes took ${
    min.toFixed(2)
  } to ${max.toFixed(2)} s: it changed from run to run`;
}

/** What runs wait for then is in their seconds, and not in the CPU time of probes. */
function busy(name: string, elapsed: Spread, cpu: Spread): string {
  return `machine's speed: the ${name} result's machine, or its host, had other work: probes took ${
    elapsed.median.toFixed(2)
  } s for ${cpu.median.toFixed(2)} s of CPU`;
}

/** Median probe of the second runs ÷ that of the first; undefined where nothing was measured. */
export function speedRatio(
  first: readonly RunResult[],
  second: readonly RunResult[],
): number | undefined {
  const [a, b] = [first, second].map((runs) =>
    probesOf(runs.filter((r) => r.measurement !== undefined))?.median
  );
  return a && b ? b / a : undefined;
}

/**
 * Whether a median comes from outside of a spread no further than the machine's
 * speed takes it: what lies between it and itself ÷ the ratio meets the spread.
 */
export function isExplained(
  spread: Spread,
  median: number,
  ratio: number,
): boolean {
  const same = median / ratio;
  return Math.min(median, same) <= spread.max &&
    Math.max(median, same) >= spread.min;
}

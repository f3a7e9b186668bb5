/**
 * `deno task fuzz`: mutates golden and generated inputs of every format and gives
 * them to its reader. See README.md.
 */

import { parseArgs } from "node:util";
import { runFuzz, type RunReport } from "./run.ts";
import { loadTargets, Supervisor } from "./supervisor.ts";

const USAGE = `deno task fuzz [options]
  --seed N          which mutations (default 1); the same seed gives the same ones
  --iterations N    in all, shared by weight (default 100,000)
  --time S          seconds in all instead, shared by weight
  --target NAME     only these; repeatable
  --from N          first iteration (default 0)
  --jobs N          processes at once (default: the cores)
  --deadline MS     computing time of one input (default 10,000)
  --out DIR         where reproducers go (default .cache/fuzz)
  --findings N      give a target up after so many (default 20)
  --list            the targets
  --replay FILE     read a reproducer (.json) again`;

const DEFAULT_ITERATIONS = 100_000;

function printReport(report: RunReport): void {
  const rows = report.targets.map((t) => {
    const done = t.read + t.refused;
    return [
      t.name,
      String(done),
      (done / Math.max(t.cpuMs, 1) * 1000).toFixed(0),
      (100 * t.read / Math.max(done, 1)).toFixed(0),
      `${t.slowestMs.toFixed(0)} (${t.slowestIteration})`,
      String(t.findings),
    ];
  });
  const head = [
    "target",
    "inputs",
    "1/CPU s",
    "% read",
    "slowest CPU ms (at)",
    "found",
  ];
  const widths = head.map((text, i) =>
    Math.max(text.length, ...rows.map((row) => row[i]!.length))
  );
  for (const row of [head, ...rows]) {
    console.log(
      row.map((text, i) =>
        i === 0 ? text.padEnd(widths[i]!) : text.padStart(widths[i]!)
      ).join("  "),
    );
  }
  for (const { target, kind, message, count, path } of report.findings) {
    console.log(`${target}: ${kind}: ${message} (${count} times; ${path})`);
  }
}

function numberOf(text: string | undefined, name: string): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text.replaceAll(/[_,]/g, ""));
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new Error(`--${name} is "${text}"`);
  }
  return value;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      seed: { type: "string" },
      iterations: { type: "string" },
      time: { type: "string" },
      target: { type: "string", multiple: true },
      from: { type: "string" },
      jobs: { type: "string" },
      deadline: { type: "string" },
      out: { type: "string" },
      findings: { type: "string" },
      list: { type: "boolean" },
      replay: { type: "string" },
      module: { type: "string" },
      help: { type: "boolean" },
    },
  });
  if (values.help) {
    console.log(USAGE);
    return 0;
  }
  const module = values.module ??
    new URL("targets/mod.ts", import.meta.url).href;
  if (values.list) {
    for (const { name, summary, weight } of await loadTargets(module)) {
      console.log(
        `${name.padEnd(16)} ${String(weight).padStart(4)}  ${summary}`,
      );
    }
    return 0;
  }
  const directory = values.out ??
    new URL("../../.cache/fuzz", import.meta.url).pathname;
  const deadlineMs = numberOf(values.deadline, "deadline") ?? 10_000;
  if (values.replay !== undefined) {
    await using supervisor = new Supervisor({ module, deadlineMs, directory });
    const { kind, message } = await supervisor.replay(values.replay);
    console.log(`${kind}${message === "" ? "" : `: ${message}`}`);
    return kind === "read" || kind === "refused" ? 0 : 1;
  }
  const seconds = numberOf(values.time, "time");
  const seed = numberOf(values.seed, "seed") ?? 1;
  const start = performance.now();
  const report = await runFuzz({
    module,
    seed,
    iterations: numberOf(values.iterations, "iterations") ??
      (seconds === undefined ? DEFAULT_ITERATIONS : undefined),
    seconds,
    targets: values.target,
    from: numberOf(values.from, "from"),
    directory,
    deadlineMs,
    jobs: numberOf(values.jobs, "jobs") ?? navigator.hardwareConcurrency,
    findingsPerTarget: numberOf(values.findings, "findings") ?? 20,
    log: (line) => console.log(line),
  });
  printReport(report);
  const done = report.targets.reduce((n, t) => n + t.read + t.refused, 0);
  const cpu = report.targets.reduce((n, t) => n + t.cpuMs, 0) / 1000;
  const took = (performance.now() - start) / 1000;
  console.log(
    `seed ${seed}: ${done} inputs in ${took.toFixed(0)} s (${
      cpu.toFixed(0)
    } s of CPU, ${
      (done / cpu).toFixed(0)
    } inputs each), ${report.findings.length} findings`,
  );
  return report.findings.length > 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main());

/** `obd bench`: cold start against plain OCI, on the user's own machine and images. */

import { ObdError } from "../../lib/io/mod.ts";
import type { Context } from "../context.ts";
import { checkOutput } from "../output_file.ts";
import {
  readResultFiles,
  requireWritable,
  writeAtomically,
} from "./result_file.ts";
import { compareResults, differences, renderComparison } from "./compare.ts";
import { requirePackages } from "./machine.ts";
import { type BenchFlags, type BenchOptions, readTask } from "./options.ts";
import { type Session, summarize } from "./result.ts";
import { modeOf, note, runBench } from "./run.ts";
import { renderSession } from "./table.ts";

export async function run(
  context: Context,
  args: string[],
  options: Record<string, unknown>,
): Promise<number> {
  const flags = options as unknown as BenchFlags;
  const task = readTask(args, flags);
  if (flags.html !== undefined) await checkOutput(flags.html);
  switch (task.kind) {
    case "compare":
      return await compare(context, task.first, task.second);
    case "report": {
      const sessions = await readResultFiles(task.files);
      for (const session of sessions) context.say(renderSession(session));
      context.result({ sessions: sessions.map(withSummaries) });
      await writeReport(context, sessions, flags);
      return exitCode(sessions);
    }
    case "run": {
      const session = await bench(context, task.options, flags);
      context.say(renderSession(session));
      // What was measured is told, whatever comes of the page.
      context.result(withSummaries(session));
      await writeReport(context, [session], flags);
      return exitCode([session]);
    }
  }
}

async function bench(
  context: Context,
  options: BenchOptions,
  flags: BenchFlags,
): Promise<Session> {
  const mode = await modeOf(options);
  requirePackages({
    mode: options.mode,
    makesImages: options.workloads.some((w) => w.madeImage !== undefined),
    unpacks: options.mode === "reduced" || options.contenders.includes("umoci"),
    traces: options.mode === "reduced" && options.readsFile === undefined,
  });
  await requireWritable(flags);
  if (mode.name === "reduced") {
    note(context, "reduced mode, without containers and mounts");
  }
  return await runBench({
    context,
    options,
    mode,
    line: createLines(flags.output),
  });
}

function withSummaries(session: Session) {
  return { ...session, summaries: summarize(session.runs, session.touched) };
}

/** A failed contender is a failure of the bench. */
function exitCode(sessions: readonly Session[]): number {
  return sessions.some((s) => s.runs.some((r) => r.failure !== undefined))
    ? 1
    : 0;
}

async function writeReport(
  context: Context,
  sessions: readonly Session[],
  { html }: BenchFlags,
): Promise<void> {
  if (html === undefined) return;
  const { renderReport } = await import("./report/report.ts");
  await writeAtomically(html, renderReport(sessions));
  context.say(`report: ${html}`);
}

async function compare(
  context: Context,
  first: string,
  second: string,
): Promise<number> {
  const a = await readResultFiles([first]);
  const b = await readResultFiles([second]);
  const comparisons = compareResults(a, b);
  const notes = differences(a, b);
  context.say(renderComparison(comparisons, notes));
  context.result({ comparisons, differences: notes });
  return 0;
}

/** Appends JSON lines to a file, each as soon as it is known. */
function createLines(
  path: string | undefined,
): (value: unknown) => Promise<void> {
  if (path === undefined) return () => Promise.resolve();
  return async (value) => {
    const line = JSON.stringify(value) + "\n";
    try {
      await Deno.writeTextFile(path, line, { append: true });
    } catch (error) {
      throw new ObdError("state", `Cannot write "${path}"`, { cause: error });
    }
  };
}

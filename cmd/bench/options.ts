/** The command line of `obd bench`. */

import { resolve } from "node:path";
import { UsageError } from "../../lib/io/mod.ts";
import { findWorkload, parseReady, type Workload } from "./workloads.ts";
import { type ContenderName, CONTENDERS } from "./contenders.ts";
import { type LinkSettings, parseRate } from "./link.ts";

/** As commander gives them. */
export interface BenchFlags {
  workload?: string[];
  contenders: string;
  link?: string;
  rtt: string;
  runs: number;
  steady: string;
  timeout: number;
  cache?: string;
  output?: string;
  html?: string;
  from?: string[];
  compare?: string[];
  reduced?: boolean;
  reads?: string;
  readyExit?: boolean;
  readyHttp?: string;
  readyLog?: string;
}

/** A bench to run. */
export interface BenchOptions {
  workloads: Workload[];
  /** The user's own image, for the only workload then. */
  image: string | undefined;
  contenders: ContenderName[];
  link: LinkSettings;
  runs: number;
  steadySeconds: number;
  timeoutMs: number;
  /** Absolute. */
  cache: string;
  mode: "full" | "reduced";
  /** For the reduced mode: a trace, or a list of paths. */
  readsFile: string | undefined;
}

/** What to do: a bench, or something with results of others. */
export type BenchTask =
  | { kind: "run"; options: BenchOptions }
  | { kind: "report"; files: string[] }
  | { kind: "compare"; first: string; second: string };

/** @throws {UsageError} */
export function readTask(args: string[], flags: BenchFlags): BenchTask {
  requireApart(flags);
  const { compare, from } = flags;
  const isRun = args.length > 0 || (flags.workload?.length ?? 0) > 0;
  if (compare && from) {
    throw new UsageError("Give either --compare or --from");
  }
  if ((compare || from) && isRun) {
    throw new UsageError(
      `${compare ? "--compare" : "--from"} reads results, it runs nothing`,
    );
  }
  if (compare) {
    if (compare.length !== 2) {
      throw new UsageError("--compare needs two files of results");
    }
    if (flags.html !== undefined) {
      throw new UsageError("--html is not for --compare");
    }
    return { kind: "compare", first: compare[0]!, second: compare[1]! };
  }
  if (from) return { kind: "report", files: from };
  return { kind: "run", options: readOptions(args, flags) };
}

/** What is written must not be a file that is read, or written otherwise too. */
function requireApart(flags: BenchFlags): void {
  const { output, html, reads, from, compare } = flags;
  const written = [["--output", output], ["--html", html]] as const;
  const others = [
    ["--output", output],
    ["--reads", reads],
    ...(from ?? []).map((path) => ["--from", path] as const),
    ...(compare ?? []).map((path) => ["--compare", path] as const),
  ] as const;
  for (const [option, path] of written) {
    if (path === undefined) continue;
    for (const [other, otherPath] of others) {
      if (other === option || otherPath === undefined) continue;
      if (!isSameFile(path, otherPath)) continue;
      throw new UsageError(
        `${option} "${path}" would overwrite the file of ${other}`,
      );
    }
  }
}

/** By their names, or by what is there: a link is another name of a file. */
function isSameFile(a: string, b: string): boolean {
  if (resolve(a) === resolve(b)) return true;
  try {
    const [one, two] = [Deno.statSync(a), Deno.statSync(b)];
    return one.isFile && one.dev === two.dev && one.ino === two.ino;
  } catch {
    return false; // One of them is not there, so it is not the other.
  }
}

function readOptions(args: string[], flags: BenchFlags): BenchOptions {
  const mode = flags.reduced || Deno.uid() !== 0 ? "reduced" : "full";
  if (flags.reads !== undefined && mode === "full") {
    throw new UsageError("--reads is for --reduced");
  }
  return {
    ...readWorkloads(args, flags),
    contenders: readContenders(flags.contenders),
    link: readLink(flags),
    runs: flags.runs,
    steadySeconds: readNumber(flags.steady, "--steady", 600),
    timeoutMs: flags.timeout * 1000,
    cache: absolute(flags.cache ?? defaultCache()),
    mode,
    readsFile: flags.reads === undefined ? undefined : absolute(flags.reads),
  };
}

function readWorkloads(
  [image, ...command]: string[],
  flags: BenchFlags,
): { workloads: Workload[]; image: string | undefined } {
  const names = flags.workload ?? [];
  if (image === undefined) {
    if (names.length === 0) {
      throw new UsageError("Give --workload NAME, or IMAGE -- COMMAND");
    }
    if (flags.readyExit || flags.readyHttp || flags.readyLog) {
      throw new UsageError("--ready-* is for images of your own");
    }
    return { workloads: [...new Set(names)].map(findWorkload), image };
  }
  if (names.length > 0) {
    throw new UsageError("Give either --workload or an image, not both");
  }
  if (command.length === 0) {
    throw new UsageError("Give the command behind --: IMAGE -- COMMAND");
  }
  return {
    workloads: [{
      name: image,
      madeImage: undefined,
      command,
      ready: parseReady(flags),
    }],
    image,
  };
}

function readContenders(text: string): ContenderName[] {
  const names = text.split(",").filter((name) => name !== "");
  for (const name of names) {
    if ((CONTENDERS as readonly string[]).includes(name)) continue;
    throw new UsageError(
      `Unknown contender "${name}" (there are ${CONTENDERS.join(", ")})`,
    );
  }
  if (names.length === 0) throw new UsageError("--contenders names none");
  return [...new Set(names)] as ContenderName[];
}

function readLink(flags: BenchFlags): LinkSettings {
  if (flags.link !== undefined && parseRate(flags.link) === undefined) {
    throw new UsageError(
      `--link "${flags.link}" is no rate, e.g. 100mbit, 500mbit, 2500mbit`,
    );
  }
  return {
    rate: flags.link,
    rttMs: readNumber(flags.rtt, "--rtt", 10_000),
  };
}

function readNumber(text: string, name: string, max: number): number {
  const value = Number(text);
  if (/^\d+(\.\d+)?$/.test(text) && value <= max) return value;
  throw new UsageError(`${name} "${text}" is no number from 0 to ${max}`);
}

/** Where an ordinary user may write too. */
function defaultCache(): string {
  if (Deno.uid() === 0) return "/var/cache/obd-bench";
  const cache = Deno.env.get("XDG_CACHE_HOME");
  if (cache?.startsWith("/")) return `${cache}/obd-bench`;
  const home = Deno.env.get("HOME");
  if (home) return `${home}/.cache/obd-bench`;
  throw new UsageError("Give --cache DIR: HOME is not set");
}

function absolute(path: string): string {
  return (path.startsWith("/") ? path : `${Deno.cwd()}/${path}`)
    .replace(/\/+$/, "");
}

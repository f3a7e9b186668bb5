/** `obd bench`: cold start against plain OCI, on the user's own machine and images. */

import { errorText, ObdError, UsageError } from "../../lib/io/mod.ts";
import { type ContenderName, CONTENDERS, runContender } from "./contenders.ts";
import {
  type BenchRegistry,
  type LinkSettings,
  parseRate,
  startRegistry,
} from "./link.ts";
import { describeMachine, requirePackages } from "./machine.ts";
import { runTool } from "./process.ts";
import { renderTable, type RunResult, summarize } from "./result.ts";
import {
  findWorkload,
  type ImageSource,
  makeImage,
  parseReady,
  userImage,
  type Workload,
} from "../bench_workloads.ts";
import type { Context } from "../context.ts";
import { selfCommand } from "../mount_serve.ts";
import { requireRoot } from "../mount_steps.ts";

interface BenchFlags {
  workload?: string[];
  contenders: string;
  link?: string;
  rtt: string;
  runs: number;
  steady: string;
  timeout: number;
  cache: string;
  output?: string;
  readyExit?: boolean;
  readyHttp?: string;
  readyLog?: string;
}

/** One image in the bench's registry, with its meta image. */
interface Prepared {
  workload: Workload;
  /** Repository and tag, without the host. */
  image: string;
  nativeImage: string | undefined;
  /** What its line of JSON says. */
  facts: Record<string, unknown>;
}

export async function run(
  context: Context,
  args: string[],
  options: Record<string, unknown>,
): Promise<number> {
  const flags = options as unknown as BenchFlags;
  const { workloads, image } = readWorkloads(args, flags);
  const contenders = readContenders(flags.contenders);
  const link = readLink(flags);
  const steadySeconds = readNumber(flags.steady, "--steady", 600);
  requireRoot("bench");
  requirePackages(workloads.some((w) => w.madeImage !== undefined));
  const cache = absolute(flags.cache);
  await Deno.mkdir(cache, { recursive: true });
  await using stack = new AsyncDisposableStack();
  await lockCache(stack, cache);
  const work = `${cache}/work`;
  await Deno.mkdir(work, { recursive: true });
  const sources = new Map<Workload, ImageSource>();
  for (const workload of workloads) {
    if (workload.madeImage && !context.quiet) {
      note(context, `image of ${workload.name}`);
    }
    sources.set(
      workload,
      workload.madeImage
        ? await makeImage(workload.madeImage, cache, context.signal)
        : userImage(image!),
    );
  }
  const registry = stack.use(
    await startRegistry({
      storage: `${cache}/registry`,
      work,
      link,
      signal: context.signal,
    }),
  );
  const lines = createLines(flags.output);
  const machine = {
    event: "machine",
    ...await describeMachine(),
    command: ["obd", ...Deno.args],
    link: {
      rate: link.rate ?? null,
      rttMs: link.rttMs,
      method: registry.method,
    },
  };
  await lines(machine);
  const prepared: Prepared[] = [];
  for (const [workload, source] of sources) {
    const one = await prepareImage(
      context,
      registry,
      workload,
      source,
      contenders.includes("obd-native"),
    );
    await lines({ event: "image", workload: workload.name, ...one.facts });
    prepared.push(one);
  }
  await registry.shape();
  const results: RunResult[] = [];
  for (const one of prepared) {
    await runWorkload(context, {
      one,
      registry,
      contenders,
      runs: flags.runs,
      cache,
      timeoutMs: flags.timeout * 1000,
      steadySeconds,
      onResult: async (result) => {
        results.push(result);
        await lines({ event: "run", ...result });
      },
    });
  }
  const summaries = summarize(results);
  for (const summary of summaries) {
    await lines({ event: "summary", ...summary });
  }
  context.say(`link: ${registry.method}\n${renderTable(summaries)}`);
  context.result({
    ...machine,
    images: prepared.map((p) => ({ workload: p.workload.name, ...p.facts })),
    results,
    summaries,
  });
  return results.some((r) => r.failure !== undefined) ? 1 : 0;
}

// ---- the command line --------------------------------------------------------

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
    return { workloads: names.map(findWorkload), image };
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

function absolute(path: string): string {
  return (path.startsWith("/") ? path : `${Deno.cwd()}/${path}`)
    .replace(/\/+$/, "");
}

// ---- preparation ---------------------------------------------------------------

/** Two benches would drop each other's page cache, and share the registry's storage. */
async function lockCache(
  stack: AsyncDisposableStack,
  cache: string,
): Promise<void> {
  const lock = stack.use(
    await Deno.open(`${cache}/lock`, { write: true, create: true }),
  );
  if (await lock.tryLock(true)) return;
  throw new ObdError("conflict", `Another bench uses "${cache}"`);
}

/** Puts image and meta image into the registry, past the link. */
async function prepareImage(
  context: Context,
  registry: BenchRegistry,
  workload: Workload,
  { skopeo, repository }: ImageSource,
  native: boolean,
): Promise<Prepared> {
  const { signal } = context;
  const image = `${repository}:v1`;
  const direct = `${registry.direct}/${image}`;
  note(context, `pushing ${image}`);
  await runTool(`copy "${skopeo}" to the registry`, [
    "skopeo",
    "copy",
    "--quiet",
    "--insecure-policy",
    "--dest-tls-verify=false",
    skopeo,
    `docker://${direct}`,
  ], signal);
  note(context, `building the meta image of ${image}`);
  const [obd, ...self] = selfCommand();
  const build = async (...more: string[]) =>
    JSON.parse(
      await runTool(`build the meta image of "${image}"`, [
        obd!,
        ...self,
        "build",
        "--json",
        "--plain-http",
        ...more,
        direct,
      ], signal),
    );
  const built = await build();
  const facts = {
    reference: image,
    digest: built.source.digest,
    compressedBytes: sum(built.layers, "size"),
    layers: built.layers.map((l: { digest: string; size: number }) => ({
      digest: l.digest,
      size: l.size,
    })),
    build: {
      seconds: built.seconds,
      metaBytes: built.meta.size,
      layersReused: built.layers.filter((l: { reused?: boolean }) => l.reused)
        .length,
      layerMetaBytes: sum(built.layers, "metaSize"),
    },
  };
  if (!native) {
    return { workload, image, nativeImage: undefined, facts };
  }
  note(context, `building the native image of ${image}`);
  const tag = "v1-native";
  await build("--format", "overlaybd", "--tag", tag);
  return { workload, image, nativeImage: `${repository}:${tag}`, facts };
}

function sum(items: Record<string, unknown>[], key: string): number {
  let total = 0;
  for (const item of items) total += Number(item[key] ?? 0);
  return total;
}

// ---- runs ----------------------------------------------------------------------

interface WorkloadRun {
  one: Prepared;
  registry: BenchRegistry;
  contenders: ContenderName[];
  runs: number;
  cache: string;
  timeoutMs: number;
  steadySeconds: number;
  onResult(result: RunResult): Promise<void>;
}

async function runWorkload(
  context: Context,
  run: WorkloadRun,
): Promise<void> {
  const { one, contenders, cache } = run;
  const { workload, image, nativeImage } = one;
  const warmCache = `${cache}/work/warm`;
  const start = (name: ContenderName, records = false) =>
    runContender(name, {
      workload,
      registry: run.registry,
      image,
      nativeImage,
      work: `${cache}/work/run`,
      runDir: `/run/obd-bench-${Deno.pid}`,
      warmCache,
      traceFile: `${cache}/work/trace`,
      records,
      deadlineMs: run.timeoutMs,
      steadySeconds: run.steadySeconds,
      signal: context.signal,
    });
  const measure = async (
    contender: ContenderName,
    round: number,
    records = false,
  ) => {
    const result: RunResult = { workload: workload.name, contender, round };
    try {
      result.measurement = await start(contender, records);
      note(
        context,
        `${workload.name} ${contender} ${round}/${run.runs}: ready after ${
          result.measurement.readySeconds.toFixed(2)
        } s`,
      );
    } catch (error) {
      context.signal.throwIfAborted();
      result.failure = errorText(error);
      note(context, `${workload.name} ${contender} failed: ${result.failure}`);
    }
    return result;
  };
  try {
    if (contenders.includes("obd-warm")) {
      note(context, `${workload.name}: filling the warm cache`);
      await measure("obd-warm", 0);
    }
    if (contenders.includes("obd-trace")) {
      note(context, `${workload.name}: recording a trace`);
      await measure("obd", 0, true);
    }
    for (let round = 1; round <= run.runs; round++) {
      // Back and forth, so that what drifts meets all alike.
      const order = round % 2 === 1 ? contenders : contenders.toReversed();
      for (const contender of order) {
        await run.onResult(await measure(contender, round));
      }
    }
  } finally {
    await Deno.remove(warmCache, { recursive: true }).catch(() => {});
  }
}

// ---- output --------------------------------------------------------------------

function note(context: Context, text: string): void {
  if (context.quiet) return;
  console.error(`bench: ${text}`);
}

/** Appends JSON lines to a file, each as soon as it is known. */
function createLines(
  path: string | undefined,
): (value: unknown) => Promise<void> {
  if (path === undefined) return () => Promise.resolve();
  return (value) =>
    Deno.writeTextFile(path, JSON.stringify(value) + "\n", { append: true });
}

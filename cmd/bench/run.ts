/** One bench from its images to its summaries. */

import { dirname } from "node:path";
import { layerReads, openEnvironment, openImage } from "../../lib/image/mod.ts";
import { errorText, ObdError } from "../../lib/io/mod.ts";
import {
  type ImageSource,
  makeImage,
  userImage,
  type Workload,
} from "./workloads.ts";
import type { Context } from "../context.ts";
import type { ContenderName } from "./contenders.ts";
import { limitOf } from "./limit.ts";
import { type BenchRegistry, parseRate } from "./link.ts";
import { describeMachine } from "./machine.ts";
import { type BenchMode, FULL_MODE } from "./mode.ts";
import type { Recording } from "./obd.ts";
import {
  clearRecord,
  readRecord,
  undoDeadBench,
  writeRecord,
} from "./dead_bench.ts";
import type { BenchOptions } from "./options.ts";
import { type Prepared, prepareImage } from "./prepare.ts";
import {
  type RunResult,
  type Session,
  spreadOf,
  summarize,
  type Touched,
} from "./result.ts";
import { planRounds } from "./rounds.ts";
import { runDirectory } from "./run_files.ts";
import type { RunSettings } from "./settings.ts";
import { between, SpeedProbe } from "./speed_probe.ts";

/** Parts of a blob that a read map shows. */
const MAP_CELLS = 200;
const BLOCK = 4096;

/** What a bench is run with. */
export interface BenchRun {
  context: Context;
  options: BenchOptions;
  mode: BenchMode;
  /** Gets each line of the result as soon as it is known. */
  line: (value: Record<string, unknown>) => Promise<void>;
}

/** Runs everything; what fails is in the result. */
export async function runBench(given: BenchRun): Promise<Session> {
  await Deno.mkdir(given.options.cache, { recursive: true });
  // By its own name: mounts are known by theirs, and runc takes no links.
  const cache = await Deno.realPath(given.options.cache);
  const run = { ...given, options: { ...given.options, cache } };
  const { context, options: { link }, mode, line } = run;
  await using stack = new AsyncDisposableStack();
  stack.use(tellCleanUp(context));
  await lockCache(stack, run);
  const work = `${cache}/work`;
  await Deno.mkdir(work, { recursive: true });
  const sources = await imageSources(run);
  const registry = stack.use(
    await mode.startRegistry({
      storage: `${cache}/registry`,
      work,
      link,
      signal: context.signal,
    }),
  );
  const probe = stack.use(await SpeedProbe.start(context.signal));
  const session: Session = {
    machine: {
      ...await describeMachine(),
      started: new Date().toISOString(),
      command: ["obd", ...Deno.args],
      mode: mode.name,
      leavesOut: mode.leavesOut,
      probeMethod: probe.method,
      link: {
        rate: link.rate ?? null,
        bytesPerSecond: (link.rate && parseRate(link.rate)) || null,
        rttMs: link.rttMs,
        method: registry.method,
      },
    },
    images: [],
    touched: [],
    runs: [],
  };
  await line({ event: "machine", ...session.machine });
  const prepared = await prepareAll(run, registry, sources, session);
  await registry.shape();
  await runWorkloads(run, registry, prepared, session, probe);
  for (const summary of summarize(session.runs, session.touched)) {
    await line({ event: "summary", ...summary });
  }
  return session;
}

/**
 * Two benches would drop each other's page cache, and share the registry's
 * storage. Who has the lock undoes what the last one left, if that was killed.
 */
async function lockCache(
  stack: AsyncDisposableStack,
  { context, options: { cache } }: BenchRun,
): Promise<void> {
  const lock = stack.use(
    await Deno.open(`${cache}/lock`, { read: true, write: true, create: true }),
  );
  if (!await lock.tryLock(true)) {
    throw new ObdError(
      "conflict",
      `Another bench uses "${cache}" (--cache DIR uses another one)`,
    );
  }
  const dead = await readRecord(lock);
  if (dead) {
    const undone = await undoDeadBench(dead, cache);
    if (undone.length > 0) {
      note(
        context,
        `undid what a killed bench left (process ${dead.pid}): ${
          undone.join(", ")
        }`,
      );
    }
  }
  await writeRecord(lock);
  stack.defer(() => clearRecord(lock));
}

/** Says that a bench that is stopped is not stuck, until it is disposed of. */
function tellCleanUp(context: Context): Disposable {
  const tell = () => note(context, "stopped, cleaning up");
  context.signal.addEventListener("abort", tell, { once: true });
  return {
    [Symbol.dispose]: () => context.signal.removeEventListener("abort", tell),
  };
}

/** Where images come from, or why one cannot be made. */
async function imageSources(
  { context, options }: BenchRun,
): Promise<Map<Workload, ImageSource | { failure: string }>> {
  const sources = new Map<Workload, ImageSource | { failure: string }>();
  const made = new Map<string, ImageSource | { failure: string }>();
  for (const workload of options.workloads) {
    const name = workload.madeImage;
    if (name === undefined) {
      sources.set(workload, userImage(options.image!));
      continue;
    }
    if (!made.has(name)) {
      note(context, `image ${name}`);
      try {
        made.set(name, await makeImage(name, options.cache, context.signal));
      } catch (error) {
        context.signal.throwIfAborted();
        made.set(name, { failure: errorText(error) });
      }
    }
    sources.set(workload, made.get(name)!);
  }
  return sources;
}

async function prepareAll(
  run: BenchRun,
  registry: BenchRegistry,
  sources: Map<Workload, ImageSource | { failure: string }>,
  session: Session,
): Promise<Prepared[]> {
  const { context, options } = run;
  const { signal } = context;
  const prepared: Prepared[] = [];
  for (const [workload, source] of sources) {
    try {
      if ("failure" in source) throw new ObdError("state", source.failure);
      const one = await prepareImage({
        registry,
        workload,
        source,
        native: options.contenders.includes("obd-native"),
        settings: context.registry,
        work: `${options.cache}/work`,
        note: (text) => note(context, text),
        signal,
      });
      session.images.push(one.facts);
      await run.line({ event: "image", ...one.facts });
      prepared.push(one);
    } catch (error) {
      signal.throwIfAborted();
      const failure = errorText(error);
      note(context, `${workload.name} failed: ${failure}`);
      await failAll(run, session, workload.name, failure);
    }
  }
  return prepared;
}

/** For a workload that cannot be run at all: told once, not in every round. */
async function failAll(
  run: BenchRun,
  session: Session,
  workload: string,
  failure: string,
): Promise<void> {
  for (const contender of run.options.contenders) {
    await addRun(run, session, { workload, contender, round: 1, failure });
  }
}

async function addRun(
  { line }: BenchRun,
  session: Session,
  result: RunResult,
): Promise<void> {
  session.runs.push(result);
  await line({ event: "run", ...result });
}

/** All rounds of all workloads. */
async function runWorkloads(
  run: BenchRun,
  registry: BenchRegistry,
  prepared: readonly Prepared[],
  session: Session,
  probe: SpeedProbe,
): Promise<void> {
  const { context, options, mode } = run;
  const runDir = runDirectory(options.cache, Deno.pid);
  await Deno.mkdir(dirname(runDir), { recursive: true });
  const settings = prepared.map((one, index) =>
    settingsOf(run, registry, runDir, one, index)
  );
  const forget = async () => {
    for (const { warmCache, traceFile } of settings) {
      for (const path of [warmCache, traceFile]) {
        await Deno.remove(path, { recursive: true }).catch(() => {});
      }
    }
  };
  await forget();
  try {
    for (const one of settings) {
      note(context, `${one.workload.name}: recording what it reads`);
      const touched = await record(run, one);
      session.touched.push(touched);
      await run.line({ event: "touched", ...touched });
    }
    const runnable: [number, RunSettings][] = [];
    for (const [index, one] of settings.entries()) {
      const failure = mode.problem(one);
      if (failure === undefined) runnable.push([index, one]);
      else await failAll(run, session, one.workload.name, failure);
    }
    const rounds = planRounds(
      runnable,
      options.contenders,
      options.runs,
    );
    let before = await probe.measure(context.signal);
    for (const { round, workload: [index, one], contender } of rounds) {
      const { nativeFailure } = prepared[index]!;
      const result = await measure(context, contender, round, () => {
        if (contender === "obd-native" && nativeFailure) {
          throw new ObdError("state", nativeFailure);
        }
        // Its caches come from the recording; without them it would be cold.
        const { failure } = session.touched[index]!;
        if (contender === "obd-warm" && failure !== undefined) {
          throw new ObdError("state", `No run filled its caches: ${failure}`);
        }
        return mode.run(contender, one);
      }, { workload: one.workload.name, of: options.runs });
      // Nothing of the run is left; the clock of the next does not run yet.
      const after = await probe.measure(context.signal);
      await addRun(run, session, { ...result, probe: between(before, after) });
      before = after;
    }
  } finally {
    await forget();
  }
}

function settingsOf(
  { context, options }: BenchRun,
  registry: BenchRegistry,
  runDir: string,
  prepared: Prepared,
  index: number,
): RunSettings {
  const work = `${options.cache}/work`;
  return {
    workload: prepared.workload,
    registry,
    image: prepared.image,
    metaDigest: prepared.metaDigest,
    native: prepared.native,
    work: `${work}/run`,
    runDir,
    warmCache: `${work}/warm-${index}`,
    traceFile: `${work}/trace-${index}`,
    deadlineMs: options.timeoutMs,
    steadySeconds: options.steadySeconds,
    signal: context.signal,
  };
}

async function measure(
  context: Context,
  contender: ContenderName,
  round: number,
  start: () => Promise<NonNullable<RunResult["measurement"]>>,
  { workload, of }: { workload: string; of: number },
): Promise<RunResult> {
  const result: RunResult = { workload, contender, round };
  try {
    result.measurement = await start();
    note(
      context,
      `${workload} ${contender} ${round}/${of}: ready after ${
        result.measurement.readySeconds.toFixed(2)
      } s`,
    );
  } catch (error) {
    context.signal.throwIfAborted();
    result.failure = errorText(error);
    note(context, `${workload} ${contender} failed: ${result.failure}`);
  }
  return result;
}

/** What the service reads, and what follows from that; a failure is told, not thrown. */
async function record(
  { context, options, mode }: BenchRun,
  settings: RunSettings,
): Promise<Touched> {
  const workload = settings.workload.name;
  try {
    const { ranges, warmSeconds } = await mode.record(settings);
    const layers = await readsByLayer(context, settings, ranges);
    const storedBytes = layers.reduce((sum, l) => sum + l.storedBytes, 0);
    const { rate, rttMs } = options.link;
    return {
      workload,
      bytes: ranges.reduce((sum, { length }) => sum + length, 0),
      storedBytes,
      layers,
      limit: limitOf({
        warmSeconds: spreadOf(warmSeconds)!.median,
        storedBytes,
        bytesPerSecond: rate === undefined ? undefined : parseRate(rate),
        rttMs,
      }),
    };
  } catch (error) {
    context.signal.throwIfAborted();
    const failure = errorText(error);
    note(context, `${workload}: cannot record what it reads: ${failure}`);
    return { workload, failure, bytes: 0, storedBytes: 0, layers: [] };
  }
}

async function readsByLayer(
  { signal }: Context,
  { registry, image }: RunSettings,
  ranges: Recording["ranges"],
): Promise<Touched["layers"]> {
  await using environment = await openEnvironment({
    signal,
    registry: { plainHttp: true },
    workers: 1,
  });
  await using opened = await openImage(
    environment,
    `${registry.direct}/${image}`,
    { metaFrom: ["tag", "referrer"] },
  );
  const layers = layerReads(opened, wholeBlocks(ranges), MAP_CELLS);
  for (const layer of layers) {
    layer.cells = layer.cells.map((share) => Math.round(share * 1000) / 1000);
  }
  return layers;
}

/** Ranges are of whole blocks already; one that is not would count for more than it was. */
function* wholeBlocks(ranges: Recording["ranges"]) {
  for (const { offset, length } of ranges) {
    const start = Math.floor(offset / BLOCK) * BLOCK;
    const end = Math.ceil((offset + length) / BLOCK) * BLOCK;
    yield { offset: start, length: end - start };
  }
}

/** Progress for people, on stderr. */
export function note(context: Context, text: string): void {
  if (!context.quiet) console.error(`bench: ${text}`);
}

/**
 * The mode for the options.
 *
 * @throws {ObdError} If what is to be replayed cannot be.
 */
export async function modeOf(
  { mode, readsFile }: BenchOptions,
): Promise<BenchMode> {
  if (mode === "full") return FULL_MODE;
  const { createReducedMode } = await import("./reduced.ts");
  const { loadReads } = await import("./reads.ts");
  return createReducedMode(
    readsFile === undefined ? undefined : await loadReads(readsFile),
  );
}

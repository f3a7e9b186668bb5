/** One run's own containerd, and the service's container in it. */

import { ObdError } from "../../lib/io/mod.ts";
import { runProgram, waitUntil } from "../mount_process.ts";
import { endCgroup } from "./cgroups.ts";
import type { CostGroup } from "./cost.ts";
import { type Measurement, since } from "./measurement.ts";
import { BenchProcess } from "./process.ts";
import { askSteadily, waitForReady } from "./ready.ts";
import { diskUse } from "./run_files.ts";
import type { ServeState, WatchedServe } from "./serve_state.ts";
import type { RunSettings } from "./settings.ts";
import { countedStages } from "./stages.ts";

/** For daemons to answer. */
export const DAEMON_DEADLINE_MS = 30_000;
const END_DEADLINE_MS = 5_000;
const CONTAINER_PATH =
  "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Says when it runs, then becomes the service. */
const ANNOUNCING_SHELL = [
  "/bin/sh",
  "-c",
  'echo obd-bench-started; exec "$@"',
  "sh",
];

/** A containerd that runs. */
export interface Containerd {
  /** `ctr` with its address. */
  ctr: string[];
  /** Where it keeps images and snapshots. */
  root: string;
}

/** Starts an empty one; it ends with the stack. */
export async function startContainerd(
  stack: AsyncDisposableStack,
  { work, runDir, signal }: RunSettings,
  group: CostGroup,
): Promise<Containerd> {
  const root = `${work}/containerd`;
  const state = `${runDir}/containerd`;
  const socket = `${runDir}/containerd.sock`;
  const config = `${work}/containerd.toml`;
  const unused = ["cri", "aufs", "btrfs", "devmapper", "zfs"].map((id) =>
    id === "cri"
      ? '"io.containerd.grpc.v1.cri"'
      : `"io.containerd.snapshotter.v1.${id}"`
  );
  await Deno.writeTextFile(
    config,
    `version = 2
root = ${JSON.stringify(root)}
state = ${JSON.stringify(state)}
disabled_plugins = [${unused.join(", ")}]
[grpc]
address = ${JSON.stringify(socket)}
[ttrpc]
address = ${JSON.stringify(socket + ".ttrpc")}
`,
  );
  const daemon = stack.use(
    new BenchProcess(["containerd", "--config", config], { group }),
  );
  const ctr = ["ctr", "--address", socket];
  const isUp = await waitUntil(
    async () =>
      daemon.ended ||
      await Deno.stat(socket).then(
        async () =>
          (await runProgram(ctr[0]!, [...ctr.slice(1), "version"])).code === 0,
        () => false,
      ),
    DAEMON_DEADLINE_MS,
    signal,
  );
  if (!isUp || daemon.ended) {
    throw new ObdError("state", `Cannot start containerd: ${daemon.tail}`);
  }
  return { ctr, root };
}

/** What a container is made of. */
export interface ContainerOptions {
  ctr: string[];
  /** Arguments of `ctr run` that say what the root file system is. */
  root: string[];
  /** Unlike that of any other container of the run; default the run's. */
  id?: string;
  group?: CostGroup;
  onOutput?: () => void;
}

/** Starts the service; it ends with the stack. */
export function startContainer(
  stack: AsyncDisposableStack,
  { workload }: RunSettings,
  options: ContainerOptions,
): BenchProcess {
  const { ctr, group, onOutput } = options;
  const id = options.id ?? `obd-bench-${Deno.pid}`;
  group?.watchService(cgroupOf(id));
  const container = stack.use(
    new BenchProcess([
      ...ctr,
      "run",
      "--net-host",
      "--env",
      `PATH=${CONTAINER_PATH}`,
      "--cwd",
      "/",
      ...options.root,
      id,
      ...(workload.madeImage ? ANNOUNCING_SHELL : []),
      ...workload.command,
    ], {
      ...(group ? { group } : {}),
      ...(onOutput ? { onOutput } : {}),
    }),
  );
  stack.defer(() => endContainer(ctr, id, container));
  return container;
}

/** What {@linkcode runContainer} starts and from when on it counts. */
export interface MeasuredContainer {
  ctr: string[];
  /** See {@linkcode ContainerOptions}. */
  root: string[];
  group: CostGroup;
  started: number;
  rootSeconds: number;
  openedSeconds?: number | undefined;
  /** Directories of what the contender keeps on disk. */
  keeps: string[];
  /** The serve of a lazy contender: as it was with the root file system, and how to ask it. */
  serve?: WatchedServe;
}

/** Starts the service and measures until it is available, and how it does from then on. */
export async function runContainer(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  run: MeasuredContainer,
): Promise<Measurement> {
  const { workload, registry, deadlineMs, signal } = settings;
  const { started, openedSeconds } = run;
  let firstByteSeconds: number | undefined;
  const container = startContainer(stack, settings, {
    ctr: run.ctr,
    root: run.root,
    group: run.group,
    onOutput: () => firstByteSeconds ??= since(started),
  });
  await waitForReady(container, workload.ready, deadlineMs, signal);
  const readySeconds = since(started);
  const { traffic } = registry.proxy;
  const cost = run.group.cost();
  const seenAt = run.group.serviceSeenAt;
  // Before anything else: the service goes on reading.
  const atReady = await run.serve?.state();
  const atRoot = await run.serve?.atRoot;
  const diskBytes = await diskUse(run.keeps, signal);
  const steady = await measureSteady(settings, run.group);
  const measurement: Measurement = {
    ...(openedSeconds === undefined ? {} : { openedSeconds }),
    rootSeconds: run.rootSeconds,
    ...(seenAt === undefined
      ? {}
      : { containerSeconds: Math.round(seenAt - started) / 1000 }),
    ...(firstByteSeconds === undefined ? {} : { firstByteSeconds }),
    readySeconds,
    traffic,
    cost,
    diskBytes,
    ...steady,
  };
  return atRoot && atReady
    ? withServe(measurement, atRoot, atReady)
    : measurement;
}

/** Adds what the serve of a lazy contender has counted. */
export function withServe(
  measurement: Measurement,
  atRoot: ServeState,
  atReady: ServeState,
): Measurement {
  const { edge, reading, metaDigest } = atReady;
  return {
    ...measurement,
    edge,
    reading,
    stages: countedStages(measurement, atRoot.reading, reading),
    ...(metaDigest === undefined ? {} : { metaDigest }),
  };
}

async function measureSteady(
  { workload, steadySeconds, signal }: RunSettings,
  group: CostGroup,
): Promise<Pick<Measurement, "steadyRate" | "steadyCpuSeconds">> {
  if (workload.ready.kind !== "http" || steadySeconds === 0) return {};
  const before = group.allCpuSeconds();
  const { rate, answers } = await askSteadily(
    workload.ready,
    steadySeconds,
    signal,
  );
  const after = group.allCpuSeconds();
  return {
    steadyRate: rate,
    ...(before === undefined || after === undefined || answers === 0
      ? {}
      : { steadyCpuSeconds: (after - before) / answers }),
  };
}

/** Where `ctr run` puts a container: by its namespace and id. */
function cgroupOf(id: string): string {
  return `/default/${id}`;
}

async function endContainer(
  ctr: string[],
  id: string,
  container: BenchProcess,
): Promise<void> {
  const [program, ...args] = ctr;
  const call = (...more: string[]) =>
    runProgram(program!, [...args, ...more]).catch(() => {});
  await call("task", "kill", "--all", "--signal", "SIGKILL", id);
  await waitUntil(() => container.ended, END_DEADLINE_MS);
  await call("task", "delete", "--force", id);
  await call("containers", "delete", id);
  // Should containerd not have ended it: left alone it would go on for ever.
  await endCgroup(cgroupOf(id));
}

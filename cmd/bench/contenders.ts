/**
 * The ways to start an image that a bench compares. All end in the same
 * containerd, shim and runc, and begin with daemons that run already; the clock
 * runs from the pull or mount command.
 */

import { DEVICE_LAYER, encodeTrace } from "../../lib/image/mod.ts";
import { ObdError } from "../../lib/io/mod.ts";
import { createApiClient } from "../api_client.ts";
import type { BenchRegistry } from "./link.ts";
import { BenchProcess, type Cost, CostGroup, runTool } from "./process.ts";
import { requireFreePort, steadyRate, waitForReady } from "./ready.ts";
import type { Traffic } from "./proxy.ts";
import type { Workload } from "../bench_workloads.ts";
import { runProgram, waitUntil } from "../mount_process.ts";
import { selfCommand } from "../mount_serve.ts";

/** Names of contenders. */
export const CONTENDERS = [
  "oci",
  "umoci",
  "obd",
  "obd-trace",
  "obd-native",
  "obd-warm",
] as const;

/** See {@linkcode CONTENDERS}. */
export type ContenderName = typeof CONTENDERS[number];

const DAEMON_DEADLINE_MS = 30_000;
const CONTAINER_PATH =
  "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Says when it runs, then becomes the service. */
const ANNOUNCING_SHELL = [
  "/bin/sh",
  "-c",
  'echo obd-bench-started; exec "$@"',
  "sh",
];

/** What every run of a workload shares. */
export interface RunSettings {
  workload: Workload;
  registry: BenchRegistry;
  /** Repository and tag, without the host. */
  image: string;
  /** Tag of the native image, where there is one. */
  nativeImage: string | undefined;
  /** An empty directory of this run. */
  work: string;
  /** For sockets: short, and this run's alone. */
  runDir: string;
  /** A recorded trace: written by a run that records, read by `obd-trace`. */
  traceFile: string;
  /** This run of obd records. */
  records?: boolean;
  /** Caches that outlive the run; used by the warm contender. */
  warmCache: string;
  deadlineMs: number;
  /** Seconds of requests to the warm service; 0 = none. */
  steadySeconds: number;
  signal: AbortSignal;
}

/** What one run measured. Seconds since the command. */
export interface Measurement {
  /** The root file system is there: pulled and unpacked, or mounted. */
  rootSeconds: number;
  /**
   * The first program of the image runs. Images of the tree have a shell that
   * says so; elsewhere it is the first output, undefined without any.
   */
  firstByteSeconds: number | undefined;
  /** The service is available. */
  readySeconds: number;
  traffic: Traffic;
  /** Of the contender's daemons, commands and shim, without the service itself. */
  cost: Cost;
  /** Bytes on disk of what the contender keeps. */
  diskBytes: number;
  /** Requests per second of the warm service. */
  steadyRate: number | undefined;
}

/** Runs one contender once, cold (or warm, where that is its name). */
export async function runContender(
  name: ContenderName,
  settings: RunSettings,
): Promise<Measurement> {
  const { work, runDir } = settings;
  await using stack = new AsyncDisposableStack();
  await requireFreePort(settings.workload.ready);
  await Deno.mkdir(work, { recursive: true });
  stack.defer(() => removeTree(work));
  await Deno.mkdir(runDir, { recursive: true, mode: 0o700 });
  stack.defer(() => removeTree(runDir));
  const group = await CostGroup.create(`obd-bench-${Deno.pid}`);
  if (group) stack.use(group);
  const containerd = await startContainerd(stack, settings, group);
  if (name === "oci") {
    return await runOci(stack, settings, containerd, group);
  }
  if (name === "umoci") {
    return await runUmoci(stack, settings, containerd, group);
  }
  return await runObd(stack, name, settings, containerd, group);
}

/** One run's containerd. */
interface Containerd {
  /** `ctr` with its address. */
  ctr: string[];
  root: string;
}

async function startContainerd(
  stack: AsyncDisposableStack,
  { work, runDir, signal }: RunSettings,
  group: CostGroup | undefined,
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

/** Plain OCI: pulled and unpacked by containerd onto overlayfs. */
async function runOci(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  { ctr, root }: Containerd,
  group: CostGroup | undefined,
): Promise<Measurement> {
  const reference = `${settings.registry.proxy.address}/${settings.image}`;
  const started = await startClock(settings);
  const pull = stack.use(
    new BenchProcess([
      ...ctr,
      "images",
      "pull",
      "--plain-http",
      "--snapshotter",
      "overlayfs",
      reference,
    ], { group }),
  );
  await ended(pull, settings, "pull the image");
  const rootSeconds = since(started);
  return await runContainer(stack, settings, {
    ctr,
    root: ["--snapshotter", "overlayfs", reference],
    group,
    started,
    rootSeconds,
    keeps: [root],
  });
}

/** Plain OCI where containerd does not unpack: fetched by skopeo, unpacked by umoci. */
async function runUmoci(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  { ctr }: Containerd,
  group: CostGroup | undefined,
): Promise<Measurement> {
  const { work } = settings;
  const started = await startClock(settings);
  const copy = stack.use(
    new BenchProcess([
      "skopeo",
      "copy",
      "--insecure-policy",
      "--src-tls-verify=false",
      `docker://${settings.registry.proxy.address}/${settings.image}`,
      `oci:${work}/layout:image`,
    ], { group }),
  );
  await ended(copy, settings, "fetch the image");
  const unpack = stack.use(
    new BenchProcess([
      "umoci",
      "unpack",
      "--image",
      `${work}/layout:image`,
      `${work}/bundle`,
    ], { group }),
  );
  await ended(unpack, settings, "unpack the image");
  const rootSeconds = since(started);
  return await runContainer(stack, settings, {
    ctr,
    root: ["--rootfs", `${work}/bundle/rootfs`],
    group,
    started,
    rootSeconds,
    keeps: [`${work}/layout`, `${work}/bundle`],
  });
}

/** obd: mounted lazily, an overlay on top, the same containerd. */
async function runObd(
  stack: AsyncDisposableStack,
  name: Exclude<ContenderName, "oci" | "umoci">,
  settings: RunSettings,
  { ctr }: Containerd,
  group: CostGroup | undefined,
): Promise<Measurement> {
  const { work, runDir, warmCache, signal } = settings;
  const cache = name === "obd-warm" ? warmCache : `${work}/cache`;
  const image = name === "obd-native" ? settings.nativeImage : settings.image;
  if (image === undefined) {
    throw new ObdError("state", "There is no native image");
  }
  const api = await startServe(stack, { cache, runDir, signal }, group);
  const mount = `${work}/mnt`;
  await Deno.mkdir(mount);
  const root = `${work}/root`;
  for (const dir of [root, `${work}/upper`, `${work}/work`]) {
    await Deno.mkdir(dir);
  }
  const env = { OBD_RUN_DIR: runDir };
  const started = await startClock(settings);
  const mounting = stack.use(
    new BenchProcess([
      ...selfCommand(),
      "mount",
      "--quiet",
      "--api",
      api,
      ...(name === "obd-trace" ? ["--trace", settings.traceFile] : []),
      `${settings.registry.proxy.address}/${image}`,
      mount,
    ], { env, group }),
  );
  stack.defer(async () => {
    const undo = new BenchProcess(
      [...selfCommand(), "umount", "--quiet", mount],
      { env },
    );
    await undo.status;
  });
  await ended(mounting, settings, "mount the image");
  const recording = settings.records
    ? await startRecording(api, signal)
    : undefined;
  await runTool("mount the overlay", [
    "mount",
    "-t",
    "overlay",
    "overlay",
    "-o",
    `lowerdir=${mount},upperdir=${work}/upper,workdir=${work}/work`,
    root,
  ], signal);
  stack.defer(async () => {
    await runProgram("umount", [root]);
  });
  const rootSeconds = since(started);
  const measurement = await runContainer(stack, settings, {
    ctr,
    root: ["--rootfs", root],
    group,
    started,
    rootSeconds,
    keeps: [cache, `${work}/upper`],
  });
  await recording?.save(settings.traceFile);
  return measurement;
}

/** Records what the one export of a serve reads from now on. */
async function startRecording(
  api: string,
  signal: AbortSignal,
): Promise<{ save(path: string): Promise<void> }> {
  using client = createApiClient(api);
  const { exports } = await client.status({ signal });
  const { name } = exports[0]!;
  await client.startTrace(name, { signal });
  return {
    save: async (path) => {
      using client = createApiClient(api);
      const ranges = await client.stopTrace(name, { signal });
      await Deno.writeFile(
        path,
        encodeTrace(ranges.map((r) => ({ layer: DEVICE_LAYER, ...r }))),
      );
    },
  };
}

/** The daemon of the obd contenders, ready and without images. @returns Its API. */
async function startServe(
  stack: AsyncDisposableStack,
  { cache, runDir, signal }: {
    cache: string;
    runDir: string;
    signal: AbortSignal;
  },
  group: CostGroup | undefined,
): Promise<string> {
  const config = `${runDir}/serve.json`;
  const api = `unix:${runDir}/api.sock`;
  await Deno.mkdir(cache, { recursive: true });
  await Deno.writeTextFile(
    config,
    JSON.stringify({
      nbd: { listen: `unix:${runDir}/nbd.sock` },
      api: { listen: api },
      cacheConfig: { cacheDir: `${cache}/blobs` },
      gzipCacheConfig: { enable: true, cacheDir: `${cache}/gzip` },
      images: [],
    }),
  );
  let isReady = false;
  const serve = stack.use(
    new BenchProcess([...selfCommand(), "serve", "--config", config], {
      group,
      onOutput: (text) => isReady ||= text.includes('"event":"ready"'),
    }),
  );
  await waitUntil(
    () => isReady || serve.ended,
    DAEMON_DEADLINE_MS,
    signal,
  );
  if (!isReady) {
    throw new ObdError("state", `Cannot start obd serve: ${serve.tail}`);
  }
  return api;
}

/** What {@linkcode runContainer} starts and from when on it counts. */
interface ContainerRun {
  ctr: string[];
  /** Arguments of `ctr run` that say what the root file system is. */
  root: string[];
  group: CostGroup | undefined;
  started: number;
  rootSeconds: number;
  /** Directories of what the contender keeps on disk. */
  keeps: string[];
}

async function runContainer(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  run: ContainerRun,
): Promise<Measurement> {
  const { workload, registry, deadlineMs, signal } = settings;
  const { ctr, group, started, rootSeconds } = run;
  const id = `obd-bench-${Deno.pid}`;
  let firstOutput: number | undefined;
  const container = stack.use(
    new BenchProcess([
      ...ctr,
      "run",
      "--net-host",
      "--env",
      `PATH=${CONTAINER_PATH}`,
      "--cwd",
      "/",
      ...run.root,
      id,
      ...(workload.madeImage ? ANNOUNCING_SHELL : []),
      ...workload.command,
    ], {
      group,
      onOutput: () => firstOutput ??= since(started),
    }),
  );
  stack.defer(() => endContainer(ctr, id, container));
  await waitForReady(container, workload.ready, deadlineMs, signal);
  const readySeconds = since(started);
  const traffic = registry.proxy.traffic;
  const cost = await group?.cost() ??
    { cpuSeconds: undefined, peakRssBytes: undefined };
  const diskBytes = await diskUse(run.keeps, signal);
  const rate = workload.ready.kind === "http" && settings.steadySeconds > 0
    ? await steadyRate(workload.ready, settings.steadySeconds, signal)
    : undefined;
  return {
    rootSeconds,
    firstByteSeconds: firstOutput,
    readySeconds,
    traffic,
    cost,
    diskBytes,
    steadyRate: rate,
  };
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
  await waitUntil(() => container.ended, 5_000);
  await call("task", "delete", "--force", id);
  await call("containers", "delete", id);
}

/** Page cache dropped, counters at zero. @returns The time at which the command starts. */
async function startClock({ registry, signal }: RunSettings): Promise<number> {
  await runTool("write back", ["sync"], signal);
  await Deno.writeTextFile("/proc/sys/vm/drop_caches", "3");
  registry.proxy.reset();
  return performance.now();
}

async function ended(
  process: BenchProcess,
  { deadlineMs, signal }: RunSettings,
  action: string,
): Promise<void> {
  const stop = AbortSignal.any([signal, AbortSignal.timeout(deadlineMs)]);
  const stopped = new Promise<never>((_, reject) => {
    stop.addEventListener("abort", () => reject(stop.reason), { once: true });
  });
  await Promise.race([process.success(action), stopped]);
}

function since(started: number): number {
  return Math.round(performance.now() - started) / 1000;
}

async function diskUse(paths: string[], signal: AbortSignal): Promise<number> {
  const out = await runTool(
    "measure disk use",
    ["du", "-skx", ...paths],
    signal,
  );
  let kibibytes = 0;
  for (const line of out.trim().split("\n")) kibibytes += parseInt(line);
  return kibibytes * 1024;
}

/** Removes a directory; what is still mounted below it is unmounted first, never deleted. */
async function removeTree(path: string): Promise<void> {
  const mounts = (await Deno.readTextFile("/proc/self/mounts")).split("\n")
    .map((line) => line.split(" ")[1] ?? "")
    .filter((dir) => dir.startsWith(`${path}/`));
  for (const dir of mounts.reverse()) {
    await runProgram("umount", ["-l", dir]).catch(() => {});
  }
  await runProgram("rm", ["-rf", "--one-file-system", path], 120_000)
    .catch(() => {});
}

/** obd: the image is mounted lazily, with an overlay on it, and run by the same containerd. */

import { DEVICE_LAYER, encodeTrace } from "../../lib/image/mod.ts";
import { delay, ObdError } from "../../lib/io/mod.ts";
import { createApiClient, type TraceRange } from "../api_client.ts";
import { runProgram, waitUntil } from "../mount_process.ts";
import { selfCommand } from "../mount_serve.ts";
import { mountAt, readMounts } from "../mount_table.ts";
import { ended, startClock } from "./clock.ts";
import {
  type Containerd,
  DAEMON_DEADLINE_MS,
  runContainer,
  startContainer,
} from "./containerd.ts";
import type { ContenderName } from "./contenders.ts";
import type { CostGroup } from "./cost.ts";
import { type Measurement, since } from "./measurement.ts";
import { BenchProcess, runTool } from "./process.ts";
import { requireFreePort, waitForReady } from "./ready.ts";
import { builtState, watchServe } from "./serve_state.ts";
import type { RunSettings } from "./settings.ts";

const EXPORT_POLL_MS = 2;
/** Warm starts are repeated until there are so many, or so much time has gone. */
const WARM_STARTS = 3;
const WARM_SECONDS_MAX = 15;
const UNMOUNT_DEADLINE_MS = 15_000;

/** Runs a contender of obd. */
export async function runObd(
  stack: AsyncDisposableStack,
  name: Exclude<ContenderName, "oci" | "umoci">,
  settings: RunSettings,
  { ctr }: Containerd,
  group: CostGroup,
): Promise<Measurement> {
  const { work, warmCache } = settings;
  const cache = name === "obd-warm" ? warmCache : `${work}/cache`;
  const { image, metaDigest } = lazyImage(name, settings);
  const serve = await startServe(stack, settings, cache, group);
  const started = await startClock(settings, group);
  const lower = await mountImage(stack, settings, {
    group,
    image,
    api: serve.api,
    ...(name === "obd-trace" ? { trace: settings.traceFile } : {}),
  });
  const root = await mountOverlay(stack, settings, lower, "root");
  const rootSeconds = since(started);
  const openedAt = serve.openedAt();
  return await runContainer(stack, settings, {
    ctr,
    root: ["--rootfs", root],
    group,
    started,
    openedSeconds: openedAt === undefined
      ? undefined
      : Math.round(openedAt - started) / 1000,
    rootSeconds,
    keeps: [cache, `${root}.upper`],
    serve: watchServe(serve.api, metaDigest, settings.signal),
  });
}

/** What a run found that is not measured. */
export interface Recording {
  /** Blocks of 4 KiB that were read until the service was available, in the order of first reads. */
  ranges: TraceRange[];
  /** Starts of the same container with everything at hand, in seconds. */
  warmSeconds: number[];
}

/**
 * Starts the service once and records what it reads, from the mount on; then
 * starts it again on what is now in the page cache. Fills the warm cache on the
 * way, and writes the trace.
 */
export async function recordObd(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  { ctr }: Containerd,
  group: CostGroup,
): Promise<Recording> {
  const { workload, deadlineMs, signal } = settings;
  const { api } = await startServe(stack, settings, settings.warmCache, group);
  await startClock(settings, group);
  const stopWaiting = new AbortController();
  const recording = recordFirstExport(
    api,
    AbortSignal.any([signal, stopWaiting.signal]),
  );
  recording.catch(() => {});
  let lower: string;
  try {
    lower = await mountImage(stack, settings, {
      group,
      image: settings.image,
      api,
    });
  } catch (error) {
    stopWaiting.abort();
    throw error;
  }
  const stopRecording = await recording;
  const start = async (name: string, atReady?: () => Promise<void>) => {
    await using own = new AsyncDisposableStack();
    const root = await mountOverlay(own, settings, lower, name);
    await requireFreePort(workload.ready);
    const started = performance.now();
    const container = startContainer(own, settings, {
      ctr,
      root: ["--rootfs", root],
      id: `obd-bench-${Deno.pid}-${name}`,
      group,
    });
    await waitForReady(container, workload.ready, deadlineMs, signal);
    const seconds = since(started);
    await atReady?.();
    return seconds;
  };
  let ranges: TraceRange[] = [];
  // Before it is ended: a service goes on reading.
  await start("first", async () => {
    ranges = await stopRecording();
  });
  await builtState(api, settings.metaDigest, signal);
  await Deno.writeFile(
    settings.traceFile,
    encodeTrace(ranges.map((r) => ({ layer: DEVICE_LAYER, ...r }))),
  );
  const warmSeconds: number[] = [];
  const begun = performance.now();
  while (
    warmSeconds.length === 0 ||
    warmSeconds.length < WARM_STARTS && since(begun) < WARM_SECONDS_MAX
  ) warmSeconds.push(await start(`warm${warmSeconds.length}`));
  return { ranges, warmSeconds };
}

/** Begins to record as soon as a serve has its first export: before anybody can read of it. */
async function recordFirstExport(
  api: string,
  signal: AbortSignal,
): Promise<() => Promise<TraceRange[]>> {
  using client = createApiClient(api);
  for (;;) {
    const { exports } = await client.status({ signal });
    if (exports[0]) {
      const { name } = exports[0];
      await client.startTrace(name, { signal });
      return async () => {
        using client = createApiClient(api);
        return await client.stopTrace(name);
      };
    }
    await delay(EXPORT_POLL_MS, signal);
  }
}

/** What a contender opens: the image, and what was built of it. */
export function lazyImage(
  name: ContenderName,
  { image, metaDigest, native }: RunSettings,
): { image: string; metaDigest: string } {
  if (name !== "obd-native") return { image, metaDigest };
  if (native) return native;
  throw new ObdError("state", "There is no native image");
}

/** A daemon of obd that runs. */
export interface BenchServe {
  /** Address of its API. */
  api: string;
  /** Where it answers NBD clients. */
  nbd: string;
  /** When it had opened the image, as `performance.now()`. */
  openedAt(): number | undefined;
}

/** The daemon of the obd contenders, ready and without images; it ends with the stack. */
export async function startServe(
  stack: AsyncDisposableStack,
  { runDir, signal }: RunSettings,
  cache: string,
  group: CostGroup,
): Promise<BenchServe> {
  const config = `${runDir}/serve.json`;
  const api = `unix:${runDir}/api.sock`;
  const nbd = `unix:${runDir}/nbd.sock`;
  await Deno.mkdir(cache, { recursive: true });
  await Deno.writeTextFile(
    config,
    JSON.stringify({
      nbd: { listen: nbd },
      api: { listen: api },
      cacheConfig: { cacheDir: `${cache}/blobs` },
      gzipCacheConfig: { enable: true, cacheDir: `${cache}/gzip` },
      images: [],
    }),
  );
  let isReady = false;
  let openedAt: number | undefined;
  const serve = stack.use(
    new BenchProcess([...selfCommand(), "serve", "--config", config], {
      group,
      name: "obd serve",
      onOutput: (text) => {
        isReady ||= text.includes('"event":"ready"');
        if (text.includes("export added")) openedAt ??= performance.now();
      },
    }),
  );
  await waitUntil(() => isReady || serve.ended, DAEMON_DEADLINE_MS, signal);
  if (!isReady) {
    throw new ObdError("state", `Cannot start obd serve: ${serve.tail}`);
  }
  return { api, nbd, openedAt: () => openedAt };
}

/** `obd mount`, undone with the stack. @returns The mount point. */
async function mountImage(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  { group, image, api, trace }: {
    group: CostGroup;
    /** Repository and tag. */
    image: string;
    api: string;
    /** A file. */
    trace?: string;
  },
): Promise<string> {
  const { work, runDir } = settings;
  const dir = `${work}/mnt`;
  await Deno.mkdir(dir);
  const env = { OBD_RUN_DIR: runDir };
  // Before the mount: what was begun is undone too.
  stack.defer(() => unmountImage(dir, env));
  const mounting = stack.use(
    new BenchProcess([
      ...selfCommand(),
      "mount",
      "--quiet",
      "--api",
      api,
      ...(trace === undefined ? [] : ["--trace", trace]),
      `${settings.registry.proxy.address}/${image}`,
      dir,
    ], { env, group, name: "obd mount" }),
  );
  await ended(mounting, settings, "mount the image");
  return dir;
}

/** Undoes a mount; what is left of a container may hold it for a moment. */
async function unmountImage(
  dir: string,
  env: Record<string, string>,
): Promise<void> {
  const device = mountAt(await readMounts(), dir)?.source;
  const isUndone = await waitUntil(async () => {
    const undo = new BenchProcess(
      [...selfCommand(), "umount", "--quiet", dir],
      { env },
    );
    return await undo.status === 0;
  }, UNMOUNT_DEADLINE_MS);
  if (isUndone) return;
  // Its server ends next: a device that is left then is nobody's.
  await runProgram("umount", ["-l", dir]).catch(() => {});
  if (device?.startsWith("/dev/loop")) {
    await runProgram("losetup", ["-d", device]).catch(() => {});
  }
}

/** A writable overlay, as every container has one. @returns Its mount point; its upper directory has ".upper" behind. */
async function mountOverlay(
  stack: AsyncDisposableStack,
  { work, signal }: RunSettings,
  lower: string,
  name: string,
): Promise<string> {
  const root = `${work}/${name}`;
  for (const dir of [root, `${root}.upper`, `${root}.work`]) {
    await Deno.mkdir(dir);
  }
  stack.defer(async () => {
    await waitUntil(
      async () =>
        mountAt(await readMounts(), root) === undefined ||
        (await runProgram("umount", [root])).code === 0,
      UNMOUNT_DEADLINE_MS,
    );
  });
  await runTool("mount the overlay", [
    "mount",
    "-t",
    "overlay",
    "overlay",
    "-o",
    `lowerdir=${lower},upperdir=${root}.upper,workdir=${root}.work`,
    root,
  ], signal);
  return root;
}

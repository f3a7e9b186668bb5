/**
 * A bench for ordinary users: no containers and no mounts. What the workload
 * reads is replayed through obd's own NBD client against a real `obd serve`;
 * plain OCI is fetched by skopeo and unpacked by umoci.
 */

import { DEVICE_LAYER, encodeTrace, isTraceOf } from "../../lib/image/mod.ts";
import { errorText, FormatError, ObdError } from "../../lib/io/mod.ts";
import { NbdClient } from "../../lib/nbd/mod.ts";
import { createApiClient } from "../api_client.ts";
import { startClock } from "./clock.ts";
import { withServe } from "./containerd.ts";
import { type ContenderName, withRun } from "./contenders.ts";
import type { CostGroup } from "./cost.ts";
import { traceFileAccess } from "./file_access.ts";
import { startUserRegistry } from "./link.ts";
import { type Measurement, since } from "./measurement.ts";
import type { BenchMode } from "./mode.ts";
import {
  type BenchServe,
  lazyImage,
  type Recording,
  startServe,
} from "./obd.ts";
import { fetchAndUnpack } from "./oci.ts";
import { type Reads, readUnpacked, replayReads } from "./reads.ts";
import { diskUse } from "./run_files.ts";
import { builtState, watchServe } from "./serve_state.ts";
import type { RunSettings } from "./settings.ts";

const EXPORT = "bench";
const WARM_REPLAYS = 3;
/** Told of each contender; why it is so was told when it was recorded. */
const UNKNOWN = "Nothing can be replayed: it is not known what it reads";

const LEAVES_OUT = [
  "containers: no containerd, no runc, and the service does not run; ready means that all it reads was read",
  "the kernel's file system and its readahead: files are read whole, one after the other, by obd's own NBD client",
  "containerd's unpacking with pigz: plain OCI is skopeo and umoci",
  "steady state, and the page cache, which is not dropped (obd's own caches are empty)",
];

/**
 * A mode for one bench: what a workload reads is found out once.
 *
 * @param given What every workload reads; default what is found out.
 */
export function createReducedMode(given?: Reads): BenchMode {
  const known = new Map<string, Reads>();
  const readsOf = ({ workload }: RunSettings): Reads => {
    const reads = known.get(workload.name);
    if (reads) return reads;
    throw new ObdError("state", UNKNOWN);
  };
  return {
    name: "reduced",
    leavesOut: LEAVES_OUT,
    startRegistry: startUserRegistry,
    record: (settings) =>
      withRun(settings, async (stack, group) => {
        const { name } = settings.workload;
        try {
          const reads = given ?? await findReads(stack, settings, group);
          known.set(name, reads);
        } catch (error) {
          settings.signal.throwIfAborted();
          throw new ObdError(
            "state",
            `Cannot find out what it reads: ${errorText(error)}`,
            { cause: error },
          );
        }
        try {
          return await record(stack, settings, group, readsOf(settings));
        } catch (error) {
          if (error instanceof FormatError) known.delete(name);
          throw error;
        }
      }),
    problem: ({ workload }) => known.has(workload.name) ? undefined : UNKNOWN,
    run: (name, settings) =>
      withRun(settings, async (stack, group) => {
        const reads = readsOf(settings);
        return name === "oci" || name === "umoci"
          ? await runPlain(stack, settings, group, reads)
          : await runLazy(stack, name, settings, group, reads);
      }),
  };
}

async function findReads(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  group: CostGroup,
): Promise<Reads> {
  await fetchAndUnpack(stack, settings, group);
  return await traceFileAccess(`${settings.work}/bundle/rootfs`, settings);
}

/** Opens the image in a serve. @returns A device that ends with the stack. */
async function connect(
  stack: AsyncDisposableStack,
  { registry, signal }: RunSettings,
  { api }: BenchServe,
  image: string,
  trace?: string,
): Promise<NbdClient> {
  using client = createApiClient(api);
  const { uri } = await client.addExport({
    name: EXPORT,
    image: `${registry.proxy.address}/${image}`,
    ...(trace === undefined ? {} : { trace }),
  }, { signal });
  return stack.use(await NbdClient.connect(uri));
}

/** Offsets of another device would be read as well, and would say nothing. */
async function requireSameDevice(
  device: NbdClient,
  reads: Reads,
  signal: AbortSignal,
): Promise<void> {
  if (reads.kind !== "ranges") return;
  if (await isTraceOf(reads.device, device, signal)) return;
  throw new FormatError(
    "trace",
    "device",
    "is not that of the image: it was recorded of another one, or of this one built otherwise",
  );
}

async function record(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  group: CostGroup,
  reads: Reads,
): Promise<Recording> {
  const { signal } = settings;
  const serve = await startServe(stack, settings, settings.warmCache, group);
  await startClock(settings, group);
  const device = await connect(stack, settings, serve, settings.image);
  await requireSameDevice(device, reads, signal);
  using api = createApiClient(serve.api);
  await api.startTrace(EXPORT, { signal });
  await replayReads(device, reads, () => {}, signal);
  const ranges = await api.stopTrace(EXPORT);
  await builtState(serve.api, settings.metaDigest, signal);
  await Deno.writeFile(
    settings.traceFile,
    encodeTrace(ranges.map((r) => ({ layer: DEVICE_LAYER, ...r }))),
  );
  const warmSeconds: number[] = [];
  for (let i = 0; i < WARM_REPLAYS; i++) {
    const started = performance.now();
    await replayReads(device, reads, () => {}, signal);
    warmSeconds.push(since(started));
  }
  return { ranges, warmSeconds };
}

async function runPlain(
  stack: AsyncDisposableStack,
  settings: RunSettings,
  group: CostGroup,
  reads: Reads,
): Promise<Measurement> {
  const { work, registry, signal } = settings;
  const started = await startClock(settings, group);
  await fetchAndUnpack(stack, settings, group);
  const rootSeconds = since(started);
  let firstByteSeconds = rootSeconds;
  let isFirst = true;
  await readUnpacked(`${work}/bundle/rootfs`, reads, () => {
    if (isFirst) firstByteSeconds = since(started);
    isFirst = false;
  }, signal);
  return {
    rootSeconds,
    firstByteSeconds,
    readySeconds: since(started),
    traffic: registry.proxy.traffic,
    cost: group.cost(),
    diskBytes: await diskUse([`${work}/layout`, `${work}/bundle`], signal),
  };
}

async function runLazy(
  stack: AsyncDisposableStack,
  name: Exclude<ContenderName, "oci" | "umoci">,
  settings: RunSettings,
  group: CostGroup,
  reads: Reads,
): Promise<Measurement> {
  const { work, registry, warmCache, signal } = settings;
  const cache = name === "obd-warm" ? warmCache : `${work}/cache`;
  const { image, metaDigest } = lazyImage(name, settings);
  const serve = await startServe(stack, settings, cache, group);
  const started = await startClock(settings, group);
  const device = await connect(
    stack,
    settings,
    serve,
    image,
    name === "obd-trace" ? settings.traceFile : undefined,
  );
  const openedSeconds = since(started);
  const watched = watchServe(serve.api, metaDigest, signal);
  let firstByteSeconds: number | undefined;
  await replayReads(
    device,
    reads,
    () => firstByteSeconds ??= since(started),
    signal,
  );
  const readySeconds = since(started);
  const { traffic } = registry.proxy;
  const cost = group.cost();
  const atReady = await watched.state();
  return withServe(
    {
      openedSeconds,
      rootSeconds: openedSeconds,
      ...(firstByteSeconds === undefined ? {} : { firstByteSeconds }),
      readySeconds,
      traffic,
      cost,
      diskBytes: await diskUse([cache], signal),
    },
    await watched.atRoot,
    atReady,
  );
}

/**
 * The steps from an image to a device or a mount, and back. Each step is in
 * the state before or as soon as it is done; undoing looks at what is really
 * there, so that it works after any crash and can be repeated.
 */

import { CancelledError, NotFoundError, ObdError } from "../lib/io/mod.ts";
import type { ExportStatus } from "./api.ts";
import {
  type ApiClient,
  ApiUnreachableError,
  createApiClient,
  type NewExport,
} from "./api_client.ts";
import type { Context } from "./context.ts";
import {
  attachDevice,
  ownsDevice,
  releaseDevice,
  warmUpDriver,
} from "./mount_device.ts";
import { findHolders, mountHolders } from "./mount_holders.ts";
import { mustRun, runProgram, waitUntil } from "./mount_process.ts";
import {
  absolutePath,
  findServe,
  startServe,
  stopServe,
} from "./mount_serve.ts";
import type { PrefetchRequest } from "./prefetch_options.ts";
import type { MountDirectory, MountState, SaveState } from "./mount_state.ts";
import {
  deviceNumber,
  hasFileSystem,
  mountAt,
  probeFileSystem,
  readMounts,
} from "./mount_table.ts";

/** Reading a superblock from a registry that is slow, or not there. */
const MOUNT_DEADLINE_MS = 200_000;
const RELEASE_DEADLINE_MS = 5_000;
/** A file system that nobody holds is gone when umount(8) returns; this is for a slow machine. */
const GONE_DEADLINE_MS = 1_000;

/** What to make. */
export interface MountRequest {
  /** A reference, or the path of an overlaybd config. */
  image: string;
  platform: string | undefined;
  /** Mount point, absolute; without it only a device is made. */
  dir: string | undefined;
  driver: MountState["driver"];
  /** `--trace`, `--prefetch-…` */
  prefetch: PrefetchRequest;
  /** `--device` */
  device: string | undefined;
  /** `--api` */
  api: string | undefined;
}

/** @throws {ObdError} Unless this process is root. */
export function requireRoot(what: string): void {
  if (Deno.uid() === 0) return;
  throw new ObdError(
    "state",
    `Cannot ${what}: only root may (obd ls, cat and dump need no root)`,
  );
}

/**
 * Makes what was asked for. If a step fails, those before it are undone in
 * reverse order.
 */
export async function makeMount(
  context: Context,
  directory: MountDirectory,
  request: MountRequest,
): Promise<MountState> {
  const { signal } = context;
  let state: MountState = {
    version: 1,
    id: directory.id,
    kind: request.dir === undefined ? "attach" : "mount",
    image: absoluteImage(request.image),
    ...(request.dir === undefined ? {} : { dir: request.dir }),
    ...(request.platform ? { platform: request.platform } : {}),
    export: `obd-${directory.id}`,
    api: "",
    driver: request.driver,
    started: new Date().toISOString(),
    complete: false,
  };
  const save: SaveState = async (change) => {
    state = { ...state, ...change };
    await directory.write(state);
  };
  try {
    // Whether it works will be seen when it is needed.
    const warmed = warmUpDriver(request.driver).catch(() => {});
    await openExport(context, directory, request, () => state, save)
      .finally(() => warmed);
    signal.throwIfAborted();
    const device = await attachDevice({
      directory,
      driver: request.driver,
      uri: state.uri!,
      size: state.size!,
      requestTimeout: state.requestTimeout,
      device: request.device,
      signal,
      save,
    });
    signal.throwIfAborted();
    if (request.dir !== undefined) {
      const fsType = await probeFileSystem(device);
      if (fsType === undefined) {
        throw new ObdError(
          "unsupported",
          `Cannot mount "${state.image}": its device has neither an ext4 nor an EROFS file system`,
        );
      }
      await save({ fsType });
      await mountDevice(state);
    }
    signal.throwIfAborted();
    await save({ complete: true });
    return state;
  } catch (error) {
    await undo(context, directory, state);
    throw error;
  }
}

async function undo(
  context: Context,
  directory: MountDirectory,
  state: MountState,
): Promise<void> {
  try {
    await tearDown(directory, state);
  } catch (error) {
    context.log.warn("not everything could be undone", {
      state: directory.path,
      error: error instanceof Error ? error.message : String(error),
    });
  }
}

/** Paths in an image's name, made absolute: serve has another working directory. */
export function absoluteImage(image: string): string {
  const layout = /^(oci|oci-archive):(.+)$/s.exec(image);
  if (layout) return `${layout[1]}:${absolutePath(layout[2]!)}`;
  return isConfigFile(image) ? absolutePath(image) : image;
}

/** The rule of `lib/image/config_file.ts`, all of which would be loaded for it. */
export function isConfigFile(image: string): boolean {
  if (/^docker:/.test(image)) return false;
  if (!image.includes("/") && !image.endsWith(".json")) return false;
  try {
    return Deno.statSync(image).isFile;
  } catch {
    return false;
  }
}

// ---- the export ----------------------------------------------------------------

async function openExport(
  context: Context,
  directory: MountDirectory,
  request: MountRequest,
  state: () => MountState,
  save: SaveState,
): Promise<void> {
  const { signal, log } = context;
  const running = await findServe(request.api, signal);
  if (running === undefined) {
    await startServe(context, directory, (own) =>
      save({
        api: own.api,
        serve: own.process,
        privateCache: own.privateCache,
        serveOptions: own.options,
      }));
  } else {
    if (Object.keys(context.registry).length > 0) {
      log.warn("registry options are those of the running serve", {
        api: running,
      });
    }
    await save({ api: running });
  }
  using client = createApiClient(state().api);
  const { image, export: name } = state();
  log.info("opening image", { image });
  let exported: ExportStatus;
  try {
    exported = await addExport(client, {
      name,
      ...(isConfigFile(image) ? { config: image } : { image }),
      ...(request.platform ? { platform: request.platform } : {}),
      ...request.prefetch,
    }, signal);
  } catch (error) {
    if (!(error instanceof ObdError) || error instanceof CancelledError) {
      throw error;
    }
    // Our own name of the export tells nobody anything.
    const text = error.message.replace(`Cannot open export "${name}": `, "");
    throw new ObdError(error.code, `Cannot open "${image}": ${text}`);
  }
  await save({
    uri: exported.uri,
    size: exported.size,
    integrity: exported.integrity,
    ...(exported.requestTimeoutSeconds
      ? { requestTimeout: exported.requestTimeoutSeconds }
      : {}),
    ...(exported.source ? { source: exported.source } : {}),
    ...(exported.meta ? { meta: exported.meta } : {}),
  });
}

async function addExport(
  client: ApiClient,
  body: NewExport,
  signal: AbortSignal,
): Promise<ExportStatus> {
  try {
    return await client.addExport(body, { signal });
  } catch (error) {
    if (!(error instanceof ObdError) || error.code !== "conflict") throw error;
    // Names are made from ids, so it is one that a mount left which was killed.
    try {
      await client.removeExport(body.name, { signal });
    } catch (inner) {
      throw inner instanceof NotFoundError ? error : inner;
    }
    return await client.addExport(body, { signal });
  }
}

async function releaseExport(state: MountState): Promise<void> {
  if (state.serve) return await stopServe(state.serve, state.privateCache);
  if (state.api === "") return;
  using client = createApiClient(state.api);
  let failure: unknown;
  // A client that has just gone may still be counted as connected.
  await waitUntil(async () => {
    try {
      failure = undefined;
      await client.removeExport(state.export);
    } catch (error) {
      if (error instanceof NotFoundError) return true;
      // With the server its exports are gone.
      if (error instanceof ApiUnreachableError) return true;
      failure = error;
      return !(error instanceof ObdError && error.code === "conflict");
    }
    return true;
  }, RELEASE_DEADLINE_MS);
  if (failure !== undefined) throw failure;
}

// ---- the mount -----------------------------------------------------------------

async function mountDevice(state: MountState): Promise<void> {
  // noload: nothing is replayed, so that nothing would be written.
  const options = state.fsType === "ext4" ? "ro,noload" : "ro";
  await mustRun(`mount ${state.device} at "${state.dir}"`, "mount", [
    "-t",
    state.fsType!,
    "-o",
    options,
    state.device!,
    state.dir!,
  ], MOUNT_DEADLINE_MS);
}

/** Whether the mount or device of a state is there. */
export async function isAlive(
  directory: { path: string },
  state: MountState,
): Promise<boolean> {
  if (!await ownsDevice(directory, state)) return false;
  if (state.dir === undefined) return true;
  const number = await deviceNumber(state.device!);
  const mounts = await readMounts();
  return mounts.some((m) => m.mountPoint === state.dir && m.device === number);
}

/**
 * Undoes {@linkcode makeMount}: mount, device, export or serve, state.
 *
 * @throws {ObdError} Code `conflict` naming the holders; then nothing was changed.
 */
export async function tearDown(
  directory: MountDirectory,
  state: MountState,
): Promise<void> {
  if (await isAlive(directory, state)) {
    if (state.dir === undefined) await requireUnused(state);
    else await unmount(state);
  }
  await releaseDevice(directory, state);
  await releaseExport(state);
  await directory.clear();
}

/** For a device that is not mounted by us. */
async function requireUnused(state: MountState): Promise<void> {
  const device = state.device!;
  const number = await deviceNumber(device);
  let holders: string[] = [];
  // Others (udev) look at a device for a moment.
  await waitUntil(async () => {
    holders = await findHolders({ device, number });
    return holders.length === 0;
  }, 1000);
  if (holders.length > 0) throw busy(`detach ${device}`, holders);
  if (await hasFileSystem(device)) throw busy(`detach ${device}`, holders);
}

async function unmount(state: MountState): Promise<void> {
  const dir = state.dir!;
  const device = state.device!;
  const number = await deviceNumber(device);
  const used = { dir, device, number };
  const action = `unmount "${dir}"`;
  if (mountAt(await readMounts(), dir)?.device !== number) {
    throw busy(action, ["another mount on top of it"]);
  }
  const on = mountHolders(
    await Deno.readTextFile("/proc/self/mountinfo"),
    used,
  );
  if (on.length > 0) throw busy(action, on);
  const { code, stderr } = await runProgram("umount", [dir]);
  if (code !== 0) {
    if (/busy/.test(stderr)) {
      throw busy(action, await findHolders(used, { copies: false }));
    }
    throw new ObdError("state", `Cannot ${action}: ${stderr}`);
  }
  const gone = await waitUntil(
    async () => !await hasFileSystem(device),
    GONE_DEADLINE_MS,
  );
  if (gone) return;
  // Held by what the mount table does not show, e.g. an overlay elsewhere:
  // all stays as it was.
  const holders = await findHolders(used);
  await mountDevice(state);
  throw busy(action, holders);
}

function busy(action: string, holders: string[]): ObdError {
  return new ObdError(
    "conflict",
    `Cannot ${action}: it is in use by ${
      holders.join(", ") || "something that cannot be found"
    }`,
  );
}

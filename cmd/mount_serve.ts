/**
 * The serve behind a mount: one that runs already, or one of the mount's own,
 * in the background.
 */

import { fileURLToPath } from "node:url";
import { exists, ObdError, UsageError } from "../lib/io/mod.ts";
import { ApiUnreachableError, createApiClient } from "./api_client.ts";
import type { Context, RegistrySettings } from "./context.ts";
import {
  endProcess,
  logTail,
  pathBytes,
  startDetached,
  waitUntil,
} from "./mount_process.ts";
import {
  cacheDirectory,
  type MountDirectory,
  type ProcessRef,
  runDirectory,
} from "./mount_state.ts";

const READY_DEADLINE_MS = 60_000;
/** A busy serve answers its status late, but it answers. */
const PROBE_DEADLINE_MS = 10_000;
/** serve gives requests in flight 20 s; then it is over. */
const STOP_DEADLINE_MS = 25_000;
/** sun_path has 108 bytes with its NUL, and a socket is bound in a directory of 8 characters beside it. */
const SOCKET_DIRECTORY_MAX = 107 - "/nbd.sock".length;

/** A serve that was started for one mount. */
export interface OwnServe {
  process: ProcessRef;
  /** Address of its status API. */
  api: string;
  /** Directory of caches that nobody else uses; absent with the shared ones. */
  privateCache: string | undefined;
  /** What it was started with, for the next time. */
  options: string[];
}

/**
 * The address of a serve that runs.
 *
 * @param given `--api`; the one that is given must answer.
 * @returns Undefined when none was given and none runs at the usual place.
 */
export async function findServe(
  given: string | undefined,
  signal: AbortSignal,
): Promise<string | undefined> {
  const address = given ?? `unix:${runDirectory()}/api.sock`;
  using client = createApiClient(address);
  try {
    await client.status({ deadlineMs: PROBE_DEADLINE_MS, signal });
    return address;
  } catch (error) {
    if (given === undefined && error instanceof ApiUnreachableError) {
      return undefined;
    }
    throw error;
  }
}

/** How to start this very program once more, from source, bundle or executable. */
export function selfCommand(): string[] {
  if (Deno.build.standalone) return [Deno.execPath()];
  const main = fileURLToPath(Deno.mainModule);
  // The bundle stands alone; the source needs the deno.json beside it.
  const alone = main.endsWith(".js")
    ? ["--no-config", "--no-lock", "--no-remote"]
    : [];
  return [Deno.execPath(), "run", "-A", "--no-prompt", ...alone, main];
}

/**
 * Starts a serve of the mount's own and waits until it is ready.
 *
 * @param onStarted Gets each process as soon as there is one: should this
 * process be killed while it waits, somebody must be able to end that one.
 * @param options Those that {@linkcode OwnServe} had the last time; without
 * them those of this command line.
 * @throws {ObdError} With the last lines of its log, if it does not get ready.
 */
export async function startServe(
  context: Context,
  directory: MountDirectory,
  onStarted: (serve: OwnServe) => Promise<void>,
  options = registryFlags(context.registry),
): Promise<void> {
  if (pathBytes(directory.path) > SOCKET_DIRECTORY_MAX) {
    throw new UsageError(
      `Path "${directory.path}" is too long for sockets: set OBD_RUN_DIR to a shorter one`,
    );
  }
  const own = `${privateCaches()}/${directory.id}`;
  await removeLostCaches();
  const shared = await areSharedCachesFree();
  try {
    await launch(
      context,
      directory,
      shared ? undefined : own,
      onStarted,
      options,
    );
  } catch (error) {
    // Another mount may have taken the shared caches a moment before.
    if (!shared || await areSharedCachesFree()) throw error;
    context.signal.throwIfAborted();
    await launch(context, directory, own, onStarted, options);
  }
}

/** Whether no process owns the caches that serve uses by default. */
async function areSharedCachesFree(): Promise<boolean> {
  for (const name of ["blobs", "gzip"]) {
    try {
      using lock = await Deno.open(`${cacheDirectory()}/${name}/lock`, {
        read: true,
        write: true,
      });
      if (!await lock.tryLock(true)) return false;
    } catch {
      // Not there yet; or not usable, which serve will say.
    }
  }
  return true;
}

/** Where mounts have caches that nobody else uses, each by its id. */
function privateCaches(): string {
  return `${cacheDirectory()}/mounts`;
}

/** Removes caches of mounts that a reboot ended: their state, in `/run`, is gone. */
async function removeLostCaches(): Promise<void> {
  const ids = await Array.fromAsync(Deno.readDir(privateCaches()))
    .catch(() => []);
  for (const { name: id } of ids) {
    if (await exists(`${runDirectory()}/mounts/${id}`)) continue;
    const path = `${privateCaches()}/${id}`;
    try {
      using lock = await Deno.open(`${path}/blobs/lock`, {
        read: true,
        write: true,
      });
      if (await lock.tryLock(true)) await removeCache(path);
    } catch {
      // Not a whole one. It costs room, and nothing else.
    }
  }
}

async function launch(
  context: Context,
  directory: MountDirectory,
  privateCache: string | undefined,
  onStarted: (serve: OwnServe) => Promise<void>,
  options: string[],
): Promise<void> {
  const { path } = directory;
  const cache = privateCache ?? cacheDirectory();
  const api = `unix:${path}/api.sock`;
  await Deno.writeTextFile(
    `${path}/serve.json`,
    JSON.stringify({
      nbd: { listen: `unix:${path}/nbd.sock` },
      api: { listen: api },
      cacheConfig: { cacheDir: `${cache}/blobs` },
      gzipCacheConfig: { enable: true, cacheDir: `${cache}/gzip` },
      images: [],
    }),
    { mode: 0o600 },
  );
  const log = `${path}/serve.log`;
  const out = `${path}/serve.out`;
  await Deno.writeTextFile(out, "", { mode: 0o600 });
  const { process, exitCode } = await startDetached(
    [
      ...selfCommand(),
      "serve",
      "--config",
      `${path}/serve.json`,
      ...(context.debug ? ["--debug"] : []),
      ...options,
    ],
    log,
    out,
  );
  try {
    await onStarted({ process, api, privateCache, options });
    const ready = await waitUntil(
      async () =>
        exitCode() !== undefined ||
        (await Deno.readTextFile(out)).includes("\n"),
      READY_DEADLINE_MS,
      context.signal,
    );
    if (exitCode() !== undefined || !ready) {
      const how = ready
        ? `it ended with ${exitCode()}`
        : `it was not ready after ${READY_DEADLINE_MS / 1000} s`;
      throw new ObdError(
        "state",
        `Cannot start obd serve in the background: ${how}: ${await logTail(
          log,
        )}`,
      );
    }
  } catch (error) {
    await endProcess(process, STOP_DEADLINE_MS);
    await removeCache(privateCache);
    throw error;
  }
}

/** The options of this command line that a serve of its own needs too. */
function registryFlags(settings: RegistrySettings): string[] {
  const file = (flag: string, path: string | undefined) =>
    path === undefined ? [] : [flag, absolutePath(path)];
  return [
    ...(settings.plainHttp ? ["--plain-http"] : []),
    ...(settings.tlsSkipVerify ? ["--tls-skip-verify"] : []),
    ...file("--ca-file", settings.caFile),
    ...file("--authfile", settings.authFile),
  ];
}

/** A path that means the same in every working directory. */
export function absolutePath(path: string): string {
  return path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
}

/**
 * Stops a mount's own serve.
 *
 * @throws {ObdError} If even SIGKILL does not end it.
 */
export async function stopServe(
  process: ProcessRef,
  privateCache: string | undefined,
): Promise<void> {
  if (!await endProcess(process, STOP_DEADLINE_MS)) {
    throw new ObdError(
      "state",
      `Cannot stop obd serve: process ${process.pid} does not end`,
    );
  }
  await removeCache(privateCache);
}

async function removeCache(directory: string | undefined): Promise<void> {
  if (directory === undefined) return;
  try {
    await Deno.remove(directory, { recursive: true });
    // The directory of all private caches, when this was the last.
    await Deno.remove(directory.replace(/\/[^/]*$/, ""));
  } catch {
    // Not there, or not the last.
  }
}

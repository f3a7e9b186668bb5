/**
 * From an NBD export to a block device and back: the kernel's own NBD driver
 * where there is one, else nbdfuse and a loop device on its file.
 */

import { exists, ObdError } from "../lib/io/mod.ts";
import {
  type Detached,
  endProcess,
  findProgram,
  logTail,
  mustRun,
  runProgram,
  startDetached,
  waitForEnd,
  waitUntil,
} from "./mount_process.ts";
import {
  attachKernel,
  busyDevice,
  deviceIndex,
  findKernelDevice,
  releaseKernel,
} from "./mount_kernel.ts";
import type { MountDirectory, MountState, SaveState } from "./mount_state.ts";
import { loopsOf, mountAt, readMounts } from "./mount_table.ts";

/**
 * Connections of nbdfuse. While one waits for an answer its thread holds it, and
 * a read that is dealt out to it meanwhile waits too, even if the server has it
 * at hand: reads in flight at once are what lazy loading lives on
 * (lib/nbd/README.md has the figures).
 */
const FUSE_CONNECTIONS = 8;
/**
 * 512-byte sectors, 1 MiB: about one span. obd itself reads ahead of sequential
 * readers; the kernel would also do so around every page fault, where more than
 * this is fetched for nothing (bench/README.md).
 */
const READAHEAD_SECTORS = 2048;
const CONNECT_DEADLINE_MS = 60_000;
const RELEASE_DEADLINE_MS = 10_000;

/**
 * Where nbdfuse shows the device: without symlinks (`/var/run` is one), for by
 * that name the kernel tells of mounts and loop devices.
 */
async function fusePaths(
  { path }: { path: string },
): Promise<{ dir: string; file: string }> {
  const real = await Deno.realPath(path).catch(() => path);
  return { dir: `${real}/fuse`, file: `${real}/fuse/img` };
}

/**
 * Chooses how a device is made.
 *
 * @param wanted `--device`.
 * @throws {ObdError} Naming what is missing.
 */
export async function chooseDriver(
  wanted: string | undefined,
): Promise<MountState["driver"]> {
  const wantsLoop = wanted?.startsWith("/dev/loop") ?? false;
  const kernel = !wantsLoop && await exists(wanted ?? "/dev/nbd0");
  if (kernel) {
    if (wanted !== undefined) deviceIndex(wanted);
    requirePrograms("blockdev");
    return "nbd";
  }
  if (wanted && !wantsLoop) {
    throw new ObdError("not-found", `Device "${wanted}" is not there`);
  }
  for (const path of ["/dev/fuse", "/dev/loop-control"]) {
    if (!await exists(path)) {
      throw new ObdError(
        "not-found",
        `Cannot make a block device: neither /dev/nbd0 nor "${path}" is there (modprobe nbd, or ${
          path === "/dev/fuse" ? "fuse" : "loop"
        })`,
      );
    }
  }
  requirePrograms("nbdfuse", "losetup", "umount", "blockdev");
  return "fuse";
}

function requirePrograms(...names: string[]): void {
  for (const name of names) findProgram(name);
}

/** What {@linkcode attachDevice} needs. */
export interface AttachRequest {
  directory: MountDirectory;
  driver: MountState["driver"];
  /** NBD URI of the export. */
  uri: string;
  /** Bytes of the export. */
  size: number;
  /** Seconds after which serve gives up a read, if it told. */
  requestTimeout: number | undefined;
  /** `--device`; else a free one is taken. */
  device: string | undefined;
  signal: AbortSignal;
  save: SaveState;
}

/**
 * Brings nbdfuse and its libraries into memory, which takes a cold disk longer
 * than all the rest of a mount: to be done while the image opens.
 */
export async function warmUpDriver(
  driver: MountState["driver"],
): Promise<void> {
  if (driver === "fuse") await runProgram("nbdfuse", ["--version"]);
}

/** Makes a read-only block device of an export. @returns Its path. */
export async function attachDevice(request: AttachRequest): Promise<string> {
  const device = request.driver === "nbd"
    ? await attachKernel({ ...request, id: request.directory.id })
    : await attachFuse(request);
  await mustRun(`set the readahead of ${device}`, "blockdev", [
    "--setra",
    String(READAHEAD_SECTORS),
    device,
  ]);
  return device;
}

// ---- nbdfuse and a loop device ---------------------------------------------

async function attachFuse(request: AttachRequest): Promise<string> {
  const { directory, uri, size, signal, save } = request;
  const { dir, file } = await fusePaths(directory);
  const log = `${directory.path}/nbdfuse.log`;
  await Deno.mkdir(dir, { recursive: true, mode: 0o700 });
  const fuse = await startDetached(
    [findProgram("nbdfuse"), "-r", "-C", String(FUSE_CONNECTIONS), file, uri],
    log,
    log,
    { boundsFiles: true },
  );
  await save({ nbdfuse: fuse.process });
  const shown = await waitUntil(
    async () =>
      fuse.exitCode() !== undefined ||
      (await Deno.stat(file).catch(() => undefined))?.size === size,
    CONNECT_DEADLINE_MS,
    signal,
  );
  if (!shown || fuse.exitCode() !== undefined) {
    throw await fuseFailure(fuse, log);
  }
  const device = await setUpLoop(file, request.device);
  await save({ device });
  return device;
}

async function fuseFailure(fuse: Detached, log: string): Promise<ObdError> {
  const code = fuse.exitCode();
  const how = code === undefined
    ? `it shows no device after ${CONNECT_DEADLINE_MS / 1000} s`
    : `it ended with ${code}`;
  return new ObdError(
    "state",
    `Cannot connect nbdfuse: ${how}: ${await logTail(log)}`,
  );
}

async function setUpLoop(
  file: string,
  device: string | undefined,
): Promise<string> {
  // Direct: the loop driver's buffered reads come one after the other, which
  // makes every cold read wait for the one before.
  const options = ["--read-only", "--direct-io=on", "--show"];
  const args = device ? [...options, device, file] : [...options, "-f", file];
  const out = await mustRun("set up a loop device", "losetup", args);
  return out.trim();
}

async function releaseFuse(
  directory: MountDirectory,
  state: MountState,
): Promise<void> {
  const { dir, file } = await fusePaths(directory);
  for (const device of await loopsOf(file)) {
    await runProgram("losetup", ["--detach", device]);
  }
  // The kernel lets go of a loop device when its last user does.
  const released = await waitUntil(
    async () => (await loopsOf(file)).length === 0,
    RELEASE_DEADLINE_MS,
  );
  if (!released) {
    throw await busyDevice((await loopsOf(file))[0] ?? file);
  }
  let said = "";
  const unmounted = await waitUntil(async () => {
    if (!mountAt(await readMounts(), dir)) return true;
    said = (await runProgram("umount", [dir])).stderr;
    return mountAt(await readMounts(), dir) === undefined;
  }, RELEASE_DEADLINE_MS);
  if (!unmounted) {
    throw new ObdError("conflict", `Cannot unmount "${dir}": ${said}`);
  }
  const { nbdfuse } = state;
  if (!nbdfuse || await waitForEnd(nbdfuse, 5000)) return;
  // It waits for a server that does not answer.
  await endProcess(nbdfuse, 2000);
}

// ---- both --------------------------------------------------------------------

/** Undoes {@linkcode attachDevice}, however far it had come. */
export async function releaseDevice(
  directory: MountDirectory,
  state: MountState,
): Promise<void> {
  if (state.driver === "nbd") await releaseKernel(state);
  else await releaseFuse(directory, state);
}

/** Whether the device of a state is still the one that was made for it. */
export async function ownsDevice(
  directory: { path: string },
  state: MountState,
): Promise<boolean> {
  const { driver, device } = state;
  if (!device) return false;
  if (driver === "nbd") return await findKernelDevice(state) !== undefined;
  const { file } = await fusePaths(directory);
  return (await loopsOf(file)).includes(device);
}

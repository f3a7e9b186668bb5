/**
 * From an NBD export to a block device and back: the kernel's own NBD driver
 * where there is one, else nbdfuse and a loop device on its file.
 */

import { exists, ObdError } from "../lib/io/mod.ts";
import { parseNbdUri } from "../lib/nbd/mod.ts";
import {
  type Detached,
  endProcess,
  findProgram,
  hasProgram,
  logTail,
  mustRun,
  runProgram,
  startDetached,
  waitForEnd,
  waitUntil,
} from "./mount_process.ts";
import type { MountDirectory, MountState } from "./mount_state.ts";
import { findHolders } from "./mount_holders.ts";
import {
  deviceName,
  deviceNumber,
  loopsOf,
  mountAt,
  readMounts,
  readSys,
} from "./mount_table.ts";

/** Connections of the kernel's driver, which has many requests under way on each. */
const NBD_CONNECTIONS = 4;
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
/**
 * Seconds after which the kernel gives up on a server that does not answer:
 * more than serve's own deadline for a request, after which it answers EIO.
 */
const NBD_TIMEOUT_SECONDS = 180;
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
  if (kernel && (wanted || hasProgram("nbd-client"))) {
    requirePrograms("nbd-client", "blockdev");
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

/** Reports what exists so far, so that it can be undone after a crash too. */
export type SaveState = (change: Partial<MountState>) => Promise<void>;

/** What {@linkcode attachDevice} needs. */
export interface AttachRequest {
  directory: MountDirectory;
  driver: MountState["driver"];
  /** NBD URI of the export. */
  uri: string;
  /** Bytes of the export. */
  size: number;
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
    ? await attachKernel(request)
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

// ---- the kernel's NBD driver -----------------------------------------------

/**
 * Arguments of nbd-client (nbd 3.24) that connect a device, through netlink:
 * the kernel holds the sockets, and no process stays behind.
 */
export function nbdClientArgs(uri: string, device: string): string[] {
  const { address, exportName } = parseNbdUri(uri);
  const where = address.transport === "unix"
    ? ["-unix", address.path]
    : [address.hostname, String(address.port)];
  return [
    ...where,
    device,
    "-name",
    exportName,
    "-readonly",
    "-block-size",
    "4096",
    "-connections",
    String(NBD_CONNECTIONS),
    "-timeout",
    String(NBD_TIMEOUT_SECONDS),
  ];
}

async function attachKernel(request: AttachRequest): Promise<string> {
  const { uri, device, signal, save } = request;
  const candidates = device ? [device] : await freeNbdDevices();
  let said = "every /dev/nbd* is in use";
  for (const candidate of candidates) {
    signal.throwIfAborted();
    if (await nbdPid(candidate) !== undefined) {
      if (device) said = `process ${await nbdPid(device)} has it connected`;
      continue;
    }
    const { code, stderr } = await runProgram(
      "nbd-client",
      nbdClientArgs(uri, candidate),
      CONNECT_DEADLINE_MS,
    );
    const connected = code === 0 &&
      await waitUntil(() => isConnected(candidate), RELEASE_DEADLINE_MS);
    if (connected) {
      await save({ device: candidate, nbdPid: await nbdPid(candidate) });
      return candidate;
    }
    said = stderr || `nbd-client ended with ${code}`;
    // Taken by somebody else in between: the next one may be free.
    if (await nbdPid(candidate) === undefined) break;
  }
  throw new ObdError(
    "state",
    `Cannot connect ${device ?? "an NBD device"}: ${said}`,
  );
}

async function freeNbdDevices(): Promise<string[]> {
  const numbers: number[] = [];
  for await (const { name } of Deno.readDir("/sys/block")) {
    const number = /^nbd(\d+)$/.exec(name)?.[1];
    if (number && await nbdPid(`/dev/${name}`) === undefined) {
      numbers.push(Number(number));
    }
  }
  return numbers.sort((a, b) => a - b).map((n) => `/dev/nbd${n}`);
}

/** Who connected the device; the file is there only while it is connected. */
async function nbdPid(device: string): Promise<string | undefined> {
  return await readSys(`/sys/block/${deviceName(device)}/pid`);
}

async function isConnected(device: string): Promise<boolean> {
  const size = await readSys(`/sys/block/${deviceName(device)}/size`);
  return size !== undefined && size !== "0";
}

async function releaseKernel({ device, nbdPid: pid }: MountState) {
  if (!device || pid === undefined || await nbdPid(device) !== pid) return;
  await mustRun(`disconnect ${device}`, "nbd-client", ["-d", device]);
  const released = await waitUntil(
    async () => await nbdPid(device) !== pid,
    RELEASE_DEADLINE_MS,
  );
  if (!released) throw await busyDevice(device);
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
  { driver, device, nbdPid: pid }: MountState,
): Promise<boolean> {
  if (!device) return false;
  if (driver === "nbd") {
    return pid !== undefined && await nbdPid(device) === pid;
  }
  const { file } = await fusePaths(directory);
  return (await loopsOf(file)).includes(device);
}

async function busyDevice(device: string): Promise<ObdError> {
  const number = await deviceNumber(device);
  const holders = await findHolders({ device, number });
  return new ObdError(
    "conflict",
    `Cannot release ${device}: it is in use by ${
      holders.join(", ") || "somebody that cannot be found"
    }`,
  );
}

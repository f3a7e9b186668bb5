/**
 * Devices of the kernel's own NBD driver. They outlive the serve that they read
 * from: what is read while it is away waits for `obd reconnect`.
 */

import { createHash } from "node:crypto";
import { exists, ObdError, UsageError } from "../lib/io/mod.ts";
import {
  connectKernelDevice,
  disconnectKernelDevice,
  type KernelConnection,
  NbdClient,
  parseNbdUri,
  reconnectKernelDevice,
} from "../lib/nbd/mod.ts";
import { deviceName, deviceNumber, readSys } from "./mount_table.ts";
import { findHolders } from "./mount_holders.ts";
import { waitUntil } from "./mount_process.ts";
import { type MountState, type SaveState, undoCommand } from "./mount_state.ts";

/** The kernel has many requests under way on each. */
export const KERNEL_CONNECTIONS = 4;
/**
 * What the kernel waits for an answer longer than serve does, which then
 * answers EIO. Requests that were under way when a serve ended are sent again
 * after this.
 */
const TIMEOUT_MARGIN_SECONDS = 10;
/** Of a serve that does not tell: the default of `nbd.requestTimeout`. */
const REQUEST_TIMEOUT_SECONDS = 60;
/** What is read while no serve is connected waits so long, and fails then. */
const DEAD_SECONDS = 300;
const CONNECT_DEADLINE_MS = 10_000;
const RELEASE_DEADLINE_MS = 10_000;
/** Of the device, to know it again. */
const FINGERPRINT_BYTES = 64 * 1024;

/** An export is not the very device that it was: what the kernel has cached would be mixed with it. */
export class OtherDeviceError extends ObdError {
  constructor(state: MountState) {
    super(
      "state",
      `"${state.image}" is another device now, and what the kernel has cached would be mixed with it (${
        undoCommand(state)
      })`,
    );
  }
}

/** What {@linkcode attachKernel} needs. */
export interface KernelRequest {
  /** Of the mount, 12 hex digits. */
  id: string;
  /** NBD URI of the export. */
  uri: string;
  /** Seconds after which serve gives up a read, if it told. */
  requestTimeout: number | undefined;
  /** `/dev/nbdN`; else a free one is taken. */
  device: string | undefined;
  signal: AbortSignal;
  save: SaveState;
}

/** Makes a read-only device of an export. @returns Its path. */
export async function attachKernel(request: KernelRequest): Promise<string> {
  const { id, uri, requestTimeout, signal, save } = request;
  const index = request.device === undefined
    ? undefined
    : deviceIndex(request.device);
  const nbdBackend = `obd-${id}-${crypto.randomUUID().slice(0, 8)}`;
  const fingerprint = await fingerprintOf(uri);
  // Before there is anything: who is killed now leaves a device that can be found.
  await save({ nbdBackend, fingerprint });
  signal.throwIfAborted();
  const number = await connectKernelDevice(
    connection(uri, requestTimeout, nbdBackend),
    index,
  );
  const device = `/dev/nbd${number}`;
  await save({ device });
  const isThere = await waitUntil(
    async () => await exists(device) && await hasSize(device),
    CONNECT_DEADLINE_MS,
    signal,
  );
  if (!isThere) {
    throw new ObdError("state", `Device "${device}" does not appear`);
  }
  await save({ nbdPid: await nbdPid(device) });
  return device;
}

/**
 * Connects a device to its export again.
 *
 * @throws {OtherDeviceError} If the export is not the very device that it was.
 */
export async function reconnectKernel(state: MountState): Promise<void> {
  const { device, uri, size, nbdBackend, fingerprint, requestTimeout } = state;
  if (!device || !uri || !size || !nbdBackend) {
    throw new ObdError(
      "state",
      `Cannot connect ${
        device ?? "a device"
      } again: it was made by an earlier version of obd`,
    );
  }
  if (fingerprint !== await fingerprintOf(uri)) {
    throw new OtherDeviceError(state);
  }
  await reconnectKernelDevice(
    connection(uri, requestTimeout, nbdBackend),
    deviceIndex(device),
    size,
  );
}

/** Undoes {@linkcode attachKernel}, however far it had come. */
export async function releaseKernel(state: MountState): Promise<void> {
  const device = await findKernelDevice(state);
  if (device === undefined) return;
  await disconnectKernelDevice(deviceIndex(device));
  const released = await waitUntil(
    async () => !await isOwn(device, state),
    RELEASE_DEADLINE_MS,
  );
  if (!released) throw await busyDevice(device);
}

/** The device that was made for a state, also where the command was killed before it could note which. */
export async function findKernelDevice(
  state: MountState,
): Promise<string | undefined> {
  const { device } = state;
  if (device) return await isOwn(device, state) ? device : undefined;
  if (!state.nbdBackend) return undefined;
  for await (const { name } of Deno.readDir("/sys/block")) {
    if (!/^nbd\d+$/.test(name)) continue;
    if (await isOwn(`/dev/${name}`, state)) return `/dev/${name}`;
  }
  return undefined;
}

async function isOwn(device: string, state: MountState): Promise<boolean> {
  const backend = await readSys(`/sys/block/${deviceName(device)}/backend`);
  if (backend !== undefined) return backend === state.nbdBackend;
  // Linux before 5.14, or a device of an earlier version of obd.
  const pid = await nbdPid(device);
  return pid !== undefined && pid === state.nbdPid;
}

/** Who connected the device; the file is there only while it is connected. */
async function nbdPid(device: string): Promise<string | undefined> {
  return await readSys(`/sys/block/${deviceName(device)}/pid`);
}

async function hasSize(device: string): Promise<boolean> {
  const size = await readSys(`/sys/block/${deviceName(device)}/size`);
  return size !== undefined && size !== "0";
}

function connection(
  uri: string,
  requestTimeout: number | undefined,
  backend: string,
): KernelConnection {
  return {
    target: parseNbdUri(uri),
    connections: KERNEL_CONNECTIONS,
    timeoutSeconds: Math.ceil(requestTimeout ?? REQUEST_TIMEOUT_SECONDS) +
      TIMEOUT_MARGIN_SECONDS,
    deadSeconds: DEAD_SECONDS,
    backend,
  };
}

/**
 * N of `/dev/nbdN`.
 *
 * @throws {UsageError} If it is no device of the driver's.
 */
export function deviceIndex(device: string): number {
  const number = /^\/dev\/nbd(\d{1,6})$/.exec(device)?.[1];
  if (number) return Number(number);
  throw new UsageError(
    `Device "${device}" is neither a /dev/nbdN nor a /dev/loopN`,
  );
}

/** SHA-256 of the start of an export, hex: superblock, group descriptors with their checksums. */
async function fingerprintOf(uri: string): Promise<string> {
  await using client = await NbdClient.connect(uri);
  const bytes = new Uint8Array(Math.min(client.size, FINGERPRINT_BYTES));
  await client.pread(bytes, 0);
  return createHash("sha256").update(`${client.size}\n`).update(bytes)
    .digest("hex");
}

/** For a device that is not given up. */
export async function busyDevice(device: string): Promise<ObdError> {
  const number = await deviceNumber(device);
  const holders = await findHolders({ device, number });
  return new ObdError(
    "conflict",
    `Cannot release ${device}: it is in use by ${
      holders.join(", ") || "somebody that cannot be found"
    }`,
  );
}

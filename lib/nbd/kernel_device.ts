/**
 * The kernel's own NBD client, `/dev/nbdN` [Linux, include/uapi/linux/nbd.h and
 * nbd-netlink.h]. A device outlives the server that it reads from: while none of
 * its connections is alive its requests wait, and go on when it is connected
 * again, to the same server or to another.
 */

import { FormatError, ObdError, viewOf } from "../io/mod.ts";
import { formatNbdUri, type NbdTarget } from "./address.ts";
import { connectAndTalk, type ExportInfo } from "./client_handshake.ts";
import {
  type Attribute,
  LINUX_ERRNO,
  NetlinkError,
  NetlinkFamily,
} from "./netlink.ts";
import { TRANSMISSION } from "./protocol.ts";
import { SystemSocket } from "./system_socket.ts";

const FAMILY = "nbd";
const FAMILY_VERSION = 1;
const COMMAND = { connect: 1, disconnect: 2, reconfigure: 3 };
const ATTRIBUTE = {
  index: 1,
  size: 2,
  blockSize: 3,
  timeout: 4,
  serverFlags: 5,
  sockets: 7,
  deadTimeout: 8,
  backend: 10,
};
const SOCKET_ITEM = 1;
const SOCKET_FD = 1;

/** The smallest request that the kernel sends: the page of its cache. */
const BLOCK_SIZE = 4096;
const HANDSHAKE_DEADLINE_MS = 20_000;
/** Disconnecting waits for requests that are being sent. */
const NETLINK_TIMEOUT_MS = 30_000;

/** How a device is connected. */
export interface KernelConnection {
  target: NbdTarget;
  connections: number;
  /**
   * Seconds after which a request that a server does not answer is sent once
   * more, through another connection; the one that it was sent through ends.
   */
  timeoutSeconds: number;
  /** Seconds that requests wait for a server when none of the connections is alive; then they fail. */
  deadSeconds: number;
  /**
   * Names who the device belongs to: `/sys/block/nbdN/backend` (Linux 5.14),
   * and whoever connects it again must say the same.
   */
  backend: string;
}

/**
 * Makes a read-only device of an export. The kernel holds the connections; no
 * process stays behind.
 *
 * @param index N of `/dev/nbdN`; without it the kernel takes one that is free.
 * @returns N.
 * @throws {ObdError} Code `conflict` if that one is in use, `unsupported`
 * without the driver; else what the handshake says.
 */
export async function connectKernelDevice(
  connection: KernelConnection,
  index?: number,
): Promise<number> {
  using peers = await openPeers(connection);
  const { size, flags } = peers.info;
  const answer = await ask(`connect ${name(index)}`, COMMAND.connect, [
    ...(index === undefined
      ? []
      : [[ATTRIBUTE.index, { u32: index }] as Attribute]),
    [ATTRIBUTE.size, { u64: size }],
    [ATTRIBUTE.blockSize, { u64: BLOCK_SIZE }],
    [ATTRIBUTE.serverFlags, { u64: flags | TRANSMISSION.readOnly }],
    ...settings(connection, peers.sockets),
  ]);
  const got = answer.get(ATTRIBUTE.index);
  if (got?.length !== 4) {
    throw new FormatError("netlink answer", "device number", "is missing");
  }
  return viewOf(got).getUint32(0, true);
}

/**
 * Connects a device again whose connections have ended. Those that are alive
 * stay. The export must have the very bytes that the device had before.
 *
 * @param size Bytes of the device.
 * @throws {ObdError} If the export has another size, or the kernel refuses.
 */
export async function reconnectKernelDevice(
  connection: KernelConnection,
  index: number,
  size: number,
): Promise<void> {
  using peers = await openPeers(connection);
  if (peers.info.size !== size) {
    throw new ObdError(
      "state",
      `Cannot connect ${name(index)} again: "${
        formatNbdUri(connection.target)
      }" has ${peers.info.size} bytes, the device ${size}`,
    );
  }
  await ask(`connect ${name(index)} again`, COMMAND.reconfigure, [
    [ATTRIBUTE.index, { u32: index }],
    ...settings(connection, peers.sockets),
  ]);
}

/** Ends a device; what waits for it fails. One that is not connected is left as it is. */
export async function disconnectKernelDevice(index: number): Promise<void> {
  try {
    await ask(`disconnect ${name(index)}`, COMMAND.disconnect, [
      [ATTRIBUTE.index, { u32: index }],
    ]);
  } catch (error) {
    const gone = error instanceof NetlinkError &&
      error.errno === LINUX_ERRNO.EINVAL;
    if (!gone) throw error;
  }
}

function settings(
  { timeoutSeconds, deadSeconds, backend }: KernelConnection,
  sockets: readonly SystemSocket[],
): Attribute[] {
  return [
    [ATTRIBUTE.timeout, { u64: timeoutSeconds }],
    [ATTRIBUTE.deadTimeout, { u64: deadSeconds }],
    [ATTRIBUTE.backend, { text: backend }],
    [ATTRIBUTE.sockets, {
      nested: sockets.map(({ fd }) => [
        SOCKET_ITEM,
        { nested: [[SOCKET_FD, { u32: fd }]] },
      ]),
    }],
  ];
}

async function ask(
  what: string,
  command: number,
  attributes: Attribute[],
): Promise<Map<number, Uint8Array>> {
  using family = await openFamily();
  try {
    return await family.request(what, command, attributes);
  } catch (error) {
    if (
      error instanceof NetlinkError && error.errno === LINUX_ERRNO.EBUSY
    ) throw new ObdError("conflict", `Cannot ${what}: it is in use`);
    throw error;
  }
}

async function openFamily(): Promise<NetlinkFamily> {
  try {
    return await NetlinkFamily.open(FAMILY, FAMILY_VERSION, NETLINK_TIMEOUT_MS);
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === LINUX_ERRNO.ENOENT) {
      throw new ObdError(
        "unsupported",
        "The kernel has no NBD driver with netlink (modprobe nbd; Linux 4.12 or later)",
        { cause: error },
      );
    }
    throw error;
  }
}

/** Connections at the transmission phase, to be handed over. */
interface Peers extends Disposable {
  sockets: SystemSocket[];
  info: ExportInfo;
}

async function openPeers(
  { target, connections }: KernelConnection,
): Promise<Peers> {
  const sockets: SystemSocket[] = [];
  const close = () => sockets.forEach((socket) => socket.close());
  try {
    let info: ExportInfo | undefined;
    for (let i = 0; i < connections; i++) {
      const { socket, info: one } = await openPeer(target);
      sockets.push(socket);
      info ??= one;
      if (one.size !== info.size || one.flags !== info.flags) {
        throw new FormatError(
          "NBD export",
          "size or flags",
          "are not constant",
        );
      }
      // Readers of one device must see one state whichever way they go.
      if ((one.flags & TRANSMISSION.canMultiConn) === 0) break;
    }
    return { sockets, info: info!, [Symbol.dispose]: close };
  } catch (error) {
    close();
    throw error;
  }
}

async function openPeer(
  target: NbdTarget,
): Promise<{ socket: SystemSocket; info: ExportInfo }> {
  let socket: SystemSocket | undefined;
  const { result: info } = await connectAndTalk(
    target,
    HANDSHAKE_DEADLINE_MS,
    async (talk, rx) => {
      // The kernel knows simple replies only.
      const info = await talk.go(target.exportName, {
        structured: false,
        allocation: false,
      });
      if (rx.available > 0) {
        throw new FormatError("NBD handshake", "end", "is followed by bytes");
      }
      if (info.size === 0 || info.size % BLOCK_SIZE !== 0) {
        throw new FormatError("NBD export", "size", `is ${info.size}`);
      }
      return info;
    },
    async ({ address }) =>
      socket = await SystemSocket.connect(address, HANDSHAKE_DEADLINE_MS),
  );
  // From here on the kernel waits as long as it likes.
  socket!.setTimeout(0);
  return { socket: socket!, info };
}

function name(index: number | undefined): string {
  return index === undefined ? "an NBD device" : `/dev/nbd${index}`;
}

/**
 * Tells systemd about this process (sd_notify(3)), for units of `Type=notify`.
 * The runtime opens no datagram Unix sockets, so this calls the C library.
 */

import type { Logger } from "../lib/io/mod.ts";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;

/**
 * Sends a state like `READY=1` to the service manager, if there is one.
 *
 * @param socketPath Value of `NOTIFY_SOCKET`.
 * @returns Whether it was sent.
 */
export function notifyServiceManager(
  state: string,
  socketPath: string | undefined,
  log: Logger,
): boolean {
  if (!socketPath) return false;
  try {
    sendDatagram(socketPath, new TextEncoder().encode(state));
    return true;
  } catch (error) {
    log.warn("cannot notify the service manager", { error: String(error) });
    return false;
  }
}

function sendDatagram(path: string, message: Uint8Array<ArrayBuffer>): void {
  // A leading "@" stands for the NUL byte of the abstract namespace (sd_notify(3)).
  const name = new TextEncoder().encode(path);
  if (name[0] === 0x40) name[0] = 0;
  if (name.length > 107) throw new Error("NOTIFY_SOCKET is too long");
  const address = new Uint8Array(2 + name.length);
  address[0] = AF_UNIX; // sa_family, little-endian
  address.set(name, 2);
  const libc = Deno.dlopen("libc.so.6", {
    socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
    sendto: {
      parameters: ["i32", "buffer", "usize", "i32", "buffer", "u32"],
      result: "isize",
    },
    close: { parameters: ["i32"], result: "i32" },
  });
  try {
    const fd = libc.symbols.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) throw new Error("socket() failed");
    try {
      const sent = libc.symbols.sendto(
        fd,
        message,
        BigInt(message.length),
        0,
        address,
        address.length,
      );
      if (Number(sent) !== message.length) throw new Error("sendto() failed");
    } finally {
      libc.symbols.close(fd);
    }
  } finally {
    libc.close();
  }
}

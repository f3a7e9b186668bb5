/**
 * Sockets by their file descriptor, for what must be handed to the kernel: the
 * runtime's own connections do not tell theirs. Calls that may wait run on a
 * thread of the runtime's, bounded by the socket's own timeouts.
 */

import { ObdError, openLibc, utf8 } from "../io/mod.ts";
import { formatNbdAddress, type NbdAddress } from "./address.ts";
import type { ByteStream } from "./stream.ts";

const SYMBOLS = {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  connect: {
    parameters: ["i32", "buffer", "u32"],
    result: "i32",
    nonblocking: true,
  },
  setsockopt: {
    parameters: ["i32", "i32", "i32", "buffer", "u32"],
    result: "i32",
  },
  send: {
    parameters: ["i32", "buffer", "usize", "i32"],
    result: "isize",
    nonblocking: true,
  },
  recv: {
    parameters: ["i32", "buffer", "usize", "i32"],
    result: "isize",
    nonblocking: true,
  },
  close: { parameters: ["i32"], result: "i32" },
} as const;

let loaded: ReturnType<typeof openLibc<typeof SYMBOLS>>;

/** @throws {ObdError} Where the C library cannot be called. */
function libc() {
  loaded ??= openLibc(SYMBOLS);
  if (loaded) return loaded;
  throw new ObdError(
    "unsupported",
    "Cannot use the kernel's NBD driver: the C library cannot be called from here",
  );
}

// <sys/socket.h>, <netinet/in.h> and <linux/netlink.h>; the same for x86-64 and arm64.
const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
const AF_NETLINK = 16;
const NETLINK_GENERIC = 16;
const SOCK_STREAM = 1;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_KEEPALIVE = 9;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const MSG_NOSIGNAL = 0x4000;

/** A socket that is closed when it is disposed of, whoever else has it. */
export class SystemSocket implements ByteStream, Disposable {
  /** Valid until the socket is closed. */
  readonly fd: number;
  #closed = false;
  /** Calls on other threads: a descriptor that is closed under one may be somebody else's next. */
  #calls = 0;

  private constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Connects to a server.
   *
   * @param timeoutMs For the connection, and for each later call.
   * @throws {ObdError} If nobody answers there.
   */
  static async connect(
    address: NbdAddress,
    timeoutMs: number,
  ): Promise<SystemSocket> {
    const { family, bytes } = await socketAddress(address);
    const socket = SystemSocket.#open(family, SOCK_STREAM, 0);
    try {
      socket.setTimeout(timeoutMs);
      if (address.transport === "tcp") {
        socket.#setOption(IPPROTO_TCP, TCP_NODELAY, 1);
        socket.#setOption(SOL_SOCKET, SO_KEEPALIVE, 1);
      }
      const result = await socket.#call(() =>
        libc().connect(socket.fd, bytes, bytes.length)
      );
      if (result === 0) return socket;
      throw new ObdError(
        "state",
        `Cannot connect to "${formatNbdAddress(address)}"`,
      );
    } catch (error) {
      socket.close();
      throw error;
    }
  }

  /** A socket that talks to the kernel's generic netlink. */
  static netlink(timeoutMs: number): SystemSocket {
    const socket = SystemSocket.#open(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
    socket.setTimeout(timeoutMs);
    return socket;
  }

  static #open(family: number, type: number, protocol: number): SystemSocket {
    const fd = libc().socket(family, type | SOCK_CLOEXEC, protocol);
    if (fd >= 0) return new SystemSocket(fd);
    throw new ObdError("state", `Cannot make a socket of family ${family}`);
  }

  /** Bounds each call from now on; 0 bounds none. */
  setTimeout(timeoutMs: number): void {
    const time = new BigInt64Array([
      BigInt(Math.floor(timeoutMs / 1000)),
      BigInt(Math.round(timeoutMs % 1000) * 1000),
    ]); // struct timeval
    for (const name of [SO_RCVTIMEO, SO_SNDTIMEO]) {
      this.#set(SOL_SOCKET, name, new Uint8Array(time.buffer));
    }
  }

  async read(into: Uint8Array): Promise<number | null> {
    const got = Number(
      await this.#call(() =>
        libc().recv(this.fd, asBuffer(into), BigInt(into.length), 0)
      ),
    );
    if (got < 0) throw new ObdError("state", "A socket's read failed");
    return got === 0 ? null : got;
  }

  async write(bytes: Uint8Array): Promise<number> {
    const done = Number(
      await this.#call(() =>
        libc().send(
          this.fd,
          asBuffer(bytes),
          BigInt(bytes.length),
          MSG_NOSIGNAL,
        )
      ),
    );
    if (done <= 0) throw new ObdError("state", "A socket's write failed");
    return done;
  }

  /** Closes the descriptor once no call uses it any more. The kernel's NBD driver keeps its own. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#calls === 0) libc().close(this.fd);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #call<T>(work: () => Promise<T>): Promise<T> {
    if (this.#closed) throw new ObdError("state", "A socket is closed");
    this.#calls++;
    try {
      return await work();
    } finally {
      if (--this.#calls === 0 && this.#closed) libc().close(this.fd);
    }
  }

  #setOption(level: number, name: number, value: number): void {
    this.#set(level, name, new Uint8Array(new Int32Array([value]).buffer));
  }

  #set(level: number, name: number, value: Uint8Array<ArrayBuffer>): void {
    const { setsockopt } = libc();
    if (setsockopt(this.fd, level, name, value, value.length) === 0) return;
    throw new ObdError("state", `Cannot set option ${name} of a socket`);
  }
}

/** What the foreign function interface takes; bytes of ours are never shared. */
function asBuffer(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return bytes as Uint8Array<ArrayBuffer>;
}

/** A `struct sockaddr` of the address's kind. */
async function socketAddress(
  address: NbdAddress,
): Promise<{ family: number; bytes: Uint8Array<ArrayBuffer> }> {
  if (address.transport === "unix") {
    const path = utf8(address.path);
    const bytes = new Uint8Array(2 + path.length + 1);
    new DataView(bytes.buffer).setUint16(0, AF_UNIX, true);
    bytes.set(path, 2);
    return { family: AF_UNIX, bytes };
  }
  const { hostname, port } = address;
  // Not with the module: most sockets are Unix sockets.
  const { lookup } = await import("node:dns/promises");
  let found: { address: string; family: number };
  try {
    found = await lookup(hostname);
  } catch (cause) {
    throw new ObdError("not-found", `Host "${hostname}" is not known`, {
      cause,
    });
  }
  const family = found.family === 6 ? AF_INET6 : AF_INET;
  const bytes = new Uint8Array(family === AF_INET6 ? 28 : 16);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, family, true);
  view.setUint16(2, port);
  bytes.set(
    family === AF_INET6
      ? ipv6Bytes(found.address)
      : found.address.split(".").map(Number),
    family === AF_INET6 ? 8 : 4,
  );
  return { family, bytes };
}

/** The 16 bytes of an address as getaddrinfo(3) gives it. */
function ipv6Bytes(text: string): Uint8Array {
  // URLs write addresses in the one canonical way, without a dotted end.
  const canonical = new URL(`http://[${text.replace(/%.*$/, "")}]`).hostname
    .slice(1, -1);
  const [head = "", tail] = canonical.split("::");
  const groups = (part: string) => part === "" ? [] : part.split(":");
  const before = groups(head);
  const after = groups(tail ?? "");
  const zeros = Array<string>(8 - before.length - after.length).fill("0");
  const bytes = new Uint8Array(16);
  [...before, ...zeros, ...after].forEach((group, i) => {
    new DataView(bytes.buffer).setUint16(2 * i, parseInt(group, 16));
  });
  return bytes;
}

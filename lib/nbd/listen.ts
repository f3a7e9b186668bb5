/** Opening sockets: a Unix socket that only its owner may use, or a TCP port. */

import { UsageError, utf8 } from "../io/mod.ts";
import type { NbdAddress } from "./address.ts";

/** Longest path of a Unix socket in bytes (unix(7): 108 with the final NUL). */
const MAX_SOCKET_PATH = 107;

/** A listening socket and how to be rid of it. */
export interface OpenListener {
  readonly listener: Deno.Listener;
  /** The real address: the port is known now, also if it was given as 0. */
  readonly address: NbdAddress;
  /** Stops listening; removes the socket's file if it is still ours. */
  close(): Promise<void>;
}

/**
 * Opens a listening socket.
 *
 * @throws {UsageError} If somebody else listens there, or the path is not a socket.
 * @throws {Error} The runtime's error otherwise.
 */
export async function openListener(
  address: NbdAddress,
): Promise<OpenListener> {
  if (address.transport === "unix") return await listenUnix(address.path);
  const { hostname, port } = address;
  const listener = Deno.listen({ transport: "tcp", hostname, port });
  return {
    listener,
    address: { transport: "tcp", hostname, port: listener.addr.port },
    close: () => {
      listener.close();
      return Promise.resolve();
    },
  };
}

/**
 * The socket is made in a directory of mode 0700 beside its place, gets its
 * mode there, and only then its name: nobody can connect before the mode is
 * right, and an existing name is never taken over by accident.
 */
async function listenUnix(path: string): Promise<OpenListener> {
  checkPath(path);
  await removeStale(path);
  const parent = path.includes("/") ? path.replace(/[^/]*$/, "") : "./";
  const temp = await makePrivateDir(parent, path);
  let listener: Deno.UnixListener;
  try {
    const made = `${temp}/s`;
    listener = Deno.listen({ transport: "unix", path: made });
    try {
      await Deno.chmod(made, 0o600);
      await Deno.link(made, path);
    } catch (error) {
      listener.close();
      if (error instanceof Deno.errors.AlreadyExists) throw inUse(path);
      throw error;
    }
  } finally {
    await Deno.remove(temp, { recursive: true });
  }
  const made = await Deno.lstat(path);
  return {
    listener,
    address: { transport: "unix", path },
    close: async () => {
      listener.close();
      const now = await Deno.lstat(path).catch(() => undefined);
      if (now?.ino === made.ino && now.dev === made.dev) {
        await Deno.remove(path).catch(() => {});
      }
    },
  };
}

/** A directory of mode 0700 with a short name, for its socket's path is bounded too. */
async function makePrivateDir(parent: string, path: string): Promise<string> {
  const dir = `${parent}.${crypto.randomUUID().slice(0, 6)}`;
  checkPath(`${dir}/s`);
  try {
    await Deno.mkdir(dir, { mode: 0o700 });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UsageError(
      `Cannot listen at "${path}": its directory does not exist`,
      { cause: error },
    );
  }
  return dir;
}

function checkPath(path: string): void {
  if (utf8(path).length <= MAX_SOCKET_PATH) return;
  throw new UsageError(
    `Cannot listen at "${path}": longer than ${MAX_SOCKET_PATH} bytes`,
  );
}

/** Removes a socket that nobody listens on any more. */
async function removeStale(path: string): Promise<void> {
  let info: Deno.FileInfo;
  try {
    info = await Deno.lstat(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  if (!info.isSocket) {
    throw new UsageError(`Cannot listen at "${path}": it is not a socket`);
  }
  try {
    (await Deno.connect({ transport: "unix", path })).close();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    if (!(error instanceof Deno.errors.ConnectionRefused)) throw error;
    const now = await Deno.lstat(path).catch(() => undefined);
    if (now?.ino === info.ino) await Deno.remove(path);
    return;
  }
  throw inUse(path);
}

function inUse(path: string): UsageError {
  return new UsageError(
    `Cannot listen at "${path}": another process listens there`,
  );
}

/** Unix sockets that only their owner may use, and that take over a name only when nobody answers there. */

import { utf8 } from "./bytes.ts";
import { ObdError } from "./errors.ts";

/** Longest path of a Unix socket in bytes (unix(7): 108 with the final NUL). */
const MAX_SOCKET_PATH = 107;
/** How long a listener that is going away may take to reset who waits there. */
const SETTLE_MS = 100;
/** Looks in that time: of a process that was held up itself the first would be too late, and see nothing. */
const SETTLE_LOOKS = 20;
/** Listeners seen to go away at one path before it counts as in use. */
const MAX_ASKED = 10;

/** A bound socket. */
export interface BoundSocket<T> {
  listener: T;
  /** Removes the socket's file if it is still ours. Close the listener first. */
  remove(): Promise<void>;
}

/**
 * Binds a Unix socket of mode 0600.
 *
 * The socket is made in a directory of mode 0700 beside its place, gets its
 * mode there, and only then its name: nobody can connect before the mode is
 * right, and a name in use is never taken over.
 *
 * @param bind Listens at the path that it is given.
 * @param close Undoes `bind`, when the name cannot be taken.
 * @throws {ObdError} Code `conflict` if another process listens there, or the path cannot be a socket's.
 */
export async function bindUnixSocket<T>(
  path: string,
  bind: (path: string) => T | Promise<T>,
  close: (listener: T) => void | Promise<void>,
): Promise<BoundSocket<T>> {
  checkPath(path);
  await removeStale(path);
  const parent = path.includes("/") ? path.replace(/[^/]*$/, "") : "./";
  const temp = await makePrivateDir(parent, path);
  let listener: T;
  try {
    listener = await bind(`${temp}/s`);
    try {
      await Deno.chmod(`${temp}/s`, 0o600);
      await Deno.link(`${temp}/s`, path);
    } catch (error) {
      await close(listener);
      if (error instanceof Deno.errors.AlreadyExists) throw inUse(path);
      throw error;
    }
  } finally {
    await Deno.remove(temp, { recursive: true });
  }
  const made = await Deno.lstat(path);
  return {
    listener,
    remove: async () => {
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
    throw conflict(path, "its directory does not exist");
  }
  return dir;
}

function checkPath(path: string): void {
  if (utf8(path).length <= MAX_SOCKET_PATH) return;
  throw conflict(path, `longer than ${MAX_SOCKET_PATH} bytes`);
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
    throw conflict(path, "it is not a socket");
  }
  if (await isListenedOn(path)) throw inUse(path);
  const now = await Deno.lstat(path).catch(() => undefined);
  if (now?.ino === info.ino) await Deno.remove(path);
}

/**
 * Whether somebody listens at `path`.
 *
 * Being let in is not enough: a process that ends, or its child between fork
 * and exec, still holds a listener that nobody accepts from. The kernel resets
 * whoever waits there once the last of them lets go, so a reset is asked again.
 */
async function isListenedOn(path: string): Promise<boolean> {
  for (let asked = 0; asked < MAX_ASKED; asked++) {
    try {
      using peer = await Deno.connect({ transport: "unix", path });
      await outlasts(peer);
      return true;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return false;
      if (error instanceof Deno.errors.ConnectionRefused) return false;
      // Its queue is full: somebody listens, however slowly.
      if (error instanceof Deno.errors.WouldBlock) return true;
      if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
    }
  }
  return true;
}

/** Returns once the other side spoke, ended, or kept silent for a while; throws if it was reset. */
async function outlasts(peer: Deno.Conn): Promise<void> {
  const heard = peer.read(new Uint8Array(1)).then(() => true);
  heard.catch(() => {}); // Closing ends a read that still waits.
  for (let looks = 0; looks < SETTLE_LOOKS; looks++) {
    const { promise, resolve } = Promise.withResolvers<false>();
    const timer = setTimeout(resolve, SETTLE_MS / SETTLE_LOOKS, false);
    try {
      if (await Promise.race([heard, promise])) return;
    } finally {
      clearTimeout(timer);
    }
  }
}

function inUse(path: string): ObdError {
  return conflict(path, "another process listens there");
}

function conflict(path: string, problem: string): ObdError {
  return new ObdError("conflict", `Cannot listen at "${path}": ${problem}`);
}

/**
 * What `obd mount` and `obd attach` leave behind for `umount`, `detach` and
 * `mounts`: one directory per mount under `RUN/mounts/ID/`, owned by root
 * alone.
 *
 *     state.json   this module's {@linkcode MountState}, replaced by rename
 *     lock         held by the command that works on the mount
 *     serve.json   configuration of a serve of its own, if it has one
 *     serve.log    its log; nbdfuse writes to nbdfuse.log
 *     nbd.sock, api.sock
 *     fuse/        where nbdfuse shows the device as the file `img`
 */

import { createHash } from "node:crypto";
import * as v from "valibot";
import { errorText, ObdError, UsageError } from "../lib/io/mod.ts";

const STATE_SIZE_MAX = 64 * 1024;

const processSchema = v.object({
  pid: v.pipe(v.number(), v.integer(), v.minValue(2)),
  /** Start in clock ticks since boot (proc(5), `stat` field 22): ids are reused, this is not. */
  startTicks: v.string(),
});

/** A process, told apart from a later one with the same id. */
export type ProcessRef = v.InferOutput<typeof processSchema>;

const stateSchema = v.object({
  version: v.literal(1),
  id: v.string(),
  kind: v.picklist(["mount", "attach"]),
  /** As given; paths made absolute. */
  image: v.string(),
  /** Mount point, absolute; mounts only. */
  dir: v.optional(v.string()),
  /** NBD export name. */
  export: v.string(),
  /** Address of the status API that has the export. */
  api: v.string(),
  /** Set when serve was started for this mount, and ends with it. */
  serve: v.optional(processSchema),
  /** Caches that end with this mount. */
  privateCache: v.optional(v.string()),
  driver: v.picklist(["nbd", "fuse"]),
  nbdfuse: v.optional(processSchema),
  /** Block device. */
  device: v.optional(v.string()),
  /** What `/sys/block/nbdN/backend` says; in the state before there is a device. */
  nbdBackend: v.optional(v.string()),
  /** What `/sys/block/nbdN/pid` said after the connect. */
  nbdPid: v.optional(v.string()),
  fsType: v.optional(v.picklist(["ext4", "erofs"])),
  uri: v.optional(v.string()),
  /** Bytes of the device. */
  size: v.optional(v.number()),
  /** Names its bytes, of devices that can be connected again. */
  fingerprint: v.optional(v.string()),
  /** Seconds after which serve gives up a read. */
  requestTimeout: v.optional(v.number()),
  platform: v.optional(v.string()),
  /** Options that a serve of the mount's own was started with. */
  serveOptions: v.optional(v.array(v.string())),
  integrity: v.optional(v.string()),
  source: v.optional(v.string()),
  meta: v.optional(v.string()),
  /** ISO 8601. */
  started: v.string(),
  /** False until the command that makes it has ended well. */
  complete: v.boolean(),
});

/** Everything that undoing a mount needs. */
export type MountState = v.InferOutput<typeof stateSchema>;

/** The command that undoes what a state tells of. */
export function undoCommand({ dir, device }: MountState): string {
  return dir === undefined ? `obd detach ${device}` : `obd umount ${dir}`;
}

/** Reports what exists so far, so that it can be undone after a crash too. */
export type SaveState = (change: Partial<MountState>) => Promise<void>;

/**
 * Where sockets and mounts of this machine are: `OBD_RUN_DIR`, else `/run/obd`.
 *
 * @throws {UsageError} If it is relative: processes in other directories use it, too.
 */
export function runDirectory(): string {
  return directoryOf("OBD_RUN_DIR", "/run/obd");
}

/**
 * Where caches are: `OBD_CACHE_DIR`, else `/var/lib/obd`.
 *
 * @throws {UsageError} If it is relative.
 */
export function cacheDirectory(): string {
  return directoryOf("OBD_CACHE_DIR", "/var/lib/obd");
}

function directoryOf(variable: string, usual: string): string {
  const given = Deno.env.get(variable);
  if (!given) return usual;
  if (given.startsWith("/")) return given.replace(/\/+$/, "");
  throw new UsageError(`${variable} "${given}" is no absolute path`);
}

/** Where mounts have their directories. */
export function mountsDirectory(): string {
  return `${runDirectory()}/mounts`;
}

/** Id of what is mounted or attached under a name: 12 hex digits. */
export function mountId(...parts: string[]): string {
  return createHash("sha256").update(parts.join("\0")).digest("hex")
    .slice(0, 12);
}

/** One mount's directory, locked against other commands until it is disposed of. */
export class MountDirectory implements Disposable {
  readonly id: string;
  readonly path: string;
  readonly #lock: Deno.FsFile;

  private constructor(id: string, path: string, lock: Deno.FsFile) {
    this.id = id;
    this.path = path;
    this.#lock = lock;
  }

  /**
   * Opens the directory of an id, made if it is not there.
   *
   * @throws {ObdError} Code `conflict` while another command works on it;
   * `state` if somebody else could write there.
   */
  static async open(id: string): Promise<MountDirectory> {
    const path = `${mountsDirectory()}/${id}`;
    const lockPath = `${path}/lock`;
    for (;;) {
      await Deno.mkdir(path, { recursive: true, mode: 0o700 })
        // A link to somewhere: the check says so.
        .catch(ignoreExisting);
      if (!await isOurs(path)) continue;
      let lock: Deno.FsFile;
      try {
        lock = await Deno.open(lockPath, { write: true, create: true });
      } catch (error) {
        // Removed by another command just now.
        if (error instanceof Deno.errors.NotFound) continue;
        throw error;
      }
      if (!await lock.tryLock(true)) {
        lock.close();
        throw new ObdError(
          "conflict",
          `Another obd command works on "${path}" at this moment`,
        );
      }
      const mine = await lock.stat();
      const now = await Deno.stat(lockPath).catch(() => undefined);
      if (now?.ino === mine.ino) return new MountDirectory(id, path, lock);
      lock.close();
    }
  }

  /** The state, or undefined when nothing is mounted under this id. */
  read(): Promise<MountState | undefined> {
    return readState(this.path);
  }

  /** Replaces the state; it is whole on disk or not changed. */
  async write(state: MountState): Promise<void> {
    const temp = `${this.path}/state.tmp`;
    await Deno.writeTextFile(temp, JSON.stringify(state, null, 2) + "\n", {
      mode: 0o600,
    });
    await Deno.rename(temp, `${this.path}/state.json`);
  }

  /** Removes everything but the lock. Nothing may be mounted below. */
  async clear(): Promise<void> {
    // First the state: a directory without one means nothing.
    await Deno.remove(`${this.path}/state.json`).catch(ignoreMissing);
    for await (const entry of Deno.readDir(this.path)) {
      if (entry.name === "lock" || entry.name === "fuse") continue;
      await Deno.remove(`${this.path}/${entry.name}`, {
        recursive: entry.isDirectory,
      }).catch(ignoreMissing);
    }
    // Not recursive: what might still be mounted there is not ours to delete.
    await Deno.remove(`${this.path}/fuse`).catch(ignoreMissing);
  }

  /** Gives the lock back; a directory without a state is removed. */
  [Symbol.dispose](): void {
    try {
      Deno.statSync(`${this.path}/state.json`);
    } catch {
      for (const name of ["/fuse", "/lock", ""]) {
        try {
          Deno.removeSync(this.path + name);
        } catch {
          // Not empty or gone: the next command meets it again.
        }
      }
    }
    // Closing alone would leave the lock with a child between fork and exec.
    this.#lock.unlockSync();
    this.#lock.close();
  }
}

function ignoreMissing(error: unknown): undefined {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}

function ignoreExisting(error: unknown): void {
  if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
}

/**
 * Whether a mount's directory is there; that only this user could have put
 * there what is in it: it says what root ends, unmounts and removes. A run
 * directory may lie where others can write, as below `/tmp`.
 *
 * @throws {ObdError} If somebody else could.
 */
async function isOurs(path: string): Promise<boolean> {
  for (const dir of [mountsDirectory(), path]) {
    const info = await Deno.lstat(dir).catch(ignoreMissing);
    if (!info) return false;
    const isPrivate = (info.mode! & 0o022) === 0;
    if (!info.isDirectory || info.uid !== Deno.uid() || !isPrivate) {
      throw new ObdError(
        "state",
        `Directory "${dir}" can be written to by others: set OBD_RUN_DIR to a directory of your own`,
      );
    }
  }
  return true;
}

async function readState(dir: string): Promise<MountState | undefined> {
  const path = `${dir}/state.json`;
  let text: string;
  try {
    const { size } = await Deno.stat(path);
    if (size > STATE_SIZE_MAX) throw new Error(`it has ${size} bytes`);
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw unreadable(path, error);
  }
  try {
    return v.parse(stateSchema, JSON.parse(text));
  } catch (error) {
    throw unreadable(path, error);
  }
}

function unreadable(path: string, error: unknown): ObdError {
  return new ObdError(
    "state",
    `Cannot read the state of a mount in "${path}": ${errorText(error)}`,
    { cause: error },
  );
}

/** All states, oldest first. Directories without one are left out. */
export async function listStates(): Promise<MountState[]> {
  const states: MountState[] = [];
  try {
    for await (const entry of Deno.readDir(mountsDirectory())) {
      if (!entry.isDirectory) continue;
      const path = `${mountsDirectory()}/${entry.name}`;
      const state = await isOurs(path) ? await readState(path) : undefined;
      if (state) states.push(state);
    }
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) {
      throw new ObdError(
        "state",
        `Cannot read "${mountsDirectory()}": only root may`,
        { cause: error },
      );
    }
    ignoreMissing(error);
  }
  return states.sort((a, b) =>
    a.started < b.started ? -1 : a.started > b.started ? 1 : 0
  );
}

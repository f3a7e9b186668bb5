/**
 * Temporary directories that do not stay for ever where their process was
 * killed: each holds a file that the kernel keeps locked while its process
 * lives, and whoever makes one removes those whose lock is free.
 */

const LOCK = "lock";
/** Younger ones may belong to somebody who is about to lock them. */
const MIN_AGE_MS = 60_000;

/** A directory below the system's temporary one (`TMPDIR`), removed with all that is in it. */
export class Scratch implements AsyncDisposable {
  readonly path: string;
  readonly #lock: Deno.FsFile;

  private constructor(path: string, lock: Deno.FsFile) {
    this.path = path;
    this.#lock = lock;
  }

  /**
   * @param prefix Begins its name; `obd-…-`. What processes that were killed
   * left under the same prefix is removed.
   */
  static async make(prefix: string): Promise<Scratch> {
    const path = await Deno.makeTempDir({ prefix });
    try {
      await removeAbandoned(path.slice(0, path.lastIndexOf("/")), prefix);
      const lock = await Deno.open(`${path}/${LOCK}`, {
        write: true,
        createNew: true,
        mode: 0o600,
      });
      // Nobody else knows of it for a minute.
      await lock.tryLock(true);
      return new Scratch(path, lock);
    } catch (error) {
      await Deno.remove(path, { recursive: true }).catch(() => {});
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await Deno.remove(this.path, { recursive: true });
    } finally {
      this.#lock.close();
    }
  }
}

/** What cannot be looked at or removed stays. */
async function removeAbandoned(
  parent: string,
  prefix: string,
): Promise<void> {
  try {
    for await (const { name, isDirectory } of Deno.readDir(parent)) {
      if (!isDirectory || !name.startsWith(prefix)) continue;
      const path = `${parent}/${name}`;
      if (await isAbandoned(path).catch(() => false)) {
        await Deno.remove(path, { recursive: true }).catch(() => {});
      }
    }
  } catch {
    // A directory for files of everybody need not be readable.
  }
}

/** Only what this user made, as above, a while ago. */
async function isAbandoned(path: string): Promise<boolean> {
  const info = await Deno.lstat(`${path}/${LOCK}`);
  if (!info.isFile || info.uid !== Deno.uid()) return false;
  if (Date.now() - info.mtime!.getTime() < MIN_AGE_MS) return false;
  using lock = await Deno.open(`${path}/${LOCK}`, { write: true });
  return await lock.tryLock(true);
}

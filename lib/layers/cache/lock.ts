/** One owner per cache directory. */

import { delay, ObdError } from "../../io/mod.ts";

const LOCK = "lock";
/** Who only looks whether a cache is free (`obd mount`) has its lock for less than a millisecond. */
const ATTEMPTS = 5;
const ATTEMPT_MS = 20;

/**
 * Takes an exclusive lock that the kernel takes back when this process ends,
 * however it ends.
 *
 * @throws {ObdError} Code `conflict` when another owner has it.
 */
export async function lockDirectory(directory: string): Promise<Deno.FsFile> {
  const path = `${directory}/${LOCK}`;
  const lock = await Deno.open(path, {
    read: true,
    write: true,
    create: true,
    mode: 0o600,
  });
  try {
    if (await tryLock(lock)) {
      await lock.truncate(0);
      await lock.write(new TextEncoder().encode(`${Deno.pid}\n`));
      return lock;
    }
    const owner = (await Deno.readTextFile(path).catch(() => "")).trim();
    throw new ObdError(
      "conflict",
      `Cannot use cache directory "${directory}": process ${
        /^\d{1,10}$/.test(owner) ? owner : "unknown"
      } uses it`,
    );
  } catch (error) {
    lock.close();
    throw error;
  }
}

/**
 * Gives a directory back. Closing alone would leave the lock with a child that
 * is between fork and exec, which has the file open for as long as that takes.
 */
export function unlockDirectory(lock: Deno.FsFile): void {
  lock.unlockSync();
  lock.close();
}

async function tryLock(lock: Deno.FsFile): Promise<boolean> {
  for (let left = ATTEMPTS; !await lock.tryLock(true); left--) {
    if (left === 0) return false;
    await delay(ATTEMPT_MS);
  }
  return true;
}

/** Keeps the file small that a background serve logs to: nobody rotates it, and it lies in memory (`/run`). */

import type { StderrLogger } from "./log.ts";

/** Lines between two looks at the file. */
const LOOK_EVERY = 64;

/**
 * Whenever stderr is a file and has grown beyond a size, cuts it and writes
 * the last lines again. The file must be open for appending.
 *
 * @param sizeMax Bytes; the file may pass it by the lines between two looks.
 */
export function keepStderrSmall(log: StderrLogger, sizeMax: number): void {
  let lines = 0;
  log.afterWrite = () => {
    if (++lines % LOOK_EVERY !== 0) return;
    try {
      const { isFile, size } = Deno.statSync("/proc/self/fd/2");
      if (!isFile || size <= sizeMax) return;
      // By its name: the runtime opens no links of /proc for writing.
      Deno.truncateSync(Deno.readLinkSync("/proc/self/fd/2"), 0);
      console.error(log.recent.join("\n"));
    } catch {
      // A log that cannot be cut is no reason to stop serving.
    }
  };
}

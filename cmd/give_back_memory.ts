/**
 * Gives memory that nobody refers to back to the system.
 *
 * V8 collects when something is allocated: a process that opened its images,
 * or served a burst of reads, and is then left alone keeps the garbage for as
 * long as nothing happens.
 */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

let collect: (() => void) | undefined;

/** A full collection; some tens of milliseconds. Does nothing where the runtime offers none. */
export function giveBackMemory(): void {
  try {
    if (!collect) {
      setFlagsFromString("--expose-gc");
      // Contexts made from now on have it; ours was made before.
      collect = runInNewContext("gc") as () => void;
    }
    collect();
  } catch {
    // Then it happens when V8 wants it.
  }
}

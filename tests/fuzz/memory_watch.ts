/** Peaks of this process's memory, which a look now and then would miss. */

import * as fs from "node:fs";

/** A number of `/proc/self/status`, in bytes. */
function statusBytes(name: string): number {
  const text = fs.readFileSync("/proc/self/status", "latin1");
  const kib = new RegExp(`^${name}:\\s*(\\d+) kB`, "m").exec(text)?.[1];
  return Number(kib) * 1024;
}

/** Compares the peak since {@linkcode begin} with a limit. */
export class MemoryWatch {
  /** Bytes above what was in use at the beginning. */
  readonly limit: number;
  #before = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Starts anew. */
  begin(): void {
    // proc(5): 5 resets the peak to what is resident now.
    fs.writeFileSync("/proc/self/clear_refs", "5");
    this.#before = statusBytes("VmRSS");
  }

  /** Whether more than the limit was in use at any time since. */
  isOver(): boolean {
    return statusBytes("VmHWM") - this.#before > this.limit;
  }

  /** Lets go of what earlier inputs left behind, as far as the engine lets us. */
  collect(): void {
    (globalThis as { gc?: () => void }).gc?.();
  }
}

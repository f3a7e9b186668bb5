/** The start of a run's clock, and commands that count in it. */

import { ObdError } from "../../lib/io/mod.ts";
import type { CostGroup } from "./cost.ts";
import { type BenchProcess, runTool } from "./process.ts";
import type { RunSettings } from "./settings.ts";

/**
 * Page cache dropped (as root), counters at zero.
 *
 * @returns The time at which the command starts.
 */
export async function startClock(
  { registry, signal }: RunSettings,
  group: CostGroup,
): Promise<number> {
  if (Deno.uid() === 0) {
    await runTool("write back", ["sync"], signal);
    await Deno.writeTextFile("/proc/sys/vm/drop_caches", "3");
  }
  group.begin();
  registry.proxy.reset();
  return performance.now();
}

/**
 * Waits for a command's good end.
 *
 * @throws {ObdError} If it fails, or takes longer than a run may.
 */
export async function ended(
  process: BenchProcess,
  { deadlineMs, signal }: Pick<RunSettings, "deadlineMs" | "signal">,
  action: string,
): Promise<void> {
  // Who listens later is not told.
  signal.throwIfAborted();
  const stop = AbortSignal.any([signal, AbortSignal.timeout(deadlineMs)]);
  const stopped = new Promise<never>((_, reject) => {
    stop.addEventListener("abort", () => {
      reject(
        signal.aborted ? signal.reason : new ObdError(
          "deadline",
          `Cannot ${action}: it took more than ${deadlineMs / 1000} s`,
        ),
      );
    }, { once: true });
  });
  await Promise.race([process.success(action), stopped]);
}

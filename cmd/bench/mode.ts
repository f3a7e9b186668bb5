/** The two ways to bench: containers as root, or replayed reads as anybody. */

import type { ContenderName } from "./contenders.ts";
import { runContender, withRun } from "./contenders.ts";
import { startContainerd } from "./containerd.ts";
import {
  type BenchRegistry,
  type RegistryOptions,
  startRegistry,
} from "./link.ts";
import type { Measurement } from "./measurement.ts";
import { type Recording, recordObd } from "./obd.ts";
import type { RunSettings } from "./settings.ts";

/** See the module's comment. */
export interface BenchMode {
  name: "full" | "reduced";
  /** What its results do not have, in words. */
  leavesOut: string[];
  startRegistry(options: RegistryOptions): Promise<BenchRegistry>;
  /** Starts the service once and notes what it reads. */
  record(settings: RunSettings): Promise<Recording>;
  /** Why no contender can run a workload that was recorded; undefined if they can. */
  problem(settings: RunSettings): string | undefined;
  run(name: ContenderName, settings: RunSettings): Promise<Measurement>;
}

/** Real containers on real mounts. */
export const FULL_MODE: BenchMode = {
  name: "full",
  leavesOut: [],
  startRegistry,
  record: (settings) =>
    withRun(
      settings,
      async (stack, group) =>
        await recordObd(
          stack,
          settings,
          await startContainerd(stack, settings, group),
          group,
        ),
    ),
  problem: () => undefined,
  run: runContender,
};

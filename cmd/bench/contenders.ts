/**
 * The ways to start an image that a bench compares. All end in the same
 * containerd, shim and runc, and begin with daemons that run already; the clock
 * runs from the pull or mount command.
 */

import { startContainerd } from "./containerd.ts";
import { CostGroup } from "./cost.ts";
import type { Measurement } from "./measurement.ts";
import { runObd } from "./obd.ts";
import { runOci, runUmoci } from "./oci.ts";
import { requireFreePort } from "./ready.ts";
import { removeTree } from "./run_files.ts";
import type { RunSettings } from "./settings.ts";

/** Names of contenders. */
export const CONTENDERS = [
  "oci",
  "umoci",
  "obd",
  "obd-trace",
  "obd-native",
  "obd-warm",
] as const;

/** See {@linkcode CONTENDERS}. */
export type ContenderName = typeof CONTENDERS[number];

/** Runs one contender once, cold (or warm, where that is its name). */
export async function runContender(
  name: ContenderName,
  settings: RunSettings,
): Promise<Measurement> {
  return await withRun(settings, async (stack, group) => {
    const containerd = await startContainerd(stack, settings, group);
    if (name === "oci") {
      return await runOci(stack, settings, containerd, group);
    }
    if (name === "umoci") {
      return await runUmoci(stack, settings, containerd, group);
    }
    return await runObd(stack, name, settings, containerd, group);
  });
}

/** With directories and a count of costs that are gone afterwards. */
export async function withRun<T>(
  { work, runDir, workload }: RunSettings,
  run: (stack: AsyncDisposableStack, group: CostGroup) => Promise<T>,
): Promise<T> {
  await using stack = new AsyncDisposableStack();
  await requireFreePort(workload.ready);
  // What a bench left that was killed.
  await removeTree(work);
  await Deno.mkdir(work, { recursive: true });
  stack.defer(() => removeTree(work));
  await Deno.mkdir(runDir, { recursive: true, mode: 0o700 });
  stack.defer(() => removeTree(runDir));
  const group = stack.use(await CostGroup.create(`obd-bench-${Deno.pid}`));
  return await run(stack, group);
}

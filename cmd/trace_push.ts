/** `obd trace push IMAGE FILE`. */

import {
  openEnvironment,
  pushAcceleration,
  pushTrace,
} from "../lib/image/mod.ts";
import { formatSize } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { readTraceFile } from "./trace_files.ts";

/** Options of the command that matter here. */
export interface PushFlags {
  accelerationLayer?: string;
  platform?: string;
}

/** Pushes a trace file as a referrer of an image, or as a layer of a new one. */
export async function pushTraceFile(
  context: Context,
  image: string,
  path: string,
  flags: PushFlags,
): Promise<void> {
  const { records, device } = await readTraceFile(path);
  await using environment = await openEnvironment({
    log: context.log,
    progress: context.progress,
    signal: context.signal,
    registry: context.registry,
  });
  const options = { image, records, device, platform: flags.platform };
  if (flags.accelerationLayer === undefined) {
    const pushed = await pushTrace(environment, options);
    context.say(
      `${pushed.reference} ${
        pushed.isNew ? "refers" : "refers already"
      } to ${pushed.subject}`,
    );
    return context.result({ ...pushed, ranges: records.length });
  }
  const pushed = await pushAcceleration(environment, {
    ...options,
    tag: flags.accelerationLayer,
  });
  context.say(`${pushed.reference} (${pushed.digest})`);
  if (pushed.leftOut > 0) {
    context.log.warn(
      "reads of original layers cannot be in an acceleration layer",
      { leftOut: formatSize(pushed.leftOut) },
    );
  }
  context.result({ ...pushed, ranges: records.length });
}

/** `obd trace record EXPORT --output FILE`, `show FILE [IMAGE]`, `push IMAGE FILE`. */

import { UsageError } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { pushTraceFile } from "./trace_push.ts";
import { type RecordFlags, recordTrace } from "./trace_record.ts";
import { showTrace } from "./trace_show.ts";

interface TraceFlags extends RecordFlags {
  accelerationLayer?: string;
  platform?: string;
}

/** The options of each action; others are a mistake. */
const OPTIONS: Record<string, readonly (keyof TraceFlags)[]> = {
  record: ["output", "files", "seconds", "api"],
  show: ["platform"],
  push: ["accelerationLayer", "platform"],
};

export async function run(
  context: Context,
  [action, target, other]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  const flags = options as TraceFlags;
  const own = Object.hasOwn(OPTIONS, action!) ? OPTIONS[action!] : undefined;
  if (!own) {
    throw new UsageError(`Unknown action "${action}" (record, show, push)`);
  }
  for (const [name, owners] of foreignOptions(action!)) {
    if (flags[name] !== undefined) {
      throw new UsageError(`--${dashed(name)} is for ${owners.join(", ")}`);
    }
  }
  if (action === "show") {
    return await showTrace(context, target!, other, options);
  }
  if (action === "push") {
    if (other === undefined) throw new UsageError("push needs IMAGE and FILE");
    return await pushTraceFile(context, target!, other, flags);
  }
  if (other !== undefined) throw new UsageError(`Unexpected "${other}"`);
  await recordTrace(context, target!, flags);
}

/** Options that only other actions have, and which. */
function foreignOptions(
  action: string,
): Map<keyof TraceFlags, string[]> {
  const found = new Map<keyof TraceFlags, string[]>();
  for (const [owner, names] of Object.entries(OPTIONS)) {
    for (const name of names) {
      if (OPTIONS[action]!.includes(name)) continue;
      found.set(name, [...found.get(name) ?? [], owner]);
    }
  }
  return found;
}

function dashed(name: string): string {
  return name.replaceAll(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
}

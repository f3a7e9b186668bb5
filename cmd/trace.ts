/** `obd trace record EXPORT --output FILE` and `obd trace show FILE`. */

import { DEVICE_LAYER, encodeTrace } from "../lib/image/mod.ts";
import {
  CancelledError,
  delay,
  formatSize,
  ObdError,
  UsageError,
} from "../lib/io/mod.ts";
import { createApiClient } from "./api_client.ts";
import type { Context } from "./context.ts";
import { runDirectory } from "./mount_state.ts";
import { readTraceFile } from "./trace_files.ts";

const SECONDS_MAX = 7 * 24 * 3600;

interface TraceFlags {
  output?: string;
  seconds?: string;
  api?: string;
}

export async function run(
  context: Context,
  [action, target]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  const flags = options as TraceFlags;
  if (action === "record") return await record(context, target!, flags);
  if (action === "show") return await show(context, target!, flags);
  throw new UsageError(`Unknown action "${action}" (record, show)`);
}

async function record(
  context: Context,
  name: string,
  flags: TraceFlags,
): Promise<void> {
  const { output } = flags;
  if (output === undefined) throw new UsageError("record needs --output FILE");
  const seconds = readSeconds(flags.seconds);
  using client = createApiClient(
    flags.api ?? `unix:${runDirectory()}/api.sock`,
  );
  await client.startTrace(name, { signal: context.signal });
  if (!context.quiet && !context.json) {
    console.error(
      `recording export "${name}"${
        seconds === undefined ? ", end with Ctrl-C" : ` for ${seconds} s`
      }`,
    );
  }
  try {
    await waitFor(seconds, context.signal);
  } catch (error) {
    // The signal is how a recording without a length ends.
    if (!(error instanceof CancelledError)) throw error;
  }
  const ranges = await client.stopTrace(name);
  const bytes = encodeTrace(
    ranges.map((range) => ({ layer: DEVICE_LAYER, ...range })),
  );
  try {
    await Deno.writeFile(`${output}.tmp`, bytes);
    await Deno.rename(`${output}.tmp`, output);
  } catch (error) {
    throw new ObdError("state", `Cannot write "${output}"`, { cause: error });
  }
  const total = ranges.reduce((sum, range) => sum + range.length, 0);
  context.say(
    `${output}: ${ranges.length} ranges, ${formatSize(total)} read`,
  );
  context.result({ file: output, ranges: ranges.length, bytes: total });
}

function readSeconds(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const seconds = Number(text);
  if (/^\d+(\.\d+)?$/.test(text) && seconds <= SECONDS_MAX) return seconds;
  throw new UsageError(
    `--seconds "${text}" is no number from 0 to ${SECONDS_MAX}`,
  );
}

function waitFor(
  seconds: number | undefined,
  signal: AbortSignal,
): Promise<void> {
  if (seconds !== undefined) return delay(seconds * 1000, signal);
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

async function show(
  context: Context,
  path: string,
  flags: TraceFlags,
): Promise<void> {
  if (flags.output !== undefined || flags.seconds !== undefined) {
    throw new UsageError("--output and --seconds are for record");
  }
  const records = await readTraceFile(path);
  const total = records.reduce((sum, record) => sum + record.length, 0);
  for (const { layer, offset, length } of records) {
    const where = layer === DEVICE_LAYER ? "device" : `layer ${layer}`;
    context.say(`${where}\t${offset}\t${length}`);
  }
  context.say(`${records.length} ranges, ${formatSize(total)}`);
  context.result({
    ranges: records.map(({ layer, offset, length }) => ({
      layer: layer === DEVICE_LAYER ? "device" : layer,
      offset,
      length,
    })),
    bytes: total,
  });
}

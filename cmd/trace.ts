/** `obd trace record EXPORT --output FILE`, `show FILE [IMAGE]`, `push IMAGE FILE`. */

import {
  DEVICE_LAYER,
  encodeTrace,
  tracedReads,
  type TraceRecord,
} from "../lib/image/mod.ts";
import {
  CancelledError,
  delay,
  formatSize,
  ObdError,
  UsageError,
} from "../lib/io/mod.ts";
import { type ApiClient, createApiClient } from "./api_client.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { runDirectory } from "./mount_state.ts";
import { pushTraceFile } from "./trace_push.ts";
import { showTrace } from "./trace_show.ts";

const SECONDS_MAX = 7 * 24 * 3600;

interface TraceFlags {
  output?: string;
  files?: string;
  seconds?: string;
  api?: string;
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
  await record(context, target!, flags);
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
  const records = (await client.stopTrace(name)).map((range): TraceRecord => ({
    layer: DEVICE_LAYER,
    ...range,
  }));
  await writeWhole(output, encodeTrace(records));
  const total = records.reduce((sum, range) => sum + range.length, 0);
  context.say(
    `${output}: ${records.length} ranges, ${formatSize(total)} read`,
  );
  const files = flags.files === undefined
    ? undefined
    : await writeFiles(context, client, name, records, flags.files);
  context.result({
    file: output,
    ranges: records.length,
    bytes: total,
    ...(files === undefined ? {} : { files }),
  });
}

/** Writes the list of files that were read. @returns How many. */
async function writeFiles(
  context: Context,
  client: ApiClient,
  name: string,
  records: readonly TraceRecord[],
  path: string,
): Promise<number> {
  // After Ctrl-C nothing would be opened any more: the end of the recording is no end of the command.
  const fresh = { ...context, signal: new AbortController().signal };
  const status = (await client.status()).exports.find((e) => e.name === name);
  if (!status) {
    throw new ObdError(
      "not-found",
      `Export "${name}" is gone: ${path} is not written`,
    );
  }
  await using session = await openSession(fresh, status.image, {});
  const { files } = await tracedReads(session.image, records, fresh.signal);
  const lines = files.map((file) => file.path)
    // A list is read line by line.
    .filter((line) => !line.includes("\n") && line === line.trim());
  await writeWhole(path, new TextEncoder().encode(lines.join("\n") + "\n"));
  context.say(`${path}: ${lines.length} files`);
  return lines.length;
}

async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  try {
    await Deno.writeFile(`${path}.tmp`, bytes);
    await Deno.rename(`${path}.tmp`, path);
  } catch (error) {
    throw new ObdError("state", `Cannot write "${path}"`, { cause: error });
  }
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

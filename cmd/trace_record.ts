/** `obd trace record EXPORT|DIR --output FILE`. */

import { resolve } from "node:path";
import {
  DEVICE_LAYER,
  encodeTrace,
  tracedReads,
  type TraceRecord,
} from "../lib/image/mod.ts";
import {
  CancelledError,
  DeadlineError,
  delay,
  errorText,
  formatSize,
  ObdError,
  UsageError,
  writeFileAtomic,
} from "../lib/io/mod.ts";
import {
  type ApiClient,
  createApiClient,
  type TraceRange,
} from "./api_client.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { listStates, runDirectory } from "./mount_state.ts";
import { checkOutput } from "./output_file.ts";

const SECONDS_MAX = 7 * 24 * 3600;
/** How often is asked what was read: what is recorded lies in a process that may end. */
const POLL_MS = 1000;

/** Options of the command that matter here. */
export interface RecordFlags {
  output?: string;
  files?: string;
  seconds?: string;
  api?: string;
}

/** What was read, and why the recording ended before it should. */
interface Recording {
  ranges: TraceRange[];
  lost?: ObdError;
}

/**
 * Records what an export reads, until a signal or for a while.
 *
 * @param target Name of an export; or what `obd mounts` shows: directory, device or id.
 * @throws {ObdError} If a file cannot be written, before anything is recorded;
 * if the export or its serve went, after what was read until then is written.
 */
export async function recordTrace(
  context: Context,
  target: string,
  flags: RecordFlags,
): Promise<void> {
  const { output } = flags;
  if (output === undefined) throw new UsageError("record needs --output FILE");
  if (flags.files !== undefined && resolve(flags.files) === resolve(output)) {
    throw new UsageError(`--files "${flags.files}" is the file of --output`);
  }
  const seconds = readSeconds(flags.seconds);
  for (const path of [output, flags.files]) {
    if (path !== undefined) await requireWritable(path);
  }
  const { name, api } = await findExport(target, flags.api);
  using client = createApiClient(api);
  await client.startTrace(name, { signal: context.signal });
  if (!context.quiet && !context.json) {
    console.error(
      `recording export "${name}"${
        seconds === undefined ? ", end with Ctrl-C" : ` for ${seconds} s`
      }`,
    );
  }
  const device = await client.tracedDevice(name, { signal: context.signal })
    .catch((error) => notNamed(context, error));
  const { ranges, lost } = await follow(client, name, seconds, context.signal);
  if (lost && ranges.length === 0) throw lost;
  const records = ranges.map((range): TraceRecord => ({
    layer: DEVICE_LAYER,
    ...range,
  }));
  await writeWhole(output, encodeTrace(records, device));
  const total = records.reduce((sum, range) => sum + range.length, 0);
  context.say(
    `${output}: ${records.length} ranges, ${formatSize(total)} read`,
  );
  if (lost) {
    throw new ObdError(
      lost.code,
      `The recording ended early, ${output} has what was read until then: ${
        errorText(lost)
      }`,
      { cause: lost },
    );
  }
  if (records.length === 0) {
    context.log.warn(
      "nothing was read: what the page cache has of a mounted device is not read again, so record from before the mount on",
      { export: name },
    );
  }
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

/** A mount has a serve and a name that its user never sees. */
async function findExport(
  target: string,
  api: string | undefined,
): Promise<{ name: string; api: string }> {
  if (api !== undefined) return { name: target, api };
  const dir = await Deno.realPath(target).catch(() => undefined);
  const mount = (await listStates()).find((state) =>
    state.id === target || state.device === target ||
    (dir !== undefined && state.dir === dir)
  );
  return mount
    ? { name: mount.export, api: mount.api }
    : { name: target, api: `unix:${runDirectory()}/api.sock` };
}

/** Waits, and asks now and then, so that an end of the serve costs a second and not all. */
async function follow(
  client: ApiClient,
  name: string,
  seconds: number | undefined,
  signal: AbortSignal,
): Promise<Recording> {
  const end = seconds === undefined
    ? Infinity
    : performance.now() + seconds * 1000;
  const ranges: TraceRange[] = [];
  try {
    for (let left; !signal.aborted && (left = end - performance.now()) > 0;) {
      await delay(Math.min(left, POLL_MS), signal);
      // The last range may have grown.
      const from = Math.max(0, ranges.length - 1);
      const more = await client.readTrace(name, from, { signal })
        .catch(notWhenBusy);
      if (!more) continue;
      ranges.length = from;
      for (const range of more) ranges.push(range);
    }
  } catch (error) {
    if (!(error instanceof ObdError)) throw error;
    // The signal is how a recording without a length ends.
    if (!(error instanceof CancelledError)) return { ranges, lost: error };
  }
  try {
    return { ranges: await client.stopTrace(name) };
  } catch (error) {
    if (!(error instanceof ObdError)) throw error;
    return { ranges, lost: error };
  }
}

function notWhenBusy(error: unknown): undefined {
  if (!(error instanceof DeadlineError)) throw error;
}

/** A trace that does not say of which device it is, is still one. */
function notNamed({ log, signal }: Context, error: unknown): string {
  if (!(error instanceof ObdError)) throw error;
  if (!signal.aborted) {
    log.warn("the trace will not tell its device", { error: errorText(error) });
  }
  return "";
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
  // From the root, as others write them and `obd bench --reads` wants them.
  const lines = files.map((file) => `/${file.path}`)
    // A list is read line by line.
    .filter((line) => !line.includes("\n") && line === line.trim());
  await writeWhole(path, new TextEncoder().encode(lines.join("\n") + "\n"));
  context.say(`${path}: ${lines.length} files`);
  return lines.length;
}

/** Fails now rather than when all was recorded. */
async function requireWritable(path: string): Promise<void> {
  const probe = `${path}.${Deno.pid}.tmp`;
  try {
    await checkOutput(path);
    (await Deno.open(probe, { write: true, createNew: true })).close();
    await Deno.remove(probe);
  } catch (error) {
    throw cannotWrite(path, error);
  }
}

async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  try {
    await writeFileAtomic(path, bytes);
  } catch (error) {
    throw cannotWrite(path, error);
  }
}

function cannotWrite(path: string, error: unknown): ObdError {
  return new ObdError("state", `Cannot write "${path}"`, { cause: error });
}

function readSeconds(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const seconds = Number(text);
  if (/^\d+(\.\d+)?$/.test(text) && seconds <= SECONDS_MAX) return seconds;
  throw new UsageError(
    `--seconds "${text}" is no number from 0 to ${SECONDS_MAX}`,
  );
}

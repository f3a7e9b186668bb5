/** What an overlaybd `config.v1.json` says about fetching ahead (overlaybd src/image_file.cpp, src/prefetch.cpp). */

import {
  type ByteSource,
  errorText,
  type Logger,
  ObdError,
} from "../io/mod.ts";
import { decodeTrace, isTrace, traceDevice } from "../layers/mod.ts";
import { readFileList } from "./file_list.ts";
import type { RecordedReads } from "./open.ts";
import { isTraceOf } from "./trace_referrer.ts";

const TRACE_SIZE_MAX = 64 * 1024 * 1024;
/** Name of the trace in an unpacked acceleration layer. */
const TRACE_NAME = "trace";

/** The keys that matter. */
export interface TraceKeys {
  /** The last lower is no layer, but holds a trace. */
  accelerationLayer: boolean;
  /** A trace, or a file list; empty where recording is wanted. */
  recordTracePath: string;
  lowers: readonly { dir: string }[];
}

/**
 * Reads the trace of a configuration. What cannot be used is told and left out,
 * as overlaybd does; so is a trace of obd's that names another device.
 *
 * @param file The configuration, for messages.
 * @param device The image's; borrowed.
 * @throws {CancelledError} When the signal is aborted.
 */
export async function configTraces(
  file: string,
  keys: TraceKeys,
  { device, log, signal }: {
    device: ByteSource;
    log: Logger;
    signal?: AbortSignal | undefined;
  },
): Promise<RecordedReads> {
  const dir = keys.accelerationLayer ? keys.lowers.at(-1)?.dir : undefined;
  const path = dir ? `${dir}/${TRACE_NAME}` : keys.recordTracePath;
  if (path === "") return { records: [] };
  const ignore = (reason: string): RecordedReads => {
    log.warn("cannot use a trace", { config: file, path, reason });
    return { records: [] };
  };
  try {
    const { size } = await Deno.stat(path);
    if (size > TRACE_SIZE_MAX) return ignore(`it has ${size} bytes`);
    if (size === 0) {
      return ignore("it is empty; obd trace record records a running export");
    }
    const bytes = await Deno.readFile(path);
    if (isTrace(bytes)) {
      const records = decodeTrace(bytes);
      const named = traceDevice(bytes, records);
      return await isTraceOf(named, device, signal) ? { records } : ignore(
        "it was recorded of another image, or of this one built otherwise",
      );
    }
    if (dir) return ignore("it is no trace");
    return { records: [], fileList: await readFileList(path) };
  } catch (error) {
    // overlaybd takes a file that is not there for none.
    if (error instanceof Deno.errors.NotFound && !dir) return { records: [] };
    if (error instanceof ObdError && error.code === "cancelled") throw error;
    if (
      !(error instanceof ObdError) && !(error instanceof Deno.errors.NotFound)
    ) {
      return ignore((error as Error).message);
    }
    return ignore(errorText(error));
  }
}

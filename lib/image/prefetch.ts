/** Fetches ahead whatever is known about an image: given traces and lists, and what was left with it. */

import { errorText, type Logger, ObdError } from "../io/mod.ts";
import type { TraceRecord } from "../layers/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import { locateFiles, parseFileList } from "./file_list.ts";
import type { OpenedImage } from "./open.ts";
import type { TargetRecord } from "./prefetch_plan.ts";
import { isTraceOf } from "./trace_referrer.ts";
import { replayTrace } from "./trace_replay.ts";

/** What to fetch, and how fast. */
export interface PrefetchOptions {
  /** A trace that the user gave; then none is looked for. */
  trace?: readonly TraceRecord[] | undefined;
  /** First digits of the fingerprint of the device that it is of, if known. */
  traceDevice?: string | undefined;
  /** Content of a file list (`file_list.ts`) that the user gave. */
  fileList?: string | undefined;
  /** Whether traces that belong to the image are used. */
  findTraces: boolean;
  /** As in `ReplayOptions` of `trace_replay.ts`. */
  concurrency?: number | undefined;
  bytesPerSecond?: number | undefined;
  /** Called when it is known what to fetch, waited for before anything is. */
  ready?: (() => Promise<void>) | undefined;
  signal: AbortSignal;
}

/** Share of a cache that prefetch may fill: more would push out what was fetched first, and what others need. */
const CACHE_SHARE = 0.5;

/**
 * Fetches ahead, behind everybody's reads, until all is there, the caches are
 * full, or the signal is aborted. Never rejects: whoever reads does not need it.
 */
export async function prefetchImage(
  environment: ImageEnvironment,
  image: OpenedImage,
  options: PrefetchOptions,
): Promise<void> {
  const { signal } = options;
  const log = environment.log;
  try {
    const records = await collect(image, options, log);
    if (records.length === 0) return;
    await options.ready?.();
    if (signal.aborted) return;
    const { store, memory } = environment.spanCache;
    const { jobs } = await replayTrace(image, records, {
      logger: named(log, image.name),
      signal,
      concurrency: options.concurrency,
      bytesPerSecond: options.bytesPerSecond,
      limitBytes: (store?.sizeBytes ?? memory.limit) * CACHE_SHARE,
    });
    if (jobs === 0 && options.trace?.length && !signal.aborted) {
      log.warn("the trace names nothing that is fetched for this image", {
        image: image.name,
      });
    }
  } catch (error) {
    if (signal.aborted) return;
    log.warn("nothing more is fetched ahead", {
      image: image.name,
      error: errorText(error),
    });
  }
}

/** One serve has many images, and lines about a replay come at any time. */
function named(log: Logger, image: string): Logger {
  return {
    debug: (event, fields) => log.debug(event, { image, ...fields }),
    info: (event, fields) => log.info(event, { image, ...fields }),
    warn: (event, fields) => log.warn(event, { image, ...fields }),
    error: (event, fields) => log.error(event, { image, ...fields }),
  };
}

async function isOfImage(
  image: OpenedImage,
  { traceDevice, signal }: PrefetchOptions,
  log: Logger,
): Promise<boolean> {
  if (await isTraceOf(traceDevice, image.source, signal)) return true;
  log.warn(
    "leaving a trace alone that was recorded of another image, or of this one built otherwise",
    { image: image.name },
  );
  return false;
}

async function collect(
  image: OpenedImage,
  options: PrefetchOptions,
  log: Logger,
): Promise<(TraceRecord | TargetRecord)[]> {
  const { trace, fileList, findTraces, signal } = options;
  const found = findTraces && trace === undefined
    ? await image.traces(signal)
    : { records: [] };
  const records: (TraceRecord | TargetRecord)[] = [
    ...await isOfImage(image, options, log) ? trace ?? [] : [],
    ...found.records,
  ];
  for (const list of [fileList, found.fileList]) {
    if (list === undefined) continue;
    try {
      const { records: more, ...counts } = await locateFiles(
        image.source,
        parseFileList(list),
        { logger: log, signal },
      );
      log.info("file list read", { image: image.name, ...counts });
      for (const record of more) records.push(record);
    } catch (error) {
      if (!(error instanceof ObdError) || error.code === "cancelled") {
        throw error;
      }
      // A device without ext4, or a damaged one: the trace is still good.
      log.warn("cannot use a file list", {
        image: image.name,
        error: errorText(error),
      });
    }
  }
  // What a layer's author thought of, after what somebody measured.
  if (findTraces) records.push(...image.marked);
  return records;
}

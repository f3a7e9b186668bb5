/** Reads what a trace says, before anybody asks: behind all demand reads, within a budget. */

import {
  type ByteSource,
  CancelledError,
  delay,
  type Logger,
  ObdError,
} from "../io/mod.ts";
import {
  DEVICE_LAYER,
  MAX_TRACE_READ,
  type TraceRecord,
} from "../layers/mod.ts";

/** Reads at once, as overlaybd's `prefetchConfig.concurrency`. */
const DEFAULT_CONCURRENCY = 16;

/** Options of {@linkcode replayTrace}. */
export interface ReplayOptions {
  /** Reads at once. */
  concurrency?: number;
  /** Most bytes of the device asked for in a second; default no bound. */
  bytesPerSecond?: number | undefined;
  logger: Logger;
  signal: AbortSignal;
}

/** What a replay did. */
export interface ReplayResult {
  records: number;
  bytes: number;
  /** Reads that failed; a reader will meet the error itself. */
  failures: number;
}

/**
 * Replays a trace on the merged device. Ranges beyond its end, and records of
 * single layers, are left out.
 *
 * @throws {CancelledError} When the signal is aborted.
 */
export async function replayTrace(
  source: ByteSource,
  records: readonly TraceRecord[],
  options: ReplayOptions,
): Promise<ReplayResult> {
  const { signal, logger, bytesPerSecond } = options;
  const result: ReplayResult = { records: 0, bytes: 0, failures: 0 };
  const pieces = piecesOf(records, source.size);
  const started = performance.now();
  const worker = async () => {
    const buffer = new Uint8Array(MAX_TRACE_READ);
    for (const { offset, length } of pieces) {
      if (bytesPerSecond !== undefined) {
        const due = started + result.bytes / bytesPerSecond * 1000;
        const wait = due - performance.now();
        if (wait > 0) await delay(wait, signal);
      }
      if (signal.aborted) throw new CancelledError();
      result.records++;
      result.bytes += length;
      try {
        await source.pread(buffer.subarray(0, length), offset, {
          priority: "prefetch",
          signal,
        });
      } catch (error) {
        if (signal.aborted) throw new CancelledError();
        if (!(error instanceof ObdError)) throw error;
        result.failures++;
      }
    }
  };
  await Promise.all(
    Array.from(
      { length: options.concurrency ?? DEFAULT_CONCURRENCY },
      worker,
    ),
  );
  logger.info("trace replayed", {
    records: result.records,
    bytes: result.bytes,
    failures: result.failures,
    ms: Math.round(performance.now() - started),
  });
  return result;
}

/** One iterator that all workers take from. */
function* piecesOf(
  records: readonly TraceRecord[],
  size: number,
): Generator<{ offset: number; length: number }> {
  for (const record of records) {
    if (record.layer !== DEVICE_LAYER) continue;
    const end = Math.min(record.offset + record.length, size);
    for (let at = record.offset; at < end; at += MAX_TRACE_READ) {
      yield { offset: at, length: Math.min(MAX_TRACE_READ, end - at) };
    }
  }
}

/** `obd trace show FILE [IMAGE]`. */

import {
  DEVICE_LAYER,
  isTraceOf,
  type TracedReads,
  tracedReads,
  type TraceRecord,
} from "../lib/image/mod.ts";
import { formatSize, printable } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { readTraceFile, type TraceFile } from "./trace_files.ts";

/** Prints a trace; of an image that is given, also which files and layers it reads. */
export async function showTrace(
  context: Context,
  path: string,
  image: string | undefined,
  options: Record<string, unknown>,
): Promise<void> {
  const trace = await readTraceFile(path);
  const { records } = trace;
  const total = records.reduce((sum, record) => sum + record.length, 0);
  const reads = image === undefined
    ? undefined
    : await readsOf(context, image, trace, options);
  for (const { layer, offset, length } of records) {
    context.say(`${layerName(layer)}\t${offset}\t${length}`);
  }
  for (const [layer, sum] of byLayer(records)) {
    context.say(
      `${layerName(layer)}: ${sum.ranges} ranges, ${formatSize(sum.bytes)}`,
    );
  }
  if (reads) sayReads(context, reads);
  context.say(`${records.length} ranges, ${formatSize(total)}`);
  context.result({
    ranges: records.map(({ layer, offset, length }) => ({
      layer: layer === DEVICE_LAYER ? "device" : layer,
      offset,
      length,
    })),
    bytes: total,
    ...(reads ?? {}),
  });
}

function layerName(layer: number): string {
  return layer === DEVICE_LAYER ? "device" : `layer ${layer}`;
}

function byLayer(
  records: readonly TraceRecord[],
): Map<number, { ranges: number; bytes: number }> {
  const sums = new Map<number, { ranges: number; bytes: number }>();
  for (const { layer, length } of records) {
    const sum = sums.get(layer) ?? { ranges: 0, bytes: 0 };
    sums.set(layer, { ranges: sum.ranges + 1, bytes: sum.bytes + length });
  }
  return sums;
}

async function readsOf(
  context: Context,
  image: string,
  { records, device }: TraceFile,
  options: Record<string, unknown>,
): Promise<TracedReads> {
  const { log, signal } = context;
  await using session = await openSession(context, image, options);
  if (!await isTraceOf(device, session.image.source, signal)) {
    log.warn(
      "the trace was recorded of another image, or of this one built otherwise: what it reads here says nothing",
      { image },
    );
  }
  return await tracedReads(session.image, records, signal);
}

function sayReads(context: Context, reads: TracedReads): void {
  context.say("");
  for (const { digest, contentBytes, metadataBytes } of reads.layers) {
    context.say(
      `${digest}\t${formatSize(contentBytes)} of content, ${
        formatSize(metadataBytes)
      } of metadata`,
    );
  }
  context.say("");
  for (const { path, bytes, size } of reads.files) {
    context.say(`${printable(path)}\t${bytes}\t${size}`);
  }
  context.say(
    `${reads.files.length} files, ${
      formatSize(reads.otherBytes)
    } of no file (directories, tables)`,
  );
}

/** Index files for `obd inspect`: `gzip.meta`, `obd.spans`, overlaybd's traces. */

import { crc32c } from "../../compress/mod.ts";
import {
  type ByteSource,
  FormatError,
  getU64,
  IntegrityError,
  LimitError,
  readBytes,
  viewOf,
} from "../../io/mod.ts";
import { GZ, type GzipMeta, readGzipMeta } from "../gzip_meta.ts";
import { decodeSpans, type SpanIndex } from "../spans.ts";
import { type FileReport, guard, newReport } from "./report.ts";

/** Bytes of an index that is read whole. */
const INDEX_SIZE_MAX = 1024 * 1024 * 1024;

/** Byte offsets of a trace (overlaybd src/prefetch.cpp: TraceFormat, natural alignment). */
const TRACE = {
  magic: 0, // u32
  dataSize: 8, // u64 bytes of all records
  checksum: 16, // u32, CRC over the stored records, padding included
  HEADER: 24,
  op: 0, // u8 of a record: "R" or "W"
  layer: 4, // u32
  count: 8, // u64 bytes
  offset: 16, // i64
  RECORD: 24,
  MAGIC: 3_270_449_184,
} as const;

/** Whether bytes begin like a trace. */
export function hasTraceMagic(head: Uint8Array): boolean {
  return head.length >= 4 && viewOf(head).getUint32(0, true) === TRACE.MAGIC;
}

/** Whether bytes begin like a `gzip.meta`. */
export function hasGzipMetaMagic(head: Uint8Array): boolean {
  return startsWith(head, "ddgzidx");
}

/** Whether bytes begin like an `obd.spans`. */
export function hasSpansMagic(head: Uint8Array): boolean {
  return startsWith(head, "OBDSPANS");
}

function startsWith(head: Uint8Array, text: string): boolean {
  return head.length >= text.length &&
    [...text].every((c, i) => head[i] === c.charCodeAt(0));
}

async function readWhole(
  source: ByteSource,
): Promise<Uint8Array<ArrayBuffer>> {
  if (source.size > INDEX_SIZE_MAX) {
    throw new LimitError(
      `Cannot read an index of ${source.size} bytes: limit is ${INDEX_SIZE_MAX}`,
    );
  }
  return await readBytes(source, 0, source.size);
}

/** A `gzip.meta`; it is taken at its word about the size of its blob. */
export async function inspectGzipMeta(
  source: ByteSource,
): Promise<FileReport & { meta?: GzipMeta }> {
  const report: FileReport & { meta?: GzipMeta } = newReport(
    "gzip.meta",
    "overlaybd's random-access index of a gzip blob",
    source,
  );
  await guard(report, async () => {
    const bytes = await readWhole(source);
    const gzipSize = bytes.length < GZ.SIZE
      ? 0
      : getU64(viewOf(bytes), GZ.gzipSize);
    const meta = readGzipMeta(bytes, gzipSize);
    Object.assign(report.facts, {
      entries: meta.checkpoints.count,
      spanSize: meta.spanSize,
      blobSize: meta.gzipSize,
      tarSize: meta.uncompressedSize,
      windowBytes: meta.checkpoints.window.reduce((n, w) => n + w.length, 0),
    });
    // For whoever compares it with its neighbours; no part of what is printed.
    Object.defineProperty(report, "meta", { value: meta, enumerable: false });
  });
  return report;
}

/** An `obd.spans`. */
export async function inspectSpans(
  source: ByteSource,
): Promise<FileReport & { index?: SpanIndex }> {
  const report: FileReport & { index?: SpanIndex } = newReport(
    "obd.spans",
    "digests of every span of a layer",
    source,
  );
  await guard(report, async () => {
    const index = decodeSpans(await readWhole(source));
    Object.assign(report.facts, {
      blobDigest: index.blobDigest,
      blobSize: index.blobSize,
      mediaType: index.mediaType,
      compression: index.compression,
      members: index.members,
      diffId: index.diffId,
      tarSize: index.tarSize,
      spans: index.spanOffset.length,
      spanSize: index.spanSize,
      access: index.access,
      ...(index.checkpoints ? { checkpoints: index.checkpoints.count } : {}),
    });
    Object.defineProperty(report, "index", { value: index, enumerable: false });
  });
  return report;
}

/** A prefetch trace. */
export function inspectTrace(source: ByteSource): Promise<FileReport> {
  const report = newReport("trace", "overlaybd prefetch trace", source);
  return guard(report, async () => {
    const bytes = await readWhole(source);
    if (bytes.length < TRACE.HEADER) {
      throw new FormatError(
        "trace",
        "size",
        `is ${bytes.length}, less than a header`,
      );
    }
    const view = viewOf(bytes);
    const dataSize = getU64(view, TRACE.dataSize);
    const records = bytes.subarray(TRACE.HEADER);
    if (dataSize !== records.length || dataSize % TRACE.RECORD !== 0) {
      throw new FormatError(
        "trace",
        "data_size",
        `is ${dataSize}, the file has ${records.length} bytes of records of ${TRACE.RECORD}`,
      );
    }
    Object.assign(report.facts, recordFacts(records));
    const want = view.getUint32(TRACE.checksum, true);
    const got = crc32c(records, 0);
    if (want !== got) {
      throw new IntegrityError(
        "Trace checksum",
        `0x${want.toString(16)}`,
        `0x${got.toString(16)}`,
      );
    }
  });
}

function recordFacts(records: Uint8Array) {
  const view = viewOf(records);
  const layers = new Set<number>();
  let bytes = 0;
  let writes = 0;
  for (let at = 0; at < records.length; at += TRACE.RECORD) {
    layers.add(view.getUint32(at + TRACE.layer, true));
    bytes += getU64(view, at + TRACE.count);
    if (view.getUint8(at + TRACE.op) !== 0x52) writes++;
  }
  return {
    records: records.length / TRACE.RECORD,
    layers: layers.size,
    tracedBytes: bytes,
    ...(writes > 0 ? { notReads: writes } : {}),
  };
}

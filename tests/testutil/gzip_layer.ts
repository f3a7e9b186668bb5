/** Small gzip blobs with spans that any raw inflater can resume at. */

import { createHash } from "node:crypto";
import { constants, crc32, deflateRawSync, inflateRawSync } from "node:zlib";
import {
  concatBytes,
  equalBytes,
  FormatError,
  IntegrityError,
  priorityOf,
  toHex,
} from "../../lib/io/mod.ts";
import type { SpanJob } from "../../lib/compress/mod.ts";
import type { CheckpointTable, SpanInflater } from "../../lib/layers/gunzip.ts";
import { SpanTable } from "../../lib/layers/span_table.ts";

export function sha256(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(createHash("sha256").update(bytes).digest());
}

/** A gzip blob and its index. */
export interface GzipLayer {
  blob: Uint8Array<ArrayBuffer>;
  digest: string;
  content: Uint8Array;
  spans: SpanTable;
  plainSpans: SpanTable;
  checkpoints: CheckpointTable;
}

/**
 * Compresses each span on its own, ended by an empty block, so that every span
 * begins on a byte border with an empty window.
 */
export function makeGzipLayer(
  content: Uint8Array,
  spanSize: number,
): GzipLayer {
  const header = Uint8Array.of(31, 139, 8, 0, 0, 0, 0, 0, 0, 255);
  const parts: Uint8Array[] = [header];
  const digests: Uint8Array[] = [];
  const offsets: number[] = [];
  const starts: number[] = [];
  let at = header.length;
  for (let offset = 0; offset < content.length; offset += spanSize) {
    const piece = content.subarray(offset, offset + spanSize);
    const packed = deflateRawSync(piece, {
      finishFlush: constants.Z_FULL_FLUSH,
      level: 1,
    });
    offsets.push(offset);
    starts.push(at);
    digests.push(sha256(piece));
    parts.push(packed);
    at += packed.length;
  }
  const end = new Uint8Array(10);
  end[0] = 3; // a last, empty block
  const view = new DataView(end.buffer);
  view.setUint32(2, crc32(content), true);
  view.setUint32(6, content.length, true);
  parts.push(end);
  const blob = concatBytes(parts);
  return {
    blob,
    digest: `sha256:${toHex(sha256(blob))}`,
    content,
    spans: new SpanTable(
      Float64Array.from(offsets),
      content.length,
      concatBytes(digests),
    ),
    plainSpans: new SpanTable(
      Float64Array.from(offsets),
      content.length,
      undefined,
    ),
    checkpoints: {
      count: starts.length,
      compressedOffset: (i) => starts[i]!,
      bits: () => 0,
      window: () => new Uint8Array(0),
    },
  };
}

/** Decodes the spans of {@linkcode makeGzipLayer} on this thread. */
export class TestInflater implements SpanInflater {
  readonly jobs: { length: number; priority: string }[] = [];
  running = 0;
  mostRunning = 0;
  gate: Promise<unknown> = Promise.resolve();

  async inflateSpan(job: SpanJob): Promise<Uint8Array> {
    this.jobs.push({
      length: job.length,
      priority: priorityOf(job),
    });
    this.mostRunning = Math.max(this.mostRunning, ++this.running);
    try {
      await this.gate;
      const out = decode(job);
      job.output?.set(out);
      const got = sha256(out);
      if (job.sha256 && !equalBytes(got, job.sha256)) {
        throw new IntegrityError("Span", toHex(job.sha256), toHex(got));
      }
      return job.output ?? out;
    } finally {
      this.running--;
    }
  }
}

function decode(job: SpanJob): Uint8Array<ArrayBuffer> {
  let out: Uint8Array;
  try {
    out = inflateRawSync(job.input, {
      finishFlush: constants.Z_SYNC_FLUSH,
    });
  } catch (cause) {
    throw new FormatError("deflate stream", "data", "is wrong", { cause });
  }
  if (out.length < job.length) {
    throw new FormatError("deflate stream", "length", `is ${out.length}`);
  }
  return new Uint8Array(out.subarray(0, job.length));
}

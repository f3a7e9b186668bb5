/** Opens a blob through the index that a pass made of it, as it would be stored. */

import { type ByteSource, MemorySource } from "../../lib/io/mod.ts";
import {
  checkpointsOf,
  decodeSpans,
  encodeSpans,
  GunzipSource,
  isSeekable,
  type LayerScan,
  readGzipMeta,
  SpanCache,
  spanIndexOf,
  type SpanInflater,
  type SpanSource,
  type SpanSourceOptions,
  SpanTable,
  writeGzipMeta,
  type ZstdDecoder,
  ZstdSource,
} from "../../lib/layers/mod.ts";
import { inlineCodec } from "./inline_codec.ts";

/** What may be other than in a reader of bytes in memory on this thread. */
export interface OpenOptions extends Partial<SpanSourceOptions> {
  /** The blob, to be owned by the result. */
  source?: ByteSource;
  /** Borrowed. */
  codec?: SpanInflater & ZstdDecoder;
}

/**
 * @returns Undefined for a plain tar, and for zstd that must be decoded as a whole.
 * @throws {FormatError} If the blob cannot have this index.
 */
export function openScanned(
  blob: Uint8Array,
  scan: LayerScan,
  spanSize: number,
  { source = new MemorySource(blob), codec = inlineCodec, ...more }:
    OpenOptions = {},
): SpanSource | undefined {
  if (scan.compression === "none") return undefined;
  const index = decodeSpans(
    encodeSpans(spanIndexOf(scan, { mediaType: "", spanSize })),
  );
  const gzipMeta = index.access === "gzip.meta"
    ? readGzipMeta(
      writeGzipMeta({
        spanSize,
        gzipSize: scan.blobSize,
        uncompressedSize: scan.tarSize,
        checkpoints: scan.checkpoints,
      }),
      blob.length,
    )
    : undefined;
  const checkpoints = checkpointsOf(index, gzipMeta);
  const spans = new SpanTable(
    index.spanOffset,
    index.tarSize,
    index.spanDigest,
  );
  const options = {
    digest: scan.blobDigest,
    spans,
    cache: new SpanCache({ memoryBytes: 1024 * 1024 }),
    readaheadBytes: 0,
    ...more,
  };
  if (scan.compression === "gzip") {
    return new GunzipSource(source, {
      ...options,
      checkpoints: {
        count: checkpoints.count,
        compressedOffset: (i) => checkpoints.compressedOffset[i]!,
        bits: (i) => checkpoints.bits[i]!,
        window: (i) => checkpoints.window[i]!,
      },
      inflater: codec,
    });
  }
  const own = index.checkpoints!;
  if (!isSeekable(blob.length, spans, own)) return undefined;
  return new ZstdSource(source, {
    ...options,
    checkpoints: own,
    decoder: codec,
  });
}

/** Codecs, checksums and random access into compressed streams. */
export { crc32c, ZFILE_BLOCK_SEED } from "./crc32c.ts";
export {
  LZ4_BLOCK_SIZE_MAX,
  lz4Compress,
  lz4CompressBound,
  lz4Decompress,
} from "./lz4.ts";
export { lz4CompressRuns } from "./lz4_runs.ts";
export {
  readZstdFrame,
  zstdCompress,
  zstdDecompress,
  type ZstdFrame,
} from "./zstd.ts";
export { hasZstdMagic } from "./zstd_header.ts";
export { ZstdIndexer, type ZstdIndexerOptions } from "./zstd_index.ts";
export {
  ZSTD_WINDOW_MAX,
  type ZstdFrameStart,
  type ZstdStep,
  ZstdStream,
} from "./zstd_stream.ts";
export { decodeZstdSpans, type ZstdSpans } from "./zstd_spans.ts";
export {
  type BoundarySample,
  type Checkpoint,
  type CheckpointCandidate,
  CheckpointMaker,
  type PackedCheckpoint,
  SAMPLE_SIZE,
  startOfStream,
} from "./checkpoint_search.ts";
export {
  SPAN_SIZE_LONG,
  SPAN_SIZE_SHORT,
  SpanPlan,
  type SpanPlanOptions,
} from "./span_plan.ts";
export { ByteRing } from "./byte_ring.ts";
export {
  GZIP_TRAILER_SIZE,
  gzipHeaderSize,
  hasGzipMagic,
} from "./gzip_header.ts";
export {
  GzipIndexer,
  type GzipIndexerOptions,
  type IndexerNeed,
  INPUT_RING_SIZE,
  OUTPUT_RING_SIZE,
  SPAN_SIZE_MAX,
  type SpanSink,
} from "./gzip_index.ts";
export { Gunzip } from "./gunzip.ts";
export { GzipStream } from "./gzip_stream.ts";
export { inflateAt, type InflateRequest, inputStart } from "./inflate_at.ts";
export { hasNativeInflate, WINDOW_SIZE } from "./raw_inflate.ts";
export {
  type ArrivingSpan,
  CodecPool,
  type CodecPoolOptions,
  type JobOptions,
  type SpanJob,
  type ZstdJob,
} from "./pool.ts";
export { type ErrorMessage, packError, unpackError } from "./worker_errors.ts";

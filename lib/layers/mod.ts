/** Layer formats: overlaybd's containers and indexes. */
export * from "./lsmt/mod.ts";
export * from "./open_layer.ts";
export * from "./tar_wrapper.ts";
export * from "./cache/mod.ts";
export * from "./gunzip.ts";
export * from "./plain_target.ts";
export {
  SpanCache,
  SpanSource,
  type SpanSourceOptions,
} from "./span_source.ts";
export { READAHEAD_BYTES } from "./readahead.ts";
export * from "./read_stats.ts";
export { MAX_SPAN_BYTES, SpanTable } from "./span_table.ts";
export * from "./gzip_meta.ts";
export * from "./meta_blob.ts";
export * from "./spans.ts";
export * from "./acceleration.ts";
export * from "./bodies.ts";
export * from "./build_layer.ts";
export * from "./image_space.ts";
export * from "./inspect/mod.ts";
export * from "./layer_stack.ts";
export * from "./materialize.ts";
export * from "./merge_layers.ts";
export * from "./native_layer.ts";
export * from "./pass/mod.ts";
export * from "./tar_spool.ts";
export * from "./trace.ts";
export * from "./turbo_layer.ts";
export { type PinnedOptions, PinnedSource } from "./pinned_source.ts";
export {
  type PinnedFile,
  PinnedStore,
  type PinnedStoreOptions,
} from "./pinned_store.ts";
export {
  isLazyLayer,
  isSeekable,
  type ZstdDecoder,
  ZstdSource,
} from "./zstd_source.ts";

/** From a reference to an opened image, and from a source image to a pushed meta image. */
export * from "./annotations.ts";
export type { BuildFormat, LayerReport } from "./build.ts";
export type { ConversionDatabase } from "./dedup/database.ts";
export { openConversionDatabase } from "./dedup/open.ts";
export { type DatabaseSettings, parseDatabase } from "./dedup/settings.ts";
export {
  checkRegistryFiles,
  type EnvironmentOptions,
  type ImageEnvironment,
  openEnvironment,
  type RegistrySettings,
} from "./environment.ts";
export {
  type FileInspection,
  inspect,
  type Inspection,
  type InspectTargetOptions,
} from "./inspect.ts";
export type { ImageInspection, LayerInspection } from "./inspect_image.ts";
export type { StackInspection } from "./inspect_stack.ts";
export type { LayoutEntry, LayoutInspection } from "./inspect_layout.ts";
export type { MetaReport } from "./inspect_meta.ts";
export { mergeImage, type MergeOptions } from "./native_merge.ts";
export {
  type Finding,
  type Verification,
  type VerifiedLayer,
  verifyImage,
  type VerifyOptions,
} from "./verify.ts";
export { META_WAYS, type MetaWay } from "./find_meta.ts";
export { type LayerReads, layerReads } from "./layer_reads.ts";
export {
  checkImageName,
  type LayerInfo,
  type OpenedImage,
  openImage,
  type OpenImageOptions,
} from "./open.ts";
export {
  type PlatformReport,
  publishImage,
  type PublishOptions,
  type PublishReport,
} from "./publish.ts";
export { FILE_LIST_SIZE_MAX, readFileList } from "./file_list.ts";
export { prefetchImage, type PrefetchOptions } from "./prefetch.ts";
export {
  pushAcceleration,
  type PushedAcceleration,
  type PushedReferrer,
  pushTrace,
} from "./trace_push.ts";
export { deviceFingerprint, isTraceOf } from "./trace_referrer.ts";
export {
  type TracedFile,
  type TracedLayer,
  type TracedReads,
  tracedReads,
} from "./traced_files.ts";
export {
  type ReplayOptions,
  type ReplayResult,
  replayTrace,
} from "./trace_replay.ts";
export {
  decodeTrace,
  DEVICE_LAYER,
  encodeTrace,
  readAccelerationLayer,
  traceDevice,
  type TraceRecord,
  TraceRecorder,
} from "../layers/mod.ts";
export { CountedSource, type ReadCounters, ReadStats } from "../layers/mod.ts";
export {
  fallbackTag,
  formatReference,
  keepDirect,
  MediaType,
  parseReference,
  peerUrl,
  withTarget,
} from "../registry/mod.ts";
export { Ext4Reader, type InodeStat } from "../ext4/mod.ts";
export type {
  CacheStats,
  Fact,
  FilePart,
  FileReport,
  Integrity,
  Problem,
} from "../layers/mod.ts";

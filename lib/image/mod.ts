/** From a reference to an opened image, and from a source image to a pushed meta image. */
export * from "./annotations.ts";
export {
  type EnvironmentOptions,
  type ImageEnvironment,
  openEnvironment,
  type RegistrySettings,
} from "./environment.ts";
export { META_WAYS, type MetaWay } from "./find_meta.ts";
export {
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
export { Ext4Reader, type InodeStat } from "../ext4/mod.ts";
export type { CacheStats, Integrity } from "../layers/mod.ts";

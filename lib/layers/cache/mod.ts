/** On-disk and in-memory caches of image bytes. */
export * from "./cached_source.ts";
export type { DataFile } from "./data_file.ts";
export type { CacheEntry, CacheStats, EntryState } from "./entry.ts";
export { Lease } from "./lease.ts";
export { MemoryCache, type MemoryEntry } from "./memory.ts";
export { defaultKeepFree } from "./space.ts";
export { CacheStore, type CacheStoreOptions } from "./store.ts";

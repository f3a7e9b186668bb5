/** Caches of tests, and files of theirs that misbehave on purpose. */

import {
  CacheStore,
  type CacheStoreOptions,
  type DataFile,
} from "../../lib/layers/cache/mod.ts";

/** An empty cache of 64 MiB that leaves nothing behind. */
export function tempStore(
  more: Partial<CacheStoreOptions> = {},
): Promise<CacheStore> {
  return CacheStore.temporary({
    directory: Deno.env.get("TMPDIR") ?? "/tmp",
    sizeBytes: 64 * 2 ** 20,
    keepFreeBytes: 0,
    ...more,
  });
}

/** A data file that does as another one, but for some methods. */
export function fileWith(
  file: DataFile,
  changes: Partial<DataFile>,
): DataFile {
  return {
    preadNow: (dst, offset) => file.preadNow(dst, offset),
    pread: (dst, offset) => file.pread(dst, offset),
    pwrite: (src, offset) => file.pwrite(src, offset),
    punch: (offset, length) => file.punch(offset, length),
    sync: () => file.sync(),
    size: () => file.size(),
    truncate: (length) => file.truncate(length),
    space: () => file.space(),
    close: () => file.close(),
    ...changes,
  };
}

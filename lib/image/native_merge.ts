/** `obd merge`: any image that obd reads as one overlaybd layer file. */

import { mergeLayers, type NativeBlob } from "../layers/mod.ts";
import { BlockPacker } from "../zfile/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import { DEFAULT_NATIVE, type NativeParameters } from "./native_convert.ts";
import type { OpenedImage } from "./open.ts";

/** Options of {@linkcode mergeImage}. */
export interface MergeOptions {
  native?: NativeParameters | undefined;
  /** Threads; default one per core. */
  jobs?: number | undefined;
}

/**
 * Flattens an opened image's stack into one tar-wrapped native layer.
 *
 * @param path Of the new file.
 */
export async function mergeImage(
  environment: ImageEnvironment,
  image: OpenedImage,
  path: string,
  options: MergeOptions = {},
): Promise<NativeBlob> {
  const { progress, signal } = environment;
  using packer = new BlockPacker(
    options.jobs ?? navigator.hardwareConcurrency,
  );
  const task = progress.start(
    `merge ${image.name}`,
    image.source.table.mappedBytes,
  );
  try {
    return await mergeLayers(
      image.source,
      path,
      { ...(options.native ?? DEFAULT_NATIVE), packer },
      { signal, onProgress: (bytes) => task.add(bytes) },
    );
  } finally {
    task.done();
  }
}

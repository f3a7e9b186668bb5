/** Images in a far registry, and what reads of them cost; see far_registry.ts. */

import {
  type ImageEnvironment,
  type OpenedImage,
  openEnvironment,
  openImage,
  publishImage,
} from "../lib/image/mod.ts";
import { copyLayout, debianImage } from "../tests/testutil/debian_image.ts";
import type { FarRegistry } from "./far_registry.ts";

const CACHE_BYTES = 4 * 2 ** 30;

/**
 * Pushes the Debian test image, all three layers, as `app:v1`, with its meta
 * image and as a native one (`app:v1-overlaybd`).
 *
 * @param options Another name than `app`, and `obd build --span-size` in bytes.
 * @returns Bytes of the meta image, and of the image's blobs.
 */
export async function pushDebianImage(
  registry: FarRegistry,
  dir: string,
  options: { name?: string; spanSize?: number | undefined } = {},
): Promise<{ metaBytes: number; imageBytes: number }> {
  const { layout } = await debianImage();
  const { name = "app", spanSize } = options;
  const copy = `${dir}/layout`;
  await copyLayout(layout, copy);
  await using environment = await openEnvironment();
  const report = await publishImage(environment, {
    source: `oci:${copy}:v1`,
    dest: `${registry.host}/${name}`,
    formats: ["turbo", "overlaybd"],
    spanSize,
  });
  await Deno.remove(copy, { recursive: true });
  const { meta, layers } = report.platforms.find((p) => p.format === "turbo")!;
  return {
    metaBytes: meta.size,
    imageBytes: layers.reduce((sum, layer) => sum + layer.size, 0),
  };
}

/** An image opened with empty caches on disk, which go away with it. */
export interface ColdImage extends AsyncDisposable {
  image: OpenedImage;
  environment: ImageEnvironment;
}

/** Opens an image as a fresh `serve` would. */
export async function openCold(
  reference: string,
  dir: string,
): Promise<ColdImage> {
  const caches = await Deno.makeTempDir({ dir, prefix: "cold-" });
  await using stack = new AsyncDisposableStack();
  stack.defer(() => Deno.remove(caches, { recursive: true }));
  const environment = stack.use(
    await openEnvironment({
      blobCache: {
        directory: `${caches}/blobs`,
        sizeBytes: CACHE_BYTES,
        refillSize: REFILL_BYTES,
      },
      spanCache: { directory: `${caches}/gzip`, sizeBytes: CACHE_BYTES },
    }),
  );
  const image = stack.use(await openImage(environment, reference));
  const owned = stack.move();
  return {
    image,
    environment,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** `cacheConfig.refillSize`; as `serve` has it unless told otherwise. */
const REFILL_BYTES = Number(Deno.env.get("OBD_BENCH_REFILL") ?? 256 * 1024);

/** The middle of a list; of an even number, the upper one of the two. */
export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

/** Numbers in [0, 1) that are the same in every run. */
export function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1664525 + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

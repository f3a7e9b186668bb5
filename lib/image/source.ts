/** From a reference to one image of one platform: manifest, config, layers. */

import { FormatError, type Logger, UnsupportedError } from "../io/mod.ts";
import {
  type Descriptor,
  type ImageConfig,
  type ImageIndex,
  type ImageManifest,
  isDigest,
  layerCompression,
  parseImageConfig,
  parseManifest,
  type Platform,
  type Reference,
  referenceTarget,
  type Repository,
  type ResolvedManifest,
  selectPlatform,
} from "../registry/mod.ts";

/** Most bytes of an image config that are read. */
const CONFIG_SIZE_MAX = 4 * 1024 * 1024;

/** One image of one platform. */
export interface SourceImage {
  repository: Repository;
  reference: Reference;
  /** The image manifest itself, never an index. */
  resolved: ResolvedManifest;
  manifest: ImageManifest;
  config: ImageConfig;
  configBytes: Uint8Array;
  /** The index it was chosen from, if any. */
  index?: { resolved: ResolvedManifest; index: ImageIndex };
}

/** What {@linkcode resolveSource} needs to know. */
export interface ResolveOptions {
  platform?: Platform | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Resolves a reference to one image.
 *
 * @throws {NotFoundError} If the reference, or its index, has no such image.
 */
export async function resolveSource(
  repository: Repository,
  reference: Reference,
  options: ResolveOptions = {},
): Promise<SourceImage> {
  const { signal } = options;
  const resolved = await repository.resolve(referenceTarget(reference), {
    signal,
  });
  const manifest = parseManifest(resolved.bytes, resolved.descriptor.mediaType);
  if (manifest.kind === "image") {
    return await loadImage(repository, reference, resolved, manifest, signal);
  }
  const index = { resolved, index: manifest };
  const chosen = selectPlatform(manifest, options.platform);
  return await resolveIndexEntry(repository, reference, index, chosen, signal);
}

/** Loads the image that `entry` of an index names. */
export async function resolveIndexEntry(
  repository: Repository,
  reference: Reference,
  index: { resolved: ResolvedManifest; index: ImageIndex },
  entry: Descriptor,
  signal?: AbortSignal,
): Promise<SourceImage> {
  const inner = await repository.resolve(entry.digest, { signal });
  const image = parseManifest(inner.bytes, entry.mediaType);
  if (image.kind !== "image") {
    throw new UnsupportedError(
      "nested index",
      `Index "${repository.name}" has an index inside it (${entry.digest}), which is not supported`,
    );
  }
  const source = await loadImage(repository, reference, inner, image, signal);
  return { ...source, index };
}

async function loadImage(
  repository: Repository,
  reference: Reference,
  resolved: ResolvedManifest,
  manifest: ImageManifest,
  signal: AbortSignal | undefined,
): Promise<SourceImage> {
  const configBytes = await readSmallBlob(
    repository,
    manifest.config,
    CONFIG_SIZE_MAX,
    "image config",
    signal,
  );
  const config = parseImageConfig(configBytes);
  if (config.diffIds.length !== manifest.layers.length) {
    throw new FormatError(
      "image config",
      "rootfs.diff_ids",
      `has ${config.diffIds.length} entries, the manifest has ${manifest.layers.length} layers`,
    );
  }
  return { repository, reference, resolved, manifest, config, configBytes };
}

/** Reads a whole blob of bounded size; digest and size are checked on the way. */
export async function readSmallBlob(
  repository: Repository,
  descriptor: Descriptor,
  sizeMax: number,
  what: string,
  signal?: AbortSignal,
): Promise<Uint8Array<ArrayBuffer>> {
  if (descriptor.size > sizeMax) {
    throw new FormatError(
      what,
      "size",
      `is ${descriptor.size} bytes, at most ${sizeMax} are read`,
    );
  }
  const bytes = new Uint8Array(descriptor.size);
  let at = 0;
  for await (const piece of repository.fetchBlob(descriptor, { signal })) {
    if (at + piece.length > bytes.length) {
      throw new FormatError(what, "size", `is more than ${bytes.length} bytes`);
    }
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

/**
 * Refuses layer types that cannot be built, by name, before anything is read.
 *
 * @param log Gets a line for a base that its annotation misnames.
 */
export function checkLayers(source: SourceImage, log: Logger): void {
  if (source.manifest.layers.length === 0) {
    throw new UnsupportedError(
      "image without layers",
      `Image ${source.repository.name}@${source.resolved.descriptor.digest} has no layers: there is nothing to build`,
    );
  }
  source.manifest.layers.forEach((layer, index) => {
    try {
      layerCompression(layer.mediaType);
    } catch (error) {
      throw new UnsupportedError(
        layer.mediaType,
        `Layer ${
          index + 1
        } of ${source.manifest.layers.length} (${layer.digest})`,
        { cause: error },
      );
    }
  });
  const base = baseDigest(source);
  if (base !== undefined && !isDigest(base)) {
    log.warn("ignoring a base annotation that is no digest", { base });
  }
}

/** What `org.opencontainers.image.base.digest` says, unchecked. */
export function baseDigest(source: SourceImage): string | undefined {
  return source.manifest.annotations["org.opencontainers.image.base.digest"];
}

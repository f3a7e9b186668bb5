/** From a reference to one image of one platform: manifest, config, layers. */

import {
  FormatError,
  type Logger,
  type Priority,
  UnsupportedError,
} from "../io/mod.ts";
import {
  type Descriptor,
  formatPlatform,
  formatReference,
  type ImageConfig,
  type ImageIndex,
  type ImageManifest,
  isDigest,
  layerCompression,
  matchPlatform,
  parseImageConfig,
  parseManifest,
  type Platform,
  type Reference,
  referenceTarget,
  type Repository,
  type ResolvedManifest,
  selectPlatform,
} from "../registry/mod.ts";
import { Annotation } from "./annotations.ts";
import { checkLayerCount, layerRoles } from "./meta_image.ts";

/** Most bytes of an image config that are read. */
const CONFIG_SIZE_MAX = 4 * 1024 * 1024;

/** The manifest of one image of one platform. */
export interface PlainManifest {
  /** The image manifest itself, never an index. */
  resolved: ResolvedManifest;
  manifest: ImageManifest;
  /** The index it was chosen from, if any. */
  index?: { resolved: ResolvedManifest; index: ImageIndex };
  /** As the index names it, if it does. */
  platform?: Platform;
}

/** One image of one platform. */
export interface SourceImage extends PlainManifest {
  /** As the index names it, else as the config does, which may leave out its variant or all of it. */
  platform: Platform;
  repository: Repository;
  reference: Reference;
  config: ImageConfig;
  configBytes: Uint8Array;
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
  const plain = await resolveManifest(repository, reference, options);
  return await loadSource(repository, reference, plain, options.signal);
}

/** The first half of {@linkcode resolveSource}: all but the config. */
export async function resolveManifest(
  repository: Repository,
  reference: Reference,
  options: ResolveOptions = {},
): Promise<PlainManifest> {
  const { signal } = options;
  const resolved = await repository.resolve(referenceTarget(reference), {
    signal,
  });
  const manifest = parseManifest(resolved.bytes, resolved.descriptor.mediaType);
  if (manifest.kind === "image") return { resolved, manifest };
  const index = { resolved, index: manifest };
  const chosen = selectPlatform(manifest, options.platform);
  return await resolveEntry(repository, index, chosen, signal);
}

/** Loads the image that `entry` of an index names. */
export async function resolveIndexEntry(
  repository: Repository,
  reference: Reference,
  index: { resolved: ResolvedManifest; index: ImageIndex },
  entry: Descriptor,
  signal?: AbortSignal,
): Promise<SourceImage> {
  const plain = await resolveEntry(repository, index, entry, signal);
  return await loadSource(repository, reference, plain, signal);
}

async function resolveEntry(
  repository: Repository,
  index: { resolved: ResolvedManifest; index: ImageIndex },
  entry: Descriptor,
  signal: AbortSignal | undefined,
): Promise<PlainManifest> {
  const resolved = await repository.resolve(entry.digest, { signal });
  const manifest = parseManifest(resolved.bytes, entry.mediaType);
  if (manifest.kind !== "image") {
    throw new UnsupportedError(
      "nested index",
      `Index "${repository.name}" has an index inside it (${entry.digest}), which is not supported`,
    );
  }
  const { platform } = entry;
  return {
    resolved,
    manifest,
    index,
    ...(platform?.os && platform.architecture ? { platform } : {}),
  };
}

/** The second half of {@linkcode resolveSource}: reads the config. */
export async function loadSource(
  repository: Repository,
  reference: Reference,
  plain: PlainManifest,
  signal: AbortSignal | undefined,
): Promise<SourceImage> {
  const { manifest } = plain;
  const configBytes = await readSmallBlob(
    repository,
    manifest.config,
    CONFIG_SIZE_MAX,
    "image config",
    signal,
    "demand",
  );
  const config = parseImageConfig(configBytes);
  if (config.diffIds.length !== manifest.layers.length) {
    throw new FormatError(
      "image config",
      "rootfs.diff_ids",
      `has ${config.diffIds.length} entries, the manifest has ${manifest.layers.length} layers`,
    );
  }
  const platform = plain.platform ?? config.platform;
  return { ...plain, repository, reference, config, configBytes, platform };
}

/** Tells of an image that stands in no index, where a platform is asked for, and is of another one. */
export function warnOfPlatform(
  log: Logger,
  { index, platform, reference }: SourceImage,
  asked: Platform | undefined,
): void {
  const { os, architecture } = platform;
  if (index || !asked || !os || !architecture) return;
  if (matchPlatform(asked, platform) !== undefined) return;
  log.warn(
    "the image is in no index, and of another platform than was asked for",
    {
      image: formatReference(reference),
      platform: formatPlatform(platform),
      asked: formatPlatform(asked),
    },
  );
}

/** @throws {FormatError} If a blob that is to be read whole is too large for that. */
export function checkBlobSize(
  { size }: Descriptor,
  sizeMax: number,
  what: string,
): void {
  if (size <= sizeMax) return;
  throw new FormatError(
    what,
    "size",
    `is ${size} bytes, at most ${sizeMax} are read`,
  );
}

/** Reads a whole blob of bounded size; digest and size are checked on the way. */
export async function readSmallBlob(
  repository: Repository,
  descriptor: Descriptor,
  sizeMax: number,
  what: string,
  signal?: AbortSignal,
  priority: Priority = "prefetch",
): Promise<Uint8Array<ArrayBuffer>> {
  checkBlobSize(descriptor, sizeMax, what);
  const bytes = new Uint8Array(descriptor.size);
  let at = 0;
  const options = { signal, priority };
  for await (const piece of repository.fetchBlob(descriptor, options)) {
    if (at + piece.length > bytes.length) {
      throw new FormatError(what, "size", `is more than ${bytes.length} bytes`);
    }
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

/**
 * Refuses images and layer types that cannot be built, by name, before anything
 * is read.
 *
 * @throws {UnsupportedError}
 * @throws {LimitError} If there are more layers than can be stacked.
 */
export function checkLayers(source: SourceImage): void {
  if (source.manifest.layers.length === 0) {
    throw new UnsupportedError(
      "image without layers",
      `Image ${source.repository.name}@${source.resolved.descriptor.digest} has no layers: there is nothing to build`,
    );
  }
  // Its layers are tars too: what is in them is metadata.
  if (layerRoles(source.manifest)) {
    throw new UnsupportedError(
      "building overlaybd images",
      `Image ${source.repository.name}@${source.resolved.descriptor.digest} is an overlaybd image already: there is nothing to build`,
    );
  }
  checkLayerCount(source.manifest.layers.length);
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
}

/** Tells of a base that its annotation misnames. */
export function warnOfBase(log: Logger, source: SourceImage): void {
  const base = baseDigest(source);
  if (base !== undefined && !isDigest(base)) {
    log.warn("ignoring a base annotation that is no digest", { base });
  }
}

/** What `org.opencontainers.image.base.digest` says, unchecked. */
export function baseDigest(source: SourceImage): string | undefined {
  return source.manifest.annotations[Annotation.baseDigest];
}

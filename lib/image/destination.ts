/** Where a meta image goes, and how its targets get there. */

import { errorText, NotFoundError, ObdError, UsageError } from "../io/mod.ts";
import {
  blobFromRepository,
  type Descriptor,
  formatRepository,
  indexImages,
  isRefName,
  isTag,
  parseManifest,
  parseReference,
  type Reference,
  RemoteRepository,
  type Repository,
  withTarget,
} from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import type { PlainManifest, SourceImage } from "./source.ts";

/** A parsed destination. */
export interface Destination {
  reference: Reference;
  /** Tag of the meta image; undefined pushes by digest only. */
  tag: string | undefined;
  /** Whether it is the source's own repository, so that the targets are there already. */
  isSource: boolean;
}

/**
 * Applies the rules for a destination: without DEST the source's own
 * repository; tag `TAG-obd`, or `sha256-HEX-obd` for a source by digest.
 *
 * @param tag `--tag NAME`, or false for `--no-tag`.
 * @param ending Of the tag: what kind of image it names.
 * @param isFurther Whether a name that was asked for belongs to another image,
 * so that this one gets it with its ending.
 * @throws {UsageError} For an archive without DEST, two different tags, or one that cannot be.
 */
export function chooseDestination(
  source: Reference,
  sourceDigest: string,
  dest: string | undefined,
  tag: string | false | undefined,
  ending = "-obd",
  isFurther = false,
): Destination {
  const given = dest === undefined ? undefined : parseReference(dest);
  if (given === undefined && source.kind === "archive") {
    throw new UsageError(
      "An oci-archive cannot be written to: name a DEST (a registry or oci:DIR)",
    );
  }
  if (given?.kind === "archive") {
    throw new UsageError(
      `"${dest}" is an oci-archive, which cannot be written to`,
    );
  }
  if (given?.digest !== undefined) {
    throw new UsageError(`DEST "${dest}" must not have a digest`);
  }
  const reference = withTarget(given ?? source, {});
  const named = dest !== undefined && hasTag(dest) ? given?.tag : undefined;
  if (named !== undefined && typeof tag === "string" && tag !== named) {
    throw new UsageError(`DEST has the tag "${named}", --tag says "${tag}"`);
  }
  const base = source.tag === undefined || source.digest !== undefined
    ? sourceDigest.replace(":", "-")
    : source.tag;
  const wanted = tag === false ? undefined : tag ?? named;
  const own = wanted === undefined || isFurther
    ? `${wanted ?? base}${ending}`
    : wanted;
  const isName = reference.kind === "registry" ? isTag : isRefName;
  if (tag !== false && !isName(own)) {
    throw new UsageError(
      `"${own}" cannot be a tag: name one with --tag, or none with --no-tag`,
    );
  }
  return {
    reference,
    tag: tag === false ? undefined : own,
    isSource: formatRepository(reference) === formatRepository(source),
  };
}

/** Whether a reference's text names a tag itself: `host/repo` means `latest` only as a source. */
function hasTag(text: string): boolean {
  const last = text.slice(text.lastIndexOf("/") + 1);
  return text.startsWith("oci:")
    ? text.slice("oci:".length).includes(":")
    : last.includes(":");
}

/**
 * Puts the source's manifest and layers into the destination, mounted from
 * another repository of the registry where that works, else copied.
 */
export async function copySource(
  environment: ImageEnvironment,
  source: SourceImage,
  destination: Repository,
): Promise<void> {
  await copyManifest(environment, source, source, destination);
}

/**
 * Puts the source's index into the destination, where its images are already,
 * with what it names beside them (attestations): registries refuse an index of
 * which something is missing. What is not there any more costs a warning: the
 * meta images need the index for nothing.
 */
export async function copyIndex(
  environment: ImageEnvironment,
  source: SourceImage,
  destination: Repository,
): Promise<void> {
  const { signal, log } = environment;
  const { resolved, index } = source.index!;
  const images = new Set(indexImages(index));
  try {
    for (const entry of index.manifests) {
      if (images.has(entry)) continue;
      const other = await source.repository.resolve(entry.digest, { signal });
      const manifest = parseManifest(other.bytes, entry.mediaType);
      if (manifest.kind === "index") continue; // the registry will say
      const part = { resolved: other, manifest };
      await copyManifest(environment, source, part, destination);
    }
    const { bytes, descriptor } = resolved;
    await destination.pushManifest(bytes, descriptor.mediaType, undefined, {
      signal,
    });
  } catch (error) {
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    log.warn("the source's index cannot be copied", {
      repository: destination.name,
      index: resolved.descriptor.digest,
      reason: errorText(error),
    });
  }
}

/** Puts one manifest of the source's repository into the destination, its blobs first. */
async function copyManifest(
  { signal, progress }: ImageEnvironment,
  source: Pick<SourceImage, "repository">,
  { resolved, manifest }: PlainManifest,
  destination: Repository,
): Promise<void> {
  const from = source.repository;
  // Elsewhere the name is another repository's, or nobody's business.
  const isNear = from instanceof RemoteRepository &&
    destination instanceof RemoteRepository &&
    from.registry === destination.registry;
  const mountFrom = isNear ? [from.repository] : [];
  for (const blob of [manifest.config, ...manifest.layers]) {
    const task = progress.start(`copy ${shortDigest(blob)}`, blob.size);
    let sent = 0;
    try {
      await destination.pushBlob(
        blob,
        blobFromRepository(from, blob),
        {
          mountFrom,
          signal,
          onProgress: (bytes) => {
            task.add(bytes - sent);
            sent = bytes;
          },
        },
      );
    } finally {
      task.done();
    }
  }
  const { bytes, descriptor } = resolved;
  await destination.pushManifest(bytes, descriptor.mediaType, undefined, {
    signal,
  });
}

/**
 * Checks that every target of a meta image is in its repository: readers build
 * the targets' URLs from it.
 *
 * @throws {NotFoundError} Naming the layer.
 */
export async function checkTargets(
  repository: Repository,
  targets: readonly Descriptor[],
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const [i, target] of targets.entries()) {
    let found: boolean;
    try {
      found = await repository.hasBlob(target.digest, { signal });
    } catch (error) {
      if (!(error instanceof ObdError) || error.code === "cancelled") {
        throw error;
      }
      throw new ObdError(
        error.code,
        `Cannot check layer ${
          i + 1
        } (${target.digest}) in ${repository.name}: ${errorText(error)}`,
        { cause: error },
      );
    }
    if (!found) {
      throw new NotFoundError(
        `Layer ${
          i + 1
        } (${target.digest}) is not in ${repository.name}: the meta image would point to nothing`,
      );
    }
  }
}

/** `sha256:0123456789ab`, for people. */
export function shortDigest(descriptor: { digest: string }): string {
  return descriptor.digest.slice(0, "sha256:".length + 12);
}

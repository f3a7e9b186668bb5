/** Which meta image is used for a plain image. */

import { errorText, FileSource, NotFoundError, ObdError } from "../io/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  parseManifest,
  type Reference,
  type Repository,
} from "../registry/mod.ts";
import { Annotation, TURBO_ARTIFACT_TYPE } from "./annotations.ts";
import { buildImage } from "./build.ts";
import type { ImageEnvironment } from "./environment.ts";
import { checkMetaBlob } from "./meta_blobs.ts";
import {
  type LayerRole,
  layerRoles,
  metaFormatVersion,
  misfit,
} from "./meta_image.ts";
import type { SourceImage } from "./source.ts";

/** Ways to a meta image: tag `sha256-HEX-obd`, tag `TAG-obd`, a referrer, building it here. */
export type MetaWay = "digest" | "tag" | "referrer" | "build";

/** All ways, in the order in which they are tried. */
export const META_WAYS: readonly MetaWay[] = [
  "digest",
  "tag",
  "referrer",
  "build",
];

/** Most referrers of one image that are looked at. */
const REFERRERS_MAX = 64;

/** A meta image that fits. */
export interface FoundMeta {
  descriptor: Descriptor;
  manifest: ImageManifest;
}

/**
 * Looks for meta images of exactly this source. What does not fit (a tag that
 * stayed behind, a planted referrer) is left alone with a line. Of several that
 * fit: newest format version, then chain key, then lowest digest.
 */
export async function findMeta(
  environment: ImageEnvironment,
  repository: Repository,
  reference: Reference,
  source: SourceImage,
  ways: readonly MetaWay[],
): Promise<FoundMeta | undefined> {
  const targets = new Set<string>();
  const { digest } = source.resolved.descriptor;
  if (ways.includes("digest")) targets.add(`${digest.replace(":", "-")}-obd`);
  if (ways.includes("tag") && reference.tag !== undefined) {
    targets.add(`${reference.tag}-obd`);
  }
  const found: FoundMeta[] = [];
  for (const target of targets) {
    await consider(environment, repository, target, source, found);
  }
  if (ways.includes("referrer")) {
    for (
      const referrer of await listReferrers(environment, repository, digest)
    ) {
      if (found.some((f) => f.descriptor.digest === referrer)) continue;
      await consider(environment, repository, referrer, source, found);
    }
  }
  found.sort(compareFound);
  return found[0];
}

async function listReferrers(
  environment: ImageEnvironment,
  repository: Repository,
  digest: string,
): Promise<string[]> {
  const { signal, log } = environment;
  try {
    const referrers = await repository.referrers(digest, TURBO_ARTIFACT_TYPE, {
      signal,
    });
    return referrers.slice(0, REFERRERS_MAX).map((d) => d.digest);
  } catch (error) {
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    log.warn("cannot list referrers", {
      repository: repository.name,
      reason: errorText(error),
    });
    return [];
  }
}

async function consider(
  environment: ImageEnvironment,
  repository: Repository,
  target: string,
  source: SourceImage,
  found: FoundMeta[],
): Promise<void> {
  const { signal, log } = environment;
  const ignore = (reason: string) =>
    log.warn("ignoring a meta image that does not fit", {
      repository: repository.name,
      meta: target,
      reason,
    });
  try {
    const fitting = await resolveFitting(repository, target, source, signal);
    if (typeof fitting === "string") ignore(fitting);
    else found.push(fitting);
  } catch (error) {
    if (error instanceof NotFoundError) return;
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    ignore(errorText(error));
  }
}

/** @returns The meta image, or why it does not fit. */
async function resolveFitting(
  repository: Repository,
  target: string,
  source: SourceImage,
  signal: AbortSignal | undefined,
): Promise<FoundMeta | string> {
  let { descriptor, bytes } = await repository.resolve(target, { signal });
  let manifest = parseManifest(bytes, descriptor.mediaType);
  if (manifest.kind === "index") {
    // A meta index has one meta image per platform: the one with our subject counts.
    const wanted = source.resolved.descriptor.digest;
    for (const entry of manifest.manifests) {
      const inner = await repository.resolve(entry.digest, { signal });
      const parsed = parseManifest(inner.bytes, entry.mediaType);
      if (parsed.kind === "image" && parsed.subject?.digest === wanted) {
        ({ descriptor, bytes } = inner);
        manifest = parsed;
        break;
      }
    }
    if (manifest.kind === "index") {
      return "no image in its index is of this source";
    }
  }
  return misfit(manifest, source) ?? { descriptor, manifest };
}

function compareFound(a: FoundMeta, b: FoundMeta): number {
  const version = metaFormatVersion(b.manifest) - metaFormatVersion(a.manifest);
  if (version !== 0) return version;
  const keys = [a, b].map((f) =>
    f.manifest.annotations[Annotation.obdChainKey] ?? ""
  ) as [string, string];
  if (keys[0] !== keys[1]) return keys[0] < keys[1] ? -1 : 1;
  return a.descriptor.digest < b.descriptor.digest ? -1 : 1;
}

/** A meta image that is nowhere but here. */
export interface LocalMeta {
  roles: LayerRole[];
  members: Map<string, Uint8Array>[];
  metaDigest: string;
}

/** Builds a meta image in memory; nothing is pushed. Layers that were built before are taken over. */
export async function buildLocally(
  environment: ImageEnvironment,
  source: SourceImage,
): Promise<LocalMeta> {
  environment.log.info("no meta image found: building one", {
    image: source.repository.name,
    source: source.resolved.descriptor.digest,
  });
  const scratch = await Deno.makeTempDir({ prefix: "obd-meta-" });
  try {
    const built = await buildImage(environment, source, {
      scratch: `${scratch}/0`,
    });
    const members: Map<string, Uint8Array>[] = [];
    for (const layer of built.layers) {
      if (layer.reused) {
        throw new TypeError("Internal error: nothing is reused");
      }
      for (const { path, digest } of layer.parts) {
        await using file = await FileSource.open(path);
        members.push((await checkMetaBlob(file, digest)).members);
      }
    }
    const { manifest, layers } = built.documents;
    const roles = layerRoles({
      kind: "image",
      mediaType: manifest.descriptor.mediaType,
      config: built.documents.config.descriptor,
      layers,
      annotations: {},
      raw: {},
    });
    return {
      roles: roles ?? [],
      members,
      metaDigest: manifest.descriptor.digest,
    };
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
}

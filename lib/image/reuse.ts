/** Layers that were built before are found by the chain's key, checked, and not read again. */

import {
  errorText,
  FormatError,
  MemorySource,
  NotFoundError,
  ObdError,
} from "../io/mod.ts";
import {
  decodeSpans,
  type LayerBreakdown,
  type LayerPart,
  META_MEMBER,
  type MetaBlob,
  type OpenedLayer,
  openLayer,
  type SpanIndex,
} from "../layers/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  parseManifest,
  type Repository,
  type ResolvedManifest,
} from "../registry/mod.ts";
import { Annotation } from "./annotations.ts";
import { chainKey, type ChainParameters, chainTag } from "./chain_key.ts";
import type { ImageEnvironment } from "./environment.ts";
import { fetchMetaBlob } from "./meta_blobs.ts";
import { checkFormatVersion, layerGroups, layerRoles } from "./meta_image.ts";
import type { SourceImage } from "./source.ts";

/** A blob of such a layer. */
export interface ReusedPart extends LayerPart {
  opened: OpenedLayer;
}

/** A layer that was built before and is in the repository already. */
export interface ReusedLayer {
  reused: true;
  kind: "turbo" | "native";
  /** At least one; bottom first. */
  parts: readonly ReusedPart[];
  compression: SpanIndex["compression"];
  entryCount: number;
  spanCount: number;
  breakdown: LayerBreakdown;
}

/**
 * Looks for the longest chain of the source's layers that was built before.
 * What is found is checked: nothing is believed because of its tag.
 *
 * @returns Meta layers of the first layers, bottom first; empty if there are none.
 */
export async function findReusable(
  environment: ImageEnvironment,
  repository: Repository,
  source: SourceImage,
  parameters: ChainParameters,
): Promise<ReusedLayer[]> {
  const count = source.manifest.layers.length;
  const shortest = parameters.flatten ? count : 1;
  for (let n = count; n >= shortest; n--) {
    const tag = chainTag(chainKey(parameters, n));
    try {
      const manifest = await resolveChain(environment, repository, tag);
      if (manifest === undefined) continue;
      const layers = await loadLayers(
        environment,
        repository,
        source,
        manifest,
        n,
      );
      return await checkedDevice(layers, parameters.virtualSize);
    } catch (error) {
      if (!(error instanceof ObdError) || error.code === "cancelled") {
        throw error;
      }
      environment.log.warn("not reusing layers that were built before", {
        repository: repository.name,
        tag,
        reason: errorText(error),
      });
      // A registry in trouble was asked often enough for one chain.
      if (error.code === "registry" || error.code === "deadline") return [];
    }
  }
  return [];
}

/** The image under a chain's tag; undefined if there is no such tag. */
async function resolveChain(
  environment: ImageEnvironment,
  repository: Repository,
  tag: string,
): Promise<ImageManifest | undefined> {
  const { signal } = environment;
  let resolved: ResolvedManifest;
  try {
    resolved = await repository.resolve(tag, { signal });
  } catch (error) {
    if (error instanceof NotFoundError) return undefined;
    throw error;
  }
  const manifest = parseManifest(
    resolved.bytes,
    resolved.descriptor.mediaType,
  );
  if (manifest.kind !== "image") {
    throw new FormatError("meta image", "manifest", "is an index");
  }
  return manifest;
}

async function loadLayers(
  environment: ImageEnvironment,
  repository: Repository,
  source: SourceImage,
  manifest: ImageManifest,
  count: number,
): Promise<ReusedLayer[]> {
  checkFormatVersion(manifest, "meta image");
  const groups = layerGroups(layerRoles(manifest) ?? []);
  const layers: ReusedLayer[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const roles = groups[i] ?? [];
      const want = source.manifest.layers[i]!.digest;
      const parts: CheckedPart[] = [];
      try {
        for (const role of roles) {
          if (role.kind !== "turbo" || role.targetDigest !== want) break;
          const blob = await fetchMetaBlob(
            repository,
            role.descriptor,
            environment.signal,
          );
          parts.push(
            await checkPart(
              blob,
              role.descriptor,
              want,
              source.config.diffIds[i]!,
            ),
          );
        }
        if (roles.length === 0 || parts.length < roles.length) {
          throw new FormatError(
            "meta image",
            `layer ${i + 1}`,
            `does not point to ${want}`,
          );
        }
      } catch (error) {
        await closeParts(parts);
        throw error;
      }
      layers.push(joinParts(parts, entryCountOf(roles[0]!.descriptor)));
    }
    return layers;
  } catch (error) {
    for (const layer of layers) await closeParts(layer.parts);
    throw error;
  }
}

async function closeParts(parts: readonly ReusedPart[]): Promise<void> {
  for (const { opened } of parts) await opened.data[Symbol.asyncDispose]();
}

/**
 * A tag may have been moved to layers of a device of another size, which those
 * of this build must not be put on.
 */
async function checkedDevice(
  layers: ReusedLayer[],
  virtualSize: number,
): Promise<ReusedLayer[]> {
  const wrong = layers.flatMap((layer) => layer.parts)
    .find((part) => part.opened.virtualSize !== virtualSize);
  if (wrong === undefined) return layers;
  for (const layer of layers) await closeParts(layer.parts);
  throw new FormatError(
    "meta layer",
    "virtual size",
    `is ${wrong.opened.virtualSize}, expected ${virtualSize}`,
  );
}

/** The entries of a source layer, as our annotation says; 0 without one. */
export function entryCountOf(descriptor: Descriptor | undefined): number {
  const entries = descriptor?.annotations?.[Annotation.obdEntries] ?? "";
  return /^\d{1,15}$/.test(entries) ? Number(entries) : 0;
}

/** A part, with what it says of its layer. */
type CheckedPart = ReusedPart & {
  compression: SpanIndex["compression"];
  spanCount: number;
  breakdown: LayerBreakdown;
};

function joinParts(
  parts: readonly CheckedPart[],
  entryCount: number,
): ReusedLayer {
  const breakdown: LayerBreakdown = { fsMeta: 0, gzipIndex: 0, spans: 0 };
  for (const part of parts) {
    breakdown.fsMeta += part.breakdown.fsMeta;
    breakdown.gzipIndex += part.breakdown.gzipIndex;
    breakdown.spans += part.breakdown.spans;
  }
  const { compression, spanCount } = parts[0]!;
  return {
    reused: true,
    kind: "turbo",
    parts: parts.map(({ digest, size, diffId, opened }) => ({
      digest,
      size,
      diffId,
      opened,
    })),
    compression,
    entryCount,
    spanCount,
    breakdown,
  };
}

async function checkPart(
  blob: MetaBlob,
  descriptor: Descriptor,
  target: string,
  diffId: string,
): Promise<CheckedPart> {
  const fsMeta = blob.members.get(META_MEMBER.ext4);
  const spans = blob.members.get(META_MEMBER.spans);
  if (!fsMeta || !spans) {
    throw new FormatError("meta blob", "members", "are not those of obd");
  }
  const index = decodeSpans(spans);
  if (index.blobDigest !== target || index.diffId !== diffId) {
    throw new FormatError("obd.spans", "digests", "are of another layer");
  }
  const gzipMeta = blob.members.get(META_MEMBER.gzipMeta)?.length ?? 0;
  return {
    digest: descriptor.digest,
    size: descriptor.size,
    diffId: blob.diffId,
    compression: index.compression,
    spanCount: index.spanOffset.length,
    breakdown: {
      fsMeta: fsMeta.length,
      gzipIndex: gzipMeta,
      spans: spans.length,
    },
    opened: await openLayer(new MemorySource(fsMeta), "warp"),
  };
}

/** Layers that were built before: opened from the image that has them, and checked. */

import { DeadlineError, FormatError } from "../io/mod.ts";
import type {
  LayerBreakdown,
  LayerPart,
  OpenedLayer,
  SpanIndex,
} from "../layers/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  RegistryError,
  type RegistryReference,
  type Repository,
} from "../registry/mod.ts";
import { Annotation } from "./annotations.ts";
import type { BuildFormat } from "./build.ts";
import type { ChainParameters } from "./chain_key.ts";
import { chainId } from "./chain_key.ts";
import {
  checkFormatVersion,
  type ContentRole,
  layerGroups,
  layerRoles,
  prefetchBytesOf,
} from "./meta_image.ts";
import { nativeUuid } from "./native_convert.ts";
import { openMetaPart, openNativePart } from "./reuse_parts.ts";
import type { SourceImage } from "./source.ts";

/** A blob of such a layer. */
export interface ReusedPart extends LayerPart {
  opened: OpenedLayer;
}

/** Where a layer was found. */
export interface ReuseOrigin {
  /** For people, e.g. `127.0.0.1:5000/app`. */
  repository: string;
  /** What led there: the chain's tag, `--base`, or a table of the database of conversions. */
  by:
    | "tag"
    | "base"
    | "obd_chains"
    | "overlaybd_layers"
    | "overlaybd_manifests";
  /** Another repository of the target's registry, which the blobs come from. */
  elsewhere?: RegistryReference | undefined;
}

/** A layer that was built before and need not be built. */
export interface ReusedLayer {
  reused: true;
  kind: "turbo" | "native";
  from: ReuseOrigin;
  /** At least one; bottom first. */
  parts: readonly ReusedPart[];
  /** Of each part, where it is kept as another tool wrote it. */
  descriptors?: readonly Descriptor[] | undefined;
  compression: SpanIndex["compression"];
  entryCount: number;
  /** Bytes at the start of the uncompressed target that should be fetched ahead. */
  prefetchBytes?: number | undefined;
  spanCount: number;
  breakdown: LayerBreakdown;
}

/** Which chain an image should have. */
export interface ChainRequest {
  source: SourceImage;
  format: BuildFormat;
  /** With what the format adds. */
  parameters: ChainParameters;
  /** How many of the source's layers it covers; all, if flattened. */
  count: number;
  signal: AbortSignal | undefined;
}

/** Lets go of layers that are not put on a stack. */
export async function close(layers: readonly ReusedLayer[]): Promise<void> {
  for (const { parts } of layers) await closeParts(parts);
}

/** The same of single blobs. */
export async function closeParts(parts: readonly ReusedPart[]): Promise<void> {
  for (const { opened } of parts) await opened.data[Symbol.asyncDispose]();
}

/**
 * Opens the lowest layers of an image as the chain that was asked for. Each
 * meta layer must be of exactly its target, each native one of its chain, all
 * of a device of this size, stored as was asked.
 *
 * @throws {FormatError} If they are another chain.
 * @throws {NotFoundError} If a blob has gone.
 */
export async function openChain(
  repository: Repository,
  manifest: ImageManifest,
  request: ChainRequest,
  from: ReuseOrigin,
): Promise<ReusedLayer[]> {
  const { format, parameters, count } = request;
  const isNative = format === "overlaybd";
  checkFormatVersion(manifest, isNative ? "native image" : "meta image");
  const groups = layerGroups(layerRoles(manifest) ?? []);
  const isFlatNative = isNative && parameters.flatten;
  const wanted = isFlatNative ? 1 : count;
  if (
    groups.length < wanted || (parameters.flatten && groups.length > wanted)
  ) {
    throw new FormatError(
      isNative ? "native image" : "meta image",
      "layers",
      `are ${groups.length}, expected ${wanted}`,
    );
  }
  const layers: ReusedLayer[] = [];
  try {
    for (const [i, roles] of groups.slice(0, wanted).entries()) {
      const index = isFlatNative ? count - 1 : i;
      layers.push(await openReused(repository, roles, request, index, from));
    }
    return layers;
  } catch (error) {
    await close(layers);
    throw error;
  }
}

/** @param index Of the source layer that this is, or the topmost of those. */
async function openReused(
  repository: Repository,
  roles: readonly ContentRole[],
  request: ChainRequest,
  index: number,
  from: ReuseOrigin,
): Promise<ReusedLayer> {
  const { source, format, parameters, signal } = request;
  const { kind } = roles[0]!;
  const parts: ReusedPart[] = [];
  const sum = {
    compression: "none" as SpanIndex["compression"],
    spanCount: 0,
    breakdown: { fsMeta: 0, gzipIndex: 0, spans: 0 },
  };
  try {
    if (kind === "native") {
      if (format === "turbo" && !parameters.native) {
        throw misplaced(index, "is a native layer");
      }
      const chain = chainId(source.config.diffIds.slice(0, index + 1));
      for (const [part, role] of roles.entries()) {
        const uuid = nativeUuid(chain, part, roles.length);
        const opened = await openNativePart(
          repository,
          role.descriptor,
          parameters,
          uuid,
        );
        parts.push(partOf(role.descriptor, role.descriptor.digest, opened));
      }
    } else {
      if (format === "overlaybd") {
        throw misplaced(index, "is no native layer");
      }
      const want = source.manifest.layers[index]!.digest;
      const diffId = source.config.diffIds[index]!;
      for (const role of roles) {
        if (role.kind !== "turbo" || role.targetDigest !== want) {
          throw misplaced(index, `does not point to ${want}`);
        }
        const part = await openMetaPart(
          repository,
          role.descriptor,
          { digest: want, diffId },
          parameters,
          signal,
        );
        parts.push(partOf(role.descriptor, part.diffId, part.opened));
        // Parts share the index of the layer they are of.
        if (parts.length === 1) {
          sum.compression = part.compression;
          sum.spanCount = part.spanCount;
        }
        sum.breakdown.fsMeta += part.breakdown.fsMeta;
        sum.breakdown.gzipIndex += part.breakdown.gzipIndex;
        sum.breakdown.spans += part.breakdown.spans;
      }
    }
  } catch (error) {
    await closeParts(parts);
    throw error;
  }
  const entryCount = entryCountOf(roles[0]!.descriptor);
  const prefetchBytes = prefetchBytesOf(roles[0]!.descriptor);
  const facts = { ...sum, entryCount, prefetchBytes };
  return { reused: true, kind, from, parts, ...facts };
}

function partOf(
  { digest, size }: Descriptor,
  diffId: string,
  opened: OpenedLayer,
): ReusedPart {
  return { digest, size, diffId, opened };
}

function misplaced(index: number, problem: string): FormatError {
  return new FormatError("meta image", `layer ${index + 1}`, problem);
}

/** The entries of a source layer, as our annotation says; 0 without one. */
export function entryCountOf(descriptor: Descriptor): number {
  const entries = descriptor.annotations?.[Annotation.obdEntries] ?? "";
  return /^\d{1,15}$/.test(entries) ? Number(entries) : 0;
}

/** Whether a registry is in trouble: it was asked often enough for one chain. One that forbids a repository may allow the next. */
export function isPassing(error: unknown): boolean {
  return error instanceof DeadlineError ||
    (error instanceof RegistryError && error.temporary);
}

/** Whether a native conversion is one of a source: by its subject, or by the chain that its layers name. */

import { chainUuid, NULL_UUID, openLayer } from "../layers/mod.ts";
import type { ImageManifest, Repository } from "../registry/mod.ts";
import { chainId } from "./chain_key.ts";
import { type ContentRole, layerGroups, layerRoles } from "./meta_image.ts";
import type { SourceImage } from "./source.ts";

/**
 * Why a native image must not be used for a source, or undefined if it fits.
 * Its top layer carries the chain ID of the diffIDs that it was made of, so a
 * conversion by overlaybd's convertor fits without a subject, and one of
 * another state of a tag does not. Where a tool wrote no UUID, the subject and
 * the number of layers decide.
 */
export async function nativeMisfit(
  repository: Repository,
  meta: ImageManifest,
  source: SourceImage,
): Promise<string | undefined> {
  const wanted = source.resolved.descriptor.digest;
  const subject = meta.subject?.digest;
  if (subject !== undefined && subject !== wanted) {
    return `its subject is ${subject}, the source is ${wanted}`;
  }
  const groups = layerGroups(layerRoles(meta) ?? []);
  const top = groups.at(-1)?.at(-1);
  if (!top || groups.flat().some(({ kind }) => kind !== "native")) {
    return "it is no native image";
  }
  const uuid = chainUuid(chainId(source.config.diffIds));
  const found = await uuidOf(repository, top);
  if (found === uuid) return undefined;
  if (found !== NULL_UUID) {
    return `its top layer is of chain ${found}, the source's is ${uuid}`;
  }
  if (subject === undefined) {
    return "neither a subject nor a UUID names its source";
  }
  // A base layer below may be counted too (convertor's --mkfs=false).
  const count = source.manifest.layers.length;
  return groups.length === count || groups.length === count + 1
    ? undefined
    : `it has ${groups.length} layers, the source has ${count}`;
}

async function uuidOf(
  repository: Repository,
  { descriptor }: ContentRole,
): Promise<string> {
  const layer = await openLayer(
    await repository.openBlob(descriptor),
    "native",
  );
  try {
    return layer.uuid.toUpperCase();
  } finally {
    await layer.data[Symbol.asyncDispose]();
  }
}

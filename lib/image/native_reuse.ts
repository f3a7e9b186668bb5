/** Native layers that were converted before, found as meta layers are: by the tag of their chain's key. */

import { errorText, FormatError, NotFoundError, ObdError } from "../io/mod.ts";
import { openLayer } from "../layers/mod.ts";
import {
  type ImageManifest,
  parseManifest,
  type Repository,
} from "../registry/mod.ts";
import type { BuildFormat } from "./build.ts";
import {
  chainId,
  chainKey,
  type ChainParameters,
  chainTag,
} from "./chain_key.ts";
import type { ImageEnvironment } from "./environment.ts";
import {
  checkFormatVersion,
  type ContentRole,
  layerGroups,
  layerRoles,
} from "./meta_image.ts";
import { nativeUuid } from "./native_convert.ts";
import {
  entryCountOf,
  findReusable,
  type ReusedLayer,
  type ReusedPart,
} from "./reuse.ts";
import type { SourceImage } from "./source.ts";

/** Layers of each format, bottom first; as many of one as of the other. */
export type ReusedLayers = Record<BuildFormat, ReusedLayer[]>;

/** The longest chain that every wanted format has already. */
export async function findReusableFormats(
  environment: ImageEnvironment,
  repository: Repository,
  source: SourceImage,
  formats: readonly BuildFormat[],
  parametersOf: (format: BuildFormat) => ChainParameters,
): Promise<ReusedLayers> {
  const found: ReusedLayers = { turbo: [], overlaybd: [] };
  try {
    for (const format of formats) {
      const find = format === "turbo" ? findReusable : findReusableNative;
      found[format] = await find(
        environment,
        repository,
        source,
        parametersOf(format),
      );
    }
    const count = Math.min(...formats.map((format) => found[format].length));
    for (const format of formats) await close(found[format].splice(count));
    return found;
  } catch (error) {
    await close([...found.turbo, ...found.overlaybd]);
    throw error;
  }
}

/** Lets go of layers that are not put on a stack. */
export async function close(layers: readonly ReusedLayer[]): Promise<void> {
  for (const { opened } of layers.flatMap((layer) => layer.parts)) {
    await opened.data[Symbol.asyncDispose]();
  }
}

/**
 * As {@linkcode findReusable}. A flattened image is one layer for all, which
 * nothing continues on: it is not looked for.
 */
async function findReusableNative(
  environment: ImageEnvironment,
  repository: Repository,
  source: SourceImage,
  parameters: ChainParameters,
): Promise<ReusedLayer[]> {
  if (parameters.flatten) return [];
  const { signal, log } = environment;
  for (let n = source.manifest.layers.length; n >= 1; n--) {
    const tag = chainTag(chainKey(parameters, n));
    try {
      const { bytes, descriptor } = await repository.resolve(tag, { signal });
      const manifest = parseManifest(bytes, descriptor.mediaType);
      if (manifest.kind !== "image") {
        throw new FormatError("native image", "manifest", "is an index");
      }
      return await openLayers(repository, source, manifest, parameters, n);
    } catch (error) {
      if (error instanceof NotFoundError) continue;
      if (!(error instanceof ObdError) || error.code === "cancelled") {
        throw error;
      }
      log.warn("not reusing layers that were converted before", {
        repository: repository.name,
        tag,
        reason: errorText(error),
      });
    }
  }
  return [];
}

/** What a tag names is checked: each layer's UUID says which chain it was made of. */
async function openLayers(
  repository: Repository,
  source: SourceImage,
  manifest: ImageManifest,
  parameters: ChainParameters,
  count: number,
): Promise<ReusedLayer[]> {
  checkFormatVersion(manifest, "native image");
  const groups = layerGroups(layerRoles(manifest) ?? []);
  const layers: ReusedLayer[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const roles = groups[i] ?? [];
      const parts: ReusedPart[] = [];
      const layer: ReusedLayer = {
        reused: true,
        kind: "native",
        parts,
        compression: "none",
        entryCount: entryCountOf(roles[0]?.descriptor),
        spanCount: 0,
        breakdown: { fsMeta: 0, gzipIndex: 0, spans: 0 },
      };
      layers.push(layer);
      const chain = chainId(source.config.diffIds.slice(0, i + 1));
      for (const [part, role] of roles.entries()) {
        const uuid = nativeUuid(chain, part, roles.length);
        parts.push(await openPart(repository, role, uuid, parameters));
      }
      if (parts.length === 0) throw notNative(i + 1);
    }
    return layers;
  } catch (error) {
    await close(layers);
    throw error;
  }
}

async function openPart(
  repository: Repository,
  role: ContentRole,
  uuid: string,
  { virtualSize }: ChainParameters,
): Promise<ReusedPart> {
  const { digest, size } = role.descriptor;
  if (role.kind !== "native") throw notNative(digest);
  const blob = await repository.openBlob(role.descriptor);
  const opened = await openLayer(blob, "native");
  if (opened.uuid === uuid && opened.virtualSize === virtualSize) {
    return { digest, size, diffId: digest, opened };
  }
  await opened.data[Symbol.asyncDispose]();
  throw new FormatError(
    "native layer",
    "UUID and virtual size",
    `are ${opened.uuid} and ${opened.virtualSize}, expected ${uuid} and ${virtualSize}`,
  );
}

function notNative(layer: number | string): FormatError {
  return new FormatError(
    "native image",
    `layer ${layer}`,
    "is no native layer",
  );
}

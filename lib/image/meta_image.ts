/** Meta images: what their manifests say, whether one fits a source, and how ours are written. */

import { FormatError, utf8 } from "../io/mod.ts";
import {
  type Descriptor,
  type ImageConfig,
  type ImageManifest,
  isDigest,
  layerCompression,
  MediaType,
  type ResolvedManifest,
  sha256Digest,
} from "../registry/mod.ts";
import {
  Annotation,
  LEGACY_TURBO_VERSION,
  META_FORMAT_VERSION,
  NATIVE_ARTIFACT_TYPE,
  NATIVE_VERSION,
  TURBO_ARTIFACT_TYPE,
  TURBO_VERSION,
} from "./annotations.ts";
import type { SourceImage } from "./source.ts";

/** One layer of an image that obd can open without building. */
export type LayerRole =
  | {
    kind: "turbo";
    descriptor: Descriptor;
    targetDigest: string;
    /** As annotated; the gzip suffix says whether `gzip.meta` is expected. */
    targetMediaType: string;
    /** Bytes of the target blob, when the annotation of obd says so. */
    targetSize: number | undefined;
  }
  | { kind: "native"; descriptor: Descriptor }
  | { kind: "acceleration"; descriptor: Descriptor };

/**
 * The roles of an image's layers.
 *
 * @returns Undefined for a plain image: one without overlaybd's annotations.
 * @throws {FormatError} If only some layers carry them, or one is wrong.
 */
export function layerRoles(manifest: ImageManifest): LayerRole[] | undefined {
  const roles = manifest.layers.map(layerRole);
  const known = roles.filter((role) => role !== undefined);
  if (known.length === 0) return undefined;
  if (known.length < roles.length) {
    throw new FormatError(
      "meta image",
      "layers",
      `mix plain layers with overlaybd ones (layer ${
        roles.indexOf(undefined) + 1
      } has no "${Annotation.version}")`,
    );
  }
  return known;
}

function layerRole(descriptor: Descriptor): LayerRole | undefined {
  const annotations = descriptor.annotations ?? {};
  if (annotations[Annotation.accelerationLayer] === "yes") {
    return { kind: "acceleration", descriptor };
  }
  const version = annotations[Annotation.version];
  if (version === undefined) {
    // Native layers of early tools carry the blob's digest only.
    return annotations[Annotation.blobDigest] === undefined
      ? undefined
      : { kind: "native", descriptor };
  }
  const targetDigest = annotations[Annotation.targetDigest] ??
    annotations[Annotation.legacyTargetDigest];
  if (targetDigest === undefined) {
    if (version === TURBO_VERSION || version === LEGACY_TURBO_VERSION) {
      throw new FormatError(
        "meta layer",
        Annotation.targetDigest,
        "is missing",
      );
    }
    return { kind: "native", descriptor };
  }
  if (!isDigest(targetDigest)) {
    throw new FormatError(
      "meta layer",
      Annotation.targetDigest,
      "is no sha256 digest",
    );
  }
  const size = annotations[Annotation.obdTargetSize];
  return {
    kind: "turbo",
    descriptor,
    targetDigest,
    targetMediaType: annotations[Annotation.targetMediaType] ??
      annotations[Annotation.legacyTargetMediaType] ?? "",
    targetSize: size !== undefined && /^\d{1,15}$/.test(size)
      ? Number(size)
      : undefined,
  };
}

/** The meta format version that obd wrote on a manifest; 0 for images of other tools. */
export function metaFormatVersion(manifest: ImageManifest): number {
  const text = manifest.annotations[Annotation.obdFormat] ?? "";
  return /^\d{1,6}$/.test(text) ? Number(text) : 0;
}

/**
 * Refuses an image that another version of the format wrote.
 *
 * @param what What the image is, for the message.
 * @throws {FormatError} If the version is not this release's.
 */
export function checkFormatVersion(
  manifest: ImageManifest,
  what: string,
): void {
  const version = metaFormatVersion(manifest);
  if (version === META_FORMAT_VERSION) return;
  throw new FormatError(
    what,
    Annotation.obdFormat,
    `is ${version}, expected ${META_FORMAT_VERSION}`,
  );
}

/**
 * Why a meta image must not be used for a source, or undefined if it fits:
 * `subject` is exactly the source's manifest and the layers' targets are
 * exactly its layers.
 */
export function misfit(
  meta: ImageManifest,
  source: SourceImage,
): string | undefined {
  if (meta.subject?.digest !== source.resolved.descriptor.digest) {
    return `its subject is ${
      meta.subject?.digest ?? "missing"
    }, the source is ${source.resolved.descriptor.digest}`;
  }
  const roles = layerRoles(meta);
  if (roles === undefined) return "it is no meta image";
  const layers = roles.filter((role) => role.kind !== "acceleration");
  const wanted = source.manifest.layers;
  if (layers.length !== wanted.length) {
    return `it has ${layers.length} layers, the source has ${wanted.length}`;
  }
  if (metaFormatVersion(meta) > META_FORMAT_VERSION) {
    return `it is of format ${
      metaFormatVersion(meta)
    }, this obd knows ${META_FORMAT_VERSION}`;
  }
  for (const [i, role] of layers.entries()) {
    if (role.kind === "turbo" && role.targetDigest !== wanted[i]!.digest) {
      return `its layer ${
        i + 1
      } points to ${role.targetDigest}, the source's is ${wanted[i]!.digest}`;
    }
  }
  return undefined;
}

/** One layer as the builder made it. */
export interface BuiltLayerDescriptor {
  kind: "turbo" | "native";
  /** Digest and size of the meta blob, or of the native layer's. */
  digest: string;
  size: number;
  /** Digest of the uncompressed meta tar; of a native layer the blob's own. */
  diffId: string;
  /** The source layer; unused for native ones. */
  target: Descriptor;
  /** Entries of the source layer's tar. */
  entryCount: number;
  /** How the target is really compressed, by content. */
  compression: "none" | "gzip" | "zstd";
}

/** Bytes of a meta image's config and manifest. */
export interface MetaDocuments {
  config: { descriptor: Descriptor; bytes: Uint8Array<ArrayBuffer> };
  manifest: { descriptor: Descriptor; bytes: Uint8Array<ArrayBuffer> };
  /** Descriptors of the meta layers. */
  layers: Descriptor[];
}

/**
 * Writes config and manifest of a meta image, or of a native one. The same
 * input gives the same bytes: nothing of the time, the place or the machine is
 * in them.
 *
 * @param types Docker's manifests know neither subject nor artifact type: those
 * are left out there.
 */
export function writeMetaDocuments(
  source: SourceImage,
  layers: readonly BuiltLayerDescriptor[],
  chainKey: string,
  types: "oci" | "docker" = "oci",
): MetaDocuments {
  const isOci = types === "oci";
  const config = writeConfig(source.config, layers, isOci);
  const descriptors = layers.map((layer) =>
    layer.kind === "native"
      ? nativeDescriptor(layer, isOci)
      : layerDescriptor(layer)
  );
  const artifactType = layers.every((layer) => layer.kind === "native")
    ? NATIVE_ARTIFACT_TYPE
    : TURBO_ARTIFACT_TYPE;
  const mediaType = isOci ? MediaType.ociManifest : MediaType.dockerManifest;
  const manifest = utf8(JSON.stringify({
    schemaVersion: 2,
    mediaType,
    ...(isOci ? { artifactType } : {}),
    config: config.descriptor,
    layers: descriptors,
    ...(isOci ? { subject: plainDescriptor(source.resolved) } : {}),
    annotations: {
      ...source.manifest.annotations,
      [Annotation.obdChainKey]: chainKey,
      [Annotation.obdFormat]: String(META_FORMAT_VERSION),
    },
  }));
  return {
    config,
    manifest: {
      descriptor: {
        mediaType,
        digest: sha256Digest(manifest),
        size: manifest.length,
        ...(isOci ? { artifactType } : {}),
      },
      bytes: manifest,
    },
    layers: descriptors,
  };
}

function writeConfig(
  source: ImageConfig,
  layers: readonly BuiltLayerDescriptor[],
  isOci: boolean,
): MetaDocuments["config"] {
  const bytes = utf8(JSON.stringify({
    ...source.raw,
    ...flatHistory(source, layers.length),
    rootfs: { type: "layers", diff_ids: layers.map((l) => l.diffId) },
  }));
  return {
    descriptor: {
      mediaType: isOci ? MediaType.ociConfig : MediaType.dockerConfig,
      digest: sha256Digest(bytes),
      size: bytes.length,
    },
    bytes,
  };
}

/** One layer for all: the history's steps stay, but only the last has a layer of its own. */
function flatHistory(source: ImageConfig, count: number): object {
  const { history } = source.raw as { history?: unknown };
  if (count === source.diffIds.length || !Array.isArray(history)) return {};
  return {
    history: history.map((step: object, i) => {
      const { empty_layer: _, ...rest } = step as { empty_layer?: boolean };
      return i === history.length - 1 ? rest : { ...rest, empty_layer: true };
    }),
  };
}

/** A native layer's blob is its own uncompressed form, so its type names no compression. */
function nativeDescriptor(
  layer: BuiltLayerDescriptor,
  isOci: boolean,
): Descriptor {
  return {
    mediaType: isOci ? MediaType.ociLayer : MediaType.dockerLayer,
    digest: layer.digest,
    size: layer.size,
    annotations: {
      [Annotation.version]: NATIVE_VERSION,
      [Annotation.blobDigest]: layer.digest,
      [Annotation.blobSize]: String(layer.size),
      [Annotation.obdEntries]: String(layer.entryCount),
    },
  };
}

function layerDescriptor(layer: BuiltLayerDescriptor): Descriptor {
  const trueType = layer.target.mediaType;
  // A reader that knows nothing of zstd must fail to open, not serve the raw
  // blob: it is told gzip, and finds no gzip index (overlaybd lsmt/file.cpp: open_warpfile_ro).
  const told = layer.compression === "none"
    ? MediaType.ociLayer
    : MediaType.ociLayerGzip;
  return {
    mediaType: MediaType.ociLayerGzip,
    digest: layer.digest,
    size: layer.size,
    annotations: {
      [Annotation.version]: TURBO_VERSION,
      [Annotation.blobDigest]: layer.digest,
      [Annotation.blobSize]: String(layer.size),
      [Annotation.targetDigest]: layer.target.digest,
      [Annotation.targetMediaType]: told,
      [Annotation.obdTargetSize]: String(layer.target.size),
      [Annotation.obdEntries]: String(layer.entryCount),
      ...(layerCompression(trueType) === "zstd" || layer.compression === "zstd"
        ? { [Annotation.obdTargetType]: MediaType.ociLayerZstd }
        : {}),
    },
  };
}

function plainDescriptor(resolved: ResolvedManifest): Descriptor {
  const { mediaType, digest, size } = resolved.descriptor;
  return { mediaType, digest, size };
}

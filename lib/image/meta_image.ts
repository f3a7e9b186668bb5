/** Meta images: what their manifests say, whether one fits a source, and how ours are written. */

import { FormatError, LimitError, utf8 } from "../io/mod.ts";
import { type LayerPart, MAX_LAYERS } from "../layers/mod.ts";
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
import type { PlainManifest, SourceImage } from "./source.ts";

/** Which of the layers that one source layer became, from 1. */
export interface PartNumber {
  index: number;
  count: number;
}

/** One layer of an image that obd can open without building. */
export type LayerRole =
  | {
    kind: "turbo";
    descriptor: Descriptor;
    /** Absent where the source layer became this one only. */
    part?: PartNumber | undefined;
    targetDigest: string;
    /** As annotated; the gzip suffix says whether `gzip.meta` is expected. */
    targetMediaType: string;
    /** Bytes of the target blob, when the annotation of obd says so. */
    targetSize: number | undefined;
    /** Bytes at the start of the uncompressed target that should be fetched ahead. */
    prefetchBytes: number;
  }
  | {
    kind: "native";
    descriptor: Descriptor;
    part?: PartNumber | undefined;
  }
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

/** @throws {LimitError} If there are more layers than a device is stacked from, the parts of large ones counted. */
export function checkLayerCount(count: number): void {
  if (count <= MAX_LAYERS) return;
  throw new LimitError(
    `The image has ${count} layers: a device is stacked from at most ${MAX_LAYERS}`,
  );
}

/** A role that content comes from. */
export type ContentRole = Exclude<LayerRole, { kind: "acceleration" }>;

/**
 * The roles of content, those of one source layer together, bottom first.
 *
 * @throws {FormatError} If parts of a layer are missing or out of order.
 * @throws {LimitError} If there are more layers than a device is stacked from.
 */
export function layerGroups(roles: readonly LayerRole[]): ContentRole[][] {
  const groups: ContentRole[][] = [];
  for (const [i, role] of roles.entries()) {
    if (role.kind === "acceleration") continue;
    const { index, count } = role.part ?? { index: 1, count: 1 };
    const open = groups.at(-1);
    const wanted = open && open.length < (open[0]!.part?.count ?? 1)
      ? open
      : undefined;
    const fits = wanted === undefined
      ? index === 1
      : index === wanted.length + 1 && count === wanted[0]!.part?.count &&
        isSameLayer(role, wanted[0]!);
    if (!fits) throw wrongPart(i, role.part);
    if (wanted) wanted.push(role);
    else groups.push([role]);
  }
  const last = groups.at(-1);
  if (last && last.length < (last[0]!.part?.count ?? 1)) {
    throw wrongPart(roles.length - 1, last.at(-1)!.part);
  }
  checkLayerCount(groups.flat().length);
  return groups;
}

function isSameLayer(a: ContentRole, b: ContentRole): boolean {
  if (a.kind === "turbo" && b.kind === "turbo") {
    return a.targetDigest === b.targetDigest;
  }
  return a.kind === b.kind;
}

function wrongPart(layer: number, part: PartNumber | undefined): FormatError {
  return new FormatError(
    "meta image",
    `part of layer ${layer + 1}`,
    `is ${
      part ? `${part.index} of ${part.count}` : "the only one"
    }, out of order or not followed by the rest`,
  );
}

/** @throws {FormatError} If the annotation is not `N/COUNT`. */
function partOf(
  annotations: Readonly<Record<string, string>>,
): { part: PartNumber } | undefined {
  const text = annotations[Annotation.obdPart];
  if (text === undefined) return undefined;
  const match = /^([1-9]\d{0,2})\/([1-9]\d{0,2})$/.exec(text);
  const [index, count] = [Number(match?.[1]), Number(match?.[2])];
  if (!match || index > count) {
    throw new FormatError(
      "meta layer",
      Annotation.obdPart,
      `is "${text}", expected N/COUNT`,
    );
  }
  return { part: { index, count } };
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
      : { kind: "native", descriptor, ...partOf(annotations) };
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
    return { kind: "native", descriptor, ...partOf(annotations) };
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
    ...partOf(annotations),
    targetDigest,
    targetMediaType: annotations[Annotation.targetMediaType] ??
      annotations[Annotation.legacyTargetMediaType] ?? "",
    targetSize: size !== undefined && /^\d{1,15}$/.test(size)
      ? Number(size)
      : undefined,
    prefetchBytes: prefetchBytesOf(descriptor) ?? 0,
  };
}

/** The bytes that should be fetched ahead, as our annotation says. */
export function prefetchBytesOf(descriptor: Descriptor): number | undefined {
  const bytes = descriptor.annotations?.[Annotation.obdPrefetch] ?? "";
  return /^\d{1,15}$/.test(bytes) ? Number(bytes) : undefined;
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
  source: PlainManifest,
): string | undefined {
  if (meta.subject?.digest !== source.resolved.descriptor.digest) {
    return `its subject is ${
      meta.subject?.digest ?? "missing"
    }, the source is ${source.resolved.descriptor.digest}`;
  }
  const roles = layerRoles(meta);
  if (roles === undefined) return "it is no meta image";
  const layers = layerGroups(roles).map(([role]) => role!);
  const wanted = source.manifest.layers;
  // An empty file system below all (convertor's --mkfs=false).
  if (layers.length === wanted.length + 1 && layers[0]!.kind === "native") {
    layers.shift();
  }
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
  /** The blobs that it became, bottom first. */
  parts: readonly LayerPart[];
  /** Descriptors that another tool wrote, one for each part: they are kept. */
  descriptors?: readonly Descriptor[] | undefined;
  /** The source layer; unused for native ones. */
  target: Descriptor;
  /** Entries of the source layer's tar. */
  entryCount: number;
  /** Bytes at the start of the uncompressed target that should be fetched ahead. */
  prefetchBytes?: number | undefined;
  /** How the target is really compressed, by content. */
  compression: "none" | "gzip" | "zstd";
}

/** Bytes of a meta image's config and manifest. */
export interface MetaDocuments {
  config: { descriptor: Descriptor; bytes: Uint8Array<ArrayBuffer> };
  manifest: { descriptor: Descriptor; bytes: Uint8Array<ArrayBuffer> };
  /** Descriptors of the meta layers, those of all parts. */
  layers: Descriptor[];
}

/**
 * Writes config and manifest of a meta image, or of a native one. The same
 * input gives the same bytes: nothing of the time, the place or the machine is
 * in them.
 *
 * @param types Docker's manifests know neither subject nor artifact type: those
 * are left out there.
 * @param floor A layer of another tool below those of the source.
 * @throws {LimitError} If there are more layers than readers stack.
 */
export function writeMetaDocuments(
  source: SourceImage,
  layers: readonly BuiltLayerDescriptor[],
  chainKey: string,
  types: "oci" | "docker" = "oci",
  floor?: { descriptor: Descriptor; part: LayerPart },
): MetaDocuments {
  const isOci = types === "oci";
  const config = writeConfig(source.config, layers, isOci, floor?.part);
  const descriptors = layers.flatMap((layer) =>
    layer.descriptors ??
      layer.parts.map((part, i) =>
        layer.kind === "native"
          ? nativeDescriptor(layer, part, i, isOci)
          : layerDescriptor(layer, part, i)
      )
  );
  if (floor) descriptors.unshift(floor.descriptor);
  if (descriptors.length > MAX_LAYERS) {
    throw new LimitError(
      `Cannot write image of ${descriptors.length} layers, the parts of large ones included: readers stack ${MAX_LAYERS}`,
    );
  }
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
  floor: LayerPart | undefined,
): MetaDocuments["config"] {
  const parts = layers.flatMap((layer) => layer.parts);
  if (floor) parts.unshift(floor);
  const bytes = utf8(JSON.stringify({
    ...source.raw,
    ...newHistory(source, layers, floor !== undefined),
    rootfs: { type: "layers", diff_ids: parts.map((part) => part.diffId) },
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

/**
 * The history, where it would no longer go with the layers: its steps that are
 * not empty are one for each diffID (image-spec `config.md`).
 */
function newHistory(
  source: ImageConfig,
  layers: readonly BuiltLayerDescriptor[],
  hasFloor: boolean,
): object {
  const { history } = source.raw as { history?: unknown };
  const isFlat = layers.length !== source.diffIds.length;
  const isSplit = layers.some((layer) => layer.parts.length > 1);
  if (!Array.isArray(history) || !(isFlat || isSplit || hasFloor)) return {};
  const steps: { empty_layer?: boolean }[] = [];
  if (hasFloor) steps.push({ created_by: "obd: base layer" } as object);
  let layer = 0;
  for (const [i, step] of history.entries()) {
    const { empty_layer, ...rest } = step as { empty_layer?: boolean };
    // One layer for all: only the last step has a layer of its own.
    const isEmpty = isFlat ? i < history.length - 1 : empty_layer === true;
    if (isEmpty) {
      steps.push({ ...rest, empty_layer: true });
      continue;
    }
    steps.push(rest);
    const count = layers[layer++]?.parts.length ?? 1;
    for (let part = 2; part <= count; part++) {
      const text = `obd: part ${part} of ${count} of the layer before`;
      steps.push({ created_by: text } as object);
    }
  }
  return { history: steps };
}

/** Says where a blob stands among the parts of its layer. */
function partAnnotation(
  { parts }: BuiltLayerDescriptor,
  index: number,
): Record<string, string> {
  if (parts.length === 1) return {};
  return { [Annotation.obdPart]: `${index + 1}/${parts.length}` };
}

/** A native layer's blob is its own uncompressed form, so its type names no compression. */
function nativeDescriptor(
  layer: BuiltLayerDescriptor,
  { digest, size }: LayerPart,
  index: number,
  isOci: boolean,
): Descriptor {
  return {
    mediaType: isOci ? MediaType.ociLayer : MediaType.dockerLayer,
    digest,
    size,
    annotations: {
      [Annotation.version]: NATIVE_VERSION,
      [Annotation.blobDigest]: digest,
      [Annotation.blobSize]: String(size),
      [Annotation.obdEntries]: String(layer.entryCount),
      ...partAnnotation(layer, index),
    },
  };
}

function layerDescriptor(
  layer: BuiltLayerDescriptor,
  { digest, size }: LayerPart,
  index: number,
): Descriptor {
  const trueType = layer.target.mediaType;
  // A reader that knows nothing of zstd must fail to open, not serve the raw
  // blob: it is told gzip, and finds no gzip index (overlaybd lsmt/file.cpp: open_warpfile_ro).
  const told = layer.compression === "none"
    ? MediaType.ociLayer
    : MediaType.ociLayerGzip;
  return {
    mediaType: MediaType.ociLayerGzip,
    digest,
    size,
    annotations: {
      [Annotation.version]: TURBO_VERSION,
      [Annotation.blobDigest]: digest,
      [Annotation.blobSize]: String(size),
      [Annotation.targetDigest]: layer.target.digest,
      [Annotation.targetMediaType]: told,
      [Annotation.obdTargetSize]: String(layer.target.size),
      [Annotation.obdEntries]: String(layer.entryCount),
      ...partAnnotation(layer, index),
      // Parts have the same target: once is enough.
      ...(layer.prefetchBytes && index === 0
        ? { [Annotation.obdPrefetch]: String(layer.prefetchBytes) }
        : {}),
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

/**
 * Manifests, indexes and image configs: media types, validation with bounds,
 * typed views that keep the raw JSON.
 *
 * Specs: OCI image-spec 1.1 (`descriptor.md`, `manifest.md`, `image-index.md`,
 * `config.md`) and Docker Image Manifest V2 Schema 2, which has the same shape
 * under other media types.
 */

import * as v from "valibot";
import { FormatError, LimitError, UnsupportedError, utf8 } from "../io/mod.ts";
import { checkDigest, isDigest } from "./digest.ts";
import { MediaType } from "./media_types.ts";

/** Largest manifest, index or config that is read, in bytes (the size that registries must accept). */
export const MANIFEST_SIZE_MAX = 4 * 1024 * 1024;
/** Most layers of an image. */
export const LAYER_COUNT_MAX = 1000;
/** Most entries of an index. */
export const INDEX_ENTRY_COUNT_MAX = 10_000;
const ANNOTATION_COUNT_MAX = 1000;

/** os/architecture/variant of an image. */
export interface Platform {
  os: string;
  architecture: string;
  variant?: string;
  "os.version"?: string;
  "os.features"?: string[];
}

/** Names content by type, digest and size. */
export interface Descriptor {
  mediaType: string;
  digest: string;
  /** Bytes. */
  size: number;
  annotations?: Record<string, string>;
  platform?: Platform;
  artifactType?: string;
  urls?: string[];
  /** The content itself, in base64. */
  data?: string;
}

/** An image manifest, OCI or Docker. */
export interface ImageManifest {
  kind: "image";
  mediaType: string;
  config: Descriptor;
  /** Base first. */
  layers: Descriptor[];
  subject?: Descriptor;
  artifactType?: string;
  annotations: Record<string, string>;
  /** The parsed JSON with all fields, also those not known here. */
  raw: Record<string, unknown>;
}

/** An index (Docker: manifest list). */
export interface ImageIndex {
  kind: "index";
  mediaType: string;
  manifests: Descriptor[];
  subject?: Descriptor;
  artifactType?: string;
  annotations: Record<string, string>;
  raw: Record<string, unknown>;
}

/** What {@linkcode parseManifest} returns. */
export type Manifest = ImageManifest | ImageIndex;

/** One `history` entry of a config. */
export interface HistoryEntry {
  created?: string;
  created_by?: string;
  comment?: string;
  author?: string;
  /** True for steps without a layer. */
  empty_layer?: boolean;
}

/** The parts of an image config that obd reads. */
export interface ImageConfig {
  platform: Platform;
  /** Digests of the uncompressed layers, base first. */
  diffIds: string[];
  history: HistoryEntry[];
  /** The parsed JSON with all fields. */
  raw: Record<string, unknown>;
}

const text = v.pipe(v.string(), v.maxLength(65_536));
const annotationsSchema = v.pipe(
  v.record(v.string(), v.string()),
  v.check(
    (map) => Object.keys(map).length <= ANNOTATION_COUNT_MAX,
    `has more than ${ANNOTATION_COUNT_MAX} entries`,
  ),
);
const platformSchema = v.looseObject({
  os: v.optional(text, ""),
  architecture: v.optional(text, ""),
  variant: v.optional(text),
  "os.version": v.optional(text),
  "os.features": v.optional(v.array(text)),
});
const descriptorSchema = v.looseObject({
  mediaType: text,
  digest: text,
  size: v.pipe(v.number(), v.safeInteger(), v.minValue(0)),
  // Null stands for "none" in documents written by Go programs.
  annotations: v.nullish(annotationsSchema),
  platform: v.nullish(platformSchema),
  artifactType: v.nullish(text),
  urls: v.nullish(v.array(text)),
  data: v.nullish(v.string()),
});
const commonEntries = {
  schemaVersion: v.literal(2),
  mediaType: v.nullish(text),
  artifactType: v.nullish(text),
  subject: v.nullish(descriptorSchema),
  annotations: v.nullish(annotationsSchema),
};
const imageSchema = v.looseObject({
  ...commonEntries,
  config: descriptorSchema,
  layers: v.nullish(
    v.pipe(v.array(descriptorSchema), v.maxLength(LAYER_COUNT_MAX)),
  ),
});
const indexSchema = v.looseObject({
  ...commonEntries,
  manifests: v.pipe(
    v.array(descriptorSchema),
    v.maxLength(INDEX_ENTRY_COUNT_MAX),
  ),
});
const configSchema = v.looseObject({
  os: v.optional(text, ""),
  architecture: v.optional(text, ""),
  variant: v.nullish(text),
  "os.version": v.nullish(text),
  rootfs: v.looseObject({
    diff_ids: v.pipe(v.array(text), v.maxLength(LAYER_COUNT_MAX)),
  }),
  history: v.nullish(v.pipe(
    v.array(v.looseObject({
      created: v.nullish(v.string()),
      created_by: v.nullish(v.string()),
      comment: v.nullish(v.string()),
      author: v.nullish(v.string()),
      empty_layer: v.nullish(v.boolean()),
    })),
    v.maxLength(10 * LAYER_COUNT_MAX),
  )),
});

/** @throws {FormatError} If `bytes` is no JSON object, or larger than {@linkcode MANIFEST_SIZE_MAX}. */
export function parseJsonObject(
  what: string,
  bytes: Uint8Array,
): Record<string, unknown> {
  if (bytes.length > MANIFEST_SIZE_MAX) {
    throw new FormatError(
      what,
      "size",
      `is ${bytes.length} bytes, at most ${MANIFEST_SIZE_MAX} are allowed`,
    );
  }
  let json: unknown;
  try {
    json = JSON.parse(
      new TextDecoder("utf-8", { fatal: true }).decode(bytes),
    );
  } catch (cause) {
    throw new FormatError(what, "document", "is no valid JSON", { cause });
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new FormatError(what, "document", "is no JSON object");
  }
  return json as Record<string, unknown>;
}

function validate<S extends v.GenericSchema>(
  what: string,
  schema: S,
  json: unknown,
): v.InferOutput<S> {
  const result = v.safeParse(schema, json, { abortEarly: true });
  if (result.success) return result.output;
  const issue = result.issues[0]!;
  const path = v.getDotPath(issue) ?? "document";
  throw new FormatError(what, path, `is wrong: ${issue.message}`);
}

function toPlatform(
  p: { [K in keyof Platform]?: Platform[K] | null | undefined },
): Platform {
  return {
    os: p.os ?? "",
    architecture: p.architecture ?? "",
    ...(p.variant ? { variant: p.variant } : {}),
    ...(p["os.version"] ? { "os.version": p["os.version"] } : {}),
    ...(p["os.features"] ? { "os.features": p["os.features"] } : {}),
  };
}

function toDescriptor(
  what: string,
  field: string,
  d: v.InferOutput<typeof descriptorSchema>,
): Descriptor {
  if (!isDigest(d.digest)) {
    try {
      checkDigest(d.digest);
    } catch (cause) {
      if (cause instanceof UnsupportedError) throw cause;
      throw new FormatError(what, `${field}.digest`, "is no digest", { cause });
    }
  }
  return {
    mediaType: d.mediaType,
    digest: d.digest,
    size: d.size,
    ...(d.annotations ? { annotations: d.annotations } : {}),
    ...(d.platform ? { platform: toPlatform(d.platform) } : {}),
    ...(d.artifactType ? { artifactType: d.artifactType } : {}),
    ...(d.urls ? { urls: d.urls } : {}),
    ...(d.data ? { data: d.data } : {}),
  };
}

/**
 * Checks one descriptor that came from outside.
 *
 * @throws {FormatError}
 */
export function parseDescriptor(what: string, json: unknown): Descriptor {
  return toDescriptor(
    what,
    "descriptor",
    validate(what, descriptorSchema, json),
  );
}

/**
 * Parses an image manifest or index.
 *
 * @param mediaType What the registry or the descriptor called it; generic
 * types (`application/json`, `application/octet-stream`, "") say nothing.
 * @throws {FormatError} If it breaks the schema, or contradicts itself.
 * @throws {UnsupportedError} For Docker schema 1 and unknown types, by name.
 */
export function parseManifest(
  bytes: Uint8Array,
  mediaType = "",
): Manifest {
  const raw = parseJsonObject("manifest", bytes);
  const type = manifestMediaType(raw, mediaType);
  const isIndex = type === MediaType.ociIndex || type === MediaType.dockerList;
  // A document that reads as an image to one program and as an index to
  // another can smuggle content past checks (CVE-2021-41190).
  if (raw.manifests != null && (raw.layers != null || raw.config != null)) {
    throw new FormatError(
      "manifest",
      "manifests",
      "stands beside layers or config",
    );
  }
  const what = isIndex ? "image index" : "image manifest";
  const doc = isIndex
    ? validate(what, indexSchema, raw)
    : validate(what, imageSchema, raw);
  const common = {
    mediaType: type,
    ...(doc.subject
      ? { subject: toDescriptor(what, "subject", doc.subject) }
      : {}),
    ...(doc.artifactType ? { artifactType: doc.artifactType } : {}),
    annotations: doc.annotations ?? {},
    raw,
  };
  if ("manifests" in doc && isIndex) {
    const list = doc.manifests as v.InferOutput<typeof descriptorSchema>[];
    return {
      kind: "index",
      ...common,
      manifests: list.map((d, i) => toDescriptor(what, `manifests.${i}`, d)),
    };
  }
  const image = doc as v.InferOutput<typeof imageSchema>;
  return {
    kind: "image",
    ...common,
    config: toDescriptor(what, "config", image.config),
    layers: (image.layers ?? []).map((d, i) =>
      toDescriptor(what, `layers.${i}`, d)
    ),
  };
}

/**
 * The bytes of an index that is written.
 *
 * @throws {LimitError} If it is more than {@linkcode parseManifest} reads: the
 * one that is there must not give way to it.
 */
export function writeIndex(
  what: string,
  index: Record<string, unknown> & { manifests: readonly unknown[] },
): Uint8Array<ArrayBuffer> {
  const bytes = utf8(JSON.stringify(index));
  const { length } = index.manifests;
  if (length <= INDEX_ENTRY_COUNT_MAX && bytes.length <= MANIFEST_SIZE_MAX) {
    return bytes;
  }
  throw new LimitError(
    `Cannot add to ${what}: it would have ${length} entries and ${bytes.length} bytes, at most ${INDEX_ENTRY_COUNT_MAX} and ${MANIFEST_SIZE_MAX} are read`,
  );
}

/**
 * The media type of a manifest, from its own `mediaType` and what it was called.
 *
 * @throws {FormatError} If the two differ.
 * @throws {UnsupportedError} If the type is none of the four known ones.
 */
export function manifestMediaType(
  raw: Record<string, unknown>,
  outer = "",
): string {
  const called = (outer.split(";")[0] ?? "").trim().toLowerCase();
  const isGeneric = called === "" || called === "application/json" ||
    called === "text/plain" || called === "application/octet-stream";
  const own = typeof raw.mediaType === "string" ? raw.mediaType : "";
  if (raw.schemaVersion === 1) refuseSchema1();
  if (own !== "" && !isGeneric && own !== called) {
    throw new FormatError(
      "manifest",
      "mediaType",
      `is "${own.slice(0, 200)}", but it is served as "${
        called.slice(0, 200)
      }"`,
    );
  }
  const type = own !== "" ? own : isGeneric ? guessType(raw) : called;
  switch (type) {
    case MediaType.ociManifest:
    case MediaType.ociIndex:
    case MediaType.dockerManifest:
    case MediaType.dockerList:
      return type;
    case MediaType.dockerSchema1:
    case MediaType.dockerSchema1Signed:
      refuseSchema1();
  }
  throw new UnsupportedError(
    `manifest type ${type.slice(0, 200)}`,
    `Manifest type "${type.slice(0, 200)}" is not supported`,
  );
}

/**
 * Called before a digest is compared: that of a signed manifest is of the
 * document without its signatures, not of what the registry sends.
 *
 * @throws {UnsupportedError} If a `Content-Type` is that of a schema 1 manifest.
 */
export function checkNotSchema1(contentType: string): void {
  const type = contentType.split(";")[0]!.trim().toLowerCase();
  if (
    type === MediaType.dockerSchema1 || type === MediaType.dockerSchema1Signed
  ) refuseSchema1();
}

function refuseSchema1(): never {
  throw new UnsupportedError(
    "docker schema 1",
    "Docker schema 1 manifests are not supported: push the image again with a current tool",
  );
}

function guessType(raw: Record<string, unknown>): string {
  // OCI documents may leave `mediaType` out; Docker's may not.
  if (Array.isArray(raw.manifests)) return MediaType.ociIndex;
  if (Array.isArray(raw.layers) || raw.config) return MediaType.ociManifest;
  return "unknown";
}

/**
 * Parses an image config.
 *
 * @throws {FormatError} If it breaks the schema, also for a diffID that is no sha256 digest.
 */
export function parseImageConfig(bytes: Uint8Array): ImageConfig {
  const what = "image config";
  const raw = parseJsonObject(what, bytes);
  const doc = validate(what, configSchema, raw);
  doc.rootfs.diff_ids.forEach((id, i) => {
    if (!isDigest(id)) {
      throw new FormatError(
        what,
        `rootfs.diff_ids.${i}`,
        "is no sha256 digest",
      );
    }
  });
  return {
    platform: toPlatform({
      os: doc.os,
      architecture: doc.architecture,
      variant: doc.variant,
      "os.version": doc["os.version"],
    }),
    diffIds: doc.rootfs.diff_ids,
    history: (doc.history ?? []).map((h) =>
      Object.fromEntries(
        Object.entries(h).filter(([, value]) => value != null),
      ) as HistoryEntry
    ),
    raw,
  };
}

/**
 * The descriptor by which a manifest with a `subject` is listed (distribution-spec §Listing
 * Referrers: `artifactType` falls back to the config's media type, the
 * manifest's annotations are included).
 */
export function referrerDescriptor(
  descriptor: Descriptor,
  manifest: Manifest,
): Descriptor {
  const artifactType = manifest.artifactType ??
    (manifest.kind === "image" ? manifest.config.mediaType : undefined);
  return {
    mediaType: manifest.mediaType,
    digest: descriptor.digest,
    size: descriptor.size,
    ...(artifactType ? { artifactType } : {}),
    ...(Object.keys(manifest.annotations).length > 0
      ? { annotations: manifest.annotations }
      : {}),
  };
}

/** What an image is, layer by layer, and what would serve it. */

import { CancelledError, mapConcurrent, NotFoundError } from "../io/mod.ts";
import {
  CachedSource,
  type Fact,
  type FilePart,
  type FileReport,
  firstProblem,
  inspectMembers,
  type Integrity,
  newReport,
  openLayer,
  type Problem,
  problemOf,
  summarizeLayer,
} from "../layers/mod.ts";
import {
  type Descriptor,
  formatPlatform,
  formatRepository,
  parsePlatform,
  parseReference,
  type Repository,
} from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import { inspectMeta, type MetaReport, NoteLogger } from "./inspect_meta.ts";
import { fetchMetaBlob } from "./meta_blobs.ts";
import {
  layerGroups,
  type LayerRole,
  layerRoles,
  type PartNumber,
} from "./meta_image.ts";
import { type StackInspection, stackOf } from "./inspect_stack.ts";
import { type LayerInfo, openImage } from "./open.ts";
import { resolveSource, type SourceImage } from "./source.ts";

/** Layers that are looked at at once. */
const CONCURRENCY = 8;
/** Referrers that are listed. */
const REFERRERS_MAX = 64;

/** One layer. */
export interface LayerInspection {
  /** From 1, base first; 0 is a file system without content below. */
  number: number;
  /** Which of the meta or native layers that this layer became, where it was too much for one. */
  part?: PartNumber;
  kind: "plain" | "turbo" | "native" | "acceleration";
  /** The blob that the content comes from: for a meta layer, its target. */
  digest: string;
  mediaType: string;
  /** Bytes of that blob, where they are known. */
  size?: number;
  /** Whether that blob is in the repository. */
  present?: boolean;
  /** Digest of the uncompressed layer, as the image's config says. */
  diffId?: string;
  /** How sure served bytes are. */
  integrity?: Integrity;
  /** The meta blob of a TurboOCI layer and what is in it. */
  meta?: { digest: string; size: number; parts: FilePart[] };
  /** The layer's map: number of entries, virtual size, mapped bytes. */
  map?: Record<string, Fact>;
  problem?: Problem;
}

/** One image. */
export interface ImageInspection {
  what: "image";
  name: string;
  /** `plain` needs a meta image; `config` is a `config.v1.json`. */
  kind: "plain" | "turbo" | "native" | "config";
  repository?: string;
  /** The index that the image was chosen from. */
  index?: { digest: string; mediaType: string; platforms: string[] };
  manifest?: {
    digest: string;
    mediaType: string;
    size: number;
    artifactType?: string;
    annotations: Record<string, string>;
  };
  /** The manifest that this one is about. */
  subject?: { digest: string; mediaType: string; size: number };
  config?: { digest: string; size: number; platform: string; created?: string };
  referrers?: { digest: string; artifactType?: string; size: number }[];
  /** Which meta image a plain image would be served with. */
  meta?: MetaReport;
  layers: LayerInspection[];
  /** The merged device. */
  device?: { size: number; segments: number; integrity: Integrity };
  stack?: StackInspection;
  notes: string[];
  problem?: Problem;
}

/**
 * Inspects an image by its reference. Nothing is built; of layers, only indexes
 * are read.
 *
 * @throws {ObdError} If the reference leads to no image.
 */
export async function inspectImage(
  environment: ImageEnvironment,
  text: string,
  options: { platform?: string | undefined },
): Promise<ImageInspection> {
  const { signal } = environment;
  const reference = parseReference(text);
  await using repository = await environment.openRepository(reference);
  const source = await resolveSource(repository, reference, {
    platform: options.platform === undefined
      ? undefined
      : parsePlatform(options.platform),
    signal,
  });
  const report = describeImage(text, formatRepository(reference), source);
  await addReferrers(report, repository, signal);
  let roles: LayerRole[] | undefined;
  try {
    roles = layerRoles(source.manifest);
    if (roles) {
      report.kind = roles.some((r) => r.kind === "turbo") ? "turbo" : "native";
    } else {
      const search = await inspectMeta(
        environment,
        repository,
        reference,
        source,
      );
      report.meta = search.report;
      roles = search.manifest && layerRoles(search.manifest);
    }
  } catch (error) {
    report.problem = problemOf(error);
  }
  const ofPlain = report.kind === "plain" ? source : undefined;
  const layers = roles ?? source.manifest.layers;
  const numbers = roles && ofPlain ? sourceNumbers(roles, ofPlain) : undefined;
  report.layers = await mapConcurrent(
    layers as readonly (LayerRole | Descriptor)[],
    CONCURRENCY,
    (layer, i) =>
      inspectOne(environment, repository, layer, numbers?.[i] ?? i, ofPlain),
  );
  const problem = report.layers.find((l) => l.problem)?.problem;
  if (problem) report.problem ??= problem;
  if (roles && !report.problem) {
    await addStack(environment, report, text, options.platform);
  }
  return report;
}

/** Inspects an overlaybd `config.v1.json`. */
export async function inspectConfigImage(
  environment: ImageEnvironment,
  file: string,
): Promise<ImageInspection> {
  const report: ImageInspection = {
    what: "image",
    name: file,
    kind: "config",
    layers: [],
    notes: [],
  };
  await addStack(environment, report, file, undefined);
  return report;
}

function describeImage(
  name: string,
  repository: string,
  source: SourceImage,
): ImageInspection {
  const { manifest, config, resolved, index } = source;
  const { created } = config.raw;
  return {
    what: "image",
    name,
    kind: "plain",
    repository,
    ...(index
      ? {
        index: {
          digest: index.resolved.descriptor.digest,
          mediaType: index.resolved.descriptor.mediaType,
          platforms: index.index.manifests.map((m) =>
            m.platform ? formatPlatform(m.platform) : "none"
          ),
        },
      }
      : {}),
    manifest: {
      digest: resolved.descriptor.digest,
      mediaType: resolved.descriptor.mediaType,
      size: resolved.bytes.length,
      ...(manifest.artifactType ? { artifactType: manifest.artifactType } : {}),
      annotations: manifest.annotations,
    },
    ...(manifest.subject ? { subject: nameOf(manifest.subject) } : {}),
    config: {
      digest: manifest.config.digest,
      size: manifest.config.size,
      platform: formatPlatform(config.platform),
      ...(typeof created === "string" ? { created } : {}),
    },
    layers: [],
    notes: [],
  };
}

/** For each meta layer the source layer that it is a part of, from 0; -1 is below all of them. */
function sourceNumbers(
  roles: readonly LayerRole[],
  { manifest }: SourceImage,
): number[] {
  const groups = layerGroups(roles);
  const first = groups.length > manifest.layers.length ? -1 : 0;
  return groups.flatMap((group, i) => group.map(() => first + i));
}

function nameOf({ digest, mediaType, size }: Descriptor) {
  return { digest, mediaType, size };
}

async function addReferrers(
  report: ImageInspection,
  repository: Repository,
  signal: AbortSignal | undefined,
): Promise<void> {
  try {
    const found = await repository.referrers(
      report.manifest!.digest,
      undefined,
      { signal },
    );
    report.referrers = found.slice(0, REFERRERS_MAX).map((r) => ({
      digest: r.digest,
      ...(r.artifactType ? { artifactType: r.artifactType } : {}),
      size: r.size,
    }));
    if (found.length > REFERRERS_MAX) {
      report.notes.push(`${found.length} referrers, ${REFERRERS_MAX} shown`);
    }
  } catch (error) {
    report.notes.push(`referrers: ${problemOf(error).message}`);
  }
}

/** One layer: a role of an image that obd can open, or a plain descriptor. */
async function inspectOne(
  environment: ImageEnvironment,
  repository: Repository,
  layer: LayerRole | Descriptor,
  index: number,
  plain: SourceImage | undefined,
): Promise<LayerInspection> {
  const { signal } = environment;
  if (signal?.aborted) throw new CancelledError();
  const report = startLayer(layer, index, plain);
  try {
    report.present = await repository.hasBlob(report.digest, { signal });
    if ("kind" in layer) {
      if (layer.kind === "turbo") {
        await addMeta(report, repository, layer, signal);
      } else if (layer.kind === "native" && report.present) {
        await addNative(environment, report, repository, layer.descriptor);
      }
    }
    if (!report.present) {
      throw new NotFoundError(
        `Layer ${report.number} (${report.digest}) is not in ${repository.name}`,
      );
    }
  } catch (error) {
    report.problem ??= problemOf(error);
  }
  return report;
}

function startLayer(
  layer: LayerRole | Descriptor,
  index: number,
  plain: SourceImage | undefined,
): LayerInspection {
  const number = index + 1;
  const diffId = plain?.config.diffIds[index];
  // Of a plain image, the image itself tells about its layers, not the meta image.
  const own = plain?.manifest.layers[index];
  const base = own && { ...nameOf(own), ...(diffId ? { diffId } : {}) };
  if (!("kind" in layer)) {
    return { number, kind: "plain", ...nameOf(layer), ...base };
  }
  const part = layer.kind !== "acceleration" && layer.part
    ? { part: layer.part }
    : {};
  if (layer.kind !== "turbo") {
    const { kind, descriptor } = layer;
    return { number, ...part, kind, ...nameOf(descriptor) };
  }
  return {
    number,
    ...part,
    kind: "turbo",
    digest: layer.targetDigest,
    mediaType: layer.targetMediaType,
    ...(layer.targetSize === undefined ? {} : { size: layer.targetSize }),
    ...base,
  };
}

async function addMeta(
  report: LayerInspection,
  repository: Repository,
  role: LayerRole & { kind: "turbo" },
  signal: AbortSignal | undefined,
): Promise<void> {
  const { digest, size } = role.descriptor;
  report.meta = { digest, size, parts: [] };
  const blob = await fetchMetaBlob(repository, role.descriptor, signal);
  const content: FileReport = {
    ...newReport("meta-blob", "TurboOCI meta blob", { size }),
    parts: report.meta.parts,
  };
  await inspectMembers(content, blob.members, { signal });
  const spans = content.parts.find((p) => p.name === "obd.spans")?.report;
  const map = content.parts[0]?.report.parts[0]?.report.facts;
  report.integrity = spans ? "spans" : "none";
  if (map) report.map = map;
  const blobSize = spans?.facts.blobSize;
  if (typeof blobSize === "number") report.size ??= blobSize;
  const problem = firstProblem(content);
  if (problem) report.problem = problem;
  const named = spans?.facts.blobDigest;
  if (!problem && named !== undefined && named !== report.digest) {
    report.problem = {
      code: "integrity",
      message: `obd.spans is of layer ${named}, the target is ${report.digest}`,
    };
  }
  if (report.present && report.size === undefined) {
    report.size = await repository.blobSize(report.digest, { signal });
  }
}

async function addNative(
  environment: ImageEnvironment,
  report: LayerInspection,
  repository: Repository,
  descriptor: Descriptor,
): Promise<void> {
  const layer = await openLayer(
    new CachedSource(await repository.openBlob(descriptor), {
      key: descriptor.digest,
      blockSize: environment.blobBlockSize,
    }),
    "native",
  );
  try {
    report.map = summarizeLayer(layer);
    report.integrity = layer.containers.includes("zfile")
      ? "block-crc"
      : "none";
  } finally {
    await layer.data[Symbol.asyncDispose]();
  }
}

/** Opens the image as `serve` would, to show what would serve it. */
async function addStack(
  environment: ImageEnvironment,
  report: ImageInspection,
  text: string,
  platform: string | undefined,
): Promise<void> {
  const log = new NoteLogger();
  try {
    await using image = await openImage({ ...environment, log }, text, {
      platform,
      metaFrom: ["digest", "tag", "referrer"],
    });
    report.device = {
      size: image.source.size,
      segments: image.source.table.count,
      integrity: image.integrity,
    };
    if (report.kind === "config") {
      report.layers = image.layers.map(configLayer);
    }
    const stack = stackOf(image);
    if (stack) report.stack = stack;
    report.notes.push(
      ...new Set(log.notes.filter((n) => !report.meta?.ignored.includes(n))),
    );
  } catch (error) {
    report.problem ??= problemOf(error);
  }
}

function configLayer(info: LayerInfo, index: number): LayerInspection {
  return {
    number: index + 1,
    kind: info.kind,
    digest: info.digest,
    mediaType: "",
    size: info.size,
    present: true,
    integrity: info.integrity,
    ...(info.metaSize === undefined ? {} : {
      meta: { digest: "", size: info.metaSize, parts: [] },
    }),
  };
}

/** From an image's name to a readable device. */

import {
  type ByteSource,
  errorText,
  FormatError,
  IntegrityError,
  mapConcurrent,
  ObdError,
} from "../io/mod.ts";
import {
  CachedSource,
  type Integrity,
  type LayerServices,
  LsmtSource,
  openLayer,
  openTurboLayer,
  openTurboPart,
  READAHEAD_BYTES,
  type StackLayer,
  stackVirtualSize,
  type TraceRecord,
  uncheckedKey,
} from "../layers/mod.ts";
import {
  type Descriptor,
  parsePlatform,
  parseReference,
  type Repository,
} from "../registry/mod.ts";
import { isConfigFile } from "./config_file.ts";
import type { ImageEnvironment } from "./environment.ts";
import type { MetaWay } from "./find_meta.ts";
import { MetaBlobs } from "./meta_blobs.ts";
import { layerGroups, type LayerRole } from "./meta_image.ts";
import { openConfigImage } from "./overlaybd_config.ts";
import { type OpenPlan, planOpen } from "./open_plan.ts";
import type { TargetRecord } from "./prefetch_plan.ts";
import { TraceFinder } from "./trace_finder.ts";

/** Integrity levels, weakest first. */
const LEVELS = ["none", "block-crc", "spans"] as const;
/** Layers whose indexes are fetched at once. */
const FETCH_CONCURRENCY = 8;

/** Options of {@linkcode openImage}. */
export interface OpenImageOptions {
  /** `OS/ARCH[/VARIANT]` of an index; default this machine's. */
  platform?: string | undefined;
  /** Where a plain image's meta image may come from, in any order; default: all ways. */
  metaFrom?: readonly MetaWay[] | undefined;
  /** Refuse images with layers that cannot be checked span by span. */
  requireSpans?: boolean | undefined;
  /** The image is the path of a `config.v1.json`, whatever it looks like. */
  isConfigFile?: boolean | undefined;
  /** Write the `resultFile` that a `config.v1.json` names, as overlaybd's service does for a device. */
  writesResult?: boolean | undefined;
  /** Look for traces that belong to the image while it opens, so that {@linkcode OpenedImage.traces} has them sooner. */
  traces?: boolean | undefined;
}

/** One layer of an opened image. */
export interface LayerInfo {
  /** Digest of the blob that the content comes from. */
  digest: string;
  kind: "turbo" | "native";
  integrity: Integrity;
  /** Bytes of that blob. */
  size: number;
  /** Bytes of the meta blob, for TurboOCI. */
  metaSize?: number;
}

/** A readable image. */
export interface OpenedImage extends AsyncDisposable {
  /** What was asked for. */
  name: string;
  /** The merged device. */
  source: LsmtSource;
  layers: LayerInfo[];
  /** The lowest level over all layers. */
  integrity: Integrity;
  /** Digest of the plain image's manifest, where known. */
  sourceDigest?: string;
  /** Digest of the meta image's manifest, where there is one. */
  metaDigest?: string;
  /** What authors of layers marked as needed soonest (eStargz), bottom first. */
  marked: readonly TargetRecord[];
  /**
   * What somebody recorded of this image and left with it: paths of files of
   * the image and ranges, in the order of first need. Empty if nothing, or
   * nothing usable, is there; then the log tells why.
   *
   * @throws {CancelledError} When the signal is aborted.
   */
  traces(signal?: AbortSignal): Promise<RecordedReads>;
}

/** What to fetch ahead. */
export interface RecordedReads {
  records: readonly TraceRecord[];
  /** Content of a file list (`file_list.ts`); undefined if there is none. */
  fileList?: string | undefined;
}

/** One layer as it was opened. */
export interface OpenedStackLayer extends StackLayer {
  virtualSize: number;
  /** Bytes at the start of the target that its author marked as needed soonest. */
  prefetchBytes?: number;
  info: LayerInfo;
}

/**
 * Opens a meta image, an overlaybd image, an overlaybd `config.v1.json`, or a
 * plain image whose meta image is looked up, else built in memory.
 *
 * @throws {NotFoundError} If the image, or every allowed way to a meta image, is missing.
 */
export async function openImage(
  environment: ImageEnvironment,
  text: string,
  options: OpenImageOptions = {},
): Promise<OpenedImage> {
  const image = options.isConfigFile || isConfigFile(text)
    ? await openConfigImage(environment, text, options)
    : await openReference(environment, text, options);
  if (options.requireSpans && image.integrity !== "spans") {
    const weak = image.layers.findIndex((l) => l.integrity !== "spans");
    const { digest, integrity } = image.layers[weak]!;
    await image[Symbol.asyncDispose]();
    throw new IntegrityError(
      `Integrity of layer ${weak + 1} (${digest})`,
      "spans",
      integrity,
    );
  }
  environment.log.info("image opened", {
    image: text,
    size: image.source.size,
    layers: image.layers.length,
    integrity: image.integrity,
    source: image.sourceDigest,
    meta: image.metaDigest,
  });
  if (image.integrity !== "spans") {
    environment.log.warn("served bytes cannot be checked span by span", {
      image: text,
      integrity: image.integrity,
    });
  }
  return image;
}

/**
 * Looks whether an image can be there at all, by its name.
 *
 * @throws {UsageError} If not, or if the platform is none.
 */
export function checkImageName(image: string, platform?: string): void {
  if (isConfigFile(image)) return;
  parseReference(image);
  if (platform !== undefined) parsePlatform(platform);
}

async function openReference(
  environment: ImageEnvironment,
  text: string,
  options: OpenImageOptions,
): Promise<OpenedImage> {
  const reference = parseReference(text);
  await using stack = new AsyncDisposableStack();
  const repository = stack.use(await environment.openRepository(reference));
  using blobs = new MetaBlobs(environment, repository);
  const place = { environment, repository, reference, blobs };
  let finder: TraceFinder | undefined;
  const plan = await planOpen(place, options, (subject) => {
    finder = stack.use(new TraceFinder(environment, repository, subject));
    if (options.traces) finder.start();
  });
  const layers = await openLayers(environment, repository, plan, blobs);
  const owned = stack.move();
  const image = makeImage(text, layers, owned, plan);
  image.traces = (signal) => finder!.find(image, plan.roles, signal);
  return image;
}

/** Opens all layers at once; a failure disposes of those that opened. */
async function openLayers(
  environment: ImageEnvironment,
  repository: Repository,
  plan: OpenPlan,
  blobs: MetaBlobs,
): Promise<OpenedStackLayer[]> {
  const groups = layerGroups(plan.roles);
  if (groups.length === 0) throw new FormatError("image", "layers", "are none");
  const roles = groups.flat();
  const results = await mapConcurrent(
    groups,
    FETCH_CONCURRENCY,
    async (group) => {
      const parts: (OpenedStackLayer | { error: unknown })[] = [];
      for (const role of group) {
        try {
          const first = parts[0] as OpenedStackLayer | undefined;
          const members = plan.members?.[roles.indexOf(role)];
          parts.push(
            role.kind === "turbo"
              ? await openTurbo(
                environment,
                repository,
                role,
                members ?? (await blobs.fetch(role.descriptor)).members,
                first,
              )
              : await openNative(environment, repository, role.descriptor),
          );
        } catch (error) {
          parts.push({ error });
          break;
        }
      }
      return parts;
    },
  );
  const all = results.flat();
  const layers = all.filter((r): r is OpenedStackLayer => !("error" in r));
  const failed = results.findIndex((parts) => parts.some((p) => "error" in p));
  if (failed < 0) return layers;
  for (const layer of layers) await disposeLayer(layer);
  const { error } = results[failed]!.at(-1) as { error: unknown };
  if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
  const { digest } = groups[failed]![results[failed]!.length - 1]!.descriptor;
  throw new ObdError(
    error.code,
    `Layer ${failed + 1} of ${groups.length} (${digest}): ${errorText(error)}`,
    { cause: error },
  );
}

/**
 * Opens one part of a TurboOCI layer.
 *
 * @param first The layer's first part, if this is another: the parts of a layer
 * have the same target and the same index of it, which is opened once.
 */
async function openTurbo(
  environment: ImageEnvironment,
  repository: Repository,
  role: LayerRole & { kind: "turbo" },
  members: ReadonlyMap<string, Uint8Array>,
  first: OpenedStackLayer | undefined,
): Promise<OpenedStackLayer> {
  const { signal } = environment;
  const metaSize = role.descriptor.size;
  if (first?.target) {
    const part = await openTurboPart(members);
    // Disposed of with each part; the first time counts.
    const { target, info } = first;
    return { ...part, target, info: { ...info, metaSize } };
  }
  const layer = await openTurboLayer(members, {
    digest: role.targetDigest,
    mediaType: role.targetMediaType,
    origin: repository.name,
    open: async (size) => {
      const known = size ?? role.targetSize;
      return await repository.openBlob({
        mediaType: role.targetMediaType,
        digest: role.targetDigest,
        size: known ?? await repository.blobSize(role.targetDigest, { signal }),
      });
    },
  }, servicesOf(environment));
  return {
    ...layer,
    prefetchBytes: role.prefetchBytes,
    info: {
      digest: role.targetDigest,
      kind: "turbo",
      integrity: layer.integrity,
      size: layer.targetSize,
      metaSize,
    },
  };
}

async function openNative(
  environment: ImageEnvironment,
  repository: Repository,
  descriptor: Descriptor,
): Promise<OpenedStackLayer> {
  return await openNativeBlob(
    environment,
    await repository.openBlob(descriptor),
    { origin: repository.name, digest: descriptor.digest },
  );
}

/**
 * Opens a native layer blob; owns `blob`.
 *
 * @param from Where it comes from, and its digest.
 */
export async function openNativeBlob(
  environment: ImageEnvironment,
  blob: ByteSource,
  from: { origin: string; digest: string },
): Promise<OpenedStackLayer> {
  const { size } = blob;
  const { origin, digest } = from;
  const layer = await openLayer(
    new CachedSource(blob, {
      key: uncheckedKey(origin, digest),
      store: environment.blobStore,
      blockSize: environment.blobBlockSize,
      readaheadBytes: READAHEAD_BYTES,
      stats: environment.readStats,
    }),
    "native",
  );
  return {
    table: layer.table,
    data: layer.data,
    virtualSize: layer.virtualSize,
    info: {
      digest,
      kind: "native",
      integrity: layer.containers.includes("zfile") ? "block-crc" : "none",
      size,
    },
  };
}

/** What layers share, out of the environment. */
export function servicesOf(environment: ImageEnvironment): LayerServices {
  return {
    inflater: environment.inflater,
    spanCache: environment.spanCache,
    pinnedStore: environment.pinnedStore,
    blobStore: environment.blobStore,
    blobBlockSize: environment.blobBlockSize,
    logger: environment.log,
    readStats: environment.readStats,
  };
}

/** Puts layers on each other. Owns the layers and `owned`. */
export function makeImage(
  name: string,
  layers: OpenedStackLayer[],
  owned: AsyncDisposable,
  digests: {
    sourceDigest?: string | undefined;
    metaDigest?: string | undefined;
  },
): OpenedImage {
  const source = new LsmtSource(layers, stackVirtualSize(layers));
  const levels = layers.map((layer) => layer.info.integrity);
  return {
    name,
    source,
    layers: layers.map((layer) => layer.info),
    integrity: LEVELS.find((level) => levels.includes(level))!,
    marked: layers.flatMap(({ target, prefetchBytes = 0 }, layer) => {
      const length = Math.min(prefetchBytes, target?.size ?? 0);
      return target && length > 0 ? [{ layer, target, offset: 0, length }] : [];
    }),
    ...(digests.sourceDigest ? { sourceDigest: digests.sourceDigest } : {}),
    ...(digests.metaDigest ? { metaDigest: digests.metaDigest } : {}),
    traces: () => Promise.resolve({ records: [] }),
    async [Symbol.asyncDispose]() {
      await source[Symbol.asyncDispose]();
      await owned[Symbol.asyncDispose]();
    },
  };
}

/** Lets go of a layer that did not get into a stack. */
export async function disposeLayer(layer: OpenedStackLayer): Promise<void> {
  await layer.target?.[Symbol.asyncDispose]();
  await layer.data[Symbol.asyncDispose]();
}

/** `obd build`: from a reference to a pushed meta image, all platforms or one. */

import {
  errorText,
  FileSource,
  ObdError,
  Scratch,
  UnsupportedError,
  UsageError,
  utf8,
} from "../io/mod.ts";
import type { LayerBreakdown } from "../layers/mod.ts";
import {
  blobFromBytes,
  blobFromRepository,
  blobFromSource,
  type Descriptor,
  formatReference,
  formatRepository,
  indexImages,
  MediaType,
  parseManifest,
  parsePlatform,
  parseReference,
  type Reference,
  referenceTarget,
  RegistryError,
  type Repository,
  withTarget,
} from "../registry/mod.ts";
import {
  Annotation,
  META_FORMAT_VERSION,
  NATIVE_ARTIFACT_TYPE,
  TURBO_ARTIFACT_TYPE,
} from "./annotations.ts";
import { openBase } from "./base.ts";
import {
  type BuildFormat,
  buildFormats,
  type BuiltImage,
  type LayerReport,
  sizeOf,
} from "./build.ts";
import {
  checkTargets,
  chooseDestination,
  copyIndex,
  copySource,
  type Destination,
  shortDigest,
} from "./destination.ts";
import { chainTag } from "./chain_key.ts";
import type { ConversionDatabase } from "./dedup/database.ts";
import { GuardedDatabase } from "./dedup/guard.ts";
import { recordImage } from "./dedup/record.ts";
import type { ImageEnvironment } from "./environment.ts";
import { ReuseFinder } from "./find_reusable.ts";
import type { NativeParameters } from "./native_convert.ts";
import type { ReuseOrigin } from "./reuse.ts";
import {
  checkLayers,
  resolveIndexEntry,
  resolveSource,
  type SourceImage,
  warnOfPlatform,
} from "./source.ts";
import { openTarget } from "./target.ts";

/** What the tags of images end with, where nobody names them. */
export const TAG_ENDING: Record<BuildFormat, string> = {
  turbo: "-obd",
  overlaybd: "-overlaybd",
};

/** Options of {@linkcode publishImage}. */
export interface PublishOptions {
  source: string;
  dest?: string | undefined;
  /** Bytes of the device; default 64 GiB. */
  virtualSize?: number | undefined;
  platform?: string | undefined;
  allPlatforms?: boolean | undefined;
  flatten?: boolean | undefined;
  /** Uncompressed bytes of a span at most; default what suits each layer. */
  spanSize?: number | undefined;
  /** False: push by digest only. */
  tag?: string | false | undefined;
  /** False: leave the referrers fallback tag alone. */
  referrer?: boolean | undefined;
  jobs?: number | undefined;
  dryRun?: boolean | undefined;
  /** Default TurboOCI only; the first one gets the name that was asked for. */
  formats?: readonly BuildFormat[] | undefined;
  /** Make layers native that TurboOCI cannot read. */
  compat?: boolean | undefined;
  /** Make layers native that can only be decoded from their start. */
  convertUnseekable?: boolean | undefined;
  /** How native layers are stored. */
  native?: NativeParameters | undefined;
  /** Media types of native images; Docker's have no subject. */
  nativeTypes?: "oci" | "docker" | undefined;
  /** Conversions that others made, and where ours are noted; borrowed. */
  database?: ConversionDatabase | undefined;
  /** Nobody asked for the database: that it cannot be used is worth no warning. */
  isDefaultDatabase?: boolean | undefined;
  /** An image of the source's lower layers that was converted by any tool, to go on from. */
  base?: string | undefined;
  /** Map entries of one layer at most; default what readers take. For tests. */
  maxEntries?: number | undefined;
}

/** What was built for one platform in one format. */
export interface PlatformReport {
  format: BuildFormat;
  source: { reference: string; digest: string };
  meta: { reference: string; digest: string; size: number };
  platform: string;
  layers: readonly LayerReport[];
  breakdown: LayerBreakdown;
  warnings: readonly string[];
  seconds: number;
}

/** What `obd build` did. */
export interface PublishReport {
  /** By platform, then by format. */
  platforms: PlatformReport[];
  /** The meta index, where all platforms of an index were built; of the first format. */
  index?: IndexReport;
  /** Of every format. */
  indexes?: IndexReport[];
}

/** A pushed index. */
export interface IndexReport {
  format: BuildFormat;
  reference: string;
  digest: string;
}

/** Builds meta images and pushes them, unless it is a dry run. */
export async function publishImage(
  environment: ImageEnvironment,
  options: PublishOptions,
): Promise<PublishReport> {
  const database = options.database && new GuardedDatabase(options.database, {
    log: environment.log,
    signal: environment.signal,
    isDefault: options.isDefaultDatabase,
    readOnly: options.dryRun,
  });
  try {
    return await publishWith(environment, options, database);
  } catch (error) {
    if (!(error instanceof LostLayerError)) throw error;
    environment.log.warn("building without layers of other repositories", {
      reason: errorText(error),
    });
    return await publishWith(environment, options, undefined);
  }
}

/** A layer of another repository could not be had when it was to be pushed. */
class LostLayerError extends ObdError {
  constructor(repository: string, cause: unknown) {
    super("registry", `Cannot take a layer over from "${repository}"`, {
      cause,
    });
  }
}

async function publishWith(
  environment: ImageEnvironment,
  options: PublishOptions,
  database: GuardedDatabase | undefined,
): Promise<PublishReport> {
  const reference = parseReference(options.source);
  await using repository = await environment.openRepository(reference);
  const sources = await resolveAll(environment, repository, reference, options);
  const index = options.allPlatforms ? sources[0]!.index : undefined;
  const root = index?.resolved ?? sources[0]!.resolved;
  const formats = [...new Set(options.formats ?? ["turbo" as const])];
  const { base } = options;
  if (base !== undefined && options.flatten) {
    throw new UsageError("--base and --flatten exclude each other");
  }
  const destinations = formats.map((format, i) =>
    chooseDestination(
      reference,
      root.descriptor.digest,
      options.dest,
      options.tag,
      TAG_ENDING[format],
      i > 0,
    )
  );
  const destination = destinations[0]!;
  await using target = await openTarget(
    environment,
    destination.reference,
    options.dryRun ?? false,
  );
  await using finder = new ReuseFinder(
    environment,
    target.existing,
    destination.reference,
    database,
  );
  // Also the last of them, before the first is built.
  for (const source of sources) checkLayers(source);
  await using scratch = await makeScratch();
  const images: BuiltImage[] = [];
  await locate(`Building in "${scratch.path}" (TMPDIR)`, async () => {
    for (const [i, source] of sources.entries()) {
      images.push(
        ...await buildFormats(environment, source, {
          virtualSize: options.virtualSize,
          flatten: options.flatten,
          spanSize: options.spanSize,
          jobs: options.jobs,
          formats,
          compat: options.compat,
          convertUnseekable: options.convertUnseekable,
          native: options.native,
          nativeTypes: options.nativeTypes,
          maxEntries: options.maxEntries,
          scratch: `${scratch.path}/${i}`,
          reuse: finder,
          base: base === undefined
            ? undefined
            : (source) => openBase(finder, base, source, destination.reference),
        }),
      );
    }
  });
  const place = (image: BuiltImage) => {
    const at = destinations[formats.indexOf(image.format)]!;
    return index ? { ...at, tag: undefined } : at;
  };
  const report: PublishReport = {
    platforms: images.map((image) => platformReport(image, place(image))),
  };
  if (options.dryRun) return report;
  // Nothing is pushed, and no layout made, before everything is built.
  const name = formatRepository(destination.reference);
  await locate(`Writing to ${name}`, async () => {
    const repository = await target.make();
    const publisher = new Publisher(
      environment,
      repository,
      finder,
      options,
    );
    for (const image of images) await publisher.pushBlobs(image, destination);
    for (const image of images) {
      await publisher.pushManifests(image, place(image).tag);
      // What stands on layers of other tools is no answer to others' questions.
      if (finder.database && finder.place && base === undefined) {
        await recordImage(finder.database, finder.place, image);
      }
    }
    if (!index) return;
    report.indexes = [];
    for (const [i, format] of formats.entries()) {
      const own = images.filter((image) => image.format === format);
      report.indexes.push(
        await publisher.pushIndex(own, destinations[i]!),
      );
    }
    report.index = report.indexes[0]!;
  });
  return report;
}

async function makeScratch(): Promise<Scratch> {
  return await locate(
    "Making a temporary directory (TMPDIR)",
    () => Scratch.make("obd-build-"),
  );
}

async function resolveAll(
  environment: ImageEnvironment,
  repository: Repository,
  reference: Reference,
  options: PublishOptions,
): Promise<SourceImage[]> {
  const { signal } = environment;
  if (!options.allPlatforms) {
    const platform = options.platform === undefined
      ? undefined
      : parsePlatform(options.platform);
    const image = await resolveSource(repository, reference, {
      platform,
      signal,
    });
    warnOfPlatform(environment.log, image, platform);
    return [image];
  }
  const resolved = await repository.resolve(referenceTarget(reference), {
    signal,
  });
  const manifest = parseManifest(resolved.bytes, resolved.descriptor.mediaType);
  if (manifest.kind === "image") {
    return [await resolveSource(repository, reference, { signal })];
  }
  const index = { resolved, index: manifest };
  const images: SourceImage[] = [];
  for (const entry of indexImages(manifest)) {
    images.push(
      await resolveIndexEntry(repository, reference, index, entry, signal),
    );
  }
  if (images.length === 0) {
    throw new UnsupportedError(
      "empty index",
      `Index "${formatReference(reference)}" has no images`,
    );
  }
  return images;
}

/** Says where it was when the system refuses something, such as that the disk is full. */
async function locate<T>(doing: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const isSystem = error instanceof Error && "code" in error &&
      !(error instanceof ObdError);
    if (!isSystem) throw error;
    throw new ObdError("state", `${doing} failed`, { cause: error });
  }
}

function platformReport(
  image: BuiltImage,
  destination: Destination,
): PlatformReport {
  const { tag } = destination;
  const { digest } = image.documents.manifest.descriptor;
  return {
    format: image.format,
    source: {
      reference: formatReference(image.source.reference),
      digest: image.source.resolved.descriptor.digest,
    },
    meta: {
      reference: formatReference(
        withTarget(
          destination.reference,
          tag === undefined ? { digest } : { tag },
        ),
      ),
      digest,
      size: image.layers.reduce((sum, layer) => sum + sizeOf(layer), 0),
    },
    platform: image.platform,
    layers: image.layerReports,
    breakdown: image.breakdown,
    warnings: image.warnings,
    seconds: image.seconds,
  };
}

class Publisher {
  readonly #environment: ImageEnvironment;
  readonly #target: Repository;
  readonly #finder: ReuseFinder;
  readonly #referrer: boolean;
  readonly #nativeTypes: "oci" | "docker" | undefined;

  constructor(
    environment: ImageEnvironment,
    target: Repository,
    finder: ReuseFinder,
    options: PublishOptions,
  ) {
    this.#environment = environment;
    this.#target = target;
    this.#finder = finder;
    this.#referrer = options.referrer ?? true;
    this.#nativeTypes = options.nativeTypes;
  }

  /** Everything that nobody sees before the manifest is there. */
  async pushBlobs(image: BuiltImage, destination: Destination): Promise<void> {
    const { signal } = this.#environment;
    // Native layers point to nothing.
    const targets = image.source.manifest.layers.filter((_, i) =>
      image.layers[i]?.kind === "turbo"
    );
    if (!destination.isSource && targets.length > 0) {
      await copySource(this.#environment, image.source, this.#target);
    }
    await checkTargets(this.#target, targets, signal);
    let at = 0;
    if (image.floor) {
      await this.#takeOver(image.documents.layers[at++]!, image.floor.from);
    }
    for (const layer of image.layers) {
      for (const part of layer.parts) {
        const descriptor = image.documents.layers[at++]!;
        if ("path" in part) await this.#pushLayer(descriptor, part.path);
        else if (layer.reused) await this.#takeOver(descriptor, layer.from);
      }
    }
    const { descriptor, bytes } = image.documents.config;
    await this.#target.pushBlob(descriptor, blobFromBytes(bytes), { signal });
  }

  /** Mounts a blob of another repository of the registry; where that is refused, copies it. */
  async #takeOver(descriptor: Descriptor, from: ReuseOrigin): Promise<void> {
    const { elsewhere } = from;
    if (!elsewhere) return;
    const { signal } = this.#environment;
    const source = await this.#finder.open({
      host: elsewhere.registry,
      repository: elsewhere.repository,
    });
    const content = blobFromRepository(source, descriptor);
    await this.#target.pushBlob(descriptor, {
      async *open(offset) {
        try {
          yield* content.open(offset);
        } catch (error) {
          signal?.throwIfAborted();
          throw new LostLayerError(from.repository, error);
        }
      },
    }, { mountFrom: [elsewhere.repository], signal });
  }

  async #pushLayer(descriptor: Descriptor, path: string): Promise<void> {
    const { signal, progress } = this.#environment;
    await using file = await FileSource.open(path);
    const task = progress.start(
      `push ${shortDigest(descriptor)}`,
      descriptor.size,
    );
    let sent = 0;
    try {
      await this.#target.pushBlob(descriptor, blobFromSource(file), {
        signal,
        onProgress: (bytes) => {
          task.add(bytes - sent);
          sent = bytes;
        },
      });
    } finally {
      task.done();
    }
  }

  /** The chain's tags first, the name that people use last. */
  async pushManifests(
    image: BuiltImage,
    tag: string | undefined,
  ): Promise<void> {
    const { signal } = this.#environment;
    const { descriptor, bytes } = image.documents.manifest;
    const push = (name: string | undefined, referrer: boolean) =>
      this.#target.pushManifest(bytes, descriptor.mediaType, name, {
        signal,
        referrer,
      });
    for (const { key } of image.chains) {
      try {
        await push(chainTag(key), false);
      } catch (error) {
        if (!(error instanceof RegistryError) || error.temporary) throw error;
        // Where tags must not change, that of an earlier image is as good.
        this.#environment.log.info("the tag of a chain is left as it is", {
          tag: chainTag(key),
          reason: errorText(error),
        });
      }
    }
    await push(tag, this.#referrer);
  }

  async pushIndex(
    images: readonly BuiltImage[],
    destination: Destination,
  ): Promise<IndexReport> {
    const { format, source } = images[0]!;
    const isNative = format === "overlaybd";
    const isDocker = isNative && this.#nativeTypes === "docker";
    const type = isDocker ? MediaType.dockerList : MediaType.ociIndex;
    const { signal } = this.#environment;
    const { mediaType, digest, size } = source.index!.resolved.descriptor;
    const bytes = utf8(JSON.stringify({
      schemaVersion: 2,
      mediaType: type,
      ...(isDocker ? {} : {
        artifactType: isNative ? NATIVE_ARTIFACT_TYPE : TURBO_ARTIFACT_TYPE,
      }),
      // No artifactType: clients leave entries that have one out when they look for a platform.
      manifests: images.map((image) => {
        const { mediaType, digest, size } = image.documents.manifest.descriptor;
        return {
          mediaType,
          digest,
          size,
          platform: image.source.platform,
        };
      }),
      ...(isDocker ? {} : { subject: { mediaType, digest, size } }),
      annotations: { [Annotation.obdFormat]: String(META_FORMAT_VERSION) },
    }));
    // Of a native image the source's own manifests need not be there.
    if (!destination.isSource && !isNative) {
      await copyIndex(this.#environment, source, this.#target);
    }
    const pushed = await this.#target.pushManifest(
      bytes,
      type,
      destination.tag,
      { signal, referrer: this.#referrer },
    );
    return {
      format,
      reference: formatReference(
        withTarget(
          destination.reference,
          destination.tag === undefined
            ? { digest: pushed.digest }
            : { tag: destination.tag },
        ),
      ),
      digest: pushed.digest,
    };
  }
}

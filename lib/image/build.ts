/** The build pipeline of one image: its layers in, meta or native layers and documents out. Pushes nothing. */

import {
  DEFAULT_INODE_RATIO,
  DEFAULT_VIRTUAL_SIZE,
  DeviceFullError,
  type Emission,
  Ext4Model,
} from "../ext4/mod.ts";
import {
  errorText,
  formatSize,
  LimitError,
  ObdError,
  readBytes,
} from "../io/mod.ts";
import {
  type Bodies,
  type BuiltLayer,
  DEFAULT_SPAN_SIZE,
  ImageSpace,
  isLazyLayer,
  type LayerBlock,
  type LayerBreakdown,
  type LayerContent,
  layerContent,
  LayerStack,
  mergeTables,
  type OpenedLayer,
  scanInto,
  type ScannedLayer,
  stackLayer,
  writeMetaLayer,
} from "../layers/mod.ts";
import { formatPlatform, type Repository } from "../registry/mod.ts";
import { chainKey, type ChainParameters, chainTag } from "./chain_key.ts";
import { shortDigest } from "./destination.ts";
import type { ImageEnvironment } from "./environment.ts";
import { type MetaDocuments, writeMetaDocuments } from "./meta_image.ts";
import {
  DEFAULT_NATIVE,
  logDiskNeed,
  NATIVE_SPAN_SIZE,
  NativeConverter,
  type NativeParameters,
} from "./native_convert.ts";
import {
  close,
  findReusableFormats,
  type ReusedLayers,
} from "./native_reuse.ts";
import type { ReusedLayer } from "./reuse.ts";
import { checkLayers, type SourceImage } from "./source.ts";

const GIB = 2 ** 30;

/** What `obd build` writes: TurboOCI meta images, or overlaybd-native images. */
export type BuildFormat = "turbo" | "overlaybd";

/** Options of {@linkcode buildImage}. */
export interface BuildOptions {
  /** Bytes of the device; default 64 GiB. */
  virtualSize?: number | undefined;
  /** All metadata in the top layer. */
  flatten?: boolean | undefined;
  /** Threads; default one per core. */
  jobs?: number | undefined;
  /** Default TurboOCI only. Several are built from one read of the source. */
  formats?: readonly BuildFormat[] | undefined;
  /** Make layers native that TurboOCI cannot read, so that every reader reads the image. */
  compat?: boolean | undefined;
  /** Make layers native that can only be decoded from their start. */
  convertUnseekable?: boolean | undefined;
  /** How native layers are stored. */
  native?: NativeParameters | undefined;
  /** Media types of a native image. */
  nativeTypes?: "oci" | "docker" | undefined;
  /** Directory for the meta blobs; made by this, removed by the caller. */
  scratch: string;
  /** Where layers that were built before may be found. */
  reuseFrom?: Repository | undefined;
  /** Map entries of one layer at most; default what readers take. For tests. */
  maxEntries?: number | undefined;
}

/** What was built for one layer. */
export interface LayerReport {
  digest: string;
  size: number;
  mediaType: string;
  /** Bytes of what it became. */
  metaSize: number;
  /** How many layers it became, where it was too much for one. */
  parts?: number;
  entries: number;
  spans: number;
  reused: boolean;
}

/** A complete meta image, or native image. */
export interface BuiltImage {
  format: BuildFormat;
  source: SourceImage;
  documents: MetaDocuments;
  /** In the order of the source's layers. */
  layers: readonly (BuiltLayer | ReusedLayer)[];
  /** Tags under which other builds find these layers. */
  chainTags: readonly string[];
  platform: string;
  layerReports: readonly LayerReport[];
  breakdown: LayerBreakdown;
  warnings: readonly string[];
  seconds: number;
}

/** Builds one image in one format. */
export async function buildImage(
  environment: ImageEnvironment,
  source: SourceImage,
  options: Omit<BuildOptions, "formats">,
): Promise<BuiltImage> {
  const [image] = await buildFormats(environment, source, options);
  return image!;
}

/** Builds one image in every format that is asked for, in that order. */
export async function buildFormats(
  environment: ImageEnvironment,
  source: SourceImage,
  options: BuildOptions,
): Promise<BuiltImage[]> {
  const started = performance.now();
  const formats: BuildFormat[] = [
    ...new Set(options.formats ?? ["turbo" as const]),
  ];
  checkLayers(source, environment.log);
  await Deno.mkdir(options.scratch, { recursive: true });
  const parameters = chainParameters(source, options);
  const hasNative = formats.includes("overlaybd") || options.compat ||
    options.convertUnseekable;
  using converter = hasNative
    ? new NativeConverter(environment, source, {
      parameters: options.native ?? DEFAULT_NATIVE,
      virtualSize: parameters.virtualSize,
      scratch: options.scratch,
      threads: options.jobs ?? navigator.hardwareConcurrency,
      maxEntries: options.maxEntries,
    })
    : undefined;
  if (converter) logDiskNeed(environment, source, options.scratch);
  const isMixed = options.compat || options.convertUnseekable;
  const reused: ReusedLayers = options.reuseFrom && !isMixed
    ? await findReusableFormats(
      environment,
      options.reuseFrom,
      source,
      formats,
      (format) => formatParameters(format, parameters, options),
    )
    : { turbo: [], overlaybd: [] };
  const reusedCount = reused[formats[0]!].length;
  await using stack = new LayerStack();
  // Either form shows the same device; meta layers are in memory.
  const [below, beside] = formats.includes("turbo")
    ? [reused.turbo, reused.overlaybd]
    : [reused.overlaybd, []];
  for (const { parts } of below) {
    for (const { opened } of parts) stack.add(opened);
  }
  await close(beside);
  const builder = new Builder(
    environment,
    source,
    { ...options, formats },
    parameters,
    stack,
    converter,
  );
  const built = parameters.flatten && reusedCount === 0
    ? await builder.buildFlat()
    : await builder.buildFrom(reusedCount);
  const seconds = (performance.now() - started) / 1000;
  return formats.map((format) =>
    describeImage(source, format, [...reused[format], ...built[format]], {
      ...options,
      parameters,
      warnings: builder.warnings,
      seconds,
    })
  );
}

function describeImage(
  source: SourceImage,
  format: BuildFormat,
  layers: readonly (BuiltLayer | ReusedLayer)[],
  facts: BuildOptions & {
    parameters: ChainParameters;
    warnings: readonly string[];
    seconds: number;
  },
): BuiltImage {
  const { warnings, seconds } = facts;
  const parameters = formatParameters(format, facts.parameters, facts);
  const count = source.manifest.layers.length;
  const documents = writeMetaDocuments(
    source,
    layers.map((layer, i) => ({
      ...layer,
      target: source.manifest.layers[i]!,
    })),
    chainKey(parameters, count),
    format === "overlaybd" ? facts.nativeTypes : "oci",
  );
  const prefixes = parameters.flatten
    ? [count]
    : Array.from({ length: count }, (_, i) => i + 1);
  return {
    format,
    source,
    documents,
    layers,
    chainTags: prefixes.map((n) => chainTag(chainKey(parameters, n))),
    platform: formatPlatform(source.config.platform),
    layerReports: layers.length === count
      ? layers.map((layer, i) => layerReport(source, layer, i))
      : [flatReport(source, layers[0]!)],
    breakdown: sumBreakdown(layers),
    warnings,
    seconds,
  };
}

/** The parameters that decide the bytes of a build. */
function chainParameters(
  source: SourceImage,
  options: BuildOptions,
): ChainParameters {
  return {
    diffIds: source.config.diffIds,
    layerDigests: source.manifest.layers.map((l) => l.digest),
    mediaTypes: source.manifest.layers.map((l) => l.mediaType),
    virtualSize: options.virtualSize ?? DEFAULT_VIRTUAL_SIZE,
    inodeRatio: DEFAULT_INODE_RATIO,
    spanSize: DEFAULT_SPAN_SIZE,
    flatten: options.flatten ?? false,
    maxEntries: options.maxEntries,
  };
}

/** The same with what one format adds. */
function formatParameters(
  format: BuildFormat,
  parameters: ChainParameters,
  options: BuildOptions,
): ChainParameters {
  const native = options.native ?? DEFAULT_NATIVE;
  if (format === "overlaybd") return { ...parameters, native };
  const { compat, convertUnseekable } = options;
  return compat || convertUnseekable
    ? { ...parameters, native, compat, convertUnseekable }
    : parameters;
}

/** Layers of each format, bottom first. */
type BuiltLayers = Record<BuildFormat, BuiltLayer[]>;

type BuilderOptions = BuildOptions & { formats: readonly BuildFormat[] };

class Builder {
  readonly warnings: string[] = [];
  readonly #environment: ImageEnvironment;
  readonly #source: SourceImage;
  readonly #options: BuilderOptions;
  readonly #parameters: ChainParameters;
  readonly #stack: LayerStack;
  readonly #converter: NativeConverter | undefined;

  constructor(
    environment: ImageEnvironment,
    source: SourceImage,
    options: BuilderOptions,
    parameters: ChainParameters,
    stack: LayerStack,
    converter: NativeConverter | undefined,
  ) {
    this.#environment = environment;
    this.#source = source;
    this.#options = options;
    this.#parameters = parameters;
    this.#stack = stack;
    this.#converter = converter;
  }

  /** Builds the layers from `first` on, each a delta on those below. */
  async buildFrom(first: number): Promise<BuiltLayers> {
    const { virtualSize } = this.#parameters;
    const count = this.#source.manifest.layers.length;
    const built: BuiltLayers = { turbo: [], overlaybd: [] };
    if (first === count) return built;
    const model = first === 0
      ? Ext4Model.create({ virtualSize })
      : await Ext4Model.load(this.#stack.device(), this.#stack.table());
    const space = new ImageSpace(model);
    for (let i = first; i < count; i++) {
      const bodies: Bodies = new Map();
      const scanned = await this.#scan(model, bodies, i, space);
      const emission = emit(model, i, space);
      if (emission === undefined) {
        this.#converter?.drop(i);
        continue;
      }
      const below = this.#stack.table();
      const content = layerContent(model, emission, bodies, i, below);
      // Readers take the lowest tag for the layer's own, so it must have one (overlaybd lsmt/file.cpp: open_warpfile_ro).
      const blocks = emission.blockCount === 0 && content.stored.length === 0
        ? [await this.#firstBlock()]
        : content.blocks;
      await this.#build(i, scanned, { map: content.map, blocks }, built);
    }
    this.#checkRoom(space);
    return built;
  }

  /**
   * Builds all layers so that the top one has all metadata and the others only
   * what survives of their bodies; natively they are one layer.
   */
  async buildFlat(): Promise<BuiltLayers> {
    const { virtualSize } = this.#parameters;
    const count = this.#source.manifest.layers.length;
    const model = Ext4Model.create({ virtualSize });
    const space = new ImageSpace(model);
    const bodies: Bodies = new Map();
    const scans: ScannedLayer[] = [];
    for (let i = 0; i < count; i++) {
      scans.push(await this.#scan(model, bodies, i, space));
    }
    const emission = emit(model, count - 1, space);
    this.#checkRoom(space);
    const [superblock] = emission!.blocks;
    const nothing = mergeTables([]);
    const built: BuiltLayers = { turbo: [], overlaybd: [] };
    const maps: (readonly OpenedLayer[])[] = [];
    for (let i = 0; i < count; i++) {
      const isTop = i === count - 1;
      const { map, blocks, stored } = layerContent(
        model,
        isTop ? emission : undefined,
        bodies,
        i,
        nothing,
      );
      const own: Iterable<LayerBlock> = isTop ? blocks : [
        { offset: superblock!.block * 4096, bytes: superblock!.bytes },
        ...stored,
      ];
      const content = { map, blocks: own };
      maps.push(await this.#build(i, scans[i]!, content, built, true));
    }
    if (this.#wants("overlaybd")) {
      built.overlaybd.push(await this.#converter!.convertFlat(scans, maps));
    }
    return built;
  }

  /**
   * Refuses an image that is too large, when all of its layers were counted.
   *
   * @throws {LimitError} With the layer, and the `--vsize` that fits.
   */
  #checkRoom(space: ImageSpace): void {
    if (space.fullLayer === undefined) return;
    const problem = `the image does not fit into a device of ${
      formatSize(space.virtualSize)
    }`;
    throw inLayer(
      new LimitError(
        `${problem}: use --vsize ${space.sufficientSize() / GIB}`,
      ),
      this.#layerName(space.fullLayer),
    );
  }

  #layerName(index: number): string {
    const { layers } = this.#source.manifest;
    return `Layer ${index + 1} of ${layers.length} (${layers[index]!.digest})`;
  }

  /** Short, for progress and warnings. */
  #taskName(index: number): string {
    const { layers } = this.#source.manifest;
    return `layer ${index + 1}/${layers.length} ${shortDigest(layers[index]!)}`;
  }

  async #firstBlock(): Promise<LayerBlock> {
    return {
      offset: 0,
      bytes: await readBytes(this.#stack.device(), 0, 4096),
    };
  }

  #wants(format: BuildFormat): boolean {
    return this.#options.formats.includes(format);
  }

  /**
   * Writes one layer in every format, and puts its map on the stack.
   *
   * @param isFlat Whether native layers come at the end, as one.
   * @returns The parts of its map.
   */
  async #build(
    index: number,
    scanned: ScannedLayer,
    content: LayerContent,
    built: BuiltLayers,
    isFlat = false,
  ): Promise<readonly OpenedLayer[]> {
    const device = {
      virtualSize: this.#parameters.virtualSize,
      maxEntries: this.#options.maxEntries,
    };
    const stack = this.#stack;
    const path = `${this.#options.scratch}/${index}.meta`;
    const { compression, members } = scanned.scan;
    const isTurbo = compression === "none" ||
      (compression === "gzip" && members === 1);
    const isLazy = isLazyLayer(scanned.scan);
    const { compat, convertUnseekable } = this.#options;
    const converts = compat && !isTurbo || convertUnseekable && !isLazy;
    const written = this.#wants("turbo") && !converts
      ? await writeMetaLayer(scanned, content, device, stack, path)
      : undefined;
    const turbo = written?.layer;
    const opened = written?.opened ??
      await stackLayer(content, device, stack, path);
    if (turbo && !isTurbo) this.#warnForeign(index, scanned);
    if (turbo && !isLazy) this.#warnUnseekable(index, scanned);
    const wantsNative = this.#wants("overlaybd") && !isFlat;
    const native = wantsNative || (this.#wants("turbo") && !turbo)
      ? await this.#converter!.convert(index, scanned, opened, !isFlat)
      : undefined;
    if (this.#wants("turbo")) built.turbo.push((turbo ?? native)!);
    if (wantsNative) built.overlaybd.push(native!);
    return opened;
  }

  /** Says what other readers refuse. */
  #warnForeign(index: number, { scan }: ScannedLayer): void {
    const kind = scan.compression === "zstd"
      ? "zstd"
      : `gzip of ${scan.members} members`;
    this.warnings.push(
      `${
        this.#taskName(index)
      }: it is ${kind}, which only obd can read as TurboOCI: overlaybd refuses the image; --compat overlaybd makes it native instead`,
    );
  }

  #warnUnseekable(index: number, { scan }: ScannedLayer): void {
    this.warnings.push(
      `${
        this.#taskName(index)
      }: its zstd frames are too large to be read at random, so that serving it first decodes it, ${
        formatSize(scan.tarSize)
      }, into a file in the span cache; --convert-unseekable makes it native instead`,
    );
  }

  async #scan(
    model: Ext4Model,
    bodies: Bodies,
    index: number,
    space: ImageSpace,
  ): Promise<ScannedLayer> {
    const { signal, progress } = this.#environment;
    const { repository, manifest, config } = this.#source;
    const layer = manifest.layers[index]!;
    const name = this.#taskName(index);
    const task = progress.start(name, layer.size);
    let received = 0;
    const spool = this.#converter?.spool(index);
    try {
      return await scanInto(model, bodies, index, space, {
        blob: repository.fetchBlob(layer, {
          signal,
          onProgress: (bytes) => {
            task.add(bytes - received);
            received = bytes;
          },
        }),
        digest: layer.digest,
        size: layer.size,
        mediaType: layer.mediaType,
        diffId: config.diffIds[index]!,
        spanSize: this.#wants("turbo")
          ? this.#parameters.spanSize
          : NATIVE_SPAN_SIZE,
        threads: this.#options.jobs ?? navigator.hardwareConcurrency,
        signal,
        warn: (message) => this.warnings.push(`${name}: ${message}`),
        tee: spool && ((bytes) => spool.push(bytes)),
      });
    } catch (error) {
      throw inLayer(error, this.#layerName(index));
    } finally {
      task.done();
    }
  }
}

/** What a layer changes on the device; undefined when it has no room. */
function emit(
  model: Ext4Model,
  layer: number,
  space: ImageSpace,
): Emission | undefined {
  if (space.fullLayer !== undefined) return undefined;
  try {
    return model.emit();
  } catch (error) {
    if (!(error instanceof DeviceFullError)) throw error;
    space.setFull(layer);
    return undefined;
  }
}

/** The same error with the layer's name in front. */
function inLayer(error: unknown, name: string): unknown {
  if (!(error instanceof ObdError) || error.code === "cancelled") return error;
  return new ObdError(error.code, `${name}: ${errorText(error)}`, {
    cause: error,
  });
}

function layerReport(
  source: SourceImage,
  layer: BuiltLayer | ReusedLayer,
  index: number,
): LayerReport {
  const { digest, size, mediaType } = source.manifest.layers[index]!;
  return {
    digest,
    size,
    mediaType,
    metaSize: sizeOf(layer),
    ...(layer.parts.length > 1 ? { parts: layer.parts.length } : {}),
    entries: layer.entryCount,
    spans: layer.spanCount,
    reused: layer.reused,
  };
}

/** Bytes of what a layer became. */
export function sizeOf({ parts }: BuiltLayer | ReusedLayer): number {
  return parts.reduce((sum, { size }) => sum + size, 0);
}

/** One layer for all of the source's. */
function flatReport(
  source: SourceImage,
  layer: BuiltLayer | ReusedLayer,
): LayerReport {
  const { layers } = source.manifest;
  return {
    ...layerReport(source, layer, layers.length - 1),
    size: layers.reduce((sum, { size }) => sum + size, 0),
  };
}

function sumBreakdown(
  layers: readonly (BuiltLayer | ReusedLayer)[],
): LayerBreakdown {
  const sum: LayerBreakdown = { fsMeta: 0, gzipIndex: 0, spans: 0 };
  for (const { breakdown } of layers) {
    sum.fsMeta += breakdown.fsMeta;
    sum.gzipIndex += breakdown.gzipIndex;
    sum.spans += breakdown.spans;
  }
  return sum;
}

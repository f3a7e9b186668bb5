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
import { formatPlatform } from "../registry/mod.ts";
import { chainKey, type ChainParameters } from "./chain_key.ts";
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
import type { BuildBase } from "./base.ts";
import {
  findReuse,
  type Floor,
  type Reuse,
  type ReuseFinder,
} from "./find_reusable.ts";
import {
  close,
  closeParts,
  type ReusedLayer,
  type ReuseOrigin,
} from "./reuse.ts";
import { checkLayers, type SourceImage, warnOfBase } from "./source.ts";

const GIB = 2 ** 30;

/** What `obd build` writes: TurboOCI meta images, or overlaybd-native images. */
export type BuildFormat = "turbo" | "overlaybd";

/** Options of {@linkcode buildImage}. */
export interface BuildOptions {
  /** Bytes of the device; default 64 GiB. */
  virtualSize?: number | undefined;
  /** All metadata in the top layer. */
  flatten?: boolean | undefined;
  /** Uncompressed bytes of a span at most; default what suits each layer. */
  spanSize?: number | undefined;
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
  /** Looks for layers that were built before; borrowed. */
  reuse?: ReuseFinder | undefined;
  /** Opens the converted layers to go on from, in place of those that `reuse` finds. */
  base?: ((source: SourceImage) => Promise<BuildBase>) | undefined;
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
  /** Whether it was built before. */
  reused: boolean;
  /** Where it was found then, and by what. */
  reusedFrom?: Pick<ReuseOrigin, "repository" | "by">;
}

/** A complete meta image, or native image. */
export interface BuiltImage {
  format: BuildFormat;
  source: SourceImage;
  documents: MetaDocuments;
  /** In the order of the source's layers. */
  layers: readonly (BuiltLayer | ReusedLayer)[];
  /** What another tool put below them. */
  floor?: Floor | undefined;
  /** Keys of the chains of its lowest layers, under which other builds find these; none on layers of other tools. */
  chains: readonly { key: string; count: number }[];
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
  checkLayers(source);
  warnOfBase(environment.log, source);
  await Deno.mkdir(options.scratch, { recursive: true });
  const base = await options.base?.(source);
  const parameters = chainParameters(source, {
    ...options,
    // A device has one size, whoever made its lower layers.
    virtualSize: base?.virtualSize ?? options.virtualSize,
  });
  const reuse = base
    ? { turbo: base.reuse, overlaybd: base.reuse }
    : await findFormats(environment, source, formats, {
      ...options,
      parameters,
    });
  const missing = formats.filter((format) =>
    reuse[format].count < source.manifest.layers.length
  );
  const hasNative = missing.includes("overlaybd") ||
    (missing.length > 0 && (options.compat || options.convertUnseekable));
  using converter = hasNative
    ? new NativeConverter(environment, source, {
      parameters: options.native ?? DEFAULT_NATIVE,
      virtualSize: parameters.virtualSize,
      onto: base?.top,
      scratch: options.scratch,
      threads: options.jobs ?? navigator.hardwareConcurrency,
      maxEntries: options.maxEntries,
    })
    : undefined;
  if (converter) logDiskNeed(environment, source, options.scratch);
  await using stack = new LayerStack();
  const first = await stackReused(stack, reuse, missing);
  const builder = new Builder(
    environment,
    source,
    { ...options, formats: missing },
    parameters,
    stack,
    converter,
    { turbo: reuse.turbo.count, overlaybd: reuse.overlaybd.count },
  );
  const built: BuiltLayers = missing.length === 0
    ? { turbo: [], overlaybd: [] }
    : parameters.flatten
    ? await builder.buildFlat()
    : await builder.buildFrom(first);
  const seconds = (performance.now() - started) / 1000;
  return formats.map((format) =>
    describeImage(source, format, [...reuse[format].layers, ...built[format]], {
      ...options,
      parameters,
      reuse: reuse[format],
      warnings: builder.warnings,
      seconds,
    })
  );
}

/** What each format has already. */
async function findFormats(
  { log }: ImageEnvironment,
  source: SourceImage,
  formats: readonly BuildFormat[],
  options: BuildOptions & { parameters: ChainParameters },
): Promise<Record<BuildFormat, Reuse>> {
  const { reuse, parameters } = options;
  if (!reuse) {
    return {
      turbo: { layers: [], count: 0 },
      overlaybd: { layers: [], count: 0 },
    };
  }
  const found = await findReuse(reuse, formats, (format) => ({
    source,
    format,
    parameters: formatParameters(format, parameters, options),
    types: options.nativeTypes ?? "oci",
    mayBeForeign: formats.length === 1,
  }));
  for (const format of formats) {
    const { layers, count } = found[format];
    if (count === 0) continue;
    const { repository, by } = layers[0]!.from;
    log.info("layers that were built before", {
      format,
      count,
      repository,
      by,
    });
  }
  return found;
}

/**
 * Puts the layers on the stack that every missing format has already; either
 * form shows the same device. The others are let go of: their blobs are all
 * that is needed of them.
 *
 * @returns How many of the source's layers are on the stack.
 */
async function stackReused(
  stack: LayerStack,
  reuse: Record<BuildFormat, Reuse>,
  missing: readonly BuildFormat[],
): Promise<number> {
  const first = missing.length === 0
    ? 0
    : Math.min(...missing.map((format) => reuse[format].count));
  // Meta layers are in memory.
  const chosen = missing.includes("turbo") ? "turbo" : "overlaybd";
  const { floor } = reuse[chosen];
  if (floor && missing.length > 0) stack.add(floor.part.opened);
  else if (floor) await closeParts([floor.part]);
  const below = reuse[chosen].layers.slice(0, first);
  for (const { parts } of below) {
    for (const { opened } of parts) stack.add(opened);
  }
  for (const { layers } of [reuse.turbo, reuse.overlaybd]) {
    await close(layers.filter((layer) => !below.includes(layer)));
  }
  return first;
}

function describeImage(
  source: SourceImage,
  format: BuildFormat,
  layers: readonly (BuiltLayer | ReusedLayer)[],
  facts: Omit<BuildOptions, "reuse"> & {
    parameters: ChainParameters;
    reuse: Reuse;
    warnings: readonly string[];
    seconds: number;
  },
): BuiltImage {
  const { warnings, seconds } = facts;
  const { foreign } = facts.reuse;
  const parameters = {
    ...formatParameters(format, facts.parameters, facts),
    foreign,
  };
  const count = source.manifest.layers.length;
  const documents = facts.reuse.documents ?? writeMetaDocuments(
    source,
    layers.map((layer, i) => ({
      ...layer,
      target: source.manifest.layers[i]!,
    })),
    chainKey(parameters, count),
    format === "overlaybd" ? facts.nativeTypes : "oci",
    facts.reuse.floor,
  );
  const prefixes = parameters.flatten
    ? [count]
    : Array.from({ length: count }, (_, i) => i + 1);
  return {
    format,
    source,
    documents,
    layers,
    floor: facts.reuse.floor,
    chains: foreign ? [] : prefixes.map((n) => ({
      key: chainKey(parameters, n),
      count: n,
    })),
    platform: formatPlatform(source.platform),
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
    spanSize: options.spanSize,
    flatten: options.flatten ?? false,
    maxEntries: options.maxEntries,
  };
}

/** The same with what one format adds. */
function formatParameters(
  format: BuildFormat,
  parameters: ChainParameters,
  options: Omit<BuildOptions, "reuse">,
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
  readonly #have: Readonly<Record<BuildFormat, number>>;

  /** @param have How many layers of each format are there already. */
  constructor(
    environment: ImageEnvironment,
    source: SourceImage,
    options: BuilderOptions,
    parameters: ChainParameters,
    stack: LayerStack,
    converter: NativeConverter | undefined,
    have: Readonly<Record<BuildFormat, number>>,
  ) {
    this.#environment = environment;
    this.#source = source;
    this.#options = options;
    this.#parameters = parameters;
    this.#stack = stack;
    this.#converter = converter;
    this.#have = have;
  }

  /** Builds the layers from `first` on, each a delta on those below. */
  async buildFrom(first: number): Promise<BuiltLayers> {
    const { virtualSize } = this.#parameters;
    const count = this.#source.manifest.layers.length;
    const built: BuiltLayers = { turbo: [], overlaybd: [] };
    const model = this.#stack.isEmpty
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
    if (this.#wants("overlaybd", 0)) {
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

  /** Whether a layer is to be written in a format. */
  #wants(format: BuildFormat, layer: number): boolean {
    return this.#options.formats.includes(format) &&
      layer >= this.#have[format];
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
    const wantsTurbo = this.#wants("turbo", index);
    const written = wantsTurbo && !converts
      ? await writeMetaLayer(scanned, content, device, stack, path)
      : undefined;
    const turbo = written?.layer;
    const opened = written?.opened ??
      await stackLayer(content, device, stack, path);
    if (turbo && !isTurbo) this.#warnForeign(index, scanned);
    if (turbo && !isLazy) this.#warnUnseekable(index, scanned);
    const wantsNative = this.#wants("overlaybd", index) && !isFlat;
    const native = wantsNative || (wantsTurbo && !turbo)
      ? await this.#converter!.convert(index, scanned, opened, !isFlat)
      : undefined;
    if (wantsTurbo) built.turbo.push((turbo ?? native)!);
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
      `${this.#taskName(index)}: its ${
        scan.compression === "gzip" ? "deflate blocks" : "zstd frames"
      } are too large to be read at random, so that serving it first decodes it, ${
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
    // Of a layer that is there natively the tar is not needed again.
    const mayConvert = this.#wants("overlaybd", index) ||
      this.#wants("turbo", index);
    const spool = mayConvert ? this.#converter?.spool(index) : undefined;
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
        spanSize: this.#wants("turbo", index)
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
    ...(layer.reused ? { reusedFrom: origin(layer.from) } : {}),
  };
}

function origin(
  { repository, by }: ReuseOrigin,
): Pick<ReuseOrigin, "repository" | "by"> {
  return { repository, by };
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

/** The build pipeline of one image: its layers in, meta layers and documents out. Pushes nothing. */

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
  type LayerBlock,
  type LayerBreakdown,
  layerContent,
  LayerStack,
  mergeTables,
  scanInto,
  type ScannedLayer,
  writeMetaLayer,
} from "../layers/mod.ts";
import { formatPlatform, type Repository } from "../registry/mod.ts";
import { chainKey, type ChainParameters, chainTag } from "./chain_key.ts";
import { shortDigest } from "./destination.ts";
import type { ImageEnvironment } from "./environment.ts";
import { type MetaDocuments, writeMetaDocuments } from "./meta_image.ts";
import { findReusable, type ReusedLayer } from "./reuse.ts";
import { checkLayers, type SourceImage } from "./source.ts";

const GIB = 2 ** 30;

/** Options of {@linkcode buildImage}. */
export interface BuildOptions {
  /** Bytes of the device; default 64 GiB. */
  virtualSize?: number | undefined;
  /** All metadata in the top layer. */
  flatten?: boolean | undefined;
  /** Threads; default one per core. */
  jobs?: number | undefined;
  /** Directory for the meta blobs; made by this, removed by the caller. */
  scratch: string;
  /** Where layers that were built before may be found. */
  reuseFrom?: Repository | undefined;
}

/** What was built for one layer. */
export interface LayerReport {
  digest: string;
  size: number;
  mediaType: string;
  metaSize: number;
  entries: number;
  spans: number;
  reused: boolean;
}

/** A complete meta image. */
export interface BuiltImage {
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

/** Builds one image. */
export async function buildImage(
  environment: ImageEnvironment,
  source: SourceImage,
  options: BuildOptions,
): Promise<BuiltImage> {
  const started = performance.now();
  checkLayers(source, environment.log);
  await Deno.mkdir(options.scratch, { recursive: true });
  const parameters = chainParameters(source, options);
  const count = source.manifest.layers.length;
  const reused = options.reuseFrom
    ? await findReusable(environment, options.reuseFrom, source, parameters)
    : [];
  await using stack = new LayerStack();
  for (const layer of reused) stack.add(layer.opened);
  const builder = new Builder(environment, source, options, parameters, stack);
  const layers = [
    ...reused,
    ...(parameters.flatten && reused.length === 0
      ? await builder.buildFlat()
      : await builder.buildFrom(reused.length)),
  ];
  const key = chainKey(parameters, count);
  const documents = writeMetaDocuments(
    source,
    layers.map((layer, i) => ({
      ...layer,
      target: source.manifest.layers[i]!,
    })),
    key,
  );
  const prefixes = parameters.flatten
    ? [count]
    : Array.from({ length: count }, (_, i) => i + 1);
  return {
    source,
    documents,
    layers,
    chainTags: prefixes.map((n) => chainTag(chainKey(parameters, n))),
    platform: formatPlatform(source.config.platform),
    layerReports: layers.map((layer, i) => layerReport(source, layer, i)),
    breakdown: sumBreakdown(layers),
    warnings: builder.warnings,
    seconds: (performance.now() - started) / 1000,
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
  };
}

class Builder {
  readonly warnings: string[] = [];
  readonly #environment: ImageEnvironment;
  readonly #source: SourceImage;
  readonly #options: BuildOptions;
  readonly #parameters: ChainParameters;
  readonly #stack: LayerStack;

  constructor(
    environment: ImageEnvironment,
    source: SourceImage,
    options: BuildOptions,
    parameters: ChainParameters,
    stack: LayerStack,
  ) {
    this.#environment = environment;
    this.#source = source;
    this.#options = options;
    this.#parameters = parameters;
    this.#stack = stack;
  }

  /** Builds the layers from `first` on, each a delta on those below. */
  async buildFrom(first: number): Promise<BuiltLayer[]> {
    const { virtualSize } = this.#parameters;
    const count = this.#source.manifest.layers.length;
    if (first === count) return [];
    const model = first === 0
      ? Ext4Model.create({ virtualSize })
      : await Ext4Model.load(this.#stack.device(), this.#stack.table());
    const space = new ImageSpace(model);
    const built: BuiltLayer[] = [];
    for (let i = first; i < count; i++) {
      const bodies: Bodies = new Map();
      const scanned = await this.#scan(model, bodies, i, space);
      const emission = emit(model, i, space);
      if (emission === undefined) continue;
      const below = this.#stack.table();
      const content = layerContent(model, emission, bodies, i, below);
      // Readers take the lowest tag for the layer's own, so it must have one (formats.md §1.10).
      const blocks = emission.blockCount === 0 && content.stored.length === 0
        ? [await this.#firstBlock()]
        : content.blocks;
      built.push(
        await this.#write(i, scanned, { map: content.map, blocks }),
      );
    }
    this.#checkRoom(space);
    return built;
  }

  /** Builds all layers so that the top one has all metadata and the others only what survives of their bodies. */
  async buildFlat(): Promise<BuiltLayer[]> {
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
    const built: BuiltLayer[] = [];
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
      built.push(await this.#write(i, scans[i]!, { map, blocks: own }));
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

  async #firstBlock(): Promise<LayerBlock> {
    return {
      offset: 0,
      bytes: await readBytes(this.#stack.device(), 0, 4096),
    };
  }

  #write(
    index: number,
    scanned: ScannedLayer,
    content: Parameters<typeof writeMetaLayer>[1],
  ): Promise<BuiltLayer> {
    return writeMetaLayer(
      scanned,
      content,
      this.#parameters.virtualSize,
      this.#stack,
      `${this.#options.scratch}/${index}.meta`,
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
    const count = manifest.layers.length;
    const name = `layer ${index + 1}/${count} ${shortDigest(layer)}`;
    const task = progress.start(name, layer.size);
    let received = 0;
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
        spanSize: this.#parameters.spanSize,
        threads: this.#options.jobs ?? navigator.hardwareConcurrency,
        signal,
        warn: (message) => this.warnings.push(`${name}: ${message}`),
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
    metaSize: layer.size,
    entries: layer.entryCount,
    spans: layer.spanCount,
    reused: layer.reused,
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

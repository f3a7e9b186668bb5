/** Native layers beside, or instead of, the meta layers of a build. */

import * as fs from "node:fs";
import { formatSize } from "../io/mod.ts";
import {
  type BuiltLayer,
  chainUuid,
  LsmtSource,
  type OpenedLayer,
  type ScannedLayer,
  singleLayerDevice,
  TarSpool,
  writeNativeBlob,
} from "../layers/mod.ts";
import { layerCompression } from "../registry/mod.ts";
import { BlockPacker, type ZFileCodec } from "../zfile/mod.ts";
import { chainId } from "./chain_key.ts";
import { shortDigest } from "./destination.ts";
import type { ImageEnvironment } from "./environment.ts";
import type { SourceImage } from "./source.ts";

/** How native layers are stored; both are part of a chain's key. */
export interface NativeParameters {
  codec: ZFileCodec;
  /** Bytes of a compressed block. */
  blockSize: number;
}

/** What overlaybd's own tools write. */
export const DEFAULT_NATIVE: NativeParameters = {
  codec: "lz4",
  blockSize: 4096,
};

/**
 * Bytes between the checkpoints of a pass that only converts: they are not
 * kept, so the fewer the better.
 */
export const NATIVE_SPAN_SIZE = 16 * 1024 * 1024;

/** Options of {@linkcode NativeConverter}. */
export interface ConverterOptions {
  parameters: NativeParameters;
  virtualSize: number;
  /** Directory for the spools and the blobs. */
  scratch: string;
  threads: number;
}

/** Converts layers that were scanned with their tars spooled. Must be disposed of. */
export class NativeConverter implements Disposable {
  readonly #environment: ImageEnvironment;
  readonly #source: SourceImage;
  readonly #options: ConverterOptions;
  readonly #spools = new Map<number, TarSpool>();

  constructor(
    environment: ImageEnvironment,
    source: SourceImage,
    options: ConverterOptions,
  ) {
    this.#environment = environment;
    this.#source = source;
    this.#options = options;
  }

  /** A place for a layer's tar; it replaces what the layer had. */
  spool(layer: number): TarSpool {
    this.drop(layer);
    const spool = new TarSpool(this.#options.scratch);
    this.#spools.set(layer, spool);
    return spool;
  }

  /** Gives back the disk that a layer's tar takes. */
  drop(layer: number): void {
    this.#spools.get(layer)?.[Symbol.dispose]();
    this.#spools.delete(layer);
  }

  /**
   * Writes one source layer as a native layer.
   *
   * @param opened Its map.
   * @param isLast Whether its tar is not needed any more.
   */
  async convert(
    index: number,
    scanned: ScannedLayer,
    opened: OpenedLayer,
    isLast: boolean,
  ): Promise<BuiltLayer> {
    await using target = await this.#spools.get(index)!.source();
    const device = singleLayerDevice(
      opened,
      target,
      this.#options.virtualSize,
    );
    const built = await this.#write(index, scanned, device, index > 0);
    if (isLast) this.drop(index);
    return built;
  }

  /**
   * Writes all source layers as one native layer.
   *
   * @param layers The map of each, disjoint from the others'.
   */
  async convertFlat(
    scans: readonly ScannedLayer[],
    layers: readonly OpenedLayer[],
  ): Promise<BuiltLayer> {
    await using targets = new AsyncDisposableStack();
    const stacked = [];
    for (const [i, { table, data }] of layers.entries()) {
      const target = targets.use(await this.#spools.get(i)!.source());
      stacked.push({ table, data, target });
    }
    const device = new LsmtSource(stacked, this.#options.virtualSize);
    const top = scans.length - 1;
    const built = await this.#write(top, scans[top]!, device, false);
    for (const i of layers.keys()) this.drop(i);
    const entryCount = scans.reduce((sum, scan) => sum + scan.entryCount, 0);
    return { ...built, entryCount };
  }

  async #write(
    index: number,
    scanned: ScannedLayer,
    device: LsmtSource,
    hasParent: boolean,
  ): Promise<BuiltLayer> {
    const { parameters, virtualSize, scratch, threads } = this.#options;
    const { signal, progress } = this.#environment;
    const { diffIds } = this.#source.config;
    const uuid = (count: number) => chainUuid(chainId(diffIds.slice(0, count)));
    const path = `${scratch}/${index}.native`;
    const task = progress.start(
      `convert ${shortDigest(this.#source.manifest.layers[index]!)}`,
      device.table.mappedBytes,
    );
    // Its threads end before the next layer is read, which has its own.
    using packer = new BlockPacker(threads);
    try {
      const blob = await writeNativeBlob(
        path,
        {
          device,
          table: device.table,
          virtualSize,
          uuid: uuid(index + 1),
          parentUuid: hasParent ? uuid(index) : undefined,
        },
        { ...parameters, packer },
        {
          signal,
          onProgress: (bytes) => task.add(bytes),
        },
      );
      return {
        reused: false,
        kind: "native",
        digest: blob.digest,
        size: blob.size,
        diffId: blob.digest,
        compression: scanned.scan.compression,
        entryCount: scanned.entryCount,
        spanCount: 0,
        breakdown: { fsMeta: 0, gzipIndex: 0, spans: 0 },
        path,
      };
    } finally {
      task.done();
    }
  }

  [Symbol.dispose](): void {
    for (const layer of [...this.#spools.keys()]) this.drop(layer);
  }
}

/** Bytes of tar that one compressed byte may stand for, as a rule. */
const USUAL_RATIO = 4;

/**
 * Says beforehand what a conversion needs of the disk. How large a compressed
 * layer's tar is shows only when it was read, so this is an estimate.
 */
export function logDiskNeed(
  environment: ImageEnvironment,
  source: SourceImage,
  scratch: string,
): void {
  const { layers } = source.manifest;
  const tars = layers.map(({ mediaType, size }) =>
    layerCompression(mediaType) === "none" ? size : size * USUAL_RATIO
  );
  const blobs = layers.reduce((sum, layer) => sum + layer.size * 1.5, 0);
  const needed = Math.max(0, ...tars) + blobs;
  const free = freeSpace(scratch);
  const fields = {
    directory: scratch,
    needed: `about ${formatSize(needed)}`,
    free: free === undefined ? "unknown" : formatSize(free),
  };
  if (free !== undefined && free < needed) {
    environment.log.warn(
      "the disk may be too small to convert this image; TMPDIR names another",
      fields,
    );
  } else environment.log.info("converting through temporary files", fields);
}

function freeSpace(directory: string): number | undefined {
  try {
    const { bavail, bsize } = fs.statfsSync(directory);
    return bavail * bsize;
  } catch {
    return undefined;
  }
}

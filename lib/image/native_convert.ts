/** Native layers beside, or instead of, the meta layers of a build. */

import * as fs from "node:fs";
import { formatSize, trimMemory } from "../io/mod.ts";
import {
  blockRuns,
  type BuiltLayer,
  type BuiltPart,
  chainUuid,
  layerRanges,
  LsmtSource,
  type OpenedLayer,
  partUuid,
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
  /** The layer of another tool that the source layer `index` is put on, and its UUID. */
  onto?: { index: number; uuid: string } | undefined;
  /** Directory for the spools and the blobs. */
  scratch: string;
  threads: number;
  /** Entries of one layer at most; default what readers take. For tests. */
  maxEntries?: number | undefined;
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
   * @param opened The parts of its map.
   * @param isLast Whether its tar is not needed any more.
   */
  async convert(
    index: number,
    scanned: ScannedLayer,
    opened: readonly OpenedLayer[],
    isLast: boolean,
  ): Promise<BuiltLayer> {
    await using target = await this.#spools.get(index)!.source();
    const device = singleLayerDevice(
      opened,
      target,
      this.#options.virtualSize,
    );
    const path = `${this.#options.scratch}/${index}.native`;
    const built = await this.#write(path, index, scanned, device, index > 0);
    // Of the threads that compressed.
    trimMemory();
    if (isLast) this.drop(index);
    return built;
  }

  /**
   * Writes all source layers as one native layer.
   *
   * @param layers The parts of each one's map, disjoint from the others'.
   */
  async convertFlat(
    scans: readonly ScannedLayer[],
    layers: readonly (readonly OpenedLayer[])[],
  ): Promise<BuiltLayer> {
    await using targets = new AsyncDisposableStack();
    const stacked = [];
    for (const [i, parts] of layers.entries()) {
      const target = targets.use(await this.#spools.get(i)!.source());
      for (const { table, data } of parts) {
        stacked.push({ table, data, target });
      }
    }
    const device = new LsmtSource(stacked, this.#options.virtualSize);
    const top = scans.length - 1;
    // The top layer may be native by itself too, of the other format.
    const path = `${this.#options.scratch}/flat.native`;
    const built = await this.#write(path, top, scans[top]!, device, false);
    for (const i of layers.keys()) this.drop(i);
    const entryCount = scans.reduce((sum, scan) => sum + scan.entryCount, 0);
    return { ...built, entryCount };
  }

  /** @param path File of the first part; further ones get `.1`, `.2`… behind it. */
  async #write(
    path: string,
    index: number,
    scanned: ScannedLayer,
    device: LsmtSource,
    hasParent: boolean,
  ): Promise<BuiltLayer> {
    const { parameters, threads, maxEntries } = this.#options;
    const { signal, progress } = this.#environment;
    const task = progress.start(
      `convert ${shortDigest(this.#source.manifest.layers[index]!)}`,
      device.table.mappedBytes,
    );
    const runs = () => blockRuns(device.table, device.size);
    const ranges = layerRanges(runs(), device.size, maxEntries);
    const parts: BuiltPart[] = [];
    // Its threads end before the next layer is read, which has its own.
    using packer = new BlockPacker(threads);
    try {
      for (const [i, range] of ranges.entries()) {
        const file = i === 0 ? path : `${path}.${i}`;
        const { digest, size } = await writeNativeBlob(
          file,
          {
            device,
            *runs() {
              for (const run of runs()) {
                if (run.start >= range.end) break;
                if (run.start >= range.start) yield run;
              }
            },
            virtualSize: device.size,
            ...this.#uuids(index, i, ranges.length, hasParent),
          },
          { ...parameters, packer },
          { signal, maxEntries, onProgress: (bytes) => task.add(bytes) },
        );
        parts.push({ digest, size, diffId: digest, path: file });
      }
    } finally {
      task.done();
    }
    return {
      reused: false,
      kind: "native",
      parts,
      compression: scanned.scan.compression,
      entryCount: scanned.entryCount,
      spanCount: 0,
      breakdown: { fsMeta: 0, gzipIndex: 0, spans: 0 },
    };
  }

  /** The last part has the chain's UUID: the next layer names it as its parent. */
  #uuids(
    index: number,
    part: number,
    count: number,
    hasParent: boolean,
  ): { uuid: string; parentUuid: string | undefined } {
    const { diffIds } = this.#source.config;
    const chain = (layers: number) => chainId(diffIds.slice(0, layers));
    const { onto } = this.#options;
    const below = onto?.index === index
      ? onto.uuid
      : hasParent
      ? chainUuid(chain(index))
      : undefined;
    return {
      uuid: nativeUuid(chain(index + 1), part, count),
      parentUuid: part === 0 ? below : partUuid(chain(index + 1), part - 1),
    };
  }

  [Symbol.dispose](): void {
    for (const layer of [...this.#spools.keys()]) this.drop(layer);
  }
}

/** The UUID of one part of a native layer, from 0 of `count`. */
export function nativeUuid(chain: string, part: number, count: number): string {
  return part === count - 1 ? chainUuid(chain) : partUuid(chain, part);
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

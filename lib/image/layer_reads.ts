/** What reads of an image's device mean for its layers: how much of each, and where in its blob. */

import type { ByteSource } from "../io/mod.ts";
import { type Origin, SpanSource } from "../layers/mod.ts";
import type { LayerInfo, OpenedImage } from "./open.ts";

/** A range of the device, in bytes. */
export interface DeviceRange {
  offset: number;
  length: number;
}

/** What a list of reads touches of one layer. */
export interface LayerReads {
  /** Of the blob that the content comes from. */
  digest: string;
  /** Bytes of that blob as it is stored. */
  size: number;
  /** Bytes of the content that were read, uncompressed. */
  contentBytes: number;
  /** Bytes of the layer's metadata that were read, uncompressed; 0 for native layers. */
  metadataBytes: number;
  /** Both, as they are stored: by the compression ratio of the whole layer, of its meta blob for metadata. */
  storedBytes: number;
  /** For each of equally long parts of the blob, which share of it was read, 0 to 1. */
  cells: number[];
}

/**
 * Takes reads apart by layer. Nothing of the image's content is read.
 *
 * @param ranges Within the device; one that is given twice counts twice.
 * @param cellCount How many parts a blob is cut into.
 */
export function layerReads(
  image: Pick<OpenedImage, "source" | "layers">,
  ranges: Iterable<DeviceRange>,
  cellCount: number,
): LayerReads[] {
  const layers = image.layers.map((info): LayerReads => ({
    digest: info.digest,
    size: info.size,
    contentBytes: 0,
    metadataBytes: 0,
    storedBytes: 0,
    cells: new Array(cellCount).fill(0),
  }));
  const { size } = image.source;
  for (const { offset, length } of ranges) {
    if (offset >= size) continue;
    const inside = Math.min(length, size - offset);
    for (const origin of image.source.origins(offset, inside)) {
      add(layers[origin.layer]!, image.layers[origin.layer]!, origin);
    }
  }
  for (const layer of layers) {
    layer.storedBytes = Math.round(layer.storedBytes);
    layer.cells = layer.cells.map((share) => Math.min(1, share));
  }
  return layers;
}

function add(reads: LayerReads, info: LayerInfo, origin: Origin): void {
  const { source, offset, length } = origin;
  const isMetadata = info.kind === "turbo" && !origin.isTarget;
  const stored = isMetadata ? info.metaSize ?? info.size : info.size;
  reads.storedBytes += length * Math.min(1, stored / Math.max(1, source.size));
  if (isMetadata) {
    reads.metadataBytes += length;
    return;
  }
  reads.contentBytes += length;
  const at = storedAt(source, info.size, offset);
  const end = storedAt(source, info.size, offset + length);
  fill(reads.cells, at / info.size, end / info.size);
}

function storedAt(source: ByteSource, blobSize: number, at: number): number {
  if (source instanceof SpanSource) return source.storedAt(at);
  // No index says where: by proportion of the whole.
  return at / Math.max(1, source.size) * blobSize;
}

/** Adds what `[from, to)` of the whole covers of each cell. */
function fill(cells: number[], from: number, to: number): void {
  const count = cells.length;
  const start = Math.max(0, Math.min(1, from)) * count;
  const end = Math.max(0, Math.min(1, to)) * count;
  for (let i = Math.floor(start); i < end && i < count; i++) {
    cells[i] = cells[i]! + Math.min(end, i + 1) - Math.max(start, i);
  }
}

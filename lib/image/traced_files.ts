/** What a trace's ranges are: of which files, and of which layers. */

import { Ext4Reader } from "../ext4/mod.ts";
import {
  bytesFromLatin1,
  type ByteString,
  fromUtf8,
  LimitError,
  UnsupportedError,
} from "../io/mod.ts";
import {
  DEVICE_LAYER,
  MAX_TRACE_READ,
  type TraceRecord,
} from "../layers/mod.ts";
import type { OpenedImage } from "./open.ts";

const SECTOR = 512;
/** Records that are taken apart; a start has thousands. */
const RECORDS_MAX = 200_000;

type Image = Pick<OpenedImage, "source" | "layers">;

/** A file of which something was read. */
export interface TracedFile {
  /** From the root, without a leading slash; the first of its names. */
  path: string;
  /** Bytes of its blocks that were read, each once. */
  bytes: number;
  /** Bytes of the file. */
  size: number;
}

/** What a trace reads of one layer. */
export interface TracedLayer {
  digest: string;
  /** Of its content, and of metadata that its meta blob brings. */
  contentBytes: number;
  metadataBytes: number;
}

/** A trace, taken apart. */
export interface TracedReads {
  /** In the order of first reads. */
  files: TracedFile[];
  /** Bytes of the device that belong to no file: directories, tables, and what lies in holes. */
  otherBytes: number;
  layers: TracedLayer[];
}

/**
 * Says which files and layers a trace reads.
 *
 * @throws {UnsupportedError} If the device has no ext4.
 * @throws {LimitError} If there are over 200,000 records.
 */
export async function tracedReads(
  image: Image,
  records: readonly TraceRecord[],
  signal: AbortSignal,
): Promise<TracedReads> {
  if (records.length > RECORDS_MAX) {
    throw new LimitError(
      `Cannot name the files of ${records.length} ranges: limit is ${RECORDS_MAX}`,
    );
  }
  const device = toDevice(image, records);
  const index = await FileIndex.build(image, signal);
  const files = new Map<number, TracedFile>();
  const seen = new Ranges();
  let otherBytes = 0;
  for (const record of device) {
    for (const { offset, length } of seen.add(record.offset, record.length)) {
      let known = 0;
      for (const { file, bytes } of index.find(offset, length)) {
        known += bytes;
        const traced = files.get(file);
        if (traced) traced.bytes += bytes;
        else {
          const { path, size } = index.files[file]!;
          files.set(file, {
            path: fromUtf8(bytesFromLatin1(path)),
            bytes,
            size,
          });
        }
      }
      otherBytes += length - known;
    }
  }
  return {
    files: [...files.values()],
    otherBytes,
    layers: layersOf(image, seen.all()),
  };
}

function layersOf(
  image: Image,
  ranges: Iterable<{ offset: number; length: number }>,
): TracedLayer[] {
  const layers = image.layers.map(({ digest }): TracedLayer => ({
    digest,
    contentBytes: 0,
    metadataBytes: 0,
  }));
  const { size } = image.source;
  for (const { offset, length } of ranges) {
    if (offset >= size) continue;
    const inside = Math.min(length, size - offset);
    for (const origin of image.source.origins(offset, inside)) {
      const layer = layers[origin.layer]!;
      const isMetadata = !origin.isTarget &&
        image.layers[origin.layer]!.kind === "turbo";
      layer[isMetadata ? "metadataBytes" : "contentBytes"] += origin.length;
    }
  }
  return layers;
}

/**
 * The same reads with offsets of single layers' own files, as overlaybd has
 * them. What lies in a TurboOCI layer's target has no such offset and is left
 * out.
 *
 * @returns The records, each of at most 1 MiB, and the bytes left out.
 */
export function toLayers(
  image: Image,
  records: readonly TraceRecord[],
): { records: TraceRecord[]; leftOut: number } {
  const out: TraceRecord[] = [];
  let leftOut = 0;
  const add = (layer: number, offset: number, length: number) => {
    for (let at = 0; at < length; at += MAX_TRACE_READ) {
      const last = out.at(-1);
      const part = Math.min(MAX_TRACE_READ, length - at);
      if (
        last?.layer === layer && last.offset + last.length === offset + at &&
        last.length + part <= MAX_TRACE_READ
      ) last.length += part;
      else out.push({ layer, offset: offset + at, length: part });
    }
  };
  const { size } = image.source;
  for (const { layer, offset, length } of records) {
    if (layer !== DEVICE_LAYER) add(layer, offset, length);
    else if (offset < size) {
      const inside = Math.min(length, size - offset);
      for (const origin of image.source.origins(offset, inside)) {
        if (origin.isTarget) leftOut += origin.length;
        else add(origin.layer, origin.offset, origin.length);
      }
    }
  }
  return { records: out, leftOut };
}

/** The same reads with offsets of the device. What no longer shows of a layer is left out. */
export function toDevice(
  image: Image,
  records: readonly TraceRecord[],
): TraceRecord[] {
  const { table } = image.source;
  // Rows of each layer's own file, by where they lie in it.
  const rows = new Map<number, number[]>();
  const rowsOf = (layer: number): number[] => {
    let found = rows.get(layer);
    if (!found) {
      const data = image.source.layerData(layer);
      found = [];
      for (let row = 0; data && row < table.count; row++) {
        if (table.layer[row] !== layer) continue;
        const offset = table.offset[row]! * SECTOR;
        const [origin] = image.source.origins(offset, SECTOR);
        if (origin?.source === data) found.push(row);
      }
      found.sort((a, b) => table.moffset[a]! - table.moffset[b]!);
      rows.set(layer, found);
    }
    return found;
  };
  const out: TraceRecord[] = [];
  for (const record of records) {
    if (record.layer === DEVICE_LAYER) {
      out.push(record);
      continue;
    }
    const own = rowsOf(record.layer);
    const end = record.offset + record.length;
    let at = firstEndingAfter(
      own.length,
      (i) => (table.moffset[own[i]!]! + table.length[own[i]!]!) * SECTOR,
      record.offset,
    );
    for (; at < own.length; at++) {
      const row = own[at]!;
      const start = table.moffset[row]! * SECTOR;
      if (start >= end) break;
      const from = Math.max(start, record.offset);
      const to = Math.min(start + table.length[row]! * SECTOR, end);
      out.push({
        layer: DEVICE_LAYER,
        offset: table.offset[row]! * SECTOR + (from - start),
        length: to - from,
      });
    }
  }
  return out;
}

/** Index of the first of ascending ranges that ends behind `at`. */
function firstEndingAfter(
  count: number,
  endOf: (index: number) => number,
  at: number,
): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (endOf(middle) > at) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Which file a block of the device belongs to. */
class FileIndex {
  readonly files: { path: ByteString; size: number }[] = [];
  /** Ascending by start; bytes. */
  #extents: { start: number; end: number; file: number }[] = [];

  static async build(image: Image, signal: AbortSignal): Promise<FileIndex> {
    const index = new FileIndex();
    const reader = await Ext4Reader.open(image.source).catch((error) => {
      throw new UnsupportedError(
        "file system",
        "Cannot name files: the image's device has no ext4",
        { cause: error },
      );
    });
    const seen = new Set<number>();
    for await (const entry of reader.walk()) {
      signal.throwIfAborted();
      if (seen.has(entry.ino)) continue;
      seen.add(entry.ino);
      const { type, size } = reader.statOf(entry);
      if (type !== "file" || size === 0) continue;
      const file = index.files.push({ path: entry.path, size }) - 1;
      for (const extent of await reader.extents(entry.ino)) {
        if (extent.unwritten) continue;
        const start = extent.physicalBlock * reader.blockSize;
        const end = start + extent.count * reader.blockSize;
        index.#extents.push({ start, end, file });
      }
    }
    index.#extents.sort((a, b) => a.start - b.start);
    return index;
  }

  /** The files' parts of a range, in its order. */
  *find(
    offset: number,
    length: number,
  ): Iterable<{ file: number; bytes: number }> {
    const extents = this.#extents;
    let at = firstEndingAfter(extents.length, (i) => extents[i]!.end, offset);
    for (; at < extents.length && extents[at]!.start < offset + length; at++) {
      const { start, end, file } = extents[at]!;
      const bytes = Math.min(end, offset + length) - Math.max(start, offset);
      yield { file, bytes };
    }
  }
}

/** A set of bytes. */
class Ranges {
  #sorted: { offset: number; length: number }[] = [];

  /** Adds a range. @returns The parts of it that are new, in order. */
  add(offset: number, length: number): { offset: number; length: number }[] {
    const end = offset + length;
    const all = this.#sorted;
    const first = firstEndingAfter(
      all.length,
      (i) => all[i]!.offset + all[i]!.length,
      offset - 1,
    );
    const fresh: { offset: number; length: number }[] = [];
    let at = offset;
    let last = first;
    let low = offset;
    let high = end;
    for (; last < all.length && all[last]!.offset <= end; last++) {
      const known = all[last]!;
      const knownEnd = known.offset + known.length;
      if (known.offset > at) {
        fresh.push({ offset: at, length: known.offset - at });
      }
      at = Math.max(at, knownEnd);
      low = Math.min(low, known.offset);
      high = Math.max(high, knownEnd);
    }
    if (at < end) fresh.push({ offset: at, length: end - at });
    all.splice(first, last - first, { offset: low, length: high - low });
    return fresh;
  }

  all(): readonly { offset: number; length: number }[] {
    return this.#sorted;
  }
}

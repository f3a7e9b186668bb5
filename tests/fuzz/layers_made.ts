/** Small layers of every compression with their indexes, made once in a process. */

import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import { concatBytes, toHex } from "../../lib/io/mod.ts";
import { zstdCompress } from "../../lib/compress/mod.ts";
import {
  encodeSpans,
  type LayerScan,
  scanLayer,
  spanIndexOf,
  writeGzipMeta,
} from "../../lib/layers/mod.ts";
import { dir, file, layerTar, symlink } from "../testutil/oci_image.ts";
import { piecesOf } from "./inline_codec.ts";
import { Random } from "./random.ts";

/** Uncompressed bytes between checkpoints: small, so that small layers have several. */
export const SPAN_SIZE = 64 * 1024;

/** A layer blob and all that a pass found. */
export interface MadeLayer {
  name: string;
  blob: Uint8Array<ArrayBuffer>;
  content: Uint8Array<ArrayBuffer>;
  scan: LayerScan;
  /** The content of `obd.spans`. */
  spans: Uint8Array<ArrayBuffer>;
  /** The content of `gzip.meta`, for gzip of one member. */
  gzipMeta: Uint8Array<ArrayBuffer> | undefined;
}

/** Bytes that compress like text and programs: repeats near and far, noise between. */
export function plausibleBytes(
  length: number,
  seed: number,
): Uint8Array<ArrayBuffer> {
  const random = new Random(seed, "plausible");
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const size = Math.min(length - at, random.length(2000));
    if (at > 0 && !random.oneIn(3)) {
      const from = Math.max(0, at - random.length(40_000));
      for (let i = 0; i < size; i++) bytes[at + i] = bytes[from + i]!;
    } else if (random.oneIn(4)) bytes.fill(random.below(256), at, at + size);
    else {
      for (let i = 0; i < size; i++) bytes[at + i] = 97 + random.below(20);
    }
    at += size;
  }
  return bytes;
}

/** SHA-256 as `sha256:…`. */
export function digestOf(bytes: Uint8Array): string {
  return `sha256:${toHex(createHash("sha256").update(bytes).digest())}`;
}

/** A pass over a blob on this thread. */
export function scanInline(
  blob: Uint8Array,
  onBytes?: (bytes: Uint8Array) => void,
  spanSize = SPAN_SIZE,
): Promise<LayerScan> {
  return scanLayer(piecesOf(blob), {
    blobSize: blob.length,
    expectedDigest: digestOf(blob),
    spanSize,
    threads: 1,
    walker: { push: (bytes) => onBytes?.(bytes), finish: () => {} },
  });
}

async function make(
  name: string,
  blob: Uint8Array<ArrayBuffer>,
  content: Uint8Array<ArrayBuffer>,
): Promise<MadeLayer> {
  const scan = await scanInline(blob);
  const suffix = scan.compression === "none" ? "" : `+${scan.compression}`;
  return {
    name,
    blob,
    content,
    scan,
    spans: encodeSpans(spanIndexOf(scan, {
      mediaType: `application/vnd.oci.image.layer.v1.tar${suffix}`,
      spanSize: SPAN_SIZE,
    })),
    gzipMeta: scan.compression === "gzip" && scan.members === 1
      ? writeGzipMeta({
        spanSize: SPAN_SIZE,
        gzipSize: blob.length,
        uncompressedSize: content.length,
        checkpoints: scan.checkpoints,
      })
      : undefined,
  };
}

function skippable(data: Uint8Array): Uint8Array<ArrayBuffer> {
  const head = new Uint8Array(8);
  const view = new DataView(head.buffer);
  view.setUint32(0, 0x184d2a51, true);
  view.setUint32(4, data.length, true);
  return concatBytes([head, data]);
}

/** zstd's seekable format: a table of frame sizes in a last, skippable frame. */
function seekTable(sizes: readonly [number, number][]): Uint8Array {
  const table = new Uint8Array(sizes.length * 8 + 9);
  const view = new DataView(table.buffer);
  sizes.forEach(([stored, size], i) => {
    view.setUint32(i * 8, stored, true);
    view.setUint32(i * 8 + 4, size, true);
  });
  view.setUint32(sizes.length * 8, sizes.length, true);
  view.setUint32(sizes.length * 8 + 5, 0x8f92eab1, true);
  const frame = skippable(table);
  frame[0] = 0x5e;
  return frame;
}

function zstdFrames(content: Uint8Array, size: number): Uint8Array[] {
  const frames: Uint8Array[] = [];
  for (let at = 0; at < content.length; at += size) {
    frames.push(zstdCompress(content.subarray(at, at + size)));
  }
  return frames;
}

/** One layer for each way of compressing; a few hundred KiB each. */
export async function madeLayers(): Promise<MadeLayer[]> {
  const content = plausibleTar();
  const gzip = (bytes: Uint8Array, level: number) =>
    new Uint8Array(zlib.gzipSync(bytes, { level }));
  const frames = zstdFrames(content, 40_000);
  const sizes = frames.map((frame, i): [number, number] => [
    frame.length,
    Math.min(40_000, content.length - i * 40_000),
  ]);
  const halves = [content.subarray(0, 130_001), content.subarray(130_001)];
  const blobs: [name: string, blob: Uint8Array<ArrayBuffer>][] = [
    ["plain", content],
    ["gzip -1", gzip(content, 1)],
    ["gzip -6", gzip(content, 6)],
    ["gzip stored", gzip(content, 0)],
    ["gzip members", concatBytes(halves.map((half) => gzip(half, 6)))],
    ["zstd one frame", new Uint8Array(zlib.zstdCompressSync(content))],
    ["zstd frames", concatBytes(frames)],
    ["zstd seekable", concatBytes([...frames, seekTable(sizes)])],
    [
      "zstd skippable",
      concatBytes(
        frames.flatMap((frame) => [frame, skippable(content.subarray(0, 99))]),
      ),
    ],
  ];
  return await Promise.all(
    blobs.map(([name, blob]) => make(name, blob, content)),
  );
}

/** A tar of about 300 KB. */
function plausibleTar(): Uint8Array<ArrayBuffer> {
  const sizes = [0, 1, 5000, 70_000, 511, 90_001, 512, 130_000];
  return layerTar([
    dir("d"),
    ...sizes.map((size, i) => file(`d/f${i}`, plausibleBytes(size, i))),
    symlink("d/link", "f3"),
  ]);
}

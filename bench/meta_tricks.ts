/**
 * What each trick saves of a gzip layer's meta blob: the blob is made again
 * without it, or with what was tried and not taken. A helper of `meta_size`.
 */

import * as zlib from "node:zlib";
import { SPAN_SIZE_SHORT } from "../lib/compress/mod.ts";
import { MemorySink, MemorySource } from "../lib/io/mod.ts";
import {
  encodeSpans,
  type LayerScan,
  META_MEMBER,
  readMetaBlob,
  scanLayer,
  spanIndexOf,
  writeGzipMeta,
  writeMetaBlob,
} from "../lib/layers/mod.ts";
import { openZFile, type ZFileOptions, ZFileWriter } from "../lib/zfile/mod.ts";

/** A layer and what was built of it. */
export interface MeasuredLayer {
  /** `sha256:…` of the gzip blob. */
  digest: string;
  blob: Uint8Array<ArrayBuffer>;
  metaBlob: Uint8Array;
}

/** Bytes of the whole meta blob, by what is done differently. */
export type TrickSizes = Record<string, number>;

/** Measures one layer. */
export async function measureTricks(
  layer: MeasuredLayer,
): Promise<TrickSizes> {
  const { members } = await readMetaBlob(new MemorySource(layer.metaBlob));
  const fsMeta = members.get(META_MEMBER.ext4)!;
  const map = await unpack(fsMeta);
  const chosen = await scan(layer, {});
  const short = await scan(layer, { spanSize: SPAN_SIZE_SHORT });
  const full = await scan(layer, {
    spanSize: SPAN_SIZE_SHORT,
    sparseWindows: false,
  });
  const sizeOf = async (scanned: LayerScan, meta = fsMeta) =>
    (await makeBlob(scanned, meta)).size;
  const asBuilt = await sizeOf(chosen);
  const windows = chosen.checkpoints.window;
  const windowBytes = total(windows);
  const repacked = (pack: (window: Uint8Array) => Uint8Array) =>
    asBuilt - windowBytes +
    total(
      windows.map((w) =>
        w.length === 0 ? w : pack(new Uint8Array(zlib.inflateSync(w)))
      ),
    );
  const lz4 = await pack(map, "lz4");
  return {
    "as built": asBuilt,
    // Without what was done.
    "spans of 1 MiB, windows in full, LZ4 metadata": await sizeOf(full, lz4),
    "spans of 1 MiB": await sizeOf(short),
    "spans of 1 MiB, windows in full": await sizeOf(full),
    "metadata in ordinary LZ4 blocks": await sizeOf(chosen, lz4),
    "outer gzip of level 6": await outerSize(chosen, fsMeta, 6),
    // What was tried besides.
    "metadata in zstd blocks": await sizeOf(chosen, await pack(map, "zstd")),
    "windows: zlib level 9": repacked((w) => zlib.deflateSync(w, { level: 9 })),
    "windows: zstd level 19": repacked((w) =>
      zlib.zstdCompressSync(w, {
        params: { [zlib.constants.ZSTD_c_compressionLevel]: 19 },
      })
    ),
    "windows: all in one zstd frame, level 19": asBuilt - windowBytes +
      zlib.zstdCompressSync(joined(windows), {
        params: { [zlib.constants.ZSTD_c_compressionLevel]: 19 },
      }).length,
    "obd.spans in zstd": asBuilt - spansOf(chosen).length +
      zlib.zstdCompressSync(spansOf(chosen)).length,
  };
}

function scan(
  { blob, digest }: MeasuredLayer,
  options: { spanSize?: number; sparseWindows?: boolean },
): Promise<LayerScan> {
  async function* whole() {
    await Promise.resolve();
    yield blob;
  }
  return scanLayer(whole(), {
    blobSize: blob.length,
    expectedDigest: digest,
    ...options,
  });
}

function spansOf(scanned: LayerScan): Uint8Array {
  return encodeSpans(
    spanIndexOf(scanned, {
      mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
      spanSize: SPAN_SIZE_SHORT,
    }),
  );
}

function membersOf(scanned: LayerScan, fsMeta: Uint8Array) {
  const gzipMeta = writeGzipMeta({
    spanSize: SPAN_SIZE_SHORT,
    gzipSize: scanned.blobSize,
    uncompressedSize: scanned.tarSize,
    checkpoints: scanned.checkpoints,
  });
  return [
    { name: META_MEMBER.ext4, content: fsMeta },
    { name: META_MEMBER.marker, content: new Uint8Array() },
    { name: META_MEMBER.gzipMeta, content: gzipMeta },
    { name: META_MEMBER.spans, content: spansOf(scanned) },
  ];
}

async function makeBlob(scanned: LayerScan, fsMeta: Uint8Array) {
  const sink = new MemorySink();
  const { size } = await writeMetaBlob(sink, membersOf(scanned, fsMeta));
  return { size, bytes: sink.bytes() };
}

async function outerSize(
  scanned: LayerScan,
  fsMeta: Uint8Array,
  level: number,
): Promise<number> {
  const { bytes } = await makeBlob(scanned, fsMeta);
  return zlib.gzipSync(zlib.gunzipSync(bytes), { level }).length;
}

/** The content of a ZFile. */
async function unpack(file: Uint8Array): Promise<Uint8Array> {
  await using zfile = await openZFile(new MemorySource(file));
  const content = new Uint8Array(zfile.size);
  await zfile.pread(content, 0);
  return content;
}

async function pack(
  content: Uint8Array,
  codec: ZFileOptions["codec"],
): Promise<Uint8Array> {
  const sink = new MemorySink();
  const writer = new ZFileWriter(sink, {
    codec,
    blockSize: 32 * 1024,
    headerOverwrite: true,
  });
  await writer.write(content);
  await writer.finish();
  return sink.bytes();
}

function total(windows: readonly Uint8Array[]): number {
  return windows.reduce((sum, window) => sum + window.length, 0);
}

/** All windows unpacked, one behind the other. */
function joined(windows: readonly Uint8Array[]): Uint8Array {
  const parts = windows.filter((w) => w.length > 0);
  const bytes = new Uint8Array(parts.length * 32_768);
  for (const [i, window] of parts.entries()) {
    bytes.set(zlib.inflateSync(window), i * 32_768);
  }
  return bytes;
}

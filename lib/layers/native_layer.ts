/**
 * Native overlaybd layer blobs: tar wrapper around a ZFile around a sealed LSMT
 * layer that stores its data itself.
 */

import { createHash } from "node:crypto";
import {
  type ByteSource,
  FileSink,
  FileSource,
  invariant,
  toHex,
} from "../io/mod.ts";
import {
  type BlockPacker,
  type ZFileCodec,
  ZFileWriter,
} from "../zfile/mod.ts";
import {
  type LayerFields,
  type LayerSummary,
  LayerWriter,
  LsmtSource,
} from "./lsmt/mod.ts";
import {
  type BlockRun,
  entriesOf,
  materialize,
  type MaterializeOptions,
} from "./materialize.ts";
import type { OpenedLayer } from "./open_layer.ts";
import { tarWrapperHead, tarWrapperTail } from "./tar_wrapper.ts";

/** How native layers are stored. */
export interface NativeFormat {
  /** Default `"lz4"`. */
  codec?: ZFileCodec | undefined;
  /** Bytes of a compressed block: 4096 (default), 8192, 16384 or 32768. */
  blockSize?: number | undefined;
  /** Compresses on other threads; borrowed. */
  packer?: BlockPacker | undefined;
}

/** What {@linkcode writeNativeBlob} writes. */
export interface NativeContent extends LayerFields {
  /** Shows the content; borrowed. */
  device: ByteSource;
  /** Which ranges of the device the layer holds; gone through twice. */
  runs: () => Iterable<BlockRun>;
}

/** A written layer blob. */
export interface NativeBlob {
  /** `sha256:…` of the blob, which is its diffID too. */
  digest: string;
  /** Bytes. */
  size: number;
  /** Of the LSMT file inside. */
  layer: LayerSummary;
}

/** Bytes read at once to hash. */
const HASH_PIECE = 1024 * 1024;

/**
 * Writes one layer blob. The same content and format give the same bytes.
 *
 * @param path A new file.
 */
export async function writeNativeBlob(
  path: string,
  content: NativeContent,
  format: NativeFormat,
  options: MaterializeOptions = {},
): Promise<NativeBlob> {
  const file = await Deno.open(path, { write: true, createNew: true });
  let layer: LayerSummary;
  let size: number;
  try {
    // The wrapper's head tells the payload's size, which is known at the end.
    const head = tarWrapperHead(0).length;
    await file.truncate(head);
    await file.seek(head, Deno.SeekMode.Start);
    const zfile = new ZFileWriter(new FileSink(file, head), {
      codec: format.codec,
      blockSize: format.blockSize,
      packer: format.packer,
      headerOverwrite: true,
    });
    const writer = await LayerWriter.start(zfile, "native", content);
    let entries = 0;
    for (const run of content.runs()) entries += entriesOf(run);
    await materialize(
      content.device,
      content.runs(),
      entries,
      writer,
      options,
    );
    layer = await writer.finish();
    const summary = await zfile.finish();
    const tail = tarWrapperTail(summary.size);
    const sink = new FileSink(file, head + summary.size);
    await sink.write(tail);
    await file.seek(0, Deno.SeekMode.Start);
    await new FileSink(file).write(tarWrapperHead(summary.size));
    size = head + summary.size + tail.length;
  } finally {
    file.close();
  }
  return { digest: await digestFile(path, size), size, layer };
}

async function digestFile(path: string, size: number): Promise<string> {
  await using file = await FileSource.open(path);
  invariant(file.size === size, "the blob is as long as it was written");
  const hash = createHash("sha256");
  const buffer = new Uint8Array(HASH_PIECE);
  for (let at = 0; at < size; at += HASH_PIECE) {
    const piece = buffer.subarray(0, Math.min(HASH_PIECE, size - at));
    await file.pread(piece, at);
    hash.update(piece);
  }
  return `sha256:${toHex(hash.digest())}`;
}

/**
 * One layer alone as a device, for {@linkcode writeNativeBlob}: what it maps
 * shows, all else is zeros.
 *
 * @param parts Of the layer, bottom first.
 * @param target What its target rows map; everything is borrowed, so the result
 * must not be disposed of.
 */
export function singleLayerDevice(
  parts: readonly OpenedLayer[],
  target: ByteSource,
  virtualSize: number,
): LsmtSource {
  return new LsmtSource(
    parts.map(({ table, data }) => ({ table, data, target })),
    virtualSize,
  );
}

/**
 * The UUID that overlaybd's convertor gives a layer
 * (accelerated-container-image, builder/overlaybd_builder.go): the first 32 hex
 * digits of its chain ID.
 */
export function chainUuid(chainId: string): string {
  const hex = chainId.replace(/^sha256:/, "").slice(0, 32).toUpperCase();
  return [8, 12, 16, 20, 32].map((end, i, ends) =>
    hex.slice(ends[i - 1] ?? 0, end)
  ).join("-");
}

/**
 * The UUID of a part of a layer that is not its last one, which has the chain's
 * own: a layer that was split is still followed and preceded by what follows
 * and precedes it otherwise.
 *
 * @param part From 0.
 */
export function partUuid(chainId: string, part: number): string {
  const hash = createHash("sha256").update(`${chainId} part ${part}`);
  return chainUuid(toHex(hash.digest()));
}

/**
 * One source layer becomes one meta layer: a pass over its blob, its entries
 * applied to the ext4 model, and what differs on the device written down.
 */

import type { Emission, Ext4Model, MappedRanges } from "../ext4/mod.ts";
import { FileSink, FileSource, trimMemory } from "../io/mod.ts";
import { TarWalker } from "../tar/mod.ts";
import { ZFileWriter } from "../zfile/mod.ts";
import { LayerApplier } from "./apply.ts";
import { type Bodies, mapBody } from "./bodies.ts";
import { writeGzipMeta } from "./gzip_meta.ts";
import type { ImageSpace } from "./image_space.ts";
import type { LayerStack } from "./layer_stack.ts";
import { type LayerBlock, WarpMap, writeWarpLayer } from "./lsmt/mod.ts";
import { META_MEMBER, writeMetaBlob } from "./meta_blob.ts";
import { type OpenedLayer, openLayer } from "./open_layer.ts";
import { type LayerScan, scanLayer } from "./pass/mod.ts";
import { encodeSpans, spanIndexOf } from "./spans.ts";

/** Uncompressed bytes between the checkpoints of a gzip layer; what TurboOCI's tools use. */
export const DEFAULT_SPAN_SIZE = 1024 * 1024;
/** Blocks of the ZFile around the metadata: the largest that every reader takes, which packs best. */
const ZFILE_BLOCK_SIZE = 32 * 1024;

/** A source layer to pass over. */
export interface LayerInput {
  /** The whole blob, in order. */
  blob: AsyncIterable<Uint8Array>;
  digest: string;
  /** Bytes of the blob. */
  size: number;
  mediaType: string;
  /** Digest of the uncompressed tar. */
  diffId: string;
  spanSize: number;
  threads: number;
  signal?: AbortSignal | undefined;
  /** Gets a line for what is left out. */
  warn: (message: string) => void;
  /** Gets the tar too, before its digest is known; borrows `bytes` during the call. */
  tee?: ((bytes: Uint8Array) => void) | undefined;
}

/** What was learned from a source layer. */
export interface ScannedLayer {
  scan: LayerScan;
  entryCount: number;
  mediaType: string;
  spanSize: number;
}

/** Bytes of a meta blob's parts, before the outer compression. */
export interface LayerBreakdown {
  /** ext4 metadata and map, as stored. */
  fsMeta: number;
  /** `gzip.meta`; nearly all of it is windows. */
  gzipIndex: number;
  /** `obd.spans`: digests of spans, and an index where `gzip.meta` cannot express it. */
  spans: number;
}

/** A written layer. */
export interface BuiltLayer {
  reused: false;
  /** Native layers store their content; others point into the source layer. */
  kind: "turbo" | "native";
  /** Of the blob to push: the meta blob, or the native layer's. */
  digest: string;
  size: number;
  /** Digest of the uncompressed meta tar; of a native layer the blob's own. */
  diffId: string;
  compression: LayerScan["compression"];
  entryCount: number;
  spanCount: number;
  breakdown: LayerBreakdown;
  /** File with the blob. */
  path: string;
}

/**
 * Passes over a layer's blob and applies its entries.
 *
 * @param layer Number of the layer, 0 = bottom.
 * @param bodies Gets where the files' content lies.
 * @param space Says afterwards whether the device had room.
 */
export async function scanInto(
  model: Ext4Model,
  bodies: Bodies,
  layer: number,
  space: ImageSpace,
  input: LayerInput,
): Promise<ScannedLayer> {
  const applier = new LayerApplier(model, bodies, layer, space, input.warn);
  const walker = new TarWalker({ onEntry: (entry) => applier.add(entry) });
  const { tee } = input;
  const scan = await scanLayer(input.blob, {
    blobSize: input.size,
    expectedDigest: input.digest,
    expectedDiffId: input.diffId,
    walker: tee
      ? {
        push(bytes) {
          tee(bytes);
          walker.push(bytes);
        },
        finish: () => walker.finish(),
      }
      : walker,
    spanSize: input.spanSize,
    signal: input.signal,
    threads: input.threads,
  });
  trimMemory();
  return {
    scan,
    entryCount: applier.entryCount,
    mediaType: input.mediaType,
    spanSize: input.spanSize,
  };
}

/** What a meta layer maps and stores. */
export interface LayerContent {
  map: WarpMap;
  blocks: Iterable<LayerBlock>;
}

/**
 * The content of a layer that holds the model's changes and its own bodies.
 *
 * @param below What the layers below map.
 */
export function layerContent(
  model: Ext4Model,
  emission: Emission | undefined,
  bodies: Bodies,
  layer: number,
  below: MappedRanges,
): LayerContent & { stored: LayerBlock[] } {
  const map = new WarpMap();
  const stored: LayerBlock[] = [];
  for (const [node, body] of bodies) {
    if (body.layer !== layer) continue;
    for (const block of mapBody(body, model.extents(node), below, map)) {
      stored.push(block);
    }
  }
  for (const run of emission?.zeroed ?? []) {
    map.addZeroed(run.block * 4096, run.count * 4096);
  }
  return { map, stored, blocks: joinBlocks(emission, stored) };
}

function* joinBlocks(
  emission: Emission | undefined,
  stored: LayerBlock[],
): Generator<LayerBlock> {
  for (const { block, bytes } of emission?.blocks ?? []) {
    yield { offset: block * 4096, bytes };
  }
  yield* stored;
}

/**
 * Writes a meta blob and puts its layer on the stack.
 *
 * @param path File to write; `PATH.fs` is used beside it and stays for the stack.
 */
export async function writeMetaLayer(
  scanned: ScannedLayer,
  content: LayerContent,
  virtualSize: number,
  stack: LayerStack,
  path: string,
): Promise<BuiltLayer> {
  const fsMeta = await writeFsMeta(`${path}.fs`, content, virtualSize);
  const { scan, mediaType, spanSize } = scanned;
  const spans = encodeSpans(spanIndexOf(scan, { mediaType, spanSize }));
  const isTurboReadable = scan.compression === "gzip" && scan.members === 1;
  const gzipMeta = isTurboReadable
    ? writeGzipMeta({
      spanSize,
      gzipSize: scan.blobSize,
      uncompressedSize: scan.tarSize,
      checkpoints: scan.checkpoints,
    })
    : undefined;
  const file = await Deno.open(path, { write: true, createNew: true });
  try {
    const blob = await writeMetaBlob(new FileSink(file), [
      { name: META_MEMBER.ext4, content: fsMeta },
      { name: META_MEMBER.marker, content: new Uint8Array() },
      ...(gzipMeta ? [{ name: META_MEMBER.gzipMeta, content: gzipMeta }] : []),
      { name: META_MEMBER.spans, content: spans },
    ]);
    stack.add(await openLayer(fsMeta, "warp"));
    trimMemory();
    return {
      reused: false,
      kind: "turbo",
      digest: blob.digest,
      size: blob.size,
      diffId: blob.diffId,
      compression: scan.compression,
      entryCount: scanned.entryCount,
      spanCount: scan.spans.count,
      breakdown: {
        fsMeta: fsMeta.size,
        gzipIndex: gzipMeta?.length ?? 0,
        spans: spans.length,
      },
      path,
    };
  } finally {
    file.close();
  }
}

/**
 * Puts a layer on the stack without a meta blob: what native layers are made
 * from.
 *
 * @param path File to write; stays for the stack.
 */
export async function stackLayer(
  content: LayerContent,
  virtualSize: number,
  stack: LayerStack,
  path: string,
): Promise<OpenedLayer> {
  const fsMeta = await writeFsMeta(path, content, virtualSize);
  const layer = await openLayer(fsMeta, "warp");
  stack.add(layer);
  return layer;
}

async function writeFsMeta(
  path: string,
  content: LayerContent,
  virtualSize: number,
): Promise<FileSource> {
  const file = await Deno.open(path, { write: true, createNew: true });
  try {
    const zfile = new ZFileWriter(new FileSink(file), {
      blockSize: ZFILE_BLOCK_SIZE,
      headerOverwrite: true,
    });
    await writeWarpLayer(zfile, { ...content, virtualSize });
    await zfile.finish();
  } finally {
    file.close();
  }
  return await FileSource.open(path);
}

/**
 * One source layer becomes one meta layer: a pass over its blob, its entries
 * applied to the ext4 model, and what differs on the device written down.
 */

import { SPAN_SIZE_SHORT } from "../compress/mod.ts";
import type { Emission, Ext4Model, MappedRanges } from "../ext4/mod.ts";
import { FileSink, FileSource, trimMemory } from "../io/mod.ts";
import { TarWalker } from "../tar/mod.ts";
import { ZFileWriter } from "../zfile/mod.ts";
import { LayerApplier } from "./apply.ts";
import { type Bodies, mapBody } from "./bodies.ts";
import { writeGzipMeta } from "./gzip_meta.ts";
import type { ImageSpace } from "./image_space.ts";
import type { LayerStack } from "./layer_stack.ts";
import {
  type LayerBlock,
  WarpMap,
  type WarpOutput,
  writeWarpLayers,
} from "./lsmt/mod.ts";
import { META_MEMBER, writeMetaBlob } from "./meta_blob.ts";
import { type OpenedLayer, openLayer } from "./open_layer.ts";
import { type LayerScan, scanLayer } from "./pass/mod.ts";
import { encodeSpans, spanIndexOf } from "./spans.ts";

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
  /** Uncompressed bytes of a span at most; default what suits the layer. */
  spanSize?: number | undefined;
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
  /** Bytes at the tar's start that its author marked as needed soonest. */
  prefetchBytes?: number | undefined;
  mediaType: string;
  /** Uncompressed bytes of a span, as its index names them. */
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

/**
 * One of the blobs that a source layer becomes: it is the only one, unless the
 * layer has more map entries than a reader takes (`MAX_LAYER_ENTRIES`).
 */
export interface LayerPart {
  /** Of the blob to push: the meta blob, or the native layer's. */
  digest: string;
  /** Bytes of the blob. */
  size: number;
  /** Digest of the uncompressed meta tar; of a native layer the blob's own. */
  diffId: string;
}

/** A blob that was just written. */
export interface BuiltPart extends LayerPart {
  /** File with the blob. */
  path: string;
}

/** A written layer. */
export interface BuiltLayer {
  reused: false;
  /** Native layers store their content; others point into the source layer. */
  kind: "turbo" | "native";
  /** At least one; bottom first. */
  parts: readonly BuiltPart[];
  compression: LayerScan["compression"];
  entryCount: number;
  /** As in {@linkcode ScannedLayer}. */
  prefetchBytes?: number | undefined;
  spanCount: number;
  /** Over all parts. */
  breakdown: LayerBreakdown;
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
    prefetchBytes: applier.prefetchBytes,
    mediaType: input.mediaType,
    spanSize: input.spanSize ?? SPAN_SIZE_SHORT,
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

/** What a layer's map is written for. */
export interface LayerDevice {
  /** Bytes of the device. */
  virtualSize: number;
  /** Map entries of one part at most; default what readers take. For tests. */
  maxEntries?: number | undefined;
}

/**
 * Writes the meta blobs of a layer and puts their maps on the stack.
 *
 * @param path File to write; further parts get `.1`, `.2`… behind it. `PATH.fs`
 * is used beside each and stays for the stack.
 */
export async function writeMetaLayer(
  scanned: ScannedLayer,
  content: LayerContent,
  device: LayerDevice,
  stack: LayerStack,
  path: string,
): Promise<{ layer: BuiltLayer; opened: OpenedLayer[] }> {
  const paths = await writeFsMetas(path, content, device);
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
  const parts: BuiltPart[] = [];
  const opened: OpenedLayer[] = [];
  const breakdown: LayerBreakdown = { fsMeta: 0, gzipIndex: 0, spans: 0 };
  for (const part of paths) {
    const fsMeta = await FileSource.open(fsMetaPath(part));
    const layer = await openLayer(fsMeta, "warp");
    stack.add(layer);
    opened.push(layer);
    // Each part has the target's whole index: readers open it by itself.
    const blob = await writeBlobFile(part, [
      { name: META_MEMBER.ext4, content: fsMeta },
      { name: META_MEMBER.marker, content: new Uint8Array() },
      ...(gzipMeta ? [{ name: META_MEMBER.gzipMeta, content: gzipMeta }] : []),
      { name: META_MEMBER.spans, content: spans },
    ]);
    parts.push({ ...blob, path: part });
    breakdown.fsMeta += fsMeta.size;
    breakdown.gzipIndex += gzipMeta?.length ?? 0;
    breakdown.spans += spans.length;
  }
  trimMemory();
  return {
    layer: {
      reused: false,
      kind: "turbo",
      parts,
      compression: scan.compression,
      entryCount: scanned.entryCount,
      prefetchBytes: scanned.prefetchBytes,
      spanCount: scan.spans.count,
      breakdown,
    },
    opened,
  };
}

async function writeBlobFile(
  path: string,
  members: Parameters<typeof writeMetaBlob>[1],
): Promise<LayerPart> {
  using file = await Deno.open(path, { write: true, createNew: true });
  const { digest, size, diffId } = await writeMetaBlob(
    new FileSink(file),
    members,
  );
  return { digest, size, diffId };
}

/**
 * Puts a layer on the stack without a meta blob: what native layers are made
 * from.
 *
 * @param path As for {@linkcode writeMetaLayer}; only `PATH.fs` is written.
 * @returns Its parts, bottom first.
 */
export async function stackLayer(
  content: LayerContent,
  device: LayerDevice,
  stack: LayerStack,
  path: string,
): Promise<OpenedLayer[]> {
  const opened: OpenedLayer[] = [];
  for (const part of await writeFsMetas(path, content, device)) {
    const layer = await openLayer(
      await FileSource.open(fsMetaPath(part)),
      "warp",
    );
    stack.add(layer);
    opened.push(layer);
  }
  return opened;
}

function fsMetaPath(path: string): string {
  return `${path}.fs`;
}

/** Writes `PATH.fs` for each part of a layer; returns each part's PATH. */
async function writeFsMetas(
  path: string,
  content: LayerContent,
  device: LayerDevice,
): Promise<string[]> {
  const paths: string[] = [];
  let current: { file: Deno.FsFile; zfile: ZFileWriter } | undefined;
  const output: WarpOutput = {
    async open(index) {
      const part = index === 0 ? path : `${path}.${index}`;
      const file = await Deno.open(fsMetaPath(part), {
        write: true,
        createNew: true,
      });
      const zfile = new ZFileWriter(new FileSink(file), {
        // The meta blob is a gzip: bench/meta_size.ts says what this saves.
        codec: "lz4-for-gzip",
        blockSize: ZFILE_BLOCK_SIZE,
        headerOverwrite: true,
      });
      current = { file, zfile };
      paths.push(part);
      return zfile;
    },
    async close() {
      const { file, zfile } = current!;
      await zfile.finish();
      current = undefined;
      file.close();
    },
  };
  try {
    await writeWarpLayers(output, { ...content, ...device });
  } finally {
    current?.file.close();
  }
  return paths;
}

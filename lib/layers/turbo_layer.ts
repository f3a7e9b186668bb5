/**
 * Opens one TurboOCI layer: the metadata from its meta blob, the content from
 * the original layer blob through the index in the meta blob.
 *
 * ```
 * meta blob ── fs.meta ── zfile ── lsmt ──────────────┐
 *           ├─ gzip.meta ─┐                           ├─ stack layer
 *           └─ obd.spans ─┴─ blob > cache > inflate ──┘
 * ```
 */

import { createHash } from "node:crypto";
import {
  type ByteSource,
  FormatError,
  IntegrityError,
  type Logger,
  MemorySource,
  UnsupportedError,
  utf8,
} from "../io/mod.ts";
import { CachedSource, type CacheStore } from "./cache/mod.ts";
import {
  type CheckpointTable,
  GunzipSource,
  type SpanInflater,
} from "./gunzip.ts";
import { readGzipMeta } from "./gzip_meta.ts";
import type { StackLayer } from "./lsmt/mod.ts";
import { META_MEMBER } from "./meta_blob.ts";
import { openLayer } from "./open_layer.ts";
import type { LayerCheckpoints } from "./pass/mod.ts";
import { PinnedSource } from "./pinned_source.ts";
import type { PinnedStore } from "./pinned_store.ts";
import { READAHEAD_BYTES } from "./readahead.ts";
import type { ReadStats } from "./read_stats.ts";
import { VerifiedSource } from "./plain_target.ts";
import type { SpanCache } from "./span_source.ts";
import { SpanTable } from "./span_table.ts";
import { checkpointsOf, decodeSpans, type SpanIndex } from "./spans.ts";
import { isSeekable, type ZstdDecoder, ZstdSource } from "./zstd_source.ts";

/** How sure served bytes are: each span's SHA-256, each block's CRC, or nothing. */
export type Integrity = "spans" | "block-crc" | "none";

/** The original layer that a meta layer points into. */
export interface Target {
  digest: string;
  mediaType: string;
  /**
   * Where the blob comes from: what nothing can check is kept apart in the
   * caches, so that one registry's wrong bytes are never served for another's.
   */
  origin?: string | undefined;
  /** Random access to the blob as it is stored; `size` is what the index says, if it says so. */
  open(size: number | undefined): Promise<ByteSource>;
}

/**
 * Layers with spans are read in whole spans, a few hundred KiB that lie anywhere
 * in the blob: larger blocks would only fetch more around them.
 */
const SPAN_BLOCK_SIZE = 64 * 1024;

/** What opened layers share. */
export interface LayerServices {
  inflater: SpanInflater & ZstdDecoder;
  spanCache: SpanCache;
  /** Where layers go that can only be decoded from their start. */
  pinnedStore: PinnedStore;
  blobStore?: CacheStore | undefined;
  /** Unit in which blobs are fetched and cached, in bytes; smaller for layers with spans. */
  blobBlockSize: number;
  logger: Logger;
  /** Where the loads of an image are counted. */
  readStats?: ReadStats | undefined;
}

/** A layer ready for a stack. */
export interface OpenedTurboLayer extends StackLayer {
  virtualSize: number;
  integrity: Integrity;
  /** Of the original blob, as its content says. */
  compression: SpanIndex["compression"];
  /** Bytes of the original blob. */
  targetSize: number;
  index: SpanIndex | undefined;
}

/**
 * Opens one layer.
 *
 * @param members Of the meta blob, whose digest was checked.
 * @throws {IntegrityError} If the index is of another blob than the target.
 * @throws {FormatError} If something is missing, or contradicts itself.
 */
export async function openTurboLayer(
  members: ReadonlyMap<string, Uint8Array>,
  target: Target,
  services: LayerServices,
): Promise<OpenedTurboLayer> {
  const part = await openTurboPart(members);
  try {
    return { ...part, ...await openTarget(members, target, services) };
  } catch (error) {
    await part.data[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * Opens what one meta blob says of the device, without its target: for the
 * further parts of a layer that was split.
 *
 * @param members As for {@linkcode openTurboLayer}.
 */
export async function openTurboPart(
  members: ReadonlyMap<string, Uint8Array>,
): Promise<Pick<OpenedTurboLayer, "table" | "data" | "virtualSize">> {
  const fsMeta = members.get(META_MEMBER.ext4) ??
    members.get(META_MEMBER.erofs);
  if (!fsMeta) {
    throw new FormatError(
      "meta blob",
      META_MEMBER.ext4,
      `is missing (members: ${[...members.keys()].join(", ") || "none"})`,
    );
  }
  const { table, data, virtualSize } = await openLayer(
    new MemorySource(fsMeta),
    "warp",
  );
  return { table, data, virtualSize };
}

/**
 * Names a blob in the caches whose bytes cannot be checked.
 *
 * @param origin Where it comes from.
 * @param index What decides how it is read, if anything does.
 */
export function uncheckedKey(
  origin: string | undefined,
  digest: string,
  index: Uint8Array = new Uint8Array(),
): string {
  const hash = createHash("sha256").update(index).update(utf8(origin ?? ""));
  return `${hash.digest("hex").slice(0, 32)}/${digest}`;
}

/** An opened target, and what is known of it. */
export type OpenedTarget =
  & Pick<
    OpenedTurboLayer,
    "integrity" | "compression" | "targetSize" | "index"
  >
  & { target: ByteSource };

/**
 * Opens the content behind a TurboOCI layer's metadata.
 *
 * @param members As for {@linkcode openTurboLayer}; the metadata is not looked at.
 */
export async function openTarget(
  members: ReadonlyMap<string, Uint8Array>,
  target: Target,
  services: LayerServices,
): Promise<OpenedTarget> {
  const spans = members.get(META_MEMBER.spans);
  const index = spans && decodeSpans(spans);
  if (index && index.blobDigest !== target.digest) {
    throw new IntegrityError(
      `Layer that "${META_MEMBER.spans}" belongs to`,
      target.digest,
      index.blobDigest,
    );
  }
  const blob = await target.open(index?.blobSize);
  try {
    if (index && blob.size !== index.blobSize) {
      throw new IntegrityError(
        `Size of layer "${target.digest}"`,
        String(index.blobSize),
        String(blob.size),
      );
    }
    const gzipMeta = members.get(META_MEMBER.gzipMeta);
    const cached = new CachedSource(blob, {
      key: index ? target.digest : uncheckedKey(target.origin, target.digest),
      store: services.blobStore,
      blockSize: index || gzipMeta
        ? Math.min(services.blobBlockSize, SPAN_BLOCK_SIZE)
        : services.blobBlockSize,
      // Where spans are decoded above it, they are read ahead and counted there.
      ...(index || gzipMeta
        ? {}
        : { readaheadBytes: READAHEAD_BYTES, stats: services.readStats }),
    });
    const opened = index
      ? await openChecked(index, gzipMeta, cached, target, services)
      : openForeign(gzipMeta, cached, target, services);
    return { ...opened, targetSize: blob.size, index };
  } catch (error) {
    await blob[Symbol.asyncDispose]();
    throw error;
  }
}

async function openChecked(
  index: SpanIndex,
  gzipMeta: Uint8Array | undefined,
  blob: ByteSource,
  target: Target,
  services: LayerServices,
): Promise<Pick<OpenedTarget, "target" | "integrity" | "compression">> {
  const { compression } = index;
  const options = {
    digest: target.digest,
    spans: new SpanTable(index.spanOffset, index.tarSize, index.spanDigest),
    cache: services.spanCache,
    logger: services.logger,
    stats: services.readStats,
  };
  const pin = (compressedStart: number) =>
    PinnedSource.open(blob, {
      digest: target.digest,
      diffId: index.diffId,
      compression: compression === "gzip" ? "gzip" : "zstd",
      spans: options.spans,
      compressedStart,
      store: services.pinnedStore,
      logger: services.logger,
    });
  switch (compression) {
    case "none":
      return {
        target: new VerifiedSource(blob, options),
        integrity: "spans",
        compression,
      };
    case "gzip": {
      const checkpoints = checkpointsOf(
        index,
        gzipMeta && readGzipMeta(gzipMeta, index.blobSize),
      );
      if (checkpoints.count < options.spans.count) {
        return { target: await pin(0), integrity: "spans", compression };
      }
      return {
        target: new GunzipSource(blob, {
          ...options,
          checkpoints: checkpointTable(checkpoints),
          inflater: services.inflater,
        }),
        integrity: "spans",
        compression,
      };
    }
    case "zstd": {
      const checkpoints = index.checkpoints!;
      if (!isSeekable(blob.size, options.spans, checkpoints)) {
        const start = checkpoints.compressedOffset[0]!;
        return { target: await pin(start), integrity: "spans", compression };
      }
      return {
        target: new ZstdSource(blob, {
          ...options,
          checkpoints,
          decoder: services.inflater,
        }),
        integrity: "spans",
        compression,
      };
    }
  }
}

/** A layer of another tool: there is nothing to check its bytes against. */
function openForeign(
  gzipMeta: Uint8Array | undefined,
  blob: ByteSource,
  target: Target,
  services: LayerServices,
): Pick<OpenedTarget, "target" | "integrity" | "compression"> {
  const isGzip = /[.+]gzip$/.test(target.mediaType);
  if (!gzipMeta) {
    if (isGzip) {
      throw new FormatError(
        "meta blob",
        META_MEMBER.gzipMeta,
        "is missing, and the target is gzip",
      );
    }
    if (!/(^|[.+])tar$/.test(target.mediaType) && target.mediaType !== "") {
      throw new UnsupportedError(
        target.mediaType,
        `Layer "${target.digest}" has the target type "${target.mediaType}" and no index of it`,
      );
    }
    return { target: blob, integrity: "none", compression: "none" };
  }
  const meta = readGzipMeta(gzipMeta, blob.size);
  return {
    target: new GunzipSource(blob, {
      digest: target.digest,
      spans: new SpanTable(
        meta.checkpoints.uncompressedOffset,
        meta.uncompressedSize,
        undefined,
      ),
      checkpoints: checkpointTable(meta.checkpoints),
      // A wrong index makes wrong spans: another one's are not to be found.
      cacheKey: uncheckedKey(target.origin, target.digest, gzipMeta),
      cache: services.spanCache,
      inflater: services.inflater,
      logger: services.logger,
      stats: services.readStats,
    }),
    integrity: "none",
    compression: "gzip",
  };
}

function checkpointTable(tables: LayerCheckpoints): CheckpointTable {
  return {
    count: tables.count,
    compressedOffset: (i) => tables.compressedOffset[i]!,
    bits: (i) => tables.bits[i]!,
    window: (i) => tables.window[i]!,
  };
}

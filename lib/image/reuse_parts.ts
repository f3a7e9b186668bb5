/** One blob of a layer that was built before, opened and compared with what a build would write. */

import { FormatError, MemorySource } from "../io/mod.ts";
import {
  decodeSpans,
  isSeekable,
  type LayerBreakdown,
  META_MEMBER,
  type OpenedLayer,
  openLayer,
  type SpanIndex,
  SpanTable,
} from "../layers/mod.ts";
import type { Descriptor, Repository } from "../registry/mod.ts";
import { ZFileSource } from "../zfile/mod.ts";
import type { ChainParameters } from "./chain_key.ts";
import { fetchMetaBlob } from "./meta_blobs.ts";

/** A meta blob, with what it says of its layer. */
export interface MetaPart {
  diffId: string;
  compression: SpanIndex["compression"];
  spanCount: number;
  breakdown: LayerBreakdown;
  opened: OpenedLayer;
}

/**
 * Fetches a meta blob whole.
 *
 * @param target The source layer that it must be of.
 * @throws {FormatError} If it is of another layer or device, or of a kind that
 * the build would make native.
 */
export async function openMetaPart(
  repository: Repository,
  descriptor: Descriptor,
  target: { digest: string; diffId: string },
  parameters: ChainParameters,
  signal: AbortSignal | undefined,
): Promise<MetaPart> {
  const blob = await fetchMetaBlob(repository, descriptor, signal);
  const fsMeta = blob.members.get(META_MEMBER.ext4);
  const spans = blob.members.get(META_MEMBER.spans);
  if (!fsMeta || !spans) {
    throw new FormatError("meta blob", "members", "are not those of obd");
  }
  const index = decodeSpans(spans);
  if (index.blobDigest !== target.digest || index.diffId !== target.diffId) {
    throw new FormatError("obd.spans", "digests", "are of another layer");
  }
  const gzipMeta = blob.members.get(META_MEMBER.gzipMeta);
  checkKind(index, gzipMeta !== undefined, parameters);
  const opened = await openLayer(new MemorySource(fsMeta), "warp");
  try {
    checkSize("meta layer", opened, parameters.virtualSize);
  } catch (error) {
    await opened.data[Symbol.asyncDispose]();
    throw error;
  }
  return {
    diffId: blob.diffId,
    compression: index.compression,
    spanCount: index.spanOffset.length,
    breakdown: {
      fsMeta: fsMeta.length,
      gzipIndex: gzipMeta?.length ?? 0,
      spans: spans.length,
    },
    opened,
  };
}

/** A layer that must be native for its readers is not taken over as a meta layer. */
function checkKind(
  index: SpanIndex,
  hasGzipMeta: boolean,
  { compat, convertUnseekable }: ChainParameters,
): void {
  const { compression, checkpoints } = index;
  const isTurbo = compression === "none" ||
    (compression === "gzip" && hasGzipMeta);
  if (compat && !isTurbo) {
    throw new FormatError(
      "meta layer",
      "target",
      "cannot be read by overlaybd",
    );
  }
  if (!convertUnseekable || compression === "none") return;
  if (compression === "gzip") {
    if (!checkpoints || checkpoints.count === index.spanOffset.length) return;
    throw new FormatError("meta layer", "target", "cannot be read at random");
  }
  const spans = new SpanTable(
    index.spanOffset,
    index.tarSize,
    index.spanDigest,
  );
  if (!checkpoints || !isSeekable(index.blobSize, spans, checkpoints)) {
    throw new FormatError("meta layer", "target", "cannot be read at random");
  }
}

/**
 * Opens a native layer; its header, its index and its jump table are read.
 *
 * @param uuid The layer's, which says which chain it was made of.
 * @throws {FormatError} If it is another layer, of another device, or stored
 * otherwise.
 */
export async function openNativePart(
  repository: Repository,
  descriptor: Descriptor,
  parameters: ChainParameters,
  uuid: string,
): Promise<OpenedLayer> {
  const blob = await repository.openBlob(descriptor);
  const opened = await openLayer(blob, "native");
  try {
    if (opened.uuid !== uuid) {
      throw new FormatError(
        "native layer",
        "UUID",
        `is ${opened.uuid}, expected ${uuid}`,
      );
    }
    checkSize("native layer", opened, parameters.virtualSize);
    checkStorage(opened, parameters);
    return opened;
  } catch (error) {
    await opened.data[Symbol.asyncDispose]();
    throw error;
  }
}

/** A tag may have been moved to layers of a device of another size, which those of this build must not be put on. */
function checkSize(
  what: string,
  { virtualSize }: OpenedLayer,
  wanted: number,
): void {
  if (virtualSize === wanted) return;
  throw new FormatError(
    what,
    "virtual size",
    `is ${virtualSize}, expected ${wanted}`,
  );
}

/** @throws {FormatError} If a native layer is not compressed as was asked for. */
export function checkStorage(
  { data }: OpenedLayer,
  { native }: ChainParameters,
): void {
  const { codec, blockSize } = data instanceof ZFileSource
    ? data
    : { codec: "none", blockSize: 0 };
  if (codec === native?.codec && blockSize === native.blockSize) return;
  throw new FormatError(
    "native layer",
    "compression",
    `is ${codec} in blocks of ${blockSize}, expected ${native?.codec} in blocks of ${native?.blockSize}`,
  );
}

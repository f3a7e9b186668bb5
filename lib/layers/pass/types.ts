/** What one pass over a layer blob takes and gives. */

/** Formats that a layer blob may have, told by its content. */
export type LayerCompression = "none" | "gzip" | "zstd";

/** Receives the uncompressed tar in order, synchronously; `lib/tar`'s walker is one. */
export interface TarReceiver {
  /** Borrows `bytes` only during the call. */
  push(bytes: Uint8Array): void;
  /** The tar is over. */
  finish(): void;
}

/** Spans of the uncompressed layer, in order and without gaps. */
export interface LayerSpans {
  readonly count: number;
  /** Where each span starts, in bytes of the uncompressed tar. */
  readonly uncompressedOffset: Float64Array;
  /** Bytes of each span. */
  readonly size: Float64Array;
  /** 32 bytes for each span. */
  readonly sha256: Uint8Array;
}

/**
 * Where a compressed layer can be resumed. For gzip the start of span `i` is
 * checkpoint `i`; for zstd some spans start at none, because their frame began
 * before, and for gzip inside of deflate blocks of more than 32 MiB. Empty for
 * a plain tar.
 */
export interface LayerCheckpoints {
  readonly count: number;
  /** Offset in the blob of the first whole byte. */
  readonly compressedOffset: Float64Array;
  /** Bits of the byte before it that belong to what follows, 0 … 7. */
  readonly bits: Uint8Array;
  readonly uncompressedOffset: Float64Array;
  /** zlib streams of the 32,768-byte windows; an empty one where nothing before is referred to. */
  readonly window: readonly Uint8Array[];
}

/** Everything learned from one pass over a layer blob. */
export interface LayerScan {
  /** `sha256:…` of the blob; equals what was expected. */
  blobDigest: string;
  /** Bytes of the blob. */
  blobSize: number;
  compression: LayerCompression;
  /** `sha256:…` of the uncompressed tar. */
  diffId: string;
  /** Bytes of the uncompressed tar. */
  tarSize: number;
  /** gzip members or zstd frames; 0 for a plain tar. */
  members: number;
  spans: LayerSpans;
  checkpoints: LayerCheckpoints;
}

/** Options of `scanLayer`. */
export interface ScanOptions {
  /** Bytes of the blob, from its descriptor. */
  blobSize: number;
  /** `sha256:…` of the blob, from its descriptor. */
  expectedDigest: string;
  /** `sha256:…` of the tar, from the image's config. */
  expectedDiffId?: string | undefined;
  /** Gets the tar. What it got is only right once the scan has resolved. */
  walker?: TarReceiver | undefined;
  /**
   * Uncompressed bytes of a span at most, where the blob has places to resume.
   * Default: 1 MiB for zstd; for gzip what the layer makes best (`SpanPlan`).
   */
  spanSize?: number | undefined;
  /** Zero the window bytes that nothing refers to. Default true. */
  sparseWindows?: boolean | undefined;
  /** Called with the number of blob bytes that were added. */
  onProgress?: ((bytes: number) => void) | undefined;
  signal?: AbortSignal | undefined;
  /**
   * Threads in all: 1 does everything on the calling thread, 2 decodes on
   * another, 3 also computes the digests on one. The result is the same.
   * Default: 3, or the cores if there are fewer.
   */
  threads?: number | undefined;
}

/** Span of a plain tar in bytes. */
export const PLAIN_SPAN_SIZE = 128 * 1024;
/** Largest uncompressed tar in bytes. */
export const TAR_SIZE_MAX = 2 ** 44;

/**
 * Where the spans of a gzip blob end.
 *
 * A checkpoint costs a window, its entry and a digest; a read costs the fetch
 * and the decoding of a span. So spans are short where checkpoints are cheap
 * beside the blob, and long where they are dear: text, whose windows are
 * referred to a lot, and what compresses so well that little blob is left
 * between two checkpoints. See SPANS.md of `lib/layers`, "Span sizes".
 *
 * The rule looks at nothing but the blob's size and what came before, so the
 * same blob always gets the same spans.
 */

const MIB = 1024 * 1024;

/** A span is as short as this where its checkpoint is cheap. Uncompressed bytes. */
export const SPAN_SIZE_SHORT = MIB;
/** A span is not longer than this where the index is not too big. Uncompressed bytes. */
export const SPAN_SIZE_LONG = 2 * MIB;
/** A span is not planned longer than this whatever the index becomes. Uncompressed bytes. */
export const SPAN_SIZE_RARE = 64 * MIB;

/** Bytes of index for a byte of blob up to which spans stay short. */
const CHEAP_SHARE = 0.0035;
/** Bytes of index for a byte of blob up to which spans stay below the long size. */
const BOUND_SHARE = 0.0058;
/** Smaller blobs are treated as this big: their index is small anyway. Bytes. */
const BLOB_SIZE_MIN = 20_000_000;

/**
 * What a checkpoint takes besides its window: 32 bytes of digest, and what 29
 * bytes of `gzip.meta` and the span's size come to when they are compressed.
 */
const CHECKPOINT_COST = 48;

/** How to cut; see {@linkcode SpanPlan}. */
export interface SpanPlanOptions {
  /** Bytes of the blob. */
  blobSize: number;
  /** Spans of at most this many uncompressed bytes, instead of those that the rule makes. */
  spanSize?: number | undefined;
}

/** Says of one blob, span after span, where they may end. */
export class SpanPlan {
  readonly #fixed: number | undefined;
  readonly #cheapShare: number;
  readonly #boundShare: number;
  /** Where the current span starts in the output. */
  #start = 0;
  /** Blob bytes up to which the next checkpoint would be more than cheap, or out of bounds. */
  #cheapFrom = 0;
  #boundFrom = 0;
  /** Bytes of index so far. */
  #spent = 0;
  /** What the next checkpoint will cost about. */
  #expected = CHECKPOINT_COST;

  /** @throws {RangeError} If the span size is not in 1 … 64 MiB. */
  constructor(options: SpanPlanOptions) {
    const { spanSize } = options;
    if (
      spanSize !== undefined && !(spanSize >= 1 && spanSize <= SPAN_SIZE_RARE)
    ) {
      throw new RangeError(
        `Span size ${spanSize} is not in 1 … ${SPAN_SIZE_RARE}`,
      );
    }
    this.#fixed = spanSize;
    const grown = Math.max(1, BLOB_SIZE_MIN / Math.max(1, options.blobSize));
    this.#cheapShare = CHEAP_SHARE * grown;
    this.#boundShare = BOUND_SHARE * grown;
  }

  /**
   * Starts a span.
   *
   * @param at Where, in uncompressed bytes.
   * @param stored Bytes that its window takes in the index.
   */
  start(at: number, stored: number): void {
    const cost = CHECKPOINT_COST + stored;
    this.#start = at;
    this.#spent += cost;
    this.#expected = (3 * this.#expected + cost) / 4;
    const next = this.#spent + this.#expected;
    this.#cheapFrom = next / this.#cheapShare;
    this.#boundFrom = next / this.#boundShare;
  }

  /**
   * Whether the current span may go on to a position. Once it may not, it may
   * not go on to any later one either.
   *
   * @param compressed Bytes of the blob up to there.
   * @param uncompressed Bytes of the output up to there.
   */
  reaches(compressed: number, uncompressed: number): boolean {
    const size = uncompressed - this.#start;
    if (this.#fixed !== undefined) return size <= this.#fixed;
    return size <= SPAN_SIZE_SHORT ||
      (size <= SPAN_SIZE_LONG && compressed <= this.#cheapFrom) ||
      (size <= SPAN_SIZE_RARE && compressed <= this.#boundFrom);
  }
}

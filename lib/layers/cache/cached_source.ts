/** A block cache in front of any source. */

import {
  ByteBudget,
  type ByteSource,
  checkRange,
  priorityOf,
  type ReadOptions,
  type SourceDescription,
} from "../../io/mod.ts";
import type { ReadStats } from "../read_stats.ts";
import { type Stream, StreamTracker } from "../readahead.ts";
import { PieceFetcher } from "./piece_fetcher.ts";
import { closedError, type OnProgress, RangeReader } from "./range_reader.ts";
import type { CacheStore } from "./store.ts";
import { type Held, StoredBlocks } from "./stored_blocks.ts";

const DEFAULT_BLOCK_SIZE = 256 * 1024;
const DEFAULT_FETCH_BYTES = 1024 * 1024;
const DEFAULT_IN_FLIGHT_BYTES = 32 * 1024 * 1024;

/** Settings of a {@linkcode CachedSource}. */
export interface CachedSourceOptions {
  /** Names the content, e.g. the blob's digest: equal keys must mean equal bytes. At most 200 characters. */
  key: string;
  /** Without one, the source only joins and coalesces reads. Borrowed. */
  store?: CacheStore | undefined;
  /**
   * Bytes of a block, what is fetched around a wanted byte while little else
   * is under way; a multiple of 4096, default 256 KiB. While much is under way
   * pieces of 64 KiB are fetched, of blocks that are a multiple of that.
   */
  blockSize?: number;
  /** Most bytes of one read of the inner source; default 1 MiB, at least one block. */
  maxFetchBytes?: number;
  /** Bytes in flight; shared between sources to bound a process. */
  budget?: ByteBudget;
  /** Where fetches are counted. Default nowhere: what lies above counts more. */
  stats?: ReadStats | undefined;
  /** Most bytes read ahead of a sequential reader; needs a store. Default none: what lies above may do it better. */
  readaheadBytes?: number;
}

/** What a reader can tell a cache below it. */
export interface CachingSource extends ByteSource {
  /**
   * As `pread`, of a range that the caller keeps in another form: what the
   * cache has of it is used, else it is fetched as it is and not stored.
   *
   * @param onProgress May be told of what has come; see {@linkcode OnProgress}.
   */
  preadOnce(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
    onProgress?: OnProgress,
  ): Promise<void>;
  discard(offset: number, length: number): boolean;
}

/** Whether a source is a {@linkcode CachingSource}. */
export function isCaching(source: ByteSource): source is CachingSource {
  return "preadOnce" in source && typeof source.preadOnce === "function";
}

/**
 * Reads blocks of the inner source once, keeps them in a
 * {@linkcode CacheStore}, and joins what is wanted at the same time: the same
 * piece is fetched once, adjacent ones in one read, demand before prefetch.
 * A read is answered from the fetched buffer; storing happens behind it.
 *
 * {@linkcode PieceFetcher} decides how much is fetched with a wanted piece.
 *
 * Owns the inner source.
 */
export class CachedSource implements CachingSource {
  readonly size: number;
  readonly #inner: ByteSource;
  readonly #store: CacheStore | undefined;
  readonly #blockSize: number;
  readonly #pieceSize: number;
  readonly #held: StoredBlocks;
  readonly #fetcher: PieceFetcher;
  readonly #tracker: StreamTracker;
  readonly #ranges: RangeReader;
  /** Pieces that are being read ahead. */
  #ahead = 0;
  #closed: Promise<void> | undefined;

  constructor(inner: ByteSource, options: CachedSourceOptions) {
    const blockSize = options.blockSize ?? DEFAULT_BLOCK_SIZE;
    if (!(blockSize >= 4096) || blockSize % 4096 !== 0) {
      throw new RangeError(
        `Cannot cache in blocks of ${blockSize} bytes: not a multiple of 4096`,
      );
    }
    this.#inner = inner;
    this.size = inner.size;
    this.#store = options.store;
    this.#blockSize = blockSize;
    this.#held = new StoredBlocks({
      store: options.store,
      key: options.key,
      size: inner.size,
      blockSize,
    });
    this.#pieceSize = this.#held.pieceSize;
    const maxFetchBytes = options.maxFetchBytes ?? DEFAULT_FETCH_BYTES;
    const budget = options.budget ?? new ByteBudget(DEFAULT_IN_FLIGHT_BYTES);
    this.#fetcher = new PieceFetcher(inner, this.#held, {
      maxBlocks: Math.max(1, Math.floor(maxFetchBytes / blockSize)),
      budget,
      stats: options.stats,
    });
    this.#ranges = new RangeReader(inner, { maxFetchBytes, budget });
    this.#tracker = new StreamTracker(
      options.store ? options.readaheadBytes ?? 0 : 0,
    );
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    if (!this.#held.readNow(dst, offset)) return false;
    this.#note(offset, dst.length);
    return true;
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    if (this.#closed) throw closedError();
    const parts: Promise<void>[] = [];
    for (let at = 0; at < dst.length;) {
      const held = this.#held.at(offset + at, dst.length - at);
      const length = held?.length ??
        this.#restOfPiece(offset + at, dst.length - at);
      const part = dst.subarray(at, at + length);
      parts.push(
        held
          ? this.#readHeld(held, part, offset + at, options)
          : this.#readPiece(part, offset + at, options),
      );
      at += length;
    }
    if (priorityOf(options) === "demand") this.#note(offset, dst.length);
    // All of them, also after a failure: `dst` is ours until none writes to it.
    await allSettled(parts);
  }

  async preadOnce(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
    onProgress?: OnProgress,
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    if (this.#closed) throw closedError();
    const end = Math.ceil((offset + dst.length) / this.#pieceSize);
    for (let p = Math.floor(offset / this.#pieceSize); p < end; p++) {
      if (this.#held.has(p) || this.#fetcher.isComing(p)) {
        return await this.pread(dst, offset, options);
      }
    }
    await this.#ranges.pread(dst, offset, options, onProgress);
  }

  #note(offset: number, length: number): void {
    const stream = this.#tracker.note(offset, length);
    if (stream && stream.ahead < stream.next + stream.window) {
      this.#readAhead(stream);
    }
  }

  /** Starts the blocks that a stream comes to next. */
  #readAhead(stream: Stream): void {
    if (!this.#keeps) return;
    const limit = Math.min(this.size, stream.next + stream.window);
    let at = Math.max(stream.ahead, stream.next);
    const most = this.#fetcher.maxPrefetchPieces;
    while (at < limit && this.#ahead < most && !this.#closed) {
      const piece = Math.floor(at / this.#pieceSize);
      if (!this.#held.has(piece) && !this.#fetcher.isComing(piece)) {
        this.#ahead++;
        // Nobody is told of a failure: the read that needs the piece tries again.
        this.#fetcher.flightOf(piece).join().catch(() => {}).finally(() =>
          this.#ahead--
        );
      }
      at = (piece + 1) * this.#pieceSize;
    }
    stream.ahead = at;
  }

  /** What nothing would keep until it is read is not worth fetching. */
  get #keeps(): boolean {
    return this.#store?.accepts(this.#blockSize) ?? false;
  }

  /** Without a store, or while it takes nothing, nothing is done. */
  async prefetch(
    offset: number,
    length: number,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    checkRange(this.size, offset, length);
    if (!this.#keeps) return;
    const end = Math.ceil((offset + length) / this.#pieceSize);
    const parts: Promise<unknown>[] = [];
    for (let p = Math.floor(offset / this.#pieceSize); p < end; p++) {
      if (this.#held.has(p)) continue;
      parts.push(this.#fetcher.flightOf(p).join(options.signal));
    }
    await allSettled(parts);
  }

  discard(offset: number, length: number): boolean {
    return this.#held.discard(offset, length);
  }

  describe(): SourceDescription {
    const inner = this.#inner.describe?.();
    return {
      kind: "cache",
      detail: {
        blockSize: this.#blockSize,
        ...(this.#store ? { store: this.#store.name } : {}),
      },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close(): Promise<void> {
    await Promise.allSettled([this.#fetcher.close(), this.#ranges.close()]);
    await this.#inner[Symbol.asyncDispose]();
  }

  /** Bytes from `offset` to the end of its piece, at most `length`. */
  #restOfPiece(offset: number, length: number): number {
    return Math.min(length, this.#pieceSize - offset % this.#pieceSize);
  }

  /** Fills `dst` from what is held; what is lost meanwhile is fetched. */
  async #readHeld(
    held: Held,
    dst: Uint8Array,
    offset: number,
    options: ReadOptions,
  ): Promise<void> {
    if (await held.read(dst)) return;
    const parts: Promise<void>[] = [];
    for (let at = 0; at < dst.length;) {
      const length = this.#restOfPiece(offset + at, dst.length - at);
      const part = dst.subarray(at, at + length);
      parts.push(this.#readPiece(part, offset + at, options));
      at += length;
    }
    await allSettled(parts);
  }

  async #readPiece(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions,
  ): Promise<void> {
    const piece = Math.floor(offset / this.#pieceSize);
    const inside = offset - piece * this.#pieceSize;
    const flight = this.#fetcher.flightOf(piece);
    const leave = flight.urgency.follow(options);
    try {
      const bytes = await flight.join(options.signal);
      dst.set(bytes.subarray(inside, inside + dst.length));
    } finally {
      leave();
    }
  }
}

/** Waits for all; then throws the first failure, if any. */
export async function allSettled(
  parts: readonly Promise<unknown>[],
): Promise<void> {
  if (parts.length === 1) return void await parts[0];
  const results = await Promise.allSettled(parts);
  for (const result of results) {
    if (result.status === "rejected") throw result.reason;
  }
}

/** Which entries of a store hold the bytes of one source. */

import type { CacheEntry } from "./entry.ts";
import type { CacheStore } from "./store.ts";

/** Largest piece of a block that is fetched and stored alone: one slot of the store. */
const PIECE_BYTES = 64 * 1024;
/** Blocks whose pieces are kept in memory, per source, where the store did not take them. */
const MAX_RECENT_BLOCKS = 4;
/** Pieces that are looked up one by one to be discarded: 256 MiB of them. */
const MAX_LOOKUPS = 4096;

/** What a {@linkcode StoredBlocks} is made of. */
export interface StoredBlocksOptions {
  /** Without one, only what came last is held. Borrowed. */
  store: CacheStore | undefined;
  /** Names the content: equal keys must mean equal bytes. */
  key: string;
  /** Bytes of the source. */
  size: number;
  /** Bytes of a block; of several pieces where it is a multiple of 64 KiB. */
  blockSize: number;
}

/** A part of one source that is held in one place. */
export interface Held {
  /** Bytes. */
  readonly length: number;
  /** Fills `dst`, of that length. False when it was lost meanwhile; `dst` is undefined then. */
  read(dst: Uint8Array): Promise<boolean>;
}

/**
 * What is held of one source. What came as a whole block is one entry, so that
 * the store's index stays small and warm reads take few calls; pieces of a
 * block that came alone are entries of their own. All offsets are bytes of the
 * source.
 *
 * Borrows the store.
 */
export class StoredBlocks {
  readonly pieceSize: number;
  /** Pieces of a block. */
  readonly piecesPerBlock: number;
  /** Pieces of the source. */
  readonly pieces: number;
  readonly #store: CacheStore | undefined;
  readonly #size: number;
  readonly #blockSize: number;
  readonly #blockKey: string;
  readonly #pieceKey: string;
  /** Entries by block and by piece; to skip the store's lookup. */
  readonly #blockEntries = new Map<number, CacheEntry>();
  readonly #pieceEntries = new Map<number, CacheEntry>();
  /** Pieces that the store did not take, oldest first. */
  readonly #recent = new Map<number, Uint8Array>();

  constructor({ store, key, size, blockSize }: StoredBlocksOptions) {
    this.#store = store;
    this.#size = size;
    this.#blockSize = blockSize;
    this.pieceSize = blockSize % PIECE_BYTES === 0 ? PIECE_BYTES : blockSize;
    this.piecesPerBlock = blockSize / this.pieceSize;
    this.pieces = Math.ceil(size / this.pieceSize);
    this.#blockKey = `${key}/${blockSize}/`;
    this.#pieceKey = `${key}/${this.pieceSize}/`;
  }

  /** Whether a piece is held; counts as no lookup. */
  has(piece: number): boolean {
    return this.#recent.has(piece) || this.#ofBlock(piece) !== undefined ||
      this.#ofPiece(piece, false) !== undefined;
  }

  /** What is held from `offset` on in one piece, of at most `length` bytes; undefined if nothing is. */
  at(offset: number, length: number): Held | undefined {
    const piece = Math.floor(offset / this.pieceSize);
    const recent = this.#recent.get(piece);
    if (recent) {
      const inside = offset - piece * this.pieceSize;
      const bytes = recent.subarray(inside, inside + length);
      return {
        length: bytes.length,
        read: (dst) => {
          dst.set(bytes);
          return Promise.resolve(true);
        },
      };
    }
    const entry = this.#find(piece);
    if (!entry) return undefined;
    const inside = offset - this.#startOf(entry, piece);
    return {
      length: Math.min(length, entry.size - inside),
      read: (dst) => this.#store!.pread(entry, dst, inside),
    };
  }

  /** Fills `dst` from `offset` if all of it is held and needs no waiting. */
  readNow(dst: Uint8Array, offset: number): boolean {
    for (let done = 0; done < dst.length;) {
      const at = offset + done;
      const piece = Math.floor(at / this.pieceSize);
      const recent = this.#recent.get(piece);
      if (recent) {
        const inside = at - piece * this.pieceSize;
        const part = recent.subarray(inside, inside + dst.length - done);
        dst.set(part, done);
        done += part.length;
        continue;
      }
      const entry = this.#find(piece);
      if (!entry) return false;
      const inside = at - this.#startOf(entry, piece);
      const end = Math.min(dst.length, done + entry.size - inside);
      const part = dst.subarray(done, end);
      if (!this.#store!.preadNow(entry, part, inside)) return false;
      done = end;
    }
    return true;
  }

  /**
   * Holds pieces that came together.
   *
   * @param first The first of them.
   * @param bytes All of them; borrowed until they are written.
   */
  put(first: number, bytes: Uint8Array): void {
    const start = first * this.pieceSize;
    for (let at = 0; at < bytes.length;) {
      const offset = start + at;
      const block = Math.floor(offset / this.#blockSize);
      const blockBytes = this.#bytesOf(block, this.#blockSize);
      const isWhole = offset === block * this.#blockSize &&
        at + blockBytes <= bytes.length;
      const length = isWhole
        ? blockBytes
        : this.#bytesOf(offset / this.pieceSize, this.pieceSize);
      this.#putOne(offset, bytes.subarray(at, at + length), isWhole);
      at += length;
    }
  }

  /**
   * Forgets what is held of a range; of a long one only what was come to
   * through this source.
   *
   * @returns Whether anything was.
   */
  discard(offset: number, length: number): boolean {
    const first = Math.floor(offset / this.pieceSize);
    const end = Math.ceil((offset + length) / this.pieceSize);
    let any = false;
    for (const piece of this.#piecesToDiscard(first, end)) {
      any = this.#recent.delete(piece) || any;
      for (const entry of [this.#ofBlock(piece), this.#ofPiece(piece, false)]) {
        if (!entry) continue;
        this.#store!.drop(entry);
        any = true;
      }
    }
    return any;
  }

  /** Pieces `first … end - 1`; if they are many, one of each entry that is known, as a source may claim to be of any size. */
  #piecesToDiscard(first: number, end: number): number[] {
    const blocks = this.#blockEntries;
    const pieces = this.#pieceEntries;
    if (end - first <= MAX_LOOKUPS) {
      return Array.from({ length: end - first }, (_, i) => first + i);
    }
    return [
      ...[...blocks.keys()].map((block) => block * this.piecesPerBlock),
      ...[...pieces.keys(), ...this.#recent.keys()],
    ].filter((piece) => piece < end && piece + this.piecesPerBlock > first);
  }

  #find(piece: number): CacheEntry | undefined {
    return this.#ofBlock(piece) ?? this.#ofPiece(piece, true);
  }

  #ofBlock(piece: number): CacheEntry | undefined {
    // Of one piece: looked up as that, which counts.
    if (this.piecesPerBlock === 1) return undefined;
    const block = Math.floor(piece / this.piecesPerBlock);
    const known = this.#blockEntries.get(block);
    if (known && known.state !== "dead") return known;
    const entry = this.#store?.peek(this.#blockKey + block);
    return this.#checked(this.#blockEntries, block, this.#blockSize, entry);
  }

  #ofPiece(piece: number, counts: boolean): CacheEntry | undefined {
    const known = this.#pieceEntries.get(piece);
    if (known && known.state !== "dead") return known;
    const key = this.#pieceKey + piece;
    const entry = counts ? this.#store?.get(key) : this.#store?.peek(key);
    return this.#checked(this.#pieceEntries, piece, this.pieceSize, entry);
  }

  /** Remembers an entry. A name may be longer-lived than what it names: never trust its length. */
  #checked(
    entries: Map<number, CacheEntry>,
    index: number,
    unit: number,
    entry: CacheEntry | undefined,
  ): CacheEntry | undefined {
    if (entry?.size === this.#bytesOf(index, unit)) {
      entries.set(index, entry);
      return entry;
    }
    if (entry) this.#store!.drop(entry);
    entries.delete(index);
    return undefined;
  }

  /** Where an entry with a piece in it begins. */
  #startOf(entry: CacheEntry, piece: number): number {
    const block = Math.floor(piece / this.piecesPerBlock);
    // As long as the block: it is the block, or the only piece of the last one.
    return entry.size === this.#bytesOf(block, this.#blockSize)
      ? block * this.#blockSize
      : piece * this.pieceSize;
  }

  /** Bytes of a block or a piece; the last one is shorter. */
  #bytesOf(index: number, unit: number): number {
    return Math.min(unit, this.#size - index * unit);
  }

  #putOne(offset: number, bytes: Uint8Array, isBlock: boolean): void {
    const asBlock = isBlock && this.piecesPerBlock > 1;
    const index = offset / (asBlock ? this.#blockSize : this.pieceSize);
    const key = asBlock ? this.#blockKey : this.#pieceKey;
    const entry = this.#store?.put(key + index, bytes);
    if (entry) {
      (asBlock ? this.#blockEntries : this.#pieceEntries).set(index, entry);
    } else this.#remember(offset / this.pieceSize, bytes);
  }

  /** Neighbouring ranges share their border piece: it must not cost two fetches when nothing is stored. */
  #remember(first: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += this.pieceSize) {
      const piece = first + at / this.pieceSize;
      this.#recent.delete(piece);
      this.#recent.set(piece, bytes.slice(at, at + this.pieceSize));
    }
    const most = MAX_RECENT_BLOCKS * this.piecesPerBlock;
    for (const oldest of this.#recent.keys()) {
      if (this.#recent.size <= most) return;
      this.#recent.delete(oldest);
    }
  }
}

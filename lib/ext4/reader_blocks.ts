/** Bounded, cached reads of metadata blocks from the device. */

import { type ByteSource, FormatError, type ReadOptions } from "../io/mod.ts";

/** Bytes of the largest single read of metadata. */
export const METADATA_READ_MAX = 1 << 20;

/** Keeps the most recently used values, whose `weight`s sum up to at most `capacity`. */
export class WeightedLru<V> {
  readonly #capacity: number;
  readonly #weightOf: (value: V) => number;
  readonly #values = new Map<number, V>();
  #weight = 0;

  constructor(capacity: number, weightOf: (value: V) => number) {
    this.#capacity = capacity;
    this.#weightOf = weightOf;
  }

  get(key: number): V | undefined {
    const value = this.#values.get(key);
    if (value !== undefined) {
      this.#values.delete(key);
      this.#values.set(key, value);
    }
    return value;
  }

  set(key: number, value: V): void {
    this.delete(key);
    this.#values.set(key, value);
    this.#weight += this.#weightOf(value);
    for (const [oldest] of this.#values) {
      if (this.#weight <= this.#capacity || oldest === key) break;
      this.delete(oldest);
    }
  }

  delete(key: number): void {
    const value = this.#values.get(key);
    if (value === undefined) return;
    this.#values.delete(key);
    this.#weight -= this.#weightOf(value);
  }
}

/**
 * The blocks of a device. Metadata may lie between file bodies that a lazy
 * device would have to fetch, so nothing is read beyond what was asked for.
 */
export class BlockReader {
  readonly blockSize: number;
  /** Blocks of the file system. */
  readonly blocksCount: number;
  readonly #device: ByteSource;
  readonly #cache: WeightedLru<Promise<Uint8Array>>;

  /**
   * @param device Borrowed; it has at least `blocksCount` blocks.
   * @param cacheBytes Bound of the cache of single blocks.
   */
  constructor(
    device: ByteSource,
    blockSize: number,
    blocksCount: number,
    cacheBytes: number,
  ) {
    this.#device = device;
    this.blockSize = blockSize;
    this.blocksCount = blocksCount;
    this.#cache = new WeightedLru(cacheBytes, () => blockSize);
  }

  /** @throws {FormatError} If the run is not on the device, naming `what` refers to it. */
  check(what: string, block: number, count: number): void {
    if (block < 1 || block + count > this.blocksCount) {
      throw new FormatError(
        what,
        "block",
        `${block}+${count} is not on the device (${this.blocksCount} blocks)`,
      );
    }
  }

  /** One block from the cache or the device. The bytes are shared: never write to them. */
  block(what: string, block: number): Promise<Uint8Array> {
    const cached = this.#cache.get(block);
    if (cached) return cached;
    const read = this.run(what, block, 1);
    this.#cache.set(block, read);
    // A failed read is not remembered; the caller gets the rejection from `read`.
    read.catch(() => this.#cache.delete(block));
    return read;
  }

  /** A run of blocks of at most {@linkcode METADATA_READ_MAX} bytes (or one block), in a new buffer. */
  async run(
    what: string,
    block: number,
    count: number,
  ): Promise<Uint8Array<ArrayBuffer>> {
    this.check(what, block, count);
    const bytes = new Uint8Array(count * this.blockSize);
    await this.#device.pread(bytes, block * this.blockSize);
    return bytes;
  }

  /** Bytes at a byte offset of the device, which the caller has checked. */
  pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    return this.#device.pread(dst, offset, options);
  }

  /** See {@linkcode ByteSource.preadNow}. */
  preadNow(dst: Uint8Array, offset: number): boolean {
    return this.#device.preadNow?.(dst, offset) ?? false;
  }
}

/**
 * A window of an inode table. Windows never reach past their table, so they
 * hold metadata only.
 */
export class InodeWindows {
  static readonly SIZE = 256 << 10;
  readonly #cache: WeightedLru<Promise<Uint8Array>>;
  readonly #blocks: BlockReader;

  constructor(blocks: BlockReader, cacheBytes: number) {
    this.#blocks = blocks;
    this.#cache = new WeightedLru(cacheBytes, () => InodeWindows.SIZE);
  }

  /**
   * The slot at `offset` bytes in the table that starts at block `table`.
   *
   * @param tableBytes Size of the table, a multiple of the block size.
   * @returns A view of shared bytes.
   */
  async slot(
    table: number,
    tableBytes: number,
    offset: number,
    size: number,
  ): Promise<Uint8Array> {
    const { blockSize } = this.#blocks;
    const windowBytes = Math.max(InodeWindows.SIZE, blockSize);
    const start = Math.floor(offset / windowBytes) * windowBytes;
    // The key is a block number, so tables never share windows unless they overlap.
    const first = table + start / blockSize;
    let window = this.#cache.get(first);
    if (window === undefined) {
      const count = Math.min(windowBytes, tableBytes - start) / blockSize;
      window = this.#blocks.run("inode table", first, count);
      this.#cache.set(first, window);
      window.catch(() => this.#cache.delete(first));
    }
    const bytes = await window;
    const at = offset - start;
    // Overlapping tables of a hostile image may have left a shorter window under the same key.
    if (at + size > bytes.length) {
      throw new FormatError("group descriptors", "inode tables", "overlap");
    }
    return bytes.subarray(at, at + size);
  }
}

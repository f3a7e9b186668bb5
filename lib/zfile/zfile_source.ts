/** The decompressed content of a ZFile. */

import {
  crc32c,
  lz4Decompress,
  ZFILE_BLOCK_SEED,
  zstdDecompress,
} from "../compress/mod.ts";
import {
  type ByteSource,
  CancelledError,
  checkRange,
  FormatError,
  IntegrityError,
  type ReadOptions,
  type SourceDescription,
} from "../io/mod.ts";
import { CHECKSUM_SIZE, type ZFileCodec } from "./format.ts";
import type { JumpTable } from "./jump_table.ts";

/** Most stored bytes that are fetched with one inner read. */
const MAX_FETCH = 1 << 20;
/** Fetches of one request that may be under way at once. */
const MAX_PARALLEL_FETCHES = 4;
/** Longest request that is decoded on the fast path: a quarter millisecond of work. */
const MAX_NOW = 256 * 1024;

/** What {@linkcode ZFileSource} needs to know of its file. */
export interface ZFileGeometry {
  codec: ZFileCodec;
  /** Decompressed bytes. */
  size: number;
  blockSize: number;
  /** Whether each block has a checksum behind it, which is then checked. */
  verify: boolean;
}

/**
 * Random access to the content. Each read fetches the stored blocks that it
 * touches in as few inner reads as possible, and checks each block's CRC and
 * its decoded length before any of its bytes are handed out. What is wrong is
 * fetched once more where a cache lies below.
 */
export class ZFileSource implements ByteSource {
  readonly size: number;
  readonly codec: ZFileCodec;
  readonly blockSize: number;
  /** Whether blocks have checksums. */
  readonly verify: boolean;
  readonly #inner: ByteSource;
  readonly #table: JumpTable;
  /**
   * The last block that was wanted only in part, decoded; reads smaller than a
   * block mostly want it again. Touched between awaits only.
   */
  #block: Uint8Array | undefined;
  /** Which block that is; -1 while there is none. */
  #blockIndex = -1;
  /** Stored bytes on the fast path; never used across an await. */
  #stored: Uint8Array | undefined;
  #disposed = false;
  readonly prefetch?: NonNullable<ByteSource["prefetch"]>;

  /** @param inner The whole ZFile, owned. */
  constructor(inner: ByteSource, table: JumpTable, geometry: ZFileGeometry) {
    this.#inner = inner;
    this.#table = table;
    this.size = geometry.size;
    this.codec = geometry.codec;
    this.blockSize = geometry.blockSize;
    this.verify = geometry.verify;
    if (inner.prefetch) {
      this.prefetch = (offset, length, options) => {
        checkRange(this.size, offset, length);
        if (length === 0) return Promise.resolve();
        // Stored blocks only: decoded ones are not kept.
        const at = table.position(Math.floor(offset / this.blockSize));
        const end = table.position(this.#blockLimit(offset + length));
        return inner.prefetch!(at, end - at, options);
      };
    }
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    if (dst.length === 0 || this.#copyKept(dst, offset)) return;
    const limit = this.#blockLimit(offset + dst.length);
    let next = Math.floor(offset / this.blockSize);
    const lane = async () => {
      while (next < limit) {
        const first = next;
        next = this.#fetchLimit(first, limit);
        try {
          if (options?.signal?.aborted) throw new CancelledError();
          await this.#fetch(first, next, dst, offset, options);
        } catch (error) {
          next = limit; // the other lanes need not go on
          throw error;
        }
      }
    };
    // The first lane takes what one fetch can hold; most requests end there.
    const lanes = [lane()];
    while (next < limit && lanes.length < MAX_PARALLEL_FETCHES) {
      lanes.push(lane());
    }
    if (lanes.length === 1) return await lanes[0];
    // All lanes write to dst: none may be left behind when this rejects.
    for (const result of await Promise.allSettled(lanes)) {
      if (result.status === "rejected") throw result.reason;
    }
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    if (dst.length === 0 || this.#copyKept(dst, offset)) return true;
    if (!this.#inner.preadNow || dst.length > MAX_NOW) return false;
    const first = Math.floor(offset / this.blockSize);
    const limit = this.#blockLimit(offset + dst.length);
    const at = this.#table.position(first);
    const length = this.#table.position(limit) - at;
    if (this.#stored === undefined || this.#stored.length < length) {
      this.#stored = new Uint8Array(Math.max(length, 64 * 1024));
    }
    const stored = this.#stored.subarray(0, length);
    if (!this.#inner.preadNow(stored, at)) return false;
    try {
      this.#decode(stored, first, limit, dst, offset);
      return true;
    } catch {
      return false; // pread reports it
    }
  }

  describe(): SourceDescription {
    const inner = this.#inner.describe?.();
    return {
      kind: "zfile",
      detail: {
        size: this.size,
        codec: this.codec,
        blockSize: this.blockSize,
        verify: this.verify,
      },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    await this.#inner[Symbol.asyncDispose]();
  }

  /** First block that starts at or behind byte `end` of the content. */
  #blockLimit(end: number): number {
    return Math.ceil(end / this.blockSize);
  }

  /** Where a fetch that starts with block `first` must stop. */
  #fetchLimit(first: number, limit: number): number {
    const start = this.#table.position(first);
    let last = Math.min(limit, first + Math.ceil(MAX_FETCH / this.blockSize));
    // Incompressible blocks are stored a little longer than they are.
    while (
      last > first + 1 && this.#table.position(last) - start > MAX_FETCH
    ) last--;
    return last;
  }

  async #fetch(
    first: number,
    limit: number,
    dst: Uint8Array,
    offset: number,
    options: ReadOptions | undefined,
  ): Promise<void> {
    const at = this.#table.position(first);
    const stored = new Uint8Array(this.#table.position(limit) - at);
    for (let attempt = 1;; attempt++) {
      await this.#inner.pread(stored, at, options);
      try {
        return this.#decode(stored, first, limit, dst, offset);
      } catch (error) {
        // A cache below may be to blame, and must not keep what is wrong.
        if (!this.#inner.discard) throw error;
        this.#inner.discard(at, stored.length);
        if (attempt > 1) throw error;
      }
    }
  }

  /** Decodes blocks `first … limit-1` and copies what `dst` (at `offset`) wants of them. */
  #decode(
    stored: Uint8Array,
    first: number,
    limit: number,
    dst: Uint8Array,
    offset: number,
  ): void {
    const start = this.#table.position(first);
    let at = 0;
    for (let i = first; i < limit; i++) {
      const end = this.#table.position(i + 1) - start;
      const from = i * this.blockSize;
      const size = Math.min(this.blockSize, this.size - from);
      const whole = from >= offset && from + size <= offset + dst.length;
      if (whole) {
        const block = dst.subarray(from - offset, from - offset + size);
        this.#decodeBlock(stored.subarray(at, end), i, block);
      } else {
        const block = this.#keep(stored.subarray(at, end), i, size);
        const low = Math.max(from, offset);
        const high = Math.min(from + size, offset + dst.length);
        dst.set(block.subarray(low - from, high - from), low - offset);
      }
      at = end;
    }
  }

  /** Decodes into the kept block. */
  #keep(stored: Uint8Array, index: number, size: number): Uint8Array {
    this.#block ??= new Uint8Array(this.blockSize);
    const block = this.#block.subarray(0, size);
    this.#blockIndex = -1;
    this.#decodeBlock(stored, index, block);
    this.#blockIndex = index;
    return block;
  }

  /** Serves a range that lies in the kept block. */
  #copyKept(dst: Uint8Array, offset: number): boolean {
    if (this.#blockIndex < 0) return false;
    const from = offset - this.#blockIndex * this.blockSize;
    if (from < 0 || from + dst.length > this.blockSize) return false;
    dst.set(this.#block!.subarray(from, from + dst.length));
    return true;
  }

  #decodeBlock(stored: Uint8Array, index: number, dst: Uint8Array): void {
    let packed = stored;
    if (this.verify) {
      packed = stored.subarray(0, stored.length - CHECKSUM_SIZE);
      const want = readU32(stored, packed.length);
      const got = crc32c(packed, ZFILE_BLOCK_SEED);
      if (got !== want) {
        throw new IntegrityError(
          `ZFile block ${index} CRC`,
          `0x${want.toString(16)}`,
          `0x${got.toString(16)}`,
        );
      }
    }
    let size: number;
    try {
      size = this.codec === "lz4"
        ? lz4Decompress(packed, dst)
        : zstdDecompress(packed, dst);
    } catch (error) {
      throw new FormatError("ZFile", `block ${index}`, "does not decode", {
        cause: error,
        offset: this.#table.position(index),
      });
    }
    if (size !== dst.length) {
      throw new FormatError(
        "ZFile",
        `block ${index}`,
        `decodes to ${size} bytes, expected ${dst.length}`,
        { offset: this.#table.position(index) },
      );
    }
  }
}

function readU32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16 |
    bytes[at + 3]! << 24) >>> 0;
}

/**
 * The two interfaces that carry everything: {@linkcode ByteSource} and
 * {@linkcode BlockSource}.
 *
 * Every stage of an export (HTTP range, cache, inflate, LSMT merge, …) is a
 * small class that wraps another source. All offsets and lengths are BYTES and
 * safe integers. A wrapper implements each optional method itself or leaves it
 * out: forwarding a method untranslated would answer in the wrong address
 * space.
 */

import type { Urgent } from "./urgency.ts";

/** Options of {@linkcode ByteSource.pread}. */
export interface ReadOptions extends Urgent {
  /** Rejects the read with a `CancelledError`; the buffer's content is then undefined. */
  signal?: AbortSignal | undefined;
}

/** What a byte range holds. `hole` and `zero` both read as zeros; a `hole` owns no storage. */
export type ExtentKind = "data" | "hole" | "zero";

/** A maximal run of one kind. Offsets are in the address space of the source that reports it. */
export interface Extent {
  offset: number;
  length: number;
  kind: ExtentKind;
}

/** What a source is, for `obd inspect` and `/v1/status`; `inner` are the sources that it reads. */
export interface SourceDescription {
  kind: string;
  detail?: Record<string, string | number | boolean>;
  inner?: SourceDescription[];
}

/** Random-access, read-only bytes. */
export interface ByteSource extends AsyncDisposable {
  /** Total readable bytes; constant for the life of the source. */
  readonly size: number;

  /**
   * Fills ALL of `dst` from byte `offset`, or rejects. Safe to call
   * concurrently. `dst` belongs to the callee until the promise settles.
   *
   * @throws {RangeError} If the range is not inside `[0, size]`.
   */
  pread(dst: Uint8Array, offset: number, options?: ReadOptions): Promise<void>;

  /**
   * Fills ALL of `dst` at once if that needs no waiting (memory, page cache),
   * else returns false with `dst` undefined. Never blocks on a disk or a
   * network, never throws for anything but a range outside the source. This is
   * the fast path of the NBD server.
   */
  preadNow?(dst: Uint8Array, offset: number): boolean;

  /**
   * As {@linkcode pread}, for what comes bit by bit: says of each bit how many
   * bytes from the start of `dst` are there and will not change any more. The
   * last one it may leave out. Absent: all of it comes at once.
   */
  preadProgressive?(
    dst: Uint8Array,
    offset: number,
    onProgress: (available: number) => void,
    options?: ReadOptions,
  ): Promise<void>;

  /**
   * Brings a range near, so that reading it soon after waits for no network:
   * everything that must be fetched and decoded to have it, as prefetch, with
   * nothing copied. Absent: what is read ahead would not be kept.
   *
   * @throws {RangeError} If the range is not inside `[0, size]`.
   */
  prefetch?(
    offset: number,
    length: number,
    options?: { signal?: AbortSignal | undefined },
  ): Promise<void>;

  /**
   * Has caches forget a range whose bytes turned out to be wrong: reading it
   * again may give others. Absent: nothing of it is kept.
   *
   * @returns Whether anything was.
   */
  discard?(offset: number, length: number): boolean;

  /** Sparse map of a range, in order and without gaps; absent means "everything is data". */
  extents?(offset: number, length: number): Iterable<Extent>;

  /** What this is, for people. */
  describe?(): SourceDescription;
}

/** A {@linkcode ByteSource} that may also be written. A missing method means "not supported". */
export interface BlockSource extends ByteSource {
  /** Smallest unit that is read or written without a read-modify-write, in bytes. */
  readonly blockSize: number;
  /** Writes all of `src` at `offset`. `src` belongs to the callee until the promise settles. */
  pwrite?(src: Uint8Array, offset: number): Promise<void>;
  /** Resolves when everything written before is on stable storage. */
  flush?(): Promise<void>;
  /** Lets go of a range; it reads as zeros afterwards. */
  trim?(offset: number, length: number): Promise<void>;
  /** Makes a range read as zeros; keeps its storage when `noHole` is set. */
  writeZeroes?(
    offset: number,
    length: number,
    options?: { noHole?: boolean },
  ): Promise<void>;
}

/** Throws unless `[offset, offset + length)` lies inside a source of `size` bytes. */
export function checkRange(size: number, offset: number, length: number): void {
  if (
    !Number.isSafeInteger(offset) || offset < 0 || length < 0 ||
    offset + length > size
  ) {
    throw new RangeError(
      `Cannot read ${length} bytes at offset ${offset}: source has ${size} bytes`,
    );
  }
}

/** Reads `length` bytes at `offset` into a new buffer. For control paths; data paths own their buffers. */
export async function readBytes(
  source: ByteSource,
  offset: number,
  length: number,
  options?: ReadOptions,
): Promise<Uint8Array<ArrayBuffer>> {
  checkRange(source.size, offset, length);
  const bytes = new Uint8Array(length);
  await source.pread(bytes, offset, options);
  return bytes;
}

/** Bytes in memory. Borrows `bytes`: the caller must not change them afterwards. */
export class MemorySource implements ByteSource {
  readonly size: number;
  readonly #bytes: Uint8Array;
  readonly #kind: string;

  constructor(bytes: Uint8Array, kind = "memory") {
    this.#bytes = bytes;
    this.#kind = kind;
    this.size = bytes.length;
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    dst.set(this.#bytes.subarray(offset, offset + dst.length));
    return true;
  }

  // deno-lint-ignore require-await -- a range error must reject, not throw
  async pread(dst: Uint8Array, offset: number): Promise<void> {
    this.preadNow(dst, offset);
  }

  describe(): SourceDescription {
    return { kind: this.#kind, detail: { size: this.size } };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** A byte range of another source. Owns `inner` unless `borrow` is set. */
export class SliceSource implements ByteSource {
  readonly size: number;
  readonly #inner: ByteSource;
  readonly #offset: number;
  readonly #borrow: boolean;
  readonly preadNow?: (dst: Uint8Array, offset: number) => boolean;
  readonly prefetch?: NonNullable<ByteSource["prefetch"]>;
  readonly discard?: NonNullable<ByteSource["discard"]>;

  constructor(
    inner: ByteSource,
    offset: number,
    size: number,
    options: { borrow?: boolean } = {},
  ) {
    checkRange(inner.size, offset, size);
    this.#inner = inner;
    this.#offset = offset;
    this.size = size;
    this.#borrow = options.borrow ?? false;
    if (inner.preadNow) {
      this.preadNow = (dst, at) => {
        checkRange(this.size, at, dst.length);
        return inner.preadNow!(dst, at + offset);
      };
    }
    if (inner.prefetch) {
      this.prefetch = (at, length, options) => {
        checkRange(this.size, at, length);
        return inner.prefetch!(at + offset, length, options);
      };
    }
    if (inner.discard) {
      this.discard = (at, length) => {
        checkRange(this.size, at, length);
        return inner.discard!(at + offset, length);
      };
    }
  }

  pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    try {
      checkRange(this.size, offset, dst.length);
    } catch (error) {
      return Promise.reject(error);
    }
    return this.#inner.pread(dst, offset + this.#offset, options);
  }

  *extents(offset: number, length: number): Iterable<Extent> {
    if (!this.#inner.extents) {
      yield { offset, length, kind: "data" };
      return;
    }
    for (const e of this.#inner.extents(offset + this.#offset, length)) {
      yield {
        offset: e.offset - this.#offset,
        length: e.length,
        kind: e.kind,
      };
    }
  }

  describe(): SourceDescription {
    const inner = this.#inner.describe?.();
    return {
      kind: "slice",
      detail: { offset: this.#offset, size: this.size },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#borrow) await this.#inner[Symbol.asyncDispose]();
  }
}

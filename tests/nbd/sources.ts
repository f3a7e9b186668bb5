/** Sources for NBD tests: writable memory, sparse memory, memory that waits. */

import {
  type BlockSource,
  type ByteSource,
  checkRange,
  type Extent,
  type ReadOptions,
} from "../../lib/io/mod.ts";

/** A disk in memory; records what was done. */
export class MemoryBlockSource implements BlockSource {
  readonly size: number;
  readonly blockSize = 512;
  readonly log: string[] = [];
  /** Thrown by the next change. */
  failure: unknown;
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.size = bytes.length;
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    dst.set(this.bytes.subarray(offset, offset + dst.length));
    return true;
  }

  async pread(dst: Uint8Array, offset: number): Promise<void> {
    await Promise.resolve();
    this.preadNow(dst, offset);
  }

  async pwrite(src: Uint8Array, offset: number): Promise<void> {
    await this.#did("write", offset, src.length);
    this.bytes.set(src, offset);
  }

  flush(): Promise<void> {
    return this.#did("flush", 0, 0);
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.#did("trim", offset, length);
    this.bytes.fill(0, offset, offset + length);
  }

  async writeZeroes(
    offset: number,
    length: number,
    options: { noHole?: boolean } = {},
  ): Promise<void> {
    await this.#did(options.noHole ? "zero+" : "zero", offset, length);
    this.bytes.fill(0, offset, offset + length);
  }

  async #did(what: string, offset: number, length: number): Promise<void> {
    this.log.push(`${what} ${offset} ${length}`);
    await Promise.resolve();
    checkRange(this.size, offset, length);
    const { failure } = this;
    this.failure = undefined;
    if (failure !== undefined) throw failure;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Memory with an extent map made of its zero blocks of 4 KiB; holes and zeros in turn. */
export class SparseSource implements ByteSource {
  readonly size: number;
  now = true;
  reads = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.size = bytes.length;
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    if (!this.now) return false;
    this.reads++;
    dst.set(this.#bytes.subarray(offset, offset + dst.length));
    return true;
  }

  async pread(dst: Uint8Array, offset: number): Promise<void> {
    checkRange(this.size, offset, dst.length);
    this.reads++;
    await Promise.resolve();
    dst.set(this.#bytes.subarray(offset, offset + dst.length));
  }

  *extents(offset: number, length: number): Iterable<Extent> {
    const end = offset + length;
    while (offset < end) {
      const block = Math.floor(offset / 4096);
      const next = Math.min((block + 1) * 4096, end);
      const data = this.#bytes.subarray(block * 4096, block * 4096 + 4096)
        .some((b) => b !== 0);
      const kind = data ? "data" : block % 2 === 0 ? "hole" : "zero";
      yield { offset, length: next - offset, kind };
      offset = next;
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Memory whose reads wait until the test lets them go, one by one. */
export class GatedSource implements ByteSource {
  readonly size: number;
  /** Reads that wait, by offset. */
  readonly gates = new Map<number, () => void>();
  readonly signals: AbortSignal[] = [];
  /** Reads reject when their signal is aborted. */
  heedsSignal = true;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.size = bytes.length;
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    const { signal } = options;
    if (signal) this.signals.push(signal);
    await new Promise<void>((resolve, reject) => {
      this.gates.set(offset, resolve);
      if (!this.heedsSignal) return;
      signal?.addEventListener("abort", () => reject(signal.reason));
    });
    dst.set(this.#bytes.subarray(offset, offset + dst.length));
  }

  /** Lets the read at an offset go on. */
  open(offset: number): void {
    this.gates.get(offset)!();
    this.gates.delete(offset);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

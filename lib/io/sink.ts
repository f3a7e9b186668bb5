/** Where writers put bytes: the counterpart of {@linkcode ByteSource}. */

import { invariant } from "./errors.ts";
import { writeAll } from "./file.ts";

/** Takes bytes in order. One write at a time: callers await each before the next. */
export interface ByteSink {
  /** Takes ALL of `bytes`; they belong to the sink until the promise settles. */
  write(bytes: Uint8Array): Promise<void>;

  /**
   * Replaces bytes that were written before; does not move the end. Absent
   * where the past cannot be changed (a stream).
   */
  rewrite?(bytes: Uint8Array, offset: number): Promise<void>;
}

/** Collects in memory; for small outputs and tests. */
export class MemorySink implements ByteSink {
  #bytes = new Uint8Array(4096);
  #length = 0;

  /** Bytes taken so far. */
  get length(): number {
    return this.#length;
  }

  // deno-lint-ignore require-await -- an error must reject, not throw
  async write(bytes: Uint8Array): Promise<void> {
    const length = this.#length + bytes.length;
    if (length > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(length, this.#bytes.length * 2));
      grown.set(this.#bytes.subarray(0, this.#length));
      this.#bytes = grown;
    }
    this.#bytes.set(bytes, this.#length);
    this.#length = length;
  }

  // deno-lint-ignore require-await -- as above
  async rewrite(bytes: Uint8Array, offset: number): Promise<void> {
    invariant(offset + bytes.length <= this.#length, "rewrite beyond the end");
    this.#bytes.set(bytes, offset);
  }

  /** What was written; a view that later writes may change. */
  bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#length);
  }
}

/** Writes to an open file from its current position on. Borrows the file. */
export class FileSink implements ByteSink {
  readonly #file: Deno.FsFile;
  readonly #start: number;
  #length = 0;

  /** @param start Position of the sink's first byte; the file must stand there. */
  constructor(file: Deno.FsFile, start = 0) {
    this.#file = file;
    this.#start = start;
  }

  /** Bytes written so far. */
  get length(): number {
    return this.#length;
  }

  async write(bytes: Uint8Array): Promise<void> {
    await writeAll(this.#file, bytes);
    this.#length += bytes.length;
  }

  async rewrite(bytes: Uint8Array, offset: number): Promise<void> {
    invariant(offset + bytes.length <= this.#length, "rewrite beyond the end");
    await this.#file.seek(this.#start + offset, Deno.SeekMode.Start);
    await writeAll(this.#file, bytes);
    await this.#file.seek(this.#start + this.#length, Deno.SeekMode.Start);
  }
}

/** The bytes of a regular file. */

import {
  type ByteSource,
  checkRange,
  type Extent,
  type ReadOptions,
  type SourceDescription,
} from "../io/mod.ts";
import type { FileExtent } from "./format.ts";
import type { BlockReader } from "./reader_blocks.ts";

/** A run of device bytes, or of zeros where `device` is undefined. */
interface Piece {
  length: number;
  device: number | undefined;
  kind: Extent["kind"];
}

/** A file's body over its extents. Borrows the device. */
export class FileBody implements ByteSource {
  readonly size: number;
  readonly #ino: number;
  readonly #blocks: BlockReader;
  readonly #extents: readonly FileExtent[];

  /** @param extents Ascending and checked against the device. */
  constructor(
    blocks: BlockReader,
    ino: number,
    size: number,
    extents: readonly FileExtent[],
  ) {
    this.#blocks = blocks;
    this.#ino = ino;
    this.size = size;
    this.#extents = extents;
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    let at = 0;
    for (const { length, device } of this.#pieces(offset, dst.length)) {
      const part = dst.subarray(at, at + length);
      if (device === undefined) part.fill(0);
      else await this.#blocks.pread(part, device, options);
      at += length;
    }
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    let at = 0;
    for (const { length, device } of this.#pieces(offset, dst.length)) {
      const part = dst.subarray(at, at + length);
      if (device === undefined) part.fill(0);
      else if (!this.#blocks.preadNow(part, device)) return false;
      at += length;
    }
    return true;
  }

  *extents(offset: number, length: number): Iterable<Extent> {
    checkRange(this.size, offset, length);
    let at = offset;
    let open: Extent | undefined;
    for (const { length: part, kind } of this.#pieces(offset, length)) {
      if (open?.kind === kind) {
        open.length += part;
      } else {
        if (open) yield open;
        open = { offset: at, length: part, kind };
      }
      at += part;
    }
    if (open) yield open;
  }

  describe(): SourceDescription {
    return { kind: "ext4 file", detail: { ino: this.#ino, size: this.size } };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }

  *#pieces(offset: number, length: number): Iterable<Piece> {
    const { blockSize } = this.#blocks;
    const end = offset + length;
    let at = offset;
    let i = this.#firstEndingAfter(Math.floor(offset / blockSize));
    while (at < end) {
      const extent = this.#extents[i];
      const start = extent ? extent.logicalBlock * blockSize : Infinity;
      if (at < start) {
        const hole = Math.min(end, start) - at;
        yield { length: hole, device: undefined, kind: "hole" };
        at += hole;
        continue;
      }
      const limit = start + extent!.count * blockSize;
      const part = Math.min(end, limit) - at;
      const device = extent!.physicalBlock * blockSize + (at - start);
      yield extent!.unwritten
        ? { length: part, device: undefined, kind: "zero" }
        : { length: part, device, kind: "data" };
      at += part;
      i++;
    }
  }

  /** Index of the first extent that ends behind `block`. */
  #firstEndingAfter(block: number): number {
    let low = 0;
    let high = this.#extents.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const e = this.#extents[middle]!;
      if (e.logicalBlock + e.count > block) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

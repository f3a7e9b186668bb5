/**
 * Writable overlaybd layers as their tools leave them on disk, made by plain
 * code that shares nothing with lib/: append mode (data and index file), sparse
 * mode (one sparse file), and TurboOCI's (data without a header, index, target).
 */

import { rawEntry } from "./lsmt_image.ts";

const SECTOR = 512;
const MAGIC = Uint8Array.fromHex(
  "4c534d5400010200657e63d29444084ca2d2c8ec4fcfae8a",
);

/** The 4096-byte header of a data or index file. */
export function writableHeader(
  flags: number,
  virtualSize: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC);
  view.setUint32(24, 390, true);
  view.setUint32(28, flags, true);
  view.setBigUint64(32, (flags & 2) === 0 ? 4096n : 0n, true);
  view.setBigUint64(48, BigInt(virtualSize), true);
  bytes.set([1, 1], 132);
  return bytes;
}

/** Paths of a writable layer. */
export interface WritablePaths {
  data: string;
  index: string;
}

function open(path: string, head: Uint8Array): Deno.FsFile {
  const file = Deno.openSync(path, {
    create: true,
    truncate: true,
    write: true,
    read: true,
  });
  put(file, 0, head);
  return file;
}

function put(file: Deno.FsFile, at: number, bytes: Uint8Array): void {
  file.seekSync(at, Deno.SeekMode.Start);
  for (let done = 0; done < bytes.length;) {
    done += file.writeSync(bytes.subarray(done));
  }
}

/** Append mode: data at the end of one file, an entry at the end of the other. */
export class AppendLayer implements Disposable {
  readonly #data: Deno.FsFile;
  readonly #index: Deno.FsFile;
  readonly #tag: number;
  #dataEnd = 4096;
  #indexEnd = 4096;

  /** @param tag What the tools write: the number of layers below. */
  constructor(paths: WritablePaths, virtualSize: number, tag = 0) {
    this.#data = open(paths.data, writableHeader(3, virtualSize));
    this.#index = open(paths.index, writableHeader(1, virtualSize));
    this.#tag = tag;
  }

  /** Bytes; whole sectors. */
  write(offset: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += 4 << 20) {
      const piece = bytes.subarray(at, at + (4 << 20));
      this.#entry(offset + at, piece.length, false);
      put(this.#data, this.#dataEnd, piece);
      this.#dataEnd += piece.length;
    }
  }

  trim(offset: number, length: number): void {
    for (let at = 0; at < length; at += 16383 * SECTOR) {
      const piece = Math.min(length - at, 16383 * SECTOR);
      this.#entry(offset + at, piece, true);
    }
  }

  /** The filler at the end of a group commit. */
  pad(entries: number): void {
    for (let i = 0; i < entries; i++) {
      put(
        this.#index,
        this.#indexEnd,
        rawEntry({ offset: 2 ** 50 - 1, length: 0, moffset: 0 }),
      );
      this.#indexEnd += 16;
    }
  }

  #entry(offset: number, length: number, zeroed: boolean): void {
    put(
      this.#index,
      this.#indexEnd,
      rawEntry({
        offset: offset / SECTOR,
        length: length / SECTOR,
        moffset: this.#dataEnd / SECTOR,
        zeroed,
        tag: this.#tag,
      }),
    );
    this.#indexEnd += 16;
  }

  [Symbol.dispose](): void {
    this.#data.close();
    this.#index.close();
  }
}

/** Sparse mode: byte x of the device at 4096 + x. */
export class SparseLayer implements Disposable {
  readonly #data: Deno.FsFile;

  constructor(paths: WritablePaths, virtualSize: number) {
    this.#data = open(paths.data, writableHeader(0x13, virtualSize));
    this.#data.truncateSync(virtualSize + 4096);
    // It is made, and never used.
    Deno.writeFileSync(paths.index, new Uint8Array());
  }

  write(offset: number, bytes: Uint8Array): void {
    put(this.#data, 4096 + offset, bytes);
  }

  [Symbol.dispose](): void {
    this.#data.close();
  }
}

/** TurboOCI's: own data at its place without a header, an index with two tags. */
export class WarpLayer implements Disposable {
  readonly #data: Deno.FsFile;
  readonly #index: Deno.FsFile;
  readonly #tag: number;
  #indexEnd = 4096;

  constructor(paths: WritablePaths, virtualSize: number, tag: number) {
    this.#data = open(paths.data, new Uint8Array());
    this.#data.truncateSync(virtualSize);
    this.#index = open(paths.index, writableHeader(1, virtualSize));
    this.#tag = tag;
  }

  write(offset: number, bytes: Uint8Array): void {
    put(this.#data, offset, bytes);
    this.#entry(offset, bytes.length, offset, 0);
  }

  /** Maps a range to the target. */
  map(offset: number, length: number, targetOffset: number): void {
    this.#entry(offset, length, targetOffset, 1);
  }

  #entry(offset: number, length: number, from: number, kind: number): void {
    put(
      this.#index,
      this.#indexEnd,
      rawEntry({
        offset: offset / SECTOR,
        length: length / SECTOR,
        moffset: from / SECTOR,
        tag: this.#tag + kind,
      }),
    );
    this.#indexEnd += 16;
  }

  [Symbol.dispose](): void {
    this.#data.close();
    this.#index.close();
  }
}

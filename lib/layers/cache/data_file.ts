/** The file that holds a cache's bytes, behind an interface that tests can break. */

import * as fs from "node:fs";
import { promisify } from "node:util";
import {
  isMemoryType,
  loadLibc,
  ObdError,
  preadCached,
  preadFully,
  ShrunkFileError,
  writeAll,
} from "../../io/mod.ts";

const open = promisify(fs.open);
const close = promisify(fs.close);
const datasync = promisify(fs.fdatasync);
const truncate = promisify(fs.ftruncate);
const fstat = promisify(fs.fstat);
const statfs = promisify(fs.statfs);

/** fallocate(2): FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE. */
const PUNCH_HOLE = 0x01 | 0x02;

/**
 * The runtime runs the asynchronous calls on one descriptor one after the
 * other, so reads have descriptors of their own: they must not wait behind a
 * write or a sync that a slow disk holds up.
 */
const READERS = 4;

/** Positional access to one file. All offsets and lengths are bytes. */
export interface DataFile {
  /** Fills `dst` from the page cache, or returns false. Never blocks, never throws. */
  preadNow(dst: Uint8Array, offset: number): boolean;
  /** Fills all of `dst`, or rejects. */
  pread(dst: Uint8Array, offset: number): Promise<void>;
  /**
   * Writes all of `src`, or rejects. One call at a time.
   *
   * @throws {ShrunkFileError} If the file is shorter than it was made here; nothing is written.
   */
  pwrite(src: Uint8Array, offset: number): Promise<void>;
  /** Gives the range's storage back; false where the file system cannot. */
  punch(offset: number, length: number): Promise<boolean>;
  /** Resolves when all that was written is on the disk; rejects if any of it was lost. */
  sync(): Promise<void>;
  /** The file's length. */
  size(): Promise<number>;
  truncate(length: number): Promise<void>;
  /** Bytes that we may still take on the file system, and its size. */
  space(): Promise<{ free: number; total: number }>;
  close(): Promise<void>;
}

interface Reader {
  fd: number;
  busy: number;
}

class OsDataFile implements DataFile {
  readonly #directory: string;
  readonly #path: string;
  readonly #writer: Deno.FsFile;
  readonly #syncFd: number;
  readonly #readers: Reader[];
  readonly #isMemory: boolean;
  readonly #libc = loadLibc();
  readonly #reading = new Set<Promise<void>>();
  /** The file is at least so long. */
  #end: number;
  #closed = false;

  constructor(
    path: string,
    directory: string,
    writer: Deno.FsFile,
    fds: number[],
    isMemory: boolean,
  ) {
    this.#end = writer.statSync().size;
    this.#path = path;
    this.#directory = directory;
    this.#writer = writer;
    this.#isMemory = isMemory;
    this.#syncFd = fds[0]!;
    this.#readers = fds.slice(1).map((fd) => ({ fd, busy: 0 }));
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    return this.#libc !== undefined && !this.#closed &&
      preadCached(
        this.#libc,
        this.#readers[0]!.fd,
        dst as Uint8Array<ArrayBuffer>,
        offset,
        this.#isMemory,
      );
  }

  async pread(dst: Uint8Array, offset: number): Promise<void> {
    // A closed descriptor's number may belong to another file by now.
    if (this.#closed) throw new ObdError("state", "The cache file is closed");
    let reader = this.#readers[0]!;
    for (const r of this.#readers) if (r.busy < reader.busy) reader = r;
    reader.busy++;
    const read = preadFully(reader.fd, dst, offset, this.#path);
    this.#reading.add(read);
    try {
      await read;
    } finally {
      this.#reading.delete(read);
      reader.busy--;
    }
  }

  async pwrite(src: Uint8Array, offset: number): Promise<void> {
    // Not node's fs.write: the runtime runs that on the calling thread. The
    // seek and the stat do no I/O, and a thread switch of its own costs more.
    if (this.#writer.statSync().size < this.#end) {
      throw new ShrunkFileError(this.#path);
    }
    this.#writer.seekSync(offset, Deno.SeekMode.Start);
    await writeAll(this.#writer, src);
    this.#end = Math.max(this.#end, offset + src.length);
  }

  async punch(offset: number, length: number): Promise<boolean> {
    if (!this.#libc) return false;
    const result = await this.#libc.fallocate(
      this.#syncFd,
      PUNCH_HOLE,
      BigInt(offset),
      BigInt(length),
    );
    return result === 0;
  }

  async sync(): Promise<void> {
    await datasync(this.#syncFd);
  }

  async size(): Promise<number> {
    return (await fstat(this.#syncFd)).size;
  }

  async truncate(length: number): Promise<void> {
    this.#end = Math.min(this.#end, length);
    await truncate(this.#syncFd, length);
  }

  async space(): Promise<{ free: number; total: number }> {
    const info = await statfs(this.#directory);
    return {
      free: Number(info.bavail) * Number(info.bsize),
      total: Number(info.blocks) * Number(info.bsize),
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    await Promise.allSettled(this.#reading);
    this.#writer.close();
    for (const fd of [this.#syncFd, ...this.#readers.map((r) => r.fd)]) {
      await close(fd);
    }
  }
}

/**
 * Opens or creates a data file, for its owner alone (mode 0600).
 *
 * @param directory Where free space is measured.
 */
export async function openDataFile(
  path: string,
  directory: string,
): Promise<DataFile> {
  const fds: number[] = [];
  const flags = fs.constants.O_RDWR | fs.constants.O_CREAT |
    fs.constants.O_NOFOLLOW;
  try {
    for (let i = 0; i < 1 + READERS; i++) {
      fds.push(await open(path, flags, 0o600));
    }
    const { type } = await statfs(path);
    const writer = await Deno.open(path, { write: true });
    return new OsDataFile(path, directory, writer, fds, isMemoryType(type));
  } catch (error) {
    for (const fd of fds) await close(fd);
    throw error;
  }
}

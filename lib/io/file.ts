/** Files as sources, and files that appear whole or not at all. */

import { concatBytes } from "./bytes.ts";
import {
  FormatError,
  LimitError,
  ObdError,
  UnsupportedError,
} from "./errors.ts";
import { isMemoryType, type Libc, loadLibc, preadCached } from "./libc.ts";
import {
  type ByteSource,
  checkRange,
  type SourceDescription,
} from "./source.ts";

let calls: ReturnType<typeof loadCalls> | undefined;

/** Loaded with the first use: node:fs is a third of the start of a worker, and most workers read no files. */
function fileCalls(): ReturnType<typeof loadCalls> {
  return calls ??= loadCalls();
}

async function loadCalls() {
  const fs = await import("node:fs");
  const { promisify } = await import("node:util");
  return {
    read: promisify(fs.read),
    open: promisify(fs.open),
    close: promisify(fs.close),
    fstat: promisify(fs.fstat),
    statfs: promisify(fs.statfs),
    constants: fs.constants,
  };
}

const READ_PART = 64 * 1024;
/** lseek(2) on Linux. */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** A file's bytes. Its size is taken once, when it is opened. */
export class FileSource implements ByteSource {
  readonly size: number;
  readonly #path: string;
  readonly #fd: number;
  readonly #isMemory: boolean;
  readonly #libc: Libc | undefined;
  #open = true;

  private constructor(
    path: string,
    fd: number,
    size: number,
    isMemory: boolean,
  ) {
    this.#path = path;
    this.#fd = fd;
    this.size = size;
    this.#isMemory = isMemory;
    this.#libc = loadLibc();
  }

  /**
   * @throws {Error} The runtime's error, with its `code`, if the file cannot be opened.
   * @throws {ObdError} With code "state" if it is a directory or a pipe.
   */
  static async open(path: string): Promise<FileSource> {
    const { open, fstat, statfs, close, constants } = await fileCalls();
    const { O_RDONLY, O_NONBLOCK } = constants;
    // Of a pipe, open(2) would wait for a writer.
    const fd = await open(path, O_RDONLY | O_NONBLOCK);
    try {
      const info = await fstat(fd);
      // Both can be opened, and fail with the first read only.
      if (info.isDirectory() || info.isFIFO()) {
        const kind = info.isFIFO() ? "pipe" : "directory";
        throw new ObdError("state", `Cannot read "${path}": it is a ${kind}`);
      }
      const { type } = await statfs(path);
      return new FileSource(path, fd, info.size, isMemoryType(type));
    } catch (error) {
      await close(fd);
      throw error;
    }
  }

  async pread(dst: Uint8Array, offset: number): Promise<void> {
    if (this.preadNow(dst, offset)) return;
    await preadFully(this.#fd, dst, offset, this.#path);
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    if (dst.length === 0) return true;
    return this.#libc !== undefined &&
      preadCached(
        this.#libc,
        this.#fd,
        dst as Uint8Array<ArrayBuffer>,
        offset,
        this.#isMemory,
      );
  }

  /**
   * The ranges that the file system stores, ascending; what lies between them
   * is holes. Where a file system cannot tell, all is one range.
   *
   * @param offset Byte to begin at.
   * @throws {UnsupportedError} If the C library cannot be called: nothing else
   * in the runtime asks for holes.
   */
  *storedRanges(offset = 0): Generator<{ start: number; end: number }> {
    const libc = this.#libc;
    if (!libc) {
      throw new UnsupportedError(
        "lseek",
        `Cannot look for holes in "${this.#path}": the C library is not available`,
      );
    }
    const seek = (from: number, whence: number) =>
      Number(libc.lseek(this.#fd, BigInt(from), whence));
    for (let at = offset; at < this.size;) {
      // Below zero: no data any more (ENXIO).
      const start = seek(at, SEEK_DATA);
      if (start < at || start >= this.size) return;
      const hole = seek(start, SEEK_HOLE);
      const end = hole <= start ? this.size : Math.min(hole, this.size);
      yield { start, end };
      at = end;
    }
  }

  describe(): SourceDescription {
    return { kind: "file", detail: { path: this.#path, size: this.size } };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await (await fileCalls()).close(this.#fd);
  }
}

/** What a shell's `<(…)` and `/dev/stdin` name: open already, so nobody waits for its writer. And nothing. */
const MAY_BE_READ = /^\/(dev\/(null|stdin|fd\/\d+)|proc\/self\/fd\/\d+)$/;

/**
 * Reads a file whole, whatever stat(2) says of its size (below /proc that is
 * 0). What is none is refused before it is opened: a pipe would wait for a
 * writer, a device has no end.
 *
 * @param most Bytes.
 * @throws {LimitError} If it has more.
 * @throws {ObdError} With code "format" if it is no file, nor a descriptor of this process, nor /dev/null.
 * @throws {Error} The runtime's error, if it cannot be read.
 */
export async function readFileUpTo(
  path: string,
  most: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const info = await Deno.stat(path);
  if (!info.isFile && !MAY_BE_READ.test(path)) {
    throw new ObdError("format", `it is a ${kindOf(info)}, not a file`);
  }
  const tooLarge = () => new LimitError(`it has more than ${most} bytes`);
  if (info.size > most) throw tooLarge();
  using file = await Deno.open(path);
  const parts: Uint8Array[] = [];
  let size = 0;
  for (;;) {
    const part = new Uint8Array(READ_PART);
    const count = await file.read(part);
    if (count === null) return concatBytes(parts);
    size += count;
    if (size > most) throw tooLarge();
    parts.push(part.subarray(0, count));
  }
}

function kindOf(info: Deno.FileInfo): string {
  if (info.isDirectory) return "directory";
  if (info.isFifo) return "pipe";
  return info.isSocket ? "socket" : "device";
}

/**
 * Fills all of `dst` from a descriptor, off the main thread.
 *
 * @throws {FormatError} If the file ends first.
 */
export async function preadFully(
  fd: number,
  dst: Uint8Array,
  offset: number,
  name: string,
): Promise<void> {
  const { read } = await fileCalls();
  let done = 0;
  while (done < dst.length) {
    const { bytesRead } = await read(
      fd,
      dst,
      done,
      dst.length - done,
      offset + done,
    );
    if (bytesRead === 0) {
      throw new FormatError(
        `file "${name}"`,
        "length",
        `ends at ${offset + done}, expected at least ${offset + dst.length}`,
      );
    }
    done += bytesRead;
  }
}

/**
 * Writes a file so that it is there whole or not at all: a temporary name in
 * the same directory, fsync, rename, fsync of the directory.
 */
export async function writeFileAtomic(
  path: string,
  bytes: Uint8Array | string,
  mode = 0o644,
): Promise<void> {
  const temp = `${path}.tmp-${crypto.randomUUID()}`;
  try {
    const file = await Deno.open(temp, {
      write: true,
      createNew: true,
      mode,
    });
    try {
      await writeAll(
        file,
        typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes,
      );
      await file.sync();
    } finally {
      file.close();
    }
    await Deno.rename(temp, path);
  } catch (error) {
    await Deno.remove(temp).catch(() => {});
    throw error;
  }
  await syncDirectory(path.replace(/[^/]*$/, "") || ".");
}

/** Makes renames in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await Deno.open(path);
  try {
    await directory.sync();
  } finally {
    directory.close();
  }
}

/** Writes all of `bytes`, however many calls it takes. */
export async function writeAll(
  writer: { write(bytes: Uint8Array): Promise<number> },
  bytes: Uint8Array,
): Promise<void> {
  let done = 0;
  while (done < bytes.length) done += await writer.write(bytes.subarray(done));
}

/** Whether something has this name, for those who may look; symlinks are followed. */
export async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

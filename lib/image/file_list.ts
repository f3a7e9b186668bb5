/**
 * File lists: which files of an image to fetch ahead, as overlaybd's
 * `--priority_list` has them (src/prefetch.cpp, "dynamic" prefetch): a path on
 * each line, spaces around it do not count, a directory stands for everything
 * below it. overlaybd drops paths with other characters than letters, digits,
 * `_`, `.`, `-` and `/`; here any name is one.
 */

import { Ext4Reader } from "../ext4/mod.ts";
import {
  bytesFromLatin1,
  type ByteSource,
  type ByteString,
  CancelledError,
  fromUtf8,
  latin1FromBytes,
  LimitError,
  type Logger,
  NotFoundError,
  ObdError,
  readFileUpTo,
  type ReadOptions,
  Turns,
  utf8,
} from "../io/mod.ts";
import { DEVICE_LAYER, type TraceRecord } from "../layers/mod.ts";

/** Bytes of a file list; overlaybd stops at 64 KiB. */
export const FILE_LIST_SIZE_MAX = 1024 * 1024;
/** Files that one list may stand for, those of its directories included. */
const FILES_MAX = 200_000;
/** Bytes of a path. Kernel: PATH_MAX. */
const PATH_MAX = 4096;

/**
 * The paths of a file list, in its order.
 *
 * @throws {LimitError} If it is too large.
 */
export function parseFileList(text: string): ByteString[] {
  const bytes = utf8(text);
  if (bytes.length > FILE_LIST_SIZE_MAX) {
    throw new LimitError(
      `A file list has at most ${FILE_LIST_SIZE_MAX} bytes, this one ${bytes.length}`,
    );
  }
  return text.split("\n").map((line) => line.trim())
    .filter((line) => line !== "")
    .map((line) => latin1FromBytes(utf8(line)));
}

/** What a file list comes to. */
export interface ListedFiles {
  records: TraceRecord[];
  files: number;
  bytes: number;
  /** Paths that the image does not have. */
  missing: number;
}

/**
 * Where the content of listed files is on the device. Only metadata is read,
 * as prefetch.
 *
 * @throws {CancelledError} When the signal is aborted.
 * @throws {ObdError} If the device's file system cannot be read.
 */
export async function locateFiles(
  device: ByteSource,
  paths: readonly ByteString[],
  options: { logger: Logger; signal: AbortSignal },
): Promise<ListedFiles> {
  const { logger, signal } = options;
  const reader = await Ext4Reader.open(new PatientSource(device, signal));
  const found: ListedFiles = { records: [], files: 0, bytes: 0, missing: 0 };
  const seen = new Set<number>();
  const add = async (ino: number) => {
    if (seen.has(ino)) return;
    seen.add(ino);
    const { type, size } = await reader.stat(ino);
    if (type !== "file" || size === 0) return;
    if (++found.files > FILES_MAX) {
      throw new LimitError(`A file list stands for over ${FILES_MAX} files`);
    }
    found.bytes += size;
    for (const extent of await reader.extents(ino)) {
      if (extent.unwritten) continue;
      found.records.push({
        layer: DEVICE_LAYER,
        offset: extent.physicalBlock * reader.blockSize,
        length: extent.count * reader.blockSize,
      });
    }
  };
  // Metadata is mostly at hand, and what is at hand comes without a turn of the event loop.
  const turns = new Turns();
  const next = async () => {
    if (!turns.isDue) return;
    await turns.take();
    if (signal.aborted) throw new CancelledError();
  };
  for (const path of new Set(paths)) {
    await next();
    let ino: number;
    try {
      if (path.length > PATH_MAX) throw new NotFoundError("Path is too long");
      ino = await reader.lookup(path);
    } catch (error) {
      // Links that lead in a circle lead nowhere, too.
      const isMissing = error instanceof NotFoundError ||
        error instanceof LimitError;
      if (!isMissing) throw error;
      if (found.missing++ === 0) {
        logger.warn("a listed file is not in the image", {
          path: fromUtf8(bytesFromLatin1(path)),
        });
      }
      continue;
    }
    const { type } = await reader.stat(ino);
    // A directory that a walk came by was walked whole.
    if (seen.has(ino)) continue;
    if (type !== "directory") await add(ino);
    else {
      for await (const entry of reader.walk(ino)) {
        await next();
        await add(entry.ino);
      }
    }
  }
  return found;
}

/** Reads of a device that give way to everybody else's. Borrows it. */
class PatientSource implements ByteSource {
  readonly size: number;
  readonly #device: ByteSource;
  readonly #signal: AbortSignal;

  constructor(device: ByteSource, signal: AbortSignal) {
    this.#device = device;
    this.#signal = signal;
    this.size = device.size;
  }

  pread(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void> {
    return this.#device.pread(dst, offset, {
      ...options,
      signal: this.#signal,
      priority: "prefetch",
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/**
 * Reads a file list.
 *
 * @throws {ObdError} Naming the file, if it cannot be read or is too large.
 */
export async function readFileList(path: string): Promise<string> {
  const fail = (reason: string, code: "not-found" | "limit" | "state") =>
    new ObdError(code, `Cannot read file list "${path}": ${reason}`);
  try {
    return fromUtf8(await readFileUpTo(path, FILE_LIST_SIZE_MAX));
  } catch (error) {
    if (error instanceof ObdError) throw fail(error.message, "limit");
    throw error instanceof Deno.errors.NotFound
      ? fail("it is not there", "not-found")
      : fail((error as Error).message, "state");
  }
}

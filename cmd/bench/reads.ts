/** What the reduced mode replays: ranges of the device out of a trace, or files in the order of their use. */

import {
  decodeTrace,
  DEVICE_LAYER,
  Ext4Reader,
  traceDevice,
} from "../../lib/image/mod.ts";
import {
  bytesFromLatin1,
  type ByteSource,
  type ByteString,
  errorText,
  fromUtf8,
  latin1FromBytes,
  NotFoundError,
  ObdError,
  utf8,
} from "../../lib/io/mod.ts";
import type { TraceRange } from "../api_client.ts";

const FILE_SIZE_MAX = 64 * 1024 * 1024;
const PATHS_MAX = 200_000;
/** As the kernel reads ahead in a file that is read from its start. */
const PIECE = 128 * 1024;

/** See the module's comment. */
export type Reads =
  | {
    kind: "ranges";
    ranges: TraceRange[];
    /** First digits of the fingerprint of the device that was traced, if the trace says it. */
    device?: string;
  }
  /** Absolute paths within the image. */
  | { kind: "files"; paths: ByteString[] };

/**
 * Reads a trace of the device, or a list of absolute paths, one a line.
 *
 * @throws {ObdError} Naming the file, if it is neither.
 */
export async function loadReads(path: string): Promise<Reads> {
  try {
    const { size } = await Deno.stat(path);
    if (size > FILE_SIZE_MAX) {
      throw new ObdError("limit", `it has ${size} bytes`);
    }
    const bytes = await Deno.readFile(path);
    // A list begins with "/" or "#", a trace with its magic number.
    if (bytes.length > 0 && bytes[0] !== 0x2f && bytes[0] !== 0x23) {
      const records = decodeTrace(bytes);
      const ranges = records.filter((r) => r.layer === DEVICE_LAYER);
      const device = traceDevice(bytes, records);
      return {
        kind: "ranges",
        ranges: required(ranges, "reads of the device"),
        ...(device === undefined ? {} : { device }),
      };
    }
    const paths = latin1FromBytes(bytes).split(/\r?\n/)
      .filter((line) => line !== "" && !line.startsWith("#"));
    const wrong = paths.findIndex((line) => !line.startsWith("/"));
    if (wrong >= 0) {
      throw new ObdError("format", `"${paths[wrong]}" is no absolute path`);
    }
    if (paths.length > PATHS_MAX) {
      throw new ObdError("limit", `it has ${paths.length} paths`);
    }
    return { kind: "files", paths: required(paths, "paths") };
  } catch (error) {
    const code = error instanceof Deno.errors.NotFound
      ? "not-found"
      : error instanceof ObdError
      ? error.code
      : "state";
    throw new ObdError(code, `Cannot use "${path}": ${errorText(error)}`, {
      cause: error,
    });
  }
}

function required<T>(items: T[], what: string): T[] {
  if (items.length > 0) return items;
  throw new ObdError("format", `it has no ${what}`);
}

/**
 * Reads it all from a device, one read after the other.
 *
 * @param onFirst Called when the first content is there.
 * @throws {ObdError} If a read fails, or if the device has none of the files.
 */
export async function replayReads(
  device: ByteSource,
  reads: Reads,
  onFirst: () => void,
  signal: AbortSignal,
): Promise<void> {
  if (reads.kind === "files") {
    return await replayFiles(device, reads.paths, onFirst, signal);
  }
  const buffer = new Uint8Array(PIECE);
  for (const { offset, length } of reads.ranges) {
    const end = Math.min(offset + length, device.size);
    for (let at = offset; at < end; at += PIECE) {
      await device.pread(buffer.subarray(0, Math.min(PIECE, end - at)), at, {
        signal,
      });
      onFirst();
    }
  }
}

async function replayFiles(
  device: ByteSource,
  paths: readonly ByteString[],
  onFirst: () => void,
  signal: AbortSignal,
): Promise<void> {
  const reader = await Ext4Reader.open(device);
  const buffer = new Uint8Array(PIECE);
  let found = 0;
  for (const path of paths) {
    signal.throwIfAborted();
    let ino: number;
    try {
      ino = await reader.lookup(path);
    } catch (error) {
      // Made by the program itself when it was traced.
      if (error instanceof NotFoundError) continue;
      throw error;
    }
    found++;
    const { type } = await reader.stat(ino);
    if (type === "directory") await reader.readdir(ino);
    if (type !== "file") continue;
    const file = await reader.openFile(ino);
    for (let at = 0; at < file.size; at += PIECE) {
      const piece = buffer.subarray(0, Math.min(PIECE, file.size - at));
      await file.pread(piece, at, { signal });
      onFirst();
    }
  }
  if (found === 0) {
    throw new ObdError("not-found", "The image has none of the files to read");
  }
}

/** The same files of an unpacked tree; links that lead out of it are not followed. */
export async function readUnpacked(
  root: string,
  reads: Reads,
  onFirst: () => void,
  signal: AbortSignal,
): Promise<void> {
  // Ranges of a device are nowhere here; what was unpacked just now is in the page cache.
  if (reads.kind === "ranges") return;
  const top = await Deno.realPath(root);
  const buffer = new Uint8Array(PIECE);
  for (const path of reads.paths) {
    signal.throwIfAborted();
    const inside = await pathInside(top, path);
    if (inside === undefined) continue;
    using file = await Deno.open(inside);
    while (await file.read(buffer) !== null) onFirst();
  }
}

/** Of a regular file; undefined for anything else. */
async function pathInside(
  top: string,
  path: ByteString,
): Promise<string | undefined> {
  try {
    const name = fromUtf8(bytesFromLatin1(path));
    const real = await Deno.realPath(`${top}${name}`);
    const { isFile } = await Deno.stat(real);
    return isFile && real.startsWith(`${top}/`) ? real : undefined;
  } catch {
    return undefined;
  }
}

/** A path of this system as one within an image. */
export function imagePath(path: string): ByteString {
  return latin1FromBytes(utf8(path));
}

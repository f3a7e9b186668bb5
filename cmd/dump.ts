/** `obd dump IMAGE OUT.raw`: the whole merged device, sparse; "-" is stdout. */

import {
  type ByteSource,
  isZero,
  ObdError,
  type ProgressTask,
  UsageError,
  writeAll,
} from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { checkOutput } from "./output_file.ts";
import { writeStdout } from "./stdout.ts";

const PIECE = 4 * 1024 * 1024;
/** Zeros of this size are left out of a sparse file: the block of common file systems. */
const HOLE = 4096;

export async function run(
  context: Context,
  [image, out]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  if (out === "-" && context.json) {
    throw new UsageError('--json and the output "-" both want stdout');
  }
  if (out !== "-") await checkOutput(out!);
  await using session = await openSession(context, image!, options);
  const { source } = session.image;
  const task = context.progress.start(`dump ${image}`, source.size);
  try {
    if (out === "-") await dumpToStream(source, task, context.signal);
    else await dumpToFile(source, out!, task, context.signal);
  } finally {
    task.done();
  }
  context.result({ image: image!, file: out!, size: source.size });
}

async function dumpToStream(
  source: ByteSource,
  task: ProgressTask,
  signal: AbortSignal,
): Promise<void> {
  const buffer = new Uint8Array(PIECE);
  for (let at = 0; at < source.size; at += PIECE) {
    const piece = buffer.subarray(0, Math.min(PIECE, source.size - at));
    await source.pread(piece, at, { signal });
    if (!await writeStdout(piece)) return;
    task.add(piece.length);
  }
}

async function dumpToFile(
  source: ByteSource,
  out: string,
  task: ProgressTask,
  signal: AbortSignal,
): Promise<void> {
  // A file of the same name must not be lost to a dump that fails.
  const temp = `${out}.obd-${Deno.pid}.tmp`;
  try {
    const file = await Deno.open(temp, { write: true, createNew: true });
    try {
      await file.truncate(source.size);
      await writeData(source, file, task, signal);
    } finally {
      file.close();
    }
    await Deno.rename(temp, out);
  } catch (error) {
    await Deno.remove(temp).catch(() => {});
    if (error instanceof ObdError) throw error;
    throw new ObdError("state", `Cannot write "${out}"`, { cause: error });
  }
}

async function writeData(
  source: ByteSource,
  file: Deno.FsFile,
  task: ProgressTask,
  signal: AbortSignal,
): Promise<void> {
  const buffer = new Uint8Array(PIECE);
  const extents = source.extents?.(0, source.size) ??
    [{ offset: 0, length: source.size, kind: "data" as const }];
  for (const extent of extents) {
    if (extent.kind !== "data") {
      task.add(extent.length);
      continue;
    }
    const end = extent.offset + extent.length;
    for (let at = extent.offset; at < end; at += PIECE) {
      const piece = buffer.subarray(0, Math.min(PIECE, end - at));
      await source.pread(piece, at, { signal });
      await writeSparse(file, piece, at);
      task.add(piece.length);
    }
  }
}

/** Writes the parts of `bytes` that are not zeros, in as few calls as possible. */
async function writeSparse(
  file: Deno.FsFile,
  bytes: Uint8Array,
  offset: number,
): Promise<void> {
  let start = -1;
  for (let at = 0; at < bytes.length + HOLE; at += HOLE) {
    const block = bytes.subarray(at, at + HOLE);
    const hole = at >= bytes.length || isZero(block);
    if (!hole && start < 0) start = at;
    if (hole && start >= 0) {
      await file.seek(offset + start, Deno.SeekMode.Start);
      await writeAll(file, bytes.subarray(start, Math.min(at, bytes.length)));
      start = -1;
    }
  }
}

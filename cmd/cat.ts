/** `obd cat IMAGE PATH`: a file's content on stdout, fetched as far as it is read. */

import { Ext4Reader } from "../lib/image/mod.ts";
import { ObdError, UsageError } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { lookUpPath } from "./image_path.ts";
import { writeStdout } from "./stdout.ts";

const PIECE = 1024 * 1024;

export async function run(
  context: Context,
  [image, path]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  if (context.json) {
    throw new UsageError("--json and the file's content both want stdout");
  }
  await using session = await openSession(context, image!, options);
  const reader = await Ext4Reader.open(session.image.source);
  const { ino } = await lookUpPath(reader, path!);
  const { type } = await reader.stat(ino);
  if (type !== "file") {
    throw new ObdError(
      "state",
      `Cannot print "${path}": it is no file (${type})`,
    );
  }
  const file = await reader.openFile(ino);
  const buffer = new Uint8Array(Math.min(PIECE, file.size));
  for (let at = 0; at < file.size; at += PIECE) {
    const piece = buffer.subarray(0, Math.min(PIECE, file.size - at));
    await file.pread(piece, at, { signal: context.signal });
    if (!await writeStdout(piece)) return;
  }
}

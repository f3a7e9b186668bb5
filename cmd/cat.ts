/** `obd cat IMAGE PATH`: a file's content on stdout, fetched as far as it is read. */

import { Ext4Reader } from "../lib/image/mod.ts";
import { writeAll } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { byteString } from "./ls.ts";

const PIECE = 1024 * 1024;

export async function run(
  context: Context,
  [image, path]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  await using session = await openSession(context, image!, options);
  const reader = await Ext4Reader.open(session.image.source);
  const file = await reader.openFile(await reader.lookup(byteString(path!)));
  const buffer = new Uint8Array(Math.min(PIECE, file.size));
  for (let at = 0; at < file.size; at += PIECE) {
    const piece = buffer.subarray(0, Math.min(PIECE, file.size - at));
    await file.pread(piece, at, { signal: context.signal });
    await writeAll(Deno.stdout, piece);
  }
}

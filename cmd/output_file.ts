/** Files that commands write whole: made under another name, then renamed. */

import { resolve } from "node:path";
import { UsageError } from "../lib/io/mod.ts";

/**
 * A rename puts a file in the place of whatever has the name: a device, such as
 * /dev/null, would be gone, and a directory refuses it when all is written.
 *
 * @throws {UsageError} If something is there that is no file.
 */
export async function checkOutput(path: string): Promise<void> {
  if (path === "-") {
    throw new UsageError(
      '"-" is no regular file: only dump writes to stdout (a file of that name is ./-)',
    );
  }
  let info: Deno.FileInfo;
  try {
    info = await Deno.stat(path);
  } catch {
    return; // nothing is there, or whoever makes the file is told
  }
  // /dev/stdout is a link to whatever it is now.
  const isOfSystem = resolve(path).startsWith("/dev/") &&
    (await Deno.lstat(path)).isSymlink;
  if (info.isFile && !isOfSystem) return;
  throw new UsageError(`"${path}" is no regular file`);
}

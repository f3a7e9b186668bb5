/** What commands write to stdout: lines, a file's content, a device. */

import { ObdError, writeAll } from "../lib/io/mod.ts";

/**
 * Writes all of `bytes`.
 *
 * @returns False if nobody reads any more, as after `| head`: nothing is wrong
 *   with that, and there is no more to do.
 * @throws {ObdError} If it cannot be written, e.g. for lack of space.
 */
export async function writeStdout(bytes: Uint8Array): Promise<boolean> {
  try {
    await writeAll(Deno.stdout, bytes);
    return true;
  } catch (cause) {
    if (cause instanceof Deno.errors.BrokenPipe) return false;
    throw stdoutError(cause);
  }
}

/**
 * Prints a line; that nobody reads any more is no error.
 *
 * @throws {ObdError} If it cannot be written.
 */
export function printLine(line: string): void {
  try {
    console.log(line);
  } catch (cause) {
    throw stdoutError(cause);
  }
}

/** The system's error alone would not say what it was about. */
function stdoutError(cause: unknown): ObdError {
  return new ObdError("state", "Cannot write to stdout", { cause });
}

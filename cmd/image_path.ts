/**
 * Paths within images, which are bytes, as a screen and a command line can say
 * them: what is no UTF-8, and control characters, which could move the cursor,
 * as `\xHH` for each byte.
 */

import type { Ext4Reader } from "../lib/image/mod.ts";
import {
  bytesFromLatin1,
  type ByteString,
  latin1FromBytes,
  NotFoundError,
  utf8,
} from "../lib/io/mod.ts";

/** A run of well-formed UTF-8 (RFC 3629 §4) without control characters, or one byte of anything else. */
const RUN =
  /((?:[\x20-\x7e]|\xc2[\xa0-\xbf]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+)|[^]/g;
/** Such a byte, as {@linkcode shownPath} writes it; others that look like it are a file's own name (`a\x2db.mount`). */
const ESCAPED = /\\x([01][0-9a-f]|7f|[89a-f][0-9a-f])/g;
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** A name or path as it is printed. */
export function shownPath(path: ByteString): string {
  return path.replaceAll(
    RUN,
    (byte, text?: string) =>
      text === undefined
        ? `\\x${byte.charCodeAt(0).toString(16).padStart(2, "0")}`
        : decoder.decode(bytesFromLatin1(text)),
  );
}

/**
 * Finds what a path of the command line names: those very characters, else
 * what {@linkcode shownPath} prints so.
 *
 * @throws {NotFoundError} If there is neither.
 */
export async function lookUpPath(
  reader: Ext4Reader,
  text: string,
  options?: Parameters<Ext4Reader["lookup"]>[1],
): Promise<{ ino: number; path: ByteString }> {
  const path = latin1FromBytes(utf8(text));
  const bytes = path.replaceAll(
    ESCAPED,
    (_, hex: string) => String.fromCharCode(parseInt(hex, 16)),
  );
  try {
    return { ino: await reader.lookup(path, options), path };
  } catch (error) {
    if (!(error instanceof NotFoundError) || bytes === path) throw error;
    try {
      return { ino: await reader.lookup(bytes, options), path: bytes };
    } catch (other) {
      throw other instanceof NotFoundError ? error : other;
    }
  }
}

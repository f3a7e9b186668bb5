/** The member header of the tars that overlaybd's Go tools write and read. */

import { bytesFromLatin1, LimitError } from "../io/mod.ts";

const BLOCK = 512;

/**
 * As Go's `archive/tar` makes it of name, mode and size: a regular file, ids and
 * time 0, no owner names (POSIX pax, "ustar Interchange Format").
 *
 * @throws {LimitError} If the size does not fit its eleven digits.
 */
export function ustarHeader(
  name: string,
  mode: number,
  size: number,
): Uint8Array<ArrayBuffer> {
  const header = new Uint8Array(BLOCK);
  const put = (at: number, text: string) =>
    header.set(bytesFromLatin1(text), at);
  const octal = (at: number, digits: number, value: number) =>
    put(at, value.toString(8).padStart(digits, "0"));
  if (name.length > 100) throw new TypeError(`Name "${name}" is too long`);
  if (size >= 8 ** 11) {
    throw new LimitError(`Cannot write member "${name}" of ${size} bytes`);
  }
  put(0, name);
  octal(100, 7, mode);
  octal(108, 7, 0);
  octal(116, 7, 0);
  octal(124, 11, size);
  octal(136, 11, 0);
  put(148, " ".repeat(8));
  put(156, "0");
  put(257, "ustar\x0000");
  let sum = 0;
  for (const byte of header) sum += byte;
  octal(148, 6, sum);
  header[154] = 0;
  return header;
}

/** Names from archives: cleaned without looking at any file system. */
import {
  type ByteString,
  FormatError,
  LimitError,
  quoteName,
} from "../io/mod.ts";

/** Longest path that is accepted, in bytes (Linux PATH_MAX). */
export const MAX_PATH_BYTES = 4096;
/** Longest component, in bytes (Linux NAME_MAX; an ext4 dirent has one byte for it). */
export const MAX_NAME_BYTES = 255;
/** Longest symlink text, in bytes (Linux: PATH_MAX without its NUL; ext4: less than a block). */
export const MAX_SYMLINK_BYTES = 4095;

const SLASH = 0x2f;
const DOT = 0x2e;

/** Whether cleaning would return `name` itself: the usual case, told in one pass. */
function isClean(name: ByteString): boolean {
  let start = 0;
  for (let i = 0; i <= name.length; i++) {
    const c = i < name.length ? name.charCodeAt(i) : SLASH;
    if (c === 0) return false;
    if (c !== SLASH) continue;
    const length = i - start;
    if (length === 0 || length > MAX_NAME_BYTES) return false;
    if (name.charCodeAt(start) === DOT) {
      if (length === 1) return false;
      if (length === 2 && name.charCodeAt(start + 1) === DOT) return false;
    }
    start = i + 1;
  }
  return name.length <= MAX_PATH_BYTES;
}

/**
 * Cleans a path lexically: no leading slash, no "." or ".." or empty
 * components; "" is the root. A ".." in the root stays there, as with
 * containerd (archive/tar.go, fs.RootPath).
 *
 * @param field What holds the name, e.g. `"path"`; for the error.
 * @param offset Byte offset of the header in the tar; for the error.
 * @throws {FormatError} On a NUL.
 * @throws {LimitError} When the path or a component is too long.
 */
export function cleanPath(
  name: ByteString,
  field: string,
  offset: number,
): ByteString {
  return isClean(name) ? name : cleanParts(name, field, offset, false);
}

/**
 * The same for the target of a hard link, whose ".." stay: they are followed
 * from where symlinks on the way lead.
 *
 * @throws {FormatError} On a NUL.
 * @throws {LimitError} When the path or a component is too long.
 */
export function cleanTarget(
  name: ByteString,
  field: string,
  offset: number,
): ByteString {
  return isClean(name) ? name : cleanParts(name, field, offset, true);
}

function cleanParts(
  name: ByteString,
  field: string,
  offset: number,
  keepsParents: boolean,
): ByteString {
  if (name.includes("\0")) {
    throw new FormatError(
      "tar entry",
      field,
      `${quoteName(name)} holds a NUL byte`,
      { offset },
    );
  }
  const parts: ByteString[] = [];
  for (const part of name.split("/")) {
    if (part === "" || part === ".") continue;
    if (part === ".." && !keepsParents) {
      parts.pop();
      continue;
    }
    if (part.length > MAX_NAME_BYTES) {
      throw new LimitError(
        `Cannot take tar ${field} ${quoteName(name)}: the component ${
          quoteName(part)
        } is ${part.length} bytes long, over ${MAX_NAME_BYTES}`,
      );
    }
    parts.push(part);
  }
  const clean = parts.join("/");
  if (clean.length > MAX_PATH_BYTES) {
    throw new LimitError(
      `Cannot take tar ${field} ${
        quoteName(name)
      }: over ${MAX_PATH_BYTES} bytes`,
    );
  }
  return clean;
}

/**
 * Checks the text of a symlink, which is kept as it is.
 *
 * @throws {FormatError} When it is empty or holds a NUL.
 * @throws {LimitError} When it is longer than Linux allows.
 */
export function checkSymlink(
  target: ByteString,
  path: ByteString,
  offset: number,
): void {
  if (target === "" || target.includes("\0")) {
    throw new FormatError(
      "tar entry",
      `target of symlink ${quoteName(path)}`,
      target === "" ? "is empty" : "holds a NUL byte",
      { offset },
    );
  }
  if (target.length > MAX_SYMLINK_BYTES) {
    throw new LimitError(
      `Cannot take symlink ${
        quoteName(path)
      }: its target is ${target.length} bytes long, over ${MAX_SYMLINK_BYTES}`,
    );
  }
}

/** Attributes of inodes: checks, and the split of xattrs between inode and block. */

import {
  type ByteString,
  errorText,
  FormatError,
  LimitError,
  quoteName,
  UnsupportedError,
} from "../io/mod.ts";
import type { Timestamp } from "./format.ts";
import { BLOCK_SIZE } from "./geometry.ts";
import {
  compareXattrs,
  type StoredXattr,
  toStoredXattr,
  XATTR_INDEX,
  xattrAreaSize,
  xattrEntrySize,
  XH,
} from "./xattr.ts";

/** What an inode carries besides its type and content. */
export interface Attributes {
  /** Permission bits, set-id and sticky: 12 bits. */
  mode: number;
  /** 0 … 2^32 - 1. */
  uid: number;
  /** 0 … 2^32 - 1. */
  gid: number;
  /** Also becomes atime, ctime and crtime. Times that ext4 cannot hold become the nearest it can. */
  mtime: Timestamp;
  /** Full names and raw values; ACLs as getxattr gives them (version 2). */
  xattrs: readonly (readonly [name: ByteString, value: Uint8Array])[];
}

/** Where the attributes of one inode go. */
export interface XattrPlacement {
  inline: StoredXattr[];
  block: StoredXattr[];
}

const NAMESPACES: ReadonlySet<number> = new Set([
  XATTR_INDEX.user,
  XATTR_INDEX.trusted,
  XATTR_INDEX.security,
  XATTR_INDEX.posixAclAccess,
  XATTR_INDEX.posixAclDefault,
]);

/**
 * Splits attributes between the inode and one block: the largest that still
 * fit go into the inode.
 *
 * @param room Bytes behind the inode's fields.
 * @param path Named in errors.
 * @throws {UnsupportedError} For a namespace other than user, trusted, security and ACLs.
 * @throws {LimitError} If they fit neither into the inode nor into one block.
 * @throws {FormatError} If an ACL is malformed.
 */
export function placeXattrs(
  xattrs: Attributes["xattrs"],
  room: number,
  path: () => ByteString,
): XattrPlacement {
  if (xattrs.length === 0) return { inline: [], block: [] };
  const stored = [...new Map(xattrs)].map(([name, value]) =>
    storedXattr(name, value, path)
  ).sort(compareXattrs);
  const size = (x: StoredXattr) =>
    xattrEntrySize(x.name.length) + ((x.value.length + 3) & ~3);
  const inline: StoredXattr[] = [];
  const block: StoredXattr[] = [];
  // 4 bytes of magic and 4 of end mark.
  let left = room - 8;
  for (const xattr of [...stored].sort((a, b) => size(b) - size(a))) {
    if (size(xattr) <= left) {
      left -= size(xattr);
      inline.push(xattr);
    } else {
      block.push(xattr);
    }
  }
  if (block.length > 0 && XH.SIZE + xattrAreaSize(block) > BLOCK_SIZE) {
    const [name, value] = [...xattrs].sort((a, b) =>
      b[1].length - a[1].length
    )[0]!;
    throw new LimitError(
      `Cannot store the ${xattrs.length} xattrs of ${
        quoteName(path())
      } in an inode and a block: the largest, ${
        quoteName(name)
      }, has ${value.length} bytes`,
    );
  }
  return { inline, block };
}

function storedXattr(
  name: ByteString,
  value: Uint8Array,
  path: () => ByteString,
): StoredXattr {
  let stored: StoredXattr | undefined;
  try {
    stored = toStoredXattr(name, value);
  } catch (cause) {
    throw new FormatError(
      `xattr ${quoteName(name)} of ${quoteName(path())}`,
      "value",
      `cannot be stored: ${errorText(cause)}`,
      { cause },
    );
  }
  if (stored === undefined || !NAMESPACES.has(stored.index)) {
    throw new UnsupportedError(
      `xattr ${name}`,
      `Cannot store xattr ${quoteName(name)} of ${
        quoteName(path())
      }: ext4 has no such namespace here, or the name is too long`,
    );
  }
  return stored;
}

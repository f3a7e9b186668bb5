/**
 * Extended attributes: their place in an inode and in a block of their own.
 *
 * Spec: kernel docs, ext4/attributes.rst; fs/ext4/xattr.c.
 *
 * ```text
 * inode:  128 + i_extra_isize: magic u32 │ entries … 0 │   free   │ … values
 *         value offsets count from the first entry
 * block:  header 32 bytes                │ entries … 0 │   free   │ … values
 *         value offsets count from the start of the block
 * ```
 * Names are split into an index (namespace) and a rest. Values are padded to
 * 4 bytes and grow from the end downwards. Blocks must be sorted (the kernel
 * stops its search early); the inode's entries need not be, we sort them too.
 */

import {
  bytesFromLatin1,
  type ByteString,
  FormatError,
  latin1FromBytes,
  viewOf,
} from "../io/mod.ts";
import { aclFromExt4, aclToExt4 } from "./acl.ts";

/** `h_magic` of blocks and in-inode areas. */
export const XATTR_MAGIC = 0xea020000;
/** Bytes of the longest name behind its prefix. */
export const XATTR_NAME_MAX = 255;

/** Byte offsets in the header of an xattr block. */
export const XH = {
  magic: 0x00, // u32
  refcount: 0x04, // u32 inodes that share the block
  blocks: 0x08, // u32 = 1
  hash: 0x0c, // u32
  checksum: 0x10, // u32 crc32c (metadata_csum)
  reserved: 0x14, // 3 × u32
  SIZE: 0x20,
} as const;

/** Byte offsets in an entry; it ends after the name, padded to 4 bytes. */
export const XE = {
  nameLength: 0x00, // u8
  nameIndex: 0x01, // u8
  valueOffset: 0x02, // u16 bytes
  valueInode: 0x04, // u32, 0 unless ea_inode
  valueSize: 0x08, // u32 bytes
  hash: 0x0c, // u32
  name: 0x10,
} as const;

/** Name indexes. */
export const XATTR_INDEX = {
  user: 1,
  posixAclAccess: 2,
  posixAclDefault: 3,
  trusted: 4,
  lustre: 5,
  security: 6,
  system: 7,
  richAcl: 8,
  encryption: 9,
  hurd: 10,
} as const;

/** Prefixes, longest match first. The two ACL names are whole names. */
const PREFIXES: readonly (readonly [prefix: string, index: number])[] = [
  ["system.posix_acl_access", XATTR_INDEX.posixAclAccess],
  ["system.posix_acl_default", XATTR_INDEX.posixAclDefault],
  ["system.richacl", XATTR_INDEX.richAcl],
  ["user.", XATTR_INDEX.user],
  ["trusted.", XATTR_INDEX.trusted],
  ["security.", XATTR_INDEX.security],
  ["system.", XATTR_INDEX.system],
];

/** Indexes whose prefix is the whole name. */
const WHOLE_NAMES: ReadonlySet<number> = new Set([
  XATTR_INDEX.posixAclAccess,
  XATTR_INDEX.posixAclDefault,
  XATTR_INDEX.richAcl,
]);

/** An attribute as ext4 stores it: split name, ACLs in ext4's form. */
export interface StoredXattr {
  index: number;
  /** Bytes of the name behind its prefix, at most 255. */
  name: Uint8Array;
  value: Uint8Array;
}

/** An attribute as users see it. */
export type Xattr = readonly [name: ByteString, value: Uint8Array];

/** Splits a full name into index and rest, or gives undefined for a namespace that ext4 does not have. */
export function splitXattrName(
  name: ByteString,
): { index: number; rest: ByteString } | undefined {
  for (const [prefix, index] of PREFIXES) {
    if (WHOLE_NAMES.has(index) ? name === prefix : name.startsWith(prefix)) {
      const rest = name.slice(prefix.length);
      if (rest === "" && !WHOLE_NAMES.has(index)) return undefined;
      return { index, rest };
    }
  }
  return undefined;
}

/** Joins an index and the rest of a name, or gives undefined for an unknown index. */
export function joinXattrName(
  index: number,
  rest: ByteString,
): ByteString | undefined {
  const prefix = PREFIXES.find(([, known]) => known === index)?.[0];
  return prefix === undefined ? undefined : prefix + rest;
}

/**
 * Turns a user-visible attribute into its stored form; ACLs are translated.
 *
 * @returns Undefined if ext4 has no such namespace, or the name is too long.
 * @throws {FormatError} If an ACL is malformed.
 */
export function toStoredXattr(
  name: ByteString,
  value: Uint8Array,
): StoredXattr | undefined {
  const split = splitXattrName(name);
  if (split === undefined || split.rest.length > XATTR_NAME_MAX) {
    return undefined;
  }
  const isAcl = split.index === XATTR_INDEX.posixAclAccess ||
    split.index === XATTR_INDEX.posixAclDefault;
  return {
    index: split.index,
    name: bytesFromLatin1(split.rest),
    value: isAcl ? aclToExt4(value) : value,
  };
}

/**
 * Inverse of {@linkcode toStoredXattr}.
 *
 * @returns Undefined for an index that users cannot see.
 * @throws {FormatError} If an ACL is malformed.
 */
export function fromStoredXattr(stored: StoredXattr): Xattr | undefined {
  const name = joinXattrName(stored.index, latin1FromBytes(stored.name));
  if (name === undefined) return undefined;
  const isAcl = stored.index === XATTR_INDEX.posixAclAccess ||
    stored.index === XATTR_INDEX.posixAclDefault;
  return [name, isAcl ? aclFromExt4(stored.value) : stored.value];
}

/** The order of entries in a block: index, then length of the name, then its bytes. */
export function compareXattrs(a: StoredXattr, b: StoredXattr): number {
  if (a.index !== b.index) return a.index - b.index;
  if (a.name.length !== b.name.length) return a.name.length - b.name.length;
  for (let i = 0; i < a.name.length; i++) {
    const d = a.name[i]! - b.name[i]!;
    if (d !== 0) return d;
  }
  return 0;
}

const pad4 = (length: number) => (length + 3) & ~3;

/** Bytes of an entry without its value. */
export function xattrEntrySize(nameLength: number): number {
  return XE.name + pad4(nameLength);
}

/** Bytes that attributes need in an area: entries, values and the end mark, without any header. */
export function xattrAreaSize(xattrs: readonly StoredXattr[]): number {
  let size = 4;
  for (const { name, value } of xattrs) {
    size += xattrEntrySize(name.length) + pad4(value.length);
  }
  return size;
}

/**
 * `e_hash`: of the name's bytes and the value's words. Kernels before 6.2 took
 * name bytes as signed; readers accept both, we write the unsigned one.
 */
export function xattrEntryHash(name: Uint8Array, value: Uint8Array): number {
  let hash = 0;
  for (const byte of name) {
    hash = (hash << 5) ^ (hash >>> 27) ^ byte;
  }
  for (let at = 0; at < value.length; at += 4) {
    const word = value[at]! | ((value[at + 1] ?? 0) << 8) |
      ((value[at + 2] ?? 0) << 16) | ((value[at + 3] ?? 0) << 24);
    hash = (hash << 16) ^ (hash >>> 16) ^ word;
  }
  return hash >>> 0;
}

/** `h_hash` of a block with entries of these hashes, in their order; 0 if one of them is 0. */
export function xattrBlockHash(entryHashes: readonly number[]): number {
  let hash = 0;
  for (const entry of entryHashes) {
    if (entry === 0) return 0;
    hash = (hash << 16) ^ (hash >>> 16) ^ entry;
  }
  return hash >>> 0;
}

/**
 * Writes sorted entries and values into `area`, zeroing the rest.
 *
 * @param valueBase What value offsets count from, in bytes before `area`.
 * @returns The entries' hashes.
 */
function writeArea(
  area: Uint8Array,
  sorted: readonly StoredXattr[],
  valueBase: number,
  hashed: boolean,
): number[] {
  const view = viewOf(area);
  area.fill(0);
  let at = 0;
  let end = area.length;
  return sorted.map(({ index, name, value }) => {
    end -= pad4(value.length);
    const hash = hashed ? xattrEntryHash(name, value) : 0;
    view.setUint8(at + XE.nameLength, name.length);
    view.setUint8(at + XE.nameIndex, index);
    // An empty value has no place. Kernel: ext4_xattr_set_entry().
    const offset = value.length === 0 ? 0 : end + valueBase;
    view.setUint16(at + XE.valueOffset, offset, true);
    view.setUint32(at + XE.valueSize, value.length, true);
    view.setUint32(at + XE.hash, hash, true);
    area.set(name, at + XE.name);
    area.set(value, end);
    at += xattrEntrySize(name.length);
    return hash;
  });
}

/**
 * Writes attributes into the room behind an inode's extra fields.
 *
 * @param room The inode's bytes from 128 + `i_extra_isize` to the end of its
 * slot; zeroed if there are no attributes.
 * @returns False, with `room` untouched, if they do not fit.
 */
export function writeInodeXattrs(
  room: Uint8Array,
  xattrs: readonly StoredXattr[],
): boolean {
  if (xattrs.length === 0) {
    room.fill(0);
    return true;
  }
  if (4 + xattrAreaSize(xattrs) > room.length) return false;
  viewOf(room).setUint32(0, XATTR_MAGIC, true);
  // The kernel leaves e_hash of in-inode entries 0.
  writeArea(room.subarray(4), [...xattrs].sort(compareXattrs), 0, false);
  return true;
}

/**
 * Writes attributes into a block of their own, with a zero checksum.
 *
 * @param block One whole block, overwritten.
 * @returns False, with `block` untouched, if they do not fit.
 */
export function writeXattrBlock(
  block: Uint8Array,
  xattrs: readonly StoredXattr[],
  refcount = 1,
): boolean {
  if (XH.SIZE + xattrAreaSize(xattrs) > block.length) return false;
  const area = block.subarray(XH.SIZE);
  const sorted = [...xattrs].sort(compareXattrs);
  const hashes = writeArea(area, sorted, XH.SIZE, true);
  const view = viewOf(block);
  block.fill(0, 0, XH.SIZE);
  view.setUint32(XH.magic, XATTR_MAGIC, true);
  view.setUint32(XH.refcount, refcount, true);
  view.setUint32(XH.blocks, 1, true);
  view.setUint32(XH.hash, xattrBlockHash(hashes), true);
  return true;
}

/** Reads the entries of `area`; value offsets count from `valueBase` bytes before it. Values are copies. */
function readArea(
  area: Uint8Array,
  valueBase: number,
  where: string,
): StoredXattr[] {
  const view = viewOf(area);
  const xattrs: StoredXattr[] = [];
  let valueBytes = 0;
  let at = 0;
  while (true) {
    if (at + 4 > area.length) {
      throw new FormatError(where, "entries", "have no end");
    }
    if (view.getUint32(at, true) === 0) return xattrs;
    const nameLength = view.getUint8(at);
    const next = at + xattrEntrySize(nameLength);
    if (next > area.length) {
      throw new FormatError(where, "name", "passes the end");
    }
    if (view.getUint32(at + XE.valueInode, true) !== 0) {
      throw new FormatError(where, "value", "lies in an inode of its own");
    }
    const size = view.getUint32(at + XE.valueSize, true);
    const start = view.getUint16(at + XE.valueOffset, true) - valueBase;
    if (size > 0 && (start < next || start + size > area.length)) {
      throw new FormatError(where, "value", "is not behind its entry");
    }
    // Values that lie over each other would let a block claim many times its size.
    valueBytes += size;
    if (valueBytes > area.length) {
      throw new FormatError(where, "values", "overlap");
    }
    xattrs.push({
      index: view.getUint8(at + XE.nameIndex),
      name: area.slice(at + XE.name, at + XE.name + nameLength),
      value: size === 0 ? new Uint8Array() : area.slice(start, start + size),
    });
    at = next;
  }
}

/**
 * Reads the attributes behind an inode's extra fields.
 *
 * @param room As for {@linkcode writeInodeXattrs}; only read.
 * @returns None if the magic is not there.
 * @throws {FormatError} If an entry is malformed.
 */
export function readInodeXattrs(room: Uint8Array): StoredXattr[] {
  if (room.length < 8 || viewOf(room).getUint32(0, true) !== XATTR_MAGIC) {
    return [];
  }
  return readArea(room.subarray(4), 0, "in-inode xattrs");
}

/**
 * Reads an xattr block. Its checksum is the caller's affair.
 *
 * @throws {FormatError} If the header or an entry is malformed.
 */
export function readXattrBlock(block: Uint8Array): StoredXattr[] {
  const view = viewOf(block);
  if (view.getUint32(XH.magic, true) !== XATTR_MAGIC) {
    throw new FormatError("xattr block", "magic", "is wrong");
  }
  if (view.getUint32(XH.blocks, true) !== 1) {
    throw new FormatError("xattr block", "h_blocks", "is not 1");
  }
  return readArea(block.subarray(XH.SIZE), XH.SIZE, "xattr block");
}

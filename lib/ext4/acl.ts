/**
 * POSIX ACLs: the form that users see (PAX records, getxattr; version 2, all
 * entries 8 bytes) and the form that ext4 stores (version 1, entries without
 * an id are 4 bytes).
 *
 * Source: include/uapi/linux/posix_acl_xattr.h, fs/ext4/acl.h.
 *
 * ```text
 * version 2:  u32 2   then  { u16 tag, u16 perm, u32 id }
 * version 1:  u32 1   then  { u16 tag, u16 perm } or, for USER and GROUP, { …, u32 id }
 * ```
 */

import { FormatError, viewOf } from "../io/mod.ts";

const VERSION_XATTR = 2;
const VERSION_EXT4 = 1;
const HEADER_SIZE = 4;
const ENTRY_SIZE = 8;
const SHORT_SIZE = 4;
/** `ACL_UNDEFINED_ID`. */
const NO_ID = 0xffffffff;
const PERM_MASK = 0o7;

/** `e_tag` values. */
export const ACL_TAG = {
  userObj: 0x01,
  user: 0x02,
  groupObj: 0x04,
  group: 0x08,
  mask: 0x10,
  other: 0x20,
} as const;

const TAGS: ReadonlySet<number> = new Set(Object.values(ACL_TAG));

function hasId(tag: number): boolean {
  return tag === ACL_TAG.user || tag === ACL_TAG.group;
}

function checkEntry(tag: number, permissions: number): void {
  if (!TAGS.has(tag)) {
    throw new FormatError("POSIX ACL", "tag", `is 0x${tag.toString(16)}`);
  }
  if (permissions & ~PERM_MASK) {
    throw new FormatError(
      "POSIX ACL",
      "permissions",
      `are 0o${permissions.toString(8)}`,
    );
  }
}

/**
 * Turns an ACL from its user-visible form into ext4's.
 *
 * @param acl The value of `system.posix_acl_access` or `…_default` as a PAX
 * record or getxattr gives it; only read.
 * @throws {FormatError} If it is not a well-formed version 2 ACL.
 */
export function aclToExt4(acl: Uint8Array): Uint8Array<ArrayBuffer> {
  const view = viewOf(acl);
  if (acl.length < HEADER_SIZE || view.getUint32(0, true) !== VERSION_XATTR) {
    throw new FormatError("POSIX ACL", "version", "is not 2");
  }
  if ((acl.length - HEADER_SIZE) % ENTRY_SIZE !== 0) {
    throw new FormatError("POSIX ACL", "length", `is ${acl.length}`);
  }
  const out = new Uint8Array(acl.length);
  const to = viewOf(out);
  to.setUint32(0, VERSION_EXT4, true);
  let end = HEADER_SIZE;
  for (let at = HEADER_SIZE; at < acl.length; at += ENTRY_SIZE) {
    const tag = view.getUint16(at, true);
    const permissions = view.getUint16(at + 2, true);
    checkEntry(tag, permissions);
    to.setUint16(end, tag, true);
    to.setUint16(end + 2, permissions, true);
    end += SHORT_SIZE;
    if (hasId(tag)) {
      to.setUint32(end, view.getUint32(at + 4, true), true);
      end += 4;
    }
  }
  return out.slice(0, end);
}

/**
 * Turns an ACL from ext4's form into the user-visible one.
 *
 * @throws {FormatError} If it is not a well-formed version 1 ACL.
 */
export function aclFromExt4(acl: Uint8Array): Uint8Array<ArrayBuffer> {
  const view = viewOf(acl);
  if (acl.length < HEADER_SIZE || view.getUint32(0, true) !== VERSION_EXT4) {
    throw new FormatError("ext4 ACL", "version", "is not 1");
  }
  const out = new Uint8Array(acl.length * 2);
  const to = viewOf(out);
  to.setUint32(0, VERSION_XATTR, true);
  let end = HEADER_SIZE;
  for (let at = HEADER_SIZE; at < acl.length;) {
    if (at + SHORT_SIZE > acl.length) {
      throw new FormatError("ext4 ACL", "length", `is ${acl.length}`);
    }
    const tag = view.getUint16(at, true);
    const permissions = view.getUint16(at + 2, true);
    checkEntry(tag, permissions);
    const size = hasId(tag) ? ENTRY_SIZE : SHORT_SIZE;
    if (at + size > acl.length) {
      throw new FormatError("ext4 ACL", "length", `is ${acl.length}`);
    }
    to.setUint16(end, tag, true);
    to.setUint16(end + 2, permissions, true);
    to.setUint32(
      end + 4,
      hasId(tag) ? view.getUint32(at + 4, true) : NO_ID,
      true,
    );
    at += size;
    end += ENTRY_SIZE;
  }
  return out.slice(0, end);
}

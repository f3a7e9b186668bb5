/**
 * The on-disk layout of ext4: constants, offset tables and codecs, no I/O.
 * Everything is little-endian. Sources: the kernel's documentation
 * (filesystems/ext4/) and, where it is silent, fs/ext4/ext4.h.
 *
 * | file                | structures                                        |
 * |---------------------|---------------------------------------------------|
 * | `format_super.ts`   | feature bits, superblock, group descriptors       |
 * | `format_inode.ts`   | inodes, time stamps, device numbers, extents      |
 * | `format_dir.ts`     | directory entries and tails, htree roots and nodes |
 * | `xattr.ts`          | extended attributes in inodes and blocks          |
 */
export * from "./format_dir.ts";
export * from "./format_inode.ts";
export * from "./format_super.ts";

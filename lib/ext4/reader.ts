/**
 * Reads any ext4 file system that obd can continue on: its own, overlaybd's,
 * and those of mke2fs. See README.md, "Reading".
 */

import {
  type ByteSource,
  type ByteString,
  FormatError,
  latin1FromBytes,
  LimitError,
  ObdError,
  viewOf,
} from "../io/mod.ts";
import {
  checksumSeedOf,
  inodeChecksumSeed,
  xattrBlockChecksum,
} from "./checksum.ts";
import type { HashOptions } from "./dirhash.ts";
import {
  COMPAT,
  FAST_SYMLINK_MAX,
  type GroupDescriptor,
  hasSuperblock,
  INCOMPAT,
  INO,
  INODE,
  type Inode,
  INODE_FLAGS,
  RO_COMPAT,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  SUPER_FLAGS,
  type Superblock,
} from "./format.ts";
import { checkJournalEmpty } from "./journal.ts";
import {
  type BitmapKind,
  type GroupBitmap,
  readBitmaps,
} from "./reader_bitmaps.ts";
import {
  BlockReader,
  InodeWindows,
  METADATA_READ_MAX,
} from "./reader_blocks.ts";
import {
  type DirectoryContext,
  type DirectoryEntry,
  ENTRIES_MAX,
  scanDirectoryBlock,
} from "./reader_dir.ts";
import { type FileMap, readFileMap } from "./reader_extents.ts";
import { FileBody } from "./reader_file.ts";
import {
  decodeInode,
  type InodeContext,
  type InodeRun,
  type InodeStat,
  isFastSymlink,
  readInodeRuns,
  statOfInode,
  type StoredInode,
} from "./reader_inodes.ts";
import { demandChecksum, GroupTable, loadSuperblock } from "./reader_super.ts";
import {
  type LookupOptions,
  lookupPath,
  type WalkEntry,
  walkTree,
} from "./reader_tree.ts";
import {
  fromStoredXattr,
  readInodeXattrs,
  readXattrBlock,
  type StoredXattr,
  type Xattr,
  XH,
} from "./xattr.ts";

/** Bounds of an {@linkcode Ext4Reader}. */
export interface ReaderOptions {
  /** Bytes of cached inode tables, default 8 MiB. */
  inodeCacheBytes?: number;
  /** Bytes of cached single blocks, default 4 MiB. */
  blockCacheBytes?: number;
}

export { inodeTypeOf } from "./reader_inodes.ts";
export type {
  InodeRun,
  InodeStat,
  InodeType,
  StoredInode,
} from "./reader_inodes.ts";

/** A file system on a device. Borrows the device; there is nothing to close. Safe for concurrent calls. */
export class Ext4Reader {
  /** Number of the root directory. */
  readonly root: number = INO.root;
  readonly superblock: Superblock;
  /** The 1024 bytes of the superblock. Never write to them. */
  readonly superblockBytes: Uint8Array;
  /** The group descriptors. */
  readonly groups: GroupTable;
  readonly blockSize: number;
  readonly blocksCount: number;
  readonly metadataCsum: boolean;
  /** Seed of metadata_csum checksums; meaningless without the feature. */
  readonly checksumSeed: number;
  readonly #blocks: BlockReader;
  readonly #windows: InodeWindows;
  readonly #inodes: InodeContext;

  private constructor(
    device: ByteSource,
    superblock: Superblock,
    bytes: Uint8Array,
    groups: GroupTable,
    options: ReaderOptions,
  ) {
    this.superblock = superblock;
    this.superblockBytes = bytes;
    this.groups = groups;
    this.blockSize = 1024 * 2 ** superblock.logBlockSize;
    this.blocksCount = superblock.blocksCount;
    this.metadataCsum =
      (superblock.featureRoCompat & RO_COMPAT.metadataCsum) !== 0;
    this.checksumSeed = checksumSeedOf(superblock);
    this.#blocks = new BlockReader(
      device,
      this.blockSize,
      superblock.blocksCount,
      options.blockCacheBytes ?? 4 << 20,
    );
    this.#inodes = {
      inodeSize: superblock.inodeSize,
      inodesPerGroup: superblock.inodesPerGroup,
      blockSize: this.blockSize,
      checksumSeed: this.metadataCsum ? this.checksumSeed : undefined,
    };
    this.#windows = new InodeWindows(
      this.#blocks,
      options.inodeCacheBytes ?? 8 << 20,
    );
  }

  /**
   * Opens a file system.
   *
   * @param device Borrowed; it must stay open and must not change.
   * @throws {FormatError} If it is no ext4, or malformed.
   * @throws {UnsupportedError} Naming the feature that obd does not handle, or the recovery that is due.
   * @throws {IntegrityError} If a checksum of the superblock or a group descriptor is wrong.
   */
  static async open(
    device: ByteSource,
    options: ReaderOptions = {},
  ): Promise<Ext4Reader> {
    const { superblock, bytes } = await loadSuperblock(device);
    const groups = await GroupTable.load(device, superblock);
    const reader = new Ext4Reader(device, superblock, bytes, groups, options);
    if (superblock.featureCompat & COMPAT.hasJournal) {
      await reader.#checkJournal();
    }
    return reader;
  }

  /** How this file system hashes names of htree directories. */
  get hashOptions(): HashOptions {
    return {
      version: this.superblock.defHashVersion,
      signed: (this.superblock.flags & SUPER_FLAGS.unsignedHash) === 0,
      seed: this.superblock.hashSeed,
    };
  }

  /** One group descriptor, decoded. */
  group(group: number): GroupDescriptor {
    return this.groups.get(group);
  }

  /** Whether a group starts with a superblock and the descriptor table. */
  hasSuperblock(group: number): boolean {
    return hasSuperblock(this.superblock, group);
  }

  /** Seed of the checksums of what belongs to an inode, or undefined without metadata_csum. */
  checksumSeedOf(ino: number, inode: Inode): number | undefined {
    return this.metadataCsum
      ? inodeChecksumSeed(this.checksumSeed, ino, inode.generation)
      : undefined;
  }

  /** All bitmaps of a kind, group by group, in reads as large as the layout allows. */
  bitmaps(
    kind: BitmapKind,
    first = 0,
    limit = this.groups.count,
  ): AsyncGenerator<GroupBitmap> {
    const { groups, superblock } = this;
    const blocks = this.#blocks;
    const checksumSeed = this.metadataCsum ? this.checksumSeed : undefined;
    const context = { blocks, superblock, groups, checksumSeed };
    return readBitmaps(context, kind, first, limit);
  }

  /**
   * One inode, checked as far as it goes by itself.
   *
   * @throws {FormatError} If the number or the inode is malformed, or it was never used.
   * @throws {UnsupportedError} If its content is inline, encrypted, … (named).
   * @throws {IntegrityError} If its checksum is wrong.
   */
  async inode(ino: number): Promise<StoredInode> {
    const { inodesPerGroup, inodeSize, inodesCount } = this.superblock;
    if (!Number.isInteger(ino) || ino < 1 || ino > inodesCount) {
      throw new FormatError("inode number", "value", `is ${ino}`);
    }
    const group = Math.floor((ino - 1) / inodesPerGroup);
    const index = (ino - 1) % inodesPerGroup;
    if (index >= this.groups.usedInodes[group]!) {
      throw new FormatError(`inode ${ino}`, "state", "is never used");
    }
    const slot = await this.#windows.slot(
      this.groups.inodeTables[group]!,
      inodesPerGroup * inodeSize,
      index * inodeSize,
      inodeSize,
    );
    return this.decodeInode(ino, slot);
  }

  /** Decodes and checks a slot of {@linkcode inodeRuns}; see {@linkcode inode} for what it throws. */
  decodeInode(ino: number, slot: Uint8Array): StoredInode {
    return decodeInode(this.#inodes, ino, slot);
  }

  /**
   * The inode tables from front to back, without what was never used. For
   * loading everything: nothing of it is cached.
   */
  inodeRuns(): AsyncGenerator<InodeRun> {
    return readInodeRuns(
      this.#blocks,
      this.#inodes,
      this.groups,
      this.bitmaps("inode"),
    );
  }

  /** Every inode that its bitmap marks as used, reserved ones included, checked as {@linkcode inode} does. */
  async *inodes(): AsyncGenerator<StoredInode> {
    const { inodeSize } = this.superblock;
    for await (const run of this.inodeRuns()) {
      for (let i = 0; i < run.count; i++) {
        if (!run.isUsed(i)) continue;
        const at = i * inodeSize;
        yield this.decodeInode(
          run.firstIno + i,
          run.slots.subarray(at, at + inodeSize),
        );
      }
    }
  }

  /** Attributes of an inode; see {@linkcode inode} for what it throws. */
  async stat(ino: number): Promise<InodeStat> {
    return this.statOf(await this.inode(ino));
  }

  /** @throws {FormatError} If the inode is free or of no type. */
  statOf(stored: StoredInode): InodeStat {
    return statOfInode(stored, this.blockSize);
  }

  /**
   * Finds a path from the root (or from `options.from`).
   *
   * @throws {NotFoundError} If a component is missing or is no directory.
   * @throws {LimitError} If more than 40 symbolic links are on the way.
   */
  lookup(path: ByteString, options?: LookupOptions): Promise<number> {
    return lookupPath(this, path, options);
  }

  /** Names in a directory but "." and "..", in stored order. */
  async readdir(ino: number): Promise<DirectoryEntry[]> {
    const entries: DirectoryEntry[] = [];
    await this.scanDirectory(await this.inode(ino), (entry) => {
      entries.push(entry);
    });
    return entries;
  }

  /**
   * Passes the names of a directory but "." and ".." to `visit`, in stored
   * order; `visit` returns true to stop.
   *
   * @throws {ObdError} With code "state" if it is no directory.
   * @throws {FormatError} If it is malformed or has holes.
   * @throws {LimitError} If it has more than {@linkcode ENTRIES_MAX} names.
   */
  async scanDirectory(
    { ino, inode }: StoredInode,
    visit: (entry: DirectoryEntry) => boolean | void,
  ): Promise<void> {
    this.#demandType(ino, inode, S_IFDIR, "directory");
    const context: DirectoryContext = {
      ino,
      blockSize: this.blockSize,
      inodesCount: this.superblock.inodesCount,
      hasFileType: (this.superblock.featureIncompat & INCOMPAT.filetype) !== 0,
      indexed: (inode.flags & INODE_FLAGS.index) !== 0,
      checksumSeed: this.checksumSeedOf(ino, inode),
    };
    let count = 0;
    const counted = (entry: DirectoryEntry) => {
      if (++count > ENTRIES_MAX) {
        throw new LimitError(
          `Cannot read directory ${ino}: it has more than ${ENTRIES_MAX} names`,
        );
      }
      return visit(entry);
    };
    for await (const { index, bytes } of this.#directoryRuns(ino, inode)) {
      for (let at = 0; at < bytes.length; at += this.blockSize) {
        const block = bytes.subarray(at, at + this.blockSize);
        const number = index + at / this.blockSize;
        if (scanDirectoryBlock(context, block, number, counted)) return;
      }
    }
  }

  /** Target of a symbolic link, verbatim. */
  async readlink(ino: number): Promise<ByteString> {
    const { inode } = await this.inode(ino);
    this.#demandType(ino, inode, S_IFLNK, "symbolic link");
    const { size } = inode;
    if (isFastSymlink(inode, this.blockSize)) {
      if (size === 0 || size > FAST_SYMLINK_MAX) {
        throw new FormatError(`symbolic link ${ino}`, "i_size", `is ${size}`);
      }
      return latin1FromBytes(inode.block.subarray(0, size));
    }
    if (size === 0 || size > this.blockSize) {
      throw new FormatError(`symbolic link ${ino}`, "i_size", `is ${size}`);
    }
    const { extents } = await this.fileMap({ ino, inode });
    const bytes = new Uint8Array(size);
    await new FileBody(this.#blocks, ino, size, extents).pread(bytes, 0);
    return latin1FromBytes(bytes);
  }

  /**
   * Extended attributes as users see them, sorted by name; ACLs are in their
   * version 2 form. Values are the caller's.
   */
  async xattrs(ino: number): Promise<Xattr[]> {
    const stored = await this.storedXattrs(await this.inode(ino));
    const byName = new Map<ByteString, Xattr>();
    for (const one of stored) {
      const xattr = fromStoredXattr(one);
      // The kernel looks into the inode first.
      if (xattr && !byName.has(xattr[0])) byName.set(xattr[0], xattr);
    }
    return [...byName.values()].sort(([a], [b]) => a < b ? -1 : 1);
  }

  /** Extended attributes as stored: the inode's, then the block's. */
  async storedXattrs({ inode, slot }: StoredInode): Promise<StoredXattr[]> {
    const xattrs = inode.extraSize === 0
      ? []
      : readInodeXattrs(slot.subarray(INODE.SIZE_OLD + inode.extraSize));
    if (inode.xattrBlock === 0) return xattrs;
    const block = await this.#blocks.block("xattr block", inode.xattrBlock);
    if (this.metadataCsum) {
      demandChecksum(
        `xattr block ${inode.xattrBlock}`,
        viewOf(block).getUint32(XH.checksum, true),
        xattrBlockChecksum(this.checksumSeed, inode.xattrBlock, block),
      );
    }
    xattrs.push(...readXattrBlock(block));
    return xattrs;
  }

  /**
   * Extents of an inode, and the blocks that hold the map; empty for what has
   * no blocks (devices, short symbolic links, …).
   */
  fileMap(
    { ino, inode }: Pick<StoredInode, "ino" | "inode">,
  ): Promise<FileMap> {
    const type = inode.mode & S_IFMT;
    // Reserved inodes of no type (bad blocks) have a map, too.
    const hasMap = type === S_IFREG || type === S_IFDIR || type === 0 ||
      (type === S_IFLNK && !isFastSymlink(inode, this.blockSize));
    if (!hasMap) return Promise.resolve({ extents: [], nodes: [] });
    return readFileMap({
      blocks: this.#blocks,
      ino,
      checksumSeed: this.checksumSeedOf(ino, inode),
    }, inode);
  }

  /** Extents of a file in order; gaps are holes, unwritten ones read as zeros. */
  async extents(ino: number): Promise<FileMap["extents"]> {
    return (await this.fileMap(await this.inode(ino))).extents;
  }

  /**
   * A regular file's bytes, holes as zeros. The source borrows the device.
   *
   * @throws {ObdError} With code "state" if it is no regular file.
   */
  async openFile(ino: number): Promise<ByteSource> {
    const { inode } = await this.inode(ino);
    this.#demandType(ino, inode, S_IFREG, "regular file");
    const { extents } = await this.fileMap({ ino, inode });
    return new FileBody(this.#blocks, ino, inode.size, extents);
  }

  /**
   * The whole tree, the root first, each directory before what is in it, names
   * in byte order. Hard links appear once per name.
   *
   * @throws {FormatError} If a directory is in two places, or what {@linkcode inode} throws.
   */
  walk(from: number = this.root): AsyncGenerator<WalkEntry> {
    return walkTree(this, from);
  }

  #demandType(ino: number, inode: Inode, type: number, name: string): void {
    if ((inode.mode & S_IFMT) !== type) {
      throw new ObdError("state", `Inode ${ino} is not a ${name}`);
    }
  }

  /** A directory's blocks in order, in runs of at most 1 MiB. */
  async *#directoryRuns(
    ino: number,
    inode: Inode,
  ): AsyncGenerator<{ index: number; bytes: Uint8Array }> {
    const name = `directory ${ino}`;
    const { blockSize } = this;
    // Kernel: ext4_isize() has 32 bits for directories. Blocks of no names, and
    // the same ones again and again, would keep a reader busy for hours.
    if (
      inode.size === 0 || inode.size % blockSize !== 0 || inode.size >= 2 ** 32
    ) {
      throw new FormatError(name, "i_size", `is ${inode.size}`);
    }
    const blockCount = inode.size / blockSize;
    const most = Math.max(1, METADATA_READ_MAX / blockSize);
    const { extents } = await this.fileMap({ ino, inode });
    let index = 0;
    for (const extent of extents) {
      if (index >= blockCount) return;
      if (extent.logicalBlock !== index || extent.unwritten) break;
      const count = Math.min(extent.count, blockCount - index);
      for (let at = 0; at < count;) {
        const first = extent.physicalBlock + at;
        const run = Math.min(count - at, most);
        const bytes = run === 1
          ? await this.#blocks.block(name, first)
          : await this.#blocks.run(name, first, run);
        yield { index: index + at, bytes };
        at += run;
      }
      index += count;
    }
    if (index < blockCount) {
      throw new FormatError(name, "content", `has a hole at block ${index}`);
    }
  }

  async #checkJournal(): Promise<void> {
    const ino = this.superblock.journalIno;
    const { extents } = await this.fileMap(await this.inode(ino));
    const first = extents[0];
    if (first === undefined || first.logicalBlock !== 0) {
      throw new FormatError(`journal inode ${ino}`, "content", "is missing");
    }
    checkJournalEmpty(await this.#blocks.block("journal", first.physicalBlock));
  }
}

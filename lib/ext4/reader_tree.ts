/** Path lookup and the walk over a whole tree. */

import {
  type ByteString,
  FormatError,
  LimitError,
  NotFoundError,
  quoteName,
} from "../io/mod.ts";
import { S_IFDIR, S_IFLNK, S_IFMT } from "./format.ts";
import type { Ext4Reader } from "./reader.ts";
import { type DirectoryEntry, ENTRIES_MAX } from "./reader_dir.ts";
import type { StoredInode } from "./reader_inodes.ts";

/** Symbolic links that one lookup follows. Kernel: MAXSYMLINKS. */
export const SYMLINKS_MAX = 40;
/** Bytes of the longest path in a walk. */
export const PATH_MAX = 1 << 16;

/** Options of a lookup. */
export interface LookupOptions {
  /** Whether a symbolic link at the end is followed; default true. Those on the way always are. */
  follow?: boolean;
  /** Directory that a relative path starts from; default the root; ".." does not leave it, an absolute link does. */
  from?: number;
}

/** A place in the tree. */
export interface WalkEntry extends StoredInode {
  /** From the root of the walk, "" for that itself. */
  path: ByteString;
  name: ByteString;
  /** Directory that holds the name; its own number for the root of the walk. */
  parent: number;
}

/** See {@linkcode Ext4Reader.lookup}. */
export async function lookupPath(
  reader: Ext4Reader,
  path: ByteString,
  options: LookupOptions = {},
): Promise<number> {
  const follow = options.follow ?? true;
  let base = options.from ?? reader.root;
  // Directories from the base to here: ".." goes back along them, never by what is stored.
  const trail: number[] = [];
  let here = base;
  let links = 0;
  const rest = path.split("/").reverse();
  while (rest.length > 0) {
    const name = rest.pop()!;
    const current = await reader.inode(here);
    if (name === "" || name === ".") {
      // A slash at the end, or a dot, stands for a directory only.
      if (path !== "") demandDirectory(current, path);
      continue;
    }
    demandDirectory(current, path);
    if (name === "..") {
      here = trail.pop() ?? base;
      continue;
    }
    const ino = await findName(reader, current, name);
    if (ino === undefined) {
      throw new NotFoundError(
        `Cannot find ${quoteName(path)}: no ${quoteName(name)} there`,
      );
    }
    const isLast = rest.length === 0;
    const isLink = ((await reader.inode(ino)).inode.mode & S_IFMT) === S_IFLNK;
    if (!isLink || (isLast && !follow)) {
      trail.push(here);
      here = ino;
      continue;
    }
    if (++links > SYMLINKS_MAX) {
      throw new LimitError(
        `Cannot find ${
          quoteName(path)
        }: more than ${SYMLINKS_MAX} symbolic links`,
      );
    }
    const target = await reader.readlink(ino);
    if (target.startsWith("/")) {
      base = here = reader.root;
      trail.length = 0;
    }
    rest.push(...target.split("/").reverse());
  }
  return here;
}

function demandDirectory({ inode }: StoredInode, path: ByteString): void {
  if ((inode.mode & S_IFMT) !== S_IFDIR) {
    throw new NotFoundError(
      `Cannot find ${quoteName(path)}: not a directory on the way`,
    );
  }
}

async function findName(
  reader: Ext4Reader,
  directory: StoredInode,
  name: ByteString,
): Promise<number | undefined> {
  let found: number | undefined;
  await reader.scanDirectory(directory, (entry) => {
    if (entry.name !== name) return false;
    found = entry.ino;
    return true;
  });
  return found;
}

/** See {@linkcode Ext4Reader.walk}. */
export async function* walkTree(
  reader: Ext4Reader,
  from: number,
): AsyncGenerator<WalkEntry> {
  const seen = new Set<number>();
  let passed = 0;
  const start = await reader.inode(from);
  const stack: {
    path: ByteString;
    ino: number;
    entries: DirectoryEntry[];
    next: number;
  }[] = [];

  const enter = async (path: ByteString, directory: StoredInode) => {
    // A directory in two places is a cycle, or a tree that is walked many times.
    if (seen.has(directory.ino)) {
      throw new FormatError(
        `directory ${directory.ino}`,
        "place",
        `is in the tree twice, at ${quoteName(path)}`,
      );
    }
    seen.add(directory.ino);
    const entries: DirectoryEntry[] = [];
    await reader.scanDirectory(directory, (entry) => {
      if (++passed > ENTRIES_MAX) {
        throw new LimitError(`Cannot walk: more than ${ENTRIES_MAX} names`);
      }
      entries.push(entry);
    });
    entries.sort((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
    stack.push({ path, ino: directory.ino, entries, next: 0 });
  };

  reader.statOf(start);
  yield { ...start, path: "", name: "", parent: from };
  if ((start.inode.mode & S_IFMT) !== S_IFDIR) return;
  await enter("", start);
  while (stack.length > 0) {
    const top = stack.at(-1)!;
    const entry = top.entries[top.next++];
    if (entry === undefined) {
      stack.pop();
      continue;
    }
    const path = top.path === "" ? entry.name : `${top.path}/${entry.name}`;
    if (path.length > PATH_MAX) {
      throw new LimitError(
        `Cannot walk: a path has more than ${PATH_MAX} bytes`,
      );
    }
    const stored = await reader.inode(entry.ino);
    reader.statOf(stored);
    yield { ...stored, path, name: entry.name, parent: top.ino };
    if ((stored.inode.mode & S_IFMT) === S_IFDIR) await enter(path, stored);
  }
}

/**
 * Applies the entries of one layer's tar to the ext4 model, as a container
 * runtime would unpack them: whiteouts, opaque directories, replacements, hard
 * links, implied parents, parents that are symlinks. Follows containerd's
 * `archive/tar.go` (applyNaive); `lib/tar/README.md` lists where runtimes
 * differ and what is done here.
 */

import {
  type ByteString,
  bytesFromLatin1,
  FormatError,
  fromUtf8,

} from "../io/mod.ts";
import type { Attributes, Ext4Model, ModelNode } from "../ext4/mod.ts";
import {
  parseWhiteout,
  type TarEntry,
  type TarPatch,
  type TarRun,
} from "../tar/mod.ts";

/** Most symlinks that are followed in one path, as Linux has it (MAXSYMLINKS). */
const SYMLINKS_MAX = 40;
/** What a directory gets that no entry describes. */
const IMPLIED_PARENT: Attributes = {
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtime: { seconds: 0, nanoseconds: 0 },
  xattrs: [],
};
/** Attribute namespaces that ext4 holds; runtimes drop the others too. */
const XATTR_NAMESPACES = [
  "user.",
  "trusted.",
  "security.",
  "system.posix_acl_access",
  "system.posix_acl_default",
];

/** Where a file's content lies in its layer's uncompressed tar. */
export interface FileBody {
  runs: readonly TarRun[];
  patches: readonly TarPatch[];
}

/** Applies one layer; made anew for each. */
export class LayerApplier {
  readonly #model: Ext4Model;
  readonly #warn: (message: string) => void;
  /** Names that this layer made, by directory: an opaque marker spares them. */
  readonly #made = new Map<ModelNode, Set<ByteString>>();
  /** Content of the regular files that this layer made. */
  readonly #bodies = new Map<ModelNode, FileBody>();
  #lastParent: { path: ByteString; node: ModelNode } | undefined;
  #entryCount = 0;

  /**
   * @param warn Gets a line for what is left out, as runtimes leave it out.
   */
  constructor(model: Ext4Model, warn: (message: string) => void) {
    this.#model = model;
    this.#warn = warn;
  }

  /** Entries seen so far. */
  get entryCount(): number {
    return this.#entryCount;
  }

  /** Content of the files that this layer made and that are still there. */
  bodies(): ReadonlyMap<ModelNode, FileBody> {
    return this.#bodies;
  }

  /**
   * Applies the next entry of the tar.
   *
   * @throws {FormatError} If it cannot be applied (a parent that is no
   * directory, a hard link to nothing); the message names the entry.
   */
  add(entry: TarEntry): void {
    this.#entryCount++;
    if (entry.path === "") {
      if (entry.type === "directory") {
        this.#model.setAttributes(this.#model.root, this.#attributes(entry));
      }
      return;
    }
    const slash = entry.path.lastIndexOf("/");
    const parentPath = slash < 0 ? "" : entry.path.slice(0, slash);
    const name = entry.path.slice(slash + 1);
    const whiteout = parseWhiteout(name);
    if (whiteout?.kind === "metadata") return;
    const parent = this.#parent(parentPath, entry.path);
    if (whiteout?.kind === "opaque") this.#clear(parent);
    else if (whiteout?.kind === "whiteout") this.#remove(parent, whiteout.name);
    else this.#place(parent, name, entry);
  }

  #place(parent: ModelNode, name: ByteString, entry: TarEntry): void {
    const existing = this.#model.lookup(parent, name);
    const isMerge = existing?.type === "directory" &&
      entry.type === "directory";
    if (isMerge) {
      this.#model.setAttributes(existing, this.#attributes(entry));
      this.#mark(parent, name);
      return;
    }
    // The target is looked up first: a link may replace what it points to by another name.
    const target = entry.type === "hardlink"
      ? this.#linkTarget(entry, existing)
      : undefined;
    if (existing) this.#remove(parent, name);
    if (target) {
      this.#model.link(parent, name, target);
      this.#model.setAttributes(target, this.#linkAttributes(entry, target));
    } else this.#create(parent, name, entry);
    this.#mark(parent, name);
  }

  #create(parent: ModelNode, name: ByteString, entry: TarEntry): void {
    const attributes = this.#attributes(entry);
    switch (entry.type) {
      case "file": {
        const node = this.#model.createFile(parent, name, attributes, {
          size: entry.size,
          data: bodyRanges(entry),
        });
        if (entry.runs.length > 0 || entry.patches.length > 0) {
          this.#bodies.set(node, { runs: entry.runs, patches: entry.patches });
        }
        return;
      }
      case "directory":
        this.#model.mkdir(parent, name, attributes);
        return;
      case "symlink":
        this.#model.symlink(parent, name, attributes, entry.linkTarget);
        return;
      case "char":
      case "block":
      case "fifo":
        this.#model.mknod(parent, name, attributes, {
          type: entry.type,
          major: entry.devMajor,
          minor: entry.devMinor,
        });
        return;
      case "hardlink":
        throw new TypeError("Internal error: hard links are placed by #place");
    }
  }

  #attributes(entry: TarEntry): Attributes {
    const { mode, uid, gid, mtime } = entry;
    return { mode, uid, gid, mtime, xattrs: this.#xattrs(entry) };
  }

  /** A link's header repeats its target's attributes, but rarely the xattrs: those are only added to. */
  #linkAttributes(entry: TarEntry, target: ModelNode): Attributes {
    const attributes = this.#attributes(entry);
    const merged = new Map(this.#model.attributes(target).xattrs);
    for (const [name, value] of attributes.xattrs) merged.set(name, value);
    return {
      ...attributes,
      mode: target.type === "symlink"
        ? this.#model.attributes(target).mode
        : attributes.mode,
      xattrs: [...merged].sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0),
    };
  }

  #xattrs(entry: TarEntry): TarEntry["xattrs"] {
    const isHeld = ([name]: readonly [ByteString, Uint8Array]) =>
      XATTR_NAMESPACES.some((prefix) => name.startsWith(prefix));
    if (entry.xattrs.every(isHeld)) return entry.xattrs;
    for (const [name] of entry.xattrs.filter((x) => !isHeld(x))) {
      this.#warn(
        `"${shown(entry.path)}": attribute "${
          shown(name)
        }" is left out: ext4 holds user, trusted, security and ACLs`,
      );
    }
    return entry.xattrs.filter(isHeld);
  }

  #linkTarget(entry: TarEntry, existing: ModelNode | undefined): ModelNode {
    const slash = entry.linkTarget.lastIndexOf("/");
    const parent = this.#walk(
      slash < 0 ? "" : entry.linkTarget.slice(0, slash),
    );
    const target = parent?.type === "directory"
      ? this.#model.lookup(parent, entry.linkTarget.slice(slash + 1))
      : undefined;
    if (target === undefined || target.type === "directory") {
      throw new FormatError(
        "tar entry",
        `hard link "${shown(entry.path)}"`,
        `points to "${shown(entry.linkTarget)}", which is ${
          target ? "a directory" : "not there"
        }`,
      );
    }
    if (target === existing && target.linkCount === 1) {
      throw new FormatError(
        "tar entry",
        `hard link "${shown(entry.path)}"`,
        "points to itself",
      );
    }
    return target;
  }

  /** The directory that an entry goes into: symlinks followed inside the root, missing parts made. */
  #parent(path: ByteString, entryPath: ByteString): ModelNode {
    if (this.#lastParent?.path === path) return this.#lastParent.node;
    const node = this.#walk(path, true);
    if (node?.type !== "directory") {
      throw new FormatError(
        "tar entry",
        `"${shown(entryPath)}"`,
        `lies below "${shown(path)}", which is no directory`,
      );
    }
    this.#lastParent = { path, node };
    return node;
  }

  /**
   * Follows a path inside the root; every part that is a symlink is followed.
   *
   * @param make Whether missing directories are made.
   * @returns The node, or undefined if it is missing or below a non-directory.
   */
  #walk(path: ByteString, make = false): ModelNode | undefined {
    const model = this.#model;
    const stack: ModelNode[] = [];
    let node = model.root;
    let links = 0;
    const rest = path.split("/").reverse();
    while (rest.length > 0) {
      const part = rest.pop()!;
      if (part === "" || part === ".") continue;
      if (part === "..") {
        node = stack.pop() ?? model.root;
        continue;
      }
      if (node.type !== "directory") return undefined;
      let next = model.lookup(node, part);
      if (next?.type === "symlink") {
        if (++links > SYMLINKS_MAX) {
          throw new FormatError(
            "tar entry",
            `path "${shown(path)}"`,
            "has too many levels of symbolic links",
          );
        }
        const target = model.readlink(next);
        if (target.startsWith("/")) {
          node = model.root;
          stack.length = 0;
        }
        rest.push(...target.split("/").reverse());
        continue;
      }
      if (next === undefined) {
        if (!make) return undefined;
        next = model.mkdir(node, part, IMPLIED_PARENT);
        this.#mark(node, part);
      }
      stack.push(node);
      node = next;
    }
    return node;
  }

  #mark(parent: ModelNode, name: ByteString): void {
    let names = this.#made.get(parent);
    if (!names) this.#made.set(parent, names = new Set());
    names.add(name);
  }

  #remove(parent: ModelNode, name: ByteString): void {
    const node = this.#model.lookup(parent, name);
    if (!node) return;
    if (node.type === "directory") {
      this.#lastParent = undefined;
      this.#forgetTree(node);
      this.#model.removeTree(parent, name);
    } else {
      this.#model.unlink(parent, name);
      if (node.linkCount === 0) this.#bodies.delete(node);
    }
    this.#made.get(parent)?.delete(name);
  }

  #forgetTree(directory: ModelNode): void {
    this.#made.delete(directory);
    for (const [, child] of this.#model.children(directory)) {
      if (child.type === "directory") this.#forgetTree(child);
    }
  }

  /** An opaque marker hides what lower layers put there; what this layer put there stays. */
  #clear(directory: ModelNode): void {
    const made = this.#made.get(directory);
    for (const [name, child] of [...this.#model.children(directory)]) {
      if (!made?.has(name)) this.#remove(directory, name);
      else if (child.type === "directory") this.#clear(child);
    }
  }

  /** Drops the bodies of files that are gone; call once, after the last entry. */
  finish(): void {
    for (const node of this.#bodies.keys()) {
      if (node.linkCount === 0) this.#bodies.delete(node);
    }
  }
}

/** Byte ranges of a file that hold anything, in order; the rest are holes. */
function bodyRanges(
  entry: TarEntry,
): { offset: number; length: number }[] {
  const ranges = [
    ...entry.runs.map((r) => ({
      offset: r.fileSector * 512,
      length: r.sectors * 512,
    })),
    ...entry.patches.map((p) => ({
      offset: p.fileSector * 512,
      length: p.bytes.length,
    })),
  ];
  return ranges.length > 1 ? ranges.sort((a, b) => a.offset - b.offset) : ranges;
}

function shown(name: ByteString): string {
  return fromUtf8(bytesFromLatin1(name));
}


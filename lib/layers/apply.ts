/**
 * Applies the entries of one layer's tar to the ext4 model, as a container
 * runtime would unpack them: whiteouts, opaque directories, replacements, hard
 * links, implied parents, parents that are symlinks. Follows containerd's
 * `archive/tar.go` (applyNaive); `lib/tar/README.md` lists where runtimes
 * differ and what is done here.
 */

import {
  bytesFromLatin1,
  type ByteString,
  FormatError,
  fromUtf8,
} from "../io/mod.ts";
import {
  type Attributes,
  DeviceFullError,
  type Ext4Model,
} from "../ext4/mod.ts";
import { parseWhiteout, type TarEntry } from "../tar/mod.ts";
import { type Bodies, bodyRanges, FileBody } from "./bodies.ts";
import type { ImageSpace } from "./image_space.ts";
import { NodeSet } from "./node_set.ts";

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

/** Applies one layer; made anew for each. */
export class LayerApplier {
  readonly #model: Ext4Model;
  readonly #warn: (message: string) => void;
  /** What this layer made or merged: its whiteouts and opaque markers spare it. */
  readonly #made = new NodeSet();
  /** Names that this layer gave to what lower layers made, by directory. */
  readonly #madeLinks = new Map<number, Set<ByteString>>();
  /** Directories with something below that this layer made. */
  readonly #madeBelow = new NodeSet();
  readonly #bodies: Bodies;
  readonly #layer: number;
  #lastParent: { path: ByteString; node: number } | undefined;
  readonly #space: ImageSpace;
  #entryCount = 0;

  /**
   * @param bodies Gets the content of regular files, and loses it where this
   * layer removes them.
   * @param layer Number of this layer, for `bodies`.
   * @param space Gets every entry. Once it is full the model is not changed any
   * more: the entries are counted, so that the error can name a size that does.
   * @param warn Gets a line for what is left out, as runtimes leave it out.
   */
  constructor(
    model: Ext4Model,
    bodies: Bodies,
    layer: number,
    space: ImageSpace,
    warn: (message: string) => void,
  ) {
    this.#model = model;
    this.#bodies = bodies;
    this.#layer = layer;
    this.#space = space;
    this.#warn = warn;
  }

  /** Entries seen so far. */
  get entryCount(): number {
    return this.#entryCount;
  }

  /**
   * Applies the next entry of the tar.
   *
   * @throws {FormatError} If it cannot be applied (a parent that is no
   * directory, a hard link to nothing); the message names the entry.
   */
  add(entry: TarEntry): void {
    this.#entryCount++;
    this.#space.add(entry);
    if (this.#space.fullLayer !== undefined) return;
    try {
      this.#apply(entry);
    } catch (error) {
      if (!(error instanceof DeviceFullError)) throw error;
      this.#space.setFull(this.#layer);
    }
  }

  #apply(entry: TarEntry): void {
    if (entry.path === "") {
      if (entry.type === "directory") {
        this.#model.setAttributes(this.#model.root, this.#attributes(entry));
      }
      return;
    }
    const slash = entry.path.lastIndexOf("/");
    const parentPath = slash < 0 ? "" : entry.path.slice(0, slash);
    const name = entry.path.slice(slash + 1);
    const whiteout = parseWhiteout(entry.path);
    if (whiteout?.kind === "metadata") return;
    const parent = this.#parent(parentPath, entry.path);
    if (whiteout?.kind === "opaque") this.#clear(parent);
    else if (whiteout?.kind === "remove") {
      const cut = whiteout.path.lastIndexOf("/") + 1;
      this.#hide(parent, whiteout.path.slice(cut));
    } else this.#place(parent, name, entry);
  }

  #place(parent: number, name: ByteString, entry: TarEntry): void {
    const model = this.#model;
    const existing = model.lookup(parent, name);
    const isMerge = existing !== undefined && entry.type === "directory" &&
      model.type(existing) === "directory";
    if (isMerge) {
      model.setAttributes(existing, this.#attributes(entry));
      this.#mark(parent, existing);
      return;
    }
    // The target is looked up first: what is replaced may be its other name.
    const target = entry.type === "hardlink"
      ? this.#linkTarget(entry, existing)
      : undefined;
    if (existing !== undefined) this.#remove(parent, name);
    if (target !== undefined) {
      model.link(parent, name, target);
      this.#touch(target, entry);
      this.#markLink(parent, name, target);
    } else this.#mark(parent, this.#create(parent, name, entry));
  }

  #create(parent: number, name: ByteString, entry: TarEntry): number {
    const attributes = this.#attributes(entry);
    switch (entry.type) {
      case "file": {
        const { node } = this.#model.createFile(parent, name, attributes, {
          size: entry.size,
          ranges: bodyRanges(entry),
        });
        if (entry.runs.length > 0 || entry.patches.length > 0) {
          this.#bodies.set(node, new FileBody(this.#layer, entry));
        }
        return node;
      }
      case "directory":
        return this.#model.mkdir(parent, name, attributes);
      case "symlink":
        return this.#model.symlink(
          parent,
          name,
          attributes,
          entry.linkTarget,
        );
      case "char":
      case "block":
      case "fifo":
        return this.#model.mknod(parent, name, attributes, {
          type: entry.type,
          major: entry.devMajor,
          minor: entry.devMinor,
        });
      case "hardlink":
        throw new TypeError("Internal error: hard links are placed by #place");
    }
  }

  #attributes(entry: TarEntry): Attributes {
    const { mode, uid, gid, mtime } = entry;
    return { mode, uid, gid, mtime, xattrs: this.#xattrs(entry) };
  }

  /**
   * A link's header repeats its target's attributes, but most writers leave the
   * extended ones out there: without any the target keeps its own.
   */
  #touch(target: number, entry: TarEntry): void {
    const attributes = this.#attributes(entry);
    const mode = this.#model.type(target) === "symlink"
      ? this.#model.stat(target).mode
      : attributes.mode;
    if (attributes.xattrs.length > 0) {
      this.#model.setAttributes(target, { ...attributes, mode });
    } else this.#model.setStat(target, { ...attributes, mode });
  }

  #xattrs(entry: TarEntry): TarEntry["xattrs"] {
    const isPlain = entry.type === "file" || entry.type === "directory" ||
      entry.type === "hardlink";
    const held = entry.xattrs.filter(([name]) =>
      XATTR_NAMESPACES.some((prefix) => name.startsWith(prefix)) &&
      // xattr(7): only files and directories have user attributes.
      (isPlain || !name.startsWith("user."))
    );
    if (held.length === entry.xattrs.length) return entry.xattrs;
    for (const [name] of entry.xattrs) {
      if (held.some(([kept]) => kept === name)) continue;
      this.#warn(
        `"${shown(entry.path)}": attribute "${
          shown(name)
        }" is left out, as a ${entry.type} on ext4 cannot have it`,
      );
    }
    return held;
  }

  #linkTarget(entry: TarEntry, existing: number | undefined): number {
    const model = this.#model;
    const slash = entry.linkTarget.lastIndexOf("/");
    const parent = this.#walk(
      slash < 0 ? "" : entry.linkTarget.slice(0, slash),
    );
    const target = parent !== undefined && model.type(parent) === "directory"
      ? model.lookup(parent, entry.linkTarget.slice(slash + 1))
      : undefined;
    const fail = (problem: string): never => {
      throw new FormatError(
        "tar entry",
        `hard link "${shown(entry.path)}"`,
        `points to "${shown(entry.linkTarget)}", which is ${problem}`,
      );
    };
    if (target === undefined) return fail("not there");
    if (model.type(target) === "directory") return fail("a directory");
    if (target === existing && model.stat(target).links === 1) {
      return fail("itself");
    }
    return target;
  }

  /** The directory that an entry goes into: symlinks followed inside the root, missing parts made. */
  #parent(path: ByteString, entryPath: ByteString): number {
    if (this.#lastParent?.path === path) return this.#lastParent.node;
    const node = this.#walk(path, true);
    if (node === undefined || this.#model.type(node) !== "directory") {
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
  #walk(path: ByteString, make = false): number | undefined {
    const model = this.#model;
    const stack: number[] = [];
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
      if (model.type(node) !== "directory") return undefined;
      let next = model.lookup(node, part);
      if (next !== undefined && model.type(next) === "symlink") {
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
        this.#mark(node, next);
      }
      stack.push(node);
      node = next;
    }
    return node;
  }

  #mark(parent: number, node: number): void {
    this.#made.add(node);
    this.#markBelow(parent);
  }

  #markLink(parent: number, name: ByteString, target: number): void {
    this.#markBelow(parent);
    if (this.#made.has(target)) return;
    let names = this.#madeLinks.get(parent);
    if (!names) this.#madeLinks.set(parent, names = new Set());
    names.add(name);
  }

  #markBelow(directory: number): void {
    const model = this.#model;
    for (let at = directory; !this.#madeBelow.has(at); at = model.parent(at)) {
      this.#madeBelow.add(at);
    }
  }

  #remove(parent: number, name: ByteString): void {
    const model = this.#model;
    const node = model.lookup(parent, name);
    if (node === undefined) return;
    if (model.type(node) === "directory") {
      // A symlink on the way may be among what goes.
      this.#lastParent = undefined;
      this.#empty(node);
      model.removeTree(parent, name);
    } else {
      if (model.type(node) === "symlink") this.#lastParent = undefined;
      // Inode numbers are taken again: a body must not outlive its file.
      if (model.stat(node).links === 1) this.#bodies.delete(node);
      model.unlink(parent, name);
    }
    this.#madeLinks.get(parent)?.delete(name);
  }

  /**
   * A whiteout hides what lower layers have under a name, never what its own
   * layer put there, whichever comes first (image-spec `layer.md`, "Whiteouts").
   */
  #hide(parent: number, name: ByteString): void {
    const node = this.#model.lookup(parent, name);
    if (node === undefined) return;
    if (!this.#isMade(parent, name, node)) this.#remove(parent, name);
    else if (this.#model.type(node) === "directory") this.#clear(node);
  }

  /** Whether this layer made a name, or something below it. */
  #isMade(parent: number, name: ByteString, node: number): boolean {
    return this.#made.has(node) || this.#madeBelow.has(node) ||
      (this.#madeLinks.get(parent)?.has(name) ?? false);
  }

  #empty(directory: number): void {
    for (const [name] of this.#model.children(directory)) {
      this.#remove(directory, name);
    }
    this.#madeLinks.delete(directory);
    this.#madeBelow.delete(directory);
  }

  /** An opaque marker hides what lower layers put there; what this layer put there stays. */
  #clear(directory: number): void {
    for (const [name, child] of this.#model.children(directory)) {
      if (!this.#isMade(directory, name, child)) this.#remove(directory, name);
      else if (this.#model.type(child) === "directory") this.#clear(child);
    }
  }
}

function shown(name: ByteString): string {
  return fromUtf8(bytesFromLatin1(name));
}

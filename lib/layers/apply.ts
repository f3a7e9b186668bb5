/**
 * Applies the entries of one layer's tar to the ext4 model, as containerd would
 * unpack them (`archive/tar.go`, applyNaive): whiteouts, opaque directories,
 * replacements, hard links, implied parents, parents that are symlinks.
 * `tests/kinds/corpus_test.ts` compares the two; `lib/tar/README.md` lists where
 * runtimes differ and what is done here.
 */

import {
  bytesFromLatin1,
  type ByteString,
  FormatError,
  fromUtf8,
  LimitError,
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
/**
 * Most directories above an entry: with more its path is over PATH_MAX however
 * short the names are. Paths that lead through symlinks could go deeper.
 */
const DEPTH_MAX = 2047;
/** Times beyond these are 1970 in containerd (archive/time.go): what Go counts in nanoseconds. */
const SECONDS_MAX = 9_223_372_036;
const NANOSECONDS_MAX = 854_775_807;
/**
 * Name of a file of one byte: what its layer has before it is needed soonest
 * (eStargz: stargz-snapshotter, docs/estargz.md, "Prioritized Files").
 */
const PREFETCH_LANDMARK = ".prefetch.landmark";
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

/** Attributes with which an image would change what an overlay on top of it shows. */
const OVERLAY_XATTRS = "trusted.overlay.";

/** Applies one layer; made anew for each. */
export class LayerApplier {
  readonly #model: Ext4Model;
  readonly #warn: (message: string) => void;
  /** What entries of this layer made or merged: its opaque markers spare it. */
  readonly #made = new NodeSet();
  /** Names that this layer gave to what lower layers made, by directory. */
  readonly #madeLinks = new Map<number, Set<ByteString>>();
  readonly #bodies: Bodies;
  readonly #layer: number;
  #lastParent: { path: ByteString; node: number } | undefined;
  readonly #space: ImageSpace;
  #entryCount = 0;
  #prefetchBytes: number | undefined;

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
   * Bytes at the tar's start that its author marked as needed soonest;
   * undefined if there was no mark so far.
   */
  get prefetchBytes(): number | undefined {
    return this.#prefetchBytes;
  }

  /**
   * Applies the next entry of the tar.
   *
   * @throws {FormatError} If it cannot be applied (a parent that is no
   * directory, a hard link to nothing); the message names the entry.
   * @throws {LimitError} If it lies deeper than any path leads.
   */
  add(entry: TarEntry): void {
    this.#entryCount++;
    if (entry.path === PREFETCH_LANDMARK && entry.size === 1) {
      const sector = entry.runs[0]?.tarSector;
      if (sector) this.#prefetchBytes ??= sector * 512;
    }
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
    const parent = this.#parent(parentPath, entry.path);
    if (whiteout?.kind === "opaque") this.#clear(parent);
    else if (whiteout?.kind === "remove") {
      const cut = whiteout.path.lastIndexOf("/") + 1;
      this.#remove(parent, whiteout.path.slice(cut));
    } else this.#place(parent, name, entry);
  }

  #place(parent: number, name: ByteString, entry: TarEntry): void {
    const model = this.#model;
    const existing = model.lookup(parent, name);
    const isMerge = existing !== undefined && entry.type === "directory" &&
      model.type(existing) === "directory";
    if (isMerge) {
      model.setAttributes(existing, this.#attributes(entry));
      this.#made.add(existing);
      return;
    }
    this.#remove(parent, name);
    if (entry.type !== "hardlink") {
      this.#made.add(this.#create(parent, name, entry));
      return;
    }
    const target = this.#linkTarget(entry);
    model.link(parent, name, target);
    this.#touch(target, entry);
    if (!this.#made.has(target)) this.#addLink(parent, name);
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
    const { uid, gid } = entry;
    // Linux gives every symlink this mode, whatever its header says.
    const mode = entry.type === "symlink" ? 0o777 : entry.mode;
    const mtime = boundTime(entry.mtime);
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
      !name.startsWith(OVERLAY_XATTRS) &&
      // xattr(7): only files and directories have user attributes.
      (isPlain || !name.startsWith("user."))
    );
    if (held.length === entry.xattrs.length) return entry.xattrs;
    for (const [name] of entry.xattrs) {
      if (held.some(([kept]) => kept === name)) continue;
      this.#warn(
        `"${shown(entry.path)}": attribute "${shown(name)}" is left out, ${
          name.startsWith(OVERLAY_XATTRS)
            ? "as no image may set it"
            : `as a ${entry.type} on ext4 cannot have it`
        }`,
      );
    }
    return held;
  }

  /** Called when what was under the link's own name is gone, as runtimes do it. */
  #linkTarget(entry: TarEntry): number {
    const model = this.#model;
    const slash = entry.linkTarget.lastIndexOf("/");
    const parent = this.#walk(
      slash < 0 ? "" : entry.linkTarget.slice(0, slash),
    );
    const name = entry.linkTarget.slice(slash + 1);
    const target = parent === undefined || model.type(parent) !== "directory"
      ? undefined
      : name === ".."
      ? parent
      : model.lookup(parent, name);
    const fail = (problem: string): never => {
      throw new FormatError(
        "tar entry",
        `hard link "${shown(entry.path)}"`,
        `points to "${shown(entry.linkTarget)}", which is ${problem}`,
      );
    };
    if (target === undefined) {
      return fail(entry.linkTarget === entry.path ? "itself" : "not there");
    }
    if (model.type(target) === "directory") return fail("a directory");
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
        if (stack.length >= DEPTH_MAX) {
          throw new LimitError(
            `Cannot make the directories of "${
              shown(path)
            }": with its symlinks followed they are over ${DEPTH_MAX} deep`,
          );
        }
        next = model.mkdir(node, part, IMPLIED_PARENT);
        // The number may be that of something this layer made and removed.
        this.#made.delete(next);
      }
      stack.push(node);
      node = next;
    }
    return node;
  }

  #addLink(parent: number, name: ByteString): void {
    let names = this.#madeLinks.get(parent);
    if (!names) this.#madeLinks.set(parent, names = new Set());
    names.add(name);
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

  #empty(directory: number): void {
    for (const [name] of this.#model.children(directory)) {
      this.#remove(directory, name);
    }
    this.#madeLinks.delete(directory);
  }

  /**
   * An opaque marker removes all that no entry of this layer has put there so
   * far; what is removed goes with all below it, whoever put that there.
   */
  #clear(directory: number): void {
    for (const [name, child] of this.#model.children(directory)) {
      const isMade = this.#made.has(child) ||
        (this.#madeLinks.get(directory)?.has(name) ?? false);
      if (!isMade) this.#remove(directory, name);
      else if (this.#model.type(child) === "directory") this.#clear(child);
    }
  }
}

function boundTime(time: TarEntry["mtime"]): TarEntry["mtime"] {
  const { seconds, nanoseconds } = time;
  const isKept = seconds >= 0 && (seconds < SECONDS_MAX ||
    (seconds === SECONDS_MAX && nanoseconds <= NANOSECONDS_MAX));
  return isKept ? time : { seconds: 0, nanoseconds: 0 };
}

function shown(name: ByteString): string {
  return fromUtf8(bytesFromLatin1(name));
}

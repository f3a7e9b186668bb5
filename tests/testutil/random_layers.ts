/**
 * Random stacks of layers, the same ones for the same seed: every kind of
 * entry, replacements of each by each, whiteouts, opaque directories, hard
 * links across layers. Nothing in them is read in different ways by different
 * runtimes.
 */

import {
  file,
  type LayerEntry,
  opaque,
  posixAcl,
  whiteout,
} from "./oci_image.ts";

/** Small deterministic generator (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** An integer in `[0, limit)`. */
  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  }

  /** One of them. */
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }

  /** Bytes that compress a little. */
  bytes(length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.below(64) + 32;
    return bytes;
  }
}

const SIZES = [0, 1, 511, 512, 513, 4095, 4096, 4097, 20_000, 70_000];
const KINDS = [
  "file",
  "file",
  "file",
  "directory",
  "directory",
  "symlink",
  "hardlink",
  "char",
  "fifo",
  "sparse",
] as const;

/** A stack of `count` layers. */
export function randomLayers(seed: number, count: number): LayerEntry[][] {
  const random = new Random(seed);
  /** What the layers so far have: path to its last entry; hard links to their target's. */
  const tree = new Map<string, LayerEntry>();
  const layers: LayerEntry[][] = [];
  for (let i = 0; i < count; i++) {
    layers.push(randomLayer(random, tree, i));
  }
  return layers;
}

function randomLayer(
  random: Random,
  tree: Map<string, LayerEntry>,
  index: number,
): LayerEntry[] {
  const entries: LayerEntry[] = [];
  /** What this layer touched: not to be removed or hidden by itself. */
  const own = new Set<string>();
  const below = (path: string) =>
    [...tree.keys()].filter((p) => p === path || p.startsWith(`${path}/`));
  if (index > 0) {
    for (let i = random.below(4); i > 0 && tree.size > 0; i--) {
      const path = random.pick([...tree.keys()]);
      if (tree.get(path)!.type === "directory" && random.below(3) === 0) {
        entries.push(opaque(path));
        for (const gone of below(path)) if (gone !== path) tree.delete(gone);
      } else {
        entries.push(whiteout(path));
        for (const gone of below(path)) tree.delete(gone);
      }
    }
  }
  for (let i = 5 + random.below(25); i > 0; i--) {
    const directories = [...tree].filter(([, e]) => e.type === "directory")
      .map(([path]) => path);
    const parent = random.pick(["", ...directories]);
    const name = `n${random.below(14)}`;
    const path = parent === "" ? name : `${parent}/${name}`;
    if (own.has(path) || path.split("/").length > 5) continue;
    const entry = randomEntry(random, path, tree);
    const isMerge = entry.type === "directory" &&
      tree.get(path)?.type === "directory";
    if (!isMerge) {
      // Entries of this layer below it would have to come after it.
      if (below(path).some((p) => own.has(p))) continue;
      for (const gone of below(path)) tree.delete(gone);
    }
    if (entry.type === "hardlink" && !tree.has(entry.linkTarget!)) continue;
    entries.push(entry);
    own.add(path);
    tree.set(
      path,
      entry.type === "hardlink"
        ? { ...tree.get(entry.linkTarget!)!, path }
        : entry,
    );
  }
  return entries;
}

function randomEntry(
  random: Random,
  path: string,
  tree: Map<string, LayerEntry>,
): LayerEntry {
  const common = {
    path,
    mode: random.pick([0o644, 0o600, 0o755, 0o4755, 0o1777, 0o2711]),
    uid: random.pick([0, 1000, 70_000, 3_000_000]),
    gid: random.pick([0, 50, 65_534]),
    mtime: {
      seconds: 1_500_000_000 + random.below(200_000_000),
      nanoseconds: random.pick([0, 1, 999_999_999, 123_000_000]),
    },
  };
  const kind = random.pick(KINDS);
  switch (kind) {
    case "file":
      return {
        ...common,
        type: "file",
        content: random.bytes(random.pick(SIZES)),
        ...randomXattrs(random, common.mode),
      };
    case "directory":
      return {
        ...common,
        type: "directory",
        ...randomXattrs(random, common.mode),
      };
    case "symlink":
      return {
        ...common,
        type: "symlink",
        mode: 0o777,
        linkTarget: random.pick(["n1", "/n2/n3", "../n4", "t".repeat(60)]),
      };
    case "hardlink": {
      const targets = [...tree].filter(([p, e]) =>
        e.type !== "directory" && e.type !== "symlink" && p !== path
      );
      if (targets.length === 0) return file(path, "no target", common);
      const [linkTarget, target] = random.pick(targets);
      const { mode, uid, gid, mtime } = target;
      return {
        path,
        type: "hardlink",
        linkTarget,
        ...{ mode: mode!, uid: uid!, gid: gid!, mtime: mtime! },
      };
    }
    case "char":
      return {
        ...common,
        type: random.pick(["char", "block"]),
        devMajor: random.below(300),
        devMinor: random.below(300),
      };
    case "fifo":
      return { ...common, type: "fifo" };
    case "sparse": {
      const first = random.bytes(4096);
      const last = random.bytes(700);
      return {
        ...common,
        type: "file",
        sparse: {
          size: 100_000 + random.below(5000),
          segments: [
            { offset: 8192, bytes: first },
            { offset: 61_440, bytes: last },
          ],
        },
      };
    }
  }
}

/** An ACL agrees with the mode: the kernel keeps the one in step with the other. */
function randomXattrs(
  random: Random,
  mode: number,
): Pick<LayerEntry, "xattrs"> {
  switch (random.below(6)) {
    case 0:
      return { xattrs: { "user.note": random.bytes(random.below(100)) } };
    case 1:
      return { xattrs: { "user.long": random.bytes(1500), "user.b": "x" } };
    case 2:
      return {
        xattrs: {
          "system.posix_acl_access": posixAcl([
            [1, (mode >> 6) & 7, 0xffffffff],
            [2, 5, 1234],
            [4, 4, 0xffffffff],
            [16, (mode >> 3) & 7, 0xffffffff],
            [32, mode & 7, 0xffffffff],
          ]),
        },
      };
    default:
      return {};
  }
}

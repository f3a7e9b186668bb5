/** Real trees packed by GNU tar and bsdtar in every format, compared with the tree. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { toHex } from "../../lib/io/mod.ts";
import type { TarEntry } from "../../lib/tar/mod.ts";
import { requires } from "../testutil/requires.ts";
import { python, run, type StatNode } from "./python.ts";
import { contentOf, walk } from "./walk.ts";

type Tree = Record<string, StatNode>;

/** What a format keeps; the rest is not compared. */
interface Keeps {
  nanoseconds?: boolean;
  xattrs?: boolean;
  /** False: no devices and FIFOs in the format. */
  devices?: boolean;
  /** False: bsdtar writes 0 in old formats, and in PAX −1.5 s as "-2.5", which reads as −2.5. */
  before1970?: boolean;
}

interface Case {
  name: string;
  tool: "tar" | "bsdtar";
  options: string[];
  /** Long and odd names, times before 1970, xattrs. */
  long: boolean;
  keeps?: Keeps;
  /** Sparse files must need no patches, and few runs' sectors. */
  sparse?: boolean;
}

const SPECIAL = ["fifo", "char", "block"];
const PAX: Keeps = { nanoseconds: true, xattrs: true };

const CASES: Case[] = [
  {
    name: "GNU tar v7",
    tool: "tar",
    options: ["--format=v7"],
    long: false,
    keeps: { devices: false },
  },
  {
    name: "GNU tar ustar",
    tool: "tar",
    options: ["--format=ustar"],
    long: false,
  },
  {
    name: "GNU tar oldgnu sparse",
    tool: "tar",
    options: ["--format=oldgnu", "-S"],
    long: true,
    sparse: true,
  },
  { name: "GNU tar gnu", tool: "tar", options: ["--format=gnu"], long: true },
  {
    name: "GNU tar gnu sparse",
    tool: "tar",
    options: ["--format=gnu", "-S"],
    long: true,
    sparse: true,
  },
  {
    name: "GNU tar posix",
    tool: "tar",
    options: ["--format=posix", "--xattrs", "--acls"],
    long: true,
    keeps: PAX,
  },
  ...["0.0", "0.1", "1.0"].map((version): Case => ({
    name: `GNU tar posix sparse ${version}`,
    tool: "tar",
    options: [
      "--format=posix",
      "--xattrs",
      "-S",
      `--sparse-version=${version}`,
    ],
    long: true,
    keeps: PAX,
    sparse: true,
  })),
  {
    name: "bsdtar pax",
    tool: "bsdtar",
    options: ["--format=pax"],
    long: true,
    keeps: { ...PAX, before1970: false },
    sparse: true,
  },
  {
    name: "bsdtar ustar",
    tool: "bsdtar",
    options: ["--format=ustar"],
    long: false,
  },
  {
    name: "bsdtar gnutar",
    tool: "bsdtar",
    options: ["--format=gnutar"],
    long: true,
    keeps: { before1970: false },
  },
  {
    name: "bsdtar v7",
    tool: "bsdtar",
    options: ["--format=v7"],
    long: false,
    keeps: { devices: false },
  },
];

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function nanoseconds({ seconds, nanoseconds }: TarEntry["mtime"]): bigint {
  return BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds);
}

function checkEntry(
  entry: TarEntry,
  node: StatNode,
  tree: Tree,
  tar: Uint8Array,
  keeps: Keeps,
): void {
  const where = entry.path;
  if (entry.type === "hardlink") {
    assert.equal(tree[entry.linkTarget]?.inode, node.inode, where);
  } else {
    assert.equal(entry.type, node.type, where);
    assert.equal(entry.size, node.size, where);
    assert.equal(entry.linkTarget, node.link, where);
    assert.deepEqual([entry.devMajor, entry.devMinor], node.dev, where);
  }
  if (entry.type === "file") {
    assert.equal(sha256(contentOf(entry, tar)), node.sha256, where);
  }
  if (entry.type !== "symlink") assert.equal(entry.mode, node.mode, where);
  assert.equal(entry.uid, node.uid, where);
  assert.equal(entry.gid, node.gid, where);
  const mtime = BigInt(node.mtimeNs);
  if (mtime < 0n && keeps.before1970 === false) {
    assert.ok(nanoseconds(entry.mtime) <= 0n);
  } else if (keeps.nanoseconds) {
    assert.equal(nanoseconds(entry.mtime), mtime, where);
  } else {
    const seconds = Math.floor(Number(mtime / 1_000_000n) / 1000);
    assert.equal(entry.mtime.seconds, seconds, where);
  }
  if (keeps.xattrs && entry.type !== "hardlink") {
    assert.deepEqual(
      entry.xattrs.map(([name, value]) => [name, toHex(value)]),
      node.xattrs,
      where,
    );
  }
}

for (const tool of ["tar", "bsdtar"] as const) {
  Deno.test({
    name: `trees packed by ${tool}`,
    ignore: !requires("python3", tool),
    async fn(t) {
      const dir = await Deno.makeTempDir();
      const isRoot = Deno.uid() === 0 ? "1" : "0";
      try {
        for (const long of [false, true]) {
          const root = `${dir}/${long ? "long" : "short"}`;
          await python("make", root, isRoot);
          if (long) await python("make-long", root);
          const tree: Tree = JSON.parse(await python("stat", root));
          for (const c of CASES.filter((c) => c.tool === tool)) {
            if (c.long !== long) continue;
            await t.step(c.name, async () => {
              const path = `${dir}/out.tar`;
              const absent = c.keeps?.devices === false ? SPECIAL : [];
              await run(tool, [
                "-c",
                ...c.options,
                ...absent.map((name) => `--exclude=./${name}`),
                "-f",
                path,
                ".",
              ], root);
              const tar = await Deno.readFile(path);
              const entries = walk(tar);
              assert.deepEqual(
                entries.map((e) => e.path).sort(),
                Object.keys(tree).filter((p) => !absent.includes(p)).sort(),
              );
              for (const entry of entries) {
                checkEntry(entry, tree[entry.path]!, tree, tar, c.keeps ?? {});
              }
              if (c.sparse) checkSparse(entries);
            });
          }
        }
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}

/** Sparse files must have come as such, and need no patches: holes are whole blocks. */
function checkSparse(entries: readonly TarEntry[]): void {
  const sparse = entries.find((e) => e.path === "sparse")!;
  const sectors = sparse.runs.reduce((n, r) => n + r.sectors, 0);
  assert.ok(sectors < 1000, `${sectors} sectors of data`);
  assert.deepEqual(entries.find((e) => e.path === "holes")!.runs, []);
  assert.ok(entries.find((e) => e.path === "sparse-many")!.runs.length >= 50);
  for (const entry of entries) assert.deepEqual(entry.patches, [], entry.path);
}

import { deepEqual, equal, match, ok, throws } from "node:assert/strict";
import { Ext4Model } from "../../lib/ext4/mod.ts";
import { FormatError, LimitError } from "../../lib/io/mod.ts";
import type { TarEntry } from "../../lib/tar/mod.ts";
import {
  dir,
  file,
  hardlink,
  type LayerEntry,
  opaque,
  posixAcl,
  symlink,
  whiteout,
} from "../testutil/oci_image.ts";
import { applyEntries, applyLayers, nodeAt, pathsOf } from "./apply_tree.ts";

const BASE = [
  dir("a"),
  file("a/one", "1"),
  file("a/two", "2"),
  dir("a/sub"),
  file("a/sub/deep", "3"),
  file("top", "4"),
];

Deno.test("LayerApplier: whiteouts in every form", () => {
  const cases: [string, LayerEntry[], string[]][] = [
    ["a file", [whiteout("a/one")], ["a", "a/sub", "a/sub/deep", "a/two"]],
    ["a directory", [whiteout("a/sub")], ["a", "a/one", "a/two"]],
    ["in the root", [whiteout("a")], []],
    ["what is not there", [whiteout("a/none"), whiteout("no/where")], [
      "a",
      "a/one",
      "a/sub",
      "a/sub/deep",
      "a/two",
      // The parent is made, as runtimes make it.
      "no",
    ]],
    ["opaque alone", [opaque("a")], ["a"]],
    ["opaque before entries", [opaque("a"), file("a/new")], ["a", "a/new"]],
    ["opaque after entries", [file("a/new"), opaque("a")], ["a", "a/new"]],
    ["opaque after a replacement", [file("a/one", "x"), opaque("a")], [
      "a",
      "a/one",
    ]],
    ["opaque removes a lower directory that no entry named", [
      file("a/sub/new"),
      opaque("a"),
    ], ["a"]],
    ["opaque removes a directory that no entry named", [
      file("a/n/m/new"),
      opaque("a"),
    ], ["a"]],
    ["opaque spares a file in a directory with an entry", [
      file("a/sub/new"),
      dir("a/sub"),
      opaque("a"),
    ], ["a", "a/sub", "a/sub/new"]],
    ["opaque, when a number is taken again", [
      dir("a/gone"),
      whiteout("a/gone"),
      file("a/n/new"),
      opaque("a"),
    ], ["a"]],
    ["opaque above a directory of its layer", [
      dir("a/sub"),
      opaque("a"),
    ], ["a", "a/sub"]],
    ["AUFS's own names", [
      dir(".wh..wh.plnk"),
      file("a/.wh..wh.aufs"),
    ], ["a", "a/one", "a/sub", "a/sub/deep", "a/two"]],
  ];
  for (const [name, entries, want] of cases) {
    const got = pathsOf([BASE, entries]);
    deepEqual(got, [...want, "top"].sort(), name);
  }
});

Deno.test("LayerApplier: an opaque root hides all that is below", () => {
  deepEqual(pathsOf([BASE, [opaque(""), file("new")]]), ["new"]);
});

Deno.test("LayerApplier: a whiteout removes what is there when it comes", () => {
  const cases: [LayerEntry[], string[]][] = [
    [[whiteout("a"), dir("a"), file("a/new")], ["a", "a/new", "top"]],
    [[dir("a"), file("a/new"), whiteout("a")], ["top"]],
    [[file("a/sub/new"), whiteout("a")], ["top"]],
    [[file("top", "new"), whiteout("top"), whiteout("a")], []],
    [[whiteout("top"), file("top", "new"), whiteout("a")], ["top"]],
    [[file("a", "file"), whiteout("a")], ["top"]],
    [[hardlink("a/h", "top"), whiteout("a/h"), opaque("a")], ["a", "top"]],
  ];
  for (const [entries, want] of cases) {
    const { tree } = applyLayers([BASE, entries]);
    deepEqual(Object.keys(tree).filter((p) => p !== "").sort(), want);
    for (const path of want) {
      if (tree[path]!.startsWith("file") && path !== "top") {
        match(tree[path]!, /layer (1|-)/, path);
      }
    }
  }
});

Deno.test("LayerApplier: a name that a layer gives to a lower file is its own too", () => {
  const link = hardlink("a/one", "top");
  const spared = applyLayers([BASE, [link, opaque("a")]]).tree;
  match(spared["a/one"]!, /size 1 layer 0 links 2$/);
  equal(spared["top"], spared["a/one"]);
  const gone = applyLayers([BASE, [link, whiteout("a/one")]]).tree;
  equal(gone["a/one"], undefined);
  match(gone["top"]!, /size 1 layer 0$/);
  // The other way round, and after the name went to something else.
  const { tree } = applyLayers([BASE, [
    opaque("a"),
    link,
    file("a/one", "new"),
  ]]);
  match(tree["a/one"]!, /size 3 layer 1$/);
  match(tree["top"]!, /layer 0$/);
});

Deno.test("LayerApplier: what a whiteout removed comes back in a later layer as new", () => {
  const { tree } = applyLayers([
    BASE,
    [whiteout("a")],
    [file("a/one", "new")],
  ]);
  deepEqual(Object.keys(tree).sort(), ["", "a", "a/one", "top"]);
  equal(tree["a/one"], "file 644 0:0 1700000000.000000000 size 3 layer 2");
  equal(
    tree["a"],
    "directory 755 0:0 0.000000000",
    "a parent nobody described",
  );
});

const KINDS: Record<string, LayerEntry[]> = {
  file: [file("x", "content")],
  empty: [file("x")],
  directory: [dir("x"), file("x/child", "c")],
  symlink: [symlink("x", "y")],
  hardlink: [file("y", "shared"), hardlink("x", "y")],
  char: [{ path: "x", type: "char", devMajor: 1, devMinor: 3 }],
  block: [{ path: "x", type: "block", devMajor: 8, devMinor: 1 }],
  fifo: [{ path: "x", type: "fifo" }],
};

Deno.test("LayerApplier: every kind replaces every kind, between layers and in one", () => {
  for (const [below, lower] of Object.entries(KINDS)) {
    for (const [above, upper] of Object.entries(KINDS)) {
      const name = `${above} over ${below}`;
      const two = applyLayers([lower, upper]);
      const one = applyLayers([[...lower, ...upper]]);
      for (const { tree } of [two, one]) {
        const want = above === "empty" || above === "hardlink" ? "file" : above;
        equal(tree["x"]!.split(" ")[0], want, name);
        equal("x/child" in tree, above === "directory", name);
        equal(tree["x"]!.includes("links"), above === "hardlink", name);
      }
      // Nothing is left over of what was replaced.
      for (const { bodies, model, tree } of [two, one]) {
        const files = Object.entries(tree).filter(([, line]) =>
          line.startsWith("file") && !line.includes("size 0")
        );
        const nodes = new Set(files.map(([path]) => nodeAt(model, path)));
        deepEqual(new Set(bodies.keys()), nodes, name);
      }
    }
  }
});

Deno.test("LayerApplier: of entries with one name the last counts", () => {
  const { tree } = applyLayers([[
    file("x", "first"),
    file("x", "second!", { mode: 0o600, mtime: 5 }),
    dir("d", { mode: 0o700 }),
    file("d/kept"),
    dir("d", { mode: 0o711, uid: 3 }),
  ]]);
  equal(tree["x"], "file 600 0:0 5.000000000 size 7 layer 0");
  equal(tree["d"], "directory 711 3:0 1700000000.000000000");
  ok("d/kept" in tree);
});

Deno.test("LayerApplier: parents that are symlinks are followed inside the root", () => {
  const base = [
    dir("usr"),
    dir("usr/lib"),
    symlink("lib", "usr/lib"),
    symlink("abs", "/usr/lib"),
    symlink("up", "../../../usr"),
    symlink("usr/loop", "loop"),
  ];
  const { tree } = applyLayers([base, [
    file("lib/a"),
    file("abs/b"),
    file("up/lib/c"),
    whiteout("lib/none"),
    hardlink("lib/d", "abs/b"),
    dir("up/share"),
  ]]);
  for (const path of ["usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/share"]) {
    ok(path in tree, path);
  }
  match(tree["usr/lib/d"]!, /links 2/);
  equal(tree["lib"]!.split(" ")[0], "symlink", "the link itself stays");
  deepEqual(
    pathsOf([base, [file("usr/lib/x")], [whiteout("lib/x")]]).includes(
      "usr/lib/x",
    ),
    false,
    "a whiteout through a link",
  );
  throws(() => applyLayers([base, [file("usr/loop/x")]]), /too many levels/);
  throws(
    () => applyLayers([[file("f"), file("f/below")]]),
    (error) =>
      error instanceof FormatError && /"f".*no directory/.test(error.message),
  );
  // A link that is replaced is not followed any more.
  const replaced = applyLayers([base, [
    file("lib/a"),
    dir("lib"),
    file("lib/b"),
  ]]);
  ok("usr/lib/a" in replaced.tree && "lib/b" in replaced.tree);
  equal(replaced.tree["usr/lib/b"], undefined);
});

Deno.test("LayerApplier: symlinks lead no deeper than a path, and all of it can be removed", () => {
  const half = "a/".repeat(1000);
  // Directories above "x": "top", 1000, 1000, and `more`.
  const deep = (more: number) => [
    dir("top"),
    dir(`top/${half}`.slice(0, -1)),
    symlink("link", `top/${half}`),
    dir(`link/${half}`.slice(0, -1)),
    symlink("link2", `link/${half}`),
    file(`link2/${"b/".repeat(more)}x`),
  ];
  deepEqual(pathsOf([deep(46), [whiteout("top")]]), ["link", "link2"]);
  deepEqual(pathsOf([deep(46), [opaque("")]]), []);
  throws(
    () => applyLayers([deep(47)]),
    (error: unknown) =>
      error instanceof LimitError && /"link2\/b\/.* deep/.test(error.message),
  );
});

Deno.test("LayerApplier: hard links to what was replaced, removed, or lies below", () => {
  const lower = [
    file("t", "target", { mode: 0o600 }),
    hardlink("n", "t", { mode: 0o600 }),
  ];
  equal(applyLayers([lower]).tree["n"]!.includes("links 2"), true);
  // A link in an upper layer to a file of a lower one.
  const across = applyLayers([lower, [hardlink("up", "n", { mode: 0o600 })]]);
  match(across.tree["up"]!, /size 6 layer 0 links 3/);
  // The old name is replaced: the others keep the old content.
  const replaced = applyLayers([lower, [file("t", "new content")]]);
  match(replaced.tree["t"]!, /size 11 layer 1$/);
  match(replaced.tree["n"]!, /size 6 layer 0$/);
  // Of two names one is removed.
  match(applyLayers([lower, [whiteout("t")]]).tree["n"]!, /size 6 layer 0$/);
  // To a new file of the same name.
  const renewed = applyLayers([lower, [
    file("t", "abc", { mode: 0o600 }),
    hardlink("n", "t", { mode: 0o600 }),
  ]]);
  match(renewed.tree["n"]!, /size 3 layer 1 links 2$/);
  // Dots lead on from where a symlink leads.
  const dots = applyLayers([[
    dir("d"),
    dir("d/e"),
    file("d/f", "12345"),
    symlink("s", "d/e"),
    hardlink("n", "s/../f"),
  ]]);
  match(dots.tree["n"]!, /size 5 layer 0 links 2$/);
  // To its other name: nothing changes.
  const again = applyLayers([lower, [hardlink("n", "t", { mode: 0o600 })]]);
  equal(again.tree["n"], applyLayers([lower]).tree["n"]);

  const bad: [string, LayerEntry[], RegExp][] = [
    [
      "nothing",
      [hardlink("n", "none")],
      /points to "none", which is not there/,
    ],
    ["removed", [file("t"), whiteout("x"), hardlink("n", "x")], /not there/],
    ["itself", [file("n"), hardlink("n", "n")], /itself/],
    ["itself, of two", [
      file("n"),
      hardlink("m", "n"),
      hardlink("n", "n"),
    ], /itself/],
    [
      "what it replaces",
      [dir("d"), file("d/f"), hardlink("d", "d/f")],
      /not there/,
    ],
    ["the parent", [dir("d"), hardlink("d/n", "d/..")], /a directory/],
    ["a directory", [dir("d"), hardlink("n", "d")], /a directory/],
    ["below a file", [file("f"), hardlink("n", "f/x")], /not there/],
  ];
  for (const [name, entries, message] of bad) {
    throws(() => applyLayers([entries]), message, name);
  }
  throws(
    () => applyLayers([[file("x")], [whiteout("x"), hardlink("n", "x")]]),
    /not there/,
  );
});

Deno.test("LayerApplier: a hard link to a symlink, a device and a fifo", () => {
  const { tree } = applyLayers([[
    symlink("s", "somewhere"),
    hardlink("s2", "s", { mode: 0o777 }),
    { path: "c", type: "char", devMajor: 5, devMinor: 1, mode: 0o620 },
    hardlink("c2", "c", { mode: 0o620 }),
  ]]);
  match(tree["s2"]!, /^symlink 777 .*links 2 -> somewhere$/);
  match(tree["c2"]!, /^char 620 .*links 2$/);
});

Deno.test("LayerApplier: the root's own entry gives its attributes", () => {
  const { tree } = applyLayers([
    [dir("", { mode: 0o1777, uid: 7, gid: 8, mtime: 99 }), file("x")],
    [file("y")],
  ]);
  equal(tree[""], "directory 1777 7:8 99.000000000");
});

Deno.test("LayerApplier: times, owners and modes are those of containerd", () => {
  const { tree } = applyLayers([[
    file("n", "", {
      mtime: { seconds: 1_600_000_000, nanoseconds: 123_456_789 },
    }),
    file("old", "", { mtime: { seconds: -2, nanoseconds: 500_000_000 } }),
    file("late", "", { mtime: { seconds: 9_223_372_036, nanoseconds: 0 } }),
    file("too", "", { mtime: { seconds: 9_223_372_037, nanoseconds: 0 } }),
    symlink("l", "n", { mode: 0o640 }),
    file("s", "", { mode: 0o6755, uid: 4_000_000_000, gid: 65_536 }),
  ]]);
  match(tree["n"]!, / 1600000000\.123456789 /);
  // What containerd cannot say is 1970.
  match(tree["old"]!, / 0\.000000000 /);
  match(tree["late"]!, / 9223372036\.000000000 /);
  match(tree["too"]!, / 0\.000000000 /);
  match(tree["l"]!, /^symlink 777 /);
  match(tree["s"]!, /^file 6755 4000000000:65536 /);
});

Deno.test("LayerApplier: attributes that ext4 cannot have are left out with a line each", () => {
  const acl = posixAcl([[1, 6, 0xffffffff], [4, 4, 0xffffffff], [
    32,
    4,
    0xffffffff,
  ]]);
  const { model, warnings, tree } = applyLayers([[
    file("f", "", {
      xattrs: {
        "user.a": "v",
        "security.capability":
          "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        "system.posix_acl_access": acl,
        "com.apple.x": "gone",
      },
    }),
    symlink("s", "f", { xattrs: { "user.b": "gone", "trusted.c": "kept" } }),
    dir("d", { xattrs: { "trusted.overlay.opaque": "gone" } }),
  ]]);
  deepEqual(warnings, [
    '"f": attribute "com.apple.x" is left out, as a file on ext4 cannot have it',
    '"s": attribute "user.b" is left out, as a symlink on ext4 cannot have it',
    '"d": attribute "trusted.overlay.opaque" is left out, as no image may set it',
  ]);
  ok(tree["f"] && tree["s"] && model);
});

Deno.test("LayerApplier: a merged directory gets the upper layer's attributes, its children stay", () => {
  const { tree } = applyLayers([BASE, [
    dir("a", { mode: 0o2770, gid: 5, mtime: 7 }),
  ]]);
  equal(tree["a"], "directory 2770 0:5 7.000000000");
  ok("a/sub/deep" in tree);
});

const GIB = 2 ** 30;

function* largeFiles(
  directory: string,
  count: number,
  bytes: number,
): Generator<Partial<TarEntry>> {
  const sectors = Math.ceil(bytes / 512);
  for (let i = 0; i < count; i++) {
    yield {
      path: `${directory}/${i}`,
      size: bytes,
      runs: sectors > 0 ? [{ fileSector: 0, tarSector: 1, sectors }] : [],
    };
  }
}

Deno.test("LayerApplier: on a full device all layers are counted; the size that is named fits, a smaller one does not", () => {
  const cases: [string, () => Iterable<Partial<TarEntry>>[], number, number][] =
    [
      [
        "bodies of the second layer",
        () => [
          largeFiles("a", 7, 100_000_001),
          largeFiles("b", 7, 100_000_001),
          largeFiles("c", 7, GIB / 2),
        ],
        1,
        5,
      ],
      [
        "inodes",
        () => [largeFiles("a", 70_000, 0), largeFiles("b", 65_000, 0)],
        0,
        3,
      ],
      ["small files", () => [largeFiles("a", 3000, 400_001)], 0, 2],
    ];
  for (const [name, layers, fullLayer, gib] of cases) {
    const space = applyEntries(layers(), GIB);
    equal(space.fullLayer, fullLayer, name);
    const size = space.sufficientSize();
    equal(size, gib * GIB, name);
    equal(applyEntries(layers(), size).fullLayer, undefined, name);
    if (gib > 2) {
      ok(applyEntries(layers(), size - GIB).fullLayer !== undefined, name);
    }
  }
});

Deno.test("LayerApplier: a device that only the directories' blocks do not fit on", () => {
  const size = 64 * 2 ** 20;
  const { freeBytes } = Ext4Model.create({ virtualSize: size });
  const layer = function* (): Generator<Partial<TarEntry>> {
    yield* largeFiles("a", 1, freeBytes - 10 * 4096);
    for (let i = 0; i < 10; i++) yield { type: "directory", path: `d${i}` };
  };
  const space = applyEntries([layer()], size);
  equal(space.fullLayer, 0);
  equal(space.sufficientSize(), GIB);
});

/** Odd stacks of layers: hard links, and entries below symlinks. */

import { dir, file, hardlink, symlink } from "../testutil/oci_image.ts";
import type { TarCase } from "./corpus.ts";
import { above } from "./corpus_layers.ts";

const HARD_LINKS: TarCase[] = [
  {
    name: "hard link to a later name",
    refused: /points to "x", which is not there/,
    layers: [[hardlink("h", "x"), file("x")]],
  },
  {
    name: "hard link to nothing",
    refused: /points to "none", which is not there/,
    layers: [[file("x"), hardlink("h", "none")]],
  },
  {
    name: "hard link to itself",
    refused: /points to "x", which is itself/,
    layers: [[file("x", "1"), hardlink("x", "x")]],
  },
  {
    ...above("hard link into a lower layer", hardlink("h", "a/one")),
    overlayfs: "refused",
  },
  {
    ...above(
      "hard link over its target in a lower layer",
      hardlink("top", "top"),
    ),
    refused: /which is itself/,
  },
  above("hard link through a symlink", hardlink("h", "link/one")),
  above("hard link to a symlink", hardlink("h", "link")),
  {
    ...above("hard link to a directory", hardlink("h", "a")),
    refused: /points to "a", which is a directory/,
  },
  above("hard link with a leading slash", hardlink("h", "/a/one")),
  above("hard link with a leading dot", hardlink("h", "./a/one")),
  above("hard link with dots inside", hardlink("h", "a/sub/../one")),
  above("hard link over a directory", hardlink("a", "top")),
  above("hard link over another file", hardlink("a/one", "top")),
  above(
    "hard link whose header has another mode",
    hardlink("h", "top", { mode: 0o600 }),
  ),
  above(
    "hard link whose header has another owner",
    hardlink("h", "top", { uid: 5, gid: 6 }),
  ),
  above(
    "hard link whose header has another time",
    hardlink("h", "top", { mtime: 1_600_000_000 }),
  ),
  above(
    "hard link whose header has attributes",
    hardlink("h", "top", { xattrs: { "user.a": "1" } }),
  ),
  {
    name: "hard link whose header has no attributes",
    layers: [[
      file("x", "1", { xattrs: { "user.a": "1" } }),
      hardlink("y", "x"),
    ]],
  },
  {
    name: "hard link without attributes to a file with a capability",
    differs: {
      why: "the link's owner is set too, and chown takes capabilities off",
      paths: ["x", "y"],
    },
    layers: [[
      file("x", "1", {
        xattrs: {
          "security.capability": "\x01\0\0\x02\0\x20" + "\0".repeat(14),
        },
      }),
      hardlink("y", "x"),
    ]],
  },
  {
    name: "hard link to a set-user-ID file",
    layers: [[
      file("x", "1", { mode: 0o4755 }),
      hardlink("y", "x", { mode: 0o4755 }),
    ]],
  },
  {
    name: "hard link to a device",
    layers: [[
      { path: "x", type: "char", devMajor: 1, devMinor: 3 },
      hardlink("y", "x"),
    ]],
  },
  {
    name: "hard link to a hard link to a symlink",
    layers: [[symlink("x", "nowhere"), hardlink("y", "x"), hardlink("z", "y")]],
  },
  {
    name: "hard link with another owner than a symlink",
    layers: [[
      symlink("x", "nowhere"),
      hardlink("y", "x", { uid: 9, mtime: 1_500_000_000 }),
    ]],
  },
];

/** What the names lead to once their own place is empty. */
const MORE_HARD_LINKS: TarCase[] = [
  {
    name: "hard link to itself, of two",
    layers: [[file("x", "1"), hardlink("y", "x"), hardlink("x", "x")]],
    refused: /points to "x", which is itself/,
  },
  {
    name: "hard link again, to its other name",
    layers: [[file("x", "1"), hardlink("y", "x"), hardlink("y", "x")]],
  },
  {
    name: "hard link over the directory of its target",
    layers: [[dir("d"), file("d/f", "1"), hardlink("d", "d/f")]],
    refused: /points to "d\/f", which is not there/,
  },
  {
    name: "hard link by dots behind a symlink",
    layers: [[
      dir("d"),
      dir("d/e"),
      file("d/f", "1"),
      symlink("s", "d/e"),
      hardlink("h", "s/../f"),
    ]],
  },
  {
    name: "hard link by dots above the root",
    layers: [[file("x", "1"), hardlink("h", "../../x")]],
  },
  {
    name: "hard link to the root",
    layers: [[file("x", "1"), hardlink("h", "/")]],
    refused: /is the root directory/,
  },
  {
    name: "hard link to a parent",
    layers: [[dir("d"), hardlink("d/h", "d/..")]],
    refused: /which is a directory/,
  },
  {
    ...above("below a file of a lower layer", file("top/f", "1")),
    refused: /lies below "top", which is no directory/,
  },
];

const SYMLINKED_PARENTS: TarCase[] = [
  {
    name: "below a relative symlink of the same layer",
    layers: [[dir("d"), symlink("s", "d"), file("s/f", "1")]],
  },
  {
    name: "below an absolute symlink of the same layer",
    layers: [[dir("d"), symlink("s", "/d"), file("s/f", "1")]],
  },
  {
    name: "below a symlink to nothing",
    layers: [[symlink("s", "none"), file("s/f", "1")]],
  },
  {
    name: "below a symlink to nothing, two levels",
    layers: [[symlink("s", "none/deeper"), file("s/t/f", "1")]],
  },
  {
    name: "below an escaping symlink",
    layers: [[dir("d"), symlink("d/s", "../../../../d"), file("d/s/f", "1")]],
  },
  {
    name: "below an escaping symlink to nothing",
    layers: [[symlink("s", "../../../etc"), file("s/f", "1")]],
  },
  {
    name: "below a symlink to the root",
    layers: [[symlink("s", "/"), file("s/f", "1")]],
  },
  {
    name: "below a symlink to itself",
    refused: /too many levels of symbolic links/,
    layers: [[symlink("s", "s"), file("s/f", "1")]],
  },
  {
    name: "below symlinks in a circle",
    refused: /too many levels of symbolic links/,
    layers: [[symlink("s", "t"), symlink("t", "s"), file("s/f", "1")]],
  },
  {
    name: "below a symlink, deeper than a path may be",
    refused: /over 2047 deep/,
    layers: [[
      dir("d/".repeat(1023) + "d"),
      symlink("s", "d/".repeat(1024)),
      file("s/" + "d/".repeat(1024) + "f", "1"),
    ]],
  },
  {
    name: "below a symlink to a file",
    refused: /lies below "s", which is no directory/,
    layers: [[file("x", "1"), symlink("s", "x"), file("s/f", "1")]],
  },
  {
    name: "below a file",
    refused: /lies below "x", which is no directory/,
    layers: [[file("x", "1"), file("x/f", "1")]],
  },
  {
    name: "a chain of symlinks",
    layers: [[
      dir("d"),
      symlink("s1", "d"),
      symlink("s2", "s1"),
      symlink("s3", "/s2"),
      file("s3/f", "1"),
    ]],
  },
  {
    name: "a symlink in the middle of a path",
    layers: [[dir("d"), dir("d/e"), symlink("s", "d"), file("s/e/f", "1")]],
  },
  {
    name: "a symlink with .. in the middle",
    layers: [[
      dir("d"),
      dir("e"),
      dir("e/g"),
      symlink("d/s", "../e/g"),
      file("d/s/f", "1"),
    ]],
  },
  {
    ...above("below a symlink of a lower layer", file("link/new", "n")),
    overlayfs: "differs",
  },
  above(
    "a directory below a symlink of a lower layer",
    dir("link/n"),
    file("link/n/f", "n"),
  ),
  above(
    "over a file below a symlink of a lower layer",
    file("link/one", "new"),
  ),
  {
    name: "below an absolute symlink of a lower layer",
    layers: [[dir("d"), symlink("s", "/d")], [file("s/f", "1")]],
  },
  {
    name: "usr-merge: lib is a symlink below, a directory entry above",
    overlayfs: "same",
    layers: [
      [
        dir("usr"),
        dir("usr/lib"),
        file("usr/lib/x", "1"),
        symlink("lib", "usr/lib"),
      ],
      [dir("lib"), file("lib/y", "2")],
    ],
  },
  {
    name: "usr-merge: lib is a symlink below, only files above",
    overlayfs: "differs",
    layers: [
      [
        dir("usr"),
        dir("usr/lib"),
        file("usr/lib/x", "1"),
        symlink("lib", "usr/lib"),
      ],
      [file("lib/y", "2")],
    ],
  },
  {
    name: "a parent without an entry",
    layers: [[file("p/q/f", "1")]],
  },
  {
    name: "a parent whose entry comes later",
    layers: [[file("p/f", "1"), dir("p", { mode: 0o700, uid: 3 })]],
  },
  {
    name: "a parent of the lower layer without an entry keeps its attributes",
    layers: [[dir("p", { mode: 0o711, uid: 3 })], [file("p/f", "1")]],
  },
];

/** See the file comment. */
export const LINK_CASES: readonly TarCase[] = [
  ...HARD_LINKS,
  ...MORE_HARD_LINKS,
  ...SYMLINKED_PARENTS,
];

/** Odd stacks of layers: whiteouts, opaque markers and replacements in every order. */

import {
  dir,
  file,
  hardlink,
  type LayerEntry,
  opaque,
  symlink,
  whiteout,
} from "../testutil/oci_image.ts";
import type { TarCase } from "./corpus.ts";

/** The lower layer of most cases. */
export const BELOW: LayerEntry[] = [
  dir("a"),
  file("a/one", "1"),
  file("a/two", "22"),
  dir("a/sub"),
  file("a/sub/deep", "333"),
  dir("b"),
  file("top", "4444"),
  symlink("link", "a"),
];

/** Two layers: {@linkcode BELOW} and this one. */
export function above(name: string, ...entries: LayerEntry[]): TarCase {
  return { name, layers: [BELOW, entries] };
}

/** containerd sets directories' times when all is unpacked. */
const LATE_TIME = "containerd cannot set the removed directory's time";

const WHITEOUTS: TarCase[] = [
  { ...above("whiteout of a file", whiteout("a/one")), overlayfs: "same" },
  { ...above("whiteout of a directory", whiteout("a")), overlayfs: "same" },
  above("whiteout of a symlink", whiteout("link")),
  above("whiteout of what is not there", whiteout("a/none")),
  above("whiteout below what is not there", whiteout("x/y/none")),
  above("whiteout through a symlink", whiteout("link/one")),
  {
    ...above(
      "whiteout, then the same file",
      whiteout("top"),
      file("top", "new"),
    ),
    overlayfs: "same",
  },
  {
    ...above("file, then its whiteout", file("top", "new"), whiteout("top")),
    overlayfs: "refused",
  },
  {
    ...above("new file, then its whiteout", file("new", "n"), whiteout("new")),
    overlayfs: "refused",
  },
  {
    ...above("directory, then its whiteout", dir("a"), whiteout("a")),
    lenient: { why: LATE_TIME, paths: ["", "b", "link", "top"] },
  },
  {
    ...above(
      "directory with a file, then its whiteout",
      dir("a"),
      file("a/new", "n"),
      whiteout("a"),
    ),
    lenient: { why: LATE_TIME, paths: ["", "b", "link", "top"] },
  },
  {
    ...above(
      "file below, then a whiteout",
      file("a/sub/new", "n"),
      whiteout("a"),
    ),
    overlayfs: "refused",
  },
  {
    ...above(
      "whiteout of a directory, then files below it",
      whiteout("a"),
      file("a/new", "n"),
    ),
    overlayfs: "refused",
  },
  {
    ...above(
      "whiteout of a directory, then it again",
      whiteout("a"),
      dir("a", { mode: 0o700 }),
      file("a/new", "n"),
    ),
    overlayfs: "differs",
  },
  above("whiteout of a directory, then a file", whiteout("a"), file("a", "f")),
  above(
    "whiteout of a directory, then a symlink",
    whiteout("a"),
    symlink("a", "b"),
  ),
  above("a file gives way to a directory", whiteout("top"), dir("top")),
  above("whiteout twice", whiteout("top"), whiteout("top")),
  above(
    "hard link, then its target's whiteout",
    hardlink("h", "top"),
    whiteout("top"),
  ),
  {
    ...above(
      "whiteout, then a hard link to it",
      whiteout("top"),
      hardlink("h", "top"),
    ),
    refused: /points to "top", which is not there/,
  },
  {
    ...above(
      "hard link, then its own whiteout",
      hardlink("h", "top"),
      whiteout("h"),
    ),
    overlayfs: "refused",
  },
  {
    name: "whiteout, and in the next layer the file again",
    layers: [BELOW, [whiteout("top")], [file("top", "new")]],
  },
  {
    name: "whiteout of a directory, in the next layer a file below it",
    layers: [BELOW, [whiteout("a")], [file("a/new", "n")]],
  },
  {
    name: "whiteout of one of two hard links",
    layers: [[file("x", "1"), hardlink("y", "x")], [whiteout("x")]],
  },
  {
    name: "whiteout in the bottom layer",
    layers: [[file("x", "1"), whiteout("y"), file("z", "2")]],
  },
  above("whiteout with content and a mode", {
    ...whiteout("top"),
    content: "not empty",
    mode: 0o755,
  }),
  above("whiteout that is a directory", {
    path: "a/.wh.one",
    type: "directory",
  }),
  above("whiteout that is a symlink", symlink("a/.wh.one", "x")),
  above("whiteout that is a hard link", hardlink("a/.wh.one", "top")),
  {
    ...above("whiteout without a name", file("a/.wh.")),
    refused: /does not name an entry of its directory/,
  },
  {
    ...above("whiteout of the directory itself", file("a/.wh..")),
    refused: /does not name an entry of its directory/,
  },
  {
    ...above("whiteout of the parent", file("a/.wh...")),
    refused: /does not name an entry of its directory/,
  },
  above("whiteout of a whiteout", file("a/.wh..wh.one")),
  above(
    "AUFS's own names in the root",
    file(".wh..wh.aufs"),
    dir(".wh..wh.plnk"),
  ),
  above(
    "a file in AUFS's directory of links",
    dir(".wh..wh.plnk"),
    file(".wh..wh.plnk/99.1", "linked"),
  ),
  above("a directory named like a whiteout, with a file", file("a/.wh.one/f")),
];

const OPAQUE: TarCase[] = [
  { ...above("opaque directory", dir("a"), opaque("a")), overlayfs: "same" },
  above("opaque without the directory's entry", opaque("a")),
  above("opaque, then files", dir("a"), opaque("a"), file("a/new", "n")),
  {
    ...above("files, then opaque", dir("a"), file("a/new", "n"), opaque("a")),
    overlayfs: "same",
  },
  above("file of a lower name, then opaque", file("a/one", "new"), opaque("a")),
  above(
    "opaque before the directory's entry",
    opaque("a"),
    dir("a"),
    file("a/new", "n"),
  ),
  above(
    "opaque, then a file two levels down",
    opaque("a"),
    file("a/sub/new", "n"),
  ),
  {
    ...above(
      "file two levels down, then opaque",
      file("a/sub/new", "n"),
      opaque("a"),
    ),
    overlayfs: "differs",
  },
  above(
    "directory and file two levels down, then opaque",
    dir("a/sub"),
    file("a/sub/new", "n"),
    opaque("a"),
  ),
  above(
    "directory of a lower name, then opaque above it",
    dir("a/sub"),
    opaque("a"),
  ),
  above("opaque twice", opaque("a"), file("a/new", "n"), opaque("a")),
  { ...above("opaque root", opaque(""), file("x", "1")), overlayfs: "differs" },
  above("files, then opaque root", file("x", "1"), opaque("")),
  above("opaque of a new directory", dir("n"), file("n/f", "1"), opaque("n")),
  above("opaque of what is not there", opaque("none")),
  above("opaque two levels below what is not there", opaque("x/y")),
  {
    ...above("opaque through a symlink", opaque("link")),
    overlayfs: "differs",
  },
  above("opaque through a symlink, one level down", opaque("link/sub")),
  above(
    "opaque below, then a file through a symlink",
    opaque("a"),
    file("link/new", "n"),
  ),
  {
    ...above("opaque below a file", opaque("top")),
    refused: /lies below "top", which is no directory/,
  },
  above("opaque and whiteout", opaque("a"), whiteout("a/one")),
  above("whiteout, then opaque", whiteout("a"), dir("a"), opaque("a")),
  above("opaque, then the directory's whiteout", opaque("a"), whiteout("a")),
  above(
    "hard link into an opaque directory's past",
    hardlink("h", "a/one"),
    opaque("a"),
  ),
  {
    ...above(
      "opaque, then a hard link to its past",
      opaque("a"),
      hardlink("h", "a/one"),
    ),
    refused: /points to "a\/one", which is not there/,
  },
  above(
    "hard link to a file elsewhere, then opaque",
    hardlink("a/h", "top"),
    opaque("a"),
  ),
  above(
    "file in an unnamed directory, then opaque",
    file("n/m/f", "1"),
    opaque("n"),
  ),
  above(
    "file in a directory that is named later, then opaque",
    file("a/sub/new", "n"),
    dir("a/sub"),
    opaque("a"),
  ),
  above(
    "directory and its whiteout, an unnamed one in its place, then opaque",
    file("a/x", "1"),
    whiteout("a/x"),
    file("a/n/f", "2"),
    opaque("a"),
  ),
  above(
    "files by way of a symlink, then opaque",
    file("link/new", "n"),
    opaque("a"),
  ),
  above(
    "opaque, then a link within",
    opaque("a"),
    file("a/n1", "n"),
    hardlink("a/n2", "a/n1"),
  ),
  {
    name: "opaque over two layers",
    layers: [BELOW, [file("a/mid", "m")], [opaque("a"), file("a/new", "n")]],
  },
  {
    name: "opaque in the middle layer",
    layers: [BELOW, [opaque("a"), file("a/mid", "m")], [file("a/new", "n")]],
  },
];

const REPLACEMENTS: TarCase[] = [
  above("file by directory", dir("top"), file("top/f", "1")),
  above("directory by file", file("a", "f")),
  above("directory by symlink", symlink("a", "b")),
  above(
    "directory by symlink, then a file below it",
    symlink("a", "b"),
    file("a/f", "1"),
  ),
  above("symlink by directory", dir("link"), file("link/f", "1")),
  above("symlink by file", file("link", "f")),
  above("symlink by symlink", symlink("link", "b")),
  above("file by device", {
    path: "top",
    type: "char",
    devMajor: 1,
    devMinor: 3,
  }),
  above("directory by fifo", { path: "a", type: "fifo" }),
  above(
    "directory again with another mode",
    dir("a", { mode: 0o1770, uid: 7 }),
  ),
  {
    name: "directory again without its attributes",
    differs: {
      why: "containerd sets what the entry has, and removes nothing",
      paths: ["d"],
    },
    overlayfs: "differs",
    layers: [[dir("d", { xattrs: { "user.a": "1" } })], [dir("d")]],
  },
  {
    name: "twice in one layer: the last wins",
    layers: [[file("x", "1"), file("x", "22"), file("x", "333")]],
  },
  {
    name: "twice in one layer, file to directory",
    layers: [[file("x", "1"), dir("x"), file("x/f", "2")]],
  },
  {
    name: "twice in one layer, directory to file",
    layers: [[dir("x"), file("x/f", "2"), file("x", "1")]],
  },
  {
    name: "twice in one layer, symlink to directory",
    layers: [[dir("d"), symlink("x", "d"), dir("x"), file("x/f", "2")]],
  },
  {
    name: "twice in one layer, directory to symlink",
    layers: [[dir("d"), dir("x"), file("x/f", "2"), symlink("x", "d")]],
  },
  {
    name: "twice in one layer, directory with other modes",
    layers: [[
      dir("d", { mode: 0o700 }),
      file("d/f"),
      dir("d", { mode: 0o711 }),
    ]],
  },
  {
    name: "a hard link's first name again as another file",
    layers: [[file("x", "1"), hardlink("y", "x"), file("x", "22")]],
  },
  {
    name: "a hard link's second name again as another file",
    layers: [[file("x", "1"), hardlink("y", "x"), file("y", "22")]],
  },
];

/** See the file comment. */
export const LAYER_CASES: readonly TarCase[] = [
  ...WHITEOUTS,
  ...OPAQUE,
  ...REPLACEMENTS,
];

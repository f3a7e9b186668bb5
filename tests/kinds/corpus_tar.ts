/** Odd archives: names, numbers, dialects, sparse files, ends. */

import { concatBytes } from "../../lib/io/mod.ts";
import {
  archive,
  base256,
  GNU,
  header,
  member,
  padded,
  pax,
  V7,
} from "../tar/tar_bytes.ts";
import {
  dir,
  file,
  type LayerEntry,
  layerTar,
  symlink,
} from "../testutil/oci_image.ts";
import type { TarCase } from "./corpus.ts";

function one(name: string, ...entries: LayerEntry[]): TarCase {
  return { name, layers: [entries] };
}

function raw(name: string, ...members: Uint8Array[]): TarCase {
  return { name, layers: [archive(...members)] };
}

/** A member as such, in an archive with an ordinary file. */
const ORDINARY = member({ name: "ordinary", mtime: 1_700_000_000 }, "yes");

const NAMES: TarCase[] = [
  raw(
    "a leading ./",
    member({ name: "./f" }, "1"),
    member({ name: "./d/g" }, "2"),
  ),
  raw(
    "a leading slash",
    member({ name: "/f" }, "1"),
    member({ name: "//g" }, "2"),
  ),
  raw(
    "doubled and trailing slashes",
    member({ name: "d//f" }, "1"),
    member({ name: "e/", type: "5" }),
  ),
  raw(
    "dots within",
    member({ name: "d/./f" }, "1"),
    member({ name: "d/../g" }, "2"),
  ),
  raw("two dots above the root", ORDINARY, member({ name: "../f" }, "1")),
  raw(
    "dots above the root, further in",
    ORDINARY,
    member({ name: "d/../../f" }, "1"),
  ),
  raw(
    "an absolute name with two dots",
    ORDINARY,
    member({ name: "/../f" }, "1"),
  ),
  raw(
    "a root entry",
    member({ name: "./", type: "5", mode: 0o755, mtime: 5 }),
    ORDINARY,
  ),
  {
    ...raw(
      "a root entry with a mode",
      member({ name: "./", type: "5", mode: 0o700 }),
      ORDINARY,
    ),
    differs: { why: "containerd leaves the root as it is", paths: [""] },
  },
  raw(
    "a root entry that is a slash",
    member({ name: "/", type: "5", mode: 0o755 }),
    ORDINARY,
  ),
  raw("a file that is the root", ORDINARY, member({ name: "./" }, "")),
  raw("a file with a trailing slash", member({ name: "f/" }, "1")),
  raw("an empty name", ORDINARY, member({ name: "" }, "1")),
  one("a name of 100 characters", file("n".repeat(100), "1")),
  one("a name of 255 bytes", file("n".repeat(255), "1")),
  {
    ...one("a name of 256 bytes", file("x"), file("n".repeat(256), "1")),
    refused: /256 bytes long, over 255/,
  },
  {
    ...one(
      "a path over 4096 bytes",
      file("x"),
      file(Array(600).fill("sevench").join("/"), "1"),
    ),
    refused: /over 4096 bytes/,
  },
  one("a path of 2000 bytes", file(Array(250).fill("sevenc7").join("/"), "1")),
  one(
    "bytes that are no UTF-8",
    file("n\xff\xfe\x80", "1"),
    file("\xc3\xa4", "2"),
  ),
  one(
    "control characters",
    file("a\nb\tc\x7f", "1"),
    file(" ", "2"),
    file("\\", "3"),
  ),
  one("a symlink of 4095 bytes", symlink("s", "t".repeat(4095))),
  one(
    "a symlink of 59, 60 and 61 bytes",
    ...[59, 60, 61].map((n) => symlink(`s${n}`, "t".repeat(n))),
  ),
  {
    ...raw("a symlink to nothing", ORDINARY, member({ name: "s", type: "2" })),
    refused: /target of symlink "s" is empty/,
  },
  raw("a prefix (ustar)", member({ name: "f", prefix: "some/where" }, "1")),
  raw(
    "a prefix field of GNU is none",
    member({ name: "f", magic: GNU, prefix: "" }, "1"),
  ),
];

const NUMBERS: TarCase[] = [
  raw(
    "base-256 owners",
    member({
      name: "f",
      magic: GNU,
      uid: base256(3_000_000n, 8),
      gid: base256(4_000_000_000n, 8),
    }, "1"),
  ),
  raw(
    "base-256 time",
    member({ name: "f", magic: GNU, mtime: base256(9_000_000_000n, 12) }, "1"),
  ),
  raw(
    "base-256 negative time",
    member({ name: "f", magic: GNU, mtime: base256(-1_000_000n, 12) }, "1"),
  ),
  raw(
    "base-256 size",
    member({ name: "f", magic: GNU, size: base256(5n, 12) }, "12345"),
    ORDINARY,
  ),
  raw(
    "base-256 negative owner",
    member({ name: "f", magic: GNU, uid: base256(-1n, 8) }, "1"),
  ),
  raw(
    "a negative PAX time",
    pax([["mtime", "-1.5"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "a PAX time just before 1970",
    pax([["mtime", "-0.25"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "a negative time of a directory and a symlink",
    pax([["mtime", "-86400"]]),
    member({ name: "d", type: "5" }),
    pax([["mtime", "-86400"]]),
    member({ name: "s", type: "2", linkName: "d" }),
  ),
  raw("time zero", member({ name: "f", mtime: 0 }, "1")),
  raw(
    "the last second of 2038's numbers",
    member({ name: "f", mtime: 0x7fffffff }, "1"),
    member({ name: "g", mtime: 0x80000000 }, "1"),
  ),
  raw(
    "the year 2260",
    pax([["mtime", "9151488000.999999999"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "the year 2262",
    pax([["mtime", "9223372036"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "the year 2300",
    pax([["mtime", "10413792000"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "the year 2446",
    pax([["mtime", "15032385535"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "the year 3000",
    pax([["mtime", "32503680000"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "nanoseconds",
    pax([["mtime", "1700000000.123456789"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "more digits than nanoseconds",
    pax([["mtime", "1700000000.1234567899"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "an access time",
    pax([["atime", "1800000000"], ["mtime", "1700000000"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "PAX owners",
    pax([["uid", "3000000"], ["gid", "4000000"]]),
    member({ name: "f", uid: 1, gid: 2 }, "1"),
  ),
  raw(
    "PAX size",
    pax([["size", "3"]]),
    concatBytes([
      header({ name: "f", size: 0 }),
      padded(new TextEncoder().encode("abc")),
    ]),
    ORDINARY,
  ),
  raw(
    "every mode bit",
    ...[0o7777, 0o4755, 0o2755, 0o1777, 0o000, 0o100644].map((mode, i) =>
      member({ name: `f${i}`, mode }, "1")
    ),
  ),
  raw(
    "mode bits of directories",
    ...[0o7777, 0o2755, 0o1777, 0o000].map((mode, i) =>
      member({ name: `d${i}`, mode, type: "5" })
    ),
  ),
  raw(
    "a symlink with a mode",
    member({ name: "s", mode: 0o644, type: "2", linkName: "x" }),
  ),
  raw(
    "device numbers",
    member({ name: "c", type: "3", devMajor: 4095, devMinor: 1_048_575 }),
    member({ name: "b", type: "4", devMajor: 8, devMinor: 300 }),
  ),
  raw(
    "device 0:0",
    member({ name: "c", type: "3", devMajor: 0, devMinor: 0 }),
    ORDINARY,
  ),
  raw(
    "a directory with a size",
    concatBytes([header({ name: "d", type: "5", size: 512 })]),
    ORDINARY,
  ),
];

/** containerd makes the directory of every entry's name, also of this one's. */
const GLOBAL_PARENT = "containerd makes the parent of the header's own name";

const DIALECTS: TarCase[] = [
  raw(
    "V7",
    member({ name: "f", magic: V7, type: "\0" }, "1"),
    member({ name: "d/", magic: V7, type: "\0" }),
    member({ name: "l", magic: V7, type: "1", linkName: "f" }),
  ),
  raw(
    "old GNU long names",
    member(
      { name: "././@LongLink", magic: GNU, type: "L" },
      "d/" + "n".repeat(150) + "\0",
    ),
    member({ name: "cut", magic: GNU }, "1"),
    member(
      { name: "././@LongLink", magic: GNU, type: "K" },
      "t".repeat(300) + "\0",
    ),
    member({ name: "s", magic: GNU, type: "2", linkName: "cut" }),
  ),
  raw("star", member({ name: "f", prefix: "p", raw: { 508: "tar\0" } }, "1")),
  {
    ...raw("contiguous file", member({ name: "f", type: "7" }, "1")),
    lenient: { why: "containerd knows no entries of type 7", paths: ["", "f"] },
  },
  {
    ...raw(
      "a PAX global header",
      pax([["mtime", "1"], ["comment", "git"]], "g"),
      member({ name: "f", mtime: 1_600_000_000 }, "1"),
    ),
    differs: { why: GLOBAL_PARENT, paths: ["PaxHeaders"] },
  },
  raw(
    "a PAX global header with a path",
    pax([["path", "elsewhere"]], "g"),
    ORDINARY,
  ),
  {
    ...raw(
      "a PAX global header between a PAX header and its entry",
      pax([["path", "renamed"]]),
      pax([["comment", "x"]], "g"),
      member({ name: "f" }, "1"),
    ),
    differs: { why: GLOBAL_PARENT, paths: ["PaxHeaders"] },
  },
  raw(
    "two PAX headers in a row",
    pax([["path", "first"]]),
    pax([["mtime", "1600000000"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "GNU long name and PAX path",
    member({ name: "././@LongLink", magic: GNU, type: "L" }, "gnu\0"),
    pax([["path", "pax"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "an unknown PAX record",
    pax([["VENDOR.thing", "1"], ["path", "p"]]),
    member({ name: "f" }, "1"),
  ),
  raw(
    "extended attributes",
    pax([["SCHILY.xattr.user.a", "1"], [
      "SCHILY.xattr.security.capability",
      "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ]]),
    member({ name: "f" }, "1"),
  ),
  {
    ...raw("an unknown type", ORDINARY, member({ name: "f", type: "V" }, "1")),
    refused: /type "V" is not supported/,
  },
  raw(
    "the checksum of old writers",
    member({
      name: "f\xe4",
      checksum: (b) =>
        b.reduce(
          (sum, c, i) => sum + (i >= 148 && i < 156 ? 32 : c << 24 >> 24),
          0,
        ).toString(8).padStart(6, "0") + "\0 ",
    }, "1"),
  ),
];

/** The header of an old GNU sparse file, up to four segments. */
function oldGnuSparse(
  name: string,
  segments: [number, number][],
  size: number,
  stored: number,
): Uint8Array {
  const octal = (n: number) => n.toString(8).padStart(11, "0") + "\0";
  const raw: Record<number, string> = { 483: octal(size) };
  for (const [i, [offset, length]] of segments.entries()) {
    raw[386 + 24 * i] = octal(offset);
    raw[398 + 24 * i] = octal(length);
  }
  return header({ name, magic: GNU, type: "S", size: stored, raw });
}

const A = new Uint8Array(512).fill(65);
const B = new Uint8Array(1024).fill(66);
const SPARSE: TarCase[] = [
  raw(
    "GNU sparse 0.0",
    pax([
      ["GNU.sparse.size", "20000"],
      ["GNU.sparse.numblocks", "2"],
      ["GNU.sparse.offset", "512"],
      ["GNU.sparse.numbytes", "512"],
      ["GNU.sparse.offset", "8192"],
      ["GNU.sparse.numbytes", "1024"],
    ]),
    member({ name: "f" }, concatBytes([A, B])),
    ORDINARY,
  ),
  raw(
    "GNU sparse 0.1",
    pax([["GNU.sparse.size", "20000"], ["GNU.sparse.numblocks", "2"], [
      "GNU.sparse.name",
      "real",
    ], ["GNU.sparse.map", "512,512,8192,1024"]]),
    member({ name: "GNUSparseFile.1/f" }, concatBytes([A, B])),
    ORDINARY,
  ),
  one("GNU sparse 1.0", {
    path: "real",
    sparse: {
      size: 20_000,
      segments: [{ offset: 512, bytes: A }, { offset: 8192, bytes: B }],
    },
  }),
  one("GNU sparse 1.0 off sectors", {
    path: "real",
    sparse: {
      size: 20_001,
      segments: [{ offset: 3, bytes: A.subarray(0, 100) }, {
        offset: 700,
        bytes: B.subarray(0, 901),
      }, { offset: 20_000, bytes: A.subarray(0, 1) }],
    },
  }),
  one("GNU sparse 1.0, all hole", {
    path: "real",
    sparse: { size: 100_000, segments: [] },
  }),
  {
    ...raw(
      "old GNU sparse",
      oldGnuSparse("f", [[512, 512], [8192, 1024]], 20_000, 1536),
      A,
      B,
      ORDINARY,
    ),
    lenient: {
      why: "containerd knows no entries of type S",
      paths: ["", "f", "ordinary"],
    },
  },
  {
    ...raw(
      "old GNU sparse, all hole",
      oldGnuSparse("f", [[20_000, 0]], 20_000, 0),
      ORDINARY,
    ),
    lenient: {
      why: "containerd knows no entries of type S",
      paths: ["", "f", "ordinary"],
    },
  },
  {
    ...raw(
      "sparse beyond its size",
      ORDINARY,
      pax([["GNU.sparse.size", "1000"], ["GNU.sparse.numblocks", "1"], [
        "GNU.sparse.map",
        "512,1024",
      ]]),
      member({ name: "f" }, B),
    ),
    refused: /sparse/,
  },
];

/** As umoci, Docker and overlaybd have them. */
const TRUSTED = "containerd sets no attributes of trusted.*";

const whole = layerTar([file("f", "1"), file("g", "22")]);
const ends = (name: string, tar: Uint8Array): TarCase => ({
  name,
  layers: [new Uint8Array(tar)],
});
const ENDS: TarCase[] = [
  { name: "an empty layer", layers: [[file("x")], []] },
  ends("an empty file as a layer", new Uint8Array()),
  {
    name: "one zero block as a layer",
    layers: [[file("x")], new Uint8Array(512)],
  },
  ends("no end blocks", whole.subarray(0, whole.length - 1024)),
  ends("one end block", whole.subarray(0, whole.length - 512)),
  ends(
    "cut within the last padding",
    whole.subarray(0, whole.length - 1024 - 100),
  ),
  {
    ...ends("cut within a body", whole.subarray(0, whole.length - 1024 - 511)),
    refused: /end/,
  },
  {
    ...ends("cut within a header", whole.subarray(0, 1024 + 200)),
    refused: /end/,
  },
  ends("zeros behind the end", concatBytes([whole, new Uint8Array(9 * 1024)])),
  ends(
    "garbage behind the end",
    concatBytes([whole, new TextEncoder().encode("garbage".repeat(300))]),
  ),
  ends(
    "an archive behind the end",
    concatBytes([whole, layerTar([file("h", "3")])]),
  ),
  {
    ...ends(
      "a zero block between entries",
      concatBytes([
        layerTar([file("f", "1")]).subarray(0, 1024),
        new Uint8Array(512),
        layerTar([file("g", "2")]),
      ]),
    ),
    refused: /./,
  },
  {
    ...ends(
      "a wrong checksum",
      (() => {
        const tar = whole.slice();
        tar[1024 + 150]! ^= 1;
        return tar;
      })(),
    ),
    refused: /checksum/,
  },
  {
    ...ends(
      "garbage for a header",
      concatBytes([
        whole.subarray(0, 1024),
        new Uint8Array(512).fill(7),
        whole.subarray(1024),
      ]),
    ),
    refused: /checksum/,
  },
  {
    name: "attributes of every kind of entry",
    differs: { why: TRUSTED, paths: ["d"] },
    layers: [[
      dir("d", {
        uid: 1,
        gid: 2,
        mode: 0o2750,
        xattrs: { "user.d": "1", "trusted.t": "2" },
      }),
      file("d/f", "1", {
        uid: 70_000,
        xattrs: { "user.f": "", "security.s": "x" },
      }),
      symlink("d/s", "f", { uid: 5, gid: 6, mtime: 1_234_567_890 }),
      { path: "d/p", type: "fifo", mode: 0o600 },
    ]],
  },
  {
    name: "a symlink with user attributes",
    differs: { why: TRUSTED, paths: ["s"] },
    layers: [[
      symlink("s", "f", { xattrs: { "user.a": "1", "trusted.b": "2" } }),
    ]],
  },
  {
    name: "attributes that mean something to overlayfs",
    layers: [[
      dir("d", { xattrs: { "trusted.overlay.opaque": "y" } }),
      file("d/f", "1", { xattrs: { "trusted.overlay.metacopy": "" } }),
    ]],
  },
  {
    name: "an attribute of an unknown namespace",
    layers: [[file("f", "1", { xattrs: { "weird.a": "1", "user.b": "2" } })]],
  },
];

/** See the file comment. */
export const TAR_CASES: readonly TarCase[] = [
  ...NAMES,
  ...NUMBERS,
  ...DIALECTS,
  ...SPARSE,
  ...ENDS,
];

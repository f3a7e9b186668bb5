/** One header block: dialects, numbers, checksums, types. */
import assert from "node:assert/strict";
import { FormatError, UnsupportedError } from "../../lib/io/mod.ts";
import {
  archive,
  base256,
  GNU,
  header,
  member,
  pax,
  signedSum,
  unsignedSum,
  V7,
} from "./tar_bytes.ts";
import { walk, walkOne } from "./walk.ts";

Deno.test("a plain file entry has every field", () => {
  const entry = walkOne(archive(member({
    name: "etc/passwd",
    mode: 0o104755,
    uid: 1000,
    gid: 2000,
    mtime: 1_700_000_000,
  }, "hello")));
  assert.deepEqual(entry, {
    path: "etc/passwd",
    type: "file",
    mode: 0o4755,
    uid: 1000,
    gid: 2000,
    mtime: { seconds: 1_700_000_000, nanoseconds: 0 },
    xattrs: [],
    linkTarget: "",
    devMajor: 0,
    devMinor: 0,
    size: 5,
    runs: [{ fileSector: 0, tarSector: 1, sectors: 1 }],
    patches: [],
  });
});

Deno.test("types", () => {
  const cases: [string, string][] = [
    ["0", "file"],
    ["\0", "file"],
    ["7", "file"],
    ["1", "hardlink"],
    ["2", "symlink"],
    ["3", "char"],
    ["4", "block"],
    ["5", "directory"],
    ["6", "fifo"],
  ];
  for (const [type, want] of cases) {
    const entry = walkOne(archive(header({ type, linkName: "x" })));
    assert.equal(entry.type, want);
  }
});

Deno.test("types without a body have none, whatever the size says", () => {
  for (const type of "123456") {
    const entries = walk(archive(
      header({ type, size: 700, linkName: "x" }),
      member({ name: "next" }, "body"),
    ));
    assert.deepEqual(entries.map((e) => [e.path, e.size]), [
      ["file", 0],
      ["next", 4],
    ]);
  }
});

Deno.test("unknown types are refused by name", () => {
  for (const type of ["V", "M", "D", "N", "X", "A", "8", "\xff"]) {
    assert.throws(
      () => walk(archive(header({ name: "odd", type }))),
      (e: unknown) =>
        e instanceof UnsupportedError && e.message.includes('"odd"'),
    );
  }
});

Deno.test("a trailing slash makes a directory of V7's type only", () => {
  const at = (type: string, name: string) =>
    walkOne(archive(header({ type, name, magic: V7 })));
  assert.equal(at("\0", "dir/").type, "directory");
  assert.equal(at("\0", "dir/").path, "dir");
  assert.equal(at("\0", "dir").type, "file");
  assert.equal(at("0", "dir/").type, "file");
});

Deno.test("V7 directories have no body", () => {
  const entries = walk(archive(
    header({ type: "\0", name: "dir/", magic: V7, size: 512 }),
    member({ name: "next" }),
  ));
  assert.deepEqual(entries.map((e) => e.path), ["dir", "next"]);
});

Deno.test("prefix: ustar 155 bytes, star 131, GNU and V7 none", () => {
  const prefix = "p".repeat(100) + "/" + "q".repeat(54);
  const at = (fields: Parameters<typeof header>[0]) =>
    walkOne(archive(header({ name: "n", prefix, ...fields }))).path;
  assert.equal(at({}), `${prefix}/n`);
  assert.equal(at({ magic: V7 }), "n");
  const star = { 476: "14371046666\x0014371046666\0", 508: "tar\0" };
  assert.equal(at({ raw: star }), `${prefix.slice(0, 131)}/n`);
  // Times of a GNU header stand where the prefix would be.
  const times = { 345: "14371046666\x0014371046666\0" };
  assert.equal(at({ magic: GNU, prefix: "", raw: times }), "n");
});

Deno.test("GNU headers of Go before 1.8 had a prefix", () => {
  const entry = walkOne(archive(
    header({ name: "n", magic: GNU, prefix: "some/directory" }),
  ));
  assert.equal(entry.path, "some/directory/n");
});

Deno.test("numbers: padding, base-256, negative", () => {
  const text = (s: string) => new TextEncoder().encode(s);
  const uid = (value: Uint8Array) =>
    walkOne(archive(header({ uid: value }))).uid;
  assert.equal(uid(text("   1750 ")), 0o1750);
  assert.equal(uid(text("\0\0 1750\0")), 0o1750);
  assert.equal(uid(text("17\x0050\0")), 0o17);
  assert.equal(uid(new Uint8Array(8)), 0);
  assert.equal(uid(base256(0x12345678n, 8)), 0x12345678);
  assert.equal(uid(base256(0xfffffffen, 8)), 0xfffffffe);
  assert.equal(uid(base256(-2n, 8)), 0xfffffffe);
  assert.equal(uid(base256(-1n, 8)), 0, "chown(-1) leaves root");
  assert.equal(uid(base256(0xffffffffn, 8)), 0);

  const mtime = (value: Uint8Array) =>
    walkOne(archive(header({ mtime: value }))).mtime.seconds;
  assert.equal(mtime(base256(-1n, 12)), -1);
  assert.equal(mtime(base256(-123456789012n, 12)), -123456789012);
  assert.equal(mtime(base256(2n ** 40n, 12)), 2 ** 40);
  assert.equal(mtime(base256(2n ** 62n, 12)), Number.MAX_SAFE_INTEGER);
});

Deno.test("a file of more than 8 GiB has a base-256 size", () => {
  // The body is not there: the error says where it is missed.
  const size = 2 ** 33 + 5;
  assert.throws(
    () => walk(header({ size: base256(BigInt(size), 12) })),
    /too short/,
  );
});

Deno.test("fields that are not numbers", () => {
  const text = (s: string) => new TextEncoder().encode(s);
  for (const field of ["mode", "uid", "gid", "size", "mtime"]) {
    assert.throws(
      () => walk(archive(header({ [field]: text("12x4") }))),
      (e: unknown) => e instanceof FormatError && e.field === field,
    );
  }
  for (const value of [-1n, 2n ** 44n, -(2n ** 60n)]) {
    assert.throws(() => walk(archive(header({ size: base256(value, 12) }))));
  }
  for (const value of [2n ** 32n, -(2n ** 31n) - 1n]) {
    assert.throws(
      () => walk(archive(header({ uid: base256(value, 8) }))),
      FormatError,
    );
  }
});

Deno.test("base-256 beyond 64 bits is refused", () => {
  const huge = new Uint8Array(12).fill(0x7f);
  huge[0] = 0x80;
  assert.throws(() => walk(archive(header({ mtime: huge }))), FormatError);
});

Deno.test("checksums: unsigned, signed, wrong", () => {
  const octal = (sum: number) => sum.toString(8).padStart(6, "0") + "\0 ";
  const name = "caf\xe9";
  const at = (checksum: (b: Uint8Array) => string) =>
    walk(archive(header({ name, checksum })));
  assert.equal(at((b) => octal(unsignedSum(b)))[0]!.path, name);
  assert.equal(at((b) => octal(signedSum(b)))[0]!.path, name);
  assert.throws(
    () => at((b) => octal(unsignedSum(b) + 1)),
    (e: unknown) =>
      e instanceof FormatError && e.field === "checksum" && e.offset === 0,
  );
  assert.throws(() => at(() => "zzzzzzz\0"), FormatError);
});

Deno.test("a bad checksum names its offset", () => {
  const tar = archive(member({ name: "a" }, "x"), member({ name: "b" }));
  tar[1024]! ^= 1;
  assert.throws(
    () => walk(tar),
    (e: unknown) => e instanceof FormatError && e.offset === 1024,
  );
});

Deno.test("device numbers", () => {
  const at = (type: string, devMajor: number, devMinor: number) => {
    const e = walkOne(archive(header({ type, devMajor, devMinor })));
    return [e.devMajor, e.devMinor];
  };
  assert.deepEqual(at("3", 5, 1), [5, 1]);
  assert.deepEqual(at("4", 4095, 1048575), [4095, 1048575]);
  assert.deepEqual(at("6", 5, 1), [0, 0]);
  assert.throws(() => at("3", 4096, 0), FormatError);
  assert.throws(() => at("4", 0, 1048576), FormatError);
  const fromPax = walkOne(archive(
    pax([["SCHILY.devmajor", "7"], ["SCHILY.devminor", "300000"]]),
    header({ type: "4" }),
  ));
  assert.deepEqual([fromPax.devMajor, fromPax.devMinor], [7, 300000]);
  const v7 = walkOne(archive(header({ type: "3", magic: V7, devMajor: 5 })));
  assert.deepEqual([v7.devMajor, v7.devMinor], [0, 0]);
});

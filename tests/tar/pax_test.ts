/** PAX records and GNU long names. */
import assert from "node:assert/strict";
import {
  bytesFromLatin1,
  FormatError,
  LimitError,
  toHex,
} from "../../lib/io/mod.ts";
import { archive, header, member, pax, record } from "./tar_bytes.ts";
import { walk, walkOne } from "./walk.ts";

function withPax(...records: [string, string][]) {
  return walkOne(archive(pax(records), member({ name: "file" }, "body")));
}

Deno.test("PAX fields replace the header's, for one entry", () => {
  const entries = walk(archive(
    pax([
      ["path", "long/name"],
      ["uid", "4000000000"],
      ["gid", "-2"],
      ["mtime", "1234.5"],
      ["comment", "ignored"],
      ["size", "3"],
    ]),
    member({ name: "file", size: 0 }, "abc"),
    member({ name: "next", uid: 7 }),
  ));
  assert.equal(entries[0]!.path, "long/name");
  assert.equal(entries[0]!.uid, 4_000_000_000);
  assert.equal(entries[0]!.gid, 0xfffffffe);
  assert.equal(entries[0]!.size, 3);
  assert.deepEqual(entries[0]!.mtime, { seconds: 1234, nanoseconds: 5e8 });
  assert.equal(entries[1]!.path, "next");
  assert.equal(entries[1]!.uid, 7);
});

Deno.test("PAX times", () => {
  const cases: [string, number, number][] = [
    ["0", 0, 0],
    ["12.", 12, 0],
    ["1700000000.123456789", 1_700_000_000, 123456789],
    ["1.1234567899999", 1, 123456789],
    ["-1", -1, 0],
    ["-1.5", -2, 500_000_000],
    ["-0.25", -1, 750_000_000],
    ["-1.0000000009", -1, 0],
    ["+5.000000001", 5, 1],
    ["99999999999999999999", Number.MAX_SAFE_INTEGER, 0],
  ];
  for (const [text, seconds, nanoseconds] of cases) {
    assert.deepEqual(withPax(["mtime", text]).mtime, { seconds, nanoseconds });
  }
  for (const text of ["x", "1.x", "1e5", ".5", "1.2.3", "-", " 1"]) {
    assert.throws(() => withPax(["mtime", text]), FormatError, text);
  }
});

Deno.test("an empty value leaves the header's field", () => {
  const entry = withPax(
    ["path", "other"],
    ["path", ""],
    ["uid", ""],
    ["size", ""],
    ["mtime", ""],
  );
  assert.equal(entry.path, "file");
  assert.equal(entry.uid, 0);
  assert.equal(entry.size, 4);
});

Deno.test("the last of two equal keywords counts", () => {
  assert.equal(withPax(["uid", "1"], ["uid", "2"]).uid, 2);
});

Deno.test("xattrs are bytes, sorted by name, empty ones kept", () => {
  const capability = "\x01\0\0\x02\0\x20\0\0\0\0\0\0\n=\xff\0\0\0\0\0";
  const entry = withPax(
    ["SCHILY.xattr.user.z", "last"],
    ["SCHILY.xattr.security.capability", capability],
    ["SCHILY.xattr.user.empty", ""],
    ["SCHILY.xattr.user.caf\xe9", "x"],
    ["SCHILY.acl.access", "user::rw-"],
    ["RHT.security.selinux", "ignored"],
  );
  assert.deepEqual(
    entry.xattrs.map(([name, value]) => [name, toHex(value)]),
    [
      ["security.capability", toHex(bytesFromLatin1(capability))],
      ["user.caf\xe9", "78"],
      ["user.empty", ""],
      ["user.z", "6c617374"],
    ],
  );
});

Deno.test("an xattr's value does not keep the record area alive", () => {
  const [[, value]] = withPax(["SCHILY.xattr.user.a", "b"]).xattrs as [
    [string, Uint8Array],
  ];
  assert.equal(value.buffer.byteLength, 1);
});

Deno.test("LIBARCHIVE xattrs: URL-encoded name, base64 value, SCHILY wins", () => {
  const entry = withPax(
    ["LIBARCHIVE.xattr.user.a%3Db%20c", "AAEC/w"],
    ["LIBARCHIVE.xattr.user.padded", "AAE="],
    ["LIBARCHIVE.xattr.user.both", "AAAA"],
    ["LIBARCHIVE.xattr.user.broken", "!!!"],
    ["SCHILY.xattr.user.both", "schily"],
  );
  assert.deepEqual(
    entry.xattrs.map(([name, value]) => [name, toHex(value)]),
    [
      ["user.a=b c", "000102ff"],
      ["user.both", toHex(bytesFromLatin1("schily"))],
      ["user.padded", "0001"],
    ],
  );
});

Deno.test("bad xattr names", () => {
  assert.throws(() => withPax(["SCHILY.xattr.", "x"]), FormatError);
  assert.throws(
    () => withPax(["SCHILY.xattr.user." + "n".repeat(251), "x"]),
    LimitError,
  );
});

Deno.test("malformed record areas", () => {
  const areas = [
    "x",
    "5 a=\n7",
    "999999 path=x\n",
    "4 a\n",
    "0 path=x\n",
    "-9 path=x\n",
    "10 path=xyz",
    record("path", "a").replace("\n", " "),
    "6 =abc",
    "5 =a\n",
    "6 abc\n",
    record("path", "a\0b"),
    record("linkpath", "a\0b"),
    record("k\0", "v"),
    record("uid", "12x"),
    record("size", "1.5"),
    record("path", "a") + "\0\0",
  ];
  for (const type of ["x", "g"]) {
    for (const area of areas) {
      assert.throws(
        () => walk(archive(member({ name: "pax", type }, area), header({}))),
        FormatError,
        JSON.stringify(area),
      );
    }
  }
});

Deno.test("global headers are ignored, with what stood before them", () => {
  const entries = walk(archive(
    pax([["path", "dropped"]]),
    pax([["uid", "5"], ["path", "global"]], "g"),
    member({ name: "a" }),
    member({ name: "b" }),
  ));
  assert.deepEqual(entries.map((e) => [e.path, e.uid]), [["a", 0], ["b", 0]]);
});

Deno.test("GNU long names win over PAX records and end at a NUL", () => {
  const name = "n".repeat(200);
  const link = "../" + "l".repeat(200);
  const entry = walkOne(archive(
    pax([["path", "fromPax"], ["linkpath", "fromPax"]]),
    member({ name: "././@LongLink", type: "L" }, name + "\0junk"),
    member({ name: "././@LongLink", type: "K" }, link + "\0"),
    header({ type: "2", linkName: "short" }),
  ));
  assert.equal(entry.path, name);
  assert.equal(entry.linkTarget, link);
});

Deno.test("an empty long name counts for nothing", () => {
  const entry = walkOne(archive(member({ type: "L" }, ""), header({})));
  assert.equal(entry.path, "file");
});

Deno.test("extension headers without an entry behind them", () => {
  assert.deepEqual(walk(archive(pax([["path", "x"]]))), []);
});

Deno.test("extension headers are bounded", () => {
  for (const type of ["x", "g", "L", "K"]) {
    assert.throws(
      () => walk(header({ type, size: 1024 * 1024 + 1 })),
      LimitError,
    );
    assert.throws(() => walk(header({ type, size: 1024 * 1024 })), FormatError);
  }
});

Deno.test("a record area of the full size is taken", () => {
  const value = "v".repeat(1024 * 1024 - record("comment", "").length - 5);
  const area = record("comment", value);
  assert.equal(area.length <= 1024 * 1024, true);
  walk(archive(member({ type: "x" }, area), header({})));
});

/** Names, link targets and whiteouts. */
import assert from "node:assert/strict";
import { FormatError, LimitError } from "../../lib/io/mod.ts";
import { cleanPath, parseWhiteout } from "../../lib/tar/mod.ts";
import { archive, header, pax } from "./tar_bytes.ts";
import { walkOne } from "./walk.ts";

Deno.test("cleanPath() cleans lexically", () => {
  const cases: [string, string][] = [
    ["", ""],
    [".", ""],
    ["./", ""],
    ["/", ""],
    ["//", ""],
    ["a/b", "a/b"],
    ["./a/b/", "a/b"],
    ["/a//b/.", "a/b"],
    ["a/../b", "b"],
    ["a/b/../../c", "c"],
    ["...", "..."],
    [".a/..b/c.", ".a/..b/c."],
    ["a\\b", "a\\b"],
    ["\xff/\x80", "\xff/\x80"],
    ["n".repeat(255), "n".repeat(255)],
  ];
  for (const [name, want] of cases) {
    assert.equal(cleanPath(name, "path", 0), want, JSON.stringify(name));
  }
});

Deno.test("cleanPath() stays in the root, as containerd does", () => {
  const cases = [
    ["..", ""],
    ["../a", "a"],
    ["a/../../b", "b"],
    ["/..", ""],
    ["./../x", "x"],
    ["a/../..", ""],
    ["../../etc/../etc/passwd", "etc/passwd"],
  ];
  for (const [name, want] of cases) {
    assert.equal(cleanPath(name!, "path", 512), want, name);
  }
});

Deno.test("cleanPath() bounds names", () => {
  assert.throws(() => cleanPath("n".repeat(256), "path", 0), LimitError);
  assert.throws(() => cleanPath("a/" + "n".repeat(256), "path", 0), LimitError);
  assert.throws(() => cleanPath("a\0b", "path", 0), FormatError);
  const long = "d/".repeat(2048);
  assert.equal(cleanPath(long, "path", 0).length, 4095);
  assert.throws(() => cleanPath(long + "a", "path", 0), LimitError);
  assert.throws(() => cleanPath("./" + long + "ab", "path", 0), LimitError);
});

Deno.test("names of the root are empty, whatever the entry is", () => {
  assert.equal(walkOne(archive(header({ name: "./", type: "5" }))).path, "");
  assert.equal(walkOne(archive(header({ name: "./" }))).path, "");
  assert.equal(walkOne(archive(header({ name: "" }))).path, "");
});

Deno.test("link targets: hard links cleaned, symlinks verbatim", () => {
  const target = (type: string, linkName: string) =>
    walkOne(archive(header({ type, linkName }))).linkTarget;
  assert.equal(target("1", "/usr/./bin//x"), "usr/bin/x");
  assert.equal(target("2", "/usr/./bin//x/"), "/usr/./bin//x/");
  assert.equal(target("2", "../../../outside"), "../../../outside");
  assert.equal(target("0", "unused"), "");
  // To be followed from where a symlink "link" leads.
  assert.equal(target("1", "link/./../x"), "link/../x");
  assert.equal(target("1", "/../x"), "../x");
  for (const name of ["", ".", "./"]) {
    assert.throws(() => target("1", name), FormatError, name);
  }
  assert.throws(() => target("2", ""), FormatError);
});

Deno.test("symlink text is bounded", () => {
  const at = (length: number) =>
    walkOne(archive(
      pax([["linkpath", "l".repeat(length)]]),
      header({ type: "2" }),
    )).linkTarget.length;
  assert.equal(at(4095), 4095);
  assert.throws(() => at(4096), LimitError);
});

Deno.test("parseWhiteout()", () => {
  assert.equal(parseWhiteout("a/b"), undefined);
  assert.equal(parseWhiteout(""), undefined);
  assert.equal(parseWhiteout("a.wh.b"), undefined);
  assert.equal(parseWhiteout(".wh.dir/file"), undefined);
  assert.deepEqual(parseWhiteout(".wh.x"), { kind: "remove", path: "x" });
  assert.deepEqual(parseWhiteout("a/b/.wh.c"), {
    kind: "remove",
    path: "a/b/c",
  });
  assert.deepEqual(parseWhiteout("a/.wh..hidden"), {
    kind: "remove",
    path: "a/.hidden",
  });
  assert.deepEqual(parseWhiteout(".wh..wh..opq"), {
    kind: "opaque",
    directory: "",
  });
  assert.deepEqual(parseWhiteout("a/b/.wh..wh..opq"), {
    kind: "opaque",
    directory: "a/b",
  });
  // What AUFS left in old images means no more than its name says.
  assert.deepEqual(parseWhiteout(".wh..wh.plnk"), {
    kind: "remove",
    path: ".wh.plnk",
  });
  assert.equal(parseWhiteout(".wh..wh.plnk/17.23"), undefined);
  assert.deepEqual(parseWhiteout(".wh..wh.orph/.wh..wh..opq"), {
    kind: "opaque",
    directory: ".wh..wh.orph",
  });
  for (const path of [".wh.", "a/.wh.", "a/.wh..", ".wh..."]) {
    assert.throws(() => parseWhiteout(path), FormatError, path);
  }
});

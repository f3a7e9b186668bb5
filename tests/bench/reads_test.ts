/** What is replayed and what was fetched: traces, lists of paths, strace's lines, heads of requests. */

import assert from "node:assert/strict";
import { openedFiles } from "../../cmd/bench/file_access.ts";
import { loadReads, readUnpacked } from "../../cmd/bench/reads.ts";
import { RequestHeads } from "../../cmd/bench/request_heads.ts";
import { DEVICE_LAYER, encodeTrace } from "../../lib/image/mod.ts";

const signal = new AbortController().signal;

async function withDir<T>(use: (dir: string) => Promise<T>): Promise<T> {
  const dir = await Deno.makeTempDir();
  try {
    return await use(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("loadReads() takes a trace or a list of paths", () =>
  withDir(async (dir) => {
    const path = `${dir}/reads`;
    await Deno.writeFile(
      path,
      encodeTrace([
        { layer: DEVICE_LAYER, offset: 4096, length: 8192 },
        { layer: 0, offset: 0, length: 4096 },
      ]),
    );
    const trace = await loadReads(path);
    assert.deepEqual(trace.kind === "ranges" && trace.ranges.length, 1);
    const read = { layer: DEVICE_LAYER, offset: 0, length: 4096 };
    await Deno.writeFile(path, encodeTrace([read], "ab".repeat(32)));
    assert.deepEqual(await loadReads(path), {
      kind: "ranges",
      ranges: [read],
      device: "ab".repeat(8),
    });
    await Deno.writeTextFile(path, "# comment\n/bin/sh\r\n\n/etc/ü\n");
    assert.deepEqual(await loadReads(path), {
      kind: "files",
      paths: ["/bin/sh", "/etc/\u00c3\u00bc"],
    });
    const cases: [string, RegExp][] = [
      ["", /it has no paths/],
      ["/bin\nsh\n", /"sh" is no absolute path/],
      ["hello", /trace/],
    ];
    for (const [content, said] of cases) {
      await Deno.writeTextFile(path, content);
      await assert.rejects(loadReads(path), said);
    }
    await assert.rejects(loadReads(`${dir}/none`), /Cannot use/);
  }));

Deno.test("readUnpacked() reads regular files of the tree, and nothing that a link leads to outside", () =>
  withDir(async (dir) => {
    const root = `${dir}/root`;
    await Deno.mkdir(`${root}/dir`, { recursive: true });
    await Deno.writeTextFile(`${root}/file`, "content");
    await Deno.writeTextFile(`${dir}/outside`, "no");
    await Deno.symlink("/dev/zero", `${root}/zero`);
    await Deno.symlink("../outside", `${root}/out`);
    await Deno.symlink("file", `${root}/link`);
    const read = async (...paths: string[]) => {
      let pieces = 0;
      await readUnpacked(
        root,
        { kind: "files", paths },
        () => pieces++,
        signal,
      );
      return pieces;
    };
    assert.equal(await read("/file", "/link"), 2);
    assert.equal(await read("/zero", "/out", "/../outside", "/dir", "/no"), 0);
  }));

Deno.test("openedFiles() finds files of the tree and programs, each once, in order", () => {
  const log = `
12 execve("/usr/bin/unshare", ["unshare"], 0x7f /* 9 vars */) = 0
12 openat(AT_FDCWD</tmp>, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3</etc/ld.so.cache>
13 execve("/usr/sbin/chroot", ["chroot", "/tree"], 0x7f /* 9 vars */) = 0
13 execve("/usr/local/bin/python3", ["python3"], 0x7f /* 9 vars */) = -1 ENOENT (No such file or directory)
13 execve("/usr/bin/python3", ["python3"], 0x7f /* 9 vars */) = 0
13 openat(AT_FDCWD</tree>, "/lib/libm.so", O_RDONLY) = 3</tree/usr/lib/libm-2.36.so>
13 openat(AT_FDCWD</tree>, "/none", O_RDONLY) = -1 ENOENT (No such file or directory)
13 openat(AT_FDCWD</tree>, "/dev/null", O_RDONLY) = 4</dev/null>
13 openat(AT_FDCWD</tree>, "/lib/libm.so", O_RDONLY) = 3</tree/usr/lib/libm-2.36.so>
13 open("/srv/app", O_RDONLY|O_DIRECTORY) = 5</tree/srv/app>
13 openat(AT_FDCWD</tree>, "/treetop", O_RDONLY) = 6</treetop/file>
13 +++ exited with 0 +++
`;
  const escaped = String.raw`
13 execve("/usr/sbin/chroot", ["chroot"], 0x7f /* 9 vars */) = 0
13 execve("/pr\303\266g \"1\"", ["x"], 0x7f /* 9 vars */) = 0
13 openat(AT_FDCWD</b\303\244um>, "x", O_RDONLY) = 3</b\303\244um/\303\251 a\76b\t1\\>
`;
  assert.deepEqual(openedFiles(escaped, "/bäum"), [
    '/prög "1"',
    "/é a>b\t1\\",
  ]);
  assert.deepEqual(openedFiles(log, "/tree"), [
    "/usr/bin/python3",
    "/usr/lib/libm-2.36.so",
    "/srv/app",
  ]);
});

Deno.test("RequestHeads keeps ranges by blob", () => {
  let heads = new RequestHeads();
  const digest = `sha256:${"0f".repeat(32)}`;
  const note = (text: string) => heads.note(new TextEncoder().encode(text));
  const get = (range: string) =>
    note(
      `GET /v2/a/b/blobs/${digest} HTTP/1.1\r\nhost: x\r\nRange: bytes=${range}\r\n\r\n`,
    );
  assert.ok(get("100-199"));
  assert.ok(get("0-49"));
  assert.ok(get("150-299"));
  assert.ok(get("900-"));
  assert.ok(note("GET /v2/ HTTP/1.1\r\n\r\n"));
  assert.ok(note(`HEAD /v2/a/blobs/${digest} HTTP/1.1\r\n\r\n`));
  assert.ok(!note("GETTING ON"));
  assert.ok(!note("\r\n"));
  assert.ok(!note(""));
  assert.deepEqual(heads.blobs(), [{
    digest,
    ranges: [[0, 50], [100, 300], [900, null]],
  }]);
  // However many there are, what is kept is bounded and covers them.
  heads = new RequestHeads();
  for (let i = 0; i < 20_000; i++) get(`${i * 10_000}-${i * 10_000 + 9}`);
  const { ranges } = heads.blobs()[0]!;
  assert.ok(ranges.length <= 4096, String(ranges.length));
  assert.equal(ranges[0]![0], 0);
  assert.equal(ranges.at(-1)![1], 199_990_010);
});

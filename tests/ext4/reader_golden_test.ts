/** File systems that overlaybd's own tools wrote. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { FileSource, latin1FromBytes } from "../../lib/io/mod.ts";
import { Ext4Reader } from "../../lib/ext4/reader.ts";
import { LsmtSource, openLayer } from "../../lib/layers/mod.ts";
import { golden, requires } from "../testutil/requires.ts";
import { run } from "./reader_images.ts";

const layer = golden("unit/native_layer_zt");
const tar = golden("unit/L.tar.gz");
const base = golden("unit/ext4_64");

async function openDevice(path: string): Promise<LsmtSource> {
  const opened = await openLayer(await FileSource.open(path), "native");
  return new LsmtSource([opened], opened.virtualSize);
}

/** One line for each member of a tar: type, mode, owners, size, mtime, digest, path. Their tool cleans the text of links. */
const LIST_TAR = `
import hashlib, os, sys, tarfile
sys.stdout.reconfigure(encoding="latin1")
with tarfile.open(sys.argv[1], encoding="latin1", errors="strict") as t:
    for m in t:
        body = t.extractfile(m).read() if m.isreg() else b""
        kind = "f" if m.isreg() else "d" if m.isdir() else "l" if m.issym() else None
        if kind is None: continue
        size = m.size if kind == "f" else len(os.path.normpath(m.linkname)) if kind == "l" else 0
        digest = hashlib.sha256(body).hexdigest()
        path = m.name.strip("/").removeprefix("./")
        if path in ("", "."): continue
        print(kind, "%o" % (m.mode if kind != "l" else 0o777), m.uid, m.gid, size, int(m.mtime), digest, path)
`;

Deno.test({
  name: "Ext4Reader reads what overlaybd-apply made of a tar",
  ignore: layer === undefined || tar === undefined || !requires("python3"),
  fn: async () => {
    const listed = latin1FromBytes(
      await run("python3", ["-c", LIST_TAR, tar!]),
    );
    // A later member of the same path wins.
    const wanted = new Map(
      listed.trimEnd().split("\n").map((
        line,
      ) => [line.split(" ").slice(7).join(" "), line]),
    );
    assert.ok(wanted.size > 5);
    await using device = await openDevice(layer!);
    const reader = await Ext4Reader.open(device);
    for (const [path, line] of wanted) {
      const stat = await reader.stat(
        await reader.lookup(path, { follow: false }),
      );
      let bytes = new Uint8Array();
      if (stat.type === "file") {
        bytes = new Uint8Array(stat.size);
        await (await reader.openFile(stat.ino)).pread(bytes, 0);
      }
      const got = [
        { file: "f", directory: "d", symlink: "l" }[stat.type as "file"],
        (stat.type === "symlink" ? 0o777 : stat.mode).toString(8),
        stat.uid,
        stat.gid,
        stat.type === "directory" ? 0 : stat.size,
        stat.mtime.seconds,
        createHash("sha256").update(bytes).digest("hex"),
        path,
      ];
      assert.equal(got.join(" "), line);
    }
  },
});

Deno.test({
  name: "Ext4Reader reads overlaybd's base layer of 64 GiB with its journal",
  ignore: base === undefined,
  fn: async () => {
    await using device = await openDevice(base!);
    const reader = await Ext4Reader.open(device);
    assert.equal(reader.groups.count, 512);
    const paths = [];
    for await (const { path } of reader.walk()) paths.push(path);
    assert.deepEqual(paths, ["", "lost+found"]);
    const journal = await reader.stat(reader.superblock.journalIno);
    assert.equal(journal.size, 512 << 20);
  },
});

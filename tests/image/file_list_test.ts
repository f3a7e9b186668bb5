import assert from "node:assert/strict";
import { Ext4Reader } from "../../lib/ext4/mod.ts";
import { openEnvironment, openImage } from "../../lib/image/mod.ts";
import {
  FILE_LIST_SIZE_MAX,
  locateFiles,
  parseFileList,
  readFileList,
} from "../../lib/image/file_list.ts";
import { tracedReads } from "../../lib/image/traced_files.ts";
import {
  CancelledError,
  LimitError,
  loadLibc,
  MemorySource,
  ObdError,
  utf8,
} from "../../lib/io/mod.ts";
import {
  file,
  hardlink,
  makeImage,
  putImage,
  symlink,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { RecordingLogger } from "../testutil/test_source.ts";

loadLibc();

const never = new AbortController().signal;

Deno.test("parseFileList() takes any name, drops spaces and empty lines", () => {
  assert.deepEqual(
    parseFileList("/a/b\n\n  libstdc++.so.6 \r\nwith space\nb/\n"),
    ["/a/b", "libstdc++.so.6", "with space", "b/"],
  );
  assert.deepEqual(parseFileList("\u00e9"), ["\u00c3\u00a9"]);
  assert.throws(
    () => parseFileList("x".repeat(FILE_LIST_SIZE_MAX + 1)),
    LimitError,
  );
});

Deno.test("readFileList() names the file that it cannot read", async () => {
  await assert.rejects(readFileList("/nonexistent/list"), {
    code: "not-found",
    message: /"\/nonexistent\/list"/,
  });
  await assert.rejects(readFileList("/"), ObdError);
});

Deno.test("locateFiles() finds files, below directories and behind links, each once", async () => {
  await using server = await RegistryServer.start();
  const image = makeImage({
    layers: [{
      entries: [
        file("lib/c++", seededBytes(10_000, 1)),
        file("lib/deep/er/x", seededBytes(5000, 2)),
        file("lib/empty", new Uint8Array()),
        hardlink("bin/same", "lib/c++"),
        symlink("link", "lib/deep"),
        symlink("loop", "loop"),
        file("other", seededBytes(70_000, 3)),
        file("zeros", utf8("\0".repeat(8192))),
      ],
    }],
  });
  await putImage(server, "app", "v1", image);
  await using environment = await openEnvironment({ workers: 1 });
  await using opened = await openImage(environment, `${server.host}/app:v1`);
  const logger = new RecordingLogger();
  const locate = (text: string) =>
    locateFiles(opened.source, parseFileList(text), { logger, signal: never });

  const found = await locate("/lib/\nlink/er/x\nbin/same\nnope\nother/x\n");
  assert.deepEqual(
    [found.files, found.bytes, found.missing],
    [2, 15_000, 2],
  );
  assert.equal(logger.lines.length, 1);
  assert.equal(logger.lines[0]!.fields.path, "nope");
  // What the ranges are of, said by the way back.
  const { files } = await tracedReads(opened, found.records, never);
  assert.deepEqual(files.map(({ path, size }) => [path, size]), [
    ["bin/same", 10_000],
    ["lib/deep/er/x", 5000],
  ]);
  assert.deepEqual((await locate("link")).files, 1);
  assert.equal((await locate("loop")).missing, 1);
  const stopped = AbortSignal.abort();
  await assert.rejects(
    locateFiles(opened.source, parseFileList("other"), {
      logger,
      signal: stopped,
    }),
    CancelledError,
  );
  // However often a list says the same, and whatever lies in it: one walk each.
  const { walk } = Ext4Reader.prototype;
  let walks = 0;
  Ext4Reader.prototype.walk = function (...from) {
    walks++;
    return walk.apply(this, from);
  };
  try {
    const all = await locate("lib\n/\n/\n//\n/.\nlib/deep\n/lib/../lib");
    assert.deepEqual([all.files, all.missing, walks], [4, 0, 2]);
  } finally {
    Ext4Reader.prototype.walk = walk;
  }
  assert.equal((await locate("/".repeat(4097))).missing, 1);
  // A long list leaves turns to others: the one who calls it off, here.
  const control = new AbortController();
  setTimeout(() => control.abort(), 1);
  const missing = Array.from({ length: 100_000 }, (_, i) => `lib/x${i}`);
  await assert.rejects(
    locateFiles(opened.source, missing, { logger, signal: control.signal }),
    CancelledError,
  );
  await assert.rejects(
    locateFiles(new MemorySource(new Uint8Array(65536)), [], {
      logger,
      signal: never,
    }),
    ObdError,
  );
});

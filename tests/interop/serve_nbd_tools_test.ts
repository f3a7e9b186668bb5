/** Other people's NBD clients read what `obd serve` shows, and see the bytes of `obd dump`. */

import assert from "node:assert/strict";
import { equalBytes, FileSource, readBytes } from "../../lib/io/mod.ts";
import { NbdClient } from "../../lib/nbd/mod.ts";
import {
  content,
  type Files,
  obd,
  ServeProcess,
  sh,
  withTempDir,
  writeConfig,
} from "../serve/harness.ts";
import { dir, file, makeImage, whiteout } from "../testutil/oci_image.ts";
import { writeLayout } from "../testutil/oci_image.ts";
import { requires } from "../testutil/requires.ts";

const LOWER: Files = { a: content(1, 3_000_000), b: content(2, 50_000) };
const UPPER: Files = { "etc/c": content(3, 1_000_001) };

/** Two gzip layers with a deletion, and a plain one. */
const IMAGE = makeImage({
  layers: [
    { entries: Object.entries(LOWER).map(([p, bytes]) => file(p, bytes)) },
    {
      entries: [
        whiteout("b"),
        dir("etc"),
        ...Object.entries(UPPER).map(([p, bytes]) => file(p, bytes)),
      ],
    },
    { entries: [file("plain", content(4, 300_000))], compression: "none" },
  ],
});

interface Place {
  path: string;
  /** `obd dump` of the image. */
  raw: string;
  serve: ServeProcess;
  uri: string;
}

function test(
  name: string,
  tools: string[],
  work: (place: Place) => Promise<void>,
): void {
  Deno.test({
    name: `serve and NBD tools: ${name}`,
    ignore: !requires(...tools),
    fn: () =>
      withTempDir(async (path) => {
        await writeLayout(`${path}/layout`, [{ tag: "v1", image: IMAGE }]);
        const built = await obd(
          "build",
          "-q",
          `oci:${path}/layout:v1`,
          "--vsize",
          "1",
        );
        assert.equal(built.code, 0, built.stderr);
        const image = `oci:${path}/layout:v1-obd`;
        const raw = `${path}/app.raw`;
        const dumped = await obd("dump", "-q", image, raw);
        assert.equal(dumped.code, 0, dumped.stderr);
        const config = await writeConfig(path, [
          { export: "app", image },
          { export: "plain", image: `oci:${path}/layout:v1` },
        ]);
        await using serve = await ServeProcess.start(config);
        await work({ path, raw, serve, uri: serve.uri("app") });
        assert.equal((await serve.end()).code, 0);
      }),
  });
}

test("nbdinfo lists and describes", ["nbdinfo"], async ({ path, uri }) => {
  const list = JSON.parse(
    await sh(
      "nbdinfo",
      "--list",
      "--json",
      `nbd+unix://?socket=${path}/nbd.sock`,
    ),
  );
  assert.deepEqual(
    list.exports.map((e: Record<string, unknown>) => e["export-name"]).sort(),
    ["app", "plain"],
  );
  const { exports: [one], ...all } = JSON.parse(
    await sh("nbdinfo", "--json", uri),
  );
  assert.equal(all.protocol, "newstyle-fixed");
  assert.equal(all.structured, true);
  assert.equal(one["export-size"], 2 ** 30);
  assert.equal(one.is_read_only, true);
  assert.equal(one.can_multi_conn, true);
  assert.equal(one.can_cache, true);
  assert.deepEqual(one.contexts, ["base:allocation"]);
  assert.match(one.content, /ext[234]? filesystem|ext4/);
});

test(
  "nbdinfo --map agrees with the dump",
  ["nbdinfo"],
  async ({ raw, uri }) => {
    const map = JSON.parse(await sh("nbdinfo", "--map", "--json", uri)) as {
      offset: number;
      length: number;
      type: number;
    }[];
    let at = 0;
    let data = 0;
    await using dump = await FileSource.open(raw);
    for (const { offset, length, type } of map) {
      assert.equal(offset, at);
      at += length;
      if (type === 0) data += length;
      else {
        assert.equal(type, 3); // a hole that reads as zeros
        const probe = await readBytes(dump, offset, Math.min(length, 65_536));
        assert.ok(probe.every((b) => b === 0), `data at ${offset}`);
      }
    }
    assert.equal(at, 2 ** 30);
    assert.ok(data > 4_300_000 && data < 16_000_000, `${data} bytes of data`);
  },
);

test(
  "nbdcopy equals obd dump",
  ["nbdcopy", "qemu-img"],
  async ({ path, raw, uri }) => {
    await sh("nbdcopy", uri, `${path}/copy.raw`);
    await sameDisk(raw, `${path}/copy.raw`);
    // Also the image whose meta image was looked up.
    const plain = uri.replace("/app?", "/plain?");
    await sh("nbdcopy", "--connections=4", plain, `${path}/copy2.raw`);
    await sameDisk(raw, `${path}/copy2.raw`);
  },
);

/** Compares disks by their data: holes are not read. */
async function sameDisk(a: string, b: string): Promise<void> {
  const raw = ["-f", "raw", "-F", "raw"];
  const said = await sh("qemu-img", "compare", ...raw, a, b);
  assert.match(said, /Images are identical/);
}

test("qemu-img compares as identical", ["qemu-img"], async ({ raw, uri }) => {
  await sameDisk(raw, uri);
  const map = JSON.parse(
    await sh("qemu-img", "map", "--output=json", "-f", "raw", uri),
  );
  assert.ok(map.some((e: { data: boolean }) => !e.data), "no holes");
});

test(
  "fio reads at random without an error",
  ["fio"],
  async ({ serve, uri }) => {
    const json = await sh(
      "fio",
      ...["--name=serve", "--ioengine=nbd", `--uri=${uri}`, "--size=64m"],
      ...["--rw=randread", "--bssplit=4k/60:64k/20:12k/20", "--iodepth=16"],
      ...["--io_size=96m", "--randrepeat=1", "--output-format=json"],
    );
    const { jobs: [job] } = JSON.parse(json.slice(json.indexOf("{")));
    assert.equal(job.error, 0);
    assert.ok(job.read.total_ios > 1000);
    assert.doesNotMatch(serve.log, /nbd-request-failed/);
  },
);

test("nbdsh reads what the dump has, at odd offsets", ["nbdsh"], async (
  { raw, uri },
) => {
  // fio cannot verify data that it did not write: this does.
  const script = `
import os, random
random.seed(7)
fd = os.open(${JSON.stringify(raw)}, os.O_RDONLY)
size = h.get_size()
for i in range(400):
    count = random.choice([1, 511, 512, 4096, 5000, 65536, 300000])
    offset = random.randrange(0, 16 << 20) if i % 4 else size - count
    if h.pread(count, offset) != os.pread(fd, count, offset):
        raise SystemExit("other bytes at %d+%d" % (offset, count))
print("same")`;
  // Debian's Python has the module, whatever stands first in PATH.
  const said = await sh(
    ...["env", "PATH=/usr/bin:/bin", "nbdsh", "-u", uri, "-c", script] as const,
  );
  assert.match(said, /same/);
});

test("16 readers at once see the same bytes", [], async ({ raw, serve }) => {
  await using dump = await FileSource.open(raw);
  const want = await readBytes(dump, 0, 16 << 20);
  const reader = async (seed: number) => {
    await using client: NbdClient = await serve.connect("app");
    const piece = 200_001 + seed * 4096;
    for (let n = 0; n * piece < want.length; n++) {
      // Each in another order.
      const count = Math.ceil(want.length / piece);
      const at = ((n * 7 + seed * 3) % count) * piece;
      const bytes = await readBytes(
        client,
        at,
        Math.min(piece, want.length - at),
      );
      assert.ok(
        equalBytes(bytes, want.subarray(at, at + bytes.length)),
        `reader ${seed} got other bytes at ${at}`,
      );
    }
  };
  await Promise.all(Array.from({ length: 16 }, (_, seed) => reader(seed)));
});

/**
 * Layers of one zstd frame, as a user meets them: told by `obd build`, decoded
 * while they are read, kept over a kill, refused where they cannot be held.
 */

import { deepEqual, equal, match } from "node:assert/strict";
import { runTool } from "../testutil/debian_image.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import {
  file,
  layerTar,
  makeImage,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requires } from "../testutil/requires.ts";
import { compressWith, content } from "../zstd/helpers.ts";

const TYPE = "application/vnd.oci.image.layer.v1.tar+zstd";
const NBD_RANDOM = new URL("nbd_random.py", import.meta.url).pathname;
const MIB = 2 ** 20;

/** 41 MiB that compress to two thirds of it. */
function largeTar(): Uint8Array<ArrayBuffer> {
  return layerTar([
    file("large", content(40 * MIB, 9)),
    file("last", content(MIB, 10)),
  ]);
}

Deno.test({
  name: "a layer of one large frame: told, decoded once, kept over a kill",
  ignore: !requires("zstd", "python3", "nbdsh"),
  fn: async () => {
    const tar = largeTar();
    const blob = await compressWith(["zstd", "-q", "-1", "--long=27"], tar);
    const image = makeImage({
      layers: [{ entries: tar, blob, mediaType: TYPE }],
    });
    await using server = await RegistryServer.start();
    await putImage(server, "app", "v1", image);
    const source = `${server.host}/app:v1`;
    await using box = await ObdSandbox.make();
    const at = (path: string) => `${box.dir}/${path}`;
    const built = await box.json("build", "--vsize", "1", source);
    match(
      built.warnings.join("\n"),
      /zstd frames are too large to be read at random.* 41\.\d MiB.*--convert-unseekable/,
    );
    const raw = at("device.raw");
    const dumped = await box.run(["dump", "-q", source, raw], {
      OBD_CACHE_DIR: at("other-cache"),
    });
    equal(dumped.code, 0, dumped.stderr);

    const { digest } = image.layers[0]!;
    const reads = { path: new RegExp(`${digest}$`), method: "GET" };
    const late = { kind: "delay", milliseconds: 1 } as const;
    server.faults.add({ ...reads, fault: late, times: 12 });
    server.faults.add({ ...reads, fault: { kind: "silence" }, times: 1000 });
    const config = { images: [{ export: "x", image: source }] };
    const { child } = await box.serve(config);
    const uri = `nbd+unix:///x?socket=${at("nbd.sock")}`;
    // The start of the layer is there though its end never comes.
    const start = await runTool(
      ...["/usr/bin/python3", "-c"] as const,
      ...[FIND_DATA, uri, raw],
    );
    equal(start.trim(), "same");
    child.kill("SIGKILL");
    await child.status;
    server.faults.clear();

    const pinned = at("cache/gzip/pinned");
    const [entry] = [...Deno.readDirSync(pinned)];
    const before = await Deno.readFile(`${pinned}/${entry!.name}`);
    const kept = countSpans(before, tar);
    await box.serve(config);
    const count = await runTool(
      ...["/usr/bin/python3", NBD_RANDOM, uri, raw, "3"] as const,
    );
    match(count, /^\d+\n$/);
    const after = await Deno.readFile(`${pinned}/${entry!.name}`);
    equal(after.length, tar.length);
    deepEqual([kept > 0, kept < 41], [true, true], `${kept} spans kept`);
    equal(countSpans(after, tar), Math.ceil(tar.length / MIB));
  },
});

/** Compares the first mebibyte of data that lies in the layer. */
const FIND_DATA = `
import nbd, os, sys
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
file = os.open(sys.argv[2], os.O_RDONLY)
size = os.fstat(file).st_size
best = (0, 0)
at = 0
while True:
    try:
        start = os.lseek(file, at, os.SEEK_DATA)
    except OSError:
        break
    at = os.lseek(file, start, os.SEEK_HOLE)
    best = max(best, (at - start, -start))
length, start = best
want = os.pread(file, 262144, -start)
print("same" if handle.pread(262144, -start) == want else "differs")
`;

/** Spans of a MiB that are equal. */
function countSpans(a: Uint8Array, b: Uint8Array): number {
  let count = 0;
  for (let at = 0; at < b.length; at += MIB) {
    const [x, y] = [a, b].map((bytes) =>
      bytes.subarray(at, Math.min(at + MIB, b.length))
    );
    if (x!.length === y!.length && x!.every((byte, i) => byte === y![i])) {
      count++;
    }
  }
  return count;
}

Deno.test({
  name: "windows of zstd: 128 MiB are taken, 2 GiB are refused by name",
  ignore: !requires("zstd"),
  fn: async () => {
    await using box = await ObdSandbox.make();
    const tar = layerTar([file("f", content(3 * MIB))]);
    const commands: Record<string, string[]> = {
      piped27: ["zstd", "-q", "--long=27"],
      piped31: ["zstd", "-q", "--long=31"],
      // A frame that knows its size needs no larger window than that.
      file31: ["zstd", "-q", "--long=31", "-c", "FILE"],
    };
    const layout = `${box.dir}/layout`;
    const images = [];
    for (const [tag, command] of Object.entries(commands)) {
      const blob = await compressWith(command, tar);
      const layers = [{ entries: tar, blob, mediaType: TYPE }];
      images.push({ tag, image: makeImage({ layers }) });
    }
    await writeLayout(layout, images);
    for (const tag of ["piped27", "file31"]) {
      const built = await box.json("build", `oci:${layout}:${tag}`);
      equal(built.layers[0].entries, 1);
    }
    const { code, stderr } = await box.run(["build", `oci:${layout}:piped31`]);
    equal(code, 1);
    match(
      stderr,
      /^obd: Layer 1 of 1 .*window of 2147483648 bytes.*--long=27/m,
    );
  },
});

/** Every byte that `obd serve` gives out was checked first, and belongs to the image that was asked for. */

import assert from "node:assert/strict";
import { type ByteSource, equalBytes } from "../../lib/io/mod.ts";
import { NBD_ERROR, NbdError } from "../../lib/nbd/mod.ts";
import { makeImage, nameOf, putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import {
  build,
  checkFiles,
  content,
  type Files,
  imageOf,
  layerOf,
  MiB,
  obd,
  readFile,
  ServeProcess,
  withTempDir,
  writeConfig,
} from "./harness.ts";

const TURBO = "application/vnd.containerd.overlaybd.turbo.v1+json";
const MANIFEST = "application/vnd.oci.image.manifest.v1+json";

/** Nine files over some ten spans; the first bytes of a layer are its first file's header. */
const FILES: Files = Object.fromEntries(
  Array.from({ length: 9 }, (_, i) => [`f${i}`, content(i, 1_200_000)]),
);

/** Flips one bit of a blob as it lies in the registry's storage; doing it again repairs it. */
async function flip(dir: string, digest: string, at: number): Promise<void> {
  const path = `${dir}/registry/sha256/${digest.slice("sha256:".length)}`;
  using file = await Deno.open(path, { read: true, write: true });
  const byte = new Uint8Array(1);
  await file.seek(at, Deno.SeekMode.Start);
  assert.equal(await file.read(byte), 1);
  byte[0]! ^= 0x10;
  await file.seek(at, Deno.SeekMode.Start);
  await file.write(byte);
}

/** Reads every file on its own: which could be read (and are right), which gave EIO. */
async function tryFiles(
  device: ByteSource,
): Promise<{ good: string[]; bad: string[] }> {
  const good: string[] = [];
  const bad: string[] = [];
  for (const [name, bytes] of Object.entries(FILES)) {
    try {
      const got = await readFile(device, name);
      assert.ok(equalBytes(got, bytes), `${name} was served with wrong bytes`);
      good.push(name);
    } catch (error) {
      assert.ok(error instanceof NbdError, String(error));
      assert.equal(error.errno, NBD_ERROR.EIO);
      bad.push(name);
    }
  }
  return { good, bad };
}

for (const compression of ["gzip", "none"] as const) {
  Deno.test(`a flipped byte in the registry (${compression}) gives EIO, and right bytes once it is repaired`, () =>
    withTempDir(async (dir) => {
      await using server = await RegistryServer.start({
        directory: `${dir}/registry`,
      });
      const image = makeImage({ layers: [layerOf(FILES, { compression })] });
      await putImage(server, "app", "v1", image);
      await build(`${server.host}/app:v1`);
      const { digest, size } = image.layers[0]!;
      const config = await writeConfig(dir, [
        { export: "app", image: `${server.host}/app:v1-obd` },
      ]);
      const places = {
        // Within the first file's body, also when nothing is compressed.
        start: 5000,
        middle: size >> 1,
        // Before the gzip trailer and the tar's end, which nobody reads.
        end: size - 20_000,
      };
      for (const at of Object.values(places)) {
        await flip(dir, digest, at);
        for (const cache of ["blobs", "gzip"]) {
          await Deno.remove(`${dir}/${cache}`, { recursive: true })
            .catch(() => {});
        }
        await using serve = await ServeProcess.start(config);
        await using client = await serve.connect("app");
        const { good, bad } = await tryFiles(client);
        assert.ok(bad.length >= 1 && bad.length <= 3, `bad: ${bad}`);
        assert.equal(good.length + bad.length, 9);
        // Again: still wrong, and the files beside it still right.
        assert.deepEqual(await tryFiles(client), { good, bad });
        const line = await serve.logged(/span\.failed/);
        assert.match(
          line,
          new RegExp(`layer=${digest} span=\\d+ code=integrity`),
        );
        await flip(dir, digest, at);
        await checkFiles(client, FILES);
        assert.equal((await serve.end()).code, 0);
        // And nothing wrong is in the caches.
        const fetched = server.requests.length;
        await using again = await ServeProcess.start(config);
        await using reader = await again.connect("app");
        await checkFiles(reader, FILES);
        const reads = server.requests.slice(fetched)
          .filter((r) => r.path.endsWith(digest) && r.method === "GET");
        assert.deepEqual(reads, [], "the second run fetched what was cached");
      }
    }));
}

Deno.test("a meta image whose source tag has moved on is not used", () =>
  withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const reference = `${server.host}/app:v1`;
    const old = { "etc/version": content(1, 1000) };
    const now = { "etc/version": content(2, 1000) };
    await putImage(server, "app", "v1", imageOf(old));
    const stale = await build(reference);
    await putImage(server, "app", "v1", imageOf(now));
    const images = [{ export: "app", image: reference }];
    {
      await using serve = await ServeProcess.start(
        await writeConfig(dir, images),
      );
      const line = await serve.logged(/ignoring a meta image/);
      assert.match(line, /meta=v1-obd/);
      assert.match(line, /its subject is sha256:/);
      assert.notEqual(serve.ready.exports[0]!.meta, stale);
      await using client = await serve.connect("app");
      await checkFiles(client, now);
    }
    const pushes = server.requests.filter((r) => r.method === "PUT").length;
    const config = await writeConfig(dir, images, {
      metaFrom: ["digest", "tag", "referrer"],
    });
    const { code, stdout, stderr } = await obd("serve", "--config", config);
    assert.equal(code, 1);
    assert.equal(stdout, "");
    const last = stderr.trim().split("\n").at(-1)!;
    assert.match(last, /^obd: Cannot open export "app": No meta image for /);
    assert.match(last, /run obd build/);
    assert.equal(
      server.requests.filter((r) => r.method === "PUT").length,
      pushes,
      "serve pushed",
    );
    // The right one is used at once where it is there.
    const fresh = await build(reference);
    await using serve = await ServeProcess.start(config);
    assert.equal(serve.ready.exports[0]!.meta, fresh);
    await using client = await serve.connect("app");
    await checkFiles(client, now);
  }));

Deno.test("a planted referrer with other targets is ignored", () =>
  withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const reference = `${server.host}/app:v1`;
    const files = { "bin/app": content(1, 300_000) };
    const image = imageOf(files);
    await putImage(server, "app", "v1", image);
    // A right meta image of an evil source, said to be of the good one.
    await putImage(
      server,
      "app",
      "evil",
      imageOf({ "bin/app": content(66, 300_000) }),
    );
    const evil = await build(`${server.host}/app:evil`);
    const { bytes } = await fetchManifest(server, "app", evil);
    const planted = JSON.parse(new TextDecoder().decode(bytes));
    planted.subject = nameOf(image.manifest);
    const { digest } = server.putManifest("app", undefined, planted, MANIFEST);
    const ways = { metaFrom: ["referrer", "build"] };
    const images = [{ export: "app", image: reference }];
    {
      const config = await writeConfig(dir, images, ways);
      await using serve = await ServeProcess.start(config);
      const line = await serve.logged(/ignoring a meta image/);
      assert.ok(line.includes(digest));
      assert.match(line, /its layer 1 points to /);
      assert.notEqual(serve.ready.exports[0]!.meta, digest);
      await using client = await serve.connect("app");
      await checkFiles(client, files);
    }
    // Beside it, the right one is found.
    const right = await build(reference);
    await using serve = await ServeProcess.start(
      await writeConfig(dir, images, ways),
    );
    assert.equal(serve.ready.exports[0]!.meta, right);
  }));

Deno.test("a planted referrer of another artifact type, or no image at all, is ignored", () =>
  withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const reference = `${server.host}/app:v1`;
    const files = { a: content(1, 5000) };
    const image = imageOf(files);
    await putImage(server, "app", "v1", image);
    const junk = [
      { schemaVersion: 2, mediaType: MANIFEST, layers: [] },
      { schemaVersion: 2, mediaType: "text/plain" },
    ];
    for (const document of junk) {
      server.putManifest("app", undefined, {
        ...document,
        artifactType: TURBO,
        config: nameOf(image.config),
        subject: nameOf(image.manifest),
      }, MANIFEST);
    }
    const config = await writeConfig(dir, [{ export: "a", image: reference }]);
    await using serve = await ServeProcess.start(config);
    await using client = await serve.connect("a");
    await checkFiles(client, files);
    assert.equal(serve.log.match(/ignoring a meta image/g)?.length, 2);
  }));

Deno.test("require-spans refuses a layer without obd.spans", () =>
  withTempDir(async (dir) => {
    // A foreign image in its smallest form: a config that names files only.
    await using server = await RegistryServer.start();
    const layer = makeImage({ layers: [layerOf({ a: content(1, 5000) })] });
    await putImage(server, "app", "v1", layer);
    await build(`${server.host}/app:v1`);
    const { extracted, target } = await unpackMeta(server, dir);
    const image = `${dir}/config.v1.json`;
    await Deno.writeTextFile(
      image,
      JSON.stringify({ lowers: [{ file: extracted, targetFile: target }] }),
    );
    const images = [{ export: "a", config: image }];
    {
      const config = await writeConfig(dir, images);
      await using serve = await ServeProcess.start(config);
      await serve.logged(/cannot be checked span by span.*integrity=none/);
    }
    const config = await writeConfig(dir, images, {
      integrity: "require-spans",
    });
    const { code, stderr } = await obd("serve", "--config", config);
    assert.equal(code, 1);
    assert.match(
      stderr.trim().split("\n").at(-1)!,
      /^obd: Cannot open export "a": Integrity of layer 1 .* is none, expected spans/,
    );
  }));

async function fetchManifest(
  server: RegistryServer,
  repository: string,
  reference: string,
): Promise<{ bytes: Uint8Array<ArrayBuffer>; json: Record<string, unknown> }> {
  const answer = await fetch(
    `http://${server.host}/v2/${repository}/manifests/${reference}`,
  );
  const bytes = new Uint8Array(await answer.arrayBuffer());
  return { bytes, json: JSON.parse(new TextDecoder().decode(bytes)) };
}

/** Takes `ext4.fs.meta` out of the pushed meta blob, and writes the plain tar that it points into. */
async function unpackMeta(
  server: RegistryServer,
  dir: string,
): Promise<{ extracted: string; target: string }> {
  const { json } = await fetchManifest(server, "app", "v1-obd");
  const [layer] = json.layers as {
    digest: string;
    annotations: Record<string, string>;
  }[];
  const get = async (digest: string) =>
    new Uint8Array(
      await new Response(
        (await fetch(`http://${server.host}/v2/app/blobs/${digest}`)).body!
          .pipeThrough(new DecompressionStream("gzip")),
      ).arrayBuffer(),
    );
  const tar = await get(layer!.digest);
  const name = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";
  const extracted = `${dir}/ext4.fs.meta`;
  for (let at = 0; at + 512 <= tar.length;) {
    const text = new TextDecoder("latin1").decode(tar.subarray(at, at + 512));
    const member = text.slice(0, text.indexOf("\0"));
    const size = parseInt(text.slice(124, 136), 8);
    if (member === "ext4.fs.meta") {
      await Deno.writeFile(extracted, tar.subarray(at + 512, at + 512 + size));
      break;
    }
    at += 512 + Math.ceil(size / 512) * 512;
  }
  const target = `${dir}/target.tar`;
  await Deno.writeFile(target, await get(layer!.annotations[name]!));
  return { extracted, target };
}

Deno.test("a config with a target file whose size is not a multiple of anything reads to its end, and its result is told", () =>
  withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const files = { tail: content(5, MiB + 3) };
    await putImage(server, "app", "v1", imageOf(files));
    await build(`${server.host}/app:v1`);
    const { extracted, target } = await unpackMeta(server, dir);
    await Deno.writeTextFile(
      `${dir}/config.v1.json`,
      JSON.stringify({
        lowers: [{ file: extracted, targetFile: target }],
        resultFile: `${dir}/result`,
      }),
    );
    const config = await writeConfig(dir, [
      { export: "a", config: `${dir}/config.v1.json` },
    ]);
    await using serve = await ServeProcess.start(config);
    await using client = await serve.connect("a");
    await checkFiles(client, files);
    assert.equal(await Deno.readTextFile(`${dir}/result`), "success");
  }));

/** Images that the real overlaybd tools made: the device that we show is the one that they show. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { gunzipSync } from "node:zlib";
import {
  type ImageEnvironment,
  openEnvironment,
  openImage,
  ReadStats,
} from "../../lib/image/mod.ts";
import type { ByteSource } from "../../lib/io/mod.ts";
import { golden } from "../testutil/requires.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { obd, ServeProcess, withTempDir, writeConfig } from "./harness.ts";

const OCI = "application/vnd.oci.image";
const PREFIX = "containerd.io/snapshot/overlaybd";

/** One golden image: its folder, its layers, its line in `merged-device.sha256`. */
interface Golden {
  folder: string;
  layers: string[];
  form: "turbo" | "native";
  fs?: "ext4" | "erofs";
  /** Targets are the plain tars. */
  plain?: boolean;
}

const IMAGES: Golden[] = [
  { folder: "turbo-gz", layers: ["layer1", "layer2"], form: "turbo" },
  {
    folder: "turbo-tar",
    layers: ["layer1", "layer2"],
    form: "turbo",
    plain: true,
  },
  {
    folder: "turbo-gz-erofs",
    layers: ["layer1", "layer2e"],
    form: "turbo",
    fs: "erofs",
  },
  { folder: "native-lz4", layers: ["layer1", "layer2"], form: "native" },
  { folder: "native-zstd", layers: ["layer1", "layer2"], form: "native" },
];

function wantedDigest({ folder, layers }: Golden): string {
  const text = Deno.readTextFileSync(golden("merged-device.sha256")!);
  const name = `${folder}-${layers.at(-1)}`;
  return text.split("\n").find((l) => l.endsWith(` ${name}`))!.slice(0, 64);
}

/** SHA-256 of a whole device, holes as zeros; or only of what is no hole. */
async function deviceDigest(
  device: ByteSource,
  only?: "data",
): Promise<string> {
  const hash = createHash("sha256");
  const zeros = new Uint8Array(1 << 20);
  const buffer = new Uint8Array(1 << 20);
  for (const extent of device.extents!(0, device.size)) {
    for (let at = 0; at < extent.length; at += buffer.length) {
      const length = Math.min(buffer.length, extent.length - at);
      const isData = extent.kind === "data";
      if (only && !isData) break;
      if (isData) {
        await device.pread(buffer.subarray(0, length), extent.offset + at);
      }
      hash.update((isData ? buffer : zeros).subarray(0, length));
    }
  }
  return hash.digest("hex");
}

async function imageDigest(
  environment: ImageEnvironment,
  name: string,
  only?: "data",
): Promise<string> {
  await using image = await openImage(environment, name);
  return await deviceDigest(image.source, only);
}

/** Where a layer's target lies: the golden gzip, or its tar written to `dir`. */
function targetFile(image: Golden, layer: string, dir: string): string {
  const gz = golden(`layers/${layer}.tar.gz`)!;
  if (!image.plain) return gz;
  const path = `${dir}/${layer}.tar`;
  Deno.writeFileSync(path, gunzipSync(Deno.readFileSync(gz)));
  return path;
}

/** Writes the `config.v1.json` that overlaybd's snapshotter would write. */
function writeImageConfig(image: Golden, dir: string): string {
  const { folder, form, fs = "ext4" } = image;
  const lowers = image.layers.map((layer) =>
    form === "native"
      ? { file: golden(`${folder}/${layer}.overlaybd.commit`)! }
      : {
        file: golden(`${folder}/${layer}.${fs}.fs.meta`)!,
        targetFile: targetFile(image, layer, dir),
        ...(image.plain
          ? {}
          : { gzipIndex: golden(`${folder}/${layer}.gzip.meta`)! }),
      }
  );
  const path = `${dir}/config.v1.json`;
  Deno.writeTextFileSync(path, JSON.stringify({ lowers }));
  return path;
}

/** Puts the image into a registry as overlaybd's convertor does (formats: lib/layers/README.md). */
async function push(
  server: RegistryServer,
  image: Golden,
): Promise<{ reference: string; contentBlobs: string[] }> {
  const { folder, form } = image;
  const layers = [];
  const contentBlobs: string[] = [];
  for (const layer of image.layers) {
    const blob = Deno.readFileSync(
      golden(
        form === "native"
          ? `${folder}/${layer}.overlaybd.commit`
          : `${folder}/${layer}.turboOCIv1.tar.gz`,
      )!,
    );
    const put = await server.putBlob(
      "golden",
      blob,
      `${OCI}.layer.v1.tar+gzip`,
    );
    const annotations: Record<string, string> = {
      [`${PREFIX}/version`]: form === "native" ? "0.1.0" : "0.1.0-turbo.ociv1",
      [`${PREFIX}/blob-digest`]: put.digest,
      [`${PREFIX}/blob-size`]: String(put.size),
    };
    if (form === "turbo") {
      const gz = Deno.readFileSync(golden(`layers/${layer}.tar.gz`)!);
      const target = await server.putBlob(
        "golden",
        image.plain ? gunzipSync(gz) : gz,
      );
      contentBlobs.push(target.digest);
      annotations[`${PREFIX}/turbo-oci/target-digest`] = target.digest;
      annotations[`${PREFIX}/turbo-oci/target-media-type`] = `${OCI}.layer.v1.${
        image.plain ? "tar" : "tar+gzip"
      }`;
    }
    if (form === "native") contentBlobs.push(put.digest);
    layers.push({ ...put, annotations });
  }
  const config = await server.putBlob(
    "golden",
    new TextEncoder().encode(JSON.stringify({
      architecture: "amd64",
      os: "linux",
      rootfs: { type: "layers", diff_ids: layers.map((l) => l.digest) },
    })),
    `${OCI}.config.v1+json`,
  );
  server.putManifest("golden", folder, {
    schemaVersion: 2,
    mediaType: `${OCI}.manifest.v1+json`,
    config,
    layers,
  }, `${OCI}.manifest.v1+json`);
  return { reference: `${server.host}/golden:${folder}`, contentBlobs };
}

for (const image of IMAGES) {
  const last = image.layers.at(-1);
  const file = image.form === "native"
    ? `${last}.overlaybd.commit`
    : `${last}.${image.fs ?? "ext4"}.fs.meta`;
  const ignore = golden(`${image.folder}/${file}`) === undefined;
  Deno.test({
    name:
      `golden ${image.folder}: config.v1.json and image show overlaybd's device`,
    ignore,
    fn: () =>
      withTempDir(async (dir) => {
        const wanted = wantedDigest(image);
        await using environment = await openEnvironment({ workers: 1 });
        const config = writeImageConfig(image, dir);
        assert.equal(await imageDigest(environment, config), wanted);
        await using server = await RegistryServer.start();
        const { reference } = await push(server, image);
        const readStats = new ReadStats();
        const counted = { ...environment, readStats };
        assert.equal(await imageDigest(counted, reference), wanted);
        const { demand } = readStats.counters();
        assert.ok(demand.loads > 0 && demand.storedBytes > 0);
        assert.ok(demand.bytes >= demand.storedBytes, `${demand.bytes}`);
      }),
  });
}

Deno.test({
  name: "golden turbo-gz: obd dump writes overlaybd's device",
  ignore: golden("turbo-gz/layer2.ext4.fs.meta") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const config = writeImageConfig(IMAGES[0]!, dir);
      const { code, stderr } = await obd(
        "dump",
        "-q",
        config,
        `${dir}/out.raw`,
      );
      assert.equal(code, 0, stderr);
      const hash = createHash("sha256");
      using raw = await Deno.open(`${dir}/out.raw`);
      const buffer = new Uint8Array(1 << 20);
      for (let n; (n = await raw.read(buffer)) !== null;) {
        hash.update(buffer.subarray(0, n));
      }
      assert.equal(hash.digest("hex"), wantedDigest(IMAGES[0]!));
      const { blocks } = await Deno.stat(`${dir}/out.raw`);
      assert.ok(blocks! * 512 < 64 << 20, "the dump is not sparse");
    }),
});

Deno.test({
  name:
    "a local target that changed between two runs is not served from a cache",
  ignore: golden("turbo-gz/layer2.ext4.fs.meta") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const image = { ...IMAGES[1]!, layers: ["layer1"] };
      const config = await writeConfig(dir, [
        { export: "x", config: writeImageConfig(image, dir) },
      ]);
      const digest = async () => {
        await using serve = await ServeProcess.start(config);
        await using client = await serve.connect("x");
        const found = await deviceDigestOf(client);
        assert.equal((await serve.end()).code, 0);
        return found;
      };
      const deviceDigestOf = async (device: ByteSource) => {
        // The whole of what a file of this size may have changed.
        const bytes = new Uint8Array(1 << 20);
        const hash = createHash("sha256");
        for (let at = 0; at < 64 << 20; at += bytes.length) {
          await device.pread(bytes, at);
          hash.update(bytes);
        }
        return hash.digest("hex");
      };
      const before = await digest();
      const tar = `${dir}/layer1.tar`;
      const bytes = Deno.readFileSync(tar);
      // Every body changes, no header does: those are not read.
      Deno.writeFileSync(tar, bytes.map((b) => b ^ 0xff));
      const after = await digest();
      assert.notEqual(after, before);
      Deno.writeFileSync(tar, bytes);
      assert.equal(await digest(), before);
      const stored: string[] = [];
      for (const name of ["blobs", "gzip"]) {
        const { blocks } = await Deno.stat(`${dir}/${name}/data`);
        if (blocks! > 0) stored.push(name);
      }
      assert.deepEqual(stored, []);
    }),
});

for (const image of [IMAGES[0]!, IMAGES[1]!, IMAGES[3]!]) {
  const { folder, form, layers } = image;
  const file = form === "native"
    ? `${layers.at(-1)}.overlaybd.commit`
    : `${layers.at(-1)}.ext4.fs.meta`;
  Deno.test({
    name:
      `golden ${folder}: one registry's wrong bytes are not served for another's`,
    ignore: golden(`${folder}/${file}`) === undefined,
    fn: () =>
      withTempDir(async (dir) => {
        await using evil = await RegistryServer.start();
        await using good = await RegistryServer.start();
        const cache = (name: string) => ({
          directory: `${dir}/${name}`,
          sizeBytes: 256 << 20,
        });
        await using environment = await openEnvironment({
          workers: 1,
          blobCache: { ...cache("blobs"), refillSize: 65_536 },
          spanCache: cache("gzip"),
        });
        const { reference, contentBlobs } = await push(evil, image);
        // What names a blob is all that is right about it.
        evil.faults.add({
          fault: { kind: "corrupt", at: 30_000 },
          path: new RegExp(contentBlobs.join("|")),
          times: 1000,
        });
        const wrong = await imageDigest(environment, reference, "data")
          .catch(String);
        const wanted = await imageDigest(
          environment,
          writeImageConfig(image, dir),
          "data",
        );
        assert.notEqual(wrong, wanted);
        const right = await push(good, image);
        assert.equal(
          await imageDigest(environment, right.reference, "data"),
          wanted,
        );
      }),
  });
}

/** `obd verify`: a flipped bit anywhere in a blob is found, behind digests that are right for what is stored. */

import assert from "node:assert/strict";
import { gunzipSync, gzipSync } from "node:zlib";
import { verifyImage } from "../../lib/image/mod.ts";
import {
  blobPath,
  digestOf,
  file,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { Random } from "../testutil/random_layers.ts";
import { golden } from "../testutil/requires.ts";
import {
  build,
  layoutTags,
  testEnvironment,
  withTempDir,
} from "../image/helpers.ts";

const PREFIX = "containerd.io/snapshot/overlaybd";

async function findingsOf(image: string): Promise<string[]> {
  await using environment = await testEnvironment();
  const { findings } = await verifyImage(environment, image);
  return findings.map(({ layer, check, problem }) =>
    `${layer ?? "image"} ${check}: ${problem}`
  );
}

/** An image of one layer, whose blob can be exchanged with everything that names it. */
class Subject {
  readonly layout: string;
  readonly #tag: string;

  constructor(layout: string, tag: string) {
    this.layout = layout;
    this.#tag = tag;
  }

  async #json(digest: string) {
    return JSON.parse(await Deno.readTextFile(blobPath(this.layout, digest)));
  }

  async #manifest() {
    const digest = (await layoutTags(this.layout)).get(this.#tag)!;
    return await this.#json(digest);
  }

  async #put(bytes: Uint8Array) {
    const digest = digestOf(bytes);
    await Deno.writeFile(blobPath(this.layout, digest), bytes);
    return { digest, size: bytes.length };
  }

  async blob(): Promise<Uint8Array<ArrayBuffer>> {
    const { layers } = await this.#manifest();
    return await Deno.readFile(blobPath(this.layout, layers[0].digest));
  }

  /** What is wrong with the image when its layer is `bytes`. */
  async with(bytes: Uint8Array, diffId: string): Promise<string[]> {
    const manifest = await this.#manifest();
    const config = await this.#json(manifest.config.digest);
    const [layer] = manifest.layers;
    Object.assign(layer, await this.#put(bytes));
    layer.annotations[`${PREFIX}/blob-digest`] = layer.digest;
    layer.annotations[`${PREFIX}/blob-size`] = String(layer.size);
    config.rootfs.diff_ids = [diffId];
    const encode = (value: unknown) =>
      new TextEncoder().encode(JSON.stringify(value));
    Object.assign(manifest.config, await this.#put(encode(config)));
    const named = await this.#put(encode(manifest));
    const path = `${this.layout}/index.json`;
    const index = JSON.parse(await Deno.readTextFile(path));
    const key = "org.opencontainers.image.ref.name";
    index.manifests = index.manifests.filter(
      (m: { annotations?: Record<string, string> }) =>
        m.annotations?.[key] !== "bad",
    );
    index.manifests.push({
      mediaType: manifest.mediaType,
      ...named,
      annotations: { [key]: "bad" },
    });
    await Deno.writeTextFile(path, JSON.stringify(index));
    return await findingsOf(`oci:${this.layout}:bad`);
  }
}

async function makeLayout(layout: string): Promise<void> {
  const bytes = new Random(9).bytes(120_000);
  const entries = [file("random", bytes), file("a/b", "x")];
  await writeLayout(layout, [{
    tag: "v1",
    image: makeImage({ layers: [{ entries }] }),
  }]);
  await build({
    source: `oci:${layout}:v1`,
    virtualSize: 2 ** 30,
    formats: ["turbo", "overlaybd"],
  });
}

const u64 = (bytes: Uint8Array, at: number) =>
  Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true));

Deno.test("a flipped bit in every part of a native blob is found and named", async () => {
  await withTempDir(async (layout) => {
    await makeLayout(layout);
    const subject = new Subject(layout, "v1-overlaybd");
    const blob = await subject.blob();
    const zfile = 1536;
    const table = zfile + u64(blob, zfile + 40);
    const trailer = table + u64(blob, zfile + 48) * 4;
    const tail = trailer + 512;
    const parts: [name: string, at: number, want: RegExp][] = [
      ["PAX header", 0, /^1 layer: .*ustar header/],
      ["its checksum", 150, /^1 layer: .*ustar header/],
      ["PAX record", 520, /^1 layer: /],
      ["behind the record", 900, /^1 containers: .*tar wrapper.*PAX area/],
      ["member header", 1030, /^1 containers: .*tar wrapper.*member header/],
      ["its magic", 1281, /^1 containers: .*tar wrapper.*member header/],
      ["ZFile magic", zfile + 3, /^1 layer: .*ZFile/],
      ["ZFile digest", zfile + 29, /^1 layer: ZFile header digest/],
      ["ZFile flags", zfile + 32, /^1 layer: .*(ZFile|LSMT)/],
      ["ZFile table place", zfile + 41, /^1 layer: ZFile header digest/],
      ["ZFile size", zfile + 57, /^1 layer: ZFile header digest/],
      ["ZFile padding", zfile + 300, /^1 layer: ZFile header digest/],
      ["first block", zfile + 520, /^1 layer: ZFile block 0 CRC/],
      ["last block", table - 6, /^1 layer: ZFile block \d+ CRC/],
      ["last block's checksum", table - 2, /^1 layer: ZFile block \d+ CRC/],
      ["jump table", table + 4, /^1 layer: ZFile jump table CRC/],
      ["its end", trailer - 4, /^1 layer: ZFile jump table CRC/],
      ["trailer magic", trailer + 1, /^1 containers: .*ZFile trailer.*magic/],
      ["trailer flags", trailer + 32, /^1 containers: .*ZFile trailer/],
      ["trailer count", trailer + 48, /^1 containers: ZFile trailer digest/],
      ["trailer padding", trailer + 500, /^1 containers: ZFile trailer digest/],
      ["zero blocks", tail + 700, /^1 containers: .*tar wrapper.*end/],
      ["last byte", blob.length - 1, /^1 containers: .*tar wrapper.*end/],
    ];
    assert.deepEqual(await subject.with(blob, digestOf(blob)), []);
    for (const [name, at, want] of parts) {
      const bad = blob.slice();
      bad[at]! ^= 1;
      const [found] = await subject.with(bad, digestOf(bad));
      assert.match(found ?? "nothing found", want, name);
    }
    // Cut off: readers need no trailer, but the wrapper has its size.
    const short = blob.slice(0, blob.length - 512);
    assert.match(
      (await subject.with(short, digestOf(short)))[0] ?? "",
      /less than two zero blocks/,
    );
  });
});

Deno.test("a flipped bit in every member of a meta blob is found and named", async () => {
  await withTempDir(async (layout) => {
    await makeLayout(layout);
    const subject = new Subject(layout, "v1-obd");
    const tar = new Uint8Array(gunzipSync(await subject.blob()));
    const pack = (bytes: Uint8Array) => new Uint8Array(gzipSync(bytes));
    assert.deepEqual(await subject.with(pack(tar), digestOf(tar)), []);
    /** Where a member's content begins, and its size. */
    const place = (name: string): [number, number] => {
      for (let at = 0; tar[at] !== 0;) {
        const text = (from: number, length: number) =>
          String.fromCharCode(...tar.subarray(from, from + length));
        const size = parseInt(text(at + 124, 11), 8);
        if (text(at, 100).replace(/\0.*$/s, "") === name) {
          return [at + 512, size];
        }
        at += 512 + Math.ceil(size / 512) * 512;
      }
      throw new Error(`no member ${name}`);
    };
    const [map, mapSize] = place("ext4.fs.meta");
    const [gzip, gzipSize] = place("gzip.meta");
    const [spans, spansSize] = place("obd.spans");
    const parts: [name: string, at: number, want: RegExp][] = [
      ["member header", map - 512 + 3, /^1 meta blob: /],
      ["ZFile magic", map, /^1 map: /],
      ["ZFile header", map + 33, /^1 map: ZFile header digest/],
      ["ZFile block", map + 530, /^1 map: ZFile block 0 CRC/],
      ["ZFile trailer", map + mapSize - 30, /^1 map: ZFile trailer/],
      ["gzip.meta magic", gzip + 2, /^1 (gzip )?index: .*gzip.meta.*magic/],
      ["gzip.meta header", gzip + 50, /^1 (gzip )?index: gzip.meta header CRC/],
      ["gzip.meta window", gzip + 340, /^1 (gzip index: .*window 0|index: )/],
      [
        "gzip.meta entries",
        gzip + gzipSize - 4,
        /^1 (gzip )?index: .*index area/,
      ],
      ["obd.spans magic", spans + 1, /^1 index: .*obd.spans.*magic/],
      ["obd.spans version", spans + 8, /^1 index: .*obd.spans of version/],
      ["obd.spans digest", spans + spansSize - 50, /^1 index: .*obd.spans/],
      ["obd.spans checksum", spans + spansSize - 1, /^1 index: .*obd.spans/],
    ];
    for (const [name, at, want] of parts) {
      const bad = tar.slice();
      bad[at]! ^= 1;
      const [found] = await subject.with(pack(bad), digestOf(bad));
      assert.match(found ?? "nothing found", want, name);
    }
  });
});

/** Golden layers as files that may be damaged, and a configuration of them. */
async function goldenConfig(
  dir: string,
  folder: string,
  fs = "ext4",
): Promise<{ config: string; files: string[] }> {
  const names = fs === "erofs" ? ["layer1", "layer2e"] : ["layer1", "layer2"];
  const files: string[] = [];
  const copy = async (name: string) => {
    const path = `${dir}/${name.replaceAll("/", "-")}`;
    await Deno.copyFile(golden(name)!, path);
    await Deno.chmod(path, 0o600);
    files.push(path);
    return path;
  };
  const lowers = [];
  for (const name of names) {
    lowers.push(
      folder.startsWith("native")
        ? { file: await copy(`${folder}/${name}.overlaybd.commit`) }
        : {
          file: await copy(`${folder}/${name}.${fs}.fs.meta`),
          targetFile: await copy(`layers/${name}.tar.gz`),
          gzipIndex: await copy(`${folder}/${name}.gzip.meta`),
        },
    );
  }
  const config = `${dir}/config.v1.json`;
  await Deno.writeTextFile(config, JSON.stringify({ lowers }));
  return { config, files };
}

for (
  const [folder, fs] of [
    ["native-lz4", "ext4"],
    ["native-zstd", "ext4"],
    ["turbo-gz", "ext4"],
    ["turbo-gz-erofs", "erofs"],
  ] as const
) {
  const needed = folder.startsWith("native")
    ? `${folder}/layer2.overlaybd.commit`
    : `${folder}/layer1.${fs}.fs.meta`;
  Deno.test({
    name: `verify of a config.v1.json reads every file of golden ${folder}`,
    ignore: golden(needed) === undefined,
    fn: () =>
      withTempDir(async (dir) => {
        const { config, files } = await goldenConfig(dir, folder, fs);
        assert.deepEqual(await findingsOf(config), []);
        for (const [i, path] of files.entries()) {
          // Targets and indexes are those of the ext4 form.
          if (fs === "erofs" && !path.endsWith(".fs.meta")) continue;
          const layer = 1 + Math.floor(i / (files.length / 2));
          const bytes = await Deno.readFile(path);
          const at = bytes.length >> 1;
          bytes[at]! ^= 1;
          await Deno.writeFile(path, bytes);
          const found = await findingsOf(config);
          assert.ok(
            found.some((line) => line.startsWith(`${layer} `)),
            `${path}: ${found.join("\n") || "nothing found"}`,
          );
          bytes[at]! ^= 1;
          await Deno.writeFile(path, bytes);
        }
      }),
  });
}

Deno.test({
  name: "verify of a config.v1.json also reads what upper layers hide",
  ignore: golden("native-lz4/layer1.overlaybd.commit") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const { files } = await goldenConfig(dir, "native-lz4");
      const [one, two] = files as [string, string];
      const config = `${dir}/twice.json`;
      // The first layer lies below itself: nothing of the lower one shows.
      const lowers = [{ file: two }, { file: one }];
      lowers[0]!.file = `${dir}/hidden`;
      await Deno.copyFile(one, lowers[0]!.file);
      await Deno.writeTextFile(config, JSON.stringify({ lowers }));
      assert.deepEqual(await findingsOf(config), []);
      const bytes = await Deno.readFile(lowers[0]!.file);
      bytes[bytes.length >> 1]! ^= 1;
      await Deno.writeFile(lowers[0]!.file, bytes);
      const found = await findingsOf(config);
      assert.match(found.join("\n"), /^1 layer: ZFile block \d+ CRC/m);
      assert.ok(found.every((line) => line.startsWith("1 ")));
    }),
});

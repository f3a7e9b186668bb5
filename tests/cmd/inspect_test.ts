/** `obd inspect`: files of every kind, images of every kind, and what is wrong with them. */

import assert from "node:assert/strict";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { crc32c } from "../../lib/compress/mod.ts";
import {
  type BuildFormat,
  type FileInspection,
  type ImageInspection,
  inspect,
  type Inspection,
  type LayoutInspection,
  openEnvironment,
  publishImage,
} from "../../lib/image/mod.ts";
import {
  concatBytes,
  FileSource,
  loadLibc,
  MemorySink,
  MemorySource,
  NotFoundError,
} from "../../lib/io/mod.ts";
import {
  inspectFile,
  readMetaBlob,
  writeMetaBlob,
} from "../../lib/layers/mod.ts";
import {
  blobPath,
  digestOf,
  file,
  hardlink,
  makeBlob,
  makeImage,
  makeIndex,
  nameOf,
  opaque,
  putImage,
  symlink,
  whiteout,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { golden, requires } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { assertOneLine, obd, withTempDir } from "./run_obd.ts";

// Opened once per process, so it must not count as a leak of the first test.
loadLibc();

const lower = {
  entries: [
    file("etc/motd", "hello\n"),
    file("data", new Uint8Array(seededBytes(300_000, 7))),
    symlink("link", "data"),
    hardlink("hard", "data"),
  ],
};
const upper = { entries: [whiteout("link"), opaque("etc"), file("new", "x")] };
const image = makeImage({ layers: [lower, upper] });

async function inspectTarget(
  target: string,
  platform?: string,
): Promise<Inspection> {
  await using environment = await openEnvironment({ workers: 1 });
  return await inspect(environment, target, { platform });
}

async function inspectImage(target: string, platform?: string) {
  const found = await inspectTarget(target, platform);
  assert.equal(found.what, "image");
  return found as ImageInspection;
}

async function inspectBytes(bytes: Uint8Array) {
  return await inspectFile(new MemorySource(bytes));
}

async function build(source: string, formats?: readonly BuildFormat[]) {
  await using environment = await openEnvironment({ workers: 1 });
  return await publishImage(environment, {
    source,
    formats,
    jobs: 1,
    virtualSize: 2 ** 30,
  });
}

function dataOf(name: string): Uint8Array<ArrayBuffer> {
  return Deno.readFileSync(golden(name)!);
}

// ---- files --------------------------------------------------------------------

/** Golden file, its kind, facts that formats.md states of it. */
const GOLDEN: [string, string, Record<string, unknown>][] = [
  ["unit/a2", "lsmt-layer", { entries: 2, zeroedSegments: 1 }],
  ["unit/a7", "lsmt-layer", { entries: 0 }],
  ["unit/plain", "lsmt-layer", {
    indexOffset: 0x2a00,
    indexEntries: 256,
    entries: 3,
    zeroedBytes: 4 * 512,
    virtualSize: 8 * 2 ** 20,
  }],
  ["unit/sld", "lsmt-layer", {
    trailerFlags: "0x6 (trailer, data, sealed)",
    indexEntries: 4,
  }],
  ["unit/d", "lsmt-writable", { headerFlags: "0x3 (header, data)" }],
  ["unit/i", "lsmt-index", { entries: 4, zeroedEntries: 1 }],
  ["unit/ti", "lsmt-index", { tags: "0, 1" }],
  ["unit/w2", "lsmt-layer", { layerKind: "warp", targetSegments: 1 }],
  ["unit/erofs.meta", "lsmt-layer", {
    layerKind: "warp",
    entries: 4,
    targetSegments: 3,
    content: "erofs",
  }],
  ["unit/zbody", "zfile", { codec: "lz4", blocks: 5, contentSize: 0x4a00 }],
  ["unit/g.idx", "gzip.meta", { entries: 1 }],
  ["unit/L.tar.gz", "gzip-layer", { members: 1, entries: 10 }],
  ["unit/W.tar", "tar-layer", {
    entries: 3,
    whiteouts: 1,
    opaqueDirectories: 1,
  }],
  ["unit/native_layer_zt", "tar-wrapper", { payloadOffset: 1536 }],
  ["turbo-gz/layer1.turboOCIv1.tar.gz", "meta-blob", {
    marker: true,
    integrity: "none",
  }],
  ["turbo-tar/layer2.turboOCIv1.tar.gz", "meta-blob", { marker: true }],
];

for (const [name, kind, facts] of GOLDEN) {
  Deno.test({
    name: `golden ${name} is a ${kind} without a problem`,
    ignore: golden(name) === undefined,
    fn: async () => {
      const found = await inspectTarget(golden(name)!) as FileInspection;
      assert.equal(found.what, "file");
      assert.equal(found.problem, undefined);
      assert.equal(found.report.kind, kind);
      const got = Object.fromEntries(
        Object.keys(facts).map((key) => [key, found.report.facts[key]]),
      );
      assert.deepEqual(got, facts);
    },
  });
}

Deno.test({
  name: "a native layer is peeled: tar, ZFile, LSMT, ext4",
  ignore: golden("unit/native_layer_zt") === undefined,
  fn: async () => {
    const report = await inspectBytes(dataOf("unit/native_layer_zt"));
    const zfile = report.parts[0]!.report;
    const lsmt = zfile.parts[0]!.report;
    assert.deepEqual(
      [report.kind, zfile.kind, lsmt.kind],
      ["tar-wrapper", "zfile", "lsmt-layer"],
    );
    assert.equal(zfile.facts.checkedBlocks, zfile.facts.blocks);
    assert.equal(lsmt.facts.content, "ext4");
    assert.equal(lsmt.facts.virtualSize, 64 * 2 ** 20);
  },
});

Deno.test("a gzip layer: digests, entries by type, whiteouts", async () => {
  const layer = image.layers[0]!;
  const report = await inspectBytes(layer.bytes);
  assert.equal(report.problem, undefined);
  assert.deepEqual(report.facts, {
    digest: layer.digest,
    diffId: layer.diffId,
    tarSize: layer.tar.length,
    members: 1,
    spans: 1,
    entries: 4,
    fileEntries: 2,
    hardlinkEntries: 1,
    symlinkEntries: 1,
    whiteouts: 0,
    opaqueDirectories: 0,
    fileBytes: 300_006,
  });
  const top = await inspectBytes(image.layers[1]!.tar);
  assert.equal(top.kind, "tar-layer");
  assert.equal(top.facts.whiteouts, 1);
  assert.equal(top.facts.opaqueDirectories, 1);
});

function trace(
  records: [op: string, layer: number, count: number, offset: number][],
): Uint8Array<ArrayBuffer> {
  const body = new Uint8Array(records.length * 24);
  const view = new DataView(body.buffer);
  for (const [i, [op, layer, count, offset]] of records.entries()) {
    view.setUint8(i * 24, op.charCodeAt(0));
    view.setUint32(i * 24 + 4, layer, true);
    view.setBigUint64(i * 24 + 8, BigInt(count), true);
    view.setBigInt64(i * 24 + 16, BigInt(offset), true);
  }
  const header = new Uint8Array(24);
  const h = new DataView(header.buffer);
  h.setUint32(0, 0xc2ef1820, true);
  h.setBigUint64(8, BigInt(body.length), true);
  h.setUint32(16, crc32c(body, 0), true);
  return concatBytes([header, body]);
}

Deno.test("a trace, alone and as an acceleration layer", async () => {
  const bytes = trace([["R", 0, 4096, 0], ["R", 2, 512, 8192]]);
  const report = await inspectBytes(bytes);
  assert.equal(report.kind, "trace");
  assert.deepEqual(report.facts, { records: 2, layers: 2, tracedBytes: 4608 });
  assert.equal(report.problem, undefined);

  const broken = bytes.slice();
  broken[30] = 9; // padding of a record counts too
  assert.equal((await inspectBytes(broken)).problem?.code, "integrity");
  const short = await inspectBytes(bytes.subarray(0, 60));
  assert.match(short.problem!.message, /data_size is 48, the file has 36/);

  const { tar } = makeImage({ layers: [{ entries: [file("trace", bytes)] }] })
    .layers[0]!;
  const layer = await inspectBytes(tar);
  assert.equal(layer.kind, "acceleration-layer");
  assert.equal(layer.parts[0]!.report.facts.records, 2);
});

Deno.test({
  name: "a raw ext4 device: superblock and inodes",
  ignore: !requires("mke2fs"),
  fn: () =>
    withTempDir(async (dir) => {
      await Deno.mkdir(`${dir}/tree/sub`, { recursive: true });
      await Deno.writeTextFile(`${dir}/tree/sub/file`, "12345");
      await Deno.symlink("file", `${dir}/tree/sub/link`);
      const { success } = await new Deno.Command("mke2fs", {
        args: ["-q", "-t", "ext4", "-L", "name"]
          .concat(["-d", `${dir}/tree`, `${dir}/raw`, "16M"]),
        env: { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin` },
      }).output();
      assert.ok(success);
      const { report } = await inspectTarget(`${dir}/raw`) as FileInspection;
      assert.equal(report.kind, "ext4");
      assert.equal(report.problem, undefined);
      assert.equal(report.facts.label, "name");
      assert.equal(report.facts.fileSystemSize, 16 * 2 ** 20);
      assert.equal(report.facts.fileInodes, 1);
      assert.equal(report.facts.symlinkInodes, 1);
      assert.equal(report.facts.directoryInodes, 3, "root, lost+found, sub");
      assert.equal(report.facts.fileBytes, 5);

      // A group descriptor that its checksum does not fit.
      const raw = await Deno.readFile(`${dir}/raw`);
      raw[1024 + 0x78] = raw[1024 + 0x78]! ^ 1;
      const bad = await inspectBytes(raw);
      assert.equal(bad.kind, "ext4");
      assert.equal(bad.problem?.code, "integrity");
    }),
});

Deno.test("foreign compressions are named, and are no damage", async () => {
  const { tar } = image.layers[0]!;
  const zstd = await inspectBytes(new Uint8Array(zstdCompressSync(tar)));
  // A release that reads zstd layers reports one; another one says so.
  assert.ok(["foreign-layer", "zstd-layer"].includes(zstd.kind), zstd.kind);
  assert.equal(zstd.problem, undefined);
  const xz = Uint8Array.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 1, 2, 3);
  const report = await inspectBytes(xz);
  assert.equal(report.kind, "foreign-layer");
  assert.match(report.title, /xz/);
  assert.equal(report.facts.digest, digestOf(xz));
});

/** Files that must be found broken: bytes, code, message. */
const BROKEN: [string, () => Uint8Array, string, RegExp][] = [
  [
    "random bytes",
    () => new Uint8Array(seededBytes(5000, 3)),
    "unsupported",
    /nothing that obd knows/,
  ],
  ["one byte", () => Uint8Array.of(7), "unsupported", /nothing that obd/],
  [
    "a truncated gzip layer",
    () => image.layers[0]!.bytes.subarray(0, 5000),
    "format",
    /./,
  ],
  [
    "a gzip layer with a flipped bit",
    () => flipped(image.layers[0]!.bytes, 200_000),
    "format|integrity",
    /./,
  ],
  [
    "a gzip file that is no tar",
    () => new Uint8Array(gzipSync(new Uint8Array(2000).fill(65))),
    "format",
    /tar header at offset 0/,
  ],
  [
    "a tar with a bad checksum",
    () => flipped(image.layers[1]!.tar, 1024 + 20),
    "format",
    /checksum/,
  ],
  [
    "a tar that ends in a body",
    () => image.layers[0]!.tar.subarray(0, 100_000),
    "format",
    /./,
  ],
];

for (const [name, bytes, code, message] of BROKEN) {
  Deno.test(`broken: ${name}`, async () => {
    const report = await inspectBytes(bytes());
    assert.ok(report.problem, JSON.stringify(report));
    assert.match(report.problem.code, new RegExp(`^(${code})$`));
    assert.match(report.problem.message, message);
  });
}

/** Golden files with damage. */
const DAMAGED: [
  name: string,
  change: (bytes: Uint8Array) => Uint8Array,
  code: string,
  message: RegExp,
][] = [
  ["unit/zbody", (b) => flipped(b, 600), "integrity", /ZFile block 0 CRC/],
  // A block that opening the layer does not touch.
  [
    "unit/native_layer_zt",
    (b) => flipped(b, 20_000),
    "integrity",
    /ZFile block \d\d+ CRC/,
  ],
  ["unit/zbody", (b) => flipped(b, 0x3a2), "integrity", /jump table CRC/],
  ["unit/zbody", (b) => flipped(b, 48), "integrity", /header digest/],
  ["unit/zbody", (b) => b.subarray(0, 700), "format", /ZFile/],
  ["unit/plain", (b) => b.subarray(0, 10_000), "format", /LSMT trailer/],
  ["unit/plain", (b) => flipped(b, 0x2a00 + 9), "format", /LSMT index/],
  ["unit/a8", (b) => b.subarray(0, 4096), "format", /LSMT layer.*size/],
  ["unit/a8", (b) => b.subarray(0, 100), "format", /less than a header/],
  ["unit/w1", (b) => b, "format", /LSMT index/],
  ["unit/g.idx", (b) => flipped(b, 33), "integrity", /gzip\.meta header CRC/],
  ["unit/g.idx", (b) => b.subarray(0, 390), "format", /index_file_size/],
  [
    "turbo-gz/layer2.turboOCIv1.tar.gz",
    (b) => b.subarray(0, b.length - 3000),
    "format",
    /meta blob/,
  ],
];

for (const [name, change, code, message] of DAMAGED) {
  Deno.test({
    name: `broken: ${name} ${message}`,
    ignore: golden(name) === undefined,
    fn: () =>
      withTempDir(async (dir) => {
        await Deno.writeFile(`${dir}/file`, change(dataOf(name)));
        const found = await inspectTarget(`${dir}/file`);
        assert.ok(found.problem, JSON.stringify(found));
        assert.equal(found.problem.code, code);
        assert.match(found.problem.message, message);
      }),
  });
}

function flipped(bytes: Uint8Array, at: number): Uint8Array {
  const copy = bytes.slice();
  copy[at] = copy[at]! ^ 1;
  return copy;
}

Deno.test({
  name: "no truncation and no flipped byte makes it crash",
  ignore: golden("unit/native_layer_zt") === undefined,
  fn: async () => {
    const names = ["unit/native_layer_zt", "unit/zbody", "unit/g.idx"]
      .concat(["unit/W.tar", "unit/i", "turbo-tar/layer2.turboOCIv1.tar.gz"]);
    for (const name of names) {
      const bytes = dataOf(name);
      for (let i = 0; i < 25; i++) {
        const at = (i * 7919) % bytes.length;
        await inspectBytes(bytes.subarray(0, at));
        await inspectBytes(flipped(bytes, Math.floor(at / (1 + i % 7))));
      }
    }
  },
});

Deno.test("a blob of a layout is checked against its name", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const path = blobPath(dir, image.layers[0]!.digest);
    assert.equal((await inspectTarget(path)).problem, undefined);
    await Deno.writeFile(path, image.layers[1]!.bytes);
    const found = await inspectTarget(path);
    assert.equal(found.problem?.code, "integrity");
    assert.match(found.problem.message, /^Digest of the blob is sha256:/);
  }));

// ---- layouts --------------------------------------------------------------------

Deno.test("a layout: its images, what is unreferenced, what is missing", () =>
  withTempDir(async (dir) => {
    const arm = makeImage({
      layers: [upper],
      platform: { os: "linux", architecture: "arm64" },
    });
    const index = makeIndex([image, arm]);
    await writeLayout(dir, [
      { tag: "v1", image },
      { tag: "all", image: index },
    ]);
    await Deno.writeTextFile(`${dir}/blobs/sha256/${"0".repeat(64)}`, "x");
    const found = await inspectTarget(dir) as LayoutInspection;
    assert.equal(found.what, "layout");
    assert.equal(found.problem, undefined);
    assert.equal(found.unreferenced, 1);
    const [v1, all] = found.entries;
    assert.deepEqual([v1!.tag, v1!.kind, v1!.layers], ["v1", "plain", 2]);
    assert.equal(all!.kind, "index");
    assert.deepEqual(all!.entries!.map((e) => e.platform), [
      "linux/amd64",
      "linux/arm64",
    ]);

    await Deno.remove(blobPath(dir, image.layers[0]!.digest));
    const broken = await inspectTarget(dir) as LayoutInspection;
    assert.equal(broken.problem?.code, "not-found");
    assert.equal(broken.entries[0]!.problem?.code, "not-found");
    assert.equal(broken.entries[1]!.entries![1]!.problem, undefined);
  }));

Deno.test("a directory that is no layout, a name that is nothing", () =>
  withTempDir(async (dir) => {
    await assert.rejects(inspectTarget(dir), /is no OCI layout/);
    await assert.rejects(inspectTarget(`oci:${dir}/none:v1`), NotFoundError);
    await assert.rejects(inspectTarget("/dev/null"), /neither a regular file/);
  }));

// ---- images ---------------------------------------------------------------------

Deno.test("a plain image without a meta image", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const before = [...Deno.readDirSync(`${dir}/blobs/sha256`)].length;
    const found = await inspectImage(`oci:${dir}:v1`);
    assert.equal(found.kind, "plain");
    assert.equal(found.problem, undefined);
    assert.equal(found.manifest?.digest, image.manifest.digest);
    assert.equal(found.config?.platform, "linux/amd64");
    assert.deepEqual(
      found.layers.map((l) => [l.kind, l.digest, l.present, l.diffId]),
      image.layers.map((l) => ["plain", l.digest, true, l.diffId]),
    );
    assert.deepEqual(found.meta?.ways, [
      { way: "digest" },
      { way: "tag" },
      { way: "referrer" },
    ]);
    assert.equal(found.stack, undefined);
    const after = [...Deno.readDirSync(`${dir}/blobs/sha256`)].length;
    assert.equal(after, before, "inspecting writes nothing");
  }));

Deno.test("a plain image with its meta image, and the meta image itself", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const report = await build(`oci:${dir}:v1`);
    const { digest } = report.platforms[0]!.meta;
    const plain = await inspectImage(`oci:${dir}:v1`);
    assert.equal(plain.problem, undefined);
    assert.equal(plain.meta?.used?.digest, digest);
    assert.deepEqual(plain.meta?.ways.map((w) => w.digest), [
      undefined,
      digest,
      digest,
    ]);
    assert.equal(plain.referrers?.[0]?.digest, digest);
    const meta = await inspectImage(`oci:${dir}:v1-obd`);
    assert.equal(meta.kind, "turbo");
    assert.equal(meta.subject?.digest, image.manifest.digest);
    for (const found of [plain, meta]) {
      assert.equal(found.device?.size, 2 ** 30);
      assert.equal(found.device?.integrity, "spans");
      assert.equal(found.layers.length, 2);
      for (const [i, layer] of found.layers.entries()) {
        assert.equal(layer.kind, "turbo");
        assert.equal(layer.digest, image.layers[i]!.digest);
        assert.equal(layer.size, image.layers[i]!.size);
        assert.equal(layer.present, true);
        assert.equal(layer.integrity, "spans");
        assert.deepEqual(layer.meta?.parts.map((p) => p.name), [
          "ext4.fs.meta",
          "gzip.meta",
          "obd.spans",
        ]);
        assert.equal(layer.map?.virtualSize, 2 ** 30);
        assert.ok(Number(layer.map?.entries) > 0);
        assert.equal(
          layer.meta!.size,
          report.platforms[0]!.layers[i]!.metaSize,
        );
      }
      const [first] = found.stack!.layers;
      assert.equal(first!.data.kind, "zfile");
      assert.equal(first!.target?.kind, "gunzip");
      assert.equal(first!.target?.inner?.[0]?.kind, "cache");
      assert.equal(found.stack!.merged.kind, "lsmt");
    }
  }));

Deno.test("an overlaybd-native image", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const report = await build(`oci:${dir}:v1`, ["overlaybd"]);
    const { digest } = report.platforms[0]!.meta;
    const found = await inspectImage(`oci:${dir}@${digest}`);
    assert.equal(found.kind, "native");
    assert.equal(found.problem, undefined);
    assert.equal(found.layers.length, 2);
    for (const layer of found.layers) {
      assert.equal(layer.kind, "native");
      assert.equal(layer.integrity, "block-crc");
      assert.equal(layer.present, true);
      assert.equal(layer.map?.layerKind, "native");
      const file = await inspectTarget(blobPath(dir, layer.digest));
      assert.equal((file as FileInspection).report.kind, "tar-wrapper");
      assert.equal(file.problem, undefined);
    }
    assert.equal(found.device?.integrity, "block-crc");
    const [first] = found.stack!.layers;
    assert.equal(first!.target, undefined);
    assert.equal(first!.data.kind, "zfile");

    await Deno.remove(blobPath(dir, found.layers[0]!.digest));
    const broken = await inspectImage(`oci:${dir}@${digest}`);
    assert.deepEqual(broken.layers.map((l) => l.present), [false, true]);
    assert.equal(broken.problem?.code, "not-found");
  }));

Deno.test("in a registry: a missing target, a tag that stayed behind, a planted referrer", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const ref = `${server.host}/app:v1`;
  await build(ref);
  const found = await inspectImage(ref);
  assert.equal(found.problem, undefined);
  assert.match(found.stack!.layers[0]!.target!.kind, /gunzip/);
  const writes = server.requests.filter((r) => !/^(GET|HEAD)$/.test(r.method));
  await inspectImage(ref);
  assert.equal(
    server.requests.filter((r) => !/^(GET|HEAD)$/.test(r.method)).length,
    writes.length,
    "inspecting pushes nothing",
  );

  // The tag moves on: its meta image is of another source.
  const next = makeImage({ layers: [upper] });
  await putImage(server, "app", "v1", next);
  const moved = await inspectImage(ref);
  assert.equal(moved.problem, undefined);
  assert.equal(moved.meta?.used, undefined);
  assert.equal(moved.meta?.ignored.length, 1);
  assert.match(moved.meta!.ignored[0]!, /v1-obd.*: its subject is sha256:/);

  // Somebody's referrer that claims to be the meta image.
  const config = makeBlob("application/vnd.oci.image.config.v1+json", {
    rootfs: { type: "layers", diff_ids: [] },
  });
  await server.putBlob("app", config.bytes);
  const planted = {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    artifactType: "application/vnd.containerd.overlaybd.turbo.v1+json",
    config: nameOf(config),
    layers: [],
    subject: nameOf(next.manifest),
  };
  const { digest } = server.putManifest(
    "app",
    `sha256-${next.manifest.digest.slice(7)}-obd`,
    planted,
    planted.mediaType,
  );
  const tricked = await inspectImage(ref);
  assert.equal(tricked.meta?.used, undefined, digest);
  assert.ok(
    tricked.meta?.ignored.some((line) => /it is no meta image/.test(line)),
    JSON.stringify(tricked.meta),
  );

  // A target that the registry no longer has.
  const meta = `${server.host}/app:v1-obd`;
  server.removeBlob("app", image.layers[0]!.digest);
  const gone = await inspectImage(meta);
  assert.deepEqual(gone.layers.map((l) => l.present), [false, true]);
  assert.equal(gone.problem?.code, "not-found");
  assert.match(gone.problem.message, /^Layer 1 \(sha256:.*\) is not in 127/);
});

Deno.test("a meta blob that was changed in storage", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    await build(`oci:${dir}:v1`);
    const good = await inspectImage(`oci:${dir}:v1-obd`);
    const path = blobPath(dir, good.layers[1]!.meta!.digest);
    await Deno.writeFile(path, flipped(await Deno.readFile(path), 100));
    const found = await inspectImage(`oci:${dir}:v1-obd`);
    assert.equal(found.layers[0]!.problem, undefined);
    assert.equal(found.layers[1]!.problem?.code, "integrity");
    assert.equal(found.problem?.code, "integrity");
  }));

Deno.test("members of a meta blob that do not fit each other", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    await build(`oci:${dir}:v1`);
    const found = await inspectImage(`oci:${dir}:v1-obd`);
    const members = await Promise.all(found.layers.map(async (layer) => {
      const path = blobPath(dir, layer.meta!.digest);
      await using source = await FileSource.open(path);
      return (await readMetaBlob(source)).members;
    }));
    const blobOf = async (parts: ReadonlyMap<string, Uint8Array>) => {
      const sink = new MemorySink();
      await writeMetaBlob(
        sink,
        [...parts].map(([name, content]) => ({ name, content })),
      );
      return await inspectBytes(sink.bytes());
    };
    const [first, second] = members as [
      Map<string, Uint8Array>,
      Map<string, Uint8Array>,
    ];
    assert.equal((await blobOf(first)).problem, undefined);
    const without = new Map(first);
    without.delete("gzip.meta");
    assert.match(
      (await blobOf(without)).problem!.message,
      /needs the member gzip\.meta/,
    );
    const mixed = new Map(first);
    mixed.set("gzip.meta", second.get("gzip.meta")!);
    assert.match(
      (await blobOf(mixed)).problem!.message,
      /spans are not those of gzip\.meta/,
    );
    const bare = new Map([["obd.spans", first.get("obd.spans")!]]);
    assert.match(
      (await blobOf(bare)).problem!.message,
      /ext4\.fs\.meta is missing/,
    );
  }));

Deno.test("an index: the platform that was asked for", () =>
  withTempDir(async (dir) => {
    const arm = makeImage({
      layers: [upper],
      platform: { os: "linux", architecture: "arm64", variant: "v8" },
    });
    await writeLayout(dir, [{ tag: "v1", image: makeIndex([image, arm]) }]);
    const found = await inspectImage(`oci:${dir}:v1`, "linux/arm64");
    assert.equal(found.manifest?.digest, arm.manifest.digest);
    assert.deepEqual(found.index?.platforms, ["linux/amd64", "linux/arm64/v8"]);
    await assert.rejects(
      inspectImage(`oci:${dir}:v1`, "linux/s390x"),
      /linux\/s390x/,
    );
  }));

Deno.test({
  name: "a config.v1.json of golden TurboOCI layers",
  ignore: golden("turbo-gz/layer1.ext4.fs.meta") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const lowers = [1, 2].map((i) => ({
        file: golden(`turbo-gz/layer${i}.ext4.fs.meta`),
        targetFile: golden(`layers/layer${i}.tar.gz`),
        gzipIndex: golden(`turbo-gz/layer${i}.gzip.meta`),
      }));
      const path = `${dir}/config.v1.json`;
      await Deno.writeTextFile(path, JSON.stringify({ lowers }));
      const found = await inspectImage(path);
      assert.equal(found.kind, "config");
      assert.equal(found.problem, undefined);
      assert.equal(found.device?.size, 2 ** 30);
      assert.equal(found.device?.integrity, "none");
      assert.equal(found.stack?.layers.length, 2);
      assert.equal(found.layers[0]!.kind, "turbo");

      lowers[1]!.targetFile = `${dir}/none`;
      await Deno.writeTextFile(path, JSON.stringify({ lowers }));
      const broken = await inspectImage(path);
      assert.match(broken.problem!.message, /lowers\.1: The target is not the/);
    }),
});

// ---- the command ------------------------------------------------------------------

Deno.test("the command: text, JSON, exit codes", () =>
  withTempDir(async (dir) => {
    await writeLayout(`${dir}/in`, [{ tag: "v1", image }]);
    const ref = `oci:${dir}/in:v1`;
    await build(ref);
    const text = await obd(["inspect", ref]);
    assert.equal(text.code, 0, text.stderr);
    assert.equal(text.stderr, "");
    for (
      const pattern of [
        /^kind +plain image/m,
        /^layer 1 +turbo, .*, present, integrity spans$/m,
        /ext4\.fs\.meta .*, gzip\.meta .*, obd\.spans /,
        /^meta +sha256:[0-9a-f]{64} would be used$/m,
        /^device +1\.00 GiB/m,
        /^ {2}layer 1 +meta +memory\(.*\) > zfile\(.*\) +┐$/m,
        /^ +content +file\(sha256:.*\) > cache\(.*\) > gunzip\(.*each checked\) +┴ lsmt$/m,
        /^ {2}merged +lsmt\(.*\) > nbd$/m,
      ]
    ) assert.match(text.stdout, pattern);

    const good = await obd(["inspect", "--json", `${dir}/in`]);
    assert.equal(good.code, 0);
    assert.equal(JSON.parse(good.stdout).ok, true);

    await Deno.remove(blobPath(`${dir}/in`, image.layers[1]!.digest));
    const json = await obd(["inspect", "--json", ref]);
    assert.equal(json.code, 1);
    const report = JSON.parse(json.stdout);
    assert.equal(report.ok, false);
    assert.equal(report.problem.code, "not-found");
    assertOneLine(json, /^obd: Layer 2 .* is not in oci:/);
    const broken = await obd(["inspect", ref]);
    assert.equal(broken.code, 1);
    assert.match(broken.stdout, /^layer 2 +turbo, .*, MISSING/m);
    assert.match(broken.stdout, /^ +BROKEN \(not-found\): Layer 2/m);
    assertOneLine(broken, /^obd: Layer 2/);
  }));

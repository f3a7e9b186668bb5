/** `obd inspect` on files of every kind, whole and broken. */

import assert from "node:assert/strict";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { crc32c } from "../../lib/compress/mod.ts";
import type { FileInspection } from "../../lib/image/mod.ts";
import { concatBytes } from "../../lib/io/mod.ts";
import {
  blobPath,
  digestOf,
  file,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { golden, requires } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import {
  dataOf,
  flipped,
  image,
  inspectBytes,
  inspectTarget,
} from "./inspect_harness.ts";
import { withTempDir } from "./run_obd.ts";

/** Golden file, its kind, facts that its maker states of it. */
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

/**
 * Every file of `golden/unit` opens, or is refused with the structure, the
 * field and what was found. A file that the table does not know fails.
 */

import assert from "node:assert/strict";
import { gunzipSync } from "node:zlib";
import { type ByteSource, FileSource, FormatError } from "../../lib/io/mod.ts";
import {
  firstProblem,
  inspectFile,
  type LayerKind,
  openLayer,
  readGzipMeta,
} from "../../lib/layers/mod.ts";
import { openImage } from "../../lib/image/mod.ts";
import { golden } from "../testutil/requires.ts";
import { testEnvironment, withTempDir } from "../image/helpers.ts";

/** What the real tools make of a file (`formats` §13), and obd has to. */
interface Wish {
  /** What `obd inspect` calls it, outermost first. */
  kind: string;
  /** What is wrong with it as a file of its own. */
  problem?: RegExp;
  /** As a layer: the kind that it opens as, with its entries. */
  opens?: [LayerKind, entries: number];
  /** As a layer: why not. */
  refused?: RegExp;
}

const NOT_SEALED = /Bad LSMT layer.*: trailer is missing: .* never sealed/;
const NO_LAYER =
  /Bad overlaybd layer: content starts neither with a ustar header/;

const WISHES: Record<string, Wish> = {
  "L.meta": {
    kind: "tar-layer",
    problem: /Bad tar header at offset 2560: checksum is 012125/,
    refused: /content of its tar wrapper starts/,
  },
  "L.tar.gz": { kind: "gzip-layer", refused: NO_LAYER },
  "W.tar": { kind: "tar-layer", refused: /content of its tar wrapper starts/ },
  a2: { kind: "lsmt-layer", opens: ["native", 2] },
  a7: { kind: "lsmt-layer", opens: ["native", 0] },
  a8: { kind: "lsmt-layer", opens: ["native", 1] },
  b0: { kind: "lsmt-layer", opens: ["native", 1] },
  b1: { kind: "lsmt-layer", opens: ["native", 2] },
  b2: { kind: "lsmt-layer", opens: ["native", 1] },
  d: { kind: "lsmt-writable", refused: NOT_SEALED },
  "erofs.meta": { kind: "lsmt-layer", opens: ["warp", 4] },
  "erofs2.meta": { kind: "lsmt-layer", opens: ["warp", 3] },
  ext4_64: { kind: "zfile > lsmt-layer", opens: ["native", 8323] },
  "fs.meta": { kind: "lsmt-layer", opens: ["warp", 8] },
  "g.idx": { kind: "gzip.meta", refused: NO_LAYER },
  i: { kind: "lsmt-index", refused: /Bad LSMT layer: size is 4160/ },
  native_layer_zt: {
    kind: "tar-wrapper > zfile > lsmt-layer",
    opens: ["native", 2],
  },
  plain: { kind: "lsmt-layer", opens: ["native", 3] },
  sld: { kind: "lsmt-layer", opens: ["native", 4] },
  sps: { kind: "lsmt-layer", opens: ["native", 1] },
  "t.idx": { kind: "gzip.meta", refused: NO_LAYER },
  tgt: {
    kind: "unknown",
    problem: /nothing that obd knows/,
    refused: NO_LAYER,
  },
  ti: { kind: "lsmt-index", refused: /Bad LSMT layer: size is 5952/ },
  tw_gnu: { kind: "tar-layer", refused: NO_LAYER },
  tw_pax: {
    kind: "tar-wrapper > zfile > lsmt-layer",
    opens: ["native", 1],
  },
  tw_ustar: {
    kind: "tar-wrapper > zfile > lsmt-layer",
    opens: ["native", 1],
  },
  "txt.gz": {
    kind: "gzip-layer",
    problem: /Bad tar header at offset 0: checksum/,
    refused: NO_LAYER,
  },
  w1: {
    kind: "lsmt-layer",
    problem: /Bad LSMT index at offset 4096: entry 0 \(0\+8→4\) maps sectors/,
    refused: /entry 0 \(0\+8→4\) .*\(all entries are remote/,
  },
  w2: { kind: "lsmt-layer", opens: ["warp", 2] },
  z4: { kind: "zfile > lsmt-layer", opens: ["native", 1] },
  zbody: { kind: "zfile > lsmt-layer", opens: ["native", 3] },
  zgarb: { kind: "zfile > lsmt-layer", opens: ["native", 1] },
  zgrp: {
    kind: "zfile",
    problem: /Bad ZFile jump table: block 0 is 65000 bytes/,
    refused: /Bad ZFile jump table: block 0 is 65000 bytes/,
  },
  znodig: { kind: "zfile > lsmt-layer", opens: ["native", 1] },
  zs4: { kind: "zfile > lsmt-layer", opens: ["native", 1] },
  zt: { kind: "tar-wrapper > zfile > lsmt-layer", opens: ["native", 3] },
  ztr: { kind: "zfile > lsmt-layer", opens: ["native", 1] },
};

const unit = golden("unit");
const files = unit ? [...Deno.readDirSync(unit)].map((e) => e.name) : [];

Deno.test({
  name: "golden unit: every file that is there is in the table",
  ignore: unit === undefined,
  fn: () => {
    assert.deepEqual(files.filter((name) => !(name in WISHES)), []);
    assert.ok(files.length > 0);
  },
});

for (const name of files.sort()) {
  const wish = WISHES[name];
  if (!wish) continue;
  Deno.test(`golden unit ${name}: ${wish.opens ? "opens" : "is refused"}`, async () => {
    await using file = await FileSource.open(`${unit}/${name}`);
    const report = await inspectFile(file);
    const kinds = [];
    for (
      let part: typeof report | undefined = report;
      part;
      part = part.parts[0]?.report
    ) kinds.push(part.kind);
    assert.equal(kinds.join(" > "), wish.kind);
    const problem = firstProblem(report)?.message;
    if (wish.problem) assert.match(problem ?? "", wish.problem);
    else assert.equal(problem, undefined);
    const blob = await FileSource.open(`${unit}/${name}`);
    const kind = wish.opens?.[0] ?? (name.startsWith("w") ? "warp" : "native");
    if (wish.opens) {
      const layer = await openLayer(blob, kind);
      assert.deepEqual([layer.kind, layer.entryCount], wish.opens);
      await layer.data[Symbol.asyncDispose]();
      return;
    }
    await assert.rejects(openLayer(blob, kind), (error: unknown) => {
      assert.ok(error instanceof FormatError, String(error));
      assert.match(error.message, wish.refused!);
      assert.ok(error.format !== "" && error.field !== "");
      return true;
    });
  });
}

Deno.test({
  name: "golden unit: gzip indexes belong to one blob size",
  ignore: golden("unit/t.idx") === undefined,
  fn: async () => {
    const size = (await Deno.stat(`${unit}/txt.gz`)).size;
    const index = await Deno.readFile(`${unit}/t.idx`);
    assert.equal(readGzipMeta(index, size).checkpoints.count, 10);
    assert.throws(() => readGzipMeta(index, size + 1), /gzip_file_size|size/);
    const one = await Deno.readFile(`${unit}/g.idx`);
    const { size: other } = await Deno.stat(`${unit}/L.tar.gz`);
    assert.equal(readGzipMeta(one, other).checkpoints.count, 1);
  },
});

/** The bytes of a device that a `config.v1.json` describes. */
async function deviceOf<T>(
  config: unknown,
  work: (device: ByteSource) => Promise<T>,
): Promise<T> {
  let result: T;
  await withTempDir(async (dir) => {
    const path = `${dir}/config.v1.json`;
    await Deno.writeTextFile(path, JSON.stringify(config));
    await using environment = await testEnvironment();
    await using image = await openImage(environment, path);
    result = await work(image.source);
  });
  return result!;
}

Deno.test({
  name: "golden unit: EROFS layers stack at the level of blocks",
  ignore: golden("unit/erofs2.meta") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const targetFile = `${dir}/L.tar`;
      const tar = gunzipSync(await Deno.readFile(`${unit}/L.tar.gz`));
      await Deno.writeFile(targetFile, tar);
      const lower = { file: `${unit}/erofs.meta`, targetFile };
      const upper = {
        file: `${unit}/erofs2.meta`,
        targetFile: `${unit}/W.tar`,
      };
      const blocks = (device: ByteSource) =>
        device.pread(head, 1024).then(() =>
          new DataView(head.buffer).getUint32(36, true)
        );
      const head = new Uint8Array(128);
      const one = await deviceOf({ lowers: [lower] }, async (device) => {
        const count = await blocks(device);
        assert.equal(head.subarray(0, 4).toHex(), "e2e1f5e0");
        // Entry 3 of the map: sectors 72+5860 are tar sectors 45+5860.
        const bytes = new Uint8Array(5860 * 512);
        await device.pread(bytes, 72 * 512);
        assert.ok(
          bytes.every((b, i) => b === (tar[45 * 512 + i] ?? 0)),
          "bodies come from the tar",
        );
        return count;
      });
      // The upper layer wrote a superblock over the lower one's: more blocks.
      const two = await deviceOf({ lowers: [lower, upper] }, blocks);
      assert.ok(two > one, `${two} > ${one}`);
    }),
});

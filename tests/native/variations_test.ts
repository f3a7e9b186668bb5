/** Layers in forms that overlaybd's reader takes and its tools seldom write, by writers that share nothing with lib/. */

import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { openImage, verifyImage } from "../../lib/image/mod.ts";
import { concatBytes, FileSource, readBytes } from "../../lib/io/mod.ts";
import { firstProblem, inspectFile } from "../../lib/layers/mod.ts";
import { lsmtImage, type RawEntry } from "../testutil/lsmt_image.ts";
import { slowCrc32c } from "../testutil/overlaybd_rules.ts";
import { Random } from "../testutil/random_layers.ts";
import { AppendLayer } from "../testutil/writable_layer.ts";
import { OBD, run, testEnvironment, withTempDir } from "../image/helpers.ts";

type Bytes = Uint8Array<ArrayBuffer>;

interface ZFileForm {
  codec: "lz4" | "zstd";
  blockSize: number;
  /** Header that is complete, as overlaybd-commit writes it; else the trailer tells. */
  overwrite?: boolean;
  /** No digests at all, as in the oldest files. */
  bare?: boolean;
  /** No checksums behind blocks. */
  unchecked?: boolean;
  /** Bytes between the header and the first block. */
  dictionary?: number;
  /** Garbage in bits and bytes that mean nothing. */
  garbage?: boolean;
}

/** LZ4 of literals only: valid, and nobody's habit. */
function literals(bytes: Uint8Array): Uint8Array {
  const head = [Math.min(bytes.length, 15) << 4];
  for (let rest = bytes.length - 15; rest >= 0; rest -= 255) {
    head.push(Math.min(rest, 255));
  }
  return concatBytes([Uint8Array.from(head), bytes]);
}

/** A ZFile by the letter of the format. */
function zfile(content: Uint8Array, form: ZFileForm): Bytes {
  const { codec, blockSize, dictionary = 0, unchecked, bare } = form;
  const blocks: Uint8Array[] = [new Uint8Array(dictionary).fill(0xdd)];
  const lengths: number[] = [];
  for (let at = 0; at < content.length; at += blockSize) {
    const piece = content.subarray(at, at + blockSize);
    const packed = codec === "lz4"
      ? literals(piece)
      // In one buffer: for a second one the runtime appends an empty frame.
      : new Uint8Array(zlib.zstdCompressSync(piece, { chunkSize: 1 << 17 }));
    const crc = new Uint8Array(unchecked ? 0 : 4);
    if (!unchecked) {
      new DataView(crc.buffer).setUint32(0, slowCrc32c(packed, 100007), true);
    }
    blocks.push(packed, crc);
    lengths.push(packed.length + crc.length);
  }
  const data = concatBytes(blocks);
  const table = new Uint8Array(lengths.length * 4);
  lengths.forEach((n, i) =>
    new DataView(table.buffer).setUint32(i * 4, n, true)
  );
  const block = (flags: number, isComplete: boolean) => {
    const bytes = new Uint8Array(512);
    if (form.garbage) bytes.fill(0x77, 96);
    const view = new DataView(bytes.buffer);
    bytes.set(Uint8Array.fromHex("5a46696c65000100"));
    bytes.set(new TextEncoder().encode("tuji.yyf@Alibaba"), 8);
    view.setUint32(24, 96, true);
    const unused = form.garbage ? 0x7ffea4640b00n : 0n;
    view.setBigUint64(32, BigInt(flags | (bare ? 0 : 16)) | unused, true);
    if (isComplete) {
      view.setBigUint64(40, BigInt(512 + data.length), true);
      view.setBigUint64(48, BigInt(lengths.length), true);
      view.setBigUint64(56, BigInt(content.length), true);
      view.setUint32(64, bare ? 0 : slowCrc32c(table, 0), true);
    }
    view.setUint32(72, blockSize, true);
    bytes[76] = codec === "lz4" ? 1 : 2;
    view.setUint32(84, dictionary, true);
    bytes[88] = unchecked ? 0 : 1;
    if (!bare) view.setUint32(28, slowCrc32c(bytes, 0), true);
    return bytes;
  };
  const overwrite = form.overwrite ?? false;
  return concatBytes([
    block(overwrite ? 0xb : 3, overwrite),
    data,
    table,
    block(6, true),
  ]) as Bytes;
}

/** A tar of one ustar header as Go's archive/tar writes it, with the size in it. */
function goTar(payload: Uint8Array, zeroBlocks: number): Bytes {
  const header = new Uint8Array(512);
  const put = (at: number, text: string) =>
    header.set(new TextEncoder().encode(text), at);
  put(0, "overlaybd.commit");
  put(100, "0000444\x000000000\x000000000\0");
  put(124, `${payload.length.toString(8).padStart(11, "0")}\x0000000000000\0`);
  put(148, "        ");
  put(156, "0");
  put(257, "ustar\x0000");
  const sum = header.reduce((a, b) => a + b, 0);
  put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  const padding = (512 - payload.length % 512) % 512;
  return concatBytes([
    header,
    payload,
    new Uint8Array(padding + zeroBlocks * 512),
  ]) as Bytes;
}

/** A layer of random extents of a device, and what a reader shows of it. */
function randomLayer(
  random: Random,
  shadow: Uint8Array,
  raw: { virtualSize?: number } = {},
): Bytes {
  const entries: RawEntry[] = [];
  const data: Uint8Array[] = [];
  let moffset = 8;
  const sectors = shadow.length / 512;
  for (let at = random.below(40); at < sectors - 80;) {
    const length = 1 + random.below(60);
    const zeroed = random.below(5) === 0;
    // Any place in the data area will do for zeros; the tag means nothing.
    entries.push({
      offset: at,
      length,
      moffset: zeroed ? 8 : moffset,
      zeroed,
      tag: random.below(200),
    });
    const bytes = zeroed ? new Uint8Array(length * 512) : random.bytes(
      length * 512,
    );
    shadow.set(bytes, at * 512);
    if (!zeroed) {
      data.push(bytes);
      moffset += length;
    }
    at += length + random.below(90);
  }
  return lsmtImage({
    virtualSize: raw.virtualSize ?? shadow.length,
    data: concatBytes(data),
    entries,
  }) as Bytes;
}

const FORMS: [name: string, wrap: (lsmt: Bytes) => Bytes][] = [
  ["bare LSMT", (b) => b],
  ["bare LSMT in Go's tar", (b) => goTar(b, 2)],
  [
    "zstd of 64 KiB that compress",
    (b) => zfile(b, { codec: "zstd", blockSize: 65536 }),
  ],
  ["LZ4, trailer tells", (b) => zfile(b, { codec: "lz4", blockSize: 4096 })],
  [
    "LZ4 of 32 KiB, header tells, cut off behind the table",
    (b) => {
      const file = zfile(b, {
        codec: "lz4",
        blockSize: 32768,
        overwrite: true,
      });
      return file.subarray(0, file.length - 512) as Bytes;
    },
  ],
  [
    "zstd of 16 KiB, four zero blocks behind",
    (b) =>
      goTar(zfile(b, { codec: "zstd", blockSize: 16384, overwrite: true }), 4),
  ],
  [
    "an old file: no digests, garbage in unused bits",
    (b) =>
      zfile(b, { codec: "lz4", blockSize: 4096, bare: true, garbage: true }),
  ],
  [
    "no checksums of blocks",
    (b) => zfile(b, { codec: "zstd", blockSize: 8192, unchecked: true }),
  ],
  [
    "room for a dictionary",
    (b) => zfile(b, { codec: "lz4", blockSize: 8192, dictionary: 1000 }),
  ],
];

Deno.test("a stack of layers in every form shows what was written last", async () => {
  await withTempDir(async (dir) => {
    const random = new Random(4242);
    // No multiple of 4096, nor of anything but the sector.
    const shadow = new Uint8Array(1_234_944 + 512);
    const lowers: { file: string }[] = [];
    for (const [i, [, wrap]] of FORMS.entries()) {
      const file = `${dir}/${i}`;
      const isTop = i === FORMS.length - 1;
      // Only the bottom tells a size, and the top one that counts.
      const virtualSize = i === 0 ? 1 << 20 : isTop ? shadow.length : 0;
      const layer = randomLayer(random, shadow, { virtualSize });
      await Deno.writeFile(file, wrap(layer));
      lowers.push({ file });
    }
    const upper = { data: `${dir}/data`, index: `${dir}/index` };
    {
      using layer = new AppendLayer(upper, 0, lowers.length);
      for (let i = 0; i < 30; i++) {
        const at = random.below(2000) * 512;
        const bytes = random.bytes(512 * (1 + random.below(9)));
        layer.write(at, bytes);
        shadow.set(bytes, at);
      }
    }
    const config = `${dir}/config.v1.json`;
    await Deno.writeTextFile(config, JSON.stringify({ lowers, upper }));
    await using environment = await testEnvironment();
    await using image = await openImage(environment, config);
    assert.equal(image.source.size, shadow.length);
    const bytes = await readBytes(image.source, 0, shadow.length);
    assert.equal(bytes.findIndex((b, i) => b !== shadow[i]), -1);
    // As a user: dump, verify, merge, and the merged file as a stack of its own.
    const dump = `${dir}/dump`;
    const merged = `${dir}/merged`;
    for (
      const command of [
        ["dump", config, dump],
        ["verify", config],
        ["merge", config, merged],
      ]
    ) {
      const { code, stderr, stdout } = await run([...OBD, ...command]);
      assert.equal(code, 0, `${command[0]}: ${stdout}${stderr}`);
    }
    const same = (got: Uint8Array) =>
      got.length === shadow.length && got.every((b, i) => b === shadow[i]);
    assert.ok(same(await Deno.readFile(dump)));
    await Deno.writeTextFile(
      config,
      JSON.stringify({ lowers: [{ file: merged }] }),
    );
    await using flat = await openImage(environment, config);
    assert.ok(same(await readBytes(flat.source, 0, flat.source.size)));
  });
});

for (const [name, wrap] of FORMS) {
  Deno.test(`${name}: opens alone, inspect and verify find nothing wrong`, async () => {
    await withTempDir(async (dir) => {
      const shadow = new Uint8Array(1 << 20);
      const file = `${dir}/layer`;
      await Deno.writeFile(file, wrap(randomLayer(new Random(7), shadow)));
      const config = `${dir}/config.v1.json`;
      await Deno.writeTextFile(config, JSON.stringify({ lowers: [{ file }] }));
      await using environment = await testEnvironment();
      await using image = await openImage(environment, config);
      const bytes = await readBytes(image.source, 0, shadow.length);
      assert.equal(bytes.findIndex((b, i) => b !== shadow[i]), -1);
      await using source = await FileSource.open(file);
      assert.equal(firstProblem(await inspectFile(source)), undefined);
      const { findings } = await verifyImage(environment, config);
      assert.deepEqual(findings, []);
    });
  });
}

import assert from "node:assert/strict";
import {
  crc32c,
  LZ4_BLOCK_SIZE_MAX,
  lz4Compress,
  lz4CompressBound,
  lz4CompressRuns,
  lz4Decompress,
  readZstdFrame,
  ZFILE_BLOCK_SEED,
  zstdCompress,
  zstdDecompress,
} from "../../lib/compress/mod.ts";
import { concatBytes, FormatError, ObdError, utf8 } from "../../lib/io/mod.ts";
import { golden, requires } from "../testutil/requires.ts";
import { mulberry32, sampleBytes } from "./samples.ts";

const DIGITS = utf8("123456789");

/** Bit by bit, as the polynomial is written. */
function slowCrc32c(bytes: Uint8Array, seed: number): number {
  let c = seed;
  for (const byte of bytes) {
    c ^= byte;
    for (let k = 0; k < 8; k++) {
      c = (c & 1) !== 0 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
    }
  }
  return c >>> 0;
}

const LZ4_ENCODERS = [lz4Compress, lz4CompressRuns];

function packLz4(bytes: Uint8Array, encode = lz4Compress): Uint8Array {
  const dst = new Uint8Array(lz4CompressBound(bytes.length));
  return dst.slice(0, encode(bytes, dst));
}

Deno.test("crc32c() gives overlaybd's vectors", () => {
  assert.equal(crc32c(DIGITS, 0), 0x58e3fa20);
  assert.equal(crc32c(DIGITS, ZFILE_BLOCK_SEED), 0x3c9bd4e0);
  // The common variant is this one between two inversions.
  assert.equal(~crc32c(DIGITS, 0xffffffff) >>> 0, 0xe3069283);
  assert.equal(crc32c(new Uint8Array(0), 0xdeadbeef), 0xdeadbeef);
});

Deno.test("crc32c() agrees with the bitwise form at every length and chains", () => {
  const bytes = sampleBytes(1, 70_000, "random");
  for (let length = 0; length < 70; length++) {
    const part = bytes.subarray(length, 2 * length);
    assert.equal(crc32c(part, length), slowCrc32c(part, length));
  }
  const whole = slowCrc32c(bytes, 7);
  assert.equal(crc32c(bytes, 7), whole);
  for (const cut of [1, 15, 16, 17, 65_535, 65_536, 65_537]) {
    assert.equal(
      crc32c(bytes.subarray(cut), crc32c(bytes.subarray(0, cut), 7)),
      whole,
    );
  }
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length));
  shared.set(bytes);
  assert.equal(crc32c(shared, 7), whole);
});

Deno.test("lz4 round trip at every small size and kind of content", () => {
  for (const kind of ["random", "zeros", "text", "pattern"] as const) {
    for (
      const size of [
        ...Array.from({ length: 70 }, (_, i) => i),
        270,
        271,
        4095,
        4096,
        65_535,
        65_536,
        70_000,
        300_000,
      ]
    ) {
      const bytes = sampleBytes(size + 1, size, kind);
      for (const encode of LZ4_ENCODERS) {
        const packed = packLz4(bytes, encode);
        const out = new Uint8Array(size).fill(0xee);
        assert.equal(lz4Decompress(packed, out), size);
        assert.deepEqual(out, bytes, `${encode.name} ${kind} ${size}`);
        assert.deepEqual(
          packLz4(bytes, encode),
          packed,
          "same input, same output",
        );
      }
    }
  }
});

Deno.test("lz4Decompress() repeats patterns of every distance", () => {
  for (let distance = 1; distance <= 40; distance++) {
    for (const length of [4, 5, 7, 8, 9, 15, 16, 17, 18, 19, 33, 300]) {
      const pattern = sampleBytes(distance, distance, "random");
      const parts: number[] = [];
      const putLength = (rest: number) => {
        for (; rest >= 255; rest -= 255) parts.push(255);
        parts.push(rest);
      };
      parts.push((Math.min(distance, 15) << 4) | Math.min(length - 4, 15));
      if (distance >= 15) putLength(distance - 15);
      parts.push(...pattern, distance & 255, distance >>> 8);
      if (length - 4 >= 15) putLength(length - 4 - 15);
      parts.push(5 << 4, 1, 2, 3, 4, 5);
      const out = new Uint8Array(distance + length + 5);
      assert.equal(lz4Decompress(Uint8Array.from(parts), out), out.length);
      for (let i = 0; i < distance + length; i++) {
        assert.equal(out[i], pattern[i % distance]);
      }
      assert.deepEqual([...out.subarray(-5)], [1, 2, 3, 4, 5]);
    }
  }
});

Deno.test("lz4 encoders keep the end-of-block conditions", () => {
  for (const encode of LZ4_ENCODERS) {
    for (let size = 13; size < 200; size++) {
      checkBlockEnd(packLz4(sampleBytes(size, size, "zeros"), encode), size);
    }
  }
});

function checkBlockEnd(packed: Uint8Array, size: number): void {
  let at = 0;
  let produced = 0;
  let matchStart = 0;
  let lastLiterals = 0;
  while (true) {
    const token = packed[at++]!;
    let literals = token >>> 4;
    if (literals === 15) {
      let more: number;
      do literals += more = packed[at++]!; while (more === 255);
    }
    at += literals;
    produced += literals;
    lastLiterals = literals;
    if (at === packed.length) break;
    at += 2;
    matchStart = produced;
    let length = (token & 15) + 4;
    if (length === 19) {
      let more: number;
      do length += more = packed[at++]!; while (more === 255);
    }
    produced += length;
  }
  assert.equal(produced, size);
  assert.ok(lastLiterals >= 5, "last 5 bytes are literals");
  assert.ok(matchStart <= size - 12, "last match starts 12 bytes early");
}

Deno.test("lz4CompressRuns() folds runs and nothing else", () => {
  const text = utf8("the same words, the same words, the same words again. ");
  // One token and the length's extra bytes: no match is taken.
  assert.equal(packLz4(text, lz4CompressRuns).length, text.length + 2);
  assert.ok(packLz4(text).length < text.length);
  for (const byte of [0, 7, 255]) {
    const run = concatBytes([text, new Uint8Array(30_000).fill(byte), text]);
    const packed = packLz4(run, lz4CompressRuns);
    assert.ok(packed.length < 2 * text.length + 130, `${packed.length}`);
    const out = new Uint8Array(run.length);
    lz4Decompress(packed, out);
    assert.deepEqual(out, run);
  }
  assert.throws(
    () => lz4CompressRuns(new Uint8Array(10), new Uint8Array(10)),
    RangeError,
  );
});

Deno.test("lz4Decompress() refuses malformed blocks and touches nothing", () => {
  const cases: [string, number[], number][] = [
    ["empty", [], 10],
    ["literals cut", [0x50, 1, 2], 10],
    ["literal length cut", [0xf0], 100],
    ["literal length cut after 255", [0xf0, 255], 100],
    ["offset 0", [0x10, 1, 0, 0, 0x50, 1, 2, 3, 4, 5], 100],
    ["offset before start", [0x10, 1, 2, 0, 0x50, 1, 2, 3, 4, 5], 100],
    ["offset cut", [0x10, 1, 1], 100],
    ["match length cut", [0x1f, 1, 1, 0], 100],
    ["ends with a match", [0x10, 1, 1, 0], 100],
    ["literals too long", [0x50, 1, 2, 3, 4, 5], 4],
    ["match too long", [0x10, 1, 1, 0, 0x50, 1, 2, 3, 4, 5], 4],
    [
      "huge match",
      [0x1f, 1, 1, 0, ...new Array(5000).fill(255), 0, 0x50, 1, 2, 3, 4, 5],
      65_536,
    ],
  ];
  for (const [name, bytes, capacity] of cases) {
    const out = new Uint8Array(capacity).fill(0xaa);
    assert.throws(
      () => lz4Decompress(Uint8Array.from(bytes), out),
      FormatError,
      name,
    );
    assert.ok(out.every((b) => b === 0xaa), name);
  }
  assert.throws(
    () =>
      lz4Decompress(new Uint8Array(1), new Uint8Array(LZ4_BLOCK_SIZE_MAX + 1)),
    ObdError,
  );
  assert.throws(
    () => lz4Compress(new Uint8Array(10), new Uint8Array(10)),
    RangeError,
  );
});

Deno.test("lz4Decompress() survives mutated blocks", () => {
  const random = mulberry32(42);
  const bytes = sampleBytes(3, 4096, "text");
  const packed = packLz4(bytes);
  let accepted = 0;
  for (let round = 0; round < 20_000; round++) {
    const mutated = packed.slice(0, 1 + Math.floor(random() * packed.length));
    for (let n = Math.floor(random() * 4); n >= 0; n--) {
      mutated[Math.floor(random() * mutated.length)] = random() * 256;
    }
    const out = new Uint8Array(4096);
    try {
      assert.ok(lz4Decompress(mutated, out) <= 4096);
      accepted++;
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
    }
  }
  assert.ok(accepted > 0, "some mutations stay valid");
});

Deno.test({
  name: "lz4 blocks travel both ways between us and the lz4 tool",
  ignore: !requires("lz4"),
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      for (const kind of ["text", "random", "zeros", "pattern"] as const) {
        const bytes = sampleBytes(9, 50_000, kind);
        // Ours → legacy frame: magic 0x184C2102, then size and block.
        for (const encode of LZ4_ENCODERS) {
          const packed = packLz4(bytes, encode);
          const head = new Uint8Array(8);
          const view = new DataView(head.buffer);
          view.setUint32(0, 0x184c2102, true);
          view.setUint32(4, packed.length, true);
          await Deno.writeFile(`${dir}/a.lz4`, concatBytes([head, packed]));
          const got = await run("lz4", ["-dc", `${dir}/a.lz4`]);
          assert.deepEqual(got, bytes, `${encode.name} ${kind}`);
        }
        // Theirs → the block inside the legacy frame.
        await Deno.writeFile(`${dir}/b`, bytes);
        const legacy = await run("lz4", ["-l", "-c", `${dir}/b`]);
        const size = new DataView(legacy.buffer, legacy.byteOffset)
          .getUint32(4, true);
        const out = new Uint8Array(bytes.length);
        lz4Decompress(legacy.subarray(8, 8 + size), out);
        assert.deepEqual(out, bytes, kind);
      }
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

async function run(
  program: string,
  args: string[],
): Promise<Uint8Array<ArrayBuffer>> {
  const { success, stdout, stderr } = await new Deno.Command(program, { args })
    .output();
  assert.ok(success, new TextDecoder().decode(stderr));
  return stdout;
}

/** The blocks of a golden ZFile: 512-byte header, then LZ4 or zstd blocks with a CRC each. */
function* zfileBlocks(file: Uint8Array) {
  const view = new DataView(file.buffer);
  const trailer = file.length - 512;
  const indexOffset = Number(view.getBigUint64(trailer + 40, true));
  const count = Number(view.getBigUint64(trailer + 48, true));
  let at = 512;
  for (let i = 0; i < count; i++) {
    const length = view.getUint32(indexOffset + 4 * i, true);
    yield {
      data: file.subarray(at, at + length - 4),
      crc: view.getUint32(at + length - 4, true),
    };
    at += length;
  }
}

for (const [name, codec] of [["z4", "lz4"], ["zs4", "zstd"]] as const) {
  const path = golden(`unit/${name}`);
  Deno.test({
    name: `golden ${name}: every block has its CRC and decodes (${codec})`,
    ignore: path === undefined,
    async fn() {
      const file = await Deno.readFile(path!);
      const decode = codec === "lz4" ? lz4Decompress : zstdDecompress;
      let blocks = 0;
      for (const { data, crc } of zfileBlocks(file)) {
        assert.equal(crc32c(data, ZFILE_BLOCK_SEED), crc);
        const out = new Uint8Array(4096);
        assert.ok(decode(data, out) > 0);
        blocks++;
      }
      assert.ok(blocks > 60);
    },
  });
}

Deno.test("zstd round trip is one frame with its content size", () => {
  for (const kind of ["random", "zeros", "text"] as const) {
    for (const size of [0, 1, 255, 256, 4096, 65_536, 200_000]) {
      const bytes = sampleBytes(size, size, kind);
      const packed = zstdCompress(bytes);
      const frame = readZstdFrame(packed);
      assert.equal(frame.frameSize, packed.length);
      assert.equal(frame.contentSize, size);
      const out = new Uint8Array(size);
      assert.equal(zstdDecompress(packed, out), size);
      assert.deepEqual(out, bytes);
    }
  }
});

Deno.test("zstdDecompress() refuses all but exactly one frame that fits", () => {
  const packed = zstdCompress(sampleBytes(1, 4096, "text"));
  const out = new Uint8Array(4096);
  const refused: [string, Uint8Array, Uint8Array][] = [
    ["two frames", concatBytes([packed, packed]), new Uint8Array(8192)],
    ["trailing byte", concatBytes([packed, new Uint8Array(1)]), out],
    ["too small", packed, new Uint8Array(4095)],
    ["no magic", new Uint8Array(100), out],
    ["skippable", Uint8Array.of(0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0), out],
  ];
  for (let cut = 0; cut < packed.length; cut += 7) {
    refused.push([`cut at ${cut}`, packed.subarray(0, cut), out]);
  }
  for (const [name, bytes, dst] of refused) {
    assert.throws(() => zstdDecompress(bytes, dst), FormatError, name);
  }
  const random = mulberry32(5);
  for (let round = 0; round < 2000; round++) {
    const mutated = packed.slice();
    mutated[Math.floor(random() * mutated.length)] = random() * 256;
    try {
      zstdDecompress(mutated, out);
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
    }
    // A bad frame must leave nothing behind for the next one.
    if (round % 100 === 0) {
      assert.equal(zstdDecompress(packed, out), 4096);
      assert.deepEqual(out, sampleBytes(1, 4096, "text"));
    }
  }
});

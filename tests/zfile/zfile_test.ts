import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { isZFile, openZFile, ZFileWriter } from "../../lib/zfile/mod.ts";
import {
  type ByteSource,
  concatBytes,
  FormatError,
  IntegrityError,
  MemorySink,
  MemorySource,
  ObdError,
} from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";
import { WaitingSource } from "../testutil/sources.ts";
import { checkZFile } from "../testutil/overlaybd_rules.ts";

type Codec = "lz4" | "lz4-for-gzip" | "zstd";

/** Compressible, incompressible and zero stretches. */
function sample(seed: number, length: number): Uint8Array {
  const random = seeded(seed);
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const run = Math.min(1 + Math.floor(random() * 9000), length - at);
    const kind = Math.floor(random() * 3);
    for (let i = at; i < at + run; i++) {
      bytes[i] = kind === 0 ? 0 : kind === 1 ? i % 7 : random() * 256;
    }
    at += run;
  }
  return bytes;
}

async function pack(
  content: Uint8Array,
  options: ConstructorParameters<typeof ZFileWriter>[1] = {},
  cut = content.length || 1,
): Promise<Uint8Array> {
  const sink = new MemorySink();
  const writer = new ZFileWriter(sink, options);
  for (let at = 0; at < content.length; at += cut) {
    await writer.write(content.subarray(at, at + cut));
  }
  const summary = await writer.finish();
  assert.equal(summary.size, sink.length);
  assert.equal(summary.originalSize, content.length);
  return sink.bytes().slice();
}

async function unpack(source: ByteSource): Promise<Uint8Array> {
  await using file = await openZFile(source);
  const bytes = new Uint8Array(file.size);
  await file.pread(bytes, 0);
  return bytes;
}

for (const codec of ["lz4", "lz4-for-gzip", "zstd"] as Codec[]) {
  for (const blockSize of [4096, 8192, 16384, 32768]) {
    Deno.test(`ZFile round trip: ${codec}, ${blockSize}-byte blocks`, async () => {
      const sizes = [
        ...[0, 1, blockSize - 1, blockSize, blockSize + 1],
        ...[3 * blockSize, 65536 + 5, 300_000],
      ];
      for (const size of sizes) {
        for (const headerOverwrite of [false, true]) {
          const content = sample(size + blockSize, size);
          const options = { codec, blockSize, headerOverwrite };
          const packed = await pack(content, options);
          const format = codec === "zstd" ? "zstd" : "lz4";
          checkZFile(packed, {
            codec: format,
            blockSize,
            headerOverwrite,
            content,
          });
          assert.ok(await isZFile(new MemorySource(packed)));
          assert.deepEqual(await unpack(new WaitingSource(packed)), content);
          if (headerOverwrite) {
            // The header tells everything: the trailer may be cut off.
            const cut = packed.subarray(0, packed.length - 512);
            assert.deepEqual(await unpack(new MemorySource(cut)), content);
          }
        }
      }
    });
  }
}

Deno.test("ZFileWriter: output does not depend on how writes are cut", async () => {
  const content = sample(9, 900_000);
  for (const codec of ["lz4", "zstd"] as Codec[]) {
    const whole = await pack(content, { codec });
    for (const cut of [1000, 4096, 4097, 400_000]) {
      assert.deepEqual(await pack(content, { codec }, cut), whole);
    }
  }
});

Deno.test("ZFileWriter refuses block sizes that overlaybd cannot read", () => {
  for (const blockSize of [0, 512, 5000, 65536]) {
    assert.throws(
      () => new ZFileWriter(new MemorySink(), { blockSize }),
      RangeError,
    );
  }
  const stream = { write: () => Promise.resolve() };
  assert.throws(
    () => new ZFileWriter(stream, { headerOverwrite: true }),
    TypeError,
  );
});

Deno.test("ZFileSource: random and concurrent reads equal the content", async () => {
  const content = sample(5, 3_000_000);
  for (const codec of ["lz4", "zstd"] as Codec[]) {
    const packed = await pack(content, { codec, blockSize: 8192 });
    for (const inner of [new WaitingSource(packed), new MemorySource(packed)]) {
      await using file = await openZFile(inner);
      const random = seeded(3);
      await Promise.all(Array.from({ length: 60 }, async (_, i) => {
        const offset = Math.floor(random() * content.length);
        const room = content.length - offset;
        const length = Math.floor(random() ** (i % 2 ? 1 : 8) * room);
        const got = new Uint8Array(length + 2).fill(0xee);
        const dst = got.subarray(1, length + 1);
        const now = inner instanceof MemorySource && length <= 256 * 1024;
        // A waiting source never; but a kept block needs no source.
        const did = file.preadNow(dst, offset);
        if (now) assert.equal(did, true);
        if (did) {
          assert.deepEqual(dst, content.subarray(offset, offset + length));
        }
        dst.fill(0xee);
        await file.pread(dst, offset);
        assert.deepEqual(dst, content.subarray(offset, offset + length));
        assert.equal(got[0], 0xee);
        assert.equal(got[length + 1], 0xee);
      }));
    }
  }
});

Deno.test("ZFileSource reads touched blocks only, adjacent ones at once", async () => {
  const content = sample(6, 4 << 20);
  const inner = new WaitingSource(await pack(content));
  await using file = await openZFile(inner);
  const count = () => inner.reads.splice(0);
  count();
  await file.pread(new Uint8Array(1), 5000);
  assert.equal(count().length, 1);
  await file.pread(new Uint8Array(40_000), 4095); // blocks 0…10
  const [read, ...more] = count();
  assert.equal(more.length, 0);
  assert.equal(read!.offset, 512);
  await file.pread(new Uint8Array(content.length), 0);
  const all = count().sort((a, b) => a.offset - b.offset);
  assert.ok(all.length <= 5, `${all.length}`);
  for (let i = 1; i < all.length; i++) {
    assert.equal(all[i - 1]!.offset + all[i - 1]!.length, all[i]!.offset);
  }
  assert.ok(all.every((r) => r.length <= 1 << 20));
  assert.equal(inner.peak, Math.min(4, all.length));
});

Deno.test("ZFileSource decodes a block once for reads smaller than it", async () => {
  const content = sample(12, 100_000);
  const inner = new WaitingSource(await pack(content, { blockSize: 32768 }));
  await using file = await openZFile(inner);
  inner.reads.length = 0;
  const got = new Uint8Array(4096);
  for (let at = 0; at + 4096 <= content.length; at += 4096) {
    if (at % 32768 === 0) {
      assert.equal(file.preadNow(got, at), false);
      await file.pread(got, at);
    } else assert.equal(file.preadNow(got, at), true);
    assert.deepEqual(got, content.subarray(at, at + 4096));
  }
  assert.equal(inner.reads.length, 3);
  // The short last block, up to its end and not beyond.
  const tail = new Uint8Array(100_000 - 98_304);
  await file.pread(tail, 98_304);
  assert.deepEqual(tail, content.subarray(98_304));
});

Deno.test("ZFileSource keeps no block that did not check out", async () => {
  const content = sample(13, 50_000);
  const packed = await pack(content);
  packed[512 + 3]! ^= 1;
  await using file = await openZFile(new MemorySource(packed));
  const one = new Uint8Array(1);
  await file.pread(one, 5000); // block 1 is kept
  await assert.rejects(file.pread(one, 10), IntegrityError);
  await assert.rejects(file.pread(one, 10), IntegrityError);
  await file.pread(one, 5000);
  assert.equal(one[0], content[5000]);
});

Deno.test("ZFileSource keeps no half-decoded block", async () => {
  // By hand, without digests: block 0 is good, block 1 decodes short.
  const lz4 = (byte: number, size: number) =>
    Uint8Array.of(0x1f, byte, 1, 0, ...lengthBytes(size - 6 - 19), 0x50)
      .slice() as Uint8Array;
  const lengthBytes = (
    n: number,
  ) => [...Array(Math.floor(n / 255)).fill(255), n % 255];
  const block = (byte: number, size: number) =>
    concatBytes([lz4(byte, size), new Uint8Array(5).fill(byte)]);
  const blocks = [block(1, 4096), block(2, 100)];
  const header = new Uint8Array(512);
  header.set((await pack(new Uint8Array(1))).subarray(0, 24));
  const view = new DataView(header.buffer);
  const stored = concatBytes(blocks);
  const table = Uint32Array.from(blocks, (b) => b.length);
  view.setUint32(24, 96, true);
  view.setUint32(32, 0x0b, true);
  view.setUint32(40, 512 + stored.length, true);
  view.setUint32(48, 2, true);
  view.setUint32(56, 8192, true);
  view.setUint32(72, 4096, true);
  header[76] = 1;
  const file = concatBytes([header, stored, new Uint8Array(table.buffer)]);
  await using source = await openZFile(new MemorySource(file));
  const one = new Uint8Array(1);
  await source.pread(one, 50);
  assert.equal(one[0], 1);
  await assert.rejects(source.pread(one, 4096 + 50), /block 1/);
  await source.pread(one, 50);
  assert.equal(one[0], 1);
});

Deno.test("ZFileSource names the block whose CRC is wrong", async () => {
  const content = sample(7, 100_000);
  const packed = await pack(content);
  packed[512 + 3]! ^= 1; // block 0
  const source = new MemorySource(packed);
  await using file = await openZFile(source);
  await assert.rejects(
    file.pread(new Uint8Array(5000), 10),
    (error: unknown) =>
      error instanceof IntegrityError && /block 0 CRC/.test(error.message),
  );
  assert.equal(file.preadNow(new Uint8Array(10), 0), false);
  const good = new Uint8Array(10);
  await file.pread(good, 4096);
  assert.deepEqual(good, content.subarray(4096, 4106));
});

Deno.test("ZFileSource rejects only when no inner read is under way", async () => {
  const inner = new WaitingSource(await pack(sample(8, 5 << 20)));
  await using file = await openZFile(inner);
  inner.failAt = 600_000;
  inner.slowness = 500;
  await assert.rejects(file.pread(new Uint8Array(5 << 20), 0), /injected/);
  assert.equal(inner.active, 0);
  await assert.rejects(
    file.pread(new Uint8Array(5 << 20), 0, { signal: AbortSignal.abort() }),
    { code: "cancelled" },
  );
});

Deno.test("ZFileSource refuses ranges outside the content", async () => {
  await using file = await openZFile(
    new MemorySource(await pack(sample(1, 5000))),
  );
  await assert.rejects(file.pread(new Uint8Array(2), 4999), RangeError);
  await assert.rejects(file.pread(new Uint8Array(1), -1), RangeError);
  assert.throws(() => file.preadNow(new Uint8Array(1), 5000), RangeError);
  await file.pread(new Uint8Array(0), 5000);
});

Deno.test("openZFile() refuses what is broken", async () => {
  const good = await pack(sample(2, 50_000)); // trailer in use
  const trailer = good.length - 512;
  const set = (at: number, value: bigint) => (bytes: Uint8Array) =>
    new DataView(bytes.buffer).setBigUint64(at, value, true);
  const cases: [string, (bytes: Uint8Array) => void, RegExp][] = [
    ["no magic", (b) => b[0] = 0, /magic/],
    ["a trailer for a header", (b) => b[32]! &= 0xfe, /magic/],
    ["a flipped header bit", (b) => b[300]! ^= 1, /header digest/],
    ["a flipped table bit", (b) => b[trailer - 3]! ^= 1, /jump table CRC/],
    ["no trailer magic", (b) => b[trailer] = 0, /trailer/],
    ["unsealed trailer", (b) => b[trailer + 32]! &= ~4, /trailer/],
    ["a header for a trailer", (b) => b[trailer + 32]! |= 1, /trailer/],
    ["huge count", set(trailer + 48, 2n ** 63n), /index_offset/],
    ["table past the end", set(trailer + 40, 2n ** 62n), /index_offset/],
    ["wrong count", set(trailer + 48, 12n), /index_size/],
    ["huge size", set(trailer + 56, 2n ** 62n), /index_size/],
    ["block size 0", (b) => b[trailer + 73] = 0, /block_size/],
    ["odd block size", (b) => b[trailer + 72] = 1, /block_size/],
    ["LZO", (b) => b[trailer + 76] = 0, /algorithm/],
    ["a gap before the blocks", (b) => b[trailer + 87] = 1, /jump table/],
  ];
  for (const [what, change, message] of cases) {
    const bad = good.slice();
    change(bad);
    await assert.rejects(
      openZFile(new MemorySource(bad)),
      (error: unknown) => {
        assert.ok(error instanceof ObdError, `${what}: ${error}`);
        assert.match(error.message, message, what);
        return true;
      },
    );
  }
  for (const size of [0, 511, 512, 1023]) {
    await assert.rejects(
      openZFile(new MemorySource(good.subarray(0, size))),
      FormatError,
    );
  }
  // The trailer's digest is not looked at, as in the real reader.
  const tolerated = good.slice();
  tolerated[trailer + 400]! ^= 1;
  await openZFile(new MemorySource(tolerated));
});

Deno.test("ZFile survives mutations: right bytes or an error", async () => {
  const random = seeded(77);
  const content = sample(4, 60_000);
  const packs = [
    await pack(content),
    await pack(content, { codec: "zstd", headerOverwrite: true }),
  ];
  let errors = 0;
  for (let i = 0; i < 1500; i++) {
    const good = packs[i % 2]!;
    const bad = good.slice(
      0,
      random() < 0.1 ? Math.floor(random() * good.length) : good.length,
    );
    for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
      const where = [0, bad.length - 560, Math.floor(random() * bad.length)];
      const at = where[Math.floor(random() * 3)]! + Math.floor(random() * 90);
      if (at >= 0 && at < bad.length) bad[at]! ^= 1 << Math.floor(random() * 8);
    }
    try {
      const got = await unpack(new MemorySource(bad));
      if (got.length === content.length) assert.deepEqual(got, content);
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
      errors++;
    }
  }
  assert.ok(errors > 300, `${errors}`);
});

Deno.test("ZFileWriter: lz4-for-gzip is what gzip makes smallest of both kinds of blocks", async () => {
  const random = seeded(4);
  const rows = new Uint8Array(96 * 1024); // a table: rows that hardly differ
  for (let at = 0; at < rows.length; at += 256) {
    for (let i = 0; i < 40; i++) rows[at + i * 5] = i + 1;
    rows[at + 8] = random() * 256;
  }
  const names = new Uint8Array(96 * 1024); // words between zeros
  for (let at = 0; at < names.length; at += 64) {
    for (let i = 0; i < 24; i++) names[at + i] = 97 + random() * random() * 26;
  }
  const content = concatBytes([rows, names]);
  const gzipSize = async (codec: Codec) => {
    const packed = await pack(content, { codec, blockSize: 32768 });
    assert.deepEqual(await unpack(new MemorySource(packed)), content);
    return gzipSync(packed, { level: 9 }).length;
  };
  const plain = await gzipSize("lz4");
  const chosen = await gzipSize("lz4-for-gzip");
  assert.ok(chosen < 0.97 * plain, `${chosen} against ${plain}`);
});

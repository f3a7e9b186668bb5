import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import {
  GZ,
  GZ_ENTRY,
  readGzipMeta,
  writeGzipMeta,
} from "../../lib/layers/mod.ts";
import { ObdError } from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";
import { checkGzipMeta } from "../testutil/overlaybd_rules.ts";
import { golden } from "../testutil/requires.ts";

const deflate = (bytes: Uint8Array) =>
  new Uint8Array(zlib.deflateSync(bytes, { level: 6 }));

function sample(count: number) {
  const random = seeded(count + 1);
  const window = Array.from({ length: count }, (_, i) => {
    if (i === 0) return new Uint8Array(0);
    const bytes = new Uint8Array(32768);
    for (let k = 0; k < 3000; k++) {
      bytes[Math.floor(random() * 32768)] = Math.floor(random() * 256);
    }
    return deflate(bytes);
  });
  return {
    spanSize: 1 << 20,
    gzipSize: 10 + count * 400_000 + 8,
    uncompressedSize: count * (1 << 20) + 5,
    checkpoints: {
      count,
      uncompressedOffset: Float64Array.from(window, (_, i) => i * (1 << 20)),
      compressedOffset: Float64Array.from(window, (_, i) => 10 + i * 400_000),
      bits: Uint8Array.from(window, (_, i) => i % 8),
      window,
    },
  };
}

Deno.test("GZ and GZ_ENTRY fields ascend and end at their size", () => {
  const header = Object.values(GZ);
  assert.deepEqual(header, [
    ...[0, 8, 9, 10, 11, 12, 13, 17, 21, 25, 33, 41, 49, 57],
    ...[313, 321, 329, 333],
  ]);
  assert.deepEqual(Object.values(GZ_ENTRY), [0, 8, 16, 24, 25, 29]);
});

Deno.test("writeGzipMeta() then readGzipMeta() is identity", () => {
  for (const count of [0, 1, 2, 9, 300]) {
    const meta = sample(count);
    const bytes = writeGzipMeta(meta);
    assert.deepEqual(writeGzipMeta(meta), bytes);
    checkGzipMeta(bytes, meta);
    const got = readGzipMeta(bytes, meta.gzipSize);
    assert.equal(got.spanSize, 1 << 20);
    assert.equal(got.uncompressedSize, meta.uncompressedSize);
    const { checkpoints } = got;
    assert.equal(checkpoints.count, count);
    for (
      const key of ["uncompressedOffset", "compressedOffset", "bits"] as const
    ) {
      assert.deepEqual([...checkpoints[key]], [...meta.checkpoints[key]]);
    }
    for (let i = 1; i < count; i++) {
      assert.deepEqual(
        new Uint8Array(checkpoints.window[i]!),
        meta.checkpoints.window[i],
      );
    }
  }
});

for (
  const [file, gz] of [
    ["unit/t.idx", "unit/txt.gz"],
    ["unit/g.idx", "unit/L.tar.gz"],
    ["turbo-gz/layer1.gzip.meta", "layers/layer1.tar.gz"],
    ["turbo-gz/layer2.gzip.meta", "layers/layer2.tar.gz"],
  ] as const
) {
  Deno.test({
    name: `golden ${file}: read, and rewritten alike`,
    ignore: golden(file) === undefined || golden(gz) === undefined,
    async fn() {
      const theirs = await Deno.readFile(golden(file)!);
      const blob = await Deno.readFile(golden(gz)!);
      const tar = zlib.gunzipSync(blob);
      const meta = readGzipMeta(theirs, blob.length);
      assert.equal(meta.uncompressedSize, tar.length);
      const { count, window, uncompressedOffset } = meta.checkpoints;
      for (let i = 0; i < count; i++) {
        const at = uncompressedOffset[i]!;
        const before = new Uint8Array(32768);
        before.set(
          tar.subarray(Math.max(0, at - 32768), at),
          Math.max(0, 32768 - at),
        );
        const got = zlib.inflateSync(window[i]!);
        assert.equal(got.compare(before), 0, `window ${i}`);
      }
      // All but the zlib stream of the index area is theirs byte for byte.
      const ours = writeGzipMeta(meta);
      checkGzipMeta(ours, meta);
      const start = new DataView(theirs.buffer).getUint32(GZ.indexStart, true);
      const fixed = (bytes: Uint8Array) => {
        const head = bytes.slice(0, start);
        for (const at of [GZ.fileSize, GZ.indexLength, GZ.crc]) {
          head.fill(0, at, Math.min(at + 8, GZ.SIZE));
        }
        return head.toHex();
      };
      assert.equal(fixed(ours), fixed(theirs));
      assert.throws(() => readGzipMeta(theirs, blob.length + 1), {
        code: "format",
      });
    },
  });
}

Deno.test("readGzipMeta() reads windows and index that are not compressed", () => {
  const windows = [new Uint8Array(32768), new Uint8Array(32768).fill(7)];
  const bytes = rawGzipMeta(windows);
  const meta = readGzipMeta(bytes, 5000);
  assert.equal(meta.checkpoints.count, 2);
  assert.equal(zlib.inflateSync(meta.checkpoints.window[1]!)[100], 7);
});

/** A `gzip.meta` with algorithm 0, by hand. */
function rawGzipMeta(windows: Uint8Array[]): Uint8Array {
  const meta = sample(2);
  meta.gzipSize = 5000;
  meta.checkpoints.compressedOffset.set([10, 900]);
  const head = writeGzipMeta(meta).slice(0, 333);
  const entries = new Uint8Array(58);
  const e = new DataView(entries.buffer);
  windows.forEach((_, i) => {
    e.setBigUint64(i * 29, BigInt(i * 65536), true);
    e.setBigUint64(i * 29 + 8, BigInt(10 + i * 890), true);
    e.setBigUint64(i * 29 + 16, BigInt(333 + i * 32768), true);
    e.setUint32(i * 29 + 25, 32768, true);
  });
  const out = new Uint8Array(333 + 65536 + 58);
  const v = new DataView(out.buffer);
  out.set(head);
  out.set(windows[0]!, 333);
  out.set(windows[1]!, 333 + 32768);
  out.set(entries, 333 + 65536);
  out[10] = 0;
  v.setBigUint64(41, BigInt(out.length), true);
  v.setBigUint64(313, 333n + 65536n, true);
  v.setBigUint64(321, 58n, true);
  fixCrc(out);
  return out;
}

function fixCrc(bytes: Uint8Array): void {
  let crc = 0;
  for (const byte of bytes.subarray(0, 329)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = (crc & 1) !== 0 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    }
  }
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(329, crc >>> 0, true);
}

Deno.test("readGzipMeta() refuses what is broken", () => {
  const meta = sample(3);
  const good = writeGzipMeta(meta);
  const set64 = (at: number, value: bigint) => (b: Uint8Array) =>
    new DataView(b.buffer).setBigUint64(at, value, true);
  const cases: [string, (b: Uint8Array) => void, RegExp, boolean?][] = [
    ["magic", (b) => b[0] = 0, /magic/],
    ["crc", (b) => b[100]! ^= 1, /CRC/, false],
    ["major", (b) => b[8] = 2, /major_version/],
    ["algorithm", (b) => b[10] = 2, /dict_compress_algo/],
    ["window size", (b) => b[17] = 1, /window/],
    ["entry size", (b) => b[21] = 30, /index_size/],
    ["count", set64(25, 4n), /index area/],
    ["fewer", set64(25, 2n), /index area/],
    ["huge count", set64(25, 2n ** 62n), /limit/],
    ["gzip size", set64(33, 1n), /gzip_file_size/],
    ["file size", set64(41, 1n), /index_file_size/],
    ["index start", set64(313, 400n), /index_start/],
    ["index start in header", (b) => {
      set64(313, 3n)(b);
      set64(321, BigInt(b.length - 3))(b);
    }, /index_start/],
    ["index length", set64(321, 2n ** 63n), /index_start/],
    ["index area", (b) => b[b.length - 9]! ^= 0xff, /index area/],
  ];
  for (const [what, change, message, fix] of cases) {
    const bad = good.slice();
    change(bad);
    if (fix !== false) fixCrc(bad);
    assert.throws(() => readGzipMeta(bad, meta.gzipSize), (error: unknown) => {
      assert.ok(error instanceof ObdError, `${what}: ${error}`);
      assert.match(error.message, message, what);
      return true;
    });
  }
  assert.throws(() => readGzipMeta(good.subarray(0, 332), 1), /size/);
});

Deno.test("readGzipMeta() refuses entries out of order or bounds", () => {
  const set64 = (at: number, value: bigint) => (v: DataView) =>
    v.setBigUint64(at, value, true);
  const base = 333 + 65536;
  const cases: [string, (v: DataView) => void][] = [
    ["first not at 0", set64(base, 1n)],
    ["not ascending", set64(base + 29, 0n)],
    ["behind the end", set64(base + 29, 2n ** 40n)],
    ["huge", set64(base + 29, 2n ** 63n)],
    ["blob offset behind the end", set64(base + 29 + 8, 5001n)],
    ["blob offset back", set64(base + 29 + 8, 9n)],
    ["window in the header", set64(base + 16, 0n)],
    ["window in the index", set64(base + 29 + 16, 333n + 32769n)],
    ["9 bits", (v) => v.setUint8(base + 24, 9)],
    ["window too short", (v) => v.setUint32(base + 25, 32767, true)],
    ["window too long", (v) => v.setUint32(base + 25, 2 ** 31, true)],
  ];
  const windows = [new Uint8Array(32768), new Uint8Array(32768)];
  for (const [what, change] of cases) {
    const bad = rawGzipMeta(windows);
    change(new DataView(bad.buffer));
    assert.throws(() => readGzipMeta(bad, 5000), /entry [01]/, what);
  }
});

Deno.test("readGzipMeta() survives mutations and index bombs", () => {
  const meta = sample(5);
  const good = writeGzipMeta(meta);
  const random = seeded(5);
  let refused = 0;
  for (let i = 0; i < 2000; i++) {
    const bad = good.slice();
    for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
      const at = random() < 0.5
        ? Math.floor(random() * 333)
        : bad.length - 1 - Math.floor(random() * 90);
      bad[at] = Math.floor(random() * 256);
    }
    fixCrc(bad);
    try {
      readGzipMeta(bad, meta.gzipSize);
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
      refused++;
    }
  }
  assert.ok(refused > 1000, `${refused}`);
  // 100 MB of zeros in the index area for 5 entries.
  const bomb = deflate(new Uint8Array(100_000_000));
  const bytes = new Uint8Array(333 + bomb.length);
  bytes.set(good.subarray(0, 333));
  bytes.set(bomb, 333);
  const v = new DataView(bytes.buffer);
  v.setBigUint64(41, BigInt(bytes.length), true);
  v.setBigUint64(313, 333n, true);
  v.setBigUint64(321, BigInt(bomb.length), true);
  fixCrc(bytes);
  assert.throws(() => readGzipMeta(bytes, meta.gzipSize), /index area/);
});

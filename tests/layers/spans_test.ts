import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  checkpointsOf,
  decodeSpans,
  encodeSpans,
  readGzipMeta,
  SP,
  type SpanIndex,
  spanIndexOf,
  writeGzipMeta,
} from "../../lib/layers/mod.ts";
import { readVarints, VarintWriter } from "../../lib/layers/varint.ts";
import { FormatError, ObdError, UnsupportedError } from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";

const digest = (n: number) => `sha256:${n.toString(16).padStart(64, "0")}`;

function digests(count: number): Uint8Array {
  const random = seeded(count + 3);
  return Uint8Array.from(
    { length: count * 32 },
    () => Math.floor(random() * 256),
  );
}

function plain(tarSize: number, spanSize = 131072): SpanIndex {
  const count = Math.ceil(tarSize / spanSize);
  return {
    blobDigest: digest(1),
    blobSize: tarSize,
    mediaType: "application/vnd.oci.image.layer.v1.tar",
    compression: "none",
    members: 0,
    diffId: digest(1),
    tarSize,
    spanSize,
    spanOffset: Float64Array.from({ length: count }, (_, i) => i * spanSize),
    spanDigest: digests(count),
    access: "identity",
  };
}

function compressed(
  seed: number,
  count: number,
  compression: "gzip" | "zstd",
): SpanIndex {
  const random = seeded(seed);
  const spanOffset = new Float64Array(count);
  let tarSize = 0;
  for (let i = 0; i < count; i++) {
    spanOffset[i] = tarSize;
    tarSize += 1 + Math.floor(random() ** 4 * 2 ** 40);
  }
  const spans = Array.from({ length: count }, (_, i) => i).filter((i) =>
    i === 0 || random() < 0.6
  );
  let at = 10;
  const compressedOffset = Float64Array.from(
    spans,
    () => at += 1 + Math.floor(random() ** 3 * 2 ** 33),
  );
  return {
    blobDigest: digest(2),
    blobSize: at + 100,
    mediaType: `application/vnd.oci.image.layer.v1.tar+${compression}`,
    compression,
    members: 3,
    diffId: digest(3),
    tarSize,
    spanSize: 1 << 20,
    spanOffset,
    spanDigest: digests(count),
    access: "checkpoints",
    checkpoints: {
      count: spans.length,
      span: Uint32Array.from(spans),
      compressedOffset,
      bits: Uint8Array.from(spans, (s) => compression === "zstd" ? 0 : s % 8),
      window: spans.map((s) =>
        new Uint8Array(s % 3 ? Math.floor(random() * 900) : 0).fill(s)
      ),
    },
  };
}

/** The same with plain arrays, for comparing. */
const flat = (index: SpanIndex) => ({
  ...index,
  spanOffset: [...index.spanOffset],
  spanDigest: index.spanDigest.toHex(),
  checkpoints: index.checkpoints && {
    ...index.checkpoints,
    span: [...index.checkpoints.span],
    compressedOffset: [...index.checkpoints.compressedOffset],
    bits: [...index.checkpoints.bits],
    window: index.checkpoints.window.map((w) => w.toHex()),
  },
});

function seal(bytes: Uint8Array): Uint8Array {
  const content = bytes.subarray(0, bytes.length - 32);
  bytes.set(createHash("sha256").update(content).digest(), content.length);
  return bytes;
}

Deno.test("SP fields ascend without overlap", () => {
  const sizes = [
    ...[8, 2, 2, 4, 8, 1, 1, 2, 4, 8, 8, 32, 32, 4, 4],
    ...[4, 4, 4, 4, 4, 4, 8],
  ];
  let at = 0;
  Object.entries(SP).forEach(([field, offset], i) => {
    assert.equal(offset, at, field);
    at += sizes[i] ?? 0;
  });
  assert.equal(at, SP.SIZE);
});

Deno.test("obd.spans round trip", () => {
  const cases: SpanIndex[] = [
    ...[0, 1, 131071, 131072, 131073, 10_000_000].map((n) => plain(n)),
    { ...plain(300_000), spanSize: 0, spanOffset: Float64Array.of(0, 5, 7) },
    { ...plain(4096), mediaType: "" },
    { ...plain(4096), mediaType: "x".repeat(255) },
  ];
  for (let seed = 1; seed <= 30; seed++) {
    cases.push(compressed(seed, 1 + seed * 3, seed % 2 ? "gzip" : "zstd"));
  }
  const gzip: SpanIndex = { ...compressed(5, 40, "gzip"), access: "gzip.meta" };
  delete gzip.checkpoints;
  cases.push(gzip, {
    ...compressed(1, 1, "gzip"),
    tarSize: 0,
    spanOffset: Float64Array.of(0),
  });
  for (const index of cases) {
    index.spanDigest = digests(index.spanOffset.length);
    const bytes = encodeSpans(index);
    assert.deepEqual(encodeSpans(index), bytes);
    assert.deepEqual(flat(decodeSpans(bytes)), flat(index));
  }
});

Deno.test("obd.spans: what each span costs", () => {
  const regular = plain(131072 * 1000);
  assert.equal(
    encodeSpans(regular).length,
    SP.SIZE + regular.mediaType.length + 1000 * 32 + 32,
  );
  const irregular = compressed(3, 1000, "gzip");
  irregular.access = "gzip.meta";
  delete irregular.checkpoints;
  assert.ok(encodeSpans(irregular).length < 1000 * 40 + 300);
});

Deno.test("obd.spans: the worked example of SPANS.md is what we write", async () => {
  const text = await Deno.readTextFile(
    new URL("../../lib/layers/SPANS.md", import.meta.url),
  );
  const hex = [...text.matchAll(/^[0-9a-f]{4} {2}((?:[0-9a-f]{2} ?)+)/gm)]
    .map((m) => m[1]!.replaceAll(" ", "")).join("");
  const example = compressed(1, 2, "gzip");
  Object.assign(example, {
    blobDigest: `sha256:${"11".repeat(32)}`,
    blobSize: 5000,
    diffId: `sha256:${"22".repeat(32)}`,
    tarSize: 20480,
    spanSize: 65536,
    members: 2,
    spanOffset: Float64Array.of(0, 10240),
    spanDigest: Uint8Array.fromHex("aa".repeat(32) + "bb".repeat(32)),
    checkpoints: {
      count: 2,
      span: Uint32Array.of(0, 1),
      compressedOffset: Float64Array.of(10, 2500),
      bits: Uint8Array.of(0, 0),
      window: [new Uint8Array(0), new Uint8Array(0)],
    },
  });
  assert.equal(hex, encodeSpans(example).toHex());
});

Deno.test("spanIndexOf() and checkpointsOf() take a scan to a reader", () => {
  const index = compressed(9, 12, "gzip");
  const checkpoints = {
    count: 12,
    uncompressedOffset: index.spanOffset,
    compressedOffset: Float64Array.from({ length: 12 }, (_, i) => 10 + i * 99),
    bits: new Uint8Array(12),
    window: Array.from({ length: 12 }, () => new Uint8Array(0)),
  };
  const scan = {
    blobDigest: digest(7),
    blobSize: 100_000,
    compression: "gzip" as const,
    diffId: digest(8),
    tarSize: index.tarSize,
    members: 1,
    spans: {
      count: 12,
      uncompressedOffset: index.spanOffset,
      size: new Float64Array(12),
      sha256: index.spanDigest,
    },
    checkpoints,
  };
  const options = { mediaType: "x", spanSize: 1 << 20 };
  const single = decodeSpans(encodeSpans(spanIndexOf(scan, options)));
  assert.equal(single.access, "gzip.meta");
  const meta = readGzipMeta(
    writeGzipMeta({
      spanSize: 1 << 20,
      gzipSize: 100_000,
      uncompressedSize: index.tarSize,
      checkpoints,
    }),
    100_000,
  );
  assert.equal(checkpointsOf(single, meta), meta.checkpoints);
  assert.throws(() => checkpointsOf(single, undefined), /missing/);
  for (
    const other of [
      { ...meta, gzipSize: 1 },
      { ...meta, uncompressedSize: 1 },
      { ...meta, checkpoints: { ...checkpoints, count: 11 } },
      {
        ...meta,
        checkpoints: {
          ...checkpoints,
          uncompressedOffset: checkpoints.uncompressedOffset.map((o) => o + 1),
        },
      },
    ]
  ) {
    assert.throws(() => checkpointsOf(single, other), FormatError);
  }
  const multi = decodeSpans(
    encodeSpans(spanIndexOf({ ...scan, members: 2 }, options)),
  );
  assert.equal(multi.access, "checkpoints");
  const own = checkpointsOf(multi, undefined);
  assert.deepEqual(own.uncompressedOffset, index.spanOffset);
  assert.deepEqual(own.compressedOffset, checkpoints.compressedOffset);
  assert.equal(checkpointsOf(plain(5), undefined).count, 0);
});

Deno.test("encodeSpans() refuses what contradicts itself", () => {
  const bad: Partial<SpanIndex>[] = [
    { access: "gzip.meta" },
    { blobSize: 1 },
    { diffId: digest(9) },
    { members: 1 },
    { spanOffset: Float64Array.of(1, 131072, 262144) },
    { spanDigest: new Uint8Array(31) },
    { blobDigest: "md5:00" },
    { mediaType: "x".repeat(256) },
    { compression: "zstd" },
  ];
  for (const change of bad) {
    assert.throws(
      () => encodeSpans({ ...plain(300_000), ...change }),
      TypeError,
    );
  }
});

Deno.test("decodeSpans() refuses unknown versions and flags by name", () => {
  const good = encodeSpans(plain(300_000));
  for (
    const [at, message] of [[SP.version, /version 2/], [
      SP.flags,
      /flags/,
    ]] as const
  ) {
    const bad = good.slice();
    bad[at] = 2;
    assert.throws(() => decodeSpans(seal(bad)), (error: unknown) => {
      assert.ok(error instanceof UnsupportedError);
      assert.match(error.message, message);
      return true;
    });
  }
});

Deno.test("decodeSpans() refuses bytes that nothing refers to", () => {
  const good = encodeSpans(compressed(4, 3, "gzip"));
  const grown = new Uint8Array(good.length + 5);
  grown.set(good.subarray(0, good.length - 32));
  const v = new DataView(grown.buffer);
  v.setUint32(SP.fileSize, grown.length, true);
  assert.throws(() => decodeSpans(seal(grown)), /do not fill the file/);
  v.setUint32(SP.windowsSize, v.getUint32(SP.windowsSize, true) + 5, true);
  assert.throws(() => decodeSpans(seal(grown)), /windows/);
});

Deno.test("decodeSpans() finds every flipped bit", () => {
  const good = encodeSpans(compressed(4, 3, "gzip"));
  for (let bit = 0; bit < good.length * 8; bit++) {
    const bad = good.slice();
    bad[bit >> 3]! ^= 1 << (bit & 7);
    assert.throws(() => decodeSpans(bad), ObdError);
  }
  for (let size = 0; size < good.length; size += 7) {
    assert.throws(() => decodeSpans(good.subarray(0, size)), ObdError);
  }
});

Deno.test("decodeSpans() survives hostile files with right checksums", () => {
  const goods = [
    encodeSpans(compressed(4, 30, "gzip")),
    encodeSpans(compressed(5, 300, "zstd")),
    encodeSpans(plain(10_000_000)),
  ];
  const random = seeded(8);
  let refused = 0;
  for (let i = 0; i < 4000; i++) {
    const good = goods[i % goods.length]!;
    const bad = good.slice();
    for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
      const at = random() < 0.7
        ? 12 + Math.floor(random() * (SP.SIZE - 12))
        : Math.floor(random() * bad.length);
      bad[at] = random() < 0.3 ? 0xff : Math.floor(random() * 256);
    }
    try {
      decodeSpans(seal(bad));
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
      refused++;
    }
  }
  assert.ok(refused > 1500, `${refused}`);
});

Deno.test("varints: shortest form, bounds, exact fill", () => {
  const values = [
    ...[0, 1, 127, 128, 16383, 16384, 2 ** 31, 2 ** 32, 2 ** 49 - 1],
    ...[2 ** 49, Number.MAX_SAFE_INTEGER],
  ];
  const writer = new VarintWriter();
  for (let i = 0; i < 500; i++) values.forEach((v) => writer.push(v));
  const bytes = writer.bytes();
  const got = readVarints(bytes, values.length * 500, "x");
  assert.ok(got.every((v, i) => v === values[i % values.length]));
  assert.throws(() => readVarints(bytes, values.length * 500 - 1, "x"));
  for (
    const hex of ["80", "8000", "ffffffffffffffff01", "ffffffffffffff20", ""]
  ) {
    assert.throws(
      () => readVarints(Uint8Array.fromHex(hex), 1, "x"),
      FormatError,
    );
  }
  for (const value of [-1, 0.5, 2 ** 53, NaN]) {
    assert.throws(() => new VarintWriter().push(value), TypeError);
  }
});

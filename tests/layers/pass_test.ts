import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import { inflateAt } from "../../lib/compress/mod.ts";
import {
  CancelledError,
  concatBytes,
  equalBytes,
  FormatError,
  IntegrityError,
  UnsupportedError,
  utf8,
} from "../../lib/io/mod.ts";
import { packCheckpoint } from "../../lib/compress/checkpoint_search.ts";
import {
  type LayerScan,
  PLAIN_SPAN_SIZE,
  scanLayer,
  type ScanOptions,
} from "../../lib/layers/pass/mod.ts";
import { golden } from "../testutil/requires.ts";
import { until } from "../testutil/until.ts";
import { sampleBytes } from "../compress/samples.ts";

function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

async function* pieces(bytes: Uint8Array, size: number) {
  for (let at = 0; at < bytes.length; at += size) {
    await Promise.resolve();
    yield bytes.subarray(at, at + size);
  }
}

/** A receiver that keeps all it gets. */
class Collector {
  readonly parts: Uint8Array[] = [];
  finished = false;
  push(bytes: Uint8Array): void {
    this.parts.push(bytes.slice());
  }
  finish(): void {
    this.finished = true;
  }
}

/** A tar with one file per part: right headers are all that the pass looks at. */
function makeTar(size: number): Uint8Array<ArrayBuffer> {
  const header = new Uint8Array(512);
  header.set(utf8("file"));
  header.set(utf8("0000644\0"), 100);
  header.set(utf8("0000000\0"), 108);
  header.set(utf8("0000000\0"), 116);
  header.set(utf8(size.toString(8).padStart(11, "0") + "\0"), 124);
  header.set(utf8("00000000000\0"), 136);
  header.set(utf8("        0"), 148);
  header.set(utf8("ustar\x0000"), 257);
  const sum = header.reduce((a, b) => a + b, 0);
  header.set(utf8(sum.toString(8).padStart(6, "0") + "\0 "), 148);
  const parts: Uint8Array[] = [header];
  for (let at = 0, seed = 1; at < size; at += 100_000, seed++) {
    parts.push(
      sampleBytes(
        seed,
        Math.min(100_000, size - at),
        seed % 3 === 0 ? "random" : seed % 7 === 0 ? "zeros" : "text",
      ),
    );
  }
  const padding = (512 - (size % 512)) % 512;
  return concatBytes([...parts, new Uint8Array(padding + 1024)]);
}

async function scan(
  blob: Uint8Array,
  options: Partial<ScanOptions> & { pieceSize?: number } = {},
): Promise<LayerScan> {
  return await scanLayer(pieces(blob, options.pieceSize ?? 65_536), {
    blobSize: blob.length,
    expectedDigest: digestOf(blob),
    ...options,
  });
}

function checkScan(result: LayerScan, blob: Uint8Array, tar: Uint8Array): void {
  assert.equal(result.blobDigest, digestOf(blob));
  assert.equal(result.blobSize, blob.length);
  assert.equal(result.diffId, digestOf(tar));
  assert.equal(result.tarSize, tar.length);
  const { spans, checkpoints } = result;
  let at = 0;
  for (let i = 0; i < spans.count; i++) {
    assert.equal(spans.uncompressedOffset[i], at);
    const content = tar.subarray(at, at + spans.size[i]!);
    assert.equal(
      spans.sha256.subarray(32 * i, 32 * i + 32).toHex(),
      createHash("sha256").update(content).digest("hex"),
      `span ${i}`,
    );
    if (result.compression === "gzip") {
      assert.equal(checkpoints.uncompressedOffset[i], at);
      const bits = checkpoints.bits[i]!;
      const packed = checkpoints.window[i]!;
      const out = new Uint8Array(content.length);
      const end = checkpoints.compressedOffset[i + 1] ?? blob.length;
      const input = blob.subarray(
        checkpoints.compressedOffset[i]! - (bits === 0 ? 0 : 1),
        end,
      );
      const window = packed.length === 0
        ? packed
        : new Uint8Array(zlib.inflateSync(packed));
      inflateAt({ input, bits, window }, out);
      assert.ok(equalBytes(out, content), `span ${i} from its checkpoint`);
    }
    at += content.length;
  }
  assert.equal(at, tar.length);
  assert.equal(spans.sha256.length, 32 * spans.count);
}

const TAR = makeTar(9_000_001);
const GZIP = new Uint8Array(zlib.gzipSync(TAR));

Deno.test("scanLayer() of a gzip layer: same result for any threads and pieces", async () => {
  let first: LayerScan | undefined;
  for (const threads of [1, 2, 3]) {
    for (const pieceSize of [65_536, 1_000_003, GZIP.length]) {
      const walker = new Collector();
      let progress = 0;
      const result = await scan(GZIP, {
        threads,
        pieceSize,
        walker,
        expectedDiffId: digestOf(TAR),
        onProgress: (bytes) => progress += bytes,
      });
      assert.ok(walker.finished);
      assert.ok(equalBytes(concatBytes(walker.parts), TAR));
      assert.equal(progress, GZIP.length);
      if (first === undefined) {
        first = result;
        assert.equal(result.compression, "gzip");
        assert.equal(result.members, 1);
        assert.ok(result.spans.count >= 8);
        checkScan(result, GZIP, TAR);
      }
      assert.deepEqual(result, first);
    }
  }
});

Deno.test("scanLayer() of a plain tar: 128 KiB spans, no checkpoints", async () => {
  for (const threads of [1, 2, 3]) {
    const walker = new Collector();
    const result = await scan(TAR, { threads, walker });
    assert.equal(result.compression, "none");
    assert.equal(result.checkpoints.count, 0);
    assert.equal(result.members, 0);
    assert.equal(result.spans.count, Math.ceil(TAR.length / PLAIN_SPAN_SIZE));
    assert.equal(result.spans.size[0], PLAIN_SPAN_SIZE);
    checkScan(result, TAR, TAR);
    assert.ok(equalBytes(concatBytes(walker.parts), TAR));
  }
  const empty = await scan(new Uint8Array(1024));
  assert.equal(empty.spans.count, 1);
  const nothing = await scan(new Uint8Array(0));
  assert.equal(nothing.spans.count, 0);
  assert.equal(nothing.tarSize, 0);
});

Deno.test("scanLayer() follows blocks that are bigger than its rings", async () => {
  const tar = makeTar(50_000_000).fill(0, 600_000, 21_500_000)
    .fill(0, 27_000_000, 49_000_000);
  // Level 1 of the runtime's zlib makes one single block of all it gets.
  const members = [[0, 3e6, 6], [3e6, 25e6, 1], [25e6, 26e6, 6], [26e6, 5e7, 1]]
    .map(([from, to, level]) =>
      new Uint8Array(
        zlib.gzipSync(tar.subarray(from, to === 5e7 ? undefined : to), {
          level: level!,
        }),
      )
    );
  const blob = concatBytes(members);
  const results: LayerScan[] = [];
  for (const threads of [1, 2, 3]) {
    const result = await scan(blob, { threads });
    assert.equal(result.members, 4);
    results.push(result);
  }
  checkScan(results[0]!, blob, tar);
  assert.deepEqual(results[1], results[0]);
});

for (const name of ["layer1", "layer2"]) {
  const path = golden(`layers/${name}.tar.gz`);
  Deno.test({
    name: `scanLayer() of golden ${name}: small windows`,
    ignore: path === undefined,
    async fn() {
      const blob = await Deno.readFile(path!);
      const result = await scan(blob);
      checkScan(result, blob, new Uint8Array(zlib.gunzipSync(blob)));
      let windows = 0;
      for (const window of result.checkpoints.window) windows += window.length;
      assert.ok(windows < blob.length * 0.01, `${windows} of ${blob.length}`);
    },
  });
}

Deno.test("scanLayer() refuses what is wrong, with typed errors", async () => {
  const flipped = GZIP.slice();
  flipped[GZIP.length >> 1]! ^= 0x10;
  const badCrc = GZIP.slice();
  badCrc[GZIP.length - 6]! ^= 1;
  const badSize = GZIP.slice();
  badSize[GZIP.length - 2]! ^= 1;
  const garbage = concatBytes([GZIP, utf8("garbage")]);
  const cut = GZIP.subarray(0, GZIP.length - 100_000);
  type ErrorClass = new (...args: never[]) => Error;
  const cases: [string, Uint8Array, Partial<ScanOptions>, ErrorClass][] = [
    ["wrong digest", GZIP, { expectedDigest: digestOf(TAR) }, IntegrityError],
    ["wrong diffID", GZIP, { expectedDiffId: digestOf(GZIP) }, IntegrityError],
    ["too short", GZIP, { blobSize: GZIP.length + 1 }, IntegrityError],
    ["too long", GZIP, { blobSize: GZIP.length - 1 }, IntegrityError],
    ["truncated", cut, { blobSize: GZIP.length }, IntegrityError],
    ["truncated at the right size", cut, {}, FormatError],
    ["gzip CRC", badCrc, {}, IntegrityError],
    ["gzip size", badSize, {}, IntegrityError],
    ["trailing garbage", garbage, {}, FormatError],
    ["not sha256", GZIP, { expectedDigest: "md5:abc" }, UnsupportedError],
  ];
  for (const threads of [1, 2, 3]) {
    for (const [name, blob, options, errorClass] of cases) {
      const walker = new Collector();
      await assert.rejects(
        scan(blob, { threads, walker, ...options }),
        errorClass,
        `${name}, ${threads}`,
      );
      assert.ok(!walker.finished, name);
    }
    await assert.rejects(
      scan(flipped, { threads }),
      (error) =>
        error instanceof FormatError || error instanceof IntegrityError,
    );
  }
  const padded = concatBytes([GZIP, new Uint8Array(5000)]);
  assert.equal((await scan(padded, { threads: 1 })).tarSize, TAR.length);
});

Deno.test("scanLayer() names other compressions", async () => {
  const heads: [string, number[]][] = [
    ["bzip2", [0x42, 0x5a, 0x68, 0x39]],
    ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
    ["unknown", [1, 2, 3]],
  ];
  for (const [name, head] of heads) {
    const blob = new Uint8Array(1000);
    blob.set(head);
    await assert.rejects(
      scan(blob),
      (error) =>
        error instanceof UnsupportedError && error.message.includes(name),
    );
  }
  await assert.rejects(scan(new Uint8Array(100)), FormatError);
});

/** Aborts its reader in the middle and then takes its time. */
class HangingInput {
  closed = false;
  readonly #control: AbortController;
  constructor(control: AbortController) {
    this.#control = control;
  }
  async *[Symbol.asyncIterator]() {
    try {
      yield GZIP.subarray(0, 1_500_000);
      setTimeout(() => this.#control.abort(), 20);
      await new Promise((resolve) => setTimeout(resolve, 60));
      yield GZIP.subarray(1_500_000, 1_500_001);
    } finally {
      this.closed = true;
    }
  }
}

async function* failing() {
  yield GZIP.subarray(0, 1_500_000);
  await Promise.resolve();
  throw new RangeError("input broke");
}

Deno.test("scanLayer() stops promptly when cancelled, when its input or its walker fails", async () => {
  for (const threads of [1, 2, 3]) {
    const control = new AbortController();
    const input = new HangingInput(control);
    await assert.rejects(
      scan(GZIP, { threads, signal: AbortSignal.abort() }),
      CancelledError,
    );
    const start = performance.now();
    await assert.rejects(
      scanLayer(input, {
        blobSize: GZIP.length,
        expectedDigest: digestOf(GZIP),
        threads,
        signal: control.signal,
      }),
      CancelledError,
    );
    assert.ok(performance.now() - start < 4000);
    await until(() => input.closed, "closing the input");

    await assert.rejects(
      scanLayer(failing(), {
        blobSize: GZIP.length,
        expectedDigest: digestOf(GZIP),
        threads,
      }),
      /input broke/,
    );
    let pushed = 0;
    const walker = {
      push(bytes: Uint8Array) {
        pushed += bytes.length;
        if (pushed > 2_000_000) {
          throw new FormatError("tar", "header", "is bad");
        }
      },
      finish() {},
    };
    await assert.rejects(scan(GZIP, { threads, walker }), FormatError);
  }
});

Deno.test("scanLayer() survives mutated layers", async () => {
  const tar = makeTar(150_000);
  const blob = new Uint8Array(zlib.gzipSync(tar));
  let seed = 1;
  const random = (limit: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return Math.floor(seed / 2 ** 32 * limit);
  };
  for (let round = 0; round < 60; round++) {
    const mutated = blob.slice(0, blob.length - random(2) * random(1000));
    for (let n = random(4); n >= 0; n--) {
      mutated[random(mutated.length)] = random(256);
    }
    try {
      const result = await scan(mutated, { spanSize: 65_536 });
      checkScan(result, mutated, new Uint8Array(zlib.gunzipSync(mutated)));
    } catch (error) {
      assert.ok(
        error instanceof FormatError || error instanceof IntegrityError ||
          error instanceof UnsupportedError,
        String(error),
      );
    }
  }
});

Deno.test({
  name: "packed windows are what this release of the runtime makes of them",
  ignore: Deno.build.arch !== "x86_64",
  fn() {
    // Meta images are the same bytes for one release of the runtime and CPU
    // architecture. A change here with a new runtime is a line in the change log.
    const { window } = packCheckpoint({
      compressedOffset: 0,
      bits: 0,
      uncompressedOffset: 0,
      window: sampleBytes(1, 32_768, "text"),
    });
    assert.equal(
      digestOf(window),
      "sha256:969dce6d1e30247ab3c288fae12546e09814cfa5b528463e294416c1738d08fe",
    );
  },
});

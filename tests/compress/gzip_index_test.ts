import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { inflateAt, WINDOW_SIZE } from "../../lib/compress/mod.ts";
import {
  concatBytes,
  equalBytes,
  FormatError,
  IntegrityError,
  ObdError,
  utf8,
  viewOf,
} from "../../lib/io/mod.ts";
import { PlainRawInflate } from "../../lib/compress/raw_inflate.ts";
import { golden, requires } from "../testutil/requires.ts";
import { DeflateWriter, gzipMember } from "./deflate_writer.ts";
import { checkSpans, indexBlob } from "./index_blob.ts";
import { mulberry32, sampleBytes } from "./samples.ts";

/** The entries of a gzip.meta. */
function goldenEntries(meta: Uint8Array) {
  const view = viewOf(meta);
  const start = Number(view.getBigUint64(313, true));
  const length = Number(view.getBigUint64(321, true));
  const area = meta.subarray(start, start + length);
  const entries = new Uint8Array(zlib.inflateSync(area));
  const table = viewOf(entries);
  return Array.from({ length: entries.length / 29 }, (_, i) => {
    const windowAt = Number(table.getBigInt64(29 * i + 16, true));
    const windowSize = table.getUint32(29 * i + 25, true);
    return {
      uncompressedOffset: Number(table.getBigInt64(29 * i, true)),
      compressedOffset: Number(table.getBigInt64(29 * i + 8, true)),
      bits: entries[29 * i + 24]!,
      window: meta.subarray(windowAt, windowAt + windowSize),
    };
  });
}

for (
  const [blobName, metaName] of [
    ["unit/txt.gz", "unit/t.idx"],
    ["unit/L.tar.gz", "unit/g.idx"],
    ["layers/layer1.tar.gz", "turbo-gz/layer1.gzip.meta"],
    ["layers/layer2.tar.gz", "turbo-gz/layer2.gzip.meta"],
  ] as const
) {
  const blobPath = golden(blobName);
  const metaPath = golden(metaName);
  Deno.test({
    name: `GzipIndexer agrees with overlaybd's index of ${blobName}`,
    ignore: !blobPath || !metaPath,
    async fn() {
      const blob = await Deno.readFile(blobPath!);
      const want = goldenEntries(await Deno.readFile(metaPath!));
      // Every boundary as a checkpoint: theirs must be among them.
      const index = indexBlob(blob, { spanSize: 1, sparseWindows: false });
      assert.ok(
        equalBytes(index.content, new Uint8Array(zlib.gunzipSync(blob))),
      );
      const ours = new Map(
        index.checkpoints.map((c) => [c.uncompressedOffset, c]),
      );
      for (const { window, ...place } of want) {
        const found = ours.get(place.uncompressedOffset);
        assert.ok(found, `none at ${place.uncompressedOffset}`);
        assert.equal(found.compressedOffset, place.compressedOffset);
        assert.equal(found.bits, place.bits);
        const full = new Uint8Array(zlib.inflateSync(window));
        assert.ok(
          equalBytes(
            found.window.length ? found.window : new Uint8Array(WINDOW_SIZE),
            full,
          ),
        );
      }
      checkSpans(blob, index);
      const sparse = indexBlob(blob, { pieceSize: 10_007 });
      checkSpans(blob, sparse);
      let kept = 0;
      for (const { window } of sparse.checkpoints) {
        for (const byte of window) if (byte !== 0) kept++;
      }
      assert.ok(kept < sparse.checkpoints.length * WINDOW_SIZE * 0.7);
      // A single wrong byte in a window that is in use must show.
      const last = sparse.checkpoints.at(-1)!;
      if (last.window.length > 0) {
        const window = last.window.map((b) => b ^ 1);
        const out = new Uint8Array(WINDOW_SIZE);
        inflateAt({
          bits: last.bits,
          window,
          input: blob.subarray(last.compressedOffset - (last.bits ? 1 : 0)),
        }, out);
        const at = last.uncompressedOffset;
        assert.ok(
          !equalBytes(out, index.content.subarray(at, at + WINDOW_SIZE)),
        );
      }
    },
  });
}

Deno.test("checkpoints of hand-made streams: every bit, every kind of block", () => {
  // Blocks that straddle each multiple of 64 KiB, at all alignments.
  const seen = new Set<number>();
  for (let shift = 0; shift < 8; shift++) {
    const writer = new DeflateWriter();
    writer.startFixed();
    for (let i = 0; i < shift; i++) writer.literal(200);
    writer.endBlock();
    const noise = sampleBytes(shift, 60_000, "random");
    for (let round = 0; round < 4; round++) {
      writer.stored(noise, false, round & 1);
      writer.startFixed();
      for (let i = 0; i < 7000 + 13 * shift + round; i++) {
        if (i % 3 === 0) writer.match3(1 + (i * 7919) % 32_768);
        else writer.literal((i * 31) & 255);
      }
      writer.endBlock();
      writer.dynamicRun(20 + 7 * shift, 1000 + round);
      writer.startFixed().literal(1).endBlock();
    }
    writer.startFixed(true).literal(0).endBlock();
    const blob = writer.gzip();
    const index = indexBlob(blob, { spanSize: 65_536 });
    assert.ok(equalBytes(index.content, Uint8Array.from(writer.content)));
    assert.ok(index.checkpoints.length >= 4);
    checkSpans(blob, index);
    for (const { bits } of index.checkpoints) seen.add(bits);
  }
  assert.ok(seen.size >= 6, `bits seen: ${[...seen]}`);
});

Deno.test("the index depends on the blob alone, not on its pieces or decoder", () => {
  const blob = new Uint8Array(
    zlib.gzipSync(sampleBytes(8, 3_000_000, "text")),
  );
  const want = indexBlob(blob, { spanSize: 65_536 });
  assert.ok(want.checkpoints.length > 10);
  for (const pieceSize of [997, 65_536, blob.length]) {
    const got = indexBlob(blob, { spanSize: 65_536, pieceSize });
    assert.deepEqual(got.checkpoints, want.checkpoints);
  }
  const plain = indexBlob(blob, {
    spanSize: 65_536,
    inflate: new PlainRawInflate(),
  });
  assert.deepEqual(plain.checkpoints, want.checkpoints);
  checkSpans(blob, want);
});

Deno.test("headers with every field, and members one after another with padding", () => {
  const content = sampleBytes(2, 200_000, "text");
  const deflated = zlib.deflateRawSync(content);
  const plain = [0x1f, 0x8b, 8, 0x1c, 1, 2, 3, 4, 2, 3];
  const fields = [3, 0, 65, 66, 67, ...utf8("name\0"), ...utf8("comment\0")];
  const withCrc = [...plain.with(3, 0x1e), ...fields];
  const crc = zlib.crc32(Uint8Array.from(withCrc)) & 0xffff;
  const headers = [
    [...plain, ...fields],
    [...withCrc, crc & 255, crc >>> 8],
    [0x1f, 0x8b, 8, 1, 0, 0, 0, 0, 0, 255],
  ];
  const members = headers.map((h) =>
    gzipMember(deflated, content, Uint8Array.from(h))
  );
  const blob = concatBytes([...members, new Uint8Array(1000)]);
  const index = indexBlob(blob, { spanSize: 65_536, pieceSize: 100 });
  assert.equal(index.members, 3);
  assert.equal(index.content.length, 600_000);
  checkSpans(blob, index);
  // Spans bigger than a member go over its end.
  const coarse = indexBlob(blob, { spanSize: 1 << 20 });
  assert.equal(coarse.checkpoints.length, 1);
  checkSpans(blob, coarse);

  const badCrc = Uint8Array.from([...withCrc, crc & 255, (crc >>> 8) ^ 1]);
  const reserved = Uint8Array.from(headers[2]!.with(3, 0x20));
  const method = Uint8Array.from(headers[2]!.with(2, 7));
  const endless = new Uint8Array(1_500_000).fill(65);
  endless.set(headers[2]!.with(3, 8));
  for (const header of [badCrc, reserved, method, endless]) {
    assert.throws(
      () => indexBlob(gzipMember(deflated, content, header)),
      ObdError,
    );
  }
});

Deno.test("thousands of tiny members, and members without content", () => {
  const parts: Uint8Array[] = [];
  for (let i = 0; i < 4000; i++) {
    parts.push(new Uint8Array(zlib.gzipSync(sampleBytes(i, i % 97, "text"))));
  }
  const blob = concatBytes(parts);
  const index = indexBlob(blob, { spanSize: 65_536 });
  assert.equal(index.members, 4000);
  assert.equal(index.checkpoints.length, 3);
  checkSpans(blob, index);
  const empty = indexBlob(new Uint8Array(zlib.gzipSync(new Uint8Array(0))));
  assert.equal(empty.content.length, 0);
  assert.equal(empty.checkpoints.length, 1);
});

Deno.test("wrong, cut and continued blobs are refused", () => {
  const content = sampleBytes(4, 300_000, "text");
  const blob = new Uint8Array(zlib.gzipSync(content));
  for (const cut of [0, 1, 5, 9, 10, 1000, blob.length - 9, blob.length - 1]) {
    assert.throws(() => indexBlob(blob.subarray(0, cut)), FormatError);
  }
  const tail = (bytes: number[]) => concatBytes([blob, Uint8Array.from(bytes)]);
  for (const bytes of [[1], [0, 0, 1], [0x1f], [0x1f, 0x8b], [0x1f, 0x8b, 9]]) {
    assert.throws(() => indexBlob(tail(bytes)), FormatError, `${bytes}`);
  }
  const changed = (at: number) => blob.with(at, blob[at]! ^ 1);
  assert.throws(() => indexBlob(changed(blob.length - 8)), IntegrityError);
  assert.throws(() => indexBlob(changed(blob.length - 1)), IntegrityError);
  assert.throws(() => indexBlob(blob, { outputSizeMax: 299_999 }), FormatError);
  assert.throws(() => indexBlob(blob, { spanSize: 2 ** 27 }), RangeError);
  const random = mulberry32(6);
  for (let round = 0; round < 40; round++) {
    const mutated = blob.slice();
    mutated[Math.floor(random() * blob.length)]! ^= 1 << (random() * 8);
    try {
      checkSpans(mutated, indexBlob(mutated, { spanSize: 65_536 }));
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
    }
  }
});

Deno.test("inflateAt() refuses what does not fit", () => {
  const content = sampleBytes(4, 1_000_000, "text");
  const blob = new Uint8Array(zlib.gzipSync(content));
  const { checkpoints } = indexBlob(blob, { spanSize: 65_536 });
  const { bits, window, compressedOffset } = checkpoints[2]!;
  const input = blob.subarray(compressedOffset - 1);
  const out = new Uint8Array(50_000);
  const attempts = [
    { bits, window, input: input.subarray(0, 100) },
    { bits, window: new Uint8Array(5), input },
    { bits: 8, window, input },
    { bits: -1, window, input },
    { bits, window, input: new Uint8Array(0) },
    { bits: 0, window, input: new Uint8Array(5000).fill(0xff) },
  ];
  for (const attempt of attempts) {
    assert.throws(() => inflateAt(attempt, out), FormatError);
  }
  const random = mulberry32(16);
  for (let round = 0; round < 500; round++) {
    const mutated = input.slice();
    mutated[Math.floor(random() * 3000)] = random() * 256;
    try {
      inflateAt(
        { bits: Math.floor(random() * 8), window, input: mutated },
        out,
      );
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
    }
  }
});

for (
  const [tool, ...args] of [
    ["gzip", "-1"],
    ["gzip", "-9"],
    ["gzip", "--rsyncable"],
    ["pigz", "-6", "-b", "128"],
    ["pigz", "-11"],
    ["pigz", "-1", "-i"],
  ]
) {
  Deno.test({
    name: `checkpoints of ${tool} ${args.join(" ")}`,
    ignore: !requires(tool!),
    async fn() {
      const dir = await Deno.makeTempDir();
      try {
        const parts = ["text", "random", "zeros", "pattern"] as const;
        const size = args[0] === "-11" ? 30_000 : 700_000;
        const content = concatBytes(
          parts.map((kind, i) => sampleBytes(i, size, kind)),
        );
        await Deno.writeFile(`${dir}/x`, content);
        const { success, stdout } = await new Deno.Command(tool!, {
          args: [...args, "-c", `${dir}/x`],
        }).output();
        assert.ok(success);
        const index = indexBlob(stdout, { spanSize: 65_536 });
        assert.ok(equalBytes(index.content, content));
        assert.ok(index.checkpoints.length > (size > 30_000 ? 4 : 0));
        checkSpans(stdout, index);
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}

import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { Gunzip } from "../../lib/compress/mod.ts";
import { concatBytes, FormatError } from "../../lib/io/mod.ts";
import { seededBytes, seededRandom } from "../testutil/source_contract.ts";

/** Decodes a blob given in pieces. */
function decode(blob: Uint8Array, pieceSize: number): Uint8Array {
  using gunzip = new Gunzip();
  const out: Uint8Array[] = [];
  for (let at = 0; at < blob.length; at += pieceSize) {
    for (const part of gunzip.push(blob.subarray(at, at + pieceSize))) {
      out.push(part.slice());
    }
  }
  gunzip.finish();
  return concatBytes(out);
}

const text = new TextEncoder().encode("start any container ".repeat(40_000));
const random = seededBytes(700_000, 5);

Deno.test("Gunzip: pieces of any size, members, what follows them", () => {
  const named = zlib.gzipSync(text);
  const blobs: [string, Uint8Array, Uint8Array][] = [
    ["text", zlib.gzipSync(text), text],
    ["noise", zlib.gzipSync(random), random],
    ["empty", zlib.gzipSync(new Uint8Array(0)), new Uint8Array(0)],
    [
      "members",
      concatBytes([named, zlib.gzipSync(random), named]),
      concatBytes([text, random, text]),
    ],
    ["padding", concatBytes([named, new Uint8Array(513)]), text],
    ["one byte behind", concatBytes([named, Uint8Array.of(0x1f)]), text],
  ];
  for (const [name, blob, want] of blobs) {
    for (const size of [1, 7, 4096, 65_536, 1 << 30]) {
      if (size === 1 && blob.length > 50_000) continue;
      assert.deepEqual(decode(blob, size), want, `${name} in ${size}`);
    }
  }
});

Deno.test("Gunzip refuses what is cut or damaged", () => {
  const blob = zlib.gzipSync(text);
  for (const length of [1, 5, 11, blob.length - 9, blob.length - 1]) {
    assert.throws(() => decode(blob.subarray(0, length), 100), FormatError);
  }
  for (const at of [0, 2, 3, blob.length - 8, blob.length - 1]) {
    const bad = blob.slice();
    bad[at]! ^= 0xe0;
    assert.throws(() => decode(bad, 1000), FormatError, `byte ${at}`);
  }
});

Deno.test("Gunzip gives the right bytes or a typed error for damaged blobs", () => {
  const blob = zlib.gzipSync(concatBytes([text, random.subarray(0, 20_000)]));
  const want = concatBytes([text, random.subarray(0, 20_000)]);
  const next = seededRandom(9);
  for (let i = 0; i < 400; i++) {
    const bad = blob.slice();
    bad[Math.floor(next() * bad.length)]! ^= 1 << Math.floor(next() * 8);
    try {
      assert.deepEqual(decode(bad, 1 + Math.floor(next() * 9000)), want);
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
    }
  }
});

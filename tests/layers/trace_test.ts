import assert from "node:assert/strict";
import { crc32c, FormatError, viewOf } from "../../lib/io/mod.ts";
import {
  decodeTrace,
  DEVICE_LAYER,
  encodeTrace,
  traceDevice,
  type TraceRecord,
  TraceRecorder,
} from "../../lib/layers/mod.ts";

const RECORDS: TraceRecord[] = [
  { layer: 0, offset: 4096, length: 8192 },
  { layer: DEVICE_LAYER, offset: 2 ** 40, length: 1 },
  { layer: 3, offset: 0, length: 1048576 },
];

Deno.test("encodeTrace() writes overlaybd's layout, byte by byte", () => {
  const bytes = encodeTrace(RECORDS.slice(0, 1));
  const want = new Uint8Array(48);
  want.set([0x20, 0x18, 0xef, 0xc2], 0);
  want[8] = 24;
  want.set([0x52, 0, 0, 0, 0, 0, 0, 0, 0, 0x20], 24);
  want[24 + 17] = 0x10;
  viewOf(want).setUint32(16, crc32c(want.subarray(24), 0), true);
  assert.deepEqual(bytes, want);
});

Deno.test("decodeTrace() reads what encodeTrace() wrote", () => {
  assert.deepEqual(decodeTrace(encodeTrace(RECORDS)), RECORDS);
  assert.deepEqual(decodeTrace(encodeTrace([])), []);
});

Deno.test("decodeTrace() with options gives the first records, checks all, and lets others have their turns", async () => {
  const many = Array.from(
    { length: 300_000 },
    (_, i) => ({ layer: DEVICE_LAYER, offset: i * 8192, length: 4096 }),
  );
  const bytes = encodeTrace(many);
  let turns = 0;
  const others = setInterval(() => turns++, 0);
  assert.deepEqual(await decodeTrace(bytes, { most: 10 }), many.slice(0, 10));
  assert.ok(turns > 1, `${turns} turns`);
  clearInterval(others);
  assert.equal((await decodeTrace(bytes, { most: 1e9 })).length, many.length);
  bytes[bytes.length - 1]! ^= 1;
  await assert.rejects(decodeTrace(bytes, { most: 10 }), /checksum/);
});

Deno.test("traceDevice() is what encodeTrace() was given, of records of a device alone", () => {
  const name = "0123456789abcdef";
  const ours = [RECORDS[1]!];
  const named = encodeTrace(ours, name + "77".repeat(24));
  assert.equal(traceDevice(named, ours), name);
  // What it says is in padding: nothing else is different.
  const plain = encodeTrace(ours);
  assert.equal(traceDevice(plain, ours), undefined);
  assert.deepEqual(decodeTrace(named), decodeTrace(plain));
  named.fill(0, 4, 8);
  named.fill(0, 20, 24);
  assert.deepEqual(named, plain);
  // overlaybd writes whatever was in memory there.
  assert.equal(traceDevice(encodeTrace(RECORDS, name), RECORDS), undefined);
});

Deno.test("decodeTrace() refuses every damaged file", () => {
  const good = encodeTrace(RECORDS);
  for (let at = 0; at < good.length; at++) {
    const padding = (at >= 4 && at < 8) || (at >= 20 && at < 24);
    if (padding) continue;
    const bad = good.slice();
    bad[at]! ^= 0x81;
    assert.throws(() => decodeTrace(bad), FormatError, `byte ${at}`);
  }
  for (const length of [0, 23, 24, 47, good.length - 1]) {
    assert.throws(() => decodeTrace(good.subarray(0, length)), FormatError);
  }
});

Deno.test("decodeTrace() refuses offsets above 2^53 under a right checksum", () => {
  for (const field of [8, 16]) {
    const bytes = encodeTrace(RECORDS.slice(0, 1));
    bytes.fill(0xff, 24 + field, 24 + field + 8);
    viewOf(bytes).setUint32(16, crc32c(bytes.subarray(24), 0), true);
    assert.throws(() => decodeTrace(bytes), FormatError);
  }
});

Deno.test("TraceRecorder notes each block once, in the order of first reads", () => {
  const recorder = new TraceRecorder();
  recorder.note(8192, 4096);
  recorder.note(12288, 100);
  recorder.note(0, 1);
  recorder.note(4095, 4098); // blocks 0, 1 and 2
  recorder.note(2 ** 40, 0);
  assert.deepEqual(recorder.records, [
    { layer: DEVICE_LAYER, offset: 8192, length: 8192 },
    { layer: DEVICE_LAYER, offset: 0, length: 8192 },
  ]);
  recorder.note(1024 * 1024, 3 * 1024 * 1024);
  assert.deepEqual(recorder.records.slice(2).map((r) => r.length), [
    1024 * 1024,
    1024 * 1024,
    1024 * 1024,
  ]);
});

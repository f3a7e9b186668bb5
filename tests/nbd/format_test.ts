import assert from "node:assert/strict";
import {
  CancelledError,
  IntegrityError,
  UsageError,
} from "../../lib/io/mod.ts";
import {
  formatNbdAddress,
  formatNbdUri,
  type NbdTarget,
  parseNbdAddress,
  parseNbdUri,
} from "../../lib/nbd/mod.ts";
import { BufferPool } from "../../lib/nbd/buffer_pool.ts";
import { Coverage } from "../../lib/nbd/coverage.ts";
import { nbdErrorName, nbdErrorOf } from "../../lib/nbd/errno.ts";
import {
  CHUNK_HEADER,
  getU64be,
  readRequest,
  REQUEST,
  setU64be,
  SIMPLE_REPLY,
  writeRequest,
} from "../../lib/nbd/protocol.ts";
import { planRead } from "../../lib/nbd/read_plan.ts";
import { newExportStats, recordLatency } from "../../lib/nbd/stats.ts";
import { seededRandom } from "../testutil/source_contract.ts";
import { request } from "./peer.ts";

Deno.test("NBD layouts: offsets ascend and end at SIZE", () => {
  const layouts: [Record<string, number>, number[]][] = [
    [REQUEST, [4, 2, 2, 8, 8, 4]],
    [SIMPLE_REPLY, [4, 4, 8]],
    [CHUNK_HEADER, [4, 2, 2, 8, 4]],
  ];
  for (const [layout, widths] of layouts) {
    let at = 0;
    const offsets = Object.values(layout);
    for (const [i, width] of widths.entries()) {
      assert.equal(offsets[i], at);
      at += width;
    }
    assert.equal(layout.SIZE, at);
  }
});

Deno.test("setU64be() and getU64be() agree with BigInt", () => {
  const view = new DataView(new ArrayBuffer(16));
  const random = seededRandom(1);
  const values = [0, 1, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER];
  for (let i = 0; i < 200; i++) values.push(Math.floor(random() * 2 ** 53));
  for (const value of values) {
    setU64be(view, 3, value);
    assert.equal(view.getBigUint64(3), BigInt(value));
    assert.equal(getU64be(view, 3), value);
  }
});

Deno.test("readRequest() reads what writeRequest() writes", () => {
  const fields = {
    flags: 0x1234,
    type: 0x5678,
    cookieHi: 0xfedcba98,
    cookieLo: 0x76543210,
    offset: 2 ** 40 + 5,
    length: 0xfffffffe,
  };
  const view = new DataView(new ArrayBuffer(40));
  writeRequest(view, 7, fields);
  assert.deepEqual(readRequest(view, 7), fields);
  assert.deepEqual(
    new Uint8Array(view.buffer, 7, 28),
    request({ ...fields, cookie: 0xfedcba9876543210n }),
  );
  view.setUint8(7, 0);
  assert.equal(readRequest(view, 7), undefined);
});

Deno.test("parseNbdAddress() reads what formatNbdAddress() writes", () => {
  const cases: [string, string?][] = [
    ["unix:/run/obd/nbd.sock"],
    ["127.0.0.1:10809"],
    ["[::1]:0"],
    ["host.example:65535"],
    [":10809", "0.0.0.0:10809"],
  ];
  for (const [text, canonical = text] of cases) {
    assert.equal(formatNbdAddress(parseNbdAddress(text)), canonical);
  }
  const bad = ["", "unix:", "host", "host:", "host:65536", "host:-1", "::1:5"];
  for (const text of [...bad, "a/b:5", "[::1]", "unix:a\0b"]) {
    assert.throws(() => parseNbdAddress(text), UsageError, text);
  }
});

Deno.test("parseNbdUri() reads what formatNbdUri() writes", () => {
  const unix = (path: string, exportName: string): NbdTarget => ({
    address: { transport: "unix", path },
    exportName,
  });
  const tcp = (
    hostname: string,
    port: number,
    exportName: string,
  ): NbdTarget => ({
    address: { transport: "tcp", hostname, port },
    exportName,
  });
  const cases: [string, NbdTarget, string?][] = [
    ["nbd+unix:///app?socket=/run/x.sock", unix("/run/x.sock", "app")],
    ["nbd+unix:///?socket=/run/x.sock", unix("/run/x.sock", "")],
    ["nbd+unix:///a%20b/c%3F?socket=/r%26%20u", unix("/r& u", "a b/c?")],
    ["nbd://host:10810/%C3%BC", tcp("host", 10810, "ü")],
    ["nbd://[::1]:1/x", tcp("::1", 1, "x")],
    ["nbd://host", tcp("host", 10809, ""), "nbd://host:10809/"],
  ];
  for (const [uri, target, canonical = uri] of cases) {
    assert.deepEqual(parseNbdUri(uri), target, uri);
    assert.equal(formatNbdUri(target), canonical);
  }
  const bad = [
    "app",
    "http://host/",
    "nbds://host/",
    "nbd+unix:///app",
    "nbd+unix:///%ff?socket=/x",
    `nbd://host/${"a".repeat(4097)}`,
  ];
  for (const uri of bad) {
    assert.throws(() => parseNbdUri(uri), UsageError, uri);
  }
});

Deno.test("nbdErrorOf() gives EIO but for what writes can lack", () => {
  const coded = (code: string) => Object.assign(new Error(code), { code });
  assert.equal(nbdErrorOf(coded("ENOSPC"), true), 28);
  assert.equal(nbdErrorOf(coded("ENOSPC"), false), 5);
  assert.equal(nbdErrorOf(coded("toString"), true), 5);
  assert.equal(nbdErrorOf(new CancelledError(), true), 5);
  assert.equal(nbdErrorOf(new IntegrityError("x", "a", "b"), false), 5);
  assert.equal(nbdErrorOf(undefined, true), 5);
  assert.equal(nbdErrorName(108), "ESHUTDOWN");
  assert.equal(nbdErrorName(77), "error 77");
});

Deno.test("Coverage is complete exactly when every byte came once", () => {
  const random = seededRandom(3);
  for (let round = 0; round < 300; round++) {
    const length = 1 + Math.floor(random() * 30);
    const seen = new Uint8Array(length);
    const coverage = new Coverage();
    for (let i = 0; i < 20; i++) {
      const start = Math.floor(random() * length);
      const end = start + 1 + Math.floor(random() * (length - start));
      const fresh = seen.subarray(start, end).every((b) => b === 0);
      assert.equal(coverage.add(start, end), fresh);
      if (!fresh) break;
      seen.fill(1, start, end);
      assert.equal(coverage.is(0, length), seen.every((b) => b === 1));
    }
  }
});

Deno.test("planRead() never splits a read into more than 64 runs", () => {
  const size = 1 << 20;
  const source = {
    size,
    pread: () => Promise.resolve(),
    *extents(offset: number, length: number) {
      for (let at = offset; at < offset + length; at += 4096) {
        const kind = at % 8192 === 0 ? "data" as const : "hole" as const;
        yield { offset: at, length: 4096, kind };
      }
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  const plan = (length: number) => planRead(source, 0, length, true, true);
  assert.equal(plan(64 * 4096).runs!.length, 64);
  assert.equal(plan(64 * 4096).wireBytes, 32 * (28 + 4096) + 32 * 32);
  assert.equal(plan(65 * 4096).runs, undefined);
  assert.equal(plan(65 * 4096).wireBytes, 28 + 65 * 4096);
});

Deno.test("planRead() takes short extents for data", () => {
  const source = {
    size: 100_000,
    pread: () => Promise.resolve(),
    extents: () => [{ offset: 0, length: 50_000, kind: "hole" as const }],
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  assert.equal(planRead(source, 0, 100_000, true, true).runs, undefined);
  assert.equal(planRead(source, 0, 50_000, true, true).runs!.length, 1);
  assert.equal(planRead(source, 0, 50_000, true, false).runs, undefined);
});

Deno.test("BufferPool lets go of what is not used for ten seconds", () => {
  const pool = new BufferPool();
  const buffer = pool.take(100_000);
  pool.give(buffer);
  pool.tick(1000);
  pool.tick(10_999);
  assert.equal(pool.take(100_000), buffer);
  pool.give(buffer);
  pool.tick(12_000);
  pool.tick(22_000);
  assert.notEqual(pool.take(100_000), buffer);
});

Deno.test("BufferPool gives buffers that are large enough, and again", () => {
  const pool = new BufferPool();
  for (const length of [1, 8192, 8193, 4096 + 65536, 1 << 20, 40 << 20]) {
    const buffer = pool.take(length);
    assert.ok(buffer.length >= length);
    pool.give(buffer);
    const again = pool.take(length);
    assert.equal(again === buffer, length <= 1 << 20);
  }
  const many = Array.from({ length: 40 }, () => pool.take(1 << 20));
  for (const buffer of many) pool.give(buffer);
  const kept = many.map(() => pool.take(1 << 20)).filter((b) =>
    many.includes(b)
  );
  assert.ok(kept.length > 4 && kept.length < 17, String(kept.length));
});

Deno.test("recordLatency() counts each latency in one bucket", () => {
  const { readLatency } = newExportStats();
  for (const seconds of [0, 0.0001, 0.00011, 60, 61]) {
    recordLatency(readLatency, seconds);
  }
  const { counts, boundsSeconds } = readLatency;
  assert.equal(counts.length, boundsSeconds.length + 1);
  assert.deepEqual([counts[0], counts[1], counts.at(-2), counts.at(-1)], [
    2,
    1,
    1,
    1,
  ]);
  assert.equal(readLatency.maxSeconds, 61);
});

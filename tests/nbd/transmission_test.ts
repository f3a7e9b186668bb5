import assert from "node:assert/strict";
import { equalBytes, IntegrityError, MemorySource } from "../../lib/io/mod.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { RecordingLogger } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";
import { pack, RawPeer, request, withServer } from "./peer.ts";
import { GatedSource, MemoryBlockSource, SparseSource } from "./sources.ts";

const READ = 0, WRITE = 1, DISC = 2, FLUSH = 3, TRIM = 4, CACHE = 5;
const ZERO = 6, STATUS = 7;
const FUA = 1, NO_HOLE = 2, DF = 4, REQ_ONE = 8, FAST_ZERO = 16;
const EPERM = 1, EIO = 5, EINVAL = 22, ENOSPC = 28;
const MiB = 1024 * 1024;

const content = seededBytes(2 * MiB + 777, 1);
const readable = () => new MemorySource(content);

function test(name: string, run: () => Promise<void>): void {
  Deno.test(`NBD transmission: ${name}`, run);
}

/** Requests that are refused, and that the next request is answered still. */
async function refused(
  peer: RawPeer,
  cases: [Parameters<typeof request>[0], number][],
): Promise<void> {
  for (const [fields, error] of cases) {
    await peer.send(request({ ...fields, cookie: 5n }));
    const reply = await peer.reply();
    const what = JSON.stringify(
      { ...fields, payload: 0, cookie: 0 },
      (_, v) => typeof v === "bigint" ? String(v) : v,
    );
    assert.deepEqual([reply.error, reply.cookie], [error, 5n], what);
    await peer.send(request({ type: READ, cookie: 6n, length: 1 }));
    let next = await peer.reply(1);
    assert.equal(next.cookie, 6n, what);
    while (!next.done) next = await peer.reply(1);
  }
}

test("reads answer with simple replies and the cookie's bytes", () =>
  withServer({}, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    using peer = await RawPeer.inTransmission(socket);
    const cookie = 0xfedcba9876543210n;
    for (
      const [offset, length] of [[0, 1], [content.length - 1, 1], [511, 70000]]
    ) {
      await peer.send(
        request({ type: READ, cookie, offset: offset!, length: length! }),
      );
      const reply = await peer.reply(length);
      assert.deepEqual([reply.error, reply.cookie], [0, cookie]);
      const want = content.subarray(offset, offset! + length!);
      assert.ok(equalBytes(reply.data, want));
    }
  }));

test("reads answer in one chunk when structured", () =>
  withServer({}, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    using peer = await RawPeer.inTransmission(socket, { structured: true });
    for (const flags of [0, DF]) {
      await peer.send(
        request({ type: READ, flags, cookie: 9n, offset: 100, length: 5000 }),
      );
      const reply = await peer.reply();
      assert.deepEqual(
        [reply.structured, reply.type, reply.done, reply.cookie],
        [true, 1, true, 9n],
      );
      assert.deepEqual(reply.data.subarray(0, 8), pack([100, 8]));
      assert.ok(
        equalBytes(reply.data.subarray(8), content.subarray(100, 5100)),
      );
    }
  }));

test("a wrong request magic ends the connection", async () => {
  const logger = new RecordingLogger();
  await withServer({ logger }, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: READ, length: 1, magic: 0x25609514 }));
    await peer.closed();
    await until(() => logger.count("nbd-connection-failed") === 1);
  });
});

test("bad reads are EINVAL and the connection goes on", () =>
  withServer({}, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    for (const structured of [false, true]) {
      using peer = await RawPeer.inTransmission(socket, { structured });
      const size = content.length;
      await refused(peer, [
        [{ type: READ, length: 0 }, EINVAL],
        [{ type: READ, offset: size, length: 1 }, EINVAL],
        [{ type: READ, offset: size - 1, length: 2 }, EINVAL],
        [{ type: READ, offset: 2n ** 64n - 1n, length: 2 }, EINVAL],
        [{ type: READ, offset: 2n ** 63n, length: 2 }, EINVAL],
        [{ type: READ, length: 32 * MiB + 1 }, EINVAL],
        [{ type: READ, length: 0xffffffff }, EINVAL],
        [{ type: READ, flags: 0x8000, length: 1 }, EINVAL],
        [{ type: READ, flags: FUA, length: 1 }, EINVAL],
        [{ type: READ, flags: NO_HOLE, length: 1 }, EINVAL],
        [{ type: CACHE, length: 0 }, EINVAL],
        [{ type: CACHE, offset: size, length: 1 }, EINVAL],
        [{ type: STATUS, length: 1 }, EINVAL],
        [{ type: 8, length: 1 }, EINVAL],
        [{ type: 0xffff, length: 1 }, EINVAL],
      ]);
      if (!structured) {
        await refused(peer, [[{ type: READ, flags: DF, length: 1 }, EINVAL]]);
      }
    }
    assert.equal(server.listExports()[0]!.stats.errors, 31);
  }));

test("a read-only export refuses changes with EPERM, in step", () =>
  withServer({}, async (server, socket) => {
    const source = new MemoryBlockSource(content.slice());
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    const payload = request({ type: READ, length: 1, cookie: 0xbadn });
    await refused(peer, [
      [{ type: WRITE, length: payload.length, payload }, EPERM],
      [{ type: WRITE, length: 0 }, EPERM],
      [{ type: TRIM, length: 512 }, EPERM],
      [{ type: ZERO, length: 512 }, EPERM],
      [{ type: FLUSH }, EINVAL],
    ]);
    assert.deepEqual(source.log, []);
  }));

test("bad writes are refused and their payload is dropped", () =>
  withServer({}, async (server, socket) => {
    const source = new MemoryBlockSource(content.slice());
    server.addExport({ name: "", source, readOnly: false });
    const { size } = source;
    using peer = await RawPeer.inTransmission(socket);
    const payload = new Uint8Array(300_000);
    const length = payload.length;
    await refused(peer, [
      [{ type: WRITE, offset: size - 1, length, payload }, ENOSPC],
      [{ type: WRITE, offset: 2n ** 64n - 1n, length, payload }, ENOSPC],
      [{ type: WRITE, flags: NO_HOLE, length, payload }, EINVAL],
      [{ type: WRITE, length: 0 }, EINVAL],
      [{ type: ZERO, offset: size, length: 1 }, ENOSPC],
      [{ type: ZERO, flags: FAST_ZERO, length: 1 }, EINVAL],
      [{ type: TRIM, offset: size, length: 1 }, EINVAL],
      [{ type: FLUSH, offset: 1 }, EINVAL],
      [{ type: FLUSH, length: 1 }, EINVAL],
    ]);
    const big = 32 * MiB + 1;
    await refused(peer, [
      [{ type: WRITE, length: big, payload: new Uint8Array(big) }, EINVAL],
    ]);
    assert.deepEqual(source.log, []);
    await peer.send(request({ type: WRITE, length: 64 * MiB + 1 }));
    await peer.closed();
  }));

test("writes, zeroes, trims and flushes reach the source", () =>
  withServer({}, async (server, socket) => {
    const source = new MemoryBlockSource(content.slice());
    const { stats } = server.addExport({ name: "", source, readOnly: false });
    using peer = await RawPeer.inTransmission(socket);
    const payload = seededBytes(200_000, 2);
    const send = async (fields: Parameters<typeof request>[0]) => {
      await peer.send(request(fields));
      assert.equal((await peer.reply(fields.type === READ ? 1 : 0)).error, 0);
    };
    await send({ type: WRITE, offset: 99, length: payload.length, payload });
    await send({ type: WRITE, flags: FUA, length: 1, payload: pack([1, 1]) });
    await send({ type: ZERO, flags: NO_HOLE, offset: 4096, length: 100 });
    await send({ type: ZERO, flags: FUA, offset: 8192, length: 100 });
    await send({ type: TRIM, offset: 12288, length: 100 });
    await send({ type: FLUSH });
    await send({ type: READ, flags: FUA, length: 1 });
    assert.deepEqual(source.log, [
      "write 99 200000",
      "write 0 1",
      "flush 0 0",
      "zero+ 4096 100",
      "zero 8192 100",
      "flush 0 0",
      "trim 12288 100",
      "flush 0 0",
    ]);
    const want = content.slice();
    want.set(payload, 99);
    want[0] = 1;
    for (const at of [4096, 8192, 12288]) want.fill(0, at, at + 100);
    assert.ok(equalBytes(source.bytes, want));
    assert.deepEqual(
      [stats.writes, stats.writeBytes, stats.flushes, stats.trims],
      [2, payload.length + 1, 1, 1],
    );
  }));

test("failed writes keep their errno, everything else is EIO", () =>
  withServer({}, async (server, socket) => {
    const source = new MemoryBlockSource(content.slice());
    server.addExport({ name: "", source, readOnly: false });
    using peer = await RawPeer.inTransmission(socket);
    const coded = (code: string) => Object.assign(new Error(code), { code });
    const cases: [unknown, number][] = [
      [coded("ENOSPC"), ENOSPC],
      [coded("EDQUOT"), ENOSPC],
      [coded("EROFS"), EPERM],
      [coded("EXYZ"), EIO],
      [new Error("any"), EIO],
      ["no error at all", EIO],
      [new IntegrityError("Span", "a", "b"), EIO],
    ];
    for (const [failure, errno] of cases) {
      source.failure = failure;
      await peer.send(
        request({ type: WRITE, length: 1, payload: pack([1, 1]) }),
      );
      assert.equal((await peer.reply()).error, errno, String(failure));
    }
  }));

test("a failed read is EIO with a log line, and the connection lives", async () => {
  const logger = new RecordingLogger();
  await withServer({ logger }, async (server, socket) => {
    const source = readable();
    const failing = {
      size: source.size,
      pread: (dst: Uint8Array, offset: number) =>
        offset === 4096
          ? Promise.reject(Object.assign(new Error("gone"), { code: "ENOSPC" }))
          : source.pread(dst, offset),
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    server.addExport({ name: "app", source: failing });
    for (const structured of [false, true]) {
      using peer = await RawPeer.inTransmission(socket, { structured });
      await refused(peer, [[{ type: READ, offset: 4096, length: 8 }, EIO]]);
    }
    const line = logger.lines.find((l) => l.event === "nbd-request-failed")!;
    const { ms, ...fields } = line.fields;
    assert.equal(typeof ms, "number");
    assert.deepEqual(fields, {
      export: "app",
      command: "read",
      offset: 4096,
      length: 8,
      error: "gone",
    });
  });
});

test("a client that asks on and on for what fails does not fill the log", async () => {
  const logger = new RecordingLogger();
  await withServer({ logger }, async (server, socket) => {
    const { stats } = server.addExport({
      name: "app",
      source: {
        size: 1 << 20,
        pread: () => Promise.reject(new Error("gone")),
        [Symbol.asyncDispose]: () => Promise.resolve(),
      },
    });
    using peer = await RawPeer.inTransmission(socket);
    const started = performance.now();
    const fail = async () => {
      await peer.send(request({ type: READ, length: 8 }));
      assert.equal((await peer.reply()).error, EIO);
    };
    for (let i = 0; i < 1000; i++) await fail();
    const seconds = (performance.now() - started) / 1000;
    assert.equal(stats.errors, 1000);
    const lines = logger.count("nbd-request-failed");
    assert.ok(lines >= 50 && lines <= 51 + 2 * seconds, `${lines} lines`);
    // The next one that is logged tells of the others.
    await new Promise((resolve) => setTimeout(resolve, 600));
    await fail();
    const told = logger.lines.reduce(
      (sum, { fields }) => sum + Number(fields.unlogged ?? 0),
      0,
    );
    assert.equal(logger.count("nbd-request-failed") + told, 1001);
  });
});

test("clients that wait with all memory do not hold up another", () =>
  withServer({ memoryLimit: 4 << 20 }, async (server, socket) => {
    const control = new AbortController();
    const never = new Promise<void>((_, reject) =>
      control.signal.addEventListener("abort", () => reject(new Error("over")))
    );
    never.catch(() => {});
    const dispose = { [Symbol.asyncDispose]: () => Promise.resolve() };
    server.addExport({
      name: "stuck",
      source: { size: 8 << 20, pread: () => never, ...dispose },
    });
    server.addExport({
      name: "app",
      source: { size: 8 << 20, pread: () => Promise.resolve(), ...dispose },
    });
    using stuck = await RawPeer.inTransmission(socket, { name: "stuck" });
    for (let i = 0; i < 8; i++) {
      await stuck.send(request({ type: READ, length: 1 << 20 }));
    }
    using peer = await RawPeer.inTransmission(socket, { name: "app" });
    for (const length of [4096, 256 * 1024]) {
      await peer.send(request({ type: READ, length }));
      assert.equal((await peer.reply(length)).error, 0);
    }
    control.abort();
  }));

test("a source that throws at once costs one request", () =>
  withServer({}, async (server, socket) => {
    let broken: "preadNow" | "pread" | "extents" | undefined;
    const explode = (name: typeof broken) => {
      if (broken === name) throw new Error("bug");
    };
    const source = {
      size: 10000,
      preadNow(dst: Uint8Array) {
        explode("preadNow");
        dst.fill(1);
        return broken === undefined;
      },
      pread() {
        explode("pread");
        return Promise.resolve();
      },
      *extents(offset: number, length: number) {
        explode("extents");
        yield { offset, length, kind: "data" as const };
      },
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket, { allocation: true });
    for (const what of ["preadNow", "pread", "extents"] as const) {
      broken = what;
      await peer.send(request({ type: READ, length: 8 }));
      assert.equal((await peer.reply()).error, EIO, what);
    }
    await peer.send(request({ type: STATUS, length: 8 }));
    assert.equal((await peer.reply()).error, EIO);
    broken = undefined;
    await peer.send(request({ type: READ, length: 8 }));
    assert.equal((await peer.reply()).type, 1);
  }));

/** A disk of data, a hole of 64 KiB, data, 8 KiB of zeros, data. */
function sparseBytes(): Uint8Array {
  const bytes = seededBytes(512 * 1024, 3);
  bytes.fill(0, 65536, 131072);
  bytes.fill(0, 200 * 1024, 208 * 1024);
  return bytes;
}

test("holes are left out of structured reads", async () => {
  const bytes = sparseBytes();
  for (const now of [true, false]) {
    await withServer({}, async (server, socket) => {
      const source = new SparseSource(bytes);
      source.now = now;
      server.addExport({ name: "", source });
      using peer = await RawPeer.inTransmission(socket, { structured: true });
      const read = async (offset: number, length: number, flags = 0) => {
        await peer.send(request({ type: READ, flags, offset, length }));
        const chunks: [number, number, number][] = [];
        const got = new Uint8Array(length).fill(0xee);
        for (;;) {
          const { type, data, done } = await peer.reply();
          const view = new DataView(data.buffer);
          const at = Number(view.getBigUint64(0));
          const size = type === 1 ? data.length - 8 : view.getUint32(8);
          chunks.push([type, at, size]);
          if (type === 1) got.set(data.subarray(8), at - offset);
          else got.fill(0, at - offset, at - offset + size);
          if (done) break;
        }
        assert.ok(equalBytes(got, bytes.subarray(offset, offset + length)));
        return chunks;
      };
      assert.deepEqual(await read(0, 512 * 1024), [
        [1, 0, 65536],
        [2, 65536, 65536],
        [1, 131072, 73728],
        [2, 204800, 8192],
        [1, 212992, 311296],
      ]);
      // The fast path, whose buffer holds 256 KiB.
      assert.deepEqual(await read(60000, 100_000), [
        [1, 60000, 5536],
        [2, 65536, 65536],
        [1, 131072, 28928],
      ]);
      // Few zeros at an edge are data; nothing but zeros is a hole however short.
      assert.deepEqual(await read(131000, 200), [[1, 131000, 200]]);
      assert.deepEqual(await read(70000, 1), [[2, 70000, 1]]);
      assert.deepEqual(await read(60000, 100_000, DF), [[1, 60000, 100_000]]);
    });
  }
});

test("simple replies carry the zeros of holes", () =>
  withServer({}, async (server, socket) => {
    const bytes = sparseBytes();
    server.addExport({ name: "", source: new SparseSource(bytes) });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: READ, offset: 0, length: 200_000 }));
    const reply = await peer.reply(200_000);
    assert.ok(equalBytes(reply.data, bytes.subarray(0, 200_000)));
  }));

test("block status tells holes, zeros and data", () =>
  withServer({}, async (server, socket) => {
    const bytes = new Uint8Array(10 * 4096 + 100);
    bytes.fill(1, 0, 2 * 4096);
    bytes.fill(1, 9 * 4096);
    server.addExport({ name: "", source: new SparseSource(bytes) });
    using peer = await RawPeer.inTransmission(socket, { allocation: true });
    const ask = async (offset: number, length: number, flags = 0) => {
      await peer.send(request({ type: STATUS, flags, offset, length }));
      const reply = await peer.reply();
      assert.deepEqual([reply.type, reply.done, reply.error], [5, true, 0]);
      const view = new DataView(reply.data.buffer);
      assert.equal(view.getUint32(0), 1);
      const found: [number, number][] = [];
      for (let at = 4; at < reply.data.length; at += 8) {
        found.push([view.getUint32(at), view.getUint32(at + 4)]);
      }
      return found;
    };
    // Blocks 2, 4, 6, 8 are holes, 3, 5, 7 zeros.
    assert.deepEqual(await ask(0, bytes.length), [
      [8192, 0],
      ...[3, 2, 3, 2, 3, 2, 3].map((state) => [4096, state]),
      [4196, 0],
    ]);
    assert.deepEqual(await ask(100, 9000), [[8092, 0], [908, 3]]);
    assert.deepEqual(await ask(8192, 20000, REQ_ONE), [[4096, 3]]);
    assert.deepEqual(await ask(0, 20000, REQ_ONE), [[8192, 0]]);
    await refused(peer, [
      [{ type: STATUS, length: 0 }, EINVAL],
      [{ type: STATUS, offset: bytes.length, length: 1 }, EINVAL],
      [{ type: STATUS, flags: DF, length: 1 }, EINVAL],
    ]);
  }));

test("block status of a source without extents is data", () =>
  withServer({}, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    using peer = await RawPeer.inTransmission(socket, { allocation: true });
    await peer.send(request({ type: STATUS, offset: 5, length: 1000 }));
    const { data } = await peer.reply();
    assert.deepEqual(data, pack([1, 4], [1000, 4], [0, 4]));
  }));

test("block status answers a fragmented disk in part", () =>
  withServer({}, async (server, socket) => {
    const source = {
      size: 2 ** 40,
      pread: () => Promise.reject(new Error("unused")),
      *extents(offset: number, length: number) {
        for (let at = offset; at < offset + length; at += 512) {
          const kind = at % 1024 === 0 ? "data" as const : "hole" as const;
          yield { offset: at, length: 512, kind };
        }
      },
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket, { allocation: true });
    const length = 0xfffffe00;
    await peer.send(request({ type: STATUS, offset: 2 ** 33, length }));
    const reply = await peer.reply();
    assert.equal(reply.data.length, 4 + 8 * 4096);
  }));

test("contexts of one export do not count for another", () =>
  withServer({}, async (server, socket) => {
    server.addExport({ name: "a", source: readable() });
    server.addExport({ name: "b", source: readable() });
    const { contextData, infoData, option } = await import("./peer.ts");
    using peer = await RawPeer.open(socket);
    await peer.greet();
    await peer.send(option(8));
    await peer.optionReply();
    await peer.send(option(10, contextData("a", ["base:allocation"])));
    await peer.optionReply();
    await peer.optionReply();
    await peer.send(option(7, infoData("b")));
    await peer.optionReply();
    await peer.optionReply();
    await peer.send(request({ type: STATUS, length: 1000 }));
    assert.equal((await peer.reply()).error, EINVAL);
  }));

test("CACHE reads its range once", () =>
  withServer({}, async (server, socket) => {
    const source = new SparseSource(seededBytes(5 * MiB, 4));
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: CACHE, offset: 1, length: 4 * MiB }));
    assert.equal((await peer.reply()).error, 0);
    assert.equal(source.reads, 4);
  }));

test("CACHE that fails reads no further", () =>
  withServer({}, async (server, socket) => {
    let reads = 0;
    const source = {
      size: 100 * MiB,
      async pread(_dst: Uint8Array, offset: number) {
        reads++;
        await new Promise((resolve) => setTimeout(resolve, 2));
        if (offset === 0) throw new Error("gone");
      },
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: CACHE, length: source.size }));
    assert.equal((await peer.reply()).error, EIO);
    const before = reads;
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.ok(before <= 8, `${before} reads`);
    assert.equal(reads, before);
  }));

test("answers without data wait for the client, too", () =>
  withServer({}, async (server, socket) => {
    const source = new SparseSource(new Uint8Array(4096));
    const { stats } = server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    const total = 200_000;
    const one = request({ type: CACHE, length: 1 });
    const all = new Uint8Array(one.length * total);
    for (let i = 0; i < total; i++) all.set(one, i * one.length);
    const sending = peer.send(all);
    let before = -1;
    await until(async () => {
      before = stats.caches;
      await new Promise((resolve) => setTimeout(resolve, 200));
      return before > 0 && stats.caches === before;
    });
    // Two buffers of 16,600 answers, and what the socket holds.
    assert.ok(before < total / 2, `${before} answered, none taken`);
    await peer.receive(16 * total);
    await sending;
    assert.equal(stats.caches, total);
  }));

test("many requests in one write are all answered", () =>
  withServer({}, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    using peer = await RawPeer.inTransmission(socket);
    const count = 5000;
    const all = Array.from(
      { length: count },
      (_, i) =>
        request({
          type: READ,
          cookie: BigInt(i),
          offset: i * 400,
          length: 512,
        }),
    );
    const sending = peer.send(pack(...all));
    for (let i = 0; i < count; i++) {
      const reply = await peer.reply(512);
      assert.equal(reply.cookie, BigInt(i));
      const want = content.subarray(i * 400, i * 400 + 512);
      assert.ok(equalBytes(reply.data, want));
    }
    await sending;
  }));

test("replies go out as they are ready", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    const { stats } = server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    for (const offset of [1, 2, 3]) {
      await peer.send(
        request({ type: READ, cookie: BigInt(offset), offset, length: 600 }),
      );
    }
    await until(() => source.gates.size === 3);
    assert.equal(stats.inFlight, 3);
    for (const offset of [3, 1, 2]) {
      source.open(offset);
      const reply = await peer.reply(600);
      assert.equal(reply.cookie, BigInt(offset));
      assert.ok(
        equalBytes(reply.data, content.subarray(offset, offset + 600)),
      );
    }
    assert.equal(stats.inFlight, 0);
  }));

test("waiting requests are bounded in number and bytes", async () => {
  for (const options of [{ maxInFlight: 4 }, { maxInFlightBytes: 4000 }]) {
    await withServer(options, async (server, socket) => {
      const source = new GatedSource(content);
      server.addExport({ name: "", source });
      using peer = await RawPeer.inTransmission(socket);
      for (let i = 0; i < 10; i++) {
        await peer.send(request({ type: READ, offset: i, length: 1000 }));
      }
      for (let i = 0; i < 10; i++) {
        await until(() => source.gates.has(i));
        assert.ok(source.gates.size <= 4);
        assert.ok(!source.gates.has(i + 4));
        source.open(i);
        await peer.reply(1000);
      }
    });
  }
});

test("replies that the client does not take count as waiting", () =>
  withServer({ maxInFlight: 4 }, async (server, socket) => {
    const source = new SparseSource(seededBytes(2 * MiB, 6));
    source.now = false;
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    const total = 20;
    for (let i = 0; i < total; i++) {
      await peer.send(request({ type: READ, length: MiB }));
    }
    await until(() => source.reads === 4);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(source.reads, 4);
    for (let i = 0; i < total; i++) await peer.reply(MiB);
    assert.equal(source.reads, total);
  }));

test("a request past its deadline is EIO, and is cancelled", async () => {
  const logger = new RecordingLogger();
  // Long enough for the read that is answered after each one that is not.
  const options = { requestDeadlineMs: 1000, logger };
  await withServer(options, async (server, socket) => {
    const source = new GatedSource(content);
    const { stats } = server.addExport({ name: "", source });
    for (const heeds of [true, false]) {
      source.heedsSignal = heeds;
      using peer = await RawPeer.inTransmission(socket);
      await peer.send(request({ type: READ, cookie: 1n, length: 100 }));
      const reply = await peer.reply();
      assert.deepEqual([reply.error, reply.cookie], [EIO, 1n]);
      assert.ok(source.signals.at(-1)!.aborted);
      // Too late: nobody may see these bytes.
      source.open(0);
      await peer.send(
        request({ type: READ, cookie: 2n, offset: 7, length: 5 }),
      );
      await until(() => source.gates.has(7));
      source.open(7);
      const next = await peer.reply(5);
      assert.equal(next.cookie, 2n);
      assert.ok(equalBytes(next.data, content.subarray(7, 12)));
    }
    assert.deepEqual([stats.deadlines, stats.errors], [2, 2]);
    assert.equal(logger.count("nbd-request-failed"), 2);
  });
});

test("a deadline is each request's own", () =>
  // The second request has half of it left when the first one's answer comes.
  withServer({ requestDeadlineMs: 1000 }, async (server, socket) => {
    const source = new GatedSource(content);
    const { stats } = server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: READ, cookie: 1n, length: 100 }));
    await new Promise((resolve) => setTimeout(resolve, 500));
    await peer.send(request({ type: READ, cookie: 2n, offset: 9, length: 9 }));
    const late = await peer.reply();
    assert.deepEqual([late.cookie, late.error], [1n, EIO]);
    await until(() => source.gates.has(9));
    source.open(9);
    const next = await peer.reply(9);
    assert.deepEqual([next.cookie, next.error], [2n, 0]);
    assert.equal(stats.deadlines, 1);
  }));

test("a client that hangs up cancels its reads", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    const { stats } = server.addExport({ name: "", source });
    const peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: READ, length: 100 }));
    await until(() => source.gates.size === 1);
    peer[Symbol.dispose]();
    await until(() => source.signals[0]!.aborted, "cancelling");
    await until(() => stats.connections === 0);
    assert.equal(stats.inFlight, 0);
  }));

test("after DISC what was asked is answered, then it closes", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: READ, cookie: 8n, length: 100 }));
    await peer.send(request({ type: DISC }));
    await until(() => source.gates.size === 1);
    source.open(0);
    assert.equal((await peer.reply(100)).cookie, 8n);
    await peer.closed();
  }));

test("a payload that does not come ends the connection", async () => {
  const options = { requestDeadlineMs: 50 };
  await withServer(options, async (server, socket) => {
    const source = new MemoryBlockSource(content.slice());
    server.addExport({ name: "", source, readOnly: false });
    using slow = await RawPeer.inTransmission(socket);
    await slow.send(request({ type: WRITE, length: 100 }));
    await slow.closed();
    const gone = await RawPeer.inTransmission(socket);
    await gone.send(request({ type: WRITE, length: 100, payload: pack("x") }));
    gone[Symbol.dispose]();
    await until(() => server.connectionCount === 0);
    assert.deepEqual(source.log, []);
  });
});

test("a client that takes no replies is given up", () =>
  withServer({ writeStallMs: 50 }, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    using peer = await RawPeer.inTransmission(socket);
    // At once: it may hang up before another one is sent.
    const one = request({ type: READ, length: 2 * MiB });
    await peer.send(pack(...new Array<Uint8Array>(8).fill(one)));
    await until(() => server.connectionCount === 0, "giving up");
  }));

test("large reads at any speed of the client are right", () =>
  withServer({}, async (server, socket) => {
    const big = seededBytes(33 * MiB, 5);
    server.addExport({ name: "", source: new MemorySource(big) });
    using peer = await RawPeer.inTransmission(socket);
    await refused(peer, [[{ type: READ, length: 32 * MiB + 1 }, EINVAL]]);
    const lengths = [32 * MiB, 1, 256 * 1024, 256 * 1024 + 1, 300 * 1024];
    for (const [i, length] of lengths.entries()) {
      const offset = 1000 * i;
      await peer.send(
        request({ type: READ, cookie: BigInt(i), offset, length }),
      );
    }
    // In whatever order they come.
    const left = new Set(lengths.keys());
    while (left.size > 0) {
      const head = await peer.receive(16);
      const i = Number(new DataView(head.buffer).getBigUint64(8));
      assert.ok(left.delete(i));
      const data = await peer.receive(lengths[i]!);
      const at = 1000 * i;
      assert.ok(equalBytes(data, big.subarray(at, at + lengths[i]!)));
    }
  }));

test("a busy connection leaves time for others", () =>
  withServer({}, async (server, socket) => {
    // All in one map: 20,000 extents of a kind, looked at for every request.
    const size = 2 ** 30;
    const source = {
      size,
      preadNow: (dst: Uint8Array) => dst.fill(0).length > 0,
      pread: () => Promise.resolve(),
      *extents(offset: number, length: number) {
        const step = Math.ceil(length / 20_000);
        for (let at = offset; at < offset + length; at += step) {
          yield { offset: at, length: step, kind: "hole" as const };
        }
      },
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    server.addExport({ name: "", source });
    using busy = await RawPeer.inTransmission(socket, { allocation: true });
    using quiet = await RawPeer.inTransmission(socket);
    const total = 1000;
    const one = request({ type: STATUS, length: size });
    const batch = new Uint8Array(one.length * total);
    for (let i = 0; i < total; i++) batch.set(one, i * one.length);
    await busy.send(batch);
    let over = false;
    const drain = busy.receive(32 * total).then(() => over = true);
    let answered = 0;
    while (!over && answered < 5) {
      await quiet.send(request({ type: READ, length: 16 }));
      await quiet.reply(16);
      if (!over) answered++;
    }
    assert.equal(answered, 5, `only ${answered} answers beside the batch`);
    await drain;
  }));

import assert from "node:assert/strict";
import * as net from "node:net";
import {
  delay,
  MemorySource,
  NotFoundError,
  UsageError,
} from "../../lib/io/mod.ts";
import { NbdClient, NbdServer } from "../../lib/nbd/mod.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { RecordingLogger } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";
import { RawPeer, request, soon, withServer } from "./peer.ts";
import { GatedSource, MemoryBlockSource } from "./sources.ts";

const content = seededBytes(100_000, 1);
const readable = () => new MemorySource(content);
const isConflict = { code: "conflict" };

async function withDir(run: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir();
  try {
    await run(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

const names = (dir: string) => [...Deno.readDirSync(dir)].map((e) => e.name);

Deno.test("NbdServer: its socket is private, and goes away with it", () =>
  withDir(async (dir) => {
    const server = new NbdServer();
    const path = `${dir}/nbd.sock`;
    assert.deepEqual(await server.listen(`unix:${path}`), {
      transport: "unix",
      path,
    });
    const { mode } = await Deno.lstat(path);
    assert.equal(mode! & 0o777, 0o600);
    assert.deepEqual(names(dir), ["nbd.sock"]);
    await server.stop();
    assert.deepEqual(names(dir), []);
    await server.stop();
  }));

Deno.test("NbdServer: a socket in use is left alone, a stale one replaced", () =>
  withDir(async (dir) => {
    const path = `${dir}/nbd.sock`;
    await using first = new NbdServer();
    await first.listen(`unix:${path}`);
    first.addExport({ name: "", source: readable() });
    await using second = new NbdServer();
    await assert.rejects(second.listen(`unix:${path}`), isConflict);
    (await RawPeer.inTransmission(path))[Symbol.dispose]();
    // A dead process's socket: nobody listens, the name is there.
    const stale = `${dir}/stale.sock`;
    const dead = Deno.listen({ transport: "unix", path: stale });
    await Deno.link(stale, `${dir}/kept`);
    dead.close();
    await Deno.remove(stale).catch(() => {});
    await Deno.rename(`${dir}/kept`, stale);
    await second.listen(`unix:${stale}`);
    second.addExport({ name: "", source: readable() });
    (await RawPeer.inTransmission(stale))[Symbol.dispose]();
    const file = `${dir}/file`;
    await Deno.writeTextFile(file, "precious");
    await assert.rejects(second.listen(`unix:${file}`), isConflict);
    assert.equal(await Deno.readTextFile(file), "precious");
    for (const bad of ["none/x", "x".repeat(100)]) {
      await assert.rejects(second.listen(`unix:${dir}/${bad}`), isConflict);
    }
  }));

Deno.test("NbdServer: a socket replaced by another's is not removed", () =>
  withDir(async (dir) => {
    const path = `${dir}/nbd.sock`;
    const first = new NbdServer();
    await first.listen(`unix:${path}`);
    await Deno.remove(path);
    await using second = new NbdServer();
    await second.listen(`unix:${path}`);
    await first.stop();
    assert.deepEqual(names(dir), ["nbd.sock"]);
  }));

Deno.test("NbdServer: listens on TCP, also at several places", async () => {
  await using server = new NbdServer();
  server.addExport({ name: "a b/ü", source: readable() });
  const ports = [];
  for (let i = 0; i < 2; i++) {
    const address = await server.listen("127.0.0.1:0");
    assert.ok(address.transport === "tcp" && address.port > 0);
    ports.push(address.port);
  }
  assert.notEqual(ports[0], ports[1]);
  for (const port of ports) {
    const uri = `nbd://127.0.0.1:${port}/a%20b/%C3%BC`;
    await using client = await NbdClient.connect(uri);
    assert.equal(client.size, content.length);
  }
});

Deno.test("NbdServer: notices clients whose machine is gone", async () => {
  await using server = new NbdServer();
  server.addExport({ name: "", source: readable() });
  const address = await server.listen("127.0.0.1:0");
  assert.ok(address.transport === "tcp");
  using _client = await Deno.connect({
    hostname: "127.0.0.1",
    port: address.port,
  });
  await until(() => server.connectionCount === 1);
  const port = address.port.toString(16).toUpperCase().padStart(4, "0");
  const table = await Deno.readTextFile("/proc/net/tcp");
  // proc(5): local address, state 01 (established), timer 02 (keepalive).
  assert.match(table, new RegExp(`0100007F:${port} \\S+ 01 \\S+ 02:`));
});

Deno.test("NbdServer: takes sockets of others, as of systemd", () =>
  withDir(async (dir) => {
    const server = new NbdServer();
    server.addExport({ name: "", source: readable() });
    const nodeServer = net.createServer();
    const path = `${dir}/node.sock`;
    await new Promise<void>((resolve) => nodeServer.listen(path, resolve));
    server.serve(nodeServer);
    const denoPath = `${dir}/deno.sock`;
    server.serve(Deno.listen({ transport: "unix", path: denoPath }));
    for (const socket of [path, denoPath]) {
      await using client = await NbdClient.connect({
        address: { transport: "unix", path: socket },
        exportName: "",
      });
      const reads = Array.from({ length: 40 }, async (_, i) => {
        const dst = new Uint8Array(30_000);
        await client.pread(dst, i * 1000);
        assert.deepEqual(dst, content.slice(i * 1000, i * 1000 + 30_000));
      });
      await soon(Promise.all(reads));
    }
    await soon(server.stop());
    await until(() => !nodeServer.listening);
  }));

Deno.test("NbdServer: exports come and go", () =>
  withServer({}, async (server, socket) => {
    const a = server.addExport({ name: "a", source: readable() });
    assert.throws(
      () => server.addExport({ name: "a", source: readable() }),
      isConflict,
    );
    for (const name of ["x\0y", "é".repeat(2049)]) {
      assert.throws(
        () => server.addExport({ name, source: readable() }),
        UsageError,
      );
    }
    assert.throws(
      () =>
        server.addExport({ name: "w", source: readable(), readOnly: false }),
      UsageError,
    );
    server.addExport({ name: "b".repeat(4096), source: readable() });
    assert.deepEqual(server.listExports().length, 2);
    using peer = await RawPeer.inTransmission(socket, { name: "a" });
    await until(() => a.stats.connections === 1);
    await assert.rejects(server.removeExport("a"), isConflict);
    await assert.rejects(server.removeExport("none"), NotFoundError);
    await peer.send(request({ type: 0, length: 1 }));
    assert.equal((await peer.reply(1)).error, 0);
    assert.equal(await soon(server.removeExport("a", { force: true })), a);
    await peer.closed();
    assert.equal(a.stats.connections, 0);
    assert.equal(server.getExport("a"), undefined);
  }));

Deno.test("NbdServer: further connections than allowed are closed at once", async () => {
  const logger = new RecordingLogger();
  await withServer({ maxConnections: 2, logger }, async (server, socket) => {
    server.addExport({ name: "", source: readable() });
    const first = await RawPeer.inTransmission(socket);
    using second = await RawPeer.inTransmission(socket);
    using third = await RawPeer.open(socket);
    await third.closed();
    assert.equal(server.refusedCount, 1);
    assert.equal(logger.count("nbd-connection-refused"), 1);
    first[Symbol.dispose]();
    await until(() => server.connectionCount === 1);
    using fourth = await RawPeer.inTransmission(socket);
    for (const peer of [second, fourth]) {
      await peer.send(request({ type: 0, length: 1 }));
      assert.equal((await peer.reply(1)).error, 0);
    }
  });
});

Deno.test("NbdServer: stop() finishes what is in flight, and what comes until then", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    using idle = await RawPeer.inTransmission(socket);
    using haggling = await RawPeer.open(socket);
    await haggling.greet();
    await peer.send(request({ type: 0, cookie: 1n, length: 100 }));
    await until(() => source.gates.size === 1);
    const stopping = server.stop();
    await idle.closed();
    await haggling.closed();
    await peer.send(request({ type: 0, cookie: 2n, offset: 5, length: 100 }));
    await until(() => source.gates.size === 2);
    await assert.rejects(RawPeer.open(socket));
    for (const [offset, cookie] of [[5, 2n], [0, 1n]] as const) {
      source.open(offset);
      const reply = await peer.reply(100);
      assert.deepEqual([reply.cookie, reply.error], [cookie, 0]);
    }
    await peer.closed();
    await soon(stopping, "stop");
    assert.equal(server.connectionCount, 0);
  }));

Deno.test("NbdServer: stop() of a server that is never idle takes no more after a while", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: 0, cookie: 1n, length: 100 }));
    await until(() => source.gates.size === 1);
    const stopping = server.stop(20_000);
    await delay(2000);
    await peer.send(request({ type: 0, cookie: 2n, offset: 5, length: 100 }));
    await delay(50);
    assert.equal(source.gates.size, 1);
    source.open(0);
    assert.equal((await peer.reply(100)).cookie, 1n);
    await peer.closed();
    await soon(stopping, "stop");
  }));

Deno.test("NbdServer: stop() cuts off what is not done in time", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    source.heedsSignal = false;
    server.addExport({ name: "", source });
    using peer = await RawPeer.inTransmission(socket);
    await peer.send(request({ type: 0, length: 100 }));
    await until(() => source.gates.size === 1);
    await soon(server.stop(30), "stop");
    assert.ok(source.signals[0]!.aborted);
    await peer.closed();
  }));

Deno.test("NbdServer: counts what happens and tells of reads", async () => {
  const seen: string[] = [];
  const onRead = (name: string, offset: number, length: number) =>
    seen.push(`${name} ${offset} ${length}`);
  await withServer({ onRead }, async (server, socket) => {
    const source = new MemoryBlockSource(content.slice());
    const slow = new GatedSource(content);
    const { stats } = server.addExport({ name: "a", source });
    const other = server.addExport({ name: "b", source: slow });
    using peer = await RawPeer.inTransmission(socket, { name: "a" });
    for (const [offset, length] of [[0, 512], [10, 99], [content.length, 1]]) {
      await peer.send(request({ type: 0, offset: offset!, length: length! }));
      await peer.reply(length);
    }
    assert.deepEqual(seen, ["a 0 512", "a 10 99"]);
    assert.deepEqual(
      [stats.reads, stats.readBytes, stats.readsAtOnce, stats.errors],
      [2, 611, 2, 1],
    );
    const { counts, sumSeconds, maxSeconds } = stats.readLatency;
    assert.equal(counts.reduce((a, b) => a + b), 2);
    assert.ok(sumSeconds > 0 && maxSeconds <= sumSeconds);
    using waiting = await RawPeer.inTransmission(socket, { name: "b" });
    await waiting.send(request({ type: 0, length: 5 }));
    await until(() => slow.gates.size === 1);
    slow.open(0);
    await waiting.reply(5);
    assert.deepEqual(
      [other.stats.reads, other.stats.readsAtOnce, other.stats.readBytes],
      [1, 0, 5],
    );
    assert.equal(other.stats.connectionsTotal, 1);
  });
});

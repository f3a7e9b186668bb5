import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { LatencyProxy } from "../../cmd/bench/proxy.ts";
import { loadLibc } from "../../lib/io/mod.ts";
import { UNUSED_PORT } from "../testutil/free_port.ts";

// Kept for the life of the process: not something that a test leaks.
loadLibc();

/** An HTTP server that answers with as many bytes as the path says. */
function startServer() {
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    (request) => {
      const size = Number(new URL(request.url).pathname.slice(1));
      return new Response(new Uint8Array(size).fill(7));
    },
  );
  return server;
}

async function get(url: string, client: Deno.HttpClient): Promise<number> {
  const answer = await fetch(url, { client });
  const bytes = new Uint8Array(await answer.arrayBuffer());
  assert.ok(bytes.every((b) => b === 7));
  return bytes.length;
}

Deno.test("LatencyProxy delays both ways, passes bytes on and counts", async () => {
  const server = startServer();
  const { hostname, port } = server.addr;
  const proxy = new LatencyProxy({ hostname, port }, { rttMs: 600 });
  const client = Deno.createHttpClient({ http2: false });
  try {
    const url = `http://${proxy.address}/`;
    let started = performance.now();
    assert.equal(await get(`${url}10`, client), 10);
    // One round trip of the handshake, one of the request.
    assert.ok(performance.now() - started >= 1198);
    started = performance.now();
    assert.equal(await get(`${url}12000000`, client), 12_000_000);
    const took = performance.now() - started;
    assert.ok(took >= 598, `took ${took} ms`);
    // Pieces are on the way at once: one delay for each would be 13.8 s.
    assert.ok(took < 10_000, `took ${took} ms`);
    const { requests, connections, bytes, curve } = proxy.traffic;
    assert.equal(requests, 2);
    assert.equal(connections, 1);
    assert.ok(bytes > 12_000_010 && bytes < 12_010_000, String(bytes));
    assert.equal(curve.at(-1)![1], bytes);
    proxy.reset();
    assert.equal(proxy.traffic.bytes, 0);
  } finally {
    client.close();
    await proxy[Symbol.asyncDispose]();
    await server.shutdown();
  }
});

Deno.test("LatencyProxy: a server that is away closes its client", async () => {
  await using proxy = new LatencyProxy(
    { hostname: "127.0.0.1", port: UNUSED_PORT },
    { rttMs: 0 },
  );
  const [hostname, proxyPort] = proxy.address.split(":");
  using client = await Deno.connect({
    hostname: hostname!,
    port: Number(proxyPort),
  });
  assert.equal(await client.read(new Uint8Array(1)), null);
});

Deno.test("LatencyProxy keeps to a rate that all connections share", async () => {
  const server = startServer();
  const { hostname, port } = server.addr;
  const proxy = new LatencyProxy({ hostname, port }, {
    rttMs: 2,
    bytesPerSecond: 4_000_000,
  });
  const clients = [1, 2].map(() => Deno.createHttpClient({ http2: false }));
  try {
    const started = performance.now();
    await Promise.all(
      clients.map((client) => get(`http://${proxy.address}/500000`, client)),
    );
    const took = performance.now() - started;
    assert.ok(took >= 240, `took ${took} ms`);
    assert.equal(proxy.traffic.connections, 2);
  } finally {
    for (const client of clients) client.close();
    await proxy[Symbol.asyncDispose]();
    await server.shutdown();
  }
});

/** Bytes that differ wherever one looks. */
function somePattern(length: number, seed: number): Uint8Array<ArrayBuffer> {
  let state = seed;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
}

/** Sends everything back, and then the end. */
async function echo(listener: Deno.TcpListener): Promise<void> {
  for await (const connection of listener) {
    connection.readable.pipeTo(connection.writable).catch(() => {});
  }
}

for (const bytesPerSecond of [undefined, 20_000_000]) {
  const link = bytesPerSecond ? "with a rate" : "without a rate";
  Deno.test(`LatencyProxy, ${link}: bytes keep their order both ways, until the end`, async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const echoing = echo(listener);
    {
      await using proxy = new LatencyProxy({
        hostname: "127.0.0.1",
        port: listener.addr.port,
      }, { rttMs: 4, bytesPerSecond });
      const port = Number(proxy.address.split(":")[1]);
      await Promise.all([1, 2, 3].map(async (seed) => {
        using client = await Deno.connect({ hostname: "127.0.0.1", port });
        const sent = somePattern(1_500_000, seed);
        const send = async () => {
          const sizes = somePattern(5000, seed + 10);
          for (let at = 0, i = 0; at < sent.length; i++) {
            // Some of one byte, some that fill several buffers.
            const size = sizes[i]! < 200 ? 1 + sizes[i]! : 2000 * sizes[i]!;
            at += await client.write(sent.subarray(at, at + size));
          }
          await client.closeWrite();
        };
        const got = new Uint8Array(sent.length + 1);
        let length = 0;
        const receive = async () => {
          for (let n; (n = await client.read(got.subarray(length)));) {
            length += n;
          }
        };
        await Promise.all([send(), receive()]);
        assert.equal(length, sent.length);
        assert.ok(
          Buffer.from(got.buffer, 0, length).equals(Buffer.from(sent.buffer)),
        );
      }));
      assert.equal(proxy.traffic.bytes, 3 * 1_500_000);
    }
    listener.close();
    await echoing;
  });
}

Deno.test("LatencyProxy: a client that leaves ends the server's connection", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  await using proxy = new LatencyProxy({
    hostname: "127.0.0.1",
    port: listener.addr.port,
  }, { rttMs: 2 });
  const client = await Deno.connect({
    hostname: "127.0.0.1",
    port: Number(proxy.address.split(":")[1]),
  });
  using server = await listener.accept();
  const endless = async () => {
    for (const zeros = new Uint8Array(100_000);;) await server.write(zeros);
  };
  const sending = assert.rejects(endless());
  await client.read(new Uint8Array(1));
  client.close();
  await sending;
});

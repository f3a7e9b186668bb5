import assert from "node:assert/strict";
import { LatencyProxy } from "../../cmd/bench/proxy.ts";

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
  const proxy = new LatencyProxy({ hostname, port }, { rttMs: 60 });
  const client = Deno.createHttpClient({ http2: false });
  try {
    const url = `http://${proxy.address}/`;
    let started = performance.now();
    assert.equal(await get(`${url}10`, client), 10);
    // One round trip of the handshake, one of the request.
    assert.ok(performance.now() - started >= 118);
    started = performance.now();
    assert.equal(await get(`${url}3000000`, client), 3_000_000);
    const took = performance.now() - started;
    assert.ok(took >= 58, `took ${took} ms`);
    // Pieces are on the way at once: not one delay for each.
    assert.ok(took < 1000, `took ${took} ms`);
    const { requests, connections, bytes, curve } = proxy.traffic;
    assert.equal(requests, 2);
    assert.equal(connections, 1);
    assert.ok(bytes > 3_000_010 && bytes < 3_010_000, String(bytes));
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
  const closed = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = closed.addr;
  closed.close();
  await using proxy = new LatencyProxy({ hostname: "127.0.0.1", port }, {
    rttMs: 0,
  });
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

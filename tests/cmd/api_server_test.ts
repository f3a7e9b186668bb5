/** The HTTP server under the status API: what strangers at its listener cannot do. */

import assert from "node:assert/strict";
import { type ApiApp, ApiServer } from "../../cmd/api_server.ts";
import { silentLogger } from "../../lib/io/mod.ts";
import { until } from "../testutil/until.ts";

const HEAD = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

async function listen(
  app: ApiApp,
  limits: Parameters<typeof ApiServer.listen>[3],
): Promise<ApiServer & AsyncDisposable> {
  const server = await ApiServer.listen(
    { hostname: "127.0.0.1", port: 0 },
    app,
    silentLogger,
    limits,
  );
  return Object.assign(server, {
    [Symbol.asyncDispose]: () => server.close(0),
  });
}

/** A connection that sent something, and all that it gets until it is closed. */
async function client(port: number, sent: string) {
  const conn = await Deno.connect({ hostname: "127.0.0.1", port });
  await conn.write(new TextEncoder().encode(sent)).catch(() => {});
  const state = { got: "", closed: false };
  const ended = (async () => {
    try {
      for await (const part of conn.readable) {
        state.got += new TextDecoder().decode(part);
      }
    } catch {
      // Reset: closed, too.
    }
    state.closed = true;
  })();
  return {
    state,
    async [Symbol.asyncDispose]() {
      try {
        conn.close();
      } catch {
        // Its stream has ended.
      }
      await ended;
    },
  };
}

Deno.test("connections of an API listener are bounded, and those who dawdle leave room", async () => {
  const app = { fetch: () => new Response("ok") };
  await using server = await listen(app, {
    connections: 3,
    headDeadlineMs: 1500,
  });
  await using held = new AsyncDisposableStack();
  const slow: { got: string; closed: boolean }[] = [];
  for (let i = 0; i < 3; i++) {
    slow.push(held.use(await client(server.port, "GET /x HT")).state);
  }
  // Connections are taken in their order, so this one is the fourth.
  await using fourth = await client(server.port, HEAD);
  await until(() => fourth.state.closed);
  assert.equal(fourth.state.got, "");
  assert.ok(slow.every((s) => !s.closed));
  await until(() => slow.every((s) => s.closed));
  assert.match(slow[0]!.got, /^HTTP\/1.1 408 /);
  const answer = await fetch(`http://127.0.0.1:${server.port}/`);
  assert.equal(await answer.text(), "ok");
});

Deno.test("a request of an API listener has a deadline, its answer has none", async () => {
  const app = {
    async fetch(request: Request) {
      const { length } = await request.text();
      await new Promise((resolve) => setTimeout(resolve, 3000));
      return new Response(`${length}`, { status: 201 });
    },
  };
  await using server = await listen(app, {
    headDeadlineMs: 500,
    requestDeadlineMs: 1000,
  });
  const head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
  await using slow = await client(server.port, head + "12");
  const whole = await fetch(`http://127.0.0.1:${server.port}/`, {
    method: "POST",
    body: "12345",
  });
  assert.deepEqual([whole.status, await whole.text()], [201, "5"]);
  await until(() => slow.state.closed);
  assert.match(slow.state.got, /^HTTP\/1.1 408 /);
});

Deno.test("targets and methods reach the API as they were sent, or are refused", async () => {
  const app = {
    fetch: (request: Request) =>
      new Response(`${request.method} ${request.url}`),
  };
  await using server = await listen(app, {});
  for (
    const [line, answer] of [
      [
        "GET //evil.example/v1?a=%2f",
        "GET http://localhost//evil.example/v1?a=%2f",
      ],
      ["DELETE /v1/a%0ab", "DELETE http://localhost/v1/a%0ab"],
      ["GET http://other.example/v1", "GET http://other.example/v1"],
      ["GET http://[", undefined],
      ["GET *", undefined],
      ["TRACE /", undefined],
    ] as const
  ) {
    await using one = await client(
      server.port,
      `${line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`,
    );
    await until(() => one.state.closed);
    const [status, body] = [
      one.state.got.split(" ")[1],
      one.state.got.split("\r\n\r\n")[1],
    ];
    assert.deepEqual(
      [status, body],
      answer === undefined ? ["400", ""] : ["200", answer],
      line,
    );
  }
});

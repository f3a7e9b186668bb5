/** The client of the status API, over real sockets. */

import assert from "node:assert/strict";
import { ApiUnreachableError, createApiClient } from "../../cmd/api_client.ts";
import {
  DeadlineError,
  NotFoundError,
  ObdError,
  UsageError,
} from "../../lib/io/mod.ts";
import { fixture } from "./fake_control.ts";
import { withTempDir } from "./run_obd.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const MODULE = new URL("../../cmd/api_client.ts", import.meta.url).href;

/** Serves an API on a socket for the client. */
async function withSocket(
  api: { fetch(request: Request): Response | Promise<Response> },
  work: (address: string) => Promise<void>,
): Promise<void> {
  await withTempDir(async (dir) => {
    const path = `${dir}/api.sock`;
    const server = Deno.serve({ path, onListen() {} }, (r) => api.fetch(r));
    try {
      await work(`unix:${path}`);
    } finally {
      await server.shutdown();
    }
  });
}

Deno.test("the client over a Unix socket", async () => {
  const { control, api } = fixture();
  await withSocket(api, async (address) => {
    using client = createApiClient(address);
    assert.deepEqual(await client.status(), control.status());
    assert.deepEqual(await client.log(), ["one", "two"]);
    assert.match(await client.metrics(), /^# HELP obd_ready/);
    const name = "r.example/app:1 ü%";
    const added = await client.addExport({ name, image: "r.example/app:1" });
    assert.equal(added.name, name);
    await client.removeExport(name);
    await assert.rejects(client.removeExport(name), NotFoundError);
    control.failure = new ObdError("conflict", "2 clients are connected");
    await assert.rejects(
      client.removeExport("app"),
      (error: unknown) =>
        error instanceof ObdError && error.code === "conflict" &&
        error.message === "2 clients are connected",
    );
  });
});

Deno.test("no proxy of the environment comes between client and serve", async () => {
  const { api } = fixture();
  // In processes of their own: tests beside this one share its environment.
  const ask = (address: string) =>
    `import { createApiClient } from ${JSON.stringify(MODULE)};
     using client = createApiClient(${JSON.stringify(address)});
     console.log((await client.status()).version);`;
  for (const exception of ["localhost,127.0.0.1", "*", ""]) {
    await withSocket(api, async (address) => {
      const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: ["eval", ask(address)],
        cwd: ROOT,
        env: { HTTP_PROXY: "http://127.0.0.1:9", NO_PROXY: exception },
        stdin: "null",
      }).output();
      const text = new TextDecoder();
      assert.equal(text.decode(stdout), "1.2.3\n", text.decode(stderr));
    });
  }
});

Deno.test("the client over TCP: token, and no answer", async () => {
  const { api } = fixture({ trusted: false, token: "t" });
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    (r) => api.fetch(r),
  );
  const address = `127.0.0.1:${server.addr.port}`;
  try {
    using without = createApiClient(address);
    await assert.rejects(
      without.addExport({ name: "a", image: "b" }),
      /bearer token/,
    );
    using client = createApiClient(address, { token: "t" });
    await client.addExport({ name: "a", image: "b" });
  } finally {
    await server.shutdown();
  }
  using gone = createApiClient(address);
  await assert.rejects(gone.status(), ApiUnreachableError);
  assert.throws(() => createApiClient("nonsense"), UsageError);
  assert.throws(() => createApiClient("127.0.0.1:0"), UsageError);
});

Deno.test("the client does not trust whoever answers", async () => {
  const cases: [() => Response, RegExp][] = [
    [() => new Response("hello"), /is not from obd serve: not JSON/],
    [() => Response.json({}), /is not from obd serve: key "version"/],
    [
      () => new Response("<html>", { status: 502 }),
      /is not from obd serve: status 502/,
    ],
    [
      () => Response.json({ code: "invented", message: 5 }, { status: 500 }),
      /is not from obd serve: status 500/,
    ],
    [
      () => Response.redirect("http://127.0.0.1:9/", 302),
      /is not from obd serve: status 302/,
    ],
  ];
  for (const [answer, message] of cases) {
    await withSocket({ fetch: answer }, async (address) => {
      using client = createApiClient(address);
      await assert.rejects(client.status(), message);
    });
  }
  let sent = 0;
  const endless = () =>
    new Response(
      new ReadableStream({
        pull(controller) {
          sent++;
          controller.enqueue(new Uint8Array(1024 * 1024));
        },
      }),
    );
  await withSocket({ fetch: endless }, async (address) => {
    using client = createApiClient(address);
    await assert.rejects(client.log(), /has more than \d+ bytes/);
  });
  assert.ok(sent < 200);
});

Deno.test("the client has deadlines and can be stopped", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const late = () => promise.then(() => new Response("late"));
  await withSocket({ fetch: late }, async (address) => {
    using client = createApiClient(address);
    await assert.rejects(client.status({ deadlineMs: 50 }), DeadlineError);
    const stop = new AbortController();
    const call = client.status({ signal: stop.signal });
    setTimeout(() => stop.abort(), 50);
    await assert.rejects(
      call,
      (error: unknown) =>
        error instanceof ObdError && error.code === "cancelled",
    );
    resolve();
  });
});

/** The status API of a running `obd serve`. */

import assert from "node:assert/strict";
import { putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { hasIpv6 } from "../testutil/requires.ts";
import { until } from "../testutil/until.ts";
import {
  build,
  checkFiles,
  content,
  type Files,
  imageOf,
  ServeProcess,
  withTempDir,
  writeConfig,
} from "./harness.ts";

const FILES: Files = { "etc/a": content(1, 100_000), b: content(2, 2_000_000) };
const OTHER: Files = { "etc/a": content(7, 200_000) };

interface Place {
  dir: string;
  host: string;
  server: RegistryServer;
  config(more?: Record<string, unknown>): Promise<string>;
}

function withPlace(work: (place: Place) => Promise<void>): () => Promise<void> {
  return () =>
    withTempDir(async (dir) => {
      await using server = await RegistryServer.start();
      const { host } = server;
      await putImage(server, "app", "v1", imageOf(FILES));
      await putImage(server, "app", "v2", imageOf(OTHER));
      await build(`${host}/app:v1`);
      const images = [{ export: "app", image: `${host}/app:v1` }];
      const config = (more: Record<string, unknown> = {}) =>
        writeConfig(dir, images, more);
      await work({ dir, host, server, config });
    });
}

/** One call over the API's Unix socket. */
async function call(
  dir: string,
  method: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; text: string; type: string }> {
  using client = Deno.createHttpClient({
    proxy: { transport: "unix", path: `${dir}/api.sock` },
  });
  const answer = await fetch(`http://obd${path}`, {
    method,
    client,
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await answer.text();
  const type = answer.headers.get("content-type") ?? "";
  return { status: answer.status, text, type };
}

/** The value of one sample. */
function metric(text: string, name: string, labels = ""): number {
  const start = `${name}${labels} `;
  const line = text.split("\n").find((l) => l.startsWith(start));
  assert.ok(line !== undefined, `no ${start} in\n${text}`);
  return Number(line.slice(start.length));
}

Deno.test(
  "API: exports come and go, with 409 while a client is connected",
  withPlace(async ({ dir, host, config }) => {
    await using serve = await ServeProcess.start(await config());
    using api = serve.api();
    const added = await call(dir, "POST", "/v1/exports", {
      name: "two/x",
      image: `${host}/app:v2`,
    });
    assert.equal(added.status, 201, added.text);
    const { name, uri, size, integrity } = JSON.parse(added.text);
    // Nobody built v2: its meta image was made on the spot.
    assert.deepEqual({ name, integrity }, {
      name: "two/x",
      integrity: "spans",
    });
    assert.equal(size, 64 * 2 ** 30);
    assert.equal(uri, `nbd+unix:///two/x?socket=${dir}/nbd.sock`);
    const again = await call(dir, "POST", "/v1/exports", {
      name: "two/x",
      image: `${host}/app:v2`,
    });
    assert.equal(again.status, 409);
    assert.equal(JSON.parse(again.text).code, "conflict");
    {
      serve.ready.exports.push({ name, uri, size });
      await using client = await serve.connect("two/x");
      await checkFiles(client, OTHER);
      const { status, text } = await call(dir, "DELETE", "/v1/exports/two/x");
      assert.equal(status, 409, text);
      await checkFiles(client, OTHER);
    }
    await untilDisconnected(serve, "two/x");
    assert.equal(
      (await call(dir, "DELETE", "/v1/exports/two/x")).status,
      204,
    );
    assert.equal(
      (await call(dir, "DELETE", "/v1/exports/two/x")).status,
      404,
    );
    assert.equal((await call(dir, "GET", "/v1/exports/two/x")).status, 404);
    await assert.rejects(serve.connect("two/x"), { code: "not-found" });
    assert.equal((await api.status()).exports.length, 1);
    await using client = await serve.connect("app");
    await checkFiles(client, FILES);
  }),
);

async function untilDisconnected(
  serve: ServeProcess,
  name: string,
): Promise<void> {
  using api = serve.api();
  await until(async () => {
    const { exports } = await api.status();
    return exports.find((e) => e.name === name)?.connections === 0;
  }, "the end of the connection");
}

Deno.test(
  "API: what is wrong with a new export is said, and nothing is left of it",
  withPlace(async ({ dir, host, server, config }) => {
    await using _serve = await ServeProcess.start(await config());
    const image = `${host}/app:none`;
    const wrong: [unknown, number][] = [
      [{}, 400],
      [{ name: "x" }, 400],
      [{ name: "x", image, config: "/y" }, 400],
      [{ name: "x", image, strange: 1 }, 400],
      [{ name: "x".repeat(70_000), image }, 413],
      [{ name: "x", image }, 404],
      [{ name: "x", config: `${dir}/none.json` }, 404],
    ];
    for (const [body, status] of wrong) {
      const answer = await call(dir, "POST", "/v1/exports", body);
      assert.equal(answer.status, status, answer.text);
      assert.match(JSON.parse(answer.text).message, /\w/);
    }
    server.faults.add({
      fault: { kind: "status", status: 403 },
      path: /manifests/,
      times: 9,
    });
    const refused = await call(dir, "POST", "/v1/exports", {
      name: "x",
      image,
    });
    assert.equal(refused.status, 502, refused.text);
    server.faults.clear();
    const { status } = await call(dir, "POST", "/v1/exports", {
      name: "x",
      image: `${host}/app:v2`,
    });
    assert.equal(status, 201);
  }),
);

Deno.test(
  "API: an export that is being opened is called off by its removal",
  withPlace(async ({ dir, host, server, config }) => {
    await using serve = await ServeProcess.start(await config());
    server.faults.add({
      fault: { kind: "silence" },
      path: /manifests/,
      times: 99,
    });
    const body = { name: "x", image: `${host}/app:v2` };
    const asked = server.requests.length;
    const adding = call(dir, "POST", "/v1/exports", body);
    await until(() => server.requests.length > asked);
    // Whoever asked for it may be gone: `obd mount` after Ctrl-C.
    assert.equal((await call(dir, "DELETE", "/v1/exports/x")).status, 204);
    const { text } = await adding;
    assert.equal(JSON.parse(text).code, "cancelled", text);
    server.faults.clear();
    assert.equal((await call(dir, "DELETE", "/v1/exports/x")).status, 404);
    const again = await call(dir, "POST", "/v1/exports", body);
    assert.equal(again.status, 201, again.text);
    using api = serve.api();
    const { exports } = await api.status();
    assert.deepEqual(exports.map(({ name }) => name), ["app", "x"]);
  }),
);

Deno.test(
  "API: metrics move, the page and health answer",
  withPlace(async ({ dir, host, config }) => {
    await using serve = await ServeProcess.start(await config());
    using api = serve.api();
    const label = '{export="app"}';
    const before = await api.metrics();
    assert.equal(metric(before, "obd_ready"), 1);
    assert.equal(metric(before, "obd_export_reads_total", label), 0);
    assert.equal(metric(before, "obd_export_size_bytes", label), 2 ** 30);
    {
      await using client = await serve.connect("app");
      await checkFiles(client, FILES);
      await checkFiles(client, FILES);
      const now = await api.metrics();
      assert.equal(metric(now, "obd_export_connections", label), 1);
      assert.ok(metric(now, "obd_export_reads_total", label) > 10);
      assert.ok(
        metric(now, "obd_export_read_bytes_total", label) > 2 * 2_100_000,
      );
      assert.equal(metric(now, "obd_export_read_errors_total", label), 0);
      assert.ok(metric(now, "obd_export_read_seconds_total", label) > 0);
      // Everything was loaded once, whoever asked for it.
      const { reading } = (await api.status()).exports[0]!;
      const { waitingFor, demand, ahead } = reading;
      assert.ok(reading.waits > 0 && demand.loads > 0);
      const loaded = demand.bytes + ahead.bytes;
      assert.ok(loaded >= 2_100_000 && loaded < 2_110_000, `${loaded}`);
      assert.ok(demand.seconds.fetch > 0 && demand.seconds.decode > 0);
      assert.ok(waitingFor.fetch > 0 && waitingFor.decode > 0);
      const parts = Object.values(waitingFor).reduce((a, b) => a + b, 0);
      assert.ok(Math.abs(parts - reading.waitingSeconds) < 1e-6);
      assert.ok(reading.waitSeconds >= reading.waitingSeconds - 1e-6);
      assert.equal(
        metric(now, "obd_export_waits_total", label),
        reading.waits,
      );
      const registry = `{host="${host}"}`;
      assert.ok(
        metric(now, "obd_registry_requests_total", registry) >
          metric(before, "obd_registry_requests_total", registry),
      );
      assert.ok(
        metric(now, "obd_registry_received_bytes_total", registry) > 2_000_000,
      );
    }
    for (
      const [path, type, pattern] of [
        ["/healthz", "text/plain", /^ok\n$/],
        ["/readyz", "text/plain", /^ready\n$/],
        ["/", "text/html", /<html[^]*app[^]*spans[^]*<\/html>/],
      ] as const
    ) {
      const answer = await call(dir, "GET", path);
      assert.equal(answer.status, 200);
      assert.ok(answer.type.startsWith(type), answer.type);
      assert.match(answer.text, pattern);
    }
    assert.equal((await call(dir, "GET", "/none")).status, 404);
    const status = await api.status();
    assert.deepEqual(
      status.caches.map((c) => c.name).sort(),
      ["blob", "gzip"],
    );
    assert.match((await api.log()).join("\n"), /export added/);
  }),
);

Deno.test(
  "API: who listens at every address answers to each, not to names of others",
  withPlace(async ({ config }) => {
    await using serve = await ServeProcess.start(
      await config({ api: { listen: "0.0.0.0:0" } }),
    );
    const port = Number(serve.ready.api.split(":")[1]);
    for (
      const [host, status] of [
        ["192.0.2.7", 200],
        [`192.0.2.7:${port}`, 200],
        [`[2001:db8::7]:${port}`, 200],
        ["evil.example", 421],
        ["192.0.2.7.evil.example", 421],
        ["1.2.3.4.5", 421],
      ] as const
    ) {
      using conn = await Deno.connect({ hostname: "127.0.0.1", port });
      await conn.write(
        new TextEncoder().encode(
          `GET /healthz HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`,
        ),
      );
      const buffer = new Uint8Array(1000);
      const n = await conn.read(buffer);
      assert.match(
        new TextDecoder().decode(buffer.subarray(0, n!)),
        new RegExp(`^HTTP/1.1 ${status} `),
        host,
      );
    }
  }),
);

Deno.test({
  name: "API: the ready line's address is one that --api takes, also of IPv6",
  ignore: !hasIpv6(),
  fn: withPlace(async ({ config }) => {
    await using serve = await ServeProcess.start(
      await config({ api: { listen: "[::1]:0" } }),
    );
    assert.match(serve.ready.api, /^\[::1\]:[1-9]/);
    using api = serve.api();
    assert.equal((await api.status()).pid, serve.pid);
  }),
});

Deno.test(
  "API: over TCP, changes need the token and Host is checked",
  withPlace(async ({ host, config }) => {
    await using serve = await ServeProcess.start(
      await config({ api: { listen: "127.0.0.1:0", token: "secret-1" } }),
    );
    const base = `http://${serve.ready.api}`;
    const post = (headers: Record<string, string>) =>
      fetch(`${base}/v1/exports`, {
        method: "POST",
        headers,
        body: JSON.stringify({ name: "x", image: `${host}/app:v2` }),
      });
    for (
      const [headers, status] of [
        [{}, 401],
        [{ authorization: "Bearer secret-2" }, 401],
        [{ authorization: "Bearer secret-1" }, 201],
      ] as [Record<string, string>, number][]
    ) {
      const answer = await post(headers);
      await answer.body?.cancel();
      assert.equal(answer.status, status);
    }
    const text = await (await fetch(`${base}/v1/status`)).text();
    assert.ok(!text.includes("secret-1") && !serve.log.includes("secret-1"));
    const port = serve.ready.api.split(":")[1];
    using conn = await Deno.connect({
      hostname: "127.0.0.1",
      port: Number(port),
    });
    await conn.write(
      new TextEncoder().encode(
        "GET /v1/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
      ),
    );
    const buffer = new Uint8Array(1000);
    const n = await conn.read(buffer);
    assert.match(
      new TextDecoder().decode(buffer.subarray(0, n!)),
      /^HTTP\/1.1 421 /,
    );
  }),
);

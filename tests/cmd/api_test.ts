/** The status API over a control of the test's own, and its client over a real socket. */

import assert from "node:assert/strict";
import {
  createApi,
  createMetricsApi,
  type ExportStatus,
  type ServeControl,
  type ServeStatus,
} from "../../cmd/api.ts";
import { ApiUnreachableError, createApiClient } from "../../cmd/api_client.ts";
import type { ImageConfig } from "../../cmd/config.ts";
import { renderMetrics } from "../../cmd/metrics.ts";
import {
  DeadlineError,
  FormatError,
  NotFoundError,
  ObdError,
  UsageError,
} from "../../lib/io/mod.ts";
import { installed } from "../testutil/requires.ts";
import { withTempDir } from "./run_obd.ts";

const HOSTILE = '<script>alert("x")</script>&\'"\n\\`${1}';

function exportStatus(name: string): ExportStatus {
  return {
    name,
    uri: `nbd+unix:///${encodeURIComponent(name)}?socket=/s`,
    size: 2 ** 30,
    image: `r.example/${name}`,
    source: "sha256:aa",
    integrity: "spans",
    layers: [{
      digest: "sha256:bb",
      kind: "turbo",
      integrity: "spans",
      size: 5,
    }],
    connections: 1,
    counters: {
      reads: 3,
      readBytes: 4096,
      readErrors: 0,
      readSeconds: 0.25,
      inFlight: 0,
    },
  };
}

/** A control that keeps names. */
class FakeControl implements ServeControl {
  ready = true;
  readonly exports: ExportStatus[] = [];
  readonly added: ImageConfig[] = [];
  failure: unknown;

  status(): ServeStatus {
    return {
      version: "1.2.3",
      pid: 42,
      started: "2026-01-01T00:00:00.000Z",
      uptimeSeconds: 12.5,
      ready: this.ready,
      exports: this.exports,
      caches: [{
        name: "blob",
        hits: 1,
        misses: 2,
        storedBytes: 3,
        limitBytes: 4,
        evictions: 5,
      }],
      hosts: [{ host: "r.example", requests: 6, bytes: 7, errors: 8 }],
      memory: { rssBytes: 9, heapUsedBytes: 10 },
    };
  }

  recentLog(): readonly string[] {
    return ["one", "two"];
  }

  add(image: ImageConfig): Promise<ExportStatus> {
    if (this.failure) return Promise.reject(this.failure);
    this.added.push(image);
    const status = exportStatus(image.export);
    this.exports.push(status);
    return Promise.resolve(status);
  }

  remove(name: string): Promise<void> {
    if (this.failure) return Promise.reject(this.failure);
    const at = this.exports.findIndex((e) => e.name === name);
    if (at < 0) {
      return Promise.reject(new NotFoundError(`No export "${name}"`));
    }
    this.exports.splice(at, 1);
    return Promise.resolve();
  }
}

function fixture(options: Partial<Parameters<typeof createApi>[1]> = {}) {
  const control = new FakeControl();
  control.exports.push(exportStatus("app"));
  const api = createApi(control, { trusted: true, ...options });
  const send = async (
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ) => {
    const response = await api.request(path, {
      method,
      headers,
      ...(body === undefined
        ? {}
        : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, text, headers: response.headers };
  };
  return { control, api, send };
}

Deno.test("health and readiness", async () => {
  const { control, send } = fixture();
  assert.deepEqual((await send("GET", "/healthz")).status, 200);
  assert.deepEqual((await send("GET", "/readyz")).status, 200);
  control.ready = false;
  assert.deepEqual((await send("GET", "/healthz")).status, 200);
  assert.deepEqual((await send("GET", "/readyz")).status, 503);
});

Deno.test("status, log and exports as JSON", async () => {
  const { control, send } = fixture();
  const status = await send("GET", "/v1/status");
  assert.equal(status.status, 200);
  assert.match(status.headers.get("content-type")!, /^application\/json/);
  assert.deepEqual(JSON.parse(status.text), control.status());
  const log = await send("GET", "/v1/log");
  assert.deepEqual(JSON.parse(log.text), { lines: ["one", "two"] });
  const all = await send("GET", "/v1/exports");
  assert.deepEqual(JSON.parse(all.text), { exports: control.exports });
  const one = await send("GET", "/v1/exports/app");
  assert.deepEqual(JSON.parse(one.text), control.exports[0]);
  const none = await send("GET", "/v1/exports/none");
  assert.equal(none.status, 404);
  assert.deepEqual(JSON.parse(none.text), {
    code: "not-found",
    message: 'No export "none"',
  });
});

Deno.test("names with slashes, blanks and percent signs work in paths", async () => {
  const { control, send } = fixture();
  for (const name of ["r.example/app:1", "a b", "100%", "ü", HOSTILE]) {
    control.exports.push(exportStatus(name));
    const path = `/v1/exports/${encodeURIComponent(name)}`;
    const got = await send("GET", path);
    assert.equal(got.status, 200, name);
    assert.equal(JSON.parse(got.text).name, name);
    assert.equal((await send("DELETE", path)).status, 204, name);
    assert.ok(!control.exports.some((e) => e.name === name), name);
  }
});

Deno.test("exports are added and removed", async () => {
  const { control, send } = fixture();
  const body = { name: "new", image: "r.example/x", platform: "linux/arm64" };
  const added = await send("POST", "/v1/exports", body);
  assert.equal(added.status, 201);
  assert.equal(JSON.parse(added.text).name, "new");
  assert.deepEqual(control.added, [{
    export: "new",
    image: "r.example/x",
    platform: "linux/arm64",
  }]);
  const removed = await send("DELETE", "/v1/exports/new");
  assert.deepEqual([removed.status, removed.text], [204, ""]);
  assert.equal((await send("DELETE", "/v1/exports/new")).status, 404);
});

Deno.test("a body that is wrong names the key, and adds nothing", async () => {
  const { control, send } = fixture();
  const cases: [unknown, RegExp][] = [
    ["{", /Body is not JSON/],
    ["", /Body is not JSON/],
    [[], /Key/],
    [{}, /Key "name"/],
    [{ name: "" }, /Key "name"/],
    [{ name: 5, image: "x" }, /Key "name"/],
    [{ name: "a" }, /Either "image" or "config"/],
    [{ name: "a", image: "x", config: "y" }, /Either "image" or "config"/],
    [{ name: "a", image: "x", extra: 1 }, /Key "extra"/],
    [{ name: "a".repeat(5000), image: "x" }, /Key "name"/],
  ];
  for (const [body, message] of cases) {
    const got = await send("POST", "/v1/exports", body);
    assert.equal(got.status, 400, JSON.stringify(body));
    assert.equal(JSON.parse(got.text).code, "usage");
    assert.match(JSON.parse(got.text).message, message);
  }
  assert.deepEqual(control.added, []);
});

Deno.test("errors have the status of their code", async () => {
  const { control, send } = fixture();
  const cases: [unknown, number][] = [
    [new ObdError("conflict", "2 clients are connected"), 409],
    [new UsageError("bad reference"), 400],
    [new NotFoundError("no image"), 404],
    [new FormatError("LSMT", "magic", "is wrong"), 422],
    [new ObdError("integrity", "digest"), 502],
    [new ObdError("registry", "503"), 502],
    [new DeadlineError("it", 5), 504],
    [new Error("surprise"), 500],
  ];
  for (const [failure, status] of cases) {
    control.failure = failure;
    const added = await send("POST", "/v1/exports", { name: "a", image: "b" });
    assert.equal(added.status, status, String(failure));
    assert.equal(JSON.parse(added.text).message, (failure as Error).message);
    assert.equal((await send("DELETE", "/v1/exports/app")).status, status);
  }
});

Deno.test("unknown routes and methods", async () => {
  const { send } = fixture();
  for (
    const [method, path] of [
      ["GET", "/v2/"],
      ["PUT", "/v1/exports/app"],
      ["POST", "/v1/status"],
      ["DELETE", "/v1/exports"],
    ] as const
  ) {
    const got = await send(method, path);
    assert.equal(got.status, 404, `${method} ${path}`);
    assert.equal(JSON.parse(got.text).code, "not-found");
  }
});

Deno.test("bodies are bounded, with and without Content-Length", async () => {
  const { control, api } = fixture();
  const big = JSON.stringify({ name: "a", image: "x".repeat(70_000) });
  const declared = await api.request("/v1/exports", {
    method: "POST",
    headers: { "content-length": String(big.length) },
    body: big,
  });
  assert.equal(declared.status, 413);
  let pulled = 0;
  const endless = new ReadableStream<Uint8Array>({
    pull(controller) {
      pulled += 4096;
      controller.enqueue(new Uint8Array(4096).fill(0x20));
    },
  });
  const chunked = await api.request("/v1/exports", {
    method: "POST",
    body: endless,
  });
  assert.equal(chunked.status, 413);
  assert.ok(pulled < 200_000, `${pulled} bytes were read`);
  assert.deepEqual(control.added, []);
});

Deno.test("over TCP changes need the token", async () => {
  const body = { name: "a", image: "b" };
  const open = fixture({ trusted: false });
  assert.equal((await open.send("POST", "/v1/exports", body)).status, 403);
  assert.equal((await open.send("DELETE", "/v1/exports/app")).status, 403);
  assert.equal((await open.send("GET", "/v1/status")).status, 200);
  // An empty token is none.
  const none = await open.send("POST", "/v1/exports", body, {
    authorization: "Bearer undefined",
  });
  assert.equal(none.status, 403);

  const { control, send } = fixture({ trusted: false, token: "s3cret" });
  for (
    const authorization of [
      undefined,
      "Bearer wrong!",
      "Bearer s3cre",
      "Bearer s3cret2",
      "Basic s3cret",
      "s3cret",
    ]
  ) {
    const headers: Record<string, string> = authorization
      ? { authorization }
      : {};
    const got = await send("POST", "/v1/exports", body, headers);
    assert.equal(got.status, 401, String(authorization));
    const removed = await send(
      "DELETE",
      "/v1/exports/app",
      undefined,
      headers,
    );
    assert.equal(removed.status, 401, String(authorization));
  }
  assert.deepEqual(control.added, []);
  const right = { authorization: "Bearer s3cret" };
  assert.equal((await send("POST", "/v1/exports", body, right)).status, 201);
  assert.equal(
    (await send("DELETE", "/v1/exports/a", undefined, right)).status,
    204,
  );
});

Deno.test("only known Host names are answered", async () => {
  const { send } = fixture({ hosts: ["127.0.0.1", "localhost", "[::1]"] });
  for (
    const host of ["127.0.0.1", "127.0.0.1:9000", "LOCALHOST:1", "[::1]:80"]
  ) {
    const got = await send("GET", "/healthz", undefined, { host });
    assert.equal(got.status, 200, host);
  }
  for (
    const host of [
      "evil.example",
      "evil.example:9000",
      "127.0.0.1.evil.example",
      "localhost:80:80",
      "",
    ]
  ) {
    for (const path of ["/", "/healthz", "/v1/status", "/metrics", "/none"]) {
      const got = await send("GET", path, undefined, { host });
      assert.equal(got.status, 421, `${host} ${path}`);
    }
  }
});

/** Parses the text format 0.0.4, strictly enough to find mistakes. */
function parseMetrics(text: string) {
  const types = new Map<string, string>();
  const samples: {
    name: string;
    labels: Record<string, string>;
    value: number;
  }[] = [];
  assert.ok(text.endsWith("\n"));
  for (const line of text.trimEnd().split("\n")) {
    const meta = /^# (HELP|TYPE) ([a-z_]+) (.+)$/.exec(line);
    if (meta) {
      if (meta[1] === "TYPE") {
        assert.ok(!types.has(meta[2]!), `${meta[2]} is there twice`);
        types.set(meta[2]!, meta[3]!);
      }
      continue;
    }
    const sample =
      /^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)$/
        .exec(line);
    assert.ok(sample, `not a sample: ${line}`);
    const labels: Record<string, string> = {};
    for (
      const [, key, value] of (sample[2] ?? "").matchAll(
        /([a-z_]+)="((?:[^"\\]|\\.)*)"/g,
      )
    ) {
      labels[key!] = value!.replaceAll(
        /\\(.)/g,
        (_, c) => c === "n" ? "\n" : c,
      );
    }
    assert.ok(types.has(sample[1]!), `${sample[1]} has no TYPE before it`);
    const value = Number(sample[3]);
    assert.ok(Number.isFinite(value), line);
    samples.push({ name: sample[1]!, labels, value });
  }
  return { types, samples };
}

Deno.test("metrics: format, names, units, labels", async () => {
  const { control, send } = fixture();
  control.exports.push(exportStatus(HOSTILE));
  const got = await send("GET", "/metrics");
  assert.match(
    got.headers.get("content-type")!,
    /^text\/plain; version=0\.0\.4/,
  );
  const { types, samples } = parseMetrics(got.text);
  for (const [name, type] of types) {
    assert.match(name, /^obd_/);
    assert.equal(type, name.endsWith("_total") ? "counter" : "gauge", name);
    assert.doesNotMatch(name, /_(ms|milliseconds|kib|mib)(_|$)/);
  }
  for (const { name, labels } of samples) {
    for (const label of Object.keys(labels)) {
      assert.ok(
        label === "export" || label === "host",
        `${name}{${label}}`,
      );
    }
  }
  const value = (name: string, labels: Record<string, string> = {}) =>
    samples.find((s) =>
      s.name === name &&
      Object.entries(labels).every(([k, v]) => s.labels[k] === v)
    )?.value;
  assert.equal(value("obd_ready"), 1);
  assert.equal(value("obd_uptime_seconds"), 12.5);
  assert.equal(value("obd_export_reads_total", { export: "app" }), 3);
  assert.equal(
    value("obd_export_read_bytes_total", { export: HOSTILE }),
    4096,
  );
  assert.equal(value("obd_export_read_seconds_total", { export: "app" }), 0.25);
  assert.equal(value("obd_registry_requests_total", { host: "r.example" }), 6);
  assert.equal(value("obd_blob_cache_stored_bytes"), 3);
});

Deno.test("metrics of a serve without exports have no empty families", () => {
  const control = new FakeControl();
  const text = renderMetrics({ ...control.status(), caches: [], hosts: [] });
  const { types, samples } = parseMetrics(text);
  for (const name of types.keys()) {
    assert.ok(samples.some((s) => s.name === name), name);
  }
});

Deno.test("the metrics listener has nothing else", async () => {
  const api = createMetricsApi(new FakeControl());
  for (const path of ["/metrics", "/healthz", "/readyz"]) {
    const response = await api.request(path);
    await response.text();
    assert.equal(response.status, 200, path);
  }
  for (const path of ["/", "/v1/status", "/v1/log", "/v1/exports"]) {
    const response = await api.request(path);
    await response.text();
    assert.equal(response.status, 404, path);
  }
});

Deno.test("the page escapes what others named", async () => {
  const { control, send } = fixture();
  const hostile = exportStatus(HOSTILE);
  control.exports.push({ ...hostile, image: HOSTILE, integrity: HOSTILE });
  const page = await send("GET", "/");
  assert.equal(page.status, 200);
  assert.match(page.headers.get("content-type")!, /^text\/html/);
  assert.ok(!/<script/i.test(page.text));
  assert.match(page.text, /&lt;script&gt;alert\(&quot;x&quot;\)/);
  assert.match(page.text, /1\.00 GiB/);
});

Deno.test({
  name: "a browser renders the page, and runs nothing of it",
  ignore: !installed("chromium"),
  fn: () =>
    withTempDir(async (dir) => {
      const { control, send } = fixture();
      const hostile =
        `<img src=x onerror="document.title='pwned'"><script>document.title='pwned'</script>`;
      control.exports.push(exportStatus(hostile));
      const page = await send("GET", "/");
      await Deno.writeTextFile(`${dir}/page.html`, page.text);
      const { stdout, success } = await new Deno.Command("chromium", {
        args: [
          "--headless",
          "--no-sandbox",
          "--disable-gpu",
          `--user-data-dir=${dir}/profile`,
          "--dump-dom",
          `file://${dir}/page.html`,
        ],
        stdin: "null",
        stderr: "null",
        signal: AbortSignal.timeout(60_000),
      }).output();
      assert.ok(success);
      const dom = new TextDecoder().decode(stdout);
      assert.match(dom, /<title>obd<\/title>/);
      assert.match(dom, /<strong>app<\/strong>/);
      assert.match(dom, /&lt;img src=x/);
      assert.ok(!dom.includes("<img"));
      assert.equal(dom.match(/<tr>/g)?.length, 5, dom);
    }),
});

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
  const before = ["HTTP_PROXY", "NO_PROXY"].map((name) =>
    [name, Deno.env.get(name)] as const
  );
  try {
    for (const exception of ["localhost,127.0.0.1", "*", ""]) {
      Deno.env.set("HTTP_PROXY", "http://127.0.0.1:9");
      Deno.env.set("NO_PROXY", exception);
      await withSocket(api, async (address) => {
        using client = createApiClient(address);
        assert.equal((await client.status()).version, "1.2.3");
      });
    }
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) Deno.env.delete(name);
      else Deno.env.set(name, value);
    }
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

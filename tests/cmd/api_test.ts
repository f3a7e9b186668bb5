/** The status API: routes, rights, metrics, the page. */

import assert from "node:assert/strict";
import { createMetricsApi, type TraceControl } from "../../cmd/api.ts";
import { renderMetrics } from "../../cmd/metrics.ts";
import {
  CancelledError,
  DeadlineError,
  FormatError,
  NotFoundError,
  ObdError,
  UsageError,
} from "../../lib/io/mod.ts";
import { installed } from "../testutil/requires.ts";
import { exportStatus, FakeControl, fixture, HOSTILE } from "./fake_control.ts";
import { withTempDir } from "./run_obd.ts";

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
    [{ name: "a", image: "x", extra: 1 }, /Key "extra": there is no such key/],
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
    [new CancelledError("it was removed while it was opened"), 409],
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

Deno.test("over TCP traces need the token, to be read too", async () => {
  const asked: string[] = [];
  const traces: TraceControl = {
    start: (name) => void asked.push(`start ${name}`),
    read: (name, from) => {
      asked.push(`read ${name} ${from}`);
      return [{ offset: 0, length: 4096 }];
    },
    device: () => Promise.resolve("ab"),
    stop: (name) => {
      asked.push(`stop ${name}`);
      return [];
    },
  };
  const open = fixture({ trusted: false, traces });
  const { send } = fixture({ trusted: false, token: "s3cret", traces });
  for (const method of ["POST", "GET", "DELETE"]) {
    const path = "/v1/traces/app";
    assert.equal((await open.send(method, path)).status, 403, method);
    assert.equal((await send(method, path)).status, 401, method);
  }
  assert.deepEqual(asked, []);
  const right = { authorization: "Bearer s3cret" };
  const sent = (method: string, path: string) =>
    send(method, path, undefined, right);
  assert.equal((await sent("POST", "/v1/traces/a%2Fb")).status, 204);
  const got = await sent("GET", "/v1/traces/a%2Fb?from=7");
  assert.deepEqual(JSON.parse(got.text), {
    records: [[0, 4096]],
    device: "ab",
  });
  assert.equal((await sent("GET", "/v1/traces/a?from=-1")).status, 400);
  const stopped = await sent("DELETE", "/v1/traces/a%2Fb");
  assert.deepEqual(JSON.parse(stopped.text), { records: [] });
  assert.deepEqual(asked, ["start a/b", "read a/b 7", "stop a/b"]);
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
  const waited = [
    "waiting",
    "waiting_queue",
    "waiting_fetch",
    "waiting_decode",
  ];
  assert.deepEqual(
    waited.map((n) =>
      value(`obd_export_${n}_seconds_total`, { export: "app" })
    ),
    [0.5, 0.0625, 0.25, 0.125],
  );
  const loads = ["demand_loads", "demand_stored_bytes", "ahead_loaded_bytes"];
  assert.deepEqual(
    loads.map((n) => value(`obd_export_${n}_total`, { export: "app" })),
    [4, 400, 2000],
  );
  assert.equal(
    value("obd_export_load_fetch_seconds_total", { export: "app" }),
    22,
  );
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
  const api = createMetricsApi(new FakeControl(), { path: "/prefix/m" });
  for (const path of ["/metrics", "/prefix/m", "/healthz", "/readyz"]) {
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

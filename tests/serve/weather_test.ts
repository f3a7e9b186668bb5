/** `obd serve` while the registry misbehaves: right bytes or EIO in time, and recovery. */

import assert from "node:assert/strict";
import { equalBytes } from "../../lib/io/mod.ts";
import { NBD_ERROR, NbdError } from "../../lib/nbd/mod.ts";
import { putImage } from "../testutil/oci_image.ts";
import {
  type Fault,
  RegistryServer,
  type RegistryServerOptions,
} from "../testutil/registry_server.ts";
import { until } from "../testutil/until.ts";
import {
  build,
  checkFiles,
  content,
  type Files,
  imageOf,
  readFile,
  ServeProcess,
  withTempDir,
  writeConfig,
} from "./harness.ts";

/** More than the span cache in memory holds: with tiny caches on disk every round fetches again. */
const FILES: Files = Object.fromEntries(
  Array.from({ length: 20 }, (_, i) => [`f${i}`, content(i, 2_000_000)]),
);
const IMAGE = imageOf(FILES);
const LAYER = IMAGE.layers[0]!;
const NO_CACHES = {
  cacheConfig: { cacheSizeGB: 0.001 },
  gzipCacheConfig: { enable: false },
};

interface Place {
  dir: string;
  server: RegistryServer;
  config(more?: Record<string, unknown>): Promise<string>;
}

function withPlace(
  options: RegistryServerOptions,
  work: (place: Place) => Promise<void>,
): () => Promise<void> {
  return () =>
    withTempDir(async (dir) => {
      const server = await RegistryServer.start({
        directory: `${dir}/registry`,
      });
      // Stopping it twice does no harm: one test stops it itself.
      await using stack = new AsyncDisposableStack();
      stack.defer(() => server[Symbol.asyncDispose]());
      await putImage(server, "app", "v1", IMAGE);
      await build(`${server.host}/app:v1`);
      // Only now: pushing would need credentials.
      Object.assign(server.options, options);
      const images = [{ export: "app", image: `${server.host}/app:v1-obd` }];
      const config = (more: Record<string, unknown> = {}) =>
        writeConfig(dir, images, {
          ...NO_CACHES,
          ...more,
          cacheConfig: { ...NO_CACHES.cacheConfig, cacheDir: `${dir}/blobs` },
        });
      await work({ dir, server, config });
    });
}

Deno.test(
  "weather: reads go on while tokens end after 2 s and redirects after 1 s",
  withPlace({
    auth: { kind: "token", anonymousPull: true, lifetimeSeconds: 2 },
    redirect: true,
  }, async ({ server, config }) => {
    await using serve = await ServeProcess.start(await config());
    const count = (status: number, origin: string) =>
      server.requests.filter((r) => r.status === status && r.origin === origin)
        .length;
    let read = 0;
    const timers = [
      setInterval(() => server.revokeTokens(), 2000),
      setInterval(() => {
        // Not sooner than after some reads, however slow they are.
        if (count(206, "storage") - read < 20) return;
        read = count(206, "storage");
        server.expireUrls();
      }, 1000),
    ];
    try {
      await using client = await serve.connect("app");
      for (let rounds = 1; rounds <= 2; rounds++) {
        await checkFiles(client, FILES);
      }
      await until(async () => {
        await checkFiles(client, FILES);
        return count(200, "token") >= 3 && count(403, "storage") >= 4;
      }, "tokens and redirects that are renewed again and again");
    } finally {
      timers.forEach(clearInterval);
    }
    assert.ok(
      server.requests.every((r) => r.origin !== "storage" || !r.authorization),
      "a token went to the storage",
    );
    // One read finds out that a URL has expired; it does not ask for each read.
    assert.ok(count(307, "registry") < count(206, "storage") / 2);
    assert.doesNotMatch(serve.log, /signature=|token-\d/);
    assert.doesNotMatch(serve.log, / (ERROR|WARN) /);
  }),
);

/** Succeeds in the end; until then there is EIO, and nothing worse. */
async function eventually(work: () => Promise<void>): Promise<void> {
  const end = performance.now() + 20_000;
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof NbdError) || performance.now() > end) throw error;
    }
  }
}

const BURSTS: [string, Fault][] = [
  ["429", { kind: "status", status: 429, headers: { "retry-after": "1" } }],
  ["500", { kind: "status", status: 500 }],
  ["503", { kind: "status", status: 503, body: "<html>busy</html>" }],
  ["bodies that break off", { kind: "truncate", afterBytes: 70_000 }],
  ["200 to a range", { kind: "ignore-range" }],
  ["wrong bytes once", { kind: "corrupt", at: 5000 }],
  ["late answers", { kind: "delay", milliseconds: 300 }],
];

Deno.test(
  "weather: bursts of errors and broken answers are ridden out",
  withPlace({}, async ({ server, config }) => {
    await using serve = await ServeProcess.start(await config());
    await using client = await serve.connect("app");
    for (const [name, fault] of BURSTS) {
      // A span that is wrong twice in a row is an error, as it should be; three
      // wrong answers may hit one span or three, as it happens.
      const times = fault.kind === "corrupt" ? 1 : 3;
      server.faults.add({ fault, path: new RegExp(LAYER.digest), times });
      const before = server.requests.length;
      try {
        await checkFiles(client, FILES);
      } catch (error) {
        throw new Error(`${name}: ${(error as Error).message}\n${serve.log}`);
      }
      const hit = server.requests.slice(before).filter((r) => r.fault).length;
      assert.equal(hit, times, `${name} was met ${hit} times`);
    }
  }),
);

/** A server that contradicts itself is not asked again within one read. */
const LIES: [string, Fault][] = [
  ["a body shorter than its range", { kind: "shorten", bytes: 70_000 }],
  ["an answer to another range", { kind: "shift-range", by: 4096 }],
];

Deno.test(
  "weather: answers that contradict themselves give EIO, never wrong bytes",
  withPlace({}, async ({ server, config }) => {
    await using serve = await ServeProcess.start(await config());
    await using client = await serve.connect("app");
    for (const [name, fault] of LIES) {
      server.faults.add({ fault, path: new RegExp(LAYER.digest), times: 99 });
      for (const file of ["f0", "f1"]) {
        await assert.rejects(readFile(client, file), NbdError, name);
      }
      server.faults.clear();
      await checkFiles(client, FILES);
    }
  }),
);

Deno.test(
  "weather: a body that hangs costs the requests that need it, nothing else",
  withPlace({}, async ({ server, config }) => {
    const path = await config({ nbd: { requestTimeout: 3 } });
    await using serve = await ServeProcess.start(path);
    await using client = await serve.connect("app");
    assert.ok(equalBytes(await readFile(client, "f0"), FILES.f0!));
    // As many as one reader and its readahead can meet at once.
    server.faults.add({
      fault: { kind: "hang", afterBytes: 1000 },
      path: new RegExp(LAYER.digest),
      times: 1000,
    });
    const started = performance.now();
    const failing = readFile(client, "f12");
    let failed = false;
    failing.catch(() => failed = true);
    // What is at hand is served meanwhile, on the same connection.
    assert.ok(equalBytes(await readFile(client, "f0"), FILES.f0!));
    assert.ok(!failed, "a hang stalled other reads");
    await assert.rejects(failing, (error) => {
      assert.ok(error instanceof NbdError, String(error));
      assert.equal(error.errno, NBD_ERROR.EIO);
      return true;
    });
    assert.ok(performance.now() - started < 20_000, "the deadline came late");
    await serve.logged(
      /nbd-request-failed export=app .*did not finish in 3000 ms/,
    );
    server.faults.clear();
    await eventually(() => checkFiles(client, FILES));
  }),
);

Deno.test(
  "weather: a registry that goes away and comes back",
  withPlace({}, async ({ dir, server, config }) => {
    // Long enough for reads of a registry that is there, on a busy machine too.
    const path = await config({ nbd: { requestTimeout: 3 } });
    await using serve = await ServeProcess.start(path);
    await using client = await serve.connect("app");
    assert.ok(equalBytes(await readFile(client, "f0"), FILES.f0!));
    const port = Number(server.host.split(":")[1]);
    await server[Symbol.asyncDispose]();
    const started = performance.now();
    await assert.rejects(readFile(client, "f12"), NbdError);
    assert.ok(performance.now() - started < 20_000, "the deadline came late");
    await using again = await RegistryServer.start({
      directory: `${dir}/registry`,
      port,
    });
    await putImage(again, "app", "v1", IMAGE);
    await eventually(() => checkFiles(client, FILES));
  }),
);

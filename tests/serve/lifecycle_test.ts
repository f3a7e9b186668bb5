/** `obd serve` from its start to its end: the ready line, what stops it from starting, signals, restarts. */

import assert from "node:assert/strict";
import { NbdClient } from "../../lib/nbd/mod.ts";
import { putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { unmount } from "../testutil/unmount.ts";
import { until } from "../testutil/until.ts";
import {
  blobReads,
  build,
  checkFiles,
  content,
  type Files,
  imageOf,
  OBD,
  obd,
  ServeProcess,
  sh,
  withTempDir,
  writeConfig,
} from "./harness.ts";

const FILES: Files = {
  "etc/a": content(1, 100_000),
  "usr/b": content(2, 3_000_000),
  "usr/c": content(3, 1_500_000),
};
const IMAGE = imageOf(FILES);
const LAYER = IMAGE.layers[0]!;

interface Place {
  dir: string;
  server: RegistryServer;
  /** Of the plain image; its meta image is there. */
  reference: string;
  /** Digest of the meta image. */
  meta: string;
  /** Writes a configuration with this image as `app`. */
  config(more?: Record<string, unknown>): Promise<string>;
}

function withPlace(work: (place: Place) => Promise<void>): () => Promise<void> {
  return () =>
    withTempDir(async (dir) => {
      await using server = await RegistryServer.start();
      await putImage(server, "app", "v1", IMAGE);
      const reference = `${server.host}/app:v1`;
      const meta = await build(reference);
      const config = (more: Record<string, unknown> = {}) =>
        writeConfig(dir, [{ export: "app", image: reference }], more);
      await work({ dir, server, reference, meta, config });
    });
}

async function exists(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}

/** Fails unless `obd serve` ends with 1, one clear line, and nothing left behind. */
async function refuses(
  dir: string,
  config: string,
  line: RegExp,
  sockets: string[] = ["nbd.sock", "api.sock"],
): Promise<void> {
  const { code, stdout, stderr } = await obd("serve", "--config", config);
  const lines = stderr.trim().split("\n").filter((l) => l.startsWith("obd: "));
  assert.equal(lines.length, 1, stderr);
  assert.match(lines[0]!, line);
  assert.doesNotMatch(stderr, /^\s+at /m);
  assert.equal(code, 1, stderr);
  assert.equal(stdout, "");
  for (const name of sockets) {
    assert.ok(!await exists(`${dir}/${name}`), `${name} was left behind`);
  }
}

Deno.test(
  "serve: the ready line says everything, SIGTERM ends with 0",
  withPlace(async ({ dir, meta, config }) => {
    await using serve = await ServeProcess.start(await config());
    assert.deepEqual(serve.ready, {
      event: "ready",
      pid: serve.pid,
      api: `unix:${dir}/api.sock`,
      exports: [{
        name: "app",
        uri: `nbd+unix:///app?socket=${dir}/nbd.sock`,
        size: 2 ** 30,
        source: IMAGE.manifest.digest,
        meta,
      }],
    });
    for (const name of ["nbd.sock", "api.sock"]) {
      assert.equal((await Deno.stat(`${dir}/${name}`)).mode! & 0o777, 0o600);
    }
    {
      await using client = await serve.connect("app");
      assert.ok(client.readOnly && client.canMultiConn);
      await checkFiles(client, FILES);
      // A single export also answers to the empty name.
      await using unnamed = await NbdClient.connect(
        `nbd+unix:///?socket=${dir}/nbd.sock`,
      );
      await checkFiles(unnamed, FILES);
    }
    const { code, stdout, stderr } = await serve.end();
    assert.equal(code, 0, stderr);
    assert.equal(stdout.trim().split("\n").length, 1, stdout);
    for (const name of ["nbd.sock", "api.sock"]) {
      assert.ok(!await exists(`${dir}/${name}`), `${name} was left behind`);
    }
  }),
);

Deno.test(
  "serve --check validates and does nothing else",
  withPlace(async ({ dir, server, config }) => {
    const before = server.requests.length;
    const path = await config({ extra: 1 });
    const { code, stdout } = await obd("serve", "--config", path, "--check");
    assert.equal(code, 0);
    assert.match(stdout, /^Configuration is valid: 1 images/);
    const json = await obd("serve", "--config", path, "--check", "--json");
    const { valid, warnings, images } = JSON.parse(json.stdout);
    assert.equal(valid, true);
    assert.equal(images.length, 1);
    assert.match(warnings[0], /unknown: extra/);
    assert.equal(server.requests.length, before);
    assert.ok(!await exists(`${dir}/blobs`));
    const bad = await config({ nbd: { listen: "unix:relative" } });
    const refused = await obd("serve", "--config", bad, "--check");
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /^obd: Key "nbd.listen": "unix:relative"/m);
  }),
);

Deno.test(
  "serve: what is wrong with a configuration is said in one line",
  withPlace(async ({ dir, server, reference, config }) => {
    const wrong: [Record<string, unknown>, RegExp][] = [
      [{ workers: "two" }, /key "workers": expected number, found "two"/],
      [{ nbd: { listen: 5 } }, /key "nbd\.listen": expected string, found 5/],
      [{ integrity: "maybe" }, /key "integrity": .*"maybe"/],
      [{ images: [{ export: "a" }] }, /needs either "image" or "config"/],
      [{
        images: [1, 2].map(() => ({ export: "a", image: reference })),
      }, /"images\.1\.export": "a" is used twice/],
      [{
        images: [{ export: "a", image: `${server.host}/app:none` }],
      }, /Cannot open export "a": .*none/],
      [{
        images: [{ export: "a", image: `${server.host}/UPPER` }],
      }, /Cannot open export "a": .*UPPER/],
      [{
        images: [{ export: "a", config: `${dir}/none.json` }],
      }, /Cannot open export "a": .*none\.json/],
      [{ cacheConfig: { cacheDir: "/proc/none" } }, /\/proc\/none/],
    ];
    for (const [more, line] of wrong) {
      await refuses(dir, await config(more), line);
    }
    const broken = `${dir}/broken.json`;
    await Deno.writeTextFile(broken, '{\n  "nbd": {,}\n}');
    await refuses(dir, broken, /broken\.json" is not valid JSON: line 2/);
    await refuses(dir, `${dir}/missing.json`, /missing\.json/);
  }),
);

Deno.test(
  "serve: ports and sockets in use are refused, and left alone",
  withPlace(async ({ dir, config }) => {
    using tcp = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const taken = `127.0.0.1:${tcp.addr.port}`;
    await refuses(
      dir,
      await config({ nbd: { listen: taken } }),
      new RegExp(`Cannot listen for NBD clients at "${taken}"`),
    );
    await refuses(
      dir,
      await config({ api: { listen: taken } }),
      /Cannot listen at key "api\.listen"/,
    );
    await refuses(
      dir,
      await config({
        api: { listen: `unix:${dir}/api.sock`, metricsListen: taken },
      }),
      /Cannot listen at key "api\.metricsListen"/,
    );
    const path = `${dir}/nbd.sock`;
    {
      using _unix = Deno.listen({ transport: "unix", path });
      await refuses(dir, await config(), /another process listens there/, []);
      assert.ok(await exists(path), "the socket of another was removed");
    }
    await Deno.writeTextFile(path, "precious");
    await refuses(dir, await config(), /it is not a socket/, ["api.sock"]);
    assert.equal(await Deno.readTextFile(path), "precious");
  }),
);

Deno.test(
  "serve: a second owner of the cache directory is refused",
  withPlace(async ({ dir, config }) => {
    await using serve = await ServeProcess.start(await config());
    await refuses(
      dir,
      await config({
        nbd: { listen: `unix:${dir}/nbd2.sock` },
        api: { listen: `unix:${dir}/api2.sock` },
      }),
      new RegExp(`cache directory "${dir}/blobs": process ${serve.pid} uses`),
      ["nbd2.sock", "api2.sock"],
    );
    // `cat` beside it works: it keeps its caches to itself.
    await using client = await serve.connect("app");
    await checkFiles(client, FILES);
  }),
);

Deno.test(
  "serve: SIGTERM while a client reads ends with 0 in time, without wrong bytes",
  withPlace(async ({ config }) => {
    await using serve = await ServeProcess.start(await config());
    await using client = await serve.connect("app");
    let reads = 0;
    const reading = (async () => {
      for (;;) {
        try {
          await checkFiles(client, FILES);
          reads++;
        } catch (error) {
          return error;
        }
      }
    })();
    while (reads < 2) await new Promise((resolve) => setTimeout(resolve, 20));
    const started = performance.now();
    const { code, stderr } = await serve.end();
    assert.equal(code, 0, stderr);
    assert.ok(performance.now() - started < 10_000);
    // The connection broke; no file had other content.
    const error = await reading;
    assert.ok(error instanceof Error);
    assert.notEqual(error.name, "AssertionError", error.message);
  }),
);

Deno.test(
  "serve: SIGTERM while a read hangs in the registry ends with 0",
  withPlace(async ({ server, config }) => {
    const path = await config({ nbd: { requestTimeout: 2 } });
    await using serve = await ServeProcess.start(path);
    await using client = await serve.connect("app");
    server.faults.add({
      fault: { kind: "silence" },
      path: new RegExp(LAYER.digest),
      times: 100,
    });
    const failed = assert.rejects(checkFiles(client, FILES));
    await new Promise((resolve) => setTimeout(resolve, 300));
    const started = performance.now();
    const { code, stderr } = await serve.end();
    assert.equal(code, 0, stderr);
    assert.ok(performance.now() - started < 10_000);
    await failed;
  }),
);

Deno.test(
  "serve: SIGTERM while traces are looked for in vain ends with 0 in time",
  withPlace(async ({ server, reference, config }) => {
    server.faults.add({
      fault: { kind: "silence" },
      path: /referrers/,
      times: 100,
    });
    // Of a meta image referrers are asked for traces only.
    const images = [{ export: "app", image: `${reference}-obd` }];
    await using serve = await ServeProcess.start(await config({ images }));
    await until(() => server.requests.some((r) => /referrers/.test(r.path)));
    const started = performance.now();
    const { code, stderr } = await serve.end();
    assert.equal(code, 0, stderr);
    assert.ok(performance.now() - started < 10_000);
  }),
);

Deno.test(
  "serve: SIGTERM while half a request stands at the API ends with 0",
  withPlace(async ({ dir, config }) => {
    await using serve = await ServeProcess.start(await config());
    using conn = await Deno.connect({
      transport: "unix",
      path: `${dir}/api.sock`,
    });
    const head = "POST /v1/exports HTTP/1.1\r\nHost: x\r\n";
    await conn.write(
      new TextEncoder().encode(`${head}Content-Length: 100\r\n\r\n{`),
    );
    // Later requests are answered: this one has been taken.
    using api = serve.api();
    await api.status();
    const { code, stderr } = await serve.end();
    assert.equal(code, 0, stderr);
    assert.ok(!await exists(`${dir}/api.sock`), "api.sock was left behind");
  }),
);

for (const where of ["under nohup", "as a service of Type=notify"]) {
  Deno.test(
    `serve: ${where} SIGHUP does not stop it`,
    withPlace(async ({ dir, config }) => {
      await using serve = await ServeProcess.start(
        await config(),
        where === "under nohup"
          ? {
            command: ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", ...OBD],
          }
          : { env: { NOTIFY_SOCKET: `${dir}/nobody-listens` } },
      );
      Deno.kill(serve.pid, "SIGHUP");
      using api = serve.api();
      assert.equal((await api.status()).pid, serve.pid);
      const { code, stderr } = await serve.end();
      assert.equal(code, 0, stderr);
      assert.match(stderr, / stopping reason="Stopped by SIGTERM"/);
    }),
  );
}

Deno.test(
  "serve: SIGTERM before it is ready ends at once",
  withPlace(async ({ server, config }) => {
    server.faults.add({
      fault: { kind: "silence" },
      path: /manifests/,
      times: 100,
    });
    const file = await config();
    const starting = ServeProcess.start(file).then(
      () => assert.fail("it is ready"),
      (error: Error) => error.message,
    );
    const asked = server.requests.length;
    while (server.requests.length === asked) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const started = performance.now();
    // Tests beside this one in the same process have their own.
    for (const pid of await childrenOfThisProcess(file)) {
      Deno.kill(pid, "SIGTERM");
    }
    assert.match(await starting, /^obd serve ended with 0: /);
    assert.ok(performance.now() - started < 10_000);
  }),
);

/** Processes that this one started with a word among their arguments. */
async function childrenOfThisProcess(word: string): Promise<number[]> {
  const found: number[] = [];
  for await (const { name } of Deno.readDir(`/proc/${Deno.pid}/task`)) {
    // Threads and processes of tests beside this one end at any time.
    const path = `/proc/${Deno.pid}/task/${name}/children`;
    const pids = (await Deno.readTextFile(path).catch(() => "")).split(" ")
      .filter(Boolean);
    for (const pid of pids) {
      const args = await Deno.readTextFile(`/proc/${pid}/cmdline`)
        .catch(() => "");
      if (args.split("\0").includes(word)) found.push(Number(pid));
    }
  }
  return found;
}

Deno.test(
  "serve: warm caches survive a restart, and nothing is fetched again",
  withPlace(async ({ server, config }) => {
    const path = await config();
    {
      await using serve = await ServeProcess.start(path);
      await using client = await serve.connect("app");
      await checkFiles(client, FILES);
      assert.equal((await serve.end()).code, 0);
    }
    assert.ok(blobReads(server.requests, LAYER.digest) > 0);
    server.requests.length = 0;
    await using serve = await ServeProcess.start(path);
    await using client = await serve.connect("app");
    await checkFiles(client, FILES);
    assert.equal(blobReads(server.requests, LAYER.digest), 0);
  }),
);

Deno.test(
  "serve: after kill -9 it starts again and serves right bytes",
  withPlace(async ({ dir, config }) => {
    const path = await config();
    for (const pause of [0, 30, 200]) {
      await using serve = await ServeProcess.start(path);
      await using client = await serve.connect("app");
      const reading = checkFiles(client, FILES).catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, pause));
      await serve.end("SIGKILL");
      await reading;
      // Left behind, and replaced by the next start.
      assert.ok(await exists(`${dir}/nbd.sock`));
    }
    await using serve = await ServeProcess.start(path);
    await using client = await serve.connect("app");
    await checkFiles(client, FILES);
    assert.equal((await serve.end()).code, 0);
  }),
);

Deno.test({
  name: "serve: tells systemd when it is ready and when it stops",
  ignore: !requires("python3"),
  fn: withPlace(async ({ dir, config }) => {
    const socket = `${dir}/notify.sock`;
    const listener = new Deno.Command("python3", {
      args: [
        "-c",
        `import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
s.settimeout(30)
for _ in range(2):
    print(s.recv(4096).decode(), flush=True)`,
        socket,
      ],
      stdin: "null",
      stdout: "piped",
    }).spawn();
    const output = new Response(listener.stdout).text();
    try {
      while (!await exists(socket)) {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      await using serve = await ServeProcess.start(await config(), {
        env: { NOTIFY_SOCKET: socket },
      });
      assert.equal((await serve.end()).code, 0);
      assert.equal(await output, "READY=1\nSTOPPING=1\n");
    } finally {
      try {
        listener.kill("SIGKILL");
      } catch {
        // It has ended already.
      }
      await listener.status;
    }
  }),
});

Deno.test({
  name: "serve: a full disk under the caches is said, a scarce one served from",
  ignore: !requiresMount(),
  fn: withPlace(async ({ dir, config }) => {
    const disk = `${dir}/disk`;
    await Deno.mkdir(disk);
    await sh("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk);
    try {
      const path = await config({
        cacheConfig: { cacheDir: `${disk}/blobs` },
        gzipCacheConfig: { cacheDir: `${disk}/gzip` },
      });
      {
        // Too little room to store a single span.
        await using serve = await ServeProcess.start(path);
        await using client = await serve.connect("app");
        await checkFiles(client, FILES);
        assert.equal((await serve.end()).code, 0);
      }
      await Deno.remove(`${disk}/blobs`, { recursive: true });
      await assert.rejects(
        Deno.writeFile(`${disk}/filler`, new Uint8Array(2 ** 20)),
      );
      await refuses(
        dir,
        path,
        /Cannot use cache directory ".*\/disk\/blobs": No space left/,
      );
    } finally {
      await unmount(disk);
    }
  }),
});

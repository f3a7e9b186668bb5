/** Configuration files of `obd serve`. */

import assert from "node:assert/strict";
import { loadConfig, parseConfig, parseListen } from "../../cmd/config.ts";
import {
  IGNORED_OVERLAYBD_KEYS,
  KNOWN_KEYS,
  SECTIONS,
} from "../../cmd/config_schema.ts";
import { UsageError } from "../../lib/io/mod.ts";
import { withTempDir } from "./run_obd.ts";

const GIB = 1024 ** 3;

async function load(dir: string, ...texts: string[]) {
  const paths = await Promise.all(texts.map(async (text, i) => {
    const path = `${dir}/c${i}.json`;
    await Deno.writeTextFile(path, text);
    return path;
  }));
  return await loadConfig(paths);
}

function fails(text: string, message: RegExp): void {
  assert.throws(
    () => parseConfig(text, "x.json", []),
    (error: unknown) => {
      assert.ok(error instanceof UsageError, String(error));
      assert.match(error.message, /^Configuration "x\.json"/);
      assert.match(error.message, message);
      return true;
    },
  );
}

Deno.test("defaults of an empty configuration", () =>
  withTempDir(async (dir) => {
    const config = await load(dir, "{}");
    assert.deepEqual(config, {
      files: [`${dir}/c0.json`],
      nbd: {
        listen: "unix:/run/obd/nbd.sock",
        requestTimeoutMs: 60_000,
        maxConnections: 256,
      },
      api: { listen: "unix:/run/obd/api.sock" },
      images: [],
      metaFrom: ["digest", "tag", "referrer", "build"],
      requireSpans: false,
      prefetch: { traces: true },
      workers: navigator.hardwareConcurrency,
      blobCache: {
        directory: "/var/lib/obd/blobs",
        sizeBytes: 4 * GIB,
        refillSize: 262_144,
      },
      gzipCache: { directory: "/var/lib/obd/gzip", sizeBytes: 4 * GIB },
      registry: {},
      warnings: [],
    });
  }));

Deno.test("every key is taken", () =>
  withTempDir(async (dir) => {
    const config = await load(
      dir,
      `{
      // obd's own
      "nbd": { "listen": "127.0.0.1:10809", "requestTimeout": 5, "maxConnections": 3 },
      "api": { "listen": "127.0.0.1:9000", "metricsListen": "127.0.0.1:9864", "token": "T" },
      "images": [
        { "export": "app", "image": "r.example/app:1", "platform": "linux/arm64" },
        { "config": "/c.v1.json", "trace": false, "prefetchFiles": "/f", "prefetchRate": "1.5 MiB/s" },
        { "export": "t", "image": "r.example/t", "trace": "/t" },
      ],
      "prefetchConfig": { "enable": false, "rate": "160mbit", "concurrency": 4 },
      "metaFrom": ["tag"], "integrity": "require-spans", "workers": 3,
      /* overlaybd's */
      "cacheConfig": { "cacheDir": "/b", "cacheSizeGB": 1, "refillSize": 8192 },
      "gzipCacheConfig": { "enable": true, "cacheDir": "/g", "cacheSizeGB": 0.5 },
      "credentialConfig": { "mode": "file", "path": "/cred.json" },
      "certConfig": { "certFile": "/c.pem", "keyFile": "/k.pem" },
      "p2pConfig": { "enable": true, "address": "localhost:19145/dadip2p" },
      "logConfig": { "logLevel": 2 }, "userAgent": "me/1",
    }`,
    );
    assert.deepEqual(config, {
      files: [`${dir}/c0.json`],
      nbd: {
        listen: "127.0.0.1:10809",
        requestTimeoutMs: 5000,
        maxConnections: 3,
      },
      api: {
        listen: "127.0.0.1:9000",
        metricsListen: "127.0.0.1:9864",
        token: "T",
      },
      images: [
        { export: "app", image: "r.example/app:1", platform: "linux/arm64" },
        {
          export: "/c.v1.json",
          config: "/c.v1.json",
          trace: false,
          prefetchFiles: "/f",
          prefetchRate: 1.5 * 2 ** 20,
        },
        { export: "t", image: "r.example/t", trace: "/t" },
      ],
      metaFrom: ["tag"],
      requireSpans: true,
      prefetch: { traces: false, concurrency: 4, bytesPerSecond: 20_000_000 },
      workers: 3,
      blobCache: { directory: "/b", sizeBytes: GIB, refillSize: 8192 },
      gzipCache: { directory: "/g", sizeBytes: GIB / 2 },
      registry: {
        overlaybdCredentialFile: "/cred.json",
        clientPair: { certFile: "/c.pem", keyFile: "/k.pem" },
        peerAddress: "localhost:19145/dadip2p",
      },
      userAgent: "me/1",
      logLevel: "warn",
      warnings: [],
    });
  }));

Deno.test("overlaybd's older keys stand in for the newer ones", () =>
  withTempDir(async (dir) => {
    const config = await load(
      dir,
      `{ "registryCacheDir": "/r", "registryCacheSizeGB": 2, "logLevel": 0,
         "credentialFilePath": "/old.json", "gzipCacheConfig": { "enable": false },
         "exporterConfig": { "enable": true, "port": 9999, "uriPrefix": "/m" } }`,
    );
    assert.equal(config.blobCache.directory, "/r");
    assert.equal(config.blobCache.sizeBytes, 2 * GIB);
    assert.equal(config.logLevel, "debug");
    assert.deepEqual(config.registry, { overlaybdCredentialFile: "/old.json" });
    assert.equal(config.api.metricsPath, "/m");
    assert.equal(config.gzipCache, undefined);
    assert.equal(config.api.metricsListen, "127.0.0.1:9999");
    assert.deepEqual(config.warnings, []);
  }));

Deno.test("overlaybd's credential service", () =>
  withTempDir(async (dir) => {
    const credentials = async (config: Record<string, unknown>) =>
      (await load(dir, JSON.stringify({ credentialConfig: config }))).registry;
    assert.deepEqual(
      await credentials({
        mode: "https",
        path: "https://h/auth",
        timeout: 3,
        client_cert_path: "/c",
        client_key_path: "/k",
        server_ca_path: "/ca",
      }),
      {
        overlaybdCredentialService: {
          mode: "https",
          path: "https://h/auth",
          timeoutMs: 3000,
          clientCertFile: "/c",
          clientKeyFile: "/k",
          caFile: "/ca",
        },
      },
    );
    await assert.rejects(
      credentials({ mode: "uds" }),
      /"credentialConfig.path" is missing, which mode "uds" needs/,
    );
    await assert.rejects(
      credentials({ mode: "smoke" }),
      /credentialConfig.mode/,
    );
  }));

Deno.test("two caches in one directory are refused, however it is written", () =>
  withTempDir(async (dir) => {
    const caches = (blobs: Record<string, unknown>, enable: boolean) =>
      JSON.stringify({
        ...blobs,
        gzipCacheConfig: { enable, cacheDir: "/c/./one" },
      });
    for (
      const blobs of [
        { cacheConfig: { cacheDir: "/c/one/" } },
        { registryCacheDir: "/c/one" },
      ]
    ) {
      await assert.rejects(load(dir, caches(blobs, true)), (error) => {
        assert.ok(error instanceof UsageError, String(error));
        assert.match(
          error.message,
          /^The blob cache and "gzipCacheConfig\.cacheDir" are one directory, "\/c\/.\/one"/,
        );
        return true;
      });
      await load(dir, caches(blobs, false));
    }
  }));

Deno.test("a token may come from a file", () =>
  withTempDir(async (dir) => {
    await Deno.writeTextFile(`${dir}/token`, "secret\n");
    const config = await load(
      dir,
      JSON.stringify({ api: { tokenFile: `${dir}/token` } }),
    );
    assert.equal(config.api.token, "secret");
    await assert.rejects(
      load(dir, JSON.stringify({ api: { tokenFile: `${dir}/none` } })),
      /Cannot read key "api\.tokenFile" ".*none"/,
    );
  }));

Deno.test("a wrong type names file and key, for every key", () => {
  const scalars = [...KNOWN_KEYS].filter((key) =>
    !IGNORED_OVERLAYBD_KEYS.has(key) && !SECTIONS.includes(key)
  );
  assert.ok(scalars.length > 25, `${scalars.length} keys`);
  for (const key of scalars) {
    const isBoolean = /\.enable$/.test(key);
    const wrong = isBoolean ? '"yes"' : "true";
    const path = key.split(/\.|\[\]\./);
    const [first, second] = path;
    const text = key.startsWith("images[]")
      ? `{ "images": [{ "${second}": ${wrong} }] }`
      : second === undefined
      ? `{ "${first}": ${wrong} }`
      : `{ "${first}": { "${second}": ${wrong} } }`;
    const shown = key.replace("[]", ".0");
    fails(
      text,
      new RegExp(`key "${shown.replaceAll(".", "\\.")}": expected `),
    );
  }
  for (const key of SECTIONS) {
    fails(`{ "${key}": 5 }`, new RegExp(`key "${key}": expected Object`));
    fails(
      `{ "${key}": [] }`,
      new RegExp(`key "${key}": expected Object, found Array`),
    );
  }
  fails("[]", /key "\(top level\)": expected Object/);
  fails("7", /key "\(top level\)": expected Object/);
  fails('{ "images": [[]] }', /key "images\.0": expected Object/);
});

Deno.test("a wrong secret is not printed", () => {
  assert.throws(
    () => parseConfig('{ "api": { "token": 123454321 } }', "x.json", []),
    (error: Error) => !error.message.includes("123454321"),
  );
});

Deno.test("values out of bounds name their key", () => {
  const cases: [string, RegExp][] = [
    ['{ "workers": 0 }', /key "workers"/],
    ['{ "workers": 1.5 }', /key "workers"/],
    ['{ "nbd": { "requestTimeout": 0 } }', /key "nbd\.requestTimeout"/],
    ['{ "nbd": { "maxConnections": 0 } }', /key "nbd\.maxConnections"/],
    [
      '{ "cacheConfig": { "refillSize": 5000 } }',
      /key "cacheConfig\.refillSize": must be a multiple of 4096/,
    ],
    [
      '{ "cacheConfig": { "cacheSizeGB": -1 } }',
      /key "cacheConfig\.cacheSizeGB"/,
    ],
    ['{ "logConfig": { "logLevel": 4 } }', /key "logConfig\.logLevel"/],
    ['{ "metaFrom": ["guess"] }', /key "metaFrom\.0"/],
    ['{ "integrity": "none" }', /key "integrity"/],
    [
      '{ "prefetchConfig": { "rate": "20" } }',
      /key "prefetchConfig\.rate": must be a number with/,
    ],
    [
      '{ "prefetchConfig": { "rate": "1B/s" } }',
      /key "prefetchConfig\.rate"/,
    ],
    [
      '{ "prefetchConfig": { "concurrency": 1000 } }',
      /key "prefetchConfig\.concurrency"/,
    ],
    ['{ "userAgent": "a\\nb" }', /key "userAgent": must be printable ASCII/],
    ['{ "userAgent": "ä" }', /key "userAgent"/],
    ['{ "images": [{}] }', /needs either "image" or "config"/],
    [
      '{ "images": [{ "image": "a", "config": "b" }] }',
      /needs either "image" or "config"/,
    ],
    ['{ "images": [{ "image": "a", "export": "" }] }', /images\.0\.export/],
  ];
  for (const [text, message] of cases) fails(text, message);
});

Deno.test("what is no JSON names the line", () => {
  fails('{\n  "workers": 2,\n  "nbd": {,}\n}', /line 3: /);
  fails('{ "workers": 2', /line 1: /);
  fails("", /line 1: /);
});

Deno.test("unknown keys: one warning with all of them", () => {
  const warnings: string[] = [];
  parseConfig(
    `{ "nbd": { "lisen": "x" }, "imagse": [], "images": [{ "image": "a", "tag": "b" }, { "image": "c", "tag": "d" }],
       "ioEngine": 0, "download": { "enable": true } }`,
    "x.json",
    warnings,
  );
  assert.deepEqual(warnings, [
    'Configuration "x.json" has ignored keys (unknown: nbd.lisen, imagse, images[].tag; without meaning here: ioEngine, download)',
  ]);
});

/** As the package installs it (`/etc/overlaybd/overlaybd.json`). */
const OVERLAYBD_JSON = `{
    "logConfig": {
        "logLevel": 1,
        "logPath": "/var/log/overlaybd.log"
    },
    "cacheConfig": {
        "cacheType": "file",
        "cacheDir": "/opt/overlaybd/registry_cache",
        "cacheSizeGB": 4
    },
    "gzipCacheConfig": {
        "enable": true,
        "cacheDir": "/opt/overlaybd/gzip_cache",
        "cacheSizeGB": 4
    },
    "credentialConfig": {
        "mode": "file",
        "path": "/opt/overlaybd/cred.json"
    },
    "ioEngine": 0,
    "download": {
        "enable": true,
        "delay": 600,
        "delayExtra": 30,
        "maxMBps": 100
    },
    "p2pConfig": {
        "enable": false,
        "address": "localhost:19145/dadip2p"
    },
    "exporterConfig": {
        "enable": false,
        "uriPrefix": "/metrics",
        "port": 9863,
        "updateInterval": 60000000
    },
    "enableAudit": true,
    "auditPath": "/var/log/overlaybd-audit.log",
    "registryFsVersion": "v2",
    "prefetchConfig": { "concurrency": 16 },
    "certConfig": { "certFile": "", "keyFile": "" },
    "serviceConfig": { "enable": false, "address": "http://127.0.0.1:9862" }
}`;

Deno.test("an agent's address must be a URL, where an agent is asked", () =>
  withTempDir(async (dir) => {
    const peer = (p2pConfig: unknown) =>
      load(dir, JSON.stringify({ p2pConfig }));
    for (const address of ["localhost:port", "http://", "a b"]) {
      await assert.rejects(
        peer({ enable: true, address }),
        /"p2pConfig.address": ".+" is no URL/,
      );
      const { registry } = await peer({ enable: false, address });
      assert.deepEqual(registry, {});
    }
  }));

Deno.test("an overlaybd.json loads as it is", () =>
  withTempDir(async (dir) => {
    const config = await load(dir, OVERLAYBD_JSON);
    assert.equal(config.blobCache.directory, "/opt/overlaybd/registry_cache");
    assert.equal(config.gzipCache?.directory, "/opt/overlaybd/gzip_cache");
    assert.deepEqual(config.registry, {
      overlaybdCredentialFile: "/opt/overlaybd/cred.json",
    });
    assert.equal(config.logLevel, "info");
    assert.equal(config.api.metricsListen, undefined);
    assert.equal(config.warnings.length, 1);
    assert.doesNotMatch(config.warnings[0]!, /unknown/);
    assert.match(config.warnings[0]!, /without meaning here: .*download/);
  }));

Deno.test("several files: later ones win key by key, images add up", () =>
  withTempDir(async (dir) => {
    const config = await load(
      dir,
      `{ "nbd": { "listen": "127.0.0.1:1", "maxConnections": 7 }, "workers": 1,
         "images": [{ "export": "a", "image": "x" }] }`,
      `{ "nbd": { "listen": "127.0.0.1:2" }, "images": [{ "export": "b", "image": "y" }] }`,
    );
    assert.equal(config.nbd.listen, "127.0.0.1:2");
    assert.equal(config.nbd.maxConnections, 7);
    assert.equal(config.workers, 1);
    assert.deepEqual(config.images.map((i) => i.export), ["a", "b"]);
    // Two keys for one thing, too.
    await Deno.writeTextFile(`${dir}/token`, "new");
    const token = '{ "api": { "token": "old" } }';
    const file = JSON.stringify({ api: { tokenFile: `${dir}/token` } });
    assert.equal((await load(dir, token, file)).api.token, "new");
    assert.equal((await load(dir, file, token)).api.token, "old");
    await assert.rejects(
      load(
        dir,
        '{ "images": [{ "export": "a", "image": "x" }] }',
        '{ "images": [{ "export": "a", "image": "y" }] }',
      ),
      /Key "images\.1\.export": "a" is used twice/,
    );
  }));

Deno.test("a directory: its *.json and *.jsonc in name order", () =>
  withTempDir(async (dir) => {
    await Deno.mkdir(`${dir}/d.json`);
    await Deno.writeTextFile(`${dir}/20.jsonc`, '{ "workers": 2 } // later');
    await Deno.writeTextFile(`${dir}/10.json`, '{ "workers": 1 }');
    await Deno.writeTextFile(`${dir}/30.json.bak`, "not read");
    const config = await loadConfig([dir]);
    assert.equal(config.workers, 2);
    assert.deepEqual(config.files, [`${dir}/10.json`, `${dir}/20.jsonc`]);
    await assert.rejects(loadConfig([`${dir}/d.json`]), /No \*\.json or/);
    await assert.rejects(
      loadConfig([`${dir}/none`]),
      /Cannot read configuration ".*none"/,
    );
  }));

Deno.test("a huge configuration is refused before it is read", () =>
  withTempDir(async (dir) => {
    const path = `${dir}/big.json`;
    await Deno.writeTextFile(path, "{}" + " ".repeat(1024 * 1024));
    await assert.rejects(loadConfig([path]), /at most 1048576 are read/);
  }));

Deno.test("what is no file is refused as a configuration or a token file, and not waited for", () =>
  withTempDir(async (dir) => {
    const pipe = `${dir}/pipe`;
    await new Deno.Command("mkfifo", { args: [pipe] }).output();
    await assert.rejects(loadConfig([pipe]), /it is a pipe, not a file/);
    await assert.rejects(loadConfig(["/dev/zero"]), /it is a device, not/);
    const path = `${dir}/serve.json`;
    for (const tokenFile of [pipe, "/dev/zero", dir]) {
      await Deno.writeTextFile(path, JSON.stringify({ api: { tokenFile } }));
      await assert.rejects(loadConfig([path]), /Cannot read key "api.tokenF/);
    }
  }));

Deno.test("listen addresses", () => {
  assert.deepEqual(parseListen("unix:/a/b.sock", "k"), {
    transport: "unix",
    path: "/a/b.sock",
  });
  assert.deepEqual(parseListen("127.0.0.1:80", "k"), {
    transport: "tcp",
    hostname: "127.0.0.1",
    port: 80,
  });
  assert.deepEqual(parseListen("[::1]:10809", "k"), {
    transport: "tcp",
    hostname: "::1",
    port: 10809,
  });
  const wrong = [
    "",
    "unix:relative",
    `unix:/${"x".repeat(107)}`,
    "127.0.0.1",
    "host:",
    "host:65536",
    "::1:80",
    "tcp://a:1",
  ];
  for (const address of wrong) {
    assert.throws(
      () => parseListen(address, "nbd.listen"),
      (error: unknown) =>
        error instanceof UsageError && error.message.includes('"nbd.listen"'),
      address,
    );
  }
});

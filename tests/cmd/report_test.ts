/** `obd report`: what is in it, and what must never be. */

import assert from "node:assert/strict";
import {
  configure,
  TextWriter,
  Uint8ArrayReader,
  ZipReader,
} from "@zip.js/zip.js";
import { createApi, type ServeControl } from "../../cmd/api.ts";
import { configOf } from "../../cmd/report_collect.ts";
import { VERSION } from "../../cmd/version.ts";
import { ReadStats } from "../../lib/image/mod.ts";
import { requires } from "../testutil/requires.ts";
import { assertOneLine, endOf, obd, startObd, withTempDir } from "./run_obd.ts";

/** Stands for every secret: it must be in no output. */
const SECRET = "hunter2secret";

Deno.test("--config on a command line", () => {
  assert.deepEqual(
    configOf(
      ["deno", "main.ts", "serve", "--config", "a.json", "--config=/b.json"],
      "/work",
    ),
    ["/work/a.json", "/b.json"],
  );
  assert.deepEqual(configOf(["obd", "serve", "--config"]), []);
});

/** A serve of the test's own, with secrets where none should be. */
function control(): ServeControl {
  return {
    status: () => ({
      version: "9.9.9",
      pid: Deno.pid,
      started: "2026-01-01T00:00:00.000Z",
      uptimeSeconds: 5,
      ready: true,
      exports: [{
        name: "app",
        uri: "nbd+unix:///app?socket=/s",
        size: 2 ** 30,
        image: `https://u:${SECRET}@r.example/app`,
        integrity: "spans",
        layers: [],
        connections: 0,
        requestTimeoutSeconds: 60,
        counters: {
          reads: 1,
          readBytes: 2,
          readErrors: 3,
          readSeconds: 4,
          inFlight: 0,
        },
        reading: new ReadStats().counters(),
      }],
      caches: [],
      hosts: [],
      memory: { rssBytes: 2 ** 20, heapUsedBytes: 1 },
    }),
    recentLog: () => ["first line", `token=${SECRET} last line`],
    add: () => Promise.reject(new Error("not here")),
    remove: () => Promise.reject(new Error("not here")),
  };
}

/** Everything that a report may come from, below `dir`. */
async function withMachine(
  work: (dir: string, env: Record<string, string>) => Promise<void>,
): Promise<void> {
  await withTempDir(async (dir) => {
    const run = `${dir}/run`;
    await Deno.mkdir(`${run}/mounts/0123456789ab`, { recursive: true });
    await Deno.mkdir(`${run}/mounts/broken`);
    await Deno.writeTextFile(
      `${run}/mounts/0123456789ab/state.json`,
      JSON.stringify({
        id: "0123456789ab",
        image: "r.example/app",
        token: SECRET,
      }),
    );
    await Deno.writeTextFile(
      `${run}/mounts/0123456789ab/serve.log`,
      `hello\nAuthorization: Bearer ${SECRET}\n`,
    );
    await Deno.writeTextFile(
      `${dir}/obd.json`,
      `{ "api": { "token": "${SECRET}" }, // ${SECRET}
         "images": [], "password": "${SECRET}",
         "proxy": "http://u:${SECRET}@proxy.example" }`,
    );
    const api = createApi(control(), { trusted: true });
    const server = Deno.serve(
      { path: `${run}/api.sock`, onListen() {} },
      (r) => api.fetch(r),
    );
    try {
      await work(dir, {
        OBD_RUN_DIR: run,
        OBD_API_TOKEN: SECRET,
        HTTPS_PROXY: `http://u:${SECRET}@proxy.example:3128`,
        NO_PROXY: "localhost,127.0.0.1",
      });
    } finally {
      await server.shutdown();
    }
  });
}

Deno.test("as text", () =>
  withMachine(async (dir, env) => {
    const { code, stdout, stderr } = await obd(
      ["report", "--config", `${dir}/obd.json`],
      { env },
    );
    assert.equal(code, 0, stderr);
    assert.equal(stderr, "");
    assert.ok(!stdout.includes(SECRET), stdout);
    for (
      const pattern of [
        new RegExp(`^obd +${VERSION.replaceAll(".", "\\.")}$`, "m"),
        /^deno +2\./m,
        /^system +.*kernel \d/m,
        /^nbdfuse /m,
        /^fusermount3 /m,
        /^losetup /m,
        /^nbd +(loaded|not )/m,
        /obd 9\.9\.9, process \d+, ready/,
        /export app: .*3 errors/,
        /"token": "\[removed\]"/,
        /0123456789ab \{.*r\.example\/app/,
        /broken No such file/,
        /Last 2 of 2 log lines\nfirst line\n/,
        /HTTPS_PROXY=http:\/\/\[removed\]@proxy/,
      ]
    ) assert.match(stdout, pattern);
  }));

Deno.test("as JSON", () =>
  withMachine(async (dir, env) => {
    const ended = await obd(
      ["report", "--json", "--config", `${dir}/obd.json`],
      { env },
    );
    assert.equal(ended.code, 0, ended.stderr);
    assert.ok(!ended.stdout.includes(SECRET), ended.stdout);
    const report = JSON.parse(ended.stdout);
    assert.equal(report.versions.obd, VERSION);
    assert.equal(report.versions.deno, Deno.version.deno);
    assert.equal(report.serve.status.version, "9.9.9");
    assert.equal(report.config.files[0].content.api.token, "[removed]");
    assert.equal(report.config.effective.api.token, "[removed]");
    assert.equal(
      report.config.effective.workers,
      navigator.hardwareConcurrency,
    );
    assert.match(report.metrics, /obd_ready 1/);
    assert.equal(report.log.length, 2);
    assert.equal(report.environment.OBD_API_TOKEN, "[removed]");
    assert.equal(report.mounts.length, 2);
    assert.equal(typeof report.tools.losetup.found, "boolean");
  }));

async function unzip(path: string): Promise<Map<string, string>> {
  configure({ useWebWorkers: false });
  const reader = new ZipReader(
    new Uint8ArrayReader(await Deno.readFile(path)),
    { checkSignature: true },
  );
  const files = new Map<string, string>();
  for (const entry of await reader.getEntries()) {
    assert.ok(!entry.directory);
    files.set(entry.filename, await entry.getData(new TextWriter()));
  }
  await reader.close();
  return files;
}

Deno.test("as a zip, readable by its owner alone, whole or not at all", () =>
  withMachine(async (dir, env) => {
    const zip = `${dir}/out/report.zip`;
    await Deno.mkdir(`${dir}/out`);
    const args = ["report", "--zip", zip, "--config", `${dir}/obd.json`];
    const ended = await obd(args, { env });
    assert.equal(ended.code, 0, ended.stderr);
    assert.match(ended.stdout, /report\.zip: \d+ files, \d+ bytes/);
    assert.equal((await Deno.stat(zip)).mode! & 0o777, 0o600);
    assert.deepEqual([...Deno.readDirSync(`${dir}/out`)].length, 1);
    const files = await unzip(zip);
    assert.deepEqual([...files.keys()].sort(), [
      "obd-report/config.json",
      "obd-report/log.txt",
      "obd-report/metrics.txt",
      "obd-report/mounts/0123456789ab/serve.log",
      "obd-report/report.json",
      "obd-report/report.txt",
      "obd-report/status.json",
    ]);
    for (const [name, text] of files) {
      assert.ok(!text.includes(SECRET), `${name}\n${text}`);
    }
    assert.equal(
      JSON.parse(files.get("obd-report/report.json")!).versions.obd,
      VERSION,
    );
    assert.match(files.get("obd-report/log.txt")!, /^first line\ntoken=/);

    // One that is there is replaced whole.
    const again = await obd([...args, "--json"], { env });
    const { file, size, entries } = JSON.parse(again.stdout);
    assert.equal(file, zip);
    assert.equal((await Deno.stat(zip)).size, size);
    assert.equal(entries.length, files.size);

    const nowhere = await obd(
      ["report", "--zip", `${dir}/none/report.zip`],
      { env },
    );
    assert.equal(nowhere.code, 1);
    assertOneLine(nowhere, /^obd: Cannot write ".*none\/report\.zip": /);
  }));

Deno.test({
  name: "other tools read the zip",
  ignore: !requires("python3"),
  fn: () =>
    withMachine(async (dir, env) => {
      const zip = `${dir}/report.zip`;
      await obd(["report", "--zip", zip], { env });
      const { success, stdout } = await new Deno.Command("python3", {
        args: ["-m", "zipfile", "-t", zip],
      }).output();
      const text = new TextDecoder().decode(stdout);
      assert.ok(success && /Done testing/.test(text), text);
    }),
});

Deno.test("without a serve, and with a broken configuration", () =>
  withTempDir(async (dir) => {
    const env = { OBD_RUN_DIR: `${dir}/run` };
    await Deno.writeTextFile(`${dir}/bad.json`, `{ "token": "${SECRET}", `);
    await Deno.writeTextFile(`${dir}/wrong.json`, '{ "workers": "many" }');
    const json = async (...args: string[]) => {
      const ended = await obd(["report", "--json", ...args], { env });
      assert.equal(ended.code, 0, ended.stderr);
      assert.ok(!ended.stdout.includes(SECRET));
      return JSON.parse(ended.stdout);
    };
    const bad = await json("--config", `${dir}/bad.json`);
    assert.match(bad.serve.problem, /No obd serve answers at "unix:.*run/);
    assert.equal(bad.config.files[0].problem, "is not valid JSON");
    assert.match(bad.config.problem, /is not valid JSON: line 1/);
    const wrong = await json("--config", `${dir}/wrong.json`);
    assert.match(wrong.config.problem, /key "workers": expected number/);
    assert.equal(wrong.config.files[0].content.workers, "many");
    const none = await json("--config", `${dir}/none.json`);
    assert.match(none.config.problem, /Cannot read configuration/);
    assert.deepEqual(none.mounts, []);
  }));

Deno.test("of a running serve: its status, configuration and log", () =>
  withTempDir(async (dir) => {
    await Deno.writeTextFile(
      `${dir}/obd.json`,
      JSON.stringify({
        nbd: { listen: `unix:${dir}/nbd.sock` },
        api: { listen: `unix:${dir}/api.sock`, token: SECRET },
        cacheConfig: { cacheDir: `${dir}/blobs`, cacheSizeGB: 0.25 },
        gzipCacheConfig: { cacheDir: `${dir}/gzip`, cacheSizeGB: 0.25 },
        surprise: 1,
      }),
    );
    // A relative path: the report finds it from the process's directory.
    const child = startObd(["serve", "--config", "obd.json"], { cwd: dir });
    const ended = endOf(child);
    try {
      const end = performance.now() + 30_000;
      while (performance.now() < end) {
        try {
          if ((await Deno.lstat(`${dir}/api.sock`)).isSocket) break;
        } catch {
          // Not yet.
        }
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      const report = await obd(
        ["report", "--json", "--api", `unix:${dir}/api.sock`],
      );
      assert.equal(report.code, 0, report.stderr);
      assert.ok(!report.stdout.includes(SECRET));
      const got = JSON.parse(report.stdout);
      assert.equal(got.serve.status.pid, child.pid);
      assert.ok(got.serve.command.includes("obd.json"));
      assert.equal(got.config.files[0].file, `${dir}/obd.json`);
      assert.equal(got.config.files[0].content.api.token, "[removed]");
      assert.ok(
        got.log.some((line: string) => /ignored keys.*surprise/.test(line)),
        JSON.stringify(got.log),
      );
    } finally {
      child.kill("SIGTERM");
      assert.equal((await ended).code, 0);
    }
  }));

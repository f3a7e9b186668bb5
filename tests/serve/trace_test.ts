/** Traces: recorded of a running export, written, shown, and replayed at the next start. */

import assert from "node:assert/strict";
import {
  decodeTrace,
  DEVICE_LAYER,
  encodeTrace,
  traceDevice,
  writeAccelerationLayer,
} from "../../lib/layers/mod.ts";
import { createApi } from "../../cmd/api.ts";
import { createApiClient } from "../../cmd/api_client.ts";
import { TraceRecordings } from "../../cmd/trace_files.ts";
import { ObdError } from "../../lib/io/mod.ts";
import { FakeControl } from "../cmd/fake_control.ts";
import { putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import {
  build,
  content,
  type Files,
  imageOf,
  OBD,
  obd,
  readFile,
  recordTrace,
  ServeProcess,
  sh,
  withTempDir,
  writeConfig,
} from "./harness.ts";

const FILES: Files = {
  "etc/read": content(1, 3_000_000),
  "etc/unread": content(2, 12_000_000),
};

Deno.test("a trace is recorded, shown, and replayed into the caches", () =>
  withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const image = imageOf(FILES);
    await putImage(server, "app", "v1", image);
    const reference = `${server.host}/app:v1`;
    await build(reference);
    const trace = `${dir}/app.trace`;
    const first = await writeConfig(dir, [{ export: "app", image: reference }]);
    {
      await using serve = await ServeProcess.start(first);
      await recordTrace(serve, trace, ["etc/read"]);
      const again = await obd(
        "trace",
        "record",
        "nope",
        "--output",
        trace,
        "--api",
        serve.ready.api,
      );
      assert.equal(again.code, 1);
      assert.match(again.stderr, /No export "nope"/);
    }
    const records = decodeTrace(await Deno.readFile(trace));
    const total = records.reduce((sum, r) => sum + r.length, 0);
    assert.ok(total >= 3_000_000 && total < 6_000_000, `${total} bytes`);
    const fits = await obd("trace", "push", reference, trace);
    assert.equal(fits.code, 0, fits.stderr);
    assert.match(
      traceDevice(await Deno.readFile(trace), records) ?? "",
      /^[0-9a-f]{16}$/,
    );
    const shown = await obd("trace", "show", trace, "--json");
    assert.equal(JSON.parse(shown.stdout).bytes, total);

    // A start with empty caches: what was read is fetched without a reader.
    await Deno.remove(`${dir}/blobs`, { recursive: true });
    await Deno.remove(`${dir}/gzip`, { recursive: true });
    const second = await writeConfig(dir, [{
      export: "app",
      image: reference,
      trace,
    }]);
    await using serve = await ServeProcess.start(second);
    await serve.logged(/trace replayed image=/);
    using api = serve.api();
    // Nobody has connected yet; opening alone reads a few kilobytes.
    const { bytes } = (await api.status()).hosts[0]!;
    assert.ok(bytes >= 3_000_000 && bytes < 6_000_000, `${bytes} bytes`);
    {
      await using client = await serve.connect("app");
      const got = await readFile(client, "etc/read");
      assert.deepEqual(got, FILES["etc/read"]);
    }
    // What it says is nowhere on this device: its user should know.
    const offset = 2 ** 50;
    await Deno.writeFile(
      trace,
      encodeTrace([{ layer: DEVICE_LAYER, offset, length: 4096 }]),
    );
    await serve.end();
    await using other = await ServeProcess.start(second);
    await other.logged(/the trace names nothing .* image=/);
    // Recorded of another image, which the file tells.
    await other.end();
    await Deno.writeFile(trace, encodeTrace(records, "ab".repeat(32)));
    await using third = await ServeProcess.start(second);
    await third.logged(/leaving a trace alone .* another image.* image=/);
    const foreign = await obd("trace", "show", trace, reference);
    assert.match(foreign.stderr, /WARN .* recorded of another image, or of/);
    const pushed = await obd("trace", "push", reference, trace);
    assert.equal(pushed.code, 1);
    assert.match(pushed.stderr, /Bad trace: device is not that of/);
  }));

/** `obd trace record` that has begun. */
async function startRecording(args: string[], env: Record<string, string>) {
  const [program, ...first] = OBD;
  const child = new Deno.Command(program!, {
    args: [...first, "trace", "record", ...args],
    env: { NO_COLOR: "1", ...env },
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const errors = child.stderr.getReader();
  const decoder = new TextDecoder();
  let text = "";
  while (!text.includes("recording export")) {
    const { value, done } = await errors.read();
    assert.ok(!done, text);
    text += decoder.decode(value);
  }
  return {
    async end() {
      for (let part; !(part = await errors.read()).done;) {
        text += decoder.decode(part.value);
      }
      return { code: (await child.status).code, stderr: text };
    },
  };
}

Deno.test("TraceRecordings: a recording knows its device, whatever becomes of the registry", async () => {
  const answers = ["aa", undefined, "bb"];
  const traces = new TraceRecordings(
    () => true,
    () => {
      const answer = answers.shift();
      return answer === undefined
        ? Promise.reject(new ObdError("registry", "It is away"))
        : Promise.resolve(answer);
    },
  );
  traces.start("app");
  assert.equal(await traces.device("app"), "aa");
  assert.equal(await traces.device("app"), "aa");
  traces.stop("app");
  // The next export of this name may be another device.
  traces.start("app");
  await assert.rejects(traces.device("app"), /It is away/);
  assert.equal(await traces.device("app"), "bb");
});

Deno.test("a recording outlives its serve; a mount's directory names it", () =>
  withTempDir(async (dir) => {
    const traces = new TraceRecordings(
      (name) => name === "app",
      () => Promise.resolve("ab".repeat(32)),
    );
    const api = createApi(new FakeControl(), { trusted: true, traces });
    const asked = Promise.withResolvers<void>();
    const path = `${dir}/api.sock`;
    const server = Deno.serve({ path, onListen() {} }, async (request) => {
      const answer = await api.fetch(request);
      // Only the recorder asks for all of what was read.
      const isAll = request.url.endsWith("from=0");
      if (isAll && traces.read("app", 0).length > 0) asked.resolve();
      return answer;
    });
    // As `obd mount` leaves it behind.
    const state = `${dir}/run/mounts/0123456789ab`;
    await Deno.mkdir(state, { recursive: true });
    await Deno.mkdir(`${dir}/mnt`);
    await Deno.writeTextFile(
      `${state}/state.json`,
      JSON.stringify({
        version: 1,
        id: "0123456789ab",
        kind: "mount",
        image: "app:v1",
        dir: await Deno.realPath(`${dir}/mnt`),
        export: "app",
        api: `unix:${path}`,
        driver: "fuse",
        started: "2026-01-01T00:00:00.000Z",
        complete: true,
      }),
    );
    const trace = `${dir}/app.trace`;
    const recorder = await startRecording(
      [`${dir}/mnt`, "--output", trace],
      { OBD_RUN_DIR: `${dir}/run` },
    );
    using client = createApiClient(`unix:${path}`);
    await assert.rejects(client.startTrace("app"), {
      code: "conflict",
      message: /recorded already.*DELETE \/v1\/traces\/app/,
    });
    assert.deepEqual(await client.readTrace("app", 0), []);
    traces.note("app", 4096, 4096);
    traces.note("app", 65536, 100);
    assert.deepEqual(await client.readTrace("app", 1), [
      { offset: 65536, length: 4096 },
    ]);
    await asked.promise;
    await server.shutdown();
    const { code, stderr } = await recorder.end();
    assert.equal(code, 1, stderr);
    assert.match(stderr, /ended early, .*app\.trace has what was read/);
    const written = await Deno.readFile(trace);
    const records = decodeTrace(written);
    assert.equal(traceDevice(written, records), "ab".repeat(8));
    assert.deepEqual(records, [
      { layer: DEVICE_LAYER, offset: 4096, length: 4096 },
      { layer: DEVICE_LAYER, offset: 65536, length: 4096 },
    ]);
  }));

Deno.test("trace record tells what it cannot write before it records", () =>
  withTempDir(async (dir) => {
    for (
      const options of [
        ["--output", `${dir}/none/x`],
        ["--output", dir],
        ["--output", `${dir}/x`, "--files", `${dir}/none/x`],
      ]
    ) {
      const { code, stderr } = await obd(
        "trace",
        "record",
        "app",
        ...options,
        // Nobody is there: what is told is what comes first.
        "--api",
        `unix:${dir}/api.sock`,
      );
      assert.equal(code, 1);
      assert.match(stderr, /Cannot write "/);
    }
    assert.deepEqual([...Deno.readDirSync(dir)], []);
  }));

Deno.test("trace files: acceleration layers too, and bounded", () =>
  withTempDir(async (dir) => {
    const records = [{ layer: 1, offset: 4096, length: 8192 }];
    await Deno.writeFile(`${dir}/t`, encodeTrace(records));
    await Deno.writeFile(`${dir}/layer`, writeAccelerationLayer(records));
    for (const name of ["t", "layer"]) {
      const shown = await obd("trace", "show", `${dir}/${name}`, "--json");
      assert.deepEqual(JSON.parse(shown.stdout).ranges, records, shown.stderr);
    }
    const endless = await obd("trace", "show", "/dev/zero");
    assert.equal(endless.code, 1);
    assert.match(endless.stderr, /"\/dev\/zero": it is a device, not a file/);
    // Its size is known before it is read.
    await Deno.truncate(`${dir}/t`, 2 ** 40);
    const large = await obd("trace", "show", `${dir}/t`);
    assert.equal(large.code, 1);
    assert.match(large.stderr, /it has more than \d+ bytes/);
  }));

Deno.test("serve --check reads what is to be fetched ahead", () =>
  withTempDir(async (dir) => {
    const image = "127.0.0.1:1/app:v1";
    const pipe = `${dir}/pipe`;
    await sh("mkfifo", pipe);
    for (
      const [setting, message] of [
        [{ trace: `${dir}/none` }, /export "app": Cannot read trace/],
        [{ prefetchFiles: `${dir}/none` }, /export "app": Cannot read file l/],
        [{ trace: pipe }, /Cannot read trace ".*": it is a pipe, not a file/],
        [{ prefetchFiles: pipe }, /read file list ".*": it is a pipe/],
        [{ trace: false }, /^$/],
      ] as const
    ) {
      const config = await writeConfig(dir, [{
        export: "app",
        image,
        ...setting,
      }]);
      const { code, stderr } = await obd(
        "serve",
        "--check",
        "--config",
        config,
      );
      assert.match(stderr, message);
      assert.equal(code, stderr === "" ? 0 : 1);
    }
  }));

Deno.test("a bad trace keeps serve from starting, in one line", () =>
  withTempDir(async (dir) => {
    const path = `${dir}/bad.trace`;
    const config = await writeConfig(dir, [{
      export: "app",
      image: "127.0.0.1:1/app:v1",
      trace: path,
    }]);
    let ended = await obd("serve", "--config", config);
    assert.equal(ended.code, 1);
    assert.match(ended.stderr, /Cannot read trace ".*bad\.trace"/);
    await Deno.writeTextFile(path, "no trace at all, but long enough");
    ended = await obd("serve", "--config", config);
    assert.equal(ended.code, 1);
    assert.match(ended.stderr, /Cannot read trace.*Bad trace: magic/);
  }));

Deno.test("trace: wrong use, exit 2", async () => {
  for (
    const args of [
      ["record", "app"],
      ["frob", "app"],
      ["show", "file", "--seconds", "3"],
      ["record", "app", "--output", "x", "--seconds", "-3"],
      ["record", "app", "--output", "x", "--files", "./x"],
    ]
  ) {
    const { code, stderr } = await obd("trace", ...args);
    assert.equal(code, 2, `${args}: ${stderr}`);
  }
});

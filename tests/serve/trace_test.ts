/** Traces: recorded of a running export, written, shown, and replayed at the next start. */

import assert from "node:assert/strict";
import { decodeTrace } from "../../lib/layers/mod.ts";
import { putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import {
  build,
  content,
  type Files,
  imageOf,
  obd,
  readFile,
  recordTrace,
  ServeProcess,
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
    await serve.logged(/trace replayed/);
    using api = serve.api();
    // Nobody has connected yet; opening alone reads a few kilobytes.
    const { bytes } = (await api.status()).hosts[0]!;
    assert.ok(bytes >= 3_000_000 && bytes < 6_000_000, `${bytes} bytes`);
    {
      await using client = await serve.connect("app");
      const got = await readFile(client, "etc/read");
      assert.deepEqual(got, FILES["etc/read"]);
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
    ]
  ) {
    const { code, stderr } = await obd("trace", ...args);
    assert.equal(code, 2, `${args}: ${stderr}`);
  }
});

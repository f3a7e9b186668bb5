/** `obd serve --check`: what serve would refuse before it asks anybody. */

import assert from "node:assert/strict";
import { requires } from "../testutil/requires.ts";
import { obd, sh, withTempDir, writeConfig } from "./harness.ts";

Deno.test("--check names what no image and no platform can be", async () => {
  await withTempDir(async (dir) => {
    const image = "registry.example/app:1";
    const cases: [Record<string, unknown>, RegExp | undefined][] = [
      [{ images: [{ image, platform: "linux/arm64" }] }, undefined],
      [{ images: [{ image: `oci:${dir}/none:1` }] }, undefined],
      // Looked for when it is opened.
      [{ images: [{ config: `${dir}/none.json` }] }, undefined],
      [
        { images: [{ export: "x", image: "registry.example/App:1" }] },
        /^obd: Cannot open export "x": Bad reference "registry\.example\/App:1"/,
      ],
      [
        { images: [{ image, platform: "arm64" }] },
        /^obd: Cannot open export ".*app:1": Bad platform "arm64"/,
      ],
    ];
    for (const [config, problem] of cases) {
      const path = `${dir}/serve.json`;
      await Deno.writeTextFile(path, JSON.stringify(config));
      const ended = await obd("serve", "--config", path, "--check");
      const said = JSON.stringify([config, ended]);
      assert.equal(ended.code, problem === undefined ? 0 : 1, said);
      if (problem !== undefined) assert.match(ended.stderr, problem, said);
    }
  });
});

/** A certificate that nobody has to trust, and its key. */
async function makePair(dir: string): Promise<void> {
  await sh(
    "openssl",
    ..."req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=obd".split(" "),
    ...["-keyout", `${dir}/key.pem`, "-out", `${dir}/cert.pem`],
  );
}

Deno.test({
  name:
    "serve, checking or not, names certificates and credentials that cannot be used before it opens anything",
  ignore: !requires("openssl"),
  fn: async () => {
    await withTempDir(async (dir) => {
      await makePair(dir);
      await Deno.writeTextFile(`${dir}/text`, "no PEM");
      await Deno.writeTextFile(
        `${dir}/odd.pem`,
        "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n",
      );
      const at = (name: string) => `${dir}/${name}`;
      const pair = (certFile: string, keyFile: string) => ({
        certConfig: { certFile: at(certFile), keyFile: at(keyFile) },
      });
      const cases: [Record<string, unknown>, string[], number, RegExp][] = [
        [pair("none", "key.pem"), [], 1, /Cannot read ".*\/none"/],
        [pair("cert.pem", "none"), [], 1, /Cannot read ".*\/none"/],
        [pair("cert.pem", "text"), [], 1, /text" has no PRIVATE KEY in PEM/],
        [pair("text", "key.pem"), [], 1, /text" has no CERTIFICATE in PEM/],
        [
          pair("odd.pem", "key.pem"),
          [],
          1,
          /client certificate cannot be used/,
        ],
        [{ credentialFilePath: at("text") }, [], 1, /text": .* no valid JSON/],
        [{}, ["--ca-file", at("none")], 2, /Cannot read ".*\/none"/],
        [{}, ["--ca-file", at("text")], 2, /text" has no CERTIFICATE in PEM/],
        [{}, ["--authfile", at("none")], 2, /credentials file ".*\/none"/],
        [{}, ["--authfile", dir], 2, /Cannot read credentials file/],
        [{}, ["--authfile", at("text")], 1, /text": .* no valid JSON/],
      ];
      for (const [i, [more, options, code, problem]] of cases.entries()) {
        const config = await writeConfig(dir, [], more);
        // All ways of serve itself go through the same door.
        for (const check of i % 5 === 0 ? [["--check"], []] : [["--check"]]) {
          const args = ["--config", config, ...options, ...check];
          const ended = await obd("serve", ...args);
          const said = JSON.stringify([more, args, ended]);
          assert.equal(ended.code, code, said);
          assert.match(ended.stderr, problem, said);
          assert.equal(ended.stdout, "", said);
        }
      }
      await assert.rejects(Deno.stat(at("blobs")), Deno.errors.NotFound);
      const right = await writeConfig(dir, [], {
        ...pair("cert.pem", "key.pem"),
        // overlaybd's may come later, or never be needed.
        credentialFilePath: at("none"),
        credentialConfig: {
          mode: "https",
          path: "localhost:19876/auth",
          server_ca_path: at("text"),
        },
      });
      const args = ["--ca-file", at("cert.pem"), "--check", "--json"];
      const ended = await obd("serve", "--config", right, ...args);
      assert.equal(ended.code, 0, ended.stderr);
      const { warnings } = JSON.parse(ended.stdout);
      assert.equal(warnings.length, 1, ended.stdout);
      assert.match(warnings[0], /text" has no CERTIFICATE in PEM/);
      const file = { credentialFilePath: at("none") };
      const later = await writeConfig(dir, [], file);
      const { code, stderr } = await obd("serve", "--config", later, "--check");
      assert.equal(code, 0, stderr);
      assert.match(stderr, /Cannot read credentials file ".*\/none"/);
    });
  },
});

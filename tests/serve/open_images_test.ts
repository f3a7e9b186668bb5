/** The configured images of `obd serve` are opened side by side; nobody sees it but by the time. */

import assert from "node:assert/strict";
import { putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { until } from "../testutil/until.ts";
import {
  build,
  checkFiles,
  content,
  type Files,
  imageOf,
  OBD,
  obd,
  ServeProcess,
  withTempDir,
  writeConfig,
} from "./harness.ts";

function filesOf(index: number): Files {
  return { "etc/name": content(10 + index, 50_000) };
}

function names(count: number): string[] {
  return Array.from({ length: count }, (_, index) => `app${index}`);
}

/** Puts `count` images into a registry, and writes a configuration with all of them. */
async function withImages(
  count: number,
  work: (
    place: {
      server: RegistryServer;
      dir: string;
      images: { export: string; image: string }[];
      digests: string[];
    },
  ) => Promise<void>,
): Promise<void> {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const digests: string[] = [];
    for (const [index, name] of names(count).entries()) {
      const image = imageOf(filesOf(index));
      await putImage(server, name, "v1", image);
      digests.push(image.layers[0]!.digest);
    }
    const images = names(count).map((name) => ({
      export: name,
      image: `${server.host}/${name}:v1`,
    }));
    await work({ server, dir, images, digests });
  });
}

function asked(server: RegistryServer, path: RegExp): number {
  return server.requests.filter((r) => path.test(r.path)).length;
}

Deno.test("serve: an image that its registry is silent about does not hold up the others, and stays the first", async () => {
  await withImages(10, async ({ server, dir, images }) => {
    for (const { image } of images) await build(image);
    server.requests.length = 0;
    const others = until(
      () =>
        names(10).slice(1).every((n) => asked(server, RegExp(`${n}/blobs/`))),
      "that the others are opened",
    );
    server.faults.add({
      fault: { kind: "hold", until: others },
      path: /app0\/manifests/,
      times: 100,
    });
    const config = await writeConfig(dir, images);
    const [serving] = await Promise.all([ServeProcess.start(config), others]);
    await using serve = serving;
    assert.deepEqual(serve.ready.exports.map((e) => e.name), names(10));
    const added = serve.log.matchAll(/export added export="?(\w+)/g);
    assert.deepEqual([...added].map((m) => m[1]), names(10));
    using api = serve.api();
    const { exports } = await api.status();
    assert.deepEqual(exports.map((e) => e.name), names(10));
    for (const [index, name] of names(10).entries()) {
      await using client = await serve.connect(name);
      await checkFiles(client, filesOf(index));
    }
    assert.equal((await serve.end()).code, 0);
  });
});

Deno.test("serve: an image that cannot be opened ends the start while others still wait, the first of several named", async () => {
  await withImages(1, async ({ server, dir, images }) => {
    server.faults.add({
      fault: { kind: "silence" },
      path: /app0\/manifests/,
      times: 100,
    });
    const absent = { export: "absent", image: `${server.host}/app0-no:v1` };
    const more = names(12).map((name) => ({ ...images[0]!, export: name }));
    const cases: [object[], RegExp][] = [
      [[...more.slice(0, 3), absent, ...more.slice(3)], /"absent": .*app0-no/],
      [
        [
          more[0]!,
          { export: "first", image: "UPPER:v1" },
          { export: "second", config: `${dir}/none.json` },
        ],
        /Cannot open export "first": .*UPPER/,
      ],
    ];
    for (const [list, line] of cases) {
      const config = await writeConfig(
        dir,
        list as Record<string, unknown>[],
      );
      server.requests.length = 0;
      const { code, stdout, stderr } = await obd("serve", "--config", config);
      assert.equal(code, 1, stderr);
      assert.equal(stdout, "");
      assert.match(stderr, line);
      // None waited until a silent registry is asked once more.
      assert.ok(asked(server, /app0\/manifests\/v1$/) <= 8);
    }
  });
});

Deno.test("serve: images that are built to be opened take turns, two at a time", async () => {
  await withImages(4, async ({ server, dir, images, digests }) => {
    const layer = (index: number) =>
      asked(server, RegExp(`app${index}/blobs/${digests[index]}`));
    const held = (async () => {
      await until(() => layer(0) + layer(1) + layer(2) + layer(3) >= 2);
      for (const name of names(4)) {
        await until(() => asked(server, RegExp(`${name}/blobs/`)) > 0);
      }
      // Time to be wrong in.
      await new Promise((resolve) => setTimeout(resolve, 300));
      return layer(0) + layer(1) + layer(2) + layer(3);
    })();
    server.faults.add({
      fault: { kind: "hold", until: held },
      path: RegExp(digests.join("|")),
      times: 100,
    });
    const config = await writeConfig(dir, images, { metaFrom: ["build"] });
    await using serve = await ServeProcess.start(config);
    assert.equal(await held, 2);
    for (const [index, name] of names(4).entries()) {
      await using client = await serve.connect(name);
      await checkFiles(client, filesOf(index));
    }
  });
});

Deno.test("serve: SIGTERM while images are opened ends at once, also when some are open", async () => {
  await withImages(10, async ({ server, dir, images }) => {
    server.faults.add({
      fault: { kind: "silence" },
      path: /app[2-5]\/manifests/,
      times: 100,
    });
    const file = await writeConfig(dir, images, { metaFrom: ["build"] });
    const [program, ...args] = OBD;
    const child = new Deno.Command(program!, {
      args: [...args, "serve", "--config", file],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const output = child.output();
    await until(() => server.requests.some((r) => /app9\/blobs/.test(r.path)));
    child.kill("SIGTERM");
    const { code, stdout } = await output;
    assert.equal(code, 0);
    assert.equal(stdout.length, 0);
    // It did not wait until they are asked once more.
    assert.equal(asked(server, /app[2-5]\/manifests\/v1$/), 4);
  });
});

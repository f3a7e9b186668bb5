/** What is fetched ahead of any reader: traces beside the image, acceleration layers, file lists. */

import assert from "node:assert/strict";
import { loadReads } from "../../cmd/bench/reads.ts";
import { decodeTrace, DEVICE_LAYER, encodeTrace } from "../../lib/image/mod.ts";
import { startDockerRegistry } from "../testutil/docker_registry.ts";
import { putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requires } from "../testutil/requires.ts";
import {
  build,
  content,
  type Files,
  imageOf,
  obd,
  readFile,
  recordTrace,
  ServeProcess,
  sh,
  withTempDir,
  writeConfig,
} from "./harness.ts";

const FILES: Files = {
  "etc/conf/a": content(1, 1_000_000),
  "etc/conf/b+c": content(2, 1_000_000),
  "usr/lib/big": content(3, 3_000_000),
  "usr/unread": content(4, 8_000_000),
};

/** Bytes that a serve with empty caches fetched before anybody connected. */
async function fetchedAhead(
  dir: string,
  image: Record<string, unknown>,
  logged: RegExp,
  more: Record<string, unknown> = {},
): Promise<number> {
  for (const cache of ["blobs", "gzip"]) {
    await Deno.remove(`${dir}/${cache}`, { recursive: true }).catch(() => {});
  }
  const config = await writeConfig(dir, [{ export: "app", ...image }], more);
  await using serve = await ServeProcess.start(config);
  await serve.logged(logged);
  using api = serve.api();
  const { hosts } = await api.status();
  const bytes = hosts[0]!.bytes;
  await using client = await serve.connect("app");
  assert.deepEqual(await readFile(client, "etc/conf/a"), FILES["etc/conf/a"]);
  return bytes;
}

Deno.test({
  name:
    "a trace is recorded, pushed to a real registry, found there, and can be left alone",
  ignore: !requires("docker-registry", "skopeo"),
  fn: () =>
    withTempDir(async (dir) => {
      await using server = await RegistryServer.start();
      await putImage(server, "app", "v1", imageOf(FILES));
      await using registry = await startDockerRegistry(dir);
      const image = `${registry.host}/app:v1`;
      await sh(
        "skopeo",
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        `docker://${server.host}/app:v1`,
        `docker://${image}`,
      );
      await build(image);
      const trace = `${dir}/app.trace`;
      {
        const config = await writeConfig(dir, [{ export: "app", image }]);
        await using serve = await ServeProcess.start(config);
        await recordTrace(
          serve,
          trace,
          ["etc/conf/b+c", "usr/lib/big"],
          "--files",
          `${trace}.files`,
        );
      }
      assert.equal(
        await Deno.readTextFile(`${trace}.files`),
        "/etc/conf/b+c\n/usr/lib/big\n",
      );
      assert.deepEqual(await loadReads(`${trace}.files`), {
        kind: "files",
        paths: ["/etc/conf/b+c", "/usr/lib/big"],
      });
      const shown = JSON.parse(
        (await obd("trace", "show", trace, image, "--json")).stdout,
      );
      assert.deepEqual(
        shown.files.map((
          f: { path: string; size: number },
        ) => [f.path, f.size]),
        [["etc/conf/b+c", 1_000_000], ["usr/lib/big", 3_000_000]],
      );
      assert.ok(shown.files[1].bytes >= 3_000_000);
      assert.equal(shown.layers.length, 1);
      assert.ok(shown.layers[0].contentBytes >= 4_000_000);
      assert.ok(shown.layers[0].metadataBytes > 0);
      const pushed = await obd("trace", "push", image, trace, "--json");
      assert.equal(pushed.code, 0, pushed.stderr);
      assert.equal(JSON.parse(pushed.stdout).isNew, true);

      const found = await fetchedAhead(dir, { image }, /trace replayed/);
      assert.ok(found >= 4_000_000 && found < 8_000_000, `${found} bytes`);
      // A list says when fetching ahead has ended: its file is all that came.
      const list = `${dir}/list`;
      await Deno.writeTextFile(list, "etc/conf/a\n");
      for (
        const [setting, more] of [
          [{ trace: false }, {}],
          [{}, { prefetchConfig: { enable: false } }],
        ]
      ) {
        const alone = await fetchedAhead(
          dir,
          { image, prefetchFiles: list, ...setting },
          /trace replayed/,
          more,
        );
        assert.ok(alone >= 1_000_000 && alone < 3_000_000, `${alone} bytes`);
      }
      // A trace of another image is refused before it is pushed.
      const wrong = await obd("trace", "push", image, `${trace}.files`);
      assert.equal(wrong.code, 1);
      assert.match(wrong.stderr, /Bad trace: magic/);
    }),
});

Deno.test("the files of a list are fetched, also below directories, within a rate", () =>
  withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    await putImage(server, "app", "v1", imageOf(FILES));
    const image = `${server.host}/app:v1`;
    await build(image);
    const list = `${dir}/list`;
    await Deno.writeTextFile(
      list,
      "  /etc/conf/ \n\nno/such/file\n/usr/lib/big",
    );
    const bytes = await fetchedAhead(
      dir,
      { image, prefetchFiles: list, prefetchRate: "100MB/s" },
      /trace replayed/,
    );
    assert.ok(bytes >= 5_000_000 && bytes < 9_000_000, `${bytes} bytes`);
    for (
      const [setting, message] of [
        [{ prefetchFiles: `${dir}/nope` }, /Cannot read file list/],
        [{ prefetchRate: "fast" }, /images.0.prefetchRate/],
        [{ trace: true }, /images.0.trace/],
      ] as const
    ) {
      const config = await writeConfig(dir, [{
        export: "app",
        image,
        ...setting,
      }]);
      const ended = await obd("serve", "--config", config);
      assert.equal(ended.code, 1);
      assert.match(ended.stderr, message);
    }
  }));

Deno.test({
  name:
    "a native image with an acceleration layer, and overlaybd's configuration of one",
  ignore: !requires("skopeo", "tar"),
  fn: () =>
    withTempDir(async (dir) => {
      await using server = await RegistryServer.start();
      await putImage(server, "app", "v1", imageOf(FILES));
      const plain = `${server.host}/app:v1`;
      const built = await obd(
        "build",
        plain,
        "--format",
        "overlaybd",
        "--tag",
        "native",
        "--vsize",
        "1",
      );
      assert.equal(built.code, 0, built.stderr);
      const image = `${server.host}/app:native`;
      const trace = `${dir}/app.trace`;
      {
        const config = await writeConfig(dir, [{ export: "app", image }]);
        await using serve = await ServeProcess.start(config);
        await recordTrace(serve, trace, ["usr/lib/big"]);
      }
      const pushed = await obd(
        "trace",
        "push",
        image,
        trace,
        "--acceleration-layer",
        "fast",
      );
      assert.equal(pushed.code, 0, pushed.stderr);
      const fast = `${server.host}/app:fast`;
      const bytes = await fetchedAhead(dir, { image: fast }, /trace replayed/);
      assert.ok(bytes >= 3_000_000 && bytes < 7_000_000, `${bytes} bytes`);

      // The same as overlaybd's snapshotter has it on a node.
      const manifest = JSON.parse(
        await sh(
          "skopeo",
          "inspect",
          "--raw",
          "--tls-verify=false",
          `docker://${fast}`,
        ),
      );
      const [layer, accelerated] = manifest.layers;
      assert.equal(
        accelerated.annotations[
          "containerd.io/snapshot/overlaybd/acceleration-layer"
        ],
        "yes",
      );
      await Deno.mkdir(`${dir}/accel`);
      const blob = await fetch(
        `http://${server.host}/v2/app/blobs/${accelerated.digest}`,
      );
      await Deno.writeFile(`${dir}/accel/accel.tar`, await blob.bytes());
      await sh("tar", "-xf", `${dir}/accel/accel.tar`, "-C", `${dir}/accel`);
      const records = decodeTrace(await Deno.readFile(`${dir}/accel/trace`));
      assert.ok(records.length > 0 && records.every((r) => r.layer === 0));
      const lower = {
        digest: layer.digest,
        size: layer.size,
        dir: `${dir}/none`,
      };
      const config = async (keys: Record<string, unknown>) => {
        const path = `${dir}/config.v1.json`;
        await Deno.writeTextFile(
          path,
          JSON.stringify({
            repoBlobUrl: `http://${server.host}/v2/app/blobs`,
            ...keys,
          }),
        );
        return { config: path };
      };
      const withLayer = await config({
        accelerationLayer: true,
        lowers: [lower, { dir: `${dir}/accel` }],
      });
      const ahead = await fetchedAhead(dir, withLayer, /trace replayed/);
      assert.ok(ahead >= 3_000_000 && ahead < 7_000_000, `${ahead} bytes`);
      const list = `${dir}/list`;
      await Deno.writeTextFile(list, "/usr/lib/big\n");
      for (const path of [list, `${dir}/accel/trace`]) {
        const listed = await fetchedAhead(
          dir,
          await config({ recordTracePath: path, lowers: [lower] }),
          /trace replayed/,
        );
        assert.ok(listed >= 3_000_000 && listed < 7_000_000, `${listed} bytes`);
      }
      // Of another image, which a trace of obd tells.
      await Deno.writeFile(
        list,
        encodeTrace(
          [{ layer: DEVICE_LAYER, offset: 0, length: 4096 }],
          "ab".repeat(32),
        ),
      );
      await fetchedAhead(
        dir,
        await config({ recordTracePath: list, lowers: [lower] }),
        /cannot use a trace .* recorded of another image/,
      );
      await Deno.writeTextFile(list, "");
      await fetchedAhead(
        dir,
        await config({ recordTracePath: list, lowers: [lower] }),
        /it is empty; obd trace record/,
      );
    }),
});

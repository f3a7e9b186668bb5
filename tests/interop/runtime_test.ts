/**
 * A real image, from the registry to a running container: built, mounted by
 * its plain reference, equal to what umoci unpacks, and started by chroot and
 * by containerd, while its layers stay where they are.
 */

import { deepEqual, equal, match } from "node:assert/strict";
import {
  debianImage,
  readTree,
  requiresDebianImage,
  runTool,
} from "../testutil/debian_image.ts";
import {
  type DockerRegistry,
  startDockerRegistry,
} from "../testutil/docker_registry.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { until } from "../testutil/until.ts";

const ignore = ![
  requiresMount(),
  requiresDebianImage(),
  requires("docker-registry", "skopeo", "nbdfuse", "losetup", "mount"),
  requires("containerd", "ctr", "runc"),
].every((has) => has);

Deno.test({
  name: "a Debian image from docker-registry: build, mount, compare, run",
  ignore,
  fn: async (t) => {
    const debian = await debianImage();
    await using box = await ObdSandbox.make();
    await using registry = await startDockerRegistry(box.dir);
    const image = `${registry.host}/app:v1`;
    await runTool(
      "skopeo",
      "copy",
      "--quiet",
      "--dest-tls-verify=false",
      `oci:${debian.layout}:v1`,
      `docker://${image}`,
    );
    const dir = `${box.dir}/at`;
    await Deno.mkdir(dir);

    let meta = "";
    await t.step("build reads each layer once and pushes", async () => {
      meta = await buildAndCheckLog(box, registry, image);
    });
    await t.step("mount finds the pushed meta image", async () => {
      const mounted = await box.json("mount", image, dir);
      equal(mounted.meta, meta);
      equal(mounted.integrity, "spans");
    });
    await t.step("the tree equals umoci's", async () => {
      const tree = await readTree(dir);
      // One line that differs says more than a list of thousands.
      equal(tree.find((line, i) => line !== debian.tree[i]), undefined);
      equal(tree.length, debian.tree.length);
    });
    await withOverlay(box, dir, async (root) => {
      await t.step("chroot into an overlay runs Python", async () => {
        const script =
          "import json, ssl, sqlite3; print(json.dumps(sqlite3.connect(':memory:').execute('select 6*7').fetchall()))";
        const out = await runTool("chroot", root, "python3", "-c", script);
        equal(out, "[[42]]\n");
      });
      await t.step("ctr run --rootfs runs the application", async () => {
        const out = await withContainerd(
          box,
          (address) =>
            runTool(
              "ctr",
              "--address",
              address,
              "run",
              "--rm",
              "--rootfs",
              "--env",
              "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
              root,
              "app",
              "sh",
              "-c",
              ASK,
            ),
        );
        const answer = JSON.parse(out);
        equal(answer.ok, true);
        match(answer.ssl, /^OpenSSL /);
      });
    });
    await t.step("umount leaves nothing", async () => {
      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(
        (await box.leftovers()).filter((l) => !l.includes("docker-registry")),
        [],
      );
    });
  },
});

/** In the container: starts the application, asks it, prints its answer. */
const ASK = `python3 /srv/app/main.py & server=$!
for i in $(seq 100); do
  python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:8000/").read().decode())' 2>/dev/null && break
  sleep 0.2
done
kill $server`;

/** @returns Digest of the meta manifest. */
async function buildAndCheckLog(
  box: ObdSandbox,
  registry: DockerRegistry,
  image: string,
): Promise<string> {
  const before = (await registry.requests()).length;
  const built = await box.json("build", image);
  const log = (await registry.requests()).slice(before);
  // What is looked for and not there is 404; all else is well.
  deepEqual(
    log.filter((line) => !/" (200|201|202|204|206|307|404)$/.test(line)),
    [],
  );
  equal(built.layers.length, 3);
  for (const { digest } of built.layers) {
    const reads = log.filter((line) =>
      line.startsWith("GET ") && line.includes(`/blobs/${digest}`)
    );
    equal(reads.length, 1, `layer ${digest} is read once: ${reads.join("\n")}`);
  }
  return built.meta.digest;
}

/** An overlay on the mount: what a container writes stays in its upper directory. */
async function withOverlay(
  box: ObdSandbox,
  lower: string,
  work: (root: string) => Promise<void>,
): Promise<void> {
  const path = (name: string) => `${box.dir}/${name}`;
  for (const name of ["upper", "work", "root"]) await Deno.mkdir(path(name));
  const options = `lowerdir=${lower},upperdir=${path("upper")},workdir=${
    path("work")
  }`;
  await runTool(
    "mount",
    "-t",
    "overlay",
    "overlay",
    "-o",
    options,
    path("root"),
  );
  try {
    await work(path("root"));
  } finally {
    await runTool("umount", path("root"));
  }
}

/** A containerd of the test's own. */
async function withContainerd<T>(
  box: ObdSandbox,
  work: (address: string) => Promise<T>,
): Promise<T> {
  const config = `${box.dir}/containerd.toml`;
  const address = `${box.dir}/c.sock`;
  await Deno.writeTextFile(
    config,
    `version = 2
root = "${box.dir}/containerd"
state = "${box.dir}/cs"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "${address}"
`,
  );
  const child = new Deno.Command("containerd", {
    args: ["--config", config, "--log-level", "warn"],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  try {
    await until(
      () =>
        runTool("ctr", "--address", address, "version")
          .then(() => true, () => false),
      "containerd that answers",
    );
    return await work(address);
  } finally {
    child.kill("SIGTERM");
    await child.status;
  }
}

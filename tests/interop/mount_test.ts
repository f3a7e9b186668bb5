/**
 * `obd mount` and its kin on a real image in docker-registry: everything as
 * the kernel sees it, and nothing left behind.
 */

import { deepEqual, equal, match, ok } from "node:assert/strict";
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

const ignore = ![
  requiresMount(),
  requiresDebianImage(),
  requires("docker-registry", "skopeo", "nbdfuse", "losetup", "mount"),
].every((has) => has);

/** A sandbox with the image in a registry, and a directory to mount at. */
async function withImage(
  work: (
    box: ObdSandbox,
    registry: DockerRegistry,
    image: string,
    dir: string,
  ) => Promise<void>,
): Promise<void> {
  const { layout } = await debianImage();
  await using box = await ObdSandbox.make();
  await using registry = await startDockerRegistry(box.dir);
  await runTool(
    "skopeo",
    "copy",
    "--quiet",
    "--dest-tls-verify=false",
    `oci:${layout}:v1`,
    `docker://${registry.host}/app:v1`,
  );
  const dir = `${box.dir}/at`;
  await Deno.mkdir(dir);
  await work(box, registry, `${registry.host}/app:v1`, dir);
}

/** The registry itself belongs to the sandbox, too. */
async function leftovers(box: ObdSandbox): Promise<string[]> {
  return (await box.leftovers()).filter((l) => !l.includes("docker-registry"));
}

function sameTree(got: string[], want: string[]): void {
  // One line that differs says more than a list of thousands.
  equal(got.find((line, i) => line !== want[i]), undefined);
  equal(got.length, want.length);
}

Deno.test({
  name: "build, mount, read everything, umount",
  ignore,
  fn: () =>
    withImage(async (box, registry, image, dir) => {
      const { tree } = await debianImage();
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
        equal(reads.length, 1, `layer ${digest} is read once`);
      }

      const mounted = await box.json("mount", image, dir);
      equal(mounted.source, built.source.digest);
      equal(mounted.meta, built.meta.digest);
      equal(mounted.integrity, "spans");
      sameTree(await readTree(dir), tree);

      const again = await box.run(["mount", image, dir]);
      equal(again.code, 1);
      match(again.stderr, /^obd: Cannot mount at .* is mounted there/);
      const { mounts } = await box.json("mounts");
      equal(mounts.length, 1);
      equal(mounts[0].health, "ok");
      equal(mounts[0].dir, dir);

      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await leftovers(box), []);
      const twice = await box.run(["umount", dir]);
      equal(twice.code, 0);
      match(twice.stdout, /^obd has nothing mounted at /);
      deepEqual((await box.json("mounts")).mounts, []);
    }),
});

Deno.test({
  name: "umount names the holders and changes nothing",
  ignore,
  fn: () =>
    withImage(async (box, _registry, image, dir) => {
      await box.json("mount", image, dir);
      const busy = async (holder: RegExp) => {
        const { code, stderr } = await box.run(["umount", dir]);
        equal(code, 1);
        match(stderr, holder);
        equal((await box.json("mounts")).mounts[0].health, "ok");
        ok((await Deno.stat(`${dir}/usr/bin/python3`)).isFile);
      };
      const holder = new Deno.Command("sleep", {
        args: ["60"],
        cwd: `${dir}/usr`,
      }).spawn();
      try {
        await busy(
          new RegExp(`process ${holder.pid} \\(sleep: working directory\\)`),
        );
      } finally {
        holder.kill("SIGKILL");
        await holder.status;
      }
      {
        using _file = await Deno.open(`${dir}/etc/passwd`);
        await busy(new RegExp(`process ${Deno.pid} .*open ".*/etc/passwd"`));
      }
      for (const name of ["upper", "work", "over"]) {
        await Deno.mkdir(`${box.dir}/${name}`);
      }
      // An overlay in a namespace of its own, which our mount table does not show.
      const overlay =
        `mount -t overlay overlay -o lowerdir=${dir},upperdir=${`${box.dir}/upper,workdir=${box.dir}/work`} ${box.dir}/over`;
      await runTool("sh", "-c", overlay);
      await busy(new RegExp(`overlay "${box.dir}/over"`));
      await runTool("umount", `${box.dir}/over`);
      const hidden = new Deno.Command("unshare", {
        args: ["-m", "sh", "-c", `${overlay}; echo; exec sleep 60`],
        stdout: "piped",
      }).spawn();
      try {
        const reader = hidden.stdout.getReader();
        await reader.read();
        await reader.cancel();
        await busy(new RegExp(`process ${hidden.pid} \\(sleep\\)`));
      } finally {
        hidden.kill("SIGKILL");
        await hidden.status;
      }
      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await leftovers(box), []);
    }),
});

Deno.test({
  name: "a server that is killed gives EIO, and umount is clean",
  ignore,
  fn: () =>
    withImage(async (box, _registry, image, dir) => {
      const { servePid } = await box.json("mount", image, dir);
      ok((await Deno.stat(`${dir}/srv/app/data/numbers.txt`)).isFile);
      Deno.kill(servePid, "SIGKILL");
      const { code, stderr } = await new Deno.Command("cat", {
        args: [`${dir}/srv/app/data/numbers.txt`],
        stdout: "null",
        env: { LC_ALL: "C" },
      }).output();
      equal(code, 1);
      match(new TextDecoder().decode(stderr), /Input\/output error/);
      equal((await box.json("mounts")).mounts[0].health, "no-serve");
      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await leftovers(box), []);
      // The place can be used again.
      await box.json("mount", image, dir);
      ok((await Deno.readTextFile(`${dir}/srv/app/main.py`)).length > 0);
      await box.json("umount", dir);
      deepEqual(await leftovers(box), []);
    }),
});

Deno.test({
  name: "mount and attach use a serve that runs",
  ignore,
  fn: () =>
    withImage(async (box, _registry, image, dir) => {
      const { child } = await box.serve({
        api: { listen: `unix:${box.dir}/run/api.sock` },
        images: [{ export: "other", image }],
      });
      const mounted = await box.json("mount", image, dir);
      equal(mounted.servePid, null);
      equal(mounted.api, `unix:${box.dir}/run/api.sock`);
      const api = ["--api", mounted.api];
      const first = await box.json("attach", image, ...api);
      const second = await box.json("attach", image, ...api);
      const size = (await runTool("blockdev", "--getsize64", first.device))
        .trim();
      equal(Number(size), mounted.size);
      equal(
        (await runTool("blockdev", "--getro", first.device)).trim(),
        "1",
      );
      equal((await box.json("mounts")).mounts.length, 3);
      const ambiguous = await box.run(["detach", image]);
      equal(ambiguous.code, 1);
      match(ambiguous.stderr, /attached 2 times: name one of \/dev\//);
      equal((await box.run(["detach", mounted.id])).code, 2);

      equal((await box.json("detach", first.device)).detached, true);
      equal((await box.json("detach", first.device)).detached, false);
      equal((await box.json("detach", image)).id, second.id);
      await box.json("umount", dir);
      // The other export and the serve are none of umount's business.
      const kept = await box.json("attach", image);
      child.kill("SIGTERM");
      await child.status;
      equal((await box.json("detach", kept.id)).detached, true);
      deepEqual(await leftovers(box), []);
    }),
});

Deno.test({
  name: "what cannot be mounted is said in one line, and leaves nothing",
  ignore,
  fn: () =>
    withImage(async (box, registry, image, dir) => {
      const fails = async (
        args: string[],
        message: RegExp,
        env: Record<string, string> = {},
      ) => {
        const { code, stdout, stderr } = await box.run(args, env);
        equal(code, 1, stderr);
        equal(stdout, "");
        const lines = stderr.trim().split("\n").filter((line) =>
          line.startsWith("obd: ")
        );
        equal(lines.length, 1, stderr);
        match(lines[0]!, message);
        deepEqual(await leftovers(box), []);
      };
      await fails(
        ["mount", image, `${box.dir}/missing`],
        /Directory ".*\/missing" is not there/,
      );
      await Deno.writeTextFile(`${box.dir}/file`, "");
      await fails(["mount", image, `${box.dir}/file`], /is no directory/);
      await fails(["mount", `${registry.host}/app:v2`, dir], /v2/);
      await fails(["attach", "127.0.0.1:1/app:v1"], /127\.0\.0\.1:1/);
      await fails(
        ["attach", image, "--device", "/dev/nbd99"],
        /Device "\/dev\/nbd99" is not there/,
      );
      await fails(
        ["mount", image, dir, "--api", `unix:${box.dir}/no.sock`],
        /No obd serve answers at ".*no\.sock"/,
      );
      // serve ends before it is ready, and says why.
      await fails(
        ["mount", image, dir],
        /Cannot start obd serve in the background: it ended with 1: .*\/file/,
        { OBD_CACHE_DIR: `${box.dir}/file` },
      );
      await fails(
        ["mount", image, dir],
        /"nbdfuse" is not installed \(apt-get install libnbd-bin\)/,
        { PATH: "/nowhere" },
      );
    }),
});

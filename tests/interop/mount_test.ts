/**
 * `obd mount` and its kin on a small image: what they use, refuse and undo.
 * A real image is in runtime_test.ts.
 */

import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { createApiClient } from "../../cmd/api_client.ts";
import { runTool } from "../testutil/debian_image.ts";
import { withOwnMounts } from "../testutil/mount_namespace.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import {
  dir as directory,
  file,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { requires, requiresMount } from "../testutil/requires.ts";

const ignore = ![
  requiresMount(),
  requires("nbdfuse", "losetup", "mount", "blockdev", "unshare"),
].every((has) => has);

const NUMBERS = Array.from({ length: 100_000 }, (_, i) => `${i}\n`).join("");

/** A sandbox with an image in a layout, and a directory to mount at. */
async function withImage(
  work: (box: ObdSandbox, image: string, dir: string) => Promise<void>,
): Promise<void> {
  await using box = await ObdSandbox.make();
  const image = makeImage({
    layers: [
      {
        entries: [
          directory("usr"),
          directory("etc"),
          file("etc/passwd", "root\n"),
        ],
      },
      { entries: [file("usr/numbers", NUMBERS)] },
    ],
  });
  await writeLayout(`${box.dir}/image`, [{ tag: "v1", image }]);
  const dir = `${box.dir}/at`;
  await Deno.mkdir(dir);
  await work(box, `oci:${box.dir}/image:v1`, dir);
}

Deno.test({
  name: "mount, look, umount",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
      const mounted = await box.json("mount", "oci:image:v1", "at");
      equal(mounted.image, image);
      equal(mounted.dir, dir);
      equal(mounted.integrity, "spans");
      const { devices } = await box.json("reconnect", "at");
      equal(devices.length, 1);
      equal(devices[0].outcome, "connected");
      equal((await box.run(["reconnect", "elsewhere"])).code, 1);
      deepEqual(
        (await box.json("reconnect", "--api", "unix:/none")).devices,
        [],
      );
      equal(await Deno.readTextFile(`${dir}/usr/numbers`), NUMBERS);
      // Lazy loading needs reads in parallel, and no page cache below the loop.
      const sys = `/sys/block/${mounted.device.slice("/dev/".length)}`;
      const setting = async (name: string) =>
        (await Deno.readTextFile(`${sys}/${name}`)).trim();
      equal(await setting("loop/dio"), "1");
      equal(await setting("queue/read_ahead_kb"), "1024");
      equal(await setting("ro"), "1");

      const again = await box.run(["mount", image, dir]);
      equal(again.code, 1);
      match(again.stderr, /^obd: Cannot mount at .* is mounted there/);
      const { mounts } = await box.json("mounts");
      equal(mounts.length, 1);
      equal(mounts[0].health, "ok");
      equal(mounts[0].dir, dir);
      const table = await box.run(["mounts"]);
      match(table.stdout, new RegExp(`${mounted.id} +${dir} .* ok `));

      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await box.leftovers(), []);
      const twice = await box.run(["umount", dir]);
      equal(twice.code, 0);
      match(twice.stdout, /^obd has nothing mounted at /);
      // With another run directory, say: what is still there is not gone.
      await runTool("mount", "-t", "tmpfs", "strange", dir);
      const strange = await box.run(["umount", dir]);
      await runTool("umount", dir);
      equal(strange.code, 1);
      match(
        strange.stderr,
        /is mounted there \(tmpfs, strange\) is not in .*OBD_RUN_DIR/,
      );
      deepEqual((await box.json("mounts")).mounts, []);
    }),
});

Deno.test({
  name: "mount, umount below a run directory that is a symlink, as /var/run is",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
      await Deno.mkdir(`${box.dir}/real`);
      await Deno.symlink("real", `${box.dir}/run`);
      await box.json("mount", image, dir);
      equal((await box.json("mounts")).mounts[0].health, "ok");
      equal(await Deno.readTextFile(`${dir}/etc/passwd`), "root\n");
      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await box.leftovers(), []);
      const { device } = await box.json("attach", image);
      equal((await box.json("detach", device)).detached, true);
      deepEqual(await box.leftovers(), []);
    }),
});

Deno.test({
  name: "umount names the holders and changes nothing",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
      await box.json("mount", image, dir);
      const busy = async (holder: RegExp) => {
        const { code, stderr } = await box.run(["umount", dir]);
        equal(code, 1);
        match(stderr, holder);
        equal((await box.json("mounts")).mounts[0].health, "ok");
        ok((await Deno.stat(`${dir}/usr/numbers`)).isFile);
      };
      const holder = new Deno.Command("sleep", {
        args: ["60"],
        cwd: `${dir}/usr`,
      }).spawn();
      // With a copy of the mount, as services of systemd have: it is not why.
      const [unshare, ...sleep] = withOwnMounts(
        ["sh", "-c", "echo; exec sleep 60"],
        box.dir,
      );
      const service = new Deno.Command(unshare!, {
        args: sleep,
        stdout: "piped",
      }).spawn();
      try {
        const reader = service.stdout.getReader();
        await reader.read();
        await reader.cancel();
        await busy(
          new RegExp(
            `in use by process ${holder.pid} \\(sleep: working directory\\)\n$`,
          ),
        );
      } finally {
        for (const process of [service, holder]) {
          process.kill("SIGKILL");
          await process.status;
        }
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
      const [program, ...args] = withOwnMounts(
        ["sh", "-c", `${overlay}; echo; exec sleep 60`],
        box.dir,
      );
      const hidden = new Deno.Command(program!, { args, stdout: "piped" })
        .spawn();
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
      deepEqual(await box.leftovers(), []);
    }),
});

Deno.test({
  name: "a server that is killed gives EIO, and umount is clean",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
      const { servePid } = await box.json("mount", image, dir);
      ok((await Deno.stat(`${dir}/usr/numbers`)).isFile);
      Deno.kill(servePid, "SIGKILL");
      const { code, stderr } = await new Deno.Command("cat", {
        args: [`${dir}/usr/numbers`],
        stdout: "null",
        env: { LC_ALL: "C" },
      }).output();
      equal(code, 1);
      match(new TextDecoder().decode(stderr), /Input\/output error/);
      equal((await box.json("mounts")).mounts[0].health, "no-serve");
      // This is nbdfuse; the kernel's driver is in guest_mount_test.ts.
      const again = await box.run(["reconnect", "--json", dir]);
      equal(again.code, 1);
      const [lost] = JSON.parse(again.stdout).devices;
      equal(lost.outcome, "failed");
      match(lost.error, /nbdfuse does not connect again.*obd umount/);
      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await box.leftovers(), []);
      // The place can be used again.
      await box.json("mount", image, dir);
      equal(await Deno.readTextFile(`${dir}/usr/numbers`), NUMBERS);
      await box.json("umount", dir);
      deepEqual(await box.leftovers(), []);
    }),
});

Deno.test({
  name: "umount ends a server that is stopped",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
      const { servePid } = await box.json("mount", image, dir);
      Deno.kill(servePid, "SIGSTOP");
      equal((await box.json("umount", dir)).unmounted, true);
      deepEqual(await box.leftovers(), []);
    }),
});

Deno.test({
  name: "mount and attach use a serve that runs",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
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
      using client = createApiClient(mounted.api);
      const { exports } = await client.status();
      deepEqual(exports.map(({ name }) => name), ["other"]);
      const kept = await box.json("attach", image);
      child.kill("SIGTERM");
      await child.status;
      equal((await box.json("detach", kept.id)).detached, true);
      deepEqual(await box.leftovers(), []);
    }),
});

Deno.test({
  name: "what cannot be mounted is said in one line, and leaves nothing",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
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
        deepEqual(await box.leftovers(), []);
      };
      await fails(
        ["mount", image, `${box.dir}/missing`],
        /Directory ".*\/missing" is not there/,
      );
      await Deno.writeTextFile(`${box.dir}/file`, "");
      await fails(["mount", image, `${box.dir}/file`], /is no directory/);
      await fails(["mount", `oci:${box.dir}/image:v2`, dir], /No image "v2"/);
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
      await Deno.mkdir(`${box.dir}/bin`);
      for (const name of ["mount", "umount"]) {
        await Deno.symlink("/bin/true", `${box.dir}/bin/${name}`);
      }
      await fails(
        ["mount", image, dir],
        /"nbdfuse" is not installed \(apt-get install libnbd-bin\)/,
        { PATH: `${box.dir}/bin` },
      );
    }),
});

/** A registry that takes connections and never says a word. */
function silentRegistry(): Disposable & { host: string } {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const held: Deno.Conn[] = [];
  (async () => {
    for await (const connection of listener) held.push(connection);
  })().catch(() => {});
  return {
    host: `127.0.0.1:${listener.addr.port}`,
    [Symbol.dispose]() {
      listener.close();
      for (const connection of held) connection.close();
    },
  };
}

for (const signal of ["SIGINT", "SIGKILL"] as const) {
  Deno.test({
    name: `a mount that ${signal} ends in the middle leaves nothing for long`,
    ignore,
    fn: () =>
      withImage(async (box, image, dir) => {
        using registry = silentRegistry();
        const child = box.spawn(["mount", `${registry.host}/app:v1`, dir]);
        // Until its serve waits for the registry.
        for (let i = 0; i < 200; i++) {
          const { mounts } = await box.json("mounts");
          if (mounts[0]?.servePid && (await box.leftovers()).length > 2) break;
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
        await new Promise((resolve) => setTimeout(resolve, 500));
        const other = await box.run(["umount", dir]);
        equal(other.code, 1);
        match(other.stderr, /Another obd command works on/);
        child.kill(signal);
        const { code, stderr } = await child.output();
        if (signal === "SIGINT") {
          equal(code, 130);
          equal(new TextDecoder().decode(stderr), "obd: Stopped by SIGINT\n");
          deepEqual(await box.leftovers(), []);
          return;
        }
        equal((await box.json("mounts")).mounts[0].health, "no-device");
        await box.json("mount", image, dir);
        equal(await Deno.readTextFile(`${dir}/usr/numbers`), NUMBERS);
        await box.json("umount", dir);
        deepEqual(await box.leftovers(), []);
      }),
  });
}

Deno.test({
  name: "caches of mounts that a reboot ended are removed by the next mount",
  ignore,
  fn: () =>
    withImage(async (box, image, dir) => {
      const other = `${box.dir}/other`;
      await Deno.mkdir(other);
      await box.json("mount", image, other);
      const { id, servePid } = await box.json("mount", image, dir);
      const own = `${box.dir}/cache/mounts/${id}`;
      ok((await Deno.stat(`${own}/blobs/lock`)).isFile);
      // In use: it stays, whatever became of the state.
      const state = `${box.dir}/run/mounts/${id}`;
      await Deno.rename(state, `${box.dir}/kept`);
      await box.json("attach", image);
      ok((await Deno.stat(own)).isDirectory);
      await Deno.rename(`${box.dir}/kept`, state);
      // What a reboot does: no processes, no mounts, an empty /run.
      Deno.kill(servePid, "SIGKILL");
      await box.json("umount", dir);
      await Deno.mkdir(`${own}/blobs`, { recursive: true });
      await Deno.writeTextFile(`${own}/blobs/lock`, "");
      await box.json("attach", image);
      await rejects(Deno.stat(own), Deno.errors.NotFound);
    }),
});

Deno.test({
  name: "mounts at once, each with caches of its own",
  ignore,
  fn: () =>
    withImage(async (box, image) => {
      const dirs = ["a", "b", "c"].map((name) => `${box.dir}/${name}`);
      for (const dir of dirs) await Deno.mkdir(dir);
      await Promise.all(dirs.map((dir) => box.json("mount", image, dir)));
      for (const dir of dirs) {
        equal(await Deno.readTextFile(`${dir}/usr/numbers`), NUMBERS);
      }
      const again = await Promise.all(
        [1, 2].map(() => box.run(["mount", image, dirs[0]!])),
      );
      deepEqual(again.map(({ code }) => code), [1, 1]);
      await Promise.all(dirs.map((dir) => box.json("umount", dir)));
      deepEqual(await box.leftovers(), []);
      deepEqual(
        [...Deno.readDirSync(`${box.dir}/cache`)].map((e) => e.name).sort(),
        ["blobs", "gzip"],
      );
    }),
});

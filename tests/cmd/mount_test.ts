/** The parts of mount that need no root: tables, holders, states, processes, arguments. */

import {
  deepEqual,
  equal,
  match,
  ok,
  rejects,
  throws,
} from "node:assert/strict";
import { findTarget } from "../../cmd/detach.ts";
import { chooseDriver } from "../../cmd/mount_device.ts";
import { mountHolders } from "../../cmd/mount_holders.ts";
import {
  endProcess,
  findProgram,
  isRunning,
  logTail,
  mustRun,
  processRef,
  runProgram,
  startDetached,
  waitForEnd,
  waitUntil,
} from "../../cmd/mount_process.ts";
import {
  listStates,
  MountDirectory,
  mountId,
  runDirectory,
} from "../../cmd/mount_state.ts";
import { absoluteImage } from "../../cmd/mount_steps.ts";
import {
  deviceName,
  loopsOf,
  mountAt,
  parseMountInfo,
  probeFileSystem,
} from "../../cmd/mount_table.ts";
import { mountStateOf as state } from "./mount_state_of.ts";

const MOUNTINFO = `\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 7:0 / /at\\040here\\134 ro,relatime shared:2 master:3 - ext4 /dev/loop0 ro,norecovery
31 22 0:40 / /over rw - overlay overlay rw,lowerdir=/low:/at\\040here\\134/usr,upperdir=/u,workdir=/w
32 22 0:41 / /over2 rw - overlay overlay rw,lowerdir=/other/at
33 22 7:0 /usr /bound ro - ext4 /dev/loop0 ro
34 30 0:5 / /at\\040here\\134/proc rw - proc proc rw
35 22 0:6 / /top rw - tmpfs one rw
36 22 0:7 / /top rw - tmpfs two rw
a broken line
`;

/** Runs with `OBD_RUN_DIR` at a directory of its own. */
async function withRunDirectory(
  work: (dir: string) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const before = Deno.env.get("OBD_RUN_DIR");
  Deno.env.set("OBD_RUN_DIR", `${dir}/run/`);
  try {
    await work(dir);
  } finally {
    if (before === undefined) Deno.env.delete("OBD_RUN_DIR");
    else Deno.env.set("OBD_RUN_DIR", before);
    await Deno.remove(dir, { recursive: true });
  }
}

async function withTempDir(work: (dir: string) => Promise<void>) {
  const dir = await Deno.makeTempDir();
  try {
    await work(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("parseMountInfo() undoes escapes and skips optional fields", () => {
  const entries = parseMountInfo(MOUNTINFO);
  equal(entries.length, 8);
  deepEqual(entries[1], {
    device: "7:0",
    mountPoint: "/at here\\",
    fsType: "ext4",
    source: "/dev/loop0",
    options: "ro,norecovery",
  });
  equal(entries[0]!.source, "/dev/root");
  equal(mountAt(entries, "/top")!.source, "two");
  equal(mountAt(entries, "/to"), undefined);
  deepEqual(parseMountInfo(""), []);
});

Deno.test("mountHolders() finds copies, overlays and what is mounted inside", () => {
  const used = { dir: "/at here\\", device: "/dev/loop0", number: "7:0" };
  deepEqual(mountHolders(MOUNTINFO, used), [
    'overlay "/over"',
    'mount "/bound"',
    'mount "/at here\\/proc"',
  ]);
  // From another namespace the mount point itself is a copy too.
  deepEqual(mountHolders(MOUNTINFO, { number: "7:0" }), [
    'mount "/at here\\"',
    'mount "/bound"',
  ]);
  deepEqual(mountHolders(MOUNTINFO, { dir: "/nowhere", number: "7:9" }), []);
});

Deno.test("deviceName() and loopsOf()", async () => {
  equal(deviceName("/dev/loop12"), "loop12");
  deepEqual(await loopsOf("/no such file"), []);
});

Deno.test("probeFileSystem() names the device that cannot be read", async () => {
  // Nothing is mapped at its start, which is EIO.
  await rejects(
    probeFileSystem("/proc/self/mem"),
    /Cannot read "\/proc\/self\/mem": Input\/output error/,
  );
});

Deno.test("mountId() tells apart what its parts tell apart", () => {
  match(mountId("mount", "/mnt"), /^[0-9a-f]{12}$/);
  equal(mountId("mount", "/mnt"), mountId("mount", "/mnt"));
  equal(
    new Set([mountId("a", "bc"), mountId("ab", "c"), mountId("abc")]).size,
    3,
  );
});

Deno.test("absoluteImage() makes paths absolute and nothing else", async () => {
  const cwd = Deno.cwd();
  equal(absoluteImage("oci:dir:v1"), `oci:${cwd}/dir:v1`);
  equal(absoluteImage("oci:/dir:v1"), "oci:/dir:v1");
  equal(absoluteImage("oci-archive:a.tar"), `oci-archive:${cwd}/a.tar`);
  for (
    const name of ["alpine", "host:5000/a/b:v1", "docker://a/b", "no.json"]
  ) equal(absoluteImage(name), name);
  await withTempDir((dir) => {
    Deno.writeTextFileSync(`${dir}/config.v1.json`, "{}");
    equal(
      absoluteImage(`${dir}/config.v1.json`),
      `${dir}/config.v1.json`,
    );
    // Relative, without a change of the directory that all tests share.
    const up = "../".repeat(cwd.split("/").length - 1);
    const relative = `${up}${dir.slice(1)}/config.v1.json`;
    equal(absoluteImage(relative), `${cwd}/${relative}`);
    equal(absoluteImage(`${relative}x`), `${relative}x`);
    return Promise.resolve();
  });
});

Deno.test("findTarget() knows ids, devices and images", () => {
  const one = state({ id: "111111111111", device: "/dev/loop1" });
  const two = state({ id: "222222222222", device: "/dev/loop2" });
  const mount = state({
    id: "333333333333",
    kind: "mount",
    dir: "/mnt",
    device: "/dev/loop3",
  });
  equal(findTarget([one, two], "222222222222"), two);
  equal(findTarget([one, two], "/dev/loop1"), one);
  equal(findTarget([one, mount], "example/app"), one);
  equal(findTarget([one, two], "example/other"), undefined);
  equal(findTarget([mount], "example/app"), undefined);
  throws(
    () => findTarget([one, two], "example/app"),
    /attached 2 times: name one of \/dev\/loop1, \/dev\/loop2/,
  );
  throws(() => findTarget([mount], "/dev/loop3"), /use obd umount \/mnt/);
});

Deno.test("states are kept, listed in order, and removed", () =>
  withRunDirectory(async (dir) => {
    deepEqual(await listStates(), []);
    const late = state({ id: "aaa", started: "2026-01-02T00:00:00.000Z" });
    const early = state({
      id: "bbb",
      dir: "/mnt",
      serve: { pid: 77, startTicks: "12" },
    });
    for (const one of [late, early]) {
      using directory = await MountDirectory.open(one.id);
      equal(await directory.read(), undefined);
      await directory.write(one);
    }
    equal((await Deno.stat(`${dir}/run/mounts/aaa`)).mode! & 0o777, 0o700);
    deepEqual(await listStates(), [early, late]);
    {
      using directory = await MountDirectory.open("bbb");
      deepEqual(await directory.read(), early);
      await Deno.mkdir(`${directory.path}/fuse`);
      await Deno.writeTextFile(`${directory.path}/serve.log`, "x");
      await directory.clear();
      equal(await directory.read(), undefined);
    }
    deepEqual(await listStates(), [late]);
    await rejects(Deno.stat(`${dir}/run/mounts/bbb`), Deno.errors.NotFound);
  }));

Deno.test("directories of the environment are absolute", async () => {
  await withRunDirectory((dir) => {
    equal(runDirectory(), `${dir}/run`);
    return Promise.resolve();
  });
  const module = new URL("../../cmd/mount_state.ts", import.meta.url).href;
  // A process of its own: the commands of tests beside this one would fail.
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "eval",
      `import { cacheDirectory, listStates, runDirectory } from ${
        JSON.stringify(module)
      };
       for (const ask of [runDirectory, listStates, cacheDirectory]) {
         try {
           await ask();
         } catch (error) {
           console.log(String(error));
         }
       }`,
    ],
    env: { OBD_RUN_DIR: "run", OBD_CACHE_DIR: "./cache" },
    cwd: new URL("../../", import.meta.url),
    stdin: "null",
  }).output();
  const text = new TextDecoder();
  const refusal = 'UsageError: OBD_RUN_DIR "run" is no absolute path';
  deepEqual(text.decode(stdout).split("\n"), [
    refusal,
    refusal,
    'UsageError: OBD_CACHE_DIR "./cache" is no absolute path',
    "",
  ], text.decode(stderr));
});

Deno.test("a directory that was only looked at leaves no trace", () =>
  withRunDirectory(async (dir) => {
    {
      using directory = await MountDirectory.open("ccc");
      equal(await directory.read(), undefined);
    }
    deepEqual([...Deno.readDirSync(`${dir}/run/mounts`)], []);
  }));

Deno.test("one command at a time works on a mount", () =>
  withRunDirectory(async () => {
    using _held = await MountDirectory.open("ddd");
    await rejects(MountDirectory.open("ddd"), /Another obd command works on/);
    using _other = await MountDirectory.open("eee");
  }));

Deno.test("a state that is not ours is refused, not guessed at", () =>
  withRunDirectory(async (dir) => {
    const path = `${dir}/run/mounts/fff`;
    await Deno.mkdir(path, { recursive: true });
    const bad = [
      "",
      "{}",
      JSON.stringify({ ...state({}), version: 2 }),
      JSON.stringify({ ...state({}), serve: { pid: 0, startTicks: "1" } }),
      " ".repeat(70_000),
    ];
    for (const text of bad) {
      await Deno.writeTextFile(`${path}/state.json`, text);
      using directory = await MountDirectory.open("fff");
      await rejects(directory.read(), /Cannot read the state of a mount in/);
    }
  }));

Deno.test("a mount's directory that somebody else could have filled is not looked at", () =>
  withRunDirectory(async (dir) => {
    const mounts = `${dir}/run/mounts`;
    const path = `${mounts}/fff`;
    const refused = async (what: string) => {
      const error = /can be written to by others: set OBD_RUN_DIR/;
      await rejects(MountDirectory.open("fff"), error, what);
      await rejects(listStates(), error, what);
    };
    {
      using directory = await MountDirectory.open("fff");
      await directory.write(state({ id: "fff" }));
    }
    equal((await listStates()).length, 1);
    for (const place of [mounts, path]) {
      await Deno.chmod(place, 0o777);
      await refused(`${place}, mode 0777`);
      await Deno.chmod(place, 0o700);
      if (Deno.uid() === 0) {
        await Deno.chown(place, 65534, null);
        await refused(`${place}, of another user`);
        await Deno.chown(place, 0, null);
      }
    }
    await Deno.rename(mounts, `${dir}/planted`);
    await Deno.symlink(`${dir}/planted`, mounts);
    await refused("a link");
  }));

Deno.test("findProgram() names the package", () => {
  match(findProgram("sh"), /^\/.*\/sh$/);
  throws(
    () => findProgram("no-such-program"),
    /"no-such-program" is not installed \(apt-get install no-such-program\)/,
  );
});

Deno.test("chooseDriver() wants a device that is there", async () => {
  await rejects(chooseDriver("/dev/nbd99"), /"\/dev\/nbd99" is not there/);
  await rejects(chooseDriver("/dev/null"), /"\/dev\/null" is neither/);
});

Deno.test({
  name: "runProgram() has a deadline; mustRun() says what failed",
  // What does not end in time is not waited for.
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    equal((await runProgram("sh", ["-c", "echo out; exit 3"])).code, 3);
    await rejects(
      mustRun("try", "sh", ["-c", "echo one >&2; echo two >&2; exit 4"]),
      /Cannot try: sh ended with 4: one; two/,
    );
    const started = performance.now();
    await rejects(
      runProgram("sleep", ["30"], 50),
      /sleep 30 did not finish in 50 ms/,
    );
    ok(performance.now() - started < 5000);
  },
});

Deno.test({
  name:
    "startDetached(): a session of its own, logs in files, told apart by its start",
  // The process is not waited for: that is the point.
  sanitizeOps: false,
  fn: () =>
    withTempDir(async (dir) => {
      const [log, out] = [`${dir}/log`, `${dir}/out`];
      const started = await startDetached(
        ["sh", "-c", "echo ready; echo problem >&2; exec sleep 30"],
        log,
        out,
      );
      const { process } = started;
      try {
        ok(
          await waitUntil(
            async () => (await Deno.readTextFile(out).catch(() => "")) !== "",
            5000,
          ),
        );
        equal(await Deno.readTextFile(out), "ready\n");
        equal((await Deno.stat(log)).mode! & 0o777, 0o600);
        equal(await logTail(log), "problem");
        equal(await Deno.readLink(`/proc/${process.pid}/cwd`), "/");
        const stat = await Deno.readTextFile(`/proc/${process.pid}/stat`);
        const [, , , , session] = stat.replace(/\(.*\)/, "x").split(" ");
        equal(Number(stat.replace(/\(.*\)/, "x").split(" ")[5]), process.pid);
        equal(Number(session), process.pid);
        equal(await isRunning(process), true);
        equal(
          await isRunning({ ...process, startTicks: "1" }),
          false,
        );
        equal(started.exitCode(), undefined);
      } finally {
        ok(await endProcess(process, 5000));
      }
      equal(await isRunning(process), false);
      ok(await endProcess(process, 5000), "twice is well");
    }),
});

Deno.test({
  name:
    "startDetached(): a log that nobody cuts is bounded, and its writer lives",
  sanitizeOps: false,
  fn: () =>
    withTempDir(async (dir) => {
      const [log, out] = [`${dir}/log`, `${dir}/out`];
      const { process } = await startDetached(
        [
          "sh",
          "-c",
          "head -c 20000000 /dev/zero >&2; exec sleep 30",
        ],
        log,
        out,
        { boundsFiles: true },
      );
      try {
        ok(
          await waitUntil(
            async () =>
              (await Deno.readTextFile(`/proc/${process.pid}/comm`)) ===
                "sleep\n",
            60_000,
          ),
        );
        const { size } = await Deno.stat(log);
        ok(size > 1_000_000 && size < 9_000_000, `${size} bytes`);
      } finally {
        ok(await endProcess(process, 5000));
      }
    }),
});

Deno.test({
  name: "endProcess() also ends what ignores SIGTERM, and what is stopped",
  sanitizeOps: false,
  fn: () =>
    withTempDir(async (dir) => {
      const log = `${dir}/log`;
      const deaf = await startDetached(
        ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"],
        log,
        log,
      );
      try {
        ok(
          await waitUntil(
            async () =>
              (await Deno.readTextFile(log).catch(() => "")) === "up\n",
            5000,
          ),
        );
      } finally {
        ok(await endProcess(deaf.process, 200));
      }
      const stopped = await startDetached(["sleep", "30"], log, log);
      Deno.kill(stopped.process.pid, "SIGSTOP");
      const began = performance.now();
      ok(await endProcess(stopped.process, 4000));
      ok(performance.now() - began < 3500, "by SIGTERM, not SIGKILL");
      ok(await waitForEnd(stopped.process, 1));
    }),
});

Deno.test("processRef() of nobody", async () => {
  equal(await processRef(0x7fffffff), undefined);
});

Deno.test("keepStderrSmall() cuts the file and keeps the last lines", () =>
  withTempDir(async (dir) => {
    const module = (name: string) =>
      JSON.stringify(new URL(`../../cmd/${name}`, import.meta.url).href);
    await Deno.writeTextFile(
      `${dir}/noisy.ts`,
      `import { StderrLogger } from ${module("log.ts")};
import { keepStderrSmall } from ${module("log_file.ts")};
const log = new StderrLogger({ level: "info", format: "text" });
keepStderrSmall(log, 100_000);
for (let i = 0; i < 10_000; i++) log.info("line", { i });`,
    );
    const log = `${dir}/log`;
    await mustRun("log", "sh", [
      "-c",
      'exec "$1" run -A --no-config "$2" 2>>"$3"',
      "sh",
      Deno.execPath(),
      `${dir}/noisy.ts`,
      log,
    ]);
    const lines = (await Deno.readTextFile(log)).trim().split("\n");
    ok((await Deno.stat(log)).size < 110_000);
    const numbers = lines.map((line) => Number(/i=(\d+)$/.exec(line)![1]));
    equal(numbers.at(-1), 9999);
    deepEqual(numbers, numbers.map((_, i) => numbers[0]! + i));
  }));

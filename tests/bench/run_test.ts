/** `obd bench` whole: a tiny image, real containerd, a shaped link, nothing left behind. */

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { readRecord, undoDeadBench } from "../../cmd/bench/dead_bench.ts";
import { waitUntil } from "../../cmd/mount_process.ts";
import { delay } from "../../lib/io/mod.ts";
import { undoesCopy } from "../testutil/mount_namespace.ts";
import { dir, file, makeImage, writeLayout } from "../testutil/oci_image.ts";
import {
  requires,
  requiresMount,
  requiresUserNamespaces,
} from "../testutil/requires.ts";

const MAIN = fileURLToPath(new URL("../../main.ts", import.meta.url));
const REGISTRY = ["busybox", "docker-registry", "skopeo", "umoci"];
const CONTAINERS = [
  "containerd",
  "ctr",
  "ip",
  "nbdfuse",
  "nsenter",
  "runc",
  "tc",
  "unpigz",
];

/** What has not happened by then never does, on any machine. */
const DEADLINE_MS = 300_000;

const canRun = requiresMount() && requires(...REGISTRY, ...CONTAINERS);

/** What the bench of a process, or with a work directory, has left in the system; other benches may run beside it. */
async function leftovers(pid: number, work: string): Promise<string[]> {
  const { stdout } = await new Deno.Command("ip", { args: ["netns"] }).output();
  const mounts = await Deno.readTextFile("/proc/self/mounts");
  const left = [
    ...new TextDecoder().decode(stdout).split("\n").filter((line) =>
      line.split(" ")[0] === `obdb${pid % 65536}`
    ),
    ...mounts.split("\n").filter((line) => line.includes(work)),
  ];
  for (
    const path of [
      `/run/obd-bench-${pid}`,
      `/sys/class/net/ob${pid % 65536}h`,
      `/sys/fs/cgroup/cpuacct/obd-bench-${pid}`,
      `/sys/fs/cgroup/obd-bench-${pid}`,
    ]
  ) {
    if (await Deno.stat(path).then(() => true, () => false)) left.push(path);
  }
  for await (const { name } of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(name) || Number(name) === Deno.pid) continue;
    const text = await Deno.readTextFile(`/proc/${name}/cmdline`)
      .catch(() => "");
    const command = text.replaceAll("\0", " ");
    const isOurs = command.includes(work) ||
      command.includes(`obd-bench-${pid}`);
    if (!isOurs || await undoesCopy(Number(name), command)) continue;
    left.push(`process ${name}: ${command}`);
  }
  return left;
}

/** Processes among what is left that have mounts of their own: they would hold what others have mounted. */
async function withOwnMounts(left: string[]): Promise<string[]> {
  const mounts = (process: string) =>
    Deno.readLink(`/proc/${process}/ns/mnt`).catch(() => ours);
  const ours = await Deno.readLink("/proc/self/ns/mnt");
  const found: string[] = [];
  for (const what of left) {
    const [, id] = /^process (\d+): /.exec(what) ?? [];
    if (id !== undefined && await mounts(id) !== ours) found.push(what);
  }
  return found;
}

/** Loop devices whose file is gone with its mount: nobody can use them, and nobody detaches them. */
async function orphanedLoops(): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir("/sys/block")) {
    const file = await Deno.readTextFile(`/sys/block/${name}/loop/backing_file`)
      .catch(() => "");
    // nbdfuse's file, without the directory that it was mounted at.
    if (file.trim() === "/img") found.push(name);
  }
  return found;
}

/** @param loops Those that were orphaned before. */
async function assertClean(
  pid: number,
  work: string,
  loops: string[],
): Promise<void> {
  assert.deepEqual(await leftovers(pid, work), []);
  // Others may kill nbdfuse for a moment.
  const isClean = await waitUntil(
    async () => (await orphanedLoops()).every((l) => loops.includes(l)),
    DEADLINE_MS,
  );
  assert.ok(isClean, `loop devices: ${await orphanedLoops()}`);
}

/** A directory with a layout of a tiny image in it, and a cache behind a link. */
async function withImage(
  use: (work: string, image: string) => Promise<void>,
): Promise<void> {
  const work = await Deno.makeTempDir({ prefix: "obd-bench-test-" });
  try {
    const busybox = await Deno.readFile("/bin/busybox");
    const image = makeImage({
      layers: [{
        entries: [
          dir("bin"),
          dir("dev"),
          dir("proc"),
          file("bin/busybox", busybox, { mode: 0o755 }),
          file("hello", "from the image\n"),
        ],
      }],
    });
    await writeLayout(`${work}/layout`, [{ tag: "v1", image }]);
    await Deno.mkdir(`${work}/large disk`);
    await Deno.symlink(`${work}/large disk`, `${work}/cache`);
    await Deno.writeTextFile(`${work}/auth.json`, "{}");
    await use(work, `oci:${work}/layout:v1`);
    // Its builds are nobody else's.
    await assert.rejects(
      Deno.stat(`${work}/conversions.db`),
      Deno.errors.NotFound,
    );
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

/** With an environment as people have it; nothing of it is for the bench's own registry. */
function startBench(work: string, args: string[]): Deno.ChildProcess {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", MAIN, "bench", "--cache", `${work}/cache`, ...args],
    env: {
      HTTP_PROXY: "http://127.0.0.1:9",
      http_proxy: "http://127.0.0.1:9",
      no_proxy: "example.test",
      REGISTRY_AUTH_FILE: `${work}/auth.json`,
      OBD_DEDUP_DB: `sqlite:${work}/conversions.db`,
    },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    // As a shell starts it: with a process group, which Ctrl-C is for.
    detached: true,
  }).spawn();
}

async function runBench(work: string, args: string[]) {
  const loops = await orphanedLoops();
  const child = startBench(work, ["--json", ...args]);
  const { code, stdout, stderr } = await child.output();
  await assertClean(child.pid, work, loops);
  const text = new TextDecoder();
  assert.ok(stdout.length > 0, text.decode(stderr));
  return { code, result: JSON.parse(text.decode(stdout)) };
}

/** The machine's speed is known around each run, also of those that fail. */
function assertProbed(result: {
  machine: { probeMethod: string };
  runs: { probe: { seconds: number; cpuSeconds: number } }[];
}): void {
  assert.match(result.machine.probeMethod, /^CPU time .* inflate, .* at once$/);
  for (const { probe: { seconds, cpuSeconds } } of result.runs) {
    assert.ok(cpuSeconds > 0.01 && seconds > 0.01, `${cpuSeconds}, ${seconds}`);
    assert.ok(cpuSeconds < 10, `${cpuSeconds}`);
  }
}

Deno.test({
  name: "bench: all contenders run the same container; a failure is a result",
  ignore: !canRun,
  fn: () =>
    withImage(async (work, image) => {
      const options = ["--link", "500mbit", "--rtt", "2", "--runs", "1"];
      const good = await runBench(work, [
        ...options,
        "--contenders",
        "oci,obd,obd-native,obd-trace,obd-warm",
        "--output",
        `${work}/lines`,
        "--html",
        `${work}/report.html`,
        image,
        "--",
        "/bin/busybox",
        "cat",
        "/hello",
      ]);
      assert.deepEqual(
        good.result.runs.map((r: { failure?: string }) => r.failure),
        [undefined, undefined, undefined, undefined, undefined],
      );
      assert.equal(good.code, 0);
      assertProbed(good.result);
      const { build, native } = good.result.images[0];
      for (const { contender, measurement: m } of good.result.runs) {
        assert.ok(m.readySeconds > m.rootSeconds);
        assert.ok(m.traffic.firstRequestSeconds < m.rootSeconds);
        assert.ok(m.traffic.bytes > 1000);
        assert.ok(m.traffic.requests >= 3);
        assert.ok(m.cost.cpuSeconds > 0);
        assert.ok(m.cost.peakRssBytes > 10e6);
        const names = m.cost.processes.map((p: { name: string }) => p.name);
        assert.ok(names.includes("containerd"), names.join());
        const lazy = contender !== "oci";
        assert.equal(m.edge?.bytes > 100_000, lazy);
        assert.equal(m.openedSeconds < m.rootSeconds, lazy);
        assert.equal(names.includes("obd serve"), lazy);
        assert.equal(
          m.metaDigest,
          contender === "obd-native"
            ? native.digest
            : lazy
            ? build.digest
            : undefined,
        );
        if (!lazy) continue;
        const stages: Record<string, number> = m.stages;
        const sum = Object.values(stages).reduce((a, b) => a + b, 0);
        assert.ok(Math.abs(sum - m.readySeconds) < 0.005, `${sum}`);
        assert.ok(stages.open! > 0 && stages.mount! > 0 && stages.service! > 0);
        const { waits, demand, ahead } = m.reading;
        assert.ok(waits > 0, contender);
        // What a cache on disk has is read, not loaded.
        assert.equal(demand.loads + ahead.loads > 0, contender !== "obd-warm");
      }
      const [touched] = good.result.touched;
      assert.ok(touched.bytes > 100_000 && touched.storedBytes > 10_000);
      assert.ok(touched.storedBytes < touched.bytes);
      assert.ok(touched.layers[0].cells.some((share: number) => share > 0));
      const { limit } = touched;
      assert.ok(limit.warmSeconds > 0 && limit.transferSeconds > 0);
      for (const { limitMultiple } of good.result.summaries) {
        assert.ok(limitMultiple > 0);
      }
      const lines = (await Deno.readTextFile(`${work}/lines`)).trim()
        .split("\n").map((line) => JSON.parse(line).event);
      const runs = new Array(5).fill("run");
      const summaries = new Array(5).fill("summary");
      assert.deepEqual(
        lines,
        ["machine", "image", "touched", ...runs, ...summaries],
      );
      const html = await Deno.readTextFile(`${work}/report.html`);
      assert.match(html, /data-chart="map"/);

      const bad = await runBench(work, [
        ...options,
        "--contenders",
        "oci,obd,obd-warm",
        image,
        "--",
        "/bin/busybox",
        "false",
      ]);
      assert.equal(bad.code, 1);
      assert.equal(bad.result.runs.length, 3);
      // It would be a cold start under this name.
      assert.match(
        bad.result.runs[2].failure,
        /^No run filled its caches: The container ended with 1/,
      );
      assertProbed(bad.result);
      for (const { failures } of bad.result.summaries) {
        assert.match(failures[0], /The container ended with 1/);
      }
      assert.match(bad.result.touched[0].failure, /The container ended with 1/);
    }),
});

Deno.test({
  name: "bench: Ctrl-C leaves nothing mounted and nothing running",
  ignore: !canRun,
  fn: () =>
    withImage(async (work, image) => {
      for (
        const [said, waitMs] of [
          // While it records: serve, mount and the container run.
          [/recording/, 1500],
          // While a container runs on a mount.
          [/obd 1\/20/, 1000],
        ] as const
      ) {
        const child = startBench(work, [
          "--contenders",
          "obd",
          // Many: it must not have ended when it is stopped.
          "--runs",
          "20",
          image,
          "--",
          "/bin/busybox",
          "sleep",
          "1",
        ]);
        const loops = await orphanedLoops();
        const late = setTimeout(
          () => Deno.kill(-child.pid, "SIGKILL"),
          DEADLINE_MS,
        );
        const decoder = new TextDecoder();
        let text = "";
        const output = child.stdout.cancel();
        let told = false;
        for await (const piece of child.stderr) {
          text += decoder.decode(piece, { stream: true });
          if (told || !said.test(text)) continue;
          told = true;
          await delay(waitMs);
          Deno.kill(-child.pid, "SIGINT");
        }
        const { code } = await child.status;
        clearTimeout(late);
        await output;
        assert.equal(code, 130, text);
        assert.match(text, /^bench: stopped, cleaning up$/m);
        assert.match(text, /^obd: Stopped by SIGINT$/m);
        await assertClean(child.pid, work, loops);
      }
    }),
});

/** Kills a bench as the kernel does for memory, once it has what it will leave; its process id. */
async function killBench(
  work: string,
  args: string[],
  leaves: (pid: number) => string[],
): Promise<number> {
  const child = startBench(work, args);
  const { pid } = child;
  const decoder = new TextDecoder();
  const reader = child.stderr.getReader();
  let text = "";
  const reading = (async () => {
    for (let part; !(part = await reader.read()).done;) {
      text += decoder.decode(part.value, { stream: true });
    }
  })();
  const output = child.stdout.cancel();
  const lacking = async () => {
    const left = (await leftovers(pid, work)).join("\n");
    return leaves(pid).filter((what) => !left.includes(what));
  };
  const isThere = await waitUntil(
    async () => (await lacking()).length === 0,
    DEADLINE_MS,
  );
  const what = isThere ? [] : await lacking();
  try {
    Deno.kill(pid, "SIGKILL");
  } catch {
    // It has ended, which the signal tells.
  }
  const { signal } = await child.status;
  await output;
  // What it left may have its stderr, which then has no end.
  await reader.cancel();
  await reading;
  assert.deepEqual(what, [], `not there in time: ${text}`);
  assert.equal(signal, "SIGKILL", text);
  return pid;
}

/** Undoes what a killed bench left, where no bench did because the test failed. */
async function undoLeft(work: string): Promise<void> {
  const path = `${work}/cache/lock`;
  using lock = await Deno.open(path, { read: true }).catch(() => undefined);
  const record = lock && await readRecord(lock);
  if (record) await undoDeadBench(record, await Deno.realPath(`${work}/cache`));
}

Deno.test({
  name: "bench: what one left that was killed is undone by the next one",
  ignore: !canRun,
  fn: () =>
    withImage(async (work, image) => {
      const loops = await orphanedLoops();
      const options = ["--contenders", "oci", "--runs", "1", image, "--"];
      await using stack = new AsyncDisposableStack();
      stack.defer(() => undoLeft(work));
      const leaves = (pid: number) => [
        `obdb${pid % 65536}`,
        "overlay",
        "serve",
        "containerd",
        "nbdfuse",
        `/run/obd-bench-${pid}`,
      ];
      const dead = await killBench(
        work,
        [...options, "/bin/busybox", "sleep", "300"],
        leaves,
      );
      const left = await leftovers(dead, work);
      for (const what of leaves(dead)) {
        assert.ok(left.join("\n").includes(what), `${what} is not in: ${left}`);
      }
      assert.deepEqual(await withOwnMounts(left), []);
      // Somebody looks around in the cache meanwhile.
      const bystander = new Deno.Command("sleep", {
        args: ["300"],
        cwd: `${work}/cache/work`,
      }).spawn();
      try {
        const child = startBench(work, [...options, "/bin/busybox", "true"]);
        const { code, stderr } = await child.output();
        const text = new TextDecoder().decode(stderr);
        assert.equal(code, 0, text);
        const told = new RegExp(
          `^bench: undid what a killed bench left \\(process ${dead}\\): ` +
            String.raw`\d+ mounts, /dev/loop\d+, \d+ processes, ` +
            `obdb${dead % 65536}, .*/run/obd-bench-${dead}$`,
          "m",
        );
        assert.match(text, told);
        await assertClean(dead, work, loops);
        await assertClean(child.pid, work, loops);
        await Deno.stat(`/proc/${bystander.pid}/cwd`);
        // It ended well: there is nothing to undo.
        assert.equal(await Deno.readTextFile(`${work}/cache/lock`), "");
      } finally {
        bystander.kill();
        await bystander.status;
      }
    }),
});

Deno.test({
  name: "bench --reduced: reads are replayed, and what is left out is said",
  ignore: !requires(...REGISTRY) || !requiresUserNamespaces(),
  fn: () =>
    withImage(async (work, image) => {
      const common = ["--reduced", "--runs", "1", "--link", "500mbit"];
      const { code, result } = await runBench(work, [
        ...common,
        "--contenders",
        "oci,obd,obd-trace",
        image,
        "--",
        "/bin/busybox",
        "cat",
        "/hello",
      ]);
      assert.deepEqual(
        result.summaries.map((s: { failures: string[] }) => s.failures),
        [[], [], []],
      );
      assert.equal(code, 0);
      assert.equal(result.machine.mode, "reduced");
      assertProbed(result);
      assert.match(result.machine.leavesOut.join(), /no containerd/);
      // busybox, the file and what leads there.
      const busybox = (await Deno.stat("/bin/busybox")).size;
      const [touched] = result.touched;
      assert.ok(touched.bytes > busybox, `${touched.bytes}`);
      assert.ok(touched.bytes < busybox + 1e6, `${touched.bytes}`);
      const readList = async (list: string) => {
        await Deno.writeTextFile(`${work}/list`, list);
        return await runBench(work, [
          ...common,
          "--contenders",
          "obd",
          "--reads",
          `${work}/list`,
          image,
          "--",
          "x",
        ]);
      };
      const listed = await readList("/hello\n/no/such\n");
      assert.equal(listed.code, 0);
      assert.ok(listed.result.touched[0].bytes < touched.bytes - busybox / 2);
      const none = await readList("/no/such\n");
      assert.equal(none.code, 1);
      assert.match(none.result.runs[0].failure, /none of the files/);
    }),
});

Deno.test({
  name: "bench --reduced: what fails for every contender is told once",
  ignore: !requires(...REGISTRY) || !requiresUserNamespaces(),
  fn: () =>
    withImage(async (work, image) => {
      const loops = await orphanedLoops();
      const run = async (args: string[]) => {
        const child = startBench(work, [
          "--reduced",
          "--contenders",
          "oci,obd,obd-trace",
          ...args,
        ]);
        const { code, stdout, stderr } = await child.output();
        await assertClean(child.pid, work, loops);
        assert.equal(code, 1);
        const text = new TextDecoder();
        return { out: text.decode(stdout), err: text.decode(stderr) };
      };
      const times = (text: string, what: string) => text.split(what).length - 1;
      const ended = await run([
        "--ready-http",
        `${freePort()}/x`,
        image,
        "--",
        "/bin/busybox",
        "cat",
        "/hello",
      ]);
      const why =
        "The command ended with 0 before it was ready: from the image";
      assert.equal(times(ended.err, why), 1, ended.err);
      assert.equal(times(ended.out, why), 1, ended.out);
      assert.doesNotMatch(ended.err + ended.out, /container ended/);
      assert.match(
        ended.out,
        /^ {2}oci, obd, obd-trace failed in 1 of 1 runs: Nothing can be replayed/m,
      );
      assert.equal(times(ended.err, "Nothing can be replayed"), 0, ended.err);
      const missing = await run([`oci:${work}/none:v1`, "--", "x"]);
      assert.equal(times(missing.err, "Cannot copy"), 1, missing.err);
      assert.equal(times(missing.out, "Cannot copy"), 1, missing.out);
    }),
});

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

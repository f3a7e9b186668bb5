/** The one-file executable: made once, then started in every way that it may be. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { Ext4Reader } from "../../lib/ext4/mod.ts";
import { SPEED_ROLE, type SpeedReply } from "../../cmd/bench/speed_worker.ts";
import {
  equalBytes,
  fromUtf8,
  readBytes,
  startWorker,
  withDeadline,
} from "../../lib/io/mod.ts";
import { NbdClient } from "../../lib/nbd/mod.ts";
import { assemble, bundleProgram } from "../../packaging/bundle.ts";
import {
  dir,
  file,
  makeImage,
  whiteout,
  writeLayout,
} from "../testutil/oci_image.ts";
import { writeExecutable } from "../testutil/executable.ts";
import { withOwnMounts } from "../testutil/mount_namespace.ts";
import { requires, requiresMount, requiresRoot } from "../testutil/requires.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const SUPPORTED = Deno.build.os === "linux";
const CAN_MOUNT = requiresMount() &&
  requires("nbdfuse", "losetup", "mount", "unshare");
const CAN_BENCH = requires("docker-registry", "skopeo", "umoci");
const IS_ROOT = requiresRoot("chown");
const NUMBERS = Uint8Array.from({ length: 3_000_000 }, (_, i) => i * i >> 7);

interface Result {
  code: number;
  stdout: string;
  stderr: string;
}

async function run(
  program: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<Result> {
  const output = await new Deno.Command(program, {
    args,
    cwd: ROOT,
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
    signal: AbortSignal.timeout(120_000),
  }).output();
  return {
    code: output.code,
    stdout: fromUtf8(output.stdout),
    stderr: fromUtf8(output.stderr),
  };
}

function names(directory: string): string[] {
  return [...Deno.readDirSync(directory)].map((e) => e.name);
}

/** Only one line on stderr, exit 1, and nothing left behind. */
function assertRefused(result: Result, runtimeDir: string, says: RegExp): void {
  assert.equal(result.code, 1, result.stderr);
  assert.match(result.stderr, says);
  assert.equal(result.stderr.trimEnd().split("\n").length, 1, result.stderr);
  assert.equal(result.stdout, "");
  assert.deepEqual(names(runtimeDir), []);
}

async function makeLayoutImage(path: string): Promise<void> {
  const image = makeImage({
    layers: [
      {
        entries: [dir("etc"), file("etc/gone", "x"), file("numbers", NUMBERS)],
      },
      { entries: [whiteout("etc/gone"), file("etc/motd", "hello\n")] },
    ],
  });
  await writeLayout(path, [{ tag: "v1", image }]);
}

/** Modules below a folder that serve a role in a worker. */
function workerModules(at: string): string[] {
  return [...Deno.readDirSync(ROOT + at)].flatMap((entry) => {
    const path = `${at}/${entry.name}`;
    if (entry.isDirectory) return workerModules(path);
    const isRole = path.endsWith(".ts") &&
      /^(if|\} else if) \(workerRole\(\) ===/m.test(
        Deno.readTextFileSync(ROOT + path),
      );
    return isRole ? [path] : [];
  });
}

Deno.test({
  name: "every worker role is loaded by the bundle's worker entry",
  async fn() {
    for (
      const [folder, entry, least] of [
        ["lib", "lib/image/workers.ts", 3],
        ["cmd", "cmd/workers.ts", 1],
      ] as const
    ) {
      const roles = workerModules(folder);
      assert.ok(roles.length >= least, `found only ${roles}`);
      const { stdout, stderr, code } = await run(Deno.execPath(), [
        "info",
        "--json",
        entry,
      ]);
      assert.equal(code, 0, stderr);
      const loaded = new Set(
        (JSON.parse(stdout).modules as { local?: string }[])
          .map((m) => m.local),
      );
      for (const path of roles) assert.ok(loaded.has(ROOT + path), path);
    }
  },
});

Deno.test("main.ts serves a command's role, as where all modules are in one", async () => {
  const worker = startWorker(`file://${ROOT}main.ts`, SPEED_ROLE);
  try {
    const reply = await withDeadline("the probe", 120_000, () => {
      const { promise, resolve, reject } = Promise.withResolvers<SpeedReply>();
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.postMessage({});
      return promise;
    });
    assert.deepEqual(reply, {});
  } finally {
    worker.terminate();
  }
});

/** The same program, made with packages that are kept in another place. */
async function bundleElsewhere(): Promise<Uint8Array> {
  const temp = await Deno.makeTempDir({ prefix: "obd-bundle-" });
  try {
    const info = await run(Deno.execPath(), ["info", "--json"]);
    const { npmCache } = JSON.parse(info.stdout);
    await Deno.mkdir(`${temp}/cache`);
    const copied = await run("cp", ["-a", npmCache, `${temp}/cache/npm`]);
    assert.equal(copied.code, 0, copied.stderr);
    const module = new URL("../../packaging/bundle.ts", import.meta.url);
    const code = `import { bundleProgram } from ${JSON.stringify(module.href)};
      await Deno.writeFile(${
      JSON.stringify(`${temp}/out`)
    }, await bundleProgram());`;
    const made = await run(Deno.execPath(), ["eval", code], {
      DENO_DIR: `${temp}/cache`,
    });
    assert.equal(made.code, 0, made.stderr);
    return await Deno.readFile(`${temp}/out`);
  } finally {
    await Deno.remove(temp, { recursive: true });
  }
}

Deno.test({
  name: "assemble() gives the same bytes for the same input",
  ignore: !SUPPORTED,
  async fn() {
    const runtime = new TextEncoder().encode("runtime".repeat(1000));
    const [one, two] = [await bundleProgram(), await bundleElsewhere()];
    assert.ok(equalBytes(one, two), "the bundle depends on the machine");
    assert.equal(fromUtf8(one).match(/.*\bnpm\/[^/\s]+\.[^/\s]+\/.*/), null);
    const first = await assemble(one, runtime);
    assert.ok(equalBytes(first, await assemble(two, runtime)));
    assert.ok(!equalBytes(first, await assemble(one, runtime.subarray(1))));
  },
});

Deno.test({
  name: "the one-file executable",
  ignore: !SUPPORTED,
  async fn(t) {
    const temp = await Deno.makeTempDir({ prefix: "obd-bundle-" });
    const runtimeDir = `${temp}/runtime`;
    const env = { OBD_RUNTIME_DIR: runtimeDir };
    let program = "";
    try {
      await t.step("is written with its checksum", async () => {
        const made = await run(Deno.execPath(), [
          ...["run", "-A", "packaging/bundle.ts", `${temp}/dist`],
          ...["--level", "1"],
        ]);
        assert.equal(made.code, 0, made.stderr);
        const [name] = names(`${temp}/dist`).filter((n) => n !== "SHA256SUMS");
        program = `${temp}/dist/${name}`;
        const hash = createHash("sha256").update(await Deno.readFile(program));
        assert.equal(
          await Deno.readTextFile(`${temp}/dist/SHA256SUMS`),
          `${hash.digest("hex")}  ${name}\n`,
        );
      });

      await t.step("starts for the first time twice at once", async () => {
        const both = await Promise.all([
          run(program, ["--version"], env),
          run(program, ["--version"], env),
        ]);
        for (const { code, stdout, stderr } of both) {
          assert.equal(code, 0, stderr);
          assert.match(stdout, /^obd [0-9.]+ \(deno /);
          assert.equal(stderr, "");
        }
        const [hash, ...rest] = names(runtimeDir);
        assert.match(hash!, /^[0-9a-f]{64}$/);
        assert.deepEqual(rest, []);
        const info = await Deno.stat(`${runtimeDir}/${hash}`);
        assert.equal(info.mode! & 0o777, 0o700);
      });

      await t.step("passes arguments and exit codes on", async () => {
        const wrong = await run(program, ["ls", "oci:a b", "--no-such"], env);
        assert.equal(wrong.code, 2);
        assert.match(wrong.stderr, /--no-such/);
      });

      await t.step("builds what the source builds", async () => {
        await makeLayoutImage(`${temp}/one`);
        await makeLayoutImage(`${temp}/two`);
        const source = ["run", "-A", "main.ts"];
        const one = await run(program, [
          ...["build", `oci:${temp}/one:v1`, "--json"],
        ], env);
        const two = await run(Deno.execPath(), [
          ...[...source, "build", `oci:${temp}/two:v1`, "--json"],
        ]);
        assert.equal(one.code, 0, one.stderr);
        assert.equal(two.code, 0, two.stderr);
        assert.equal(
          JSON.parse(one.stdout).meta.digest,
          JSON.parse(two.stdout).meta.digest,
        );
      });

      await t.step("leaves the umask as it was", async () => {
        const script = 'umask 027; exec "$@"';
        const { code, stderr } = await run("sh", [
          ...["-c", script, "sh", program, "dump", "--quiet"],
          ...[`oci:${temp}/one:v1`, `${temp}/dumped`],
        ], env);
        assert.equal(code, 0, stderr);
        const { mode } = await Deno.stat(`${temp}/dumped`);
        assert.equal(mode! & 0o777, 0o640);
      });

      await t.step("says that its directory was removed", async () => {
        const { code, stderr } = await run("sh", [
          ...[
            "-c",
            'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$2" --version',
          ],
          ...["sh", `${temp}/removed`, program],
        ], env);
        assert.equal(code, 1);
        assert.match(stderr, /^obd: the current directory was removed/m);
        assert.doesNotMatch(stderr, /could not read/);
      });

      await t.step("serves", async () => {
        await serveAndRead(program, env, temp);
      });

      await t.step({
        name: "mounts, with a serve that it starts of itself",
        ignore: !CAN_MOUNT,
        fn: () => mountAndRead(program, env, temp),
      });

      await t.step({
        name: "benches, with threads that probe the machine's speed",
        ignore: !CAN_BENCH,
        fn: () => benchReduced(program, env, temp),
      });

      await t.step("refuses to run when damaged", async () => {
        const bytes = await Deno.readFile(program);
        type Bytes = Uint8Array<ArrayBuffer>;
        const damages: [string, (bytes: Bytes) => Bytes][] = [
          ["runtime", (b) => flip(b, b.length >> 1)],
          ["program", (b) => flip(b, b.length - 1000)],
          ["end", (b) => b.subarray(0, b.length - 100_000)],
        ];
        for (const [what, damage] of damages) {
          const path = `${temp}/damaged-${what}`;
          const empty = `${temp}/runtime-${what}`;
          await writeExecutable(path, damage(bytes));
          const result = await run(path, ["--version"], {
            OBD_RUNTIME_DIR: empty,
          });
          assertRefused(result, empty, /^obd: .*damaged/);
          await Deno.remove(path);
        }
      });

      await t.step("says where it could not write", async () => {
        await Deno.writeTextFile(`${temp}/a-file`, "");
        await Deno.mkdir(`${temp}/empty`);
        const result = await run(program, ["--version"], {
          OBD_RUNTIME_DIR: `${temp}/a-file/runtime`,
        });
        assertRefused(
          result,
          `${temp}/empty`,
          /^obd: cannot make .*a-file\/runtime: set OBD_RUNTIME_DIR/,
        );
      });

      await t.step({
        name: "refuses a runtime of somebody else",
        ignore: !IS_ROOT,
        fn: async () => {
          const [hash] = names(runtimeDir);
          await Deno.chown(`${runtimeDir}/${hash}`, 65534, 65534);
          const result = await run(program, ["--version"], env);
          assert.equal(result.code, 1);
          assert.match(result.stderr, /belongs to somebody else/);
        },
      });
    } finally {
      await Deno.remove(temp, { recursive: true });
    }
  },
});

function flip(
  bytes: Uint8Array<ArrayBuffer>,
  at: number,
): Uint8Array<ArrayBuffer> {
  const damaged = bytes.slice();
  damaged[at]! ^= 0xff;
  return damaged;
}

/** Threads do the decompression here: they too come out of the one file. */
async function serveAndRead(
  program: string,
  env: Record<string, string>,
  temp: string,
): Promise<void> {
  await Deno.writeTextFile(
    `${temp}/obd.json`,
    JSON.stringify({
      nbd: { listen: `unix:${temp}/nbd.sock` },
      api: { listen: `unix:${temp}/api.sock` },
      cacheConfig: { cacheDir: `${temp}/blobs`, cacheSizeGB: 1 },
      gzipCacheConfig: { enable: true, cacheDir: `${temp}/gzip` },
      integrity: "require-spans",
      images: [{ export: "app", image: `oci:${temp}/one:v1` }],
    }),
  );
  const child = new Deno.Command(program, {
    args: ["serve", "--quiet", "--config", `${temp}/obd.json`],
    env,
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const timer = setTimeout(() => child.kill("SIGKILL"), 60_000);
  try {
    const reader = child.stdout.getReader();
    const { value } = await reader.read();
    const ready = JSON.parse(fromUtf8(value!));
    assert.equal(ready.pid, child.pid, "the header must exec, not fork");
    {
      await using client = await NbdClient.connect(ready.exports[0].uri);
      const ext4 = await Ext4Reader.open(client);
      await using body = await ext4.openFile(await ext4.lookup("numbers"));
      const got = await readBytes(body, 0, body.size);
      assert.ok(equalBytes(got, NUMBERS));
      await assert.rejects(ext4.lookup("etc/gone"));
    }
    child.kill("SIGTERM");
    while (!(await reader.read()).done);
    assert.equal((await child.status).code, 0);
  } finally {
    clearTimeout(timer);
    try {
      child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await child.status;
  }
}

/** `obd mount` starts this same file once more. */
async function mountAndRead(
  program: string,
  env: Record<string, string>,
  temp: string,
): Promise<void> {
  const script = `set -eu
    mkdir "$2/at"
    trap '"$1" umount "$2/at" >"$2/undo" 2>&1 || true' EXIT
    "$1" mount "oci:$2/one:v1" "$2/at"
    cat "$2/at/numbers" >"$2/numbers"
    "$1" umount "$2/at"
    "$1" mounts --json`;
  const [shell, ...args] = withOwnMounts(
    ["sh", "-c", script, "sh", program, temp],
  );
  const { code, stdout, stderr } = await run(shell!, args, {
    ...env,
    OBD_RUN_DIR: `${temp}/run`,
    OBD_CACHE_DIR: `${temp}/cache`,
  });
  assert.equal(code, 0, stderr);
  assert.ok(equalBytes(await Deno.readFile(`${temp}/numbers`), NUMBERS));
  assert.match(stdout, /\{"mounts":\[\]\}\s*$/);
}

/** The probe's threads are started by the command, not by a library. */
async function benchReduced(
  program: string,
  env: Record<string, string>,
  temp: string,
): Promise<void> {
  await Deno.writeTextFile(`${temp}/reads`, "/numbers\n");
  const { code, stdout, stderr } = await run(program, [
    ...["bench", "--json", "--reduced", "--runs", "2", "--contenders", "obd"],
    ...["--cache", `${temp}/bench`, "--reads", `${temp}/reads`],
    ...[`oci:${temp}/one:v1`, "--", "true"],
  ], env);
  assert.equal(code, 0, stderr);
  const { runs } = JSON.parse(stdout);
  assert.equal(runs.length, 2);
  for (const { probe } of runs) assert.ok(probe.cpuSeconds > 0.01);
}

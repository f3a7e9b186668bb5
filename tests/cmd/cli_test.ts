/** The command line as scripts rely on it. */

import assert from "node:assert/strict";
import { createProgram } from "../../cmd/cli.ts";
import { VERSION } from "../../cmd/version.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import {
  file,
  makeImage,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { requires } from "../testutil/requires.ts";
import { assertOneLine, endOf, obd, startObd, withTempDir } from "./run_obd.ts";

/** Commands that scripts rely on; there may be more. */
const CONTRACT = [
  "build",
  "serve",
  "mount",
  "umount",
  "attach",
  "detach",
  "mounts",
  "dump",
  "ls",
  "cat",
  "inspect",
  "report",
  "completion",
];
const COMMANDS = createProgram(() => {}).commands.map((c) => c.name());

const image = makeImage({
  layers: [{
    entries: [
      file("etc/motd", "hello\n"),
      file("data", new Uint8Array(seededBytes(200_000, 1))),
    ],
  }],
});

Deno.test("--version is one line with the release", async () => {
  for (const flag of ["--version", "-V"]) {
    const { code, stdout, stderr } = await obd([flag]);
    assert.equal(code, 0);
    assert.match(stdout, /^obd \d+\.\d+\.\d+ \(deno [\d.]+, v8 .*\)\n$/);
    assert.ok(stdout.startsWith(`obd ${VERSION} `));
    assert.equal(stderr, "");
  }
});

/** Help fits a terminal. */
function assertNarrow(text: string): void {
  assert.deepEqual(text.split("\n").filter((line) => line.length > 100), []);
}

Deno.test("help: of the program and of every command, on stdout", async () => {
  const top = await obd(["--help"]);
  assert.equal(top.code, 0);
  assertNarrow(top.stdout);
  const listed = [...top.stdout.matchAll(/^ {2}([a-z][a-z-]*) /gm)].map((m) =>
    m[1]
  );
  assert.deepEqual(listed, [...COMMANDS, "help"]);
  assert.deepEqual(CONTRACT.filter((name) => !listed.includes(name)), []);
  await Promise.all(COMMANDS.map(async (name) => {
    const help = await obd([name, "--help"]);
    assert.equal(help.code, 0, name);
    assert.match(help.stdout, new RegExp(`^Usage: obd ${name} `), name);
    assert.equal(help.stderr, "", name);
    assertNarrow(help.stdout);
    if (name !== "completion") assert.match(help.stdout, /--authfile <file>/);
    const other = await obd(["help", name]);
    assert.equal(other.stdout, help.stdout, name);
  }));
});

Deno.test("no command: help on stderr, exit 2", async () => {
  const { code, stdout, stderr } = await obd([]);
  assert.equal(code, 2);
  assert.equal(stdout, "");
  assert.match(stderr, /^Usage: obd /);
});

const WRONG: [args: string[], message: RegExp][] = [
  [["frobnicate"], /unknown command 'frobnicate'/],
  [["buil"], /unknown command 'buil'.*Did you mean build/s],
  [["build"], /missing required argument 'source'/],
  [["build", "oci:IN:v1", "oci:OUT", "third"], /too many arguments/],
  [["build", "oci:IN:v1", "--jsn"], /unknown option '--jsn'/],
  [["build", "oci:IN:v1", "--vsize"], /argument missing/],
  [["build", "oci:IN:v1", "--vsize", "0"], /positive whole number/],
  [["build", "oci:IN:v1", "--vsize", "1.5"], /positive whole number/],
  [["build", "oci:IN:v1", "--vsize", "16384"], /at most 16383/],
  [["build", "oci:IN:v1", "--span-size", "63"], /at least 64/],
  [["build", "oci:IN:v1", "--span-size", "65537"], /at most 65536/],
  [["build", "oci:IN:v1", "--jobs", "many"], /positive whole number/],
  [["build", "oci:IN:v1", "--jobs", "257"], /at most 256/],
  [
    ["build", "oci:IN:v1", "--platform", "linux/amd64", "--all-platforms"],
    /cannot be used with/,
  ],
  [
    ["build", "oci:IN:v1", "--tag", "x", "--no-tag"],
    /'--tag' cannot be used with option '--no-tag'/,
  ],
  [["build", "oci:IN:v1", "--log-format", "xml"], /Allowed choices/],
  [["serve"], /required option '--config <file>'/],
  [["serve", "--config", "/x.json", "extra"], /too many arguments/],
  [["mount", "oci:IN:v1"], /missing required argument 'dir'/],
  [["umount"], /missing required argument 'dir'/],
  [["attach"], /missing required argument 'image'/],
  [["detach"], /missing required argument 'target'/],
  [["mounts", "extra"], /too many arguments/],
  [["dump", "oci:IN:v1"], /missing required argument 'out'/],
  [["dump", "oci:IN:v1", "-", "--json"], /both want stdout/],
  [["ls"], /missing required argument 'image'/],
  [["ls", "oci:IN:v1", "--api", "x"], /unknown option '--api'/],
  [["cat", "oci:IN:v1"], /missing required argument 'path'/],
  [["cat", "oci:IN:v1", "/x", "--json"], /both want stdout/],
  [["inspect"], /missing required argument/],
  [["report", "extra"], /too many arguments/],
  [["report", "--api", "nonsense"], /neither unix:\/PATH nor HOST:PORT/],
  [["completion"], /missing required argument 'shell'/],
  [["completion", "tcsh"], /Allowed choices are bash, zsh, fish/],
  [["build", "docker.io/Upper/case"], /must be lower case/],
  [["ls", "a b"], /cannot be a repository name/],
];

Deno.test("usage errors: exit 2, a clear message, nothing done", async () => {
  await withTempDir(async (dir) => {
    await writeLayout(`${dir}/IN`, [{ tag: "v1", image }]);
    const before = await tree(dir);
    // A few at once: each is a process of its own.
    for (let at = 0; at < WRONG.length; at += 4) {
      await Promise.all(
        WRONG.slice(at, at + 4).map(async ([args, message]) => {
          const ended = await obd(args, { cwd: dir });
          const said = `obd ${args.join(" ")}\n${ended.stderr}`;
          assert.equal(ended.code, 2, said);
          assert.equal(ended.stdout, "", said);
          assert.match(ended.stderr, message, said);
          assert.doesNotMatch(ended.stderr, /^\s+at /m, said);
        }),
      );
    }
    assert.deepEqual(await tree(dir), before);
  });
});

/** Paths and sizes below a directory. */
async function tree(dir: string): Promise<string[]> {
  const found: string[] = [];
  for await (const entry of Deno.readDir(dir)) {
    const path = `${dir}/${entry.name}`;
    if (entry.isDirectory) found.push(...await tree(path));
    else found.push(`${path} ${(await Deno.stat(path)).size}`);
  }
  return found.sort();
}

Deno.test({
  name: "commands that write a file leave what is no file as it is",
  ignore: !requires("mkfifo"),
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/IN`;
      await writeLayout(layout, [{ tag: "v1", image }]);
      await Deno.mkdir(`${dir}/out`);
      await new Deno.Command("mkfifo", { args: [`${dir}/fifo`] }).output();
      const source = `oci:${layout}:v1`;
      const api = `unix:${dir}/none.sock`;
      for (const out of [`${dir}/out`, `${dir}/fifo`]) {
        for (
          const args of [
            ["dump", source, out],
            ["merge", source, out],
            ["report", "--api", api, "--zip", out],
            ["trace", "record", "app", "--api", api, "--output", out],
          ]
        ) {
          const ended = await obd(args);
          const said = `obd ${args.join(" ")}\n${ended.stderr}`;
          assert.equal(ended.code, args[0] === "trace" ? 1 : 2, said);
          assertOneLine(ended, /is no regular file$/);
        }
      }
      const merged = await obd(["merge", source, "-"], { cwd: dir });
      assert.equal(merged.code, 2, merged.stderr);
      assertOneLine(merged, /only dump writes to stdout/);
      assert.ok((await Deno.stat(`${dir}/out`)).isDirectory);
      assert.ok((await Deno.stat(`${dir}/fifo`)).isFifo);
      const names = Array.from(Deno.readDirSync(dir), (e) => e.name);
      assert.deepEqual(names.sort(), ["IN", "fifo", "out"]);
    }),
});

Deno.test("failures: exit 1, one line on stderr; --debug adds a stack", async () => {
  await withTempDir(async (dir) => {
    const args = ["ls", `oci:${dir}/none:v1`];
    const plain = await obd(args);
    assert.equal(plain.code, 1);
    assert.equal(plain.stdout, "");
    assertOneLine(plain, /^obd: No OCI layout in ".*none": index\.json is mis/);
    const debug = await obd([...args, "--debug"]);
    assert.equal(debug.code, 1);
    assert.match(debug.stderr, /^obd: No OCI layout/);
    assert.match(debug.stderr, /^\s+at .*\.ts:\d+/m);
    const json = await obd([...args, "--json"]);
    assert.equal(json.code, 1);
    assert.equal(json.stdout, "");
    assertOneLine(json, /^obd: No OCI layout/);
    await writeLayout(`${dir}/in`, [{ tag: "v1", image }]);
    const cat = await obd(["cat", `oci:${dir}/in:v1`, "/etc"]);
    assert.equal(cat.code, 1);
    assertOneLine(cat, /"\/etc": it is no file \(directory\)$/);
  });
});

Deno.test("what cannot be written is named; a reader that has enough is no failure", async () => {
  await withTempDir(async (dir) => {
    await writeLayout(`${dir}/in`, [{ tag: "v1", image }]);
    const main = new URL("../../main.ts", import.meta.url).pathname;
    const obdIn = async (script: string, command = "dump") => {
      const { code, stderr } = await new Deno.Command("sh", {
        args: [
          ...["-c", script, "sh", Deno.execPath(), "run", "-A", main],
          ...[command, `oci:${dir}/in:v1`],
        ],
        cwd: dir,
        stdout: "null",
        stderr: "piped",
      }).output();
      return { code, stderr: new TextDecoder().decode(stderr) };
    };
    const full = await obdIn('"$@" - >/dev/full');
    assert.equal(full.code, 1);
    assert.match(full.stderr, /^obd: Cannot write to stdout: No space left/);
    const lines = await obdIn('"$@" >/dev/full', "ls");
    assert.equal(lines.code, 1);
    assert.match(lines.stderr, /^obd: Cannot write to stdout: No space left/);
    const bounded = await obdIn(
      'trap "" XFSZ; ulimit -f 2000000; "$@" out.raw',
    );
    assert.equal(bounded.code, 1);
    assert.match(
      bounded.stderr,
      /^obd: Cannot write "out\.raw": File too large/,
    );
    const head = await obdIn('{ "$@" -; echo "code $?" >&2; } | head -c 1');
    assert.equal(head.stderr, "code 0\n");
  });
});

Deno.test("names of others cannot write to the terminal", async () => {
  const ended = await obd(["inspect", "/nonexistent/\x1b[2J"]);
  assert.notEqual(ended.code, 0);
  assert.ok(!ended.stderr.includes("\x1b"), JSON.stringify(ended.stderr));
});

Deno.test("--json prints exactly one object, whatever the command", async () => {
  await withTempDir(async (dir) => {
    await writeLayout(`${dir}/in`, [{ tag: "v1", image }]);
    const ref = `oci:${dir}/in:v1`;
    const config = `${dir}/serve.json`;
    await Deno.writeTextFile(config, '{ "images": [], "extra": 1 }');
    const runs = [
      ["build", ref, "--vsize", "1"],
      ["inspect", ref],
      ["inspect", `${dir}/in`],
      ["ls", ref, "-R"],
      ["dump", ref, `${dir}/out.raw`],
      ["serve", "--config", config, "--check"],
      ["report", "--api", `unix:${dir}/none.sock`],
      ["report", "--api", `unix:${dir}/none.sock`, "--zip", `${dir}/r.zip`],
      ["mounts"],
    ];
    for (const args of runs) {
      const ended = await obd([...args, "--json"], {
        env: { OBD_RUN_DIR: `${dir}/run` },
      });
      const said = `obd ${args.join(" ")}\n${ended.stderr}`;
      assert.equal(ended.code, 0, said);
      assert.equal(ended.stdout.trimEnd().split("\n").length, 1, said);
      const value = JSON.parse(ended.stdout);
      assert.equal(typeof value, "object", said);
      assert.ok(!Array.isArray(value) && value !== null, said);
    }
  });
});

Deno.test("outside serve only warnings are logged; -q and --debug change that", async () => {
  await withTempDir(async (dir) => {
    await writeLayout(`${dir}/in`, [{ tag: "v1", image }]);
    const ref = `oci:${dir}/in:v1`;
    const ls = await obd(["ls", ref, "/etc"]);
    assert.deepEqual([ls.code, ls.stdout, ls.stderr], [0, "motd\n", ""]);
    const debug = await obd(["ls", ref, "/etc", "--debug"]);
    assert.match(debug.stderr, /INFO +image opened/);
    const json = await obd(
      ["ls", ref, "/etc", "--debug", "--log-format", "json"],
    );
    const lines = json.stderr.trimEnd().split("\n").map((l) => JSON.parse(l));
    assert.ok(lines.some((l) => l.event === "image opened"), json.stderr);
    const quiet = await obd(["build", ref, "--vsize", "1", "-q"]);
    assert.deepEqual(
      [quiet.code, quiet.stdout, quiet.stderr],
      [0, "", ""],
    );
  });
});

Deno.test("SIGINT during a build: exit 130, nothing pushed, nothing left behind", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    await putImage(server, "app", "v1", image);
    server.faults.add({
      fault: { kind: "hang", afterBytes: 1000 },
      path: new RegExp(`/blobs/${image.layers[0]!.digest}`),
      times: 100,
    });
    const before = server.tags("app").size;
    const temp = `${dir}/tmp`;
    await Deno.mkdir(temp);
    const child = startObd(["build", `${server.host}/app:v1`], {
      env: { TMPDIR: temp },
    });
    const ended = endOf(child);
    while (!server.requests.some((r) => r.fault !== undefined)) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
    child.kill("SIGINT");
    const result = await ended;
    assert.equal(result.code, 130, result.stderr);
    assertOneLine(result, /^obd: (Stopped by SIGINT|Cancelled)/);
    assert.deepEqual([...Deno.readDirSync(temp)], []);
    assert.equal(server.tags("app").size, before);
    assert.ok(server.requests.every((r) => /^(GET|HEAD)$/.test(r.method)));
  });
});

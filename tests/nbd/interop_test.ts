/** Our server with other people's clients, our client with other people's servers. */

import assert from "node:assert/strict";
import { equalBytes, FileSource, MemorySource } from "../../lib/io/mod.ts";
import { formatNbdUri, NbdClient, NbdServer } from "../../lib/nbd/mod.ts";
import { requires } from "../testutil/requires.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { until } from "../testutil/until.ts";
import { soon } from "./peer.ts";
import { MemoryBlockSource, SparseSource } from "./sources.ts";

const MiB = 1024 * 1024;
const content = seededBytes(4 * MiB, 1);
content.fill(0, MiB, 2 * MiB);

interface Place {
  server: NbdServer;
  dir: string;
  /** The URI of an export. */
  uri(exportName?: string): string;
}

function test(
  name: string,
  tools: string[],
  run: (place: Place) => Promise<void>,
): void {
  const fn = async () => {
    const dir = await Deno.makeTempDir();
    const server = new NbdServer();
    try {
      const address = await server.listen(`unix:${dir}/nbd.sock`);
      const uri = (exportName = "") => formatNbdUri({ address, exportName });
      await run({ server, dir, uri });
    } finally {
      await server.stop(0);
      await Deno.remove(dir, { recursive: true });
    }
  };
  const ignore = !requires(...tools);
  Deno.test({ name: `NBD interop: ${name}`, ignore, fn });
}

/** Runs a program to its end; its standard output. */
async function run(command: string, ...args: string[]): Promise<string> {
  const child = new Deno.Command(command, {
    args,
    stdin: "null",
    signal: AbortSignal.timeout(20_000),
  });
  const { success, stdout, stderr } = await child.output();
  const text = new TextDecoder().decode(stdout);
  const errors = new TextDecoder().decode(stderr);
  assert.ok(success, `${command} ${args.join(" ")}\n${text}\n${errors}`);
  return text;
}

test("nbdinfo sees what we say", ["nbdinfo"], async ({ server, uri }) => {
  const source = new SparseSource(content);
  server.addExport({ name: "app", source, description: "An app" });
  const { exports: [one], ...all } = JSON.parse(
    await run("nbdinfo", "--json", uri()),
  );
  assert.equal(all.protocol, "newstyle-fixed");
  assert.equal(all.structured, true);
  assert.equal(one["export-name"], "app");
  assert.equal(one.description, "An app");
  assert.equal(one["export-size"], content.length);
  assert.deepEqual(one.contexts, ["base:allocation"]);
  for (const can of ["cache", "df", "multi_conn"]) {
    assert.equal(one[`can_${can}`], true, can);
  }
  for (const cannot of ["fast_zero", "flush", "fua", "trim", "zero"]) {
    assert.equal(one[`can_${cannot}`], false, cannot);
  }
  assert.equal(one.is_read_only, true);
  assert.deepEqual(
    [one.block_size_minimum, one.block_size_maximum],
    [1, 32 * MiB],
  );
  const writable = new MemoryBlockSource(new Uint8Array(512));
  server.addExport({ name: "é w", source: writable, readOnly: false });
  const listed = JSON.parse(await run("nbdinfo", "--list", "--json", uri()));
  assert.deepEqual(
    listed.exports.map((e: Record<string, unknown>) => e["export-name"]),
    ["app", "é w"],
  );
  const [, two] = listed.exports;
  assert.equal(two.is_read_only, false);
  for (const can of ["flush", "fua", "trim", "zero"]) {
    assert.equal(two[`can_${can}`], true, can);
  }
});

test("nbdinfo --map shows the holes", ["nbdinfo"], async ({ server, uri }) => {
  const bytes = new Uint8Array(5 * 4096).fill(1, 0, 4096).fill(1, 4 * 4096);
  server.addExport({ name: "", source: new SparseSource(bytes) });
  const map = JSON.parse(await run("nbdinfo", "--map", "--json", uri()));
  assert.deepEqual(
    map.map((e: { offset: number; length: number; type: number }) => [
      e.offset,
      e.length,
      e.type,
    ]),
    [[0, 4096, 0], [4096, 4096, 2], [8192, 4096, 3], [12288, 4096, 2], [
      16384,
      4096,
      0,
    ]],
  );
});

test("nbdcopy copies out and in", ["nbdcopy"], async ({ server, dir, uri }) => {
  const target = new MemoryBlockSource(seededBytes(content.length, 9));
  server.addExport({ name: "from", source: new SparseSource(content) });
  server.addExport({ name: "to", source: target, readOnly: false });
  await run("nbdcopy", uri("from"), `${dir}/copy`);
  assert.ok(equalBytes(await Deno.readFile(`${dir}/copy`), content));
  await run("nbdcopy", "--flush", uri("from"), uri("to"));
  assert.ok(equalBytes(target.bytes, content));
  assert.ok(target.log.some((l) => l.startsWith("zero")));
  assert.ok(target.log.includes("flush 0 0"));
  target.bytes.fill(7);
  await run("nbdcopy", `${dir}/copy`, uri("to"));
  assert.ok(equalBytes(target.bytes, content));
});

test(
  "nbdcopy without structured replies",
  ["nbdcopy", "nbdkit"],
  async ({ server, dir, uri }) => {
    server.addExport({ name: "", source: new SparseSource(content) });
    const nbd = ["nbd", `uri=${uri()}`];
    await run(
      "nbdkit",
      ...["-r", "-U", "-", ...nbd],
      ...["--run", `nbdcopy --synchronous "$uri" ${dir}/copy`],
    );
    assert.ok(equalBytes(await Deno.readFile(`${dir}/copy`), content));
  },
);

/** libnbd's Python module lives with the system's Python. */
const NBDSH = `
import os, nbd
uri = os.environ["URI"]
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
size = h.get_size()
def fails(errno, f, *args, **kw):
    try:
        f(*args, **kw)
    except nbd.Error as ex:
        assert ex.errno == errno, (ex.errno, errno)
        return
    raise Exception("no error: %r" % (args,))
assert h.pread(512, 0) == h.pread(512, 0, nbd.CMD_FLAG_DF)
fails("EINVAL", h.pread, 512, size)
fails("EINVAL", h.pread, 512, size - 511)
fails("EPERM", h.pwrite, b"x" * 512, 0)
fails("EPERM", h.trim, 512, 0)
fails("EPERM", h.zero, 512, 0)
fails("EINVAL", h.flush)
fails("EINVAL", h.cache, 512, size)
h.cache(65536, 0)
chunks = []
h.pread_structured(2097152, 524288,
    lambda buf, off, st, err: chunks.append((off, len(buf), st)))
assert chunks == [(524288, 524288, nbd.READ_DATA),
                  (1048576, 1048576, nbd.READ_HOLE),
                  (2097152, 524288, nbd.READ_DATA)], chunks
got = []
h.block_status(size, 0, lambda c, off, e, err: got.append((c, off, e)))
assert got[0][:2] == ("base:allocation", 0) and got[0][2][0] == 1048576, got
one = []
h.block_status(size, 0, lambda c, off, e, err: one.append(e), nbd.CMD_FLAG_REQ_ONE)
assert one == [[1048576, 0]], one
assert len(h.pread(33554432 // 16, 0)) == 2097152
h.shutdown()
print("good")
`;

test("nbdsh checks errors and chunks", ["nbdsh"], async ({ server, uri }) => {
  server.addExport({ name: "", source: new SparseSource(content) });
  const child = new Deno.Command("/usr/bin/python3", {
    args: ["-c", NBDSH],
    env: { URI: uri() },
    signal: AbortSignal.timeout(20_000),
  });
  const { stdout, stderr } = await child.output();
  const said = new TextDecoder().decode(stdout).trim();
  assert.equal(said, "good", new TextDecoder().decode(stderr));
});

test(
  "qemu-img reads and writes",
  ["qemu-img"],
  async ({ server, dir, uri }) => {
    const raw = `${dir}/raw`;
    await Deno.writeFile(raw, content);
    const target = new MemoryBlockSource(seededBytes(content.length, 9));
    server.addExport({ name: "from", source: new SparseSource(content) });
    server.addExport({ name: "to", source: target, readOnly: false });
    const formats = ["-f", "raw", "-F", "raw"];
    await run("qemu-img", "compare", ...formats, uri("from"), raw);
    const info = JSON.parse(
      await run("qemu-img", "info", "--output=json", "-f", "raw", uri("from")),
    );
    assert.equal(info["virtual-size"], content.length);
    const out = ["convert", "-f", "raw", "-O", "raw"];
    await run("qemu-img", ...out, uri("from"), `${dir}/out`);
    assert.ok(equalBytes(await Deno.readFile(`${dir}/out`), content));
    await run("qemu-img", ...out, "-n", raw, uri("to"));
    assert.ok(equalBytes(target.bytes, content));
    const map = JSON.parse(
      await run("qemu-img", "map", "--output=json", "-f", "raw", uri("from")),
    );
    assert.ok(map.some((e: { zero: boolean }) => e.zero));
  },
);

test("qemu-io uses write zeroes, discard and FUA", ["qemu-io"], async (
  { server, uri },
) => {
  const target = new MemoryBlockSource(content.slice());
  server.addExport({ name: "", source: target, readOnly: false });
  await run(
    ...["qemu-io", "-f", "raw"] as const,
    ...["-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k"],
    ...["-c", "write -f -P 9 64k 64k", "-c", "write -z 128k 64k"],
    ...["-c", "write -z -u 256k 64k", "-c", "discard 512k 64k"],
    ...["-c", "flush", "-c", "read -P 0 128k 64k", uri()],
  );
  const said = target.log.join("\n");
  for (
    const what of [
      "write 65536",
      "zero+ 131072",
      "zero 262144",
      "trim",
      "flush",
    ]
  ) {
    assert.ok(said.includes(what), `${what}:\n${said}`);
  }
});

test("fio writes and verifies", ["fio"], async ({ server, dir, uri }) => {
  const target = new MemoryBlockSource(new Uint8Array(8 * MiB));
  server.addExport({ name: "", source: target, readOnly: false });
  const config = `${dir}/job.fio`;
  await Deno.writeTextFile(
    config,
    `[global]
ioengine=nbd
uri=${uri()}
iodepth=32
bsrange=512-128k
size=8m
verify=crc32c
[write-and-verify]
rw=randwrite
do_verify=1
`,
  );
  const child = new Deno.Command("fio", { args: [config], cwd: dir });
  const { success, stdout } = await child.output();
  const said = new TextDecoder().decode(stdout);
  assert.ok(success, said);
  assert.match(said, /err= 0/);
  assert.ok(target.log.length > 64);
});

test("one process serves a file to many clients", ["nbdcopy"], async (
  { server, dir, uri },
) => {
  await Deno.writeFile(`${dir}/raw`, content);
  const source = await FileSource.open(`${dir}/raw`);
  try {
    const { stats } = server.addExport({ name: "", source });
    await Promise.all([1, 2, 3].map(async (i) => {
      await run("nbdcopy", "--connections=4", uri(), `${dir}/${i}`);
      assert.ok(equalBytes(await Deno.readFile(`${dir}/${i}`), content));
    }));
    assert.ok(stats.connectionsTotal >= 3, String(stats.connectionsTotal));
    await until(() => stats.connections === 0);
  } finally {
    await source[Symbol.asyncDispose]();
  }
});

/** A socket has its name a moment before anybody listens on it. */
async function untilListening(path: string, command: string): Promise<void> {
  let listening = false;
  const attempt = async () => {
    while (!listening) {
      try {
        (await Deno.connect({ transport: "unix", path })).close();
        listening = true;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  };
  await soon(attempt(), command).finally(() => listening = true);
}

/** Starts a server of somebody else, and ends it. */
async function withForeign(
  command: string,
  args: (socket: string, file: string) => string[],
  run: (uri: string, file: string) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const file = `${dir}/raw`;
  const socket = `${dir}/s`;
  await Deno.writeFile(file, content);
  const child = new Deno.Command(command, {
    args: args(socket, file),
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  try {
    await untilListening(socket, command);
    await run(`nbd+unix:///?socket=${socket}`, file);
  } finally {
    try {
      child.kill("SIGTERM");
    } catch {
      // It ended by itself.
    }
    await child.status;
    await Deno.remove(dir, { recursive: true });
  }
}

async function exercise(uri: string, file: string): Promise<void> {
  for (const structured of [true, false]) {
    await using client = await NbdClient.connect(uri, { structured });
    assert.equal(client.size, content.length);
    const dst = new Uint8Array(content.length);
    await client.pread(dst, 0);
    assert.ok(equalBytes(dst, content));
    const bytes = seededBytes(300_000 - 300_000 % 512, 4);
    await client.pwrite(bytes, 512 * 100);
    await client.flush();
    await client.writeZeroes(0, 65536);
    const want = content.slice();
    want.set(bytes, 51200);
    want.fill(0, 0, 65536);
    assert.ok(equalBytes(await Deno.readFile(file), want));
    await client.pwrite(content, 0);
    await client.flush();
    if (!structured) continue;
    let at = 0;
    while (at < client.size) {
      const extents = await client.blockStatus(at, client.size - at);
      for (const e of extents) {
        assert.equal(e.offset, at);
        at += e.length;
      }
    }
    await assert.rejects(
      client.readRequest(new Uint8Array(1), client.size),
      { errno: 22 },
    );
  }
}

for (
  const [command, args] of [
    ["nbdkit", (s: string, f: string) => ["-f", "-U", s, "file", f]],
    ["qemu-nbd", (s: string, f: string) => ["-t", "-f", "raw", "-k", s, f]],
  ] as const
) {
  Deno.test({
    name: `NBD interop: our client with ${command}`,
    ignore: !requires(command),
    fn: () => withForeign(command, args, exercise),
  });
}

Deno.test({
  name: "NBD interop: our client lists exports of nbdkit",
  ignore: !requires("nbdkit"),
  fn: () =>
    withForeign(
      "nbdkit",
      (
        s,
        f,
      ) => [
        "-f",
        "-U",
        s,
        "--filter=exportname",
        "file",
        f,
        "exportname=a",
        "exportname=b",
        "exportname-list=explicit",
      ],
      async (uri) => {
        const found = await NbdClient.list(uri);
        assert.deepEqual(found.map((e) => e.name), ["a", "b"]);
      },
    ),
});

Deno.test({
  name: "NBD interop: our client with an oldest handshake of nbdkit",
  ignore: !requires("nbdkit"),
  fn: () =>
    withForeign(
      "nbdkit",
      (s, f) => ["-f", "-U", s, "--mask-handshake=1", "--no-sr", "file", f],
      async (uri) => {
        await using client = await NbdClient.connect(uri);
        const dst = new Uint8Array(content.length);
        await client.pread(dst, 0);
        assert.ok(equalBytes(dst, content));
        assert.equal(client.info.structured, false);
      },
    ),
});

test("a failing source is a failing client", ["nbdcopy"], async (
  { server, dir, uri },
) => {
  const inner = new MemorySource(content);
  const source = {
    size: inner.size,
    pread: (dst: Uint8Array, offset: number) =>
      offset >= 3 * MiB
        ? Promise.reject(new Error("gone"))
        : inner.pread(dst, offset),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  server.addExport({ name: "", source });
  const { success, stderr } = await new Deno.Command("nbdcopy", {
    args: [uri(), `${dir}/copy`],
  }).output();
  assert.equal(success, false);
  assert.match(new TextDecoder().decode(stderr), /Input\/output error/);
});

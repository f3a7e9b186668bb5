import assert from "node:assert/strict";
import { MemorySource, ObdError } from "../../lib/io/mod.ts";
import { NbdServer, parseNbdUri } from "../../lib/nbd/mod.ts";
import { connectAndTalk } from "../../lib/nbd/client_handshake.ts";
import {
  encodeAttributes,
  LINUX_ERRNO,
  NetlinkError,
  NetlinkFamily,
  readAttributes,
} from "../../lib/nbd/netlink.ts";
import { SystemSocket } from "../../lib/nbd/system_socket.ts";
import { hasIpv6 } from "../testutil/requires.ts";

// The C library stays loaded; a test would be told that it leaks.
SystemSocket.netlink(1000).close();

async function sizeOf(uri: string): Promise<number> {
  const { stream, result } = await connectAndTalk(
    parseNbdUri(uri),
    10_000,
    (talk) => talk.go("app", { structured: false, allocation: false }),
    ({ address }) => SystemSocket.connect(address, 10_000),
  );
  stream.close();
  return result.size;
}

async function serveAt(at: string, uri: (port: number) => string) {
  await using server = new NbdServer();
  const source = new MemorySource(new Uint8Array(4096));
  server.addExport({ name: "app", source });
  const address = await server.listen(at);
  const port = address.transport === "tcp" ? address.port : 0;
  assert.equal(await sizeOf(uri(port)), 4096);
}

Deno.test("SystemSocket: speaks NBD over Unix sockets and TCP", async () => {
  await withDir(async (dir) => {
    const path = `${dir}/s`;
    await serveAt(`unix:${path}`, () => `nbd+unix:///app?socket=${path}`);
  });
  await serveAt("127.0.0.1:0", (port) => `nbd://127.0.0.1:${port}/app`);
});

Deno.test({
  name: "SystemSocket: speaks NBD over IPv6",
  ignore: !hasIpv6(),
  fn: () => serveAt("[::1]:0", (port) => `nbd://[::1]:${port}/app`),
});

Deno.test("SystemSocket: nobody there, and nobody who answers", () =>
  withDir(async (dir) => {
    const address = { transport: "unix", path: `${dir}/s` } as const;
    await assert.rejects(SystemSocket.connect(address, 1000), {
      name: "ObdError",
      message: `Cannot connect to "unix:${dir}/s"`,
    });
    using _silent = Deno.listen(address);
    const socket = await SystemSocket.connect(address, 50);
    const reading = socket.read(new Uint8Array(1));
    // Not under the call: the descriptor could be another's by then.
    socket.close();
    await assert.rejects(reading, ObdError);
    await assert.rejects(socket.read(new Uint8Array(1)), /is closed/);
  }));

async function withDir(run: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir();
  try {
    await run(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("NetlinkFamily: finds families, and says which are not there", async () => {
  using controller = await NetlinkFamily.open("nlctrl", 2, 5000);
  const answer = await controller.request("ask", 3, [[2, { text: "nlctrl" }]]);
  assert.deepEqual([...answer.get(1)!], [16, 0]);
  await assert.rejects(
    NetlinkFamily.open("obd_is_not_one", 1, 5000),
    (error) =>
      error instanceof NetlinkError && error.errno === LINUX_ERRNO.ENOENT,
  );
});

Deno.test("netlink attributes: padded, nested, and never beyond their message", () => {
  const bytes = encodeAttributes([
    [1, { u32: 5 }],
    [10, { text: "ab" }],
    [7, { nested: [[1, { nested: [[1, { u32: 9 }]] }]] }],
    [2, { u64: 2n ** 40n }],
  ]);
  assert.equal(
    bytes.toHex(),
    "0800010005000000" + "07000a0061620000" +
      "10000780" + "0c000180" + "0800010009000000" +
      "0c0002000000000000010000",
  );
  assert.deepEqual([...readAttributes(bytes).keys()], [1, 10, 7, 2]);
  assert.deepEqual([...readAttributes(bytes).get(10)!], [97, 98, 0]);
  for (const bad of ["0800", "0300010000000000", "0900010005000000"]) {
    assert.throws(() => readAttributes(Uint8Array.fromHex(bad)), {
      name: "FormatError",
    });
  }
});

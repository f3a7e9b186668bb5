import assert from "node:assert/strict";
import { MemorySource } from "../../lib/io/mod.ts";
import { until } from "../testutil/until.ts";
import {
  contextData,
  infoData,
  option,
  pack,
  RawPeer,
  withServer,
} from "./peer.ts";
import { MemoryBlockSource } from "./sources.ts";
import { RecordingLogger } from "../testutil/test_source.ts";

const SIZE = 12345;
const READ_ONLY_FLAGS = 0x1 | 0x2 | 0x100 | 0x400;

/** A test with one export "app" and a peer after the greeting. */
function test(
  name: string,
  run: (peer: RawPeer, socket: string) => Promise<void>,
  exports: string[] = ["app"],
): void {
  Deno.test(`NBD handshake: ${name}`, () =>
    withServer({}, async (server, socket) => {
      for (const name of exports) {
        const source = new MemorySource(new Uint8Array(SIZE));
        server.addExport({ name, source, description: `about ${name}` });
      }
      using peer = await RawPeer.open(socket);
      await run(peer, socket);
    }));
}

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

test("greets as fixed newstyle without zeroes", async (peer) => {
  const greeting = await peer.greet();
  assert.equal(text(greeting.subarray(0, 16)), "NBDMAGICIHAVEOPT");
  assert.deepEqual([...greeting.subarray(16)], [0, 3]);
});

test("hangs up on client flags that it does not know", async (peer) => {
  await peer.greet(4);
  await peer.closed();
});

test("hangs up on a wrong option magic", async (peer) => {
  await peer.greet();
  await peer.send(pack([0x1122334455667788n, 8], [3, 4], [0, 4]));
  await peer.closed();
});

test("a client without fixed newstyle may only name an export", async (peer) => {
  await peer.greet(0);
  await peer.send(option(3));
  await peer.closed();
});

test("EXPORT_NAME sends size, flags and 124 zeroes", async (peer) => {
  await peer.greet(0);
  await peer.send(option(1, pack("app")));
  const answer = await peer.receive(134);
  const want = pack([SIZE, 8], [READ_ONLY_FLAGS, 2], new Uint8Array(124));
  assert.deepEqual(answer, want);
});

test("EXPORT_NAME leaves the zeroes out when asked to", async (peer) => {
  await peer.greet(3);
  await peer.send(option(1, pack("app")));
  await peer.send(
    pack([0x25609513, 4], [0, 2], [0, 2], [7, 8], [0, 8], [4, 4]),
  );
  assert.deepEqual(
    await peer.receive(10),
    pack([SIZE, 8], [READ_ONLY_FLAGS, 2]),
  );
  assert.equal((await peer.reply(4)).cookie, 7n);
});

test("EXPORT_NAME of an unknown export ends the session", async (peer) => {
  await peer.greet();
  await peer.send(option(1, pack("other")));
  await peer.closed();
});

test("LIST names every export and ends with ACK", async (peer) => {
  await peer.greet();
  await peer.send(option(3));
  for (const name of ["app", "naïve/ü"]) {
    const reply = await peer.optionReply();
    assert.deepEqual([reply.option, reply.type], [3, 2]);
    const bytes = pack(name);
    assert.deepEqual(
      reply.data,
      pack([bytes.length, 4], bytes, `about ${name}`),
    );
  }
  assert.equal((await peer.optionReply()).type, 1);
}, ["app", "naïve/ü"]);

test("LIST with data is invalid", async (peer) => {
  await peer.greet();
  await peer.send(option(3, pack("x")));
  assert.equal((await peer.optionReply()).type, 0x80000003);
  await peer.send(option(3));
  assert.equal((await peer.optionReply()).type, 2);
});

test("ABORT is acknowledged and ends the session", async (peer) => {
  await peer.greet();
  await peer.send(option(2));
  assert.equal((await peer.optionReply()).type, 1);
  await peer.closed();
});

test("unknown options, STARTTLS and PEEK are unsupported", async (peer) => {
  await peer.greet();
  for (const number of [4, 5, 11, 0x7fffffff]) {
    await peer.send(option(number, pack("data")));
    const reply = await peer.optionReply();
    assert.deepEqual([reply.option, reply.type], [number, 0x80000001]);
  }
});

test("INFO tells what was asked for, GO starts", async (peer) => {
  await peer.greet();
  for (const number of [6, 7]) {
    await peer.send(option(number, infoData("app", [3, 1, 2, 99])));
    const replies = [];
    for (let i = 0; i < 5; i++) replies.push(await peer.optionReply());
    assert.ok(replies.every((r) => r.option === number));
    assert.deepEqual(replies.map((r) => r.type), [3, 3, 3, 3, 1]);
    assert.deepEqual(replies.map((r) => r.data), [
      pack([0, 2], [SIZE, 8], [READ_ONLY_FLAGS, 2]),
      pack([1, 2], "app"),
      pack([2, 2], "about app"),
      pack([3, 2], [1, 4], [4096, 4], [32 << 20, 4]),
      pack(),
    ]);
  }
  await peer.send(
    pack([0x25609513, 4], [0, 2], [0, 2], [7, 8], [0, 8], [4, 4]),
  );
  assert.equal((await peer.reply(4)).cookie, 7n);
});

test("the empty name is the only export", async (peer) => {
  await peer.greet();
  await peer.send(option(6, infoData("", [1])));
  await peer.optionReply();
  assert.deepEqual((await peer.optionReply()).data, pack([1, 2], "app"));
});

test("the empty name of several exports is unknown", async (peer) => {
  await peer.greet();
  await peer.send(option(7, infoData("")));
  assert.equal((await peer.optionReply()).type, 0x80000006);
}, ["a", "b"]);

test("malformed INFO, GO and contexts are invalid, and it goes on", async (peer) => {
  await peer.greet();
  await peer.send(option(8));
  assert.equal((await peer.optionReply()).type, 1);
  const bad: [number, Uint8Array][] = [
    [7, pack()],
    [7, pack([3, 4], "app")],
    [7, pack([4, 4], "app", [0, 2])],
    [7, pack([0xffffffff, 4], "app", [0, 2])],
    [7, pack([3, 4], "app", [2, 2], [3, 2])],
    [7, pack([3, 4], "app", [0, 2], "!")],
    [6, pack([3, 4], new Uint8Array([0xff, 0xfe, 0xfd]), [0, 2])],
    [6, pack([3, 4], "a\0b", [0, 2])],
    [6, pack([5000, 4], new Uint8Array(5000).fill(65), [0, 2])],
    [9, pack([3, 4], "app")],
    [9, pack([3, 4], "app", [1, 4], [100, 4], "base:")],
    [10, pack([3, 4], "app", [0xffffffff, 4])],
    [10, pack([3, 4], "app", [0, 4], "!")],
    [8, pack("x")],
  ];
  for (const [number, data] of bad) {
    await peer.send(option(number, data));
    const { type } = await peer.optionReply();
    assert.equal(type, 0x80000003, `option ${number}, ${data.toHex()}`);
  }
  await peer.send(option(6, infoData("app")));
  assert.equal((await peer.optionReply()).type, 3);
});

test("contexts need structured replies", async (peer) => {
  await peer.greet();
  await peer.send(option(9, contextData("app", [])));
  assert.equal((await peer.optionReply()).type, 0x80000003);
  await peer.send(option(10, contextData("app", ["base:allocation"])));
  assert.equal((await peer.optionReply()).type, 0x80000003);
});

test("contexts are listed and selected", async (peer) => {
  await peer.greet();
  await peer.send(option(8));
  await peer.optionReply();
  const cases: [number, string[], boolean][] = [
    [9, [], true],
    [9, ["base:"], true],
    [9, ["base:allocation"], true],
    [9, ["qemu:dirty-bitmap:x"], false],
    [10, [], false],
    [10, ["base:"], false],
    [10, ["x:y", "base:allocation", "base:allocation"], true],
  ];
  for (const [number, queries, granted] of cases) {
    await peer.send(option(number, contextData("app", queries)));
    let reply = await peer.optionReply();
    if (granted) {
      assert.equal(reply.type, 4, JSON.stringify(queries));
      const id = number === 10 ? 1 : 0;
      assert.deepEqual(reply.data, pack([id, 4], "base:allocation"));
      reply = await peer.optionReply();
    }
    assert.equal(reply.type, 1, JSON.stringify(queries));
  }
  await peer.send(option(10, contextData("none", ["base:allocation"])));
  assert.equal((await peer.optionReply()).type, 0x80000006);
});

test("option data up to 48 KiB is read, up to 1 MiB dropped", async (peer) => {
  await peer.greet();
  await peer.send(option(3, new Uint8Array(48 * 1024)));
  assert.equal((await peer.optionReply()).type, 0x80000003);
  await peer.send(option(3, new Uint8Array(1024 * 1024)));
  assert.equal((await peer.optionReply()).type, 0x80000009);
  await peer.send(pack([0x49484156454f5054n, 8], [3, 4], [1024 * 1024 + 1, 4]));
  await peer.closed();
});

test("an option may come in pieces", async (peer) => {
  const bytes = option(6, infoData("app"));
  await peer.greet();
  for (const byte of bytes) {
    await peer.send(new Uint8Array([byte]));
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  assert.equal((await peer.optionReply()).type, 3);
});

Deno.test("NBD handshake: options are bounded in number", () =>
  withServer({}, async (_, socket) => {
    using peer = await RawPeer.open(socket);
    await peer.greet();
    const many = pack(...new Array<Uint8Array>(4096).fill(option(0x99)));
    const sending = peer.send(many);
    for (let i = 0; i < 4096; i++) await peer.optionReply();
    await sending;
    await peer.closed();
  }));

Deno.test("NBD handshake: flags of a writable export", () =>
  withServer({}, async (server, socket) => {
    const source = new MemoryBlockSource(new Uint8Array(512));
    server.addExport({ name: "w", source, readOnly: false });
    using peer = await RawPeer.open(socket);
    await peer.greet();
    await peer.send(option(8));
    await peer.optionReply();
    await peer.send(option(6, infoData("w")));
    const flags = 0x1 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80 | 0x400;
    const { data } = await peer.optionReply();
    assert.deepEqual(data, pack([0, 2], [512, 8], [flags, 2]));
  }));

Deno.test("NBD handshake: ends at its deadline", async () => {
  const logger = new RecordingLogger();
  // Long enough for the four answers that come before it.
  await withServer({ handshakeDeadlineMs: 1000, logger }, async (_, socket) => {
    using silent = await RawPeer.open(socket);
    using slow = await RawPeer.open(socket);
    await silent.receive(18);
    await slow.greet();
    await slow.send(option(8));
    await slow.optionReply();
    await silent.closed();
    await slow.closed();
    assert.equal(logger.count("nbd-connection-failed"), 2);
  });
});

Deno.test("NBD handshake: an export removed during it is gone", () =>
  withServer({}, async (server, socket) => {
    const source = new MemorySource(new Uint8Array(512));
    server.addExport({ name: "a", source });
    using peer = await RawPeer.open(socket);
    await peer.greet();
    await server.removeExport("a");
    await peer.send(option(7, infoData("a")));
    assert.equal((await peer.optionReply()).type, 0x80000006);
    server.addExport({ name: "a", source });
    await peer.send(option(7, infoData("a")));
    assert.equal((await peer.optionReply()).type, 3);
    await until(() => server.getExport("a")!.stats.connections === 1);
  }));

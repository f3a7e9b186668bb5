import assert from "node:assert/strict";
import {
  CancelledError,
  DeadlineError,
  equalBytes,
  FormatError,
  MemorySource,
  NotFoundError,
  ObdError,
  UnsupportedError,
} from "../../lib/io/mod.ts";
import { NbdClient, NbdServer } from "../../lib/nbd/mod.ts";
import {
  seededBytes,
  seededRandom,
  testSourceContract,
} from "../testutil/source_contract.ts";
import { until } from "../testutil/until.ts";
import { pack, soon, withServer } from "./peer.ts";
import { GatedSource, MemoryBlockSource, SparseSource } from "./sources.ts";

const content = seededBytes(700_001, 1);
content.fill(0, 100_000, 300_000);

const at = (path: string, exportName = "") => ({
  address: { transport: "unix" as const, path },
  exportName,
});

for (
  const [what, make, options] of [
    ["memory, structured", () => new MemorySource(content), {}],
    ["memory, simple", () => new MemorySource(content), { structured: false }],
    ["sparse", () => new SparseSource(content), {}],
  ] as const
) {
  testSourceContract(`NbdClient of ${what}`, async () => {
    const dir = await Deno.makeTempDir();
    const server = new NbdServer();
    server.addExport({ name: "", source: make() });
    await server.listen(`unix:${dir}/s`);
    const source = await NbdClient.connect(at(`${dir}/s`), options);
    const cleanup = async () => {
      await server.stop();
      await Deno.remove(dir, { recursive: true });
    };
    return { source, content, cleanup };
  });
}

Deno.test("NbdClient: learns of an export what there is to know", () =>
  withServer({}, async (server, socket) => {
    const source = new MemorySource(content);
    server.addExport({ name: "a", source, description: "first" });
    server.addExport({ name: "b", source });
    assert.deepEqual(await NbdClient.list(at(socket)), [
      { name: "a", description: "first" },
      { name: "b", description: "" },
    ]);
    await using client = await NbdClient.connect(at(socket, "a"));
    assert.equal(client.info.name, "a");
    assert.equal(client.info.description, "first");
    assert.equal(client.info.maximumPayload, 32 << 20);
    assert.ok(client.readOnly && client.canMultiConn);
    await assert.rejects(NbdClient.connect(at(socket, "c")), NotFoundError);
    await assert.rejects(NbdClient.connect(at(socket)), NotFoundError);
  }));

Deno.test("NbdClient: writes like a disk", () =>
  withServer({}, async (server, socket) => {
    const source = new MemoryBlockSource(new Uint8Array(3_000_000));
    server.addExport({ name: "", source, readOnly: false });
    await using client = await NbdClient.connect(at(socket));
    const shadow = new Uint8Array(source.size);
    const random = seededRandom(7);
    for (let i = 0; i < 100; i++) {
      const offset = Math.floor(random() * shadow.length);
      const most = Math.min(shadow.length - offset, 600_000);
      const length = 1 + Math.floor(random() ** 2 * (most - 1));
      const kind = Math.floor(random() * 5);
      if (kind === 0) {
        await client.writeZeroes(offset, length, { noHole: i % 2 === 0 });
        shadow.fill(0, offset, offset + length);
      } else if (kind === 1) {
        await client.trim(offset, length);
        shadow.fill(0, offset, offset + length);
      } else if (kind === 2) {
        const dst = new Uint8Array(length);
        await client.pread(dst, offset);
        assert.ok(equalBytes(dst, shadow.subarray(offset, offset + length)));
      } else {
        const bytes = seededBytes(length, i);
        await client.pwrite(bytes, offset, { fua: kind === 3 });
        shadow.set(bytes, offset);
      }
    }
    await client.flush();
    assert.ok(equalBytes(source.bytes, shadow));
    source.failure = Object.assign(new Error(), { code: "ENOSPC" });
    await assert.rejects(client.pwrite(new Uint8Array(1), 0), { errno: 28 });
    await client.pwrite(new Uint8Array(1), 0);
  }));

Deno.test("NbdClient: asks for block status and cache", () =>
  withServer({}, async (server, socket) => {
    const source = new SparseSource(content);
    server.addExport({ name: "", source });
    await using client = await NbdClient.connect(at(socket));
    const extents = await client.blockStatus(0, client.size);
    assert.equal(extents.at(-1)!.offset + extents.at(-1)!.length, client.size);
    const one = await client.blockStatus(0, client.size, { reqOne: true });
    assert.deepEqual(one, [{ offset: 0, length: 102400, kind: "data" }]);
    await client.cache(0, client.size);
    assert.ok(source.reads > 0);
    const simple = { structured: false };
    await using old = await NbdClient.connect(at(socket), simple);
    await assert.rejects(old.blockStatus(0, 10), UnsupportedError);
  }));

Deno.test("NbdClient: a request past its deadline ends the connection", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    server.addExport({ name: "", source });
    // It holds for the handshake, too.
    const options = { deadlineMs: 1000 };
    await using client = await NbdClient.connect(at(socket), options);
    const reads = [0, 1].map((i) => client.pread(new Uint8Array(8), i));
    for (const read of reads) await assert.rejects(soon(read), DeadlineError);
    await assert.rejects(client.pread(new Uint8Array(8), 0), DeadlineError);
  }));

Deno.test("NbdClient: a cancelled read leaves its buffer and the others alone", () =>
  withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    server.addExport({ name: "", source });
    await using client = await NbdClient.connect(at(socket));
    const control = new AbortController();
    const dst = new Uint8Array(1000);
    const gone = client.pread(dst, 5, { signal: control.signal });
    const other = new Uint8Array(1000);
    const going = client.pread(other, 7);
    while (source.gates.size < 2) await new Promise((r) => setTimeout(r, 1));
    control.abort();
    await assert.rejects(gone, CancelledError);
    source.open(5);
    source.open(7);
    await soon(going);
    assert.ok(equalBytes(other, content.subarray(7, 1007)));
    assert.ok(dst.every((b) => b === 0));
  }));

/** A server that says given bytes, each after something came in. */
async function withLiar(
  says: Uint8Array[],
  run: (socket: string) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir();
  const socket = `${dir}/s`;
  const listener = Deno.listen({ transport: "unix", path: socket });
  const serving = (async () => {
    using conn = await listener.accept();
    const into = new Uint8Array(65536);
    try {
      for (const [i, bytes] of says.entries()) {
        if (i > 0 && await conn.read(into) === null) return;
        await conn.write(bytes);
      }
      while (await conn.read(into) !== null);
    } catch {
      // The client hung up in the middle, as it should.
    }
  })();
  try {
    await run(socket);
  } finally {
    listener.close();
    await serving.catch(() => {});
    await Deno.remove(dir, { recursive: true });
  }
}

const GREETING = pack("NBDMAGICIHAVEOPT", [3, 2]);
const optionReply = (option: number, type: number, data = pack()) =>
  pack([0x3e889045565a9n, 8], [option, 4], [type, 4], [data.length, 4], data);
const INFO = optionReply(7, 3, pack([0, 2], [1_000_000, 8], [0x1, 2]));
/** Client flags come with the first option, so one answer is for both. */
const STRUCTURED = optionReply(8, 1);
const CONTEXT = pack(
  optionReply(10, 4, pack([1, 4], "base:allocation")),
  optionReply(10, 1),
);
const GO = pack(INFO, optionReply(7, 1));

Deno.test("NbdClient: a server that breaks the handshake is refused", async () => {
  const hello = [GREETING, pack(STRUCTURED)];
  const cases: [string, Uint8Array[]][] = [
    ["magic", [pack("NBDMAGIC", [0x00420281861253n, 8], [3, 2])]],
    ["not fixed", [pack("NBDMAGICIHAVEOPT", [0, 2])]],
    ["reply magic", [GREETING, pack([1, 8], [8, 4], [1, 4], [0, 4])]],
    ["reply to another option", [GREETING, optionReply(9, 1)]],
    ["long reply", [
      GREETING,
      pack(optionReply(8, 1).subarray(0, 16), [
        0x7fffffff,
        4,
      ]),
    ]],
    ["odd reply", [GREETING, optionReply(8, 2)]],
    ["no size", [...hello, CONTEXT, optionReply(7, 1)]],
    ["short info", [...hello, CONTEXT, optionReply(7, 3, pack([0, 2]))]],
    ["size over 2^53", [
      ...hello,
      CONTEXT,
      optionReply(7, 3, pack([0, 2], [2n ** 53n, 8], [1, 2])),
    ]],
    ["block size 0", [
      ...hello,
      CONTEXT,
      optionReply(7, 3, pack([3, 2], [0, 4], [0, 4], [0, 4])),
    ]],
  ];
  for (const [what, says] of cases) {
    await withLiar(says, (socket) =>
      assert.rejects(
        soon(NbdClient.connect(at(socket), { deadlineMs: 1000 })),
        FormatError,
        what,
      ));
  }
  await withLiar([], (socket) =>
    assert.rejects(
      NbdClient.connect(at(socket), { deadlineMs: 30 }),
      DeadlineError,
    ));
});

/** A chunk of a reply to the first request: slot 0, generation 0. */
const chunk = (flags: number, type: number, data: Uint8Array, cookie = 0n) =>
  pack(
    [0x668e33ef, 4],
    [flags, 2],
    [type, 2],
    [cookie, 8],
    [data.length, 4],
    data,
  );

Deno.test("NbdClient: a server that breaks a reply is hung up on", async () => {
  const data = (offset: number, length: number) =>
    pack([offset, 8], new Uint8Array(length));
  const hole = (offset: number, length: number) =>
    pack([offset, 8], [length, 4]);
  const cases: [string, Uint8Array][] = [
    ["magic", pack([0x12345678, 4], new Uint8Array(16))],
    ["simple reply to a read", pack([0x67446698, 4], [0, 4], [0, 8])],
    ["other cookie", chunk(1, 1, data(100, 100), 1n)],
    ["other generation", chunk(1, 1, data(100, 100), 1n << 32n)],
    ["data before", chunk(1, 1, data(99, 100))],
    ["data behind", chunk(1, 1, data(101, 100))],
    ["too much data", chunk(1, 1, data(100, 101))],
    ["no data", chunk(1, 1, data(100, 0))],
    ["too little data", chunk(1, 1, data(100, 99))],
    ["nothing", chunk(1, 0, pack())],
    ["none chunk that goes on", chunk(0, 0, pack())],
    ["overlap", pack(chunk(0, 1, data(100, 60)), chunk(1, 2, hole(159, 41)))],
    ["gap", pack(chunk(0, 1, data(100, 60)), chunk(1, 2, hole(161, 39)))],
    ["twice", pack(chunk(0, 1, data(100, 100)), chunk(1, 1, data(100, 100)))],
    ["hole of nothing", chunk(1, 2, hole(100, 0))],
    ["hole of wrong length", chunk(1, 2, pack([100, 8]))],
    ["large hole", chunk(1, 2, hole(100, 0xffffffff))],
    ["block status", chunk(1, 5, pack([1, 4], [100, 4], [0, 4]))],
    ["unknown chunk", chunk(1, 77, pack())],
    ["error of 0", chunk(1, 0x8001, pack([0, 4], [0, 2]))],
    ["long error text", chunk(1, 0x8001, pack([5, 4], [9, 2]))],
  ];
  for (const [what, reply] of cases) {
    await withLiar(
      [GREETING, STRUCTURED, CONTEXT, GO, reply],
      async (socket) => {
        await using client = await NbdClient.connect(at(socket));
        const read = client.pread(new Uint8Array(100), 100);
        await assert.rejects(soon(read, what), FormatError, what);
        await assert.rejects(client.flush(), FormatError, what);
      },
    );
  }
});

Deno.test("NbdClient: odd replies that the protocol allows are taken", async () => {
  const reply = pack(
    chunk(0, 2, pack([150, 8], [10, 4])),
    chunk(0, 1, pack([160, 8], new Uint8Array(40).fill(2))),
    chunk(0, 1, pack([100, 8], new Uint8Array(50).fill(1))),
    chunk(1, 0, pack()),
  );
  await withLiar([GREETING, STRUCTURED, CONTEXT, GO, reply], async (socket) => {
    await using client = await NbdClient.connect(at(socket));
    const dst = new Uint8Array(100).fill(9);
    await soon(client.pread(dst, 100));
    const want = new Uint8Array(100).fill(1, 0, 50).fill(2, 60);
    assert.deepEqual(dst, want);
  });
  const failing = pack(
    chunk(0, 1, pack([100, 8], new Uint8Array(50))),
    chunk(0, 0x8002, pack([28, 4], [3, 2], "why", [160, 8])),
    chunk(1, 0, pack()),
  );
  await withLiar(
    [GREETING, STRUCTURED, CONTEXT, GO, failing],
    async (socket) => {
      await using client = await NbdClient.connect(at(socket));
      const read = client.pread(new Uint8Array(100), 100);
      await assert.rejects(soon(read), { errno: 28, message: /ENOSPC: why/ });
    },
  );
});

Deno.test("NbdClient: falls back to EXPORT_NAME and simple replies", async () => {
  const UNSUP = 0x80000001;
  const says = [
    pack("NBDMAGICIHAVEOPT", [1, 2]),
    optionReply(8, UNSUP),
    optionReply(7, UNSUP),
    pack([1_000_000, 8], [0x3, 2], new Uint8Array(124)),
    pack([0x67446698, 4], [0, 4], [0, 8], new Uint8Array(100).fill(4)),
  ];
  await withLiar(says, async (socket) => {
    await using client = await NbdClient.connect(at(socket));
    assert.deepEqual([client.size, client.readOnly], [1_000_000, true]);
    const dst = new Uint8Array(100);
    await soon(client.pread(dst, 100));
    assert.ok(dst.every((b) => b === 4));
  });
});

Deno.test("NbdClient: a read that fails gives its buffer back when nothing more comes into it", async () => {
  const simple = (error: number, cookie: bigint, data = pack()) =>
    pack([0x67446698, 4], [error, 4], [cookie, 8], data);
  const half = new Uint8Array(128 * 1024).fill(7);
  const says = [
    GREETING,
    GO,
    pack(simple(5, 0n), simple(0, 0x1_0000_0001n, half)),
    // After the flush, which is the third request and in the first one's place.
    pack(half, simple(0, 0x2_0000_0000n)),
  ];
  await withLiar(says, async (socket) => {
    await using client = await NbdClient.connect(at(socket), {
      structured: false,
    });
    const dst = new Uint8Array(512 * 1024);
    let settled = false;
    const read = client.pread(dst, 0).finally(() => settled = true);
    read.catch(() => {});
    await until(() => dst[256 * 1024] === 7);
    assert.equal(settled, false);
    await soon(client.flush());
    await assert.rejects(soon(read), { errno: 5 });
    assert.ok(dst.subarray(256 * 1024).every((b) => b === 7));
  });
});

Deno.test("NbdClient: a server that hangs up fails what waits", async () => {
  const cut = chunk(1, 1, pack([100, 8], new Uint8Array(100))).subarray(0, 60);
  await withServer({}, async (server, socket) => {
    const source = new GatedSource(content);
    server.addExport({ name: "", source });
    await using client = await NbdClient.connect(at(socket));
    const read = client.pread(new Uint8Array(8), 0);
    read.catch(() => {});
    while (source.gates.size < 1) await new Promise((r) => setTimeout(r, 1));
    await server.stop(0);
    await assert.rejects(soon(read), ObdError);
  });
  await withLiar([GREETING, STRUCTURED, CONTEXT, GO, cut], async (socket) => {
    // It holds for the handshake, too.
    const options = { deadlineMs: 1000 };
    await using client = await NbdClient.connect(at(socket), options);
    await assert.rejects(
      soon(client.pread(new Uint8Array(100), 100)),
      DeadlineError,
    );
  });
});

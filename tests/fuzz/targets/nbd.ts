/** NBD: a server that hears a spoiled client, and a client that hears a spoiled server. */

import {
  ByteBudget,
  type LogFields,
  type Logger,
  MemorySource,
  ObdError,
} from "../../../lib/io/mod.ts";
import { BufferPool } from "../../../lib/nbd/buffer_pool.ts";
import { ClientHandshake } from "../../../lib/nbd/client_handshake.ts";
import { ServerConnection } from "../../../lib/nbd/connection.ts";
import { ExportRegistry } from "../../../lib/nbd/exports.ts";
import {
  type PendingReply,
  readReplies,
} from "../../../lib/nbd/reply_reader.ts";
import { type ByteStream, ReceiveBuffer } from "../../../lib/nbd/stream.ts";
import { MemoryBlockSource } from "../../nbd/sources.ts";
import {
  contextData,
  infoData,
  option,
  pack,
  request,
} from "../../nbd/peer.ts";
import type { Ranges } from "../mutant.ts";
import { Random } from "../random.ts";
import { must, type Seed, type Target } from "../target.ts";

/** A peer that says what it has to say, in pieces, and takes anything. */
class Script implements ByteStream {
  /** Bytes that it was told. */
  written = 0;
  readonly heard: Uint8Array[] = [];
  readonly #bytes: Uint8Array;
  readonly #random: Random;
  #at = 0;
  #closed = false;

  constructor(bytes: Uint8Array, random: Random) {
    this.#bytes = bytes;
    this.#random = random;
  }

  async read(into: Uint8Array): Promise<number | null> {
    await Promise.resolve();
    if (this.#closed) throw new Deno.errors.BadResource("Closed");
    const left = this.#bytes.length - this.#at;
    if (left === 0) return null;
    const size = Math.min(left, into.length, this.#random.length(4096));
    into.set(this.#bytes.subarray(this.#at, this.#at + size));
    this.#at += size;
    return size;
  }

  async write(bytes: Uint8Array): Promise<number> {
    await Promise.resolve();
    if (this.#closed) throw new Deno.errors.BadResource("Closed");
    this.written += bytes.length;
    this.heard.push(bytes.slice());
    return bytes.length;
  }

  close(): void {
    this.#closed = true;
  }
}

/** Logs that the server may write. */
const KNOWN = new Set([
  "nbd-connection-failed",
  "nbd-connection-lost",
  "nbd-request-failed",
]);

/** An event or error that only a defect makes. */
class Strict implements Logger {
  problem: string | undefined;

  debug(event: string, fields: LogFields = {}): void {
    this.#take(event, fields);
  }
  info(event: string, fields: LogFields = {}): void {
    this.#take(event, fields);
  }
  warn(event: string, fields: LogFields = {}): void {
    this.#take(event, fields);
  }
  error(event: string, fields: LogFields = {}): void {
    this.#take(event, fields);
  }

  #take(event: string, fields: LogFields): void {
    const text = String(fields.error ?? "");
    if (
      !KNOWN.has(event) ||
      /DataView|Internal error|undefined|not a function|Invalid .*length/.test(
        text,
      )
    ) this.problem = `${event}: ${text}`;
  }
}

const CONTENT = new Uint8Array(100_000).map((_, i) => i * 31 >>> 4);
const MIB = 1024 * 1024;

/** Serves one spoiled conversation; the device must hold nothing that no write could put there. */
async function serve(bytes: Uint8Array, random: Random): Promise<void> {
  const exports = new ExportRegistry();
  exports.add({
    name: "app",
    source: new MemoryBlockSource(CONTENT.slice()),
    readOnly: false,
  });
  exports.add({ name: "other", source: new MemorySource(CONTENT) });
  const logger = new Strict();
  const script = new Script(bytes, random);
  const connection = new ServerConnection(script, {
    exports,
    logger,
    requestDeadlineMs: 60_000,
    handshakeDeadlineMs: 10_000,
    writeStallMs: 120_000,
    maxInFlight: 64,
    maxInFlightBytes: 64 * MIB,
    budget: new ByteBudget(256 * MIB),
    pool: new BufferPool(),
    onRead: undefined,
  });
  await connection.closed;
  must(logger.problem === undefined, `Logged ${logger.problem}`);
  must(script.written >= 18, "No greeting was sent");
}

const REQUESTS = pack(
  request({ type: 0, offset: 10, length: 5000 }),
  request({ type: 0, offset: 99_000, length: 1000, flags: 4 }),
  request({ type: 7, length: 5000 }),
  request({ type: 1, length: 300, payload: new Uint8Array(300) }),
  request({ type: 6, offset: 512, length: 1024 }),
  request({ type: 4, offset: 512, length: 1024 }),
  request({ type: 5, length: 5000 }),
  request({ type: 3 }),
  request({ type: 2 }),
);

const CONVERSATIONS: [name: string, bytes: Uint8Array][] = [
  [
    "structured",
    pack(
      [3, 4],
      option(8),
      option(9, contextData("app", ["base:"])),
      option(10, contextData("app", ["base:allocation"])),
      option(6, infoData("app", [1, 2, 3])),
      option(3),
      option(7, infoData("app")),
      REQUESTS,
    ),
  ],
  ["simple", pack([3, 4], option(7, infoData("app")), REQUESTS)],
  ["old", pack([1, 4], option(1, new TextEncoder().encode("app")), REQUESTS)],
  ["read-only", pack([3, 4], option(7, infoData("other")), REQUESTS)],
];

function serverSeeds(): Seed[] {
  return CONVERSATIONS.map(([name, bytes]): Seed => ({
    name,
    bytes,
    hot: [[0, 64], [bytes.length - REQUESTS.length, bytes.length]] as Ranges,
    read: ({ bytes }, random) => serve(bytes, random),
  }));
}

// ---- the client -------------------------------------------------------------------

/** What a server says in answer to {@linkcode CONVERSATIONS}, or to our client: recorded. */
async function record(bytes: Uint8Array, random: Random): Promise<Uint8Array> {
  const exports = new ExportRegistry();
  exports.add({
    name: "app",
    source: new MemoryBlockSource(CONTENT.slice()),
    readOnly: false,
    description: "a device",
  });
  const script = new Script(bytes, random);
  await new ServerConnection(script, {
    exports,
    logger: new Strict(),
    requestDeadlineMs: 60_000,
    handshakeDeadlineMs: 10_000,
    writeStallMs: 120_000,
    maxInFlight: 64,
    maxInFlightBytes: 64 * MIB,
    budget: new ByteBudget(256 * MIB),
    pool: new BufferPool(),
    onRead: undefined,
  }).closed;
  return pack(...script.heard);
}

const READ = 0;
const BLOCK_STATUS = 7;
/** Of the requests under way, by slot: {@linkcode clientHalf}. */
const REQUEST_TYPES = [READ, READ, BLOCK_STATUS, 3, READ, 2];
const READ_LENGTH = 5000;

/** Takes a server's half of a conversation as our client does. */
async function listen(
  bytes: Uint8Array,
  how: "structured" | "simple" | "list",
  random: Random,
): Promise<void> {
  const stream = new Script(bytes, random);
  const rx = new ReceiveBuffer(stream, 256 * 1024);
  const talk = new ClientHandshake(stream, rx);
  await talk.greet();
  if (how === "list") {
    for (const { name } of await talk.list()) must(name.length >= 0, "No name");
    return;
  }
  const structured = how === "structured";
  const info = await talk.go("app", { structured, allocation: true });
  must(
    Number.isSafeInteger(info.size) && info.size >= 0,
    `The size is ${info.size}`,
  );
  const guard = new Uint8Array(READ_LENGTH + 32).fill(0xa5);
  const asked = new Map<number, PendingReply>(
    REQUEST_TYPES.map((type, slot) => [slot, {
      type,
      offset: slot * 100,
      length: READ_LENGTH,
      dst: guard.subarray(16, 16 + READ_LENGTH),
      receiving: false,
      coverage: undefined,
      extents: undefined,
      error: 0,
      errorMessage: "",
    }]),
  );
  await readReplies(rx, {
    find: (hi, lo) => hi === 0 ? asked.get(lo) : undefined,
    finish: (pending, slot) => {
      asked.delete(slot);
      for (const { offset, length } of pending.extents ?? []) {
        must(offset >= 0 && length > 0, "An extent is empty");
      }
    },
    isRead: ({ type }) => type === READ,
    isBlockStatus: ({ type }) => type === BLOCK_STATUS,
    structured: info.structured,
    allocationId: info.allocationId,
  });
  const edges = [...guard.subarray(0, 16), ...guard.subarray(-16)];
  must(edges.every((byte) => byte === 0xa5), "Wrote outside of a buffer");
}

/** What our client asks: the server's answers to it are the seed. */
function clientHalf(structured: boolean): Uint8Array {
  const cookie = (slot: number) => BigInt(slot);
  return pack(
    [3, 4],
    ...(structured
      ? [
        option(8),
        option(10, contextData("app", ["base:allocation"])),
      ]
      : []),
    option(7, infoData("app", [1, 2, 3])),
    request({ type: 0, offset: 0, length: 5000, cookie: cookie(0) }),
    request({ type: 0, offset: 100, length: 5000, cookie: cookie(1) }),
    ...(structured
      ? [request({ type: 7, offset: 200, length: 5000, cookie: cookie(2) })]
      : []),
    request({ type: 3, cookie: cookie(3) }),
    request({ type: 0, offset: 2 ** 40, length: 10, cookie: cookie(4) }),
    request({ type: 2 }),
  );
}

/** A chunk of a structured reply to the read or block status in a slot. */
function chunk(
  slot: number,
  type: number,
  data: Uint8Array,
  done = false,
): Uint8Array {
  return pack(
    [0x668e33ef, 4],
    [done ? 1 : 0, 2],
    [type, 2],
    [slot, 8],
    [data.length, 4],
    data,
  );
}

/** Reads answered in pieces out of order, holes, errors with and without an offset. */
const CHUNKS = pack(
  chunk(1, 1, pack([3100, 8], new Uint8Array(2000).fill(2))),
  chunk(0, 1, pack([0, 8], new Uint8Array(1000).fill(1))),
  chunk(1, 2, pack([100, 8], [3000, 4]), true),
  chunk(0, 2, pack([1000, 8], [3000, 4])),
  chunk(0, 1, pack([4000, 8], new Uint8Array(1000).fill(3)), true),
  chunk(2, 5, pack([1, 4], [512, 4], [3, 4], [4488, 4], [0, 4])),
  chunk(2, 0, new Uint8Array(0), true),
  chunk(4, 1, pack([400, 8], new Uint8Array(100))),
  chunk(4, 0x8002, pack([5, 4], [3, 2], "bad", [500, 8])),
  chunk(4, 0x8001, pack([5, 4], [5, 2], "worse"), true),
  chunk(3, 0, new Uint8Array(0), true),
);

/** A server that knows neither structured replies nor GO. */
function oldServer(greeting: Uint8Array, structured: boolean): Uint8Array {
  const unsupported = (option: number) =>
    pack([0x3e889045565a9n, 8], [option, 4], [0x80000001, 4], [0, 4]);
  const simple = (slot: number, error: number, length: number) =>
    pack([0x67446698, 4], [error, 4], [slot, 8], new Uint8Array(length));
  return pack(
    greeting,
    ...(structured ? [unsupported(8)] : []),
    unsupported(7),
    pack([100_000, 8], [1, 2]),
    simple(1, 0, READ_LENGTH),
    simple(3, 0, 0),
    simple(0, 5, 0),
    simple(4, 0, READ_LENGTH),
  );
}

async function clientSeeds(random: Random): Promise<Seed[]> {
  const seed = (
    name: string,
    how: "structured" | "simple" | "list",
    bytes: Uint8Array,
  ): Seed => ({
    name,
    bytes,
    hot: [[0, 18], [18, Math.min(600, bytes.length)], [
      Math.max(0, bytes.length - CHUNKS.length),
      bytes.length,
    ]],
    async read({ bytes }, random) {
      try {
        await listen(bytes, how, random);
      } catch (error) {
        // As the runtime says that a connection is gone.
        if (error instanceof Deno.errors.BadResource) {
          throw new ObdError("state", "Closed", { cause: error });
        }
        throw error;
      }
    },
  });
  const options = await record(
    pack(
      [3, 4],
      option(8),
      option(10, contextData("app", ["base:allocation"])),
      option(7, infoData("app", [1, 2, 3])),
    ),
    random,
  );
  const greeting = options.slice(0, 18);
  return [
    seed("structured", "structured", await record(clientHalf(true), random)),
    seed("simple", "simple", await record(clientHalf(false), random)),
    seed("list", "list", await record(pack([3, 4], option(3)), random)),
    seed("chunks", "structured", pack(options, CHUNKS)),
    seed("old", "structured", oldServer(greeting, true)),
    seed("old, simple", "simple", oldServer(greeting, false)),
  ];
}

/** Targets of this file. */
export const NBD_TARGETS: Target[] = [
  {
    name: "nbd-server",
    summary: "the NBD server: handshake and transmission",
    weight: 60,
    load: () => Promise.resolve(serverSeeds()),
  },
  {
    name: "nbd-client",
    summary: "the NBD client: handshake and replies",
    weight: 60,
    load: () => clientSeeds(new Random(0, "nbd-client")),
  },
];

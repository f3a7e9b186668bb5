import { deepEqual, equal, ok } from "node:assert/strict";
import { readBytes } from "../../lib/io/mod.ts";
import {
  blobFromBytes,
  RegistryClient,
  sha256Digest,
} from "../../lib/registry/mod.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import {
  collect,
  FakeClock,
  onlyCredentials,
  patternBytes,
} from "./helpers.ts";

/** Passes connections on to a port and cuts them by plan. */
class CuttingRelay implements AsyncDisposable {
  /** For each new connection: bytes until the cut, each way. */
  readonly plan: { toServer?: number; toClient?: number }[] = [];
  readonly #listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #target: number;
  readonly #open = new Set<Deno.Conn>();
  readonly #running: Promise<unknown>[] = [];
  connections = 0;

  constructor(target: string) {
    this.#target = Number(target.split(":")[1]);
    this.#running.push(this.#accept());
  }

  get host(): string {
    return `127.0.0.1:${(this.#listener.addr as Deno.NetAddr).port}`;
  }

  async #accept(): Promise<void> {
    for await (const client of this.#listener) {
      this.connections++;
      const cut = this.plan.shift() ?? {};
      const server = await Deno.connect({
        hostname: "127.0.0.1",
        port: this.#target,
      });
      const close = () => {
        for (const conn of [client, server]) {
          if (this.#open.delete(conn)) conn.close();
        }
      };
      this.#open.add(client).add(server);
      this.#running.push(
        copy(client, server, cut.toServer ?? Infinity).finally(close),
        copy(server, client, cut.toClient ?? Infinity).finally(close),
      );
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    for (const conn of this.#open) conn.close();
    this.#open.clear();
    await Promise.all(this.#running);
  }
}

async function copy(
  from: Deno.Conn,
  to: Deno.Conn,
  limit: number,
): Promise<void> {
  const buffer = new Uint8Array(16 * 1024);
  let left = limit;
  try {
    while (left > 0) {
      const length = await from.read(buffer);
      if (length === null) return;
      const part = buffer.subarray(0, Math.min(length, left));
      left -= part.length;
      for (let at = 0; at < part.length;) {
        at += await to.write(part.subarray(at));
      }
    }
  } catch {
    // The other direction has closed both.
  }
}

interface Setup extends AsyncDisposable {
  server: RegistryServer;
  relay: CuttingRelay;
  client: RegistryClient;
}

async function start(): Promise<Setup> {
  const server = await RegistryServer.start();
  const relay = new CuttingRelay(server.host);
  const client = new RegistryClient({
    clock: new FakeClock(),
    credentials: onlyCredentials(),
  });
  return {
    server,
    relay,
    client,
    async [Symbol.asyncDispose]() {
      await client[Symbol.asyncDispose]();
      await relay[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

const CONTENT = patternBytes(1_000_000);

Deno.test("reads survive connections that are cut anywhere", async () => {
  await using s = await start();
  const blob = await s.server.putBlob("app", CONTENT);
  // No byte, inside the request, inside the headers, inside the body.
  const cuts = [
    { toClient: 0 },
    { toServer: 20 },
    { toClient: 100 },
    { toClient: 500_000 },
  ];
  s.relay.plan.push(...cuts);
  const repository = s.client.open(s.relay.host, "app");
  deepEqual(await collect(repository.fetchBlob(blob)), CONTENT);
  equal(s.relay.connections, 5);
  s.relay.plan.push(...cuts);
  const source = await repository.openBlob(blob);
  for (let i = 0; i < 5; i++) {
    deepEqual(
      await readBytes(source, 100_000, 700_000),
      CONTENT.subarray(100_000, 800_000),
    );
  }
});

Deno.test("a read that tells its progress tells of bytes that stay, also where connections are cut", async () => {
  await using s = await start();
  const blob = await s.server.putBlob("app", CONTENT);
  s.relay.plan.push({ toClient: 300_000 }, { toClient: 0 }, {
    toClient: 200_000,
  });
  const repository = s.client.open(s.relay.host, "app");
  const source = await repository.openBlob(blob);
  const dst = new Uint8Array(900_000);
  let told = 0;
  let times = 0;
  await source.preadProgressive!(dst, 50_000, (available) => {
    ok(available > told);
    deepEqual(
      dst.subarray(told, available),
      CONTENT.subarray(50_000 + told, 50_000 + available),
    );
    // Whoever writes there again would be seen at the end.
    dst.fill(0xee, told, available);
    told = available;
    times++;
  });
  equal(told, dst.length);
  ok(times > 3);
  ok(dst.every((byte) => byte === 0xee));
  equal(s.relay.connections, 4);
});

Deno.test("a blob whose last byte came before its connection broke is whole", async () => {
  // Of a body in chunks nothing tells that this was the last.
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  const bytes = CONTENT.subarray(0, 1000);
  let connections = 0;
  const serving = (async () => {
    for await (const conn of listener) {
      connections++;
      await conn.read(new Uint8Array(4096));
      const head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" +
        `${bytes.length.toString(16)}\r\n`;
      for (const part of [new TextEncoder().encode(head), bytes]) {
        await conn.write(part);
      }
      conn.close();
    }
  })();
  try {
    await using client = new RegistryClient({
      clock: new FakeClock(),
      credentials: onlyCredentials(),
    });
    const digest = sha256Digest(bytes);
    const blob = { mediaType: "x", digest, size: bytes.length };
    const repository = client.open(`127.0.0.1:${port}`, "app");
    deepEqual(await collect(repository.fetchBlob(blob)), bytes);
    equal(connections, 1);
  } finally {
    listener.close();
    await serving;
  }
});

for (const [seed, size] of [[20, 100_000], [21, 20_000_000]] as const) {
  Deno.test(`uploads survive connections that are cut anywhere: ${size} bytes`, async () => {
    await using s = await start();
    const repository = s.client.open(s.relay.host, "app");
    const bytes = patternBytes(size, seed);
    const blob = {
      mediaType: "application/octet-stream",
      digest: sha256Digest(bytes),
      size,
    };
    // Inside the first request, half through the content, inside an answer.
    s.relay.plan.push({ toServer: 100 }, { toServer: size / 2 }, {
      toClient: 150,
    });
    await repository.pushBlob(blob, blobFromBytes(bytes));
    ok(s.server.hasBlob("app", blob.digest));
    equal(s.relay.plan.length, 0);
    ok(s.relay.connections >= 4);
    equal(sha256Digest(await collect(repository.fetchBlob(blob))), blob.digest);
  });
}

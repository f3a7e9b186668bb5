/** What `overlaybd.json` says about registries: a credential service, a P2P agent, a client certificate. */

import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import type { Logger } from "../../lib/io/mod.ts";
import { readBytes } from "../../lib/io/mod.ts";
import {
  type CredentialService,
  openRepository,
  RegistryClient,
} from "../../lib/registry/mod.ts";
import { loadHostTls } from "../../lib/registry/tls.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { onlyCredentials, withTempDir } from "./helpers.ts";

function keepingLogger(): Logger & { lines: string[] } {
  const lines: string[] = [];
  const keep = (event: string, fields = {}) =>
    void lines.push(`${event} ${JSON.stringify(fields)}`);
  return { lines, debug: keep, info: keep, warn: keep, error: keep };
}

/** A credential service that keeps what it was asked. */
class Service implements AsyncDisposable {
  readonly asked: string[] = [];
  readonly #server: Deno.HttpServer;
  answer: () => Response | Promise<Response>;

  constructor(host: string, socket?: string) {
    this.answer = () =>
      Response.json({
        traceId: "",
        success: true,
        data: { auths: { [host]: { auth: btoa("ann:pw") } } },
      });
    const handler = (request: Request) => {
      const { pathname, searchParams } = new URL(request.url);
      this.asked.push(`${pathname} ${searchParams.get("remote_url")}`);
      return this.answer();
    };
    const onListen = () => {};
    this.#server = socket === undefined
      ? Deno.serve({ hostname: "127.0.0.1", port: 0, onListen }, handler)
      : Deno.serve({ path: socket, onListen }, handler);
  }

  get url(): string {
    const { port } = this.#server.addr as Deno.NetAddr;
    return `http://127.0.0.1:${port}/creds`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

/** Reads a blob with the credentials that a service gives. */
async function pull(
  server: RegistryServer,
  service: CredentialService,
  logger?: Logger,
): Promise<Uint8Array> {
  const bytes = seededBytes(10_000, 3);
  const blob = await server.putBlob("team/app", bytes);
  await using client = new RegistryClient({
    credentials: onlyCredentials({
      overlaybdService: service,
      ...(logger ? { logger } : {}),
    }),
  });
  await using repository = await openRepository(`${server.host}/team/app`, {
    client,
  });
  await using source = await repository.openBlob(blob);
  deepEqual(await readBytes(source, 100, 50), bytes.slice(100, 150));
  return bytes;
}

for (const mode of ["http", "uds"] as const) {
  Deno.test(`credentials from overlaybd's service, mode ${mode}`, async () => {
    await withTempDir(async (dir) => {
      await using server = await RegistryServer.start({
        auth: { kind: "basic", users: { ann: "pw" } },
      });
      const socket = `${dir}/s.sock`;
      await using service = new Service(
        server.host,
        mode === "uds" ? socket : undefined,
      );
      const path = mode === "uds" ? socket : service.url;
      await pull(server, { mode, path });
      const where = mode === "uds" ? "/auth" : "/creds";
      match(
        service.asked[0]!,
        new RegExp(
          `^${where} https://${server.host}/v2/team/app/blobs/sha256:[0-9a-f]{64}$`,
        ),
      );
    });
  });
}

Deno.test("a credential service that fails is told about, and never quoted", async () => {
  await using server = await RegistryServer.start({
    auth: { kind: "basic", users: { ann: "pw" } },
  });
  await using service = new Service(server.host);
  const cases: [RegExp, () => Response | Promise<Response>][] = [
    [/status 500/, () => new Response("SECRET", { status: 500 })],
    [/no JSON/, () => new Response("SECRET")],
    [/answered that it failed/, () => Response.json({ success: false })],
    [/without \\"data\\"/, () => Response.json({ success: true })],
    [/larger than/, () => new Response("SECRET".repeat(300_000))],
    [
      /did not answer in 200 ms/,
      () =>
        new Promise((resolve) =>
          setTimeout(() => resolve(new Response("")), 400)
        ),
    ],
  ];
  for (const [want, answer] of cases) {
    const logger = keepingLogger();
    service.answer = answer;
    const asked = {
      mode: "http" as const,
      path: service.url,
      // The others answer, on a busy machine not at once.
      timeoutMs: want.source.includes("200 ms") ? 200 : 10_000,
    };
    await rejects(pull(server, asked, logger), /credential service http/);
    const lines = logger.lines.join("\n");
    match(lines, want);
    ok(!lines.includes("SECRET"));
  }
});

function brokenOff(): ReadableStream<Uint8Array> {
  return new ReadableStream({
    pull: (stream) => stream.error(new Error("broken off on purpose")),
  });
}

/** A P2P agent: fetches what its path names. */
class Agent implements AsyncDisposable {
  readonly asked: string[] = [];
  status: number | undefined;
  /** Its answers have less than they say. */
  breaks = false;
  readonly #server = Deno.serve(
    {
      hostname: "127.0.0.1",
      port: 0,
      onListen: () => {},
      onError: () => new Response(null, { status: 500 }),
    },
    async (request) => {
      const { pathname, search } = new URL(request.url);
      const target = pathname.replace(/^\/dadip2p\//, "") + search;
      this.asked.push(`${request.method} ${target}`);
      if (this.status) return new Response("no", { status: this.status });
      const headers = new Headers(request.headers);
      headers.delete("host");
      const answer = await fetch(target, { headers, redirect: "manual" });
      if (!this.breaks) return answer;
      await answer.body?.cancel();
      const { status } = answer;
      return new Response(brokenOff(), { status, headers: answer.headers });
    },
  );

  get address(): string {
    return `127.0.0.1:${this.#server.addr.port}/dadip2p`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

for (const redirect of [false, true]) {
  Deno.test(`blobs come through the P2P agent${redirect ? ", redirected ones too" : ""}`, async () => {
    await using server = await RegistryServer.start({
      redirect,
      auth: { kind: "basic", users: { ann: "pw" } },
    });
    const bytes = seededBytes(300_000, 4);
    const blob = await server.putBlob("a", bytes);
    await using agent = new Agent();
    const logger = keepingLogger();
    let clock = 0;
    await withTempDir(async (dir) => {
      const authFile = `${dir}/auth.json`;
      await Deno.writeTextFile(
        authFile,
        JSON.stringify({ auths: { [server.host]: { auth: btoa("ann:pw") } } }),
      );
      await using client = new RegistryClient({
        peerAddress: agent.address,
        logger,
        credentials: onlyCredentials({ authFile }),
        clock: {
          now: () => clock,
          delay: () => Promise.resolve(),
          random: () => 0.5,
        },
      });
      await using repository = await openRepository(`${server.host}/a`, {
        client,
      });
      const read = async (at: number) => {
        await using source = await repository.openBlob(blob);
        deepEqual(await readBytes(source, at, 99), bytes.slice(at, at + 99));
      };
      await read(5000);
      ok(agent.asked.length > 0);
      ok(agent.asked.every((a) => a.startsWith("GET http://127.0.0.1:")));
      const storage = agent.asked.some((a) => a.includes(server.storageHost));
      equal(storage, redirect);
      // Direct where it fails, with one line; the agent is left alone a while.
      agent.status = 502;
      agent.asked.length = 0;
      await read(7000);
      await read(9000);
      equal(agent.asked.length, 1);
      equal(logger.lines.filter((l) => l.startsWith("P2P agent")).length, 1);
      agent.status = undefined;
      clock += 31_000;
      await read(11_000);
      ok(agent.asked.length > 1);
      // What the agent has not got is no failure of it.
      agent.status = 404;
      await read(13_000);
      equal(logger.lines.filter((l) => l.startsWith("P2P agent")).length, 1);
    });
  });
}

Deno.test("every read of a blob goes through the P2P agent, and none while its bodies break off", async () => {
  await using server = await RegistryServer.start({ redirect: true });
  const bytes = seededBytes(300_000, 5);
  const blob = await server.putBlob("a", bytes);
  await using agent = new Agent();
  const logger = keepingLogger();
  await using client = new RegistryClient({
    peerAddress: agent.address,
    logger,
    credentials: onlyCredentials(),
    limits: { pauseMs: 1 },
  });
  await using repository = await openRepository(`${server.host}/a`, { client });
  await using source = await repository.openBlob(blob);
  const read = async (at: number) =>
    deepEqual(await readBytes(source, at, 99), bytes.slice(at, at + 99));
  await read(5000);
  agent.asked.length = 0;
  await read(7000);
  equal(agent.asked.length, 1);
  ok(agent.asked[0]!.includes(server.storageHost));
  equal(server.requests.filter((r) => r.origin === "storage").length, 2);
  agent.breaks = true;
  await read(9000);
  await read(11_000);
  equal(agent.asked.length, 2);
  equal(logger.lines.filter((l) => l.startsWith("P2P agent")).length, 1);
});

Deno.test("what answers as a P2P agent and is none is left alone", async () => {
  await using server = await RegistryServer.start();
  const bytes = seededBytes(3000, 6);
  const blob = await server.putBlob("a", bytes);
  let asked = 0;
  await using page = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => {
      asked++;
      return new Response("<html>It works!</html>");
    },
  );
  const logger = keepingLogger();
  await using client = new RegistryClient({
    peerAddress: `http://127.0.0.1:${page.addr.port}`,
    logger,
    credentials: onlyCredentials(),
  });
  const source = await client.open(server.host, "a").openBlob(blob);
  for (const at of [100, 200]) {
    deepEqual(await readBytes(source, at, 99), bytes.slice(at, at + 99));
  }
  equal(asked, 1);
  match(logger.lines.join("\n"), /P2P agent failed.*ranges/);
});

Deno.test("a client certificate for all hosts gives way to a host's own", async () => {
  await withTempDir(async (dir) => {
    const pem = (kind: string) =>
      `-----BEGIN ${kind}-----\nAA==\n-----END ${kind}-----\n`;
    const certFile = `${dir}/c.pem`;
    const keyFile = `${dir}/k.pem`;
    await Deno.writeTextFile(certFile, `all ${pem("CERTIFICATE")}`);
    await Deno.writeTextFile(keyFile, pem("PRIVATE KEY"));
    await Deno.mkdir(`${dir}/certs/own.example`, { recursive: true });
    const own = `${dir}/certs/own.example/x`;
    await Deno.writeTextFile(`${own}.cert`, `own ${pem("CERTIFICATE")}`);
    await Deno.writeTextFile(`${own}.key`, pem("PRIVATE KEY"));
    const options = {
      directories: [`${dir}/certs`],
      clientPair: { certFile, keyFile },
    };
    for (const [host, want] of [["own.example", "own"], ["b.example", "all"]]) {
      const { clientCert } = await loadHostTls(host!, options);
      ok(clientCert!.startsWith(want!), host);
    }
  });
});

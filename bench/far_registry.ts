/**
 * A registry that is far away: a process with the registry of the tests on
 * loopback and the latency proxy of `obd bench` in front of it. A process of
 * its own, so that it takes no time of what is measured but the machine's. Blobs
 * are kept in memory and go out without a copy: docker-registry takes five times
 * the CPU, as it reads 4 MiB of a blob for each request, whatever its range.
 *
 * `deno run -A bench/far_registry.ts` prints `{"host":…}`; each line
 * on stdin `{"rttMs":…,"bytesPerSecond":…}` opens another way to it and prints
 * `{"host":…}`, `{"traffic":true}` prints what came over the last way.
 */

import process from "node:process";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { LatencyProxy } from "../cmd/bench/proxy.ts";
import { RegistryServer } from "../tests/testutil/registry_server.ts";

/** A way to the registry. */
export interface FarLink {
  /** Round trip, in ms. */
  rttMs: number;
  /** Undefined: as fast as the machine. */
  bytesPerSecond?: number | undefined;
}

/** What came over a way since it was opened, and what the far side took. */
export interface FarTraffic {
  requests: number;
  connections: number;
  bytes: number;
  /** CPU time of the far side since its start, in seconds: registry and link run on the same machine. */
  cpuSeconds: number;
}

/** A running one. */
export class FarRegistry implements AsyncDisposable {
  /** The registry without a detour. */
  readonly host: string;
  readonly #child: Deno.ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;

  private constructor(
    child: Deno.ChildProcess,
    lines: AsyncIterator<string>,
    host: string,
  ) {
    this.#child = child;
    this.#lines = lines;
    this.#input = child.stdin.getWriter();
    this.host = host;
  }

  static async start(): Promise<FarRegistry> {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", import.meta.filename!],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    const lines = linesOf(child.stdout)[Symbol.asyncIterator]();
    const first = await lines.next();
    return new FarRegistry(child, lines, JSON.parse(first.value!).host);
  }

  /** Opens a way to it; the one before stays open. @returns HOST:PORT. */
  async link(link: FarLink): Promise<string> {
    return (await this.#ask<{ host: string }>(link)).host;
  }

  /** What came over the last way. */
  traffic(): Promise<FarTraffic> {
    return this.#ask({ traffic: true });
  }

  async #ask<T>(question: unknown): Promise<T> {
    await this.#input.write(
      new TextEncoder().encode(`${JSON.stringify(question)}\n`),
    );
    return JSON.parse((await this.#lines.next()).value!);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#input.close();
    await this.#lines.next();
    await this.#child.status;
  }
}

function linesOf(stream: ReadableStream<Uint8Array>): AsyncIterable<string> {
  // deno-lint-ignore no-explicit-any -- the two types of one stream
  return createInterface({ input: Readable.fromWeb(stream as any) });
}

async function serve(): Promise<void> {
  await using server = await RegistryServer.start();
  console.log(JSON.stringify({ host: server.host }));
  const [hostname, port] = server.host.split(":") as [string, string];
  await using proxies = new AsyncDisposableStack();
  let last: LatencyProxy | undefined;
  for await (const line of linesOf(Deno.stdin.readable)) {
    const question = JSON.parse(line) as FarLink & { traffic?: boolean };
    if (question.traffic) {
      const { requests, connections, bytes } = last!.traffic;
      const { user, system } = process.cpuUsage();
      const cpuSeconds = (user + system) / 1e6;
      console.log(
        JSON.stringify({ requests, connections, bytes, cpuSeconds }),
      );
      continue;
    }
    last = proxies.use(
      new LatencyProxy({ hostname, port: Number(port) }, question),
    );
    console.log(JSON.stringify({ host: last.address }));
  }
}

if (import.meta.main) await serve();

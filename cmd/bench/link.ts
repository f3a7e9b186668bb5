/**
 * The registry of a bench: docker-registry in a network namespace of its own,
 * behind a veth pair whose speed tc shapes, and our proxy for the round trip.
 */

import { keepDirect } from "../../lib/image/mod.ts";
import { ObdError } from "../../lib/io/mod.ts";
import { LatencyProxy } from "./proxy.ts";
import { BenchProcess, runTool } from "./process.ts";
import { runProgram, waitUntil } from "../mount_process.ts";

const PORT = 5000;
/** Where a port is looked for; from 32768 on they are the kernel's to give (ip(7), `ip_local_port_range`). */
const FIRST_PORT = 20_000;
const PORT_COUNT = 12_000;
const PORT_ATTEMPTS = 20;
const READY_DEADLINE_MS = 60_000;
/** A connection that is tried while the link comes up may hang. */
const PROBE_DEADLINE_MS = 2000;
/** A token bucket of about 4 ms at 500 Mbit/s; at least one timer tick's worth at the fastest link. */
const BURST = "256kb";
/** Longest queue of the shaper; TCP needs room to fill the link. */
const QUEUE_LATENCY = "50ms";

/** How far away the registry is. */
export interface LinkSettings {
  /** As tc spells rates, e.g. "500mbit"; undefined = as fast as the machine. */
  rate: string | undefined;
  /** Round trip added by the proxy, in ms. */
  rttMs: number;
}

/** A registry that runs behind a link until it is disposed of. */
export interface BenchRegistry extends AsyncDisposable {
  /** HOST:PORT past the link, for preparations. */
  readonly direct: string;
  /** What contenders use. */
  readonly proxy: LatencyProxy;
  /** For people: how the link is made. */
  readonly method: string;
  /** Turns the shaping on. */
  shape(): Promise<void>;
}

/** Bytes per second of a rate like "500mbit". */
export function parseRate(rate: string): number | undefined {
  const parts = /^(\d+(?:\.\d+)?)(kbit|mbit|gbit)$/.exec(rate);
  if (!parts) return undefined;
  const unit = { kbit: 1e3, mbit: 1e6, gbit: 1e9 }[parts[2]!]!;
  const value = Number(parts[1]) * unit / 8;
  return value >= 1000 && value <= 1e11 ? value : undefined;
}

/** How to start one. */
export interface RegistryOptions {
  /** Directory of its content; kept. */
  storage: string;
  /** Directory for its configuration. */
  work: string;
  link: LinkSettings;
  signal: AbortSignal;
}

/**
 * What a bench calls its network; names of interfaces have 15 bytes at most.
 *
 * @param pid Of the bench.
 */
export function networkNames(pid: number) {
  const id = pid % 65536;
  return { id, namespace: `obdb${id}`, outer: `ob${id}h`, inner: `ob${id}r` };
}

/** Starts the registry in a namespace of its own; needs root. */
export async function startRegistry(
  options: RegistryOptions,
): Promise<BenchRegistry> {
  const { work, link, signal } = options;
  await using stack = new AsyncDisposableStack();
  const { id, namespace, outer, inner } = networkNames(Deno.pid);
  // A /30 of 10/8 by process id, so that two benches do not meet.
  const network = `10.${200 + (id >> 14)}.${(id >> 6) & 255}.`;
  const base = (id & 63) * 4;
  const [here, there] = [`${network}${base + 1}`, `${network}${base + 2}`];
  const ip = (...args: string[]) =>
    runTool("set up the network", ["ip", ...args], signal);

  await Deno.mkdir(work, { recursive: true });
  stack.defer(async () => {
    await runProgram("ip", ["netns", "del", namespace]);
  });
  await ip("netns", "add", namespace);
  stack.defer(async () => {
    await runProgram("ip", ["link", "del", outer]);
  });
  await ip("link", "add", outer, "type", "veth", "peer", "name", inner);
  await ip("link", "set", inner, "netns", namespace);
  await ip("addr", "add", `${here}/30`, "dev", outer);
  await ip("link", "set", outer, "up");
  await ip("-n", namespace, "addr", "add", `${there}/30`, "dev", inner);
  await ip("-n", namespace, "link", "set", inner, "up");
  await ip("-n", namespace, "link", "set", "lo", "up");
  keepDirect([there]);

  // Unlike `ip netns exec`, it makes no mount namespace, which would hold all that is mounted now.
  await serveRegistry(stack, options, { hostname: there, port: PORT }, [
    "nsenter",
    `--net=/run/netns/${namespace}`,
  ]);
  const proxy = stack.use(
    new LatencyProxy({ hostname: there, port: PORT }, { rttMs: link.rttMs }),
  );
  const owned = stack.move();
  return {
    direct: `${there}:${PORT}`,
    proxy,
    method: linkMethod(link),
    shape: async () => {
      if (link.rate === undefined) return;
      await runTool("shape the link", [
        "tc",
        "-n",
        namespace,
        "qdisc",
        "replace",
        "dev",
        inner,
        "root",
        "tbf",
        "rate",
        link.rate,
        "burst",
        BURST,
        "latency",
        QUEUE_LATENCY,
      ], signal);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Starts the registry on loopback; the proxy shapes the link too. Needs no root. */
export async function startUserRegistry(
  options: RegistryOptions,
): Promise<BenchRegistry> {
  const { link } = options;
  await using stack = new AsyncDisposableStack();
  await Deno.mkdir(options.work, { recursive: true });
  const target = { hostname: "127.0.0.1", port: freePort() };
  keepDirect([]);
  await serveRegistry(stack, options, target, []);
  const bytesPerSecond = link.rate === undefined
    ? undefined
    : parseRate(link.rate);
  const proxy = stack.use(
    new LatencyProxy(target, { rttMs: link.rttMs, bytesPerSecond }),
  );
  const owned = stack.move();
  return {
    direct: `${target.hostname}:${target.port}`,
    proxy,
    method: [
      "docker-registry on loopback",
      link.rate === undefined
        ? "not shaped"
        : `${link.rate} towards the client by a proxy`,
      roundTripMethod(link),
    ].join(", "),
    shape: () => Promise.resolve(),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/**
 * One that nobody listens at now. Below those that the kernel gives to whoever
 * asks for any: one of these may be somebody else's before the registry has it.
 */
function freePort(): number {
  for (let left = PORT_ATTEMPTS;; left--) {
    const port = FIRST_PORT + Math.floor(Math.random() * PORT_COUNT);
    try {
      Deno.listen({ hostname: "127.0.0.1", port }).close();
      return port;
    } catch (error) {
      if (left === 0 || !(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

/** Starts docker-registry behind some command, and waits until it answers. */
async function serveRegistry(
  stack: AsyncDisposableStack,
  { storage, work, signal }: RegistryOptions,
  { hostname, port }: { hostname: string; port: number },
  prefix: string[],
): Promise<void> {
  const config = `${work}/registry.yml`;
  await Deno.mkdir(storage, { recursive: true });
  await Deno.writeTextFile(
    config,
    registryConfig(storage, `${hostname}:${port}`),
  );
  // It takes these for its configuration, REGISTRY_AUTH_FILE of others too.
  const unset = Object.keys(Deno.env.toObject())
    .filter((name) => name.startsWith("REGISTRY_"))
    .flatMap((name) => ["-u", name]);
  const server = stack.use(
    new BenchProcess([
      ...prefix,
      "env",
      ...unset,
      "docker-registry",
      "serve",
      config,
    ]),
  );
  const isUp = await waitUntil(
    async () => {
      if (server.ended) return true;
      try {
        const answer = await fetch(`http://${hostname}:${port}/v2/`, {
          signal: AbortSignal.timeout(PROBE_DEADLINE_MS),
        });
        await answer.body?.cancel();
        return answer.ok;
      } catch {
        return false;
      }
    },
    READY_DEADLINE_MS,
    signal,
  );
  if (isUp && !server.ended) return;
  throw new ObdError(
    "state",
    `Cannot start docker-registry: ${server.tail || "it does not answer"}`,
  );
}

function registryConfig(storage: string, address: string): string {
  return JSON.stringify({
    version: 0.1,
    log: { level: "error", accesslog: { disabled: true } },
    storage: {
      filesystem: { rootdirectory: storage },
      delete: { enabled: true },
    },
    http: { addr: address },
  });
}

function linkMethod(link: LinkSettings): string {
  return [
    "docker-registry in a network namespace behind a veth pair",
    link.rate === undefined
      ? "not shaped"
      : `tc tbf ${link.rate} burst ${BURST} towards the client`,
    roundTripMethod(link),
  ].join(", ");
}

function roundTripMethod({ rttMs }: LinkSettings): string {
  return rttMs === 0
    ? "counted by a proxy on loopback that adds no delay"
    : `${rttMs} ms round trip by a proxy on loopback (half each way, one more per connection; slow start is not that of a distant host)`;
}

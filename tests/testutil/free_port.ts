/** Servers of others that must be told their port: one that is free when it is chosen may be taken when they come to it. */

import { until } from "./until.ts";

/**
 * Where nobody listens on loopback (compressnet; fetch refuses to ask port 1).
 * Not a port that was listened at and closed: it may be somebody else's by
 * then, and until a child that is between fork and exec lets go of it, whoever
 * connects is let in, to wait for ever.
 */
export const UNUSED_PORT = 2;

const ATTEMPTS = 5;
/** Of `/proc/net/tcp`. */
const LISTENING = "0A";

/** A server that listens. */
export interface Listening {
  child: Deno.ChildProcess;
  port: number;
}

/**
 * Starts a server on loopback and waits until it listens itself.
 *
 * @param start Starts it with a port, and is called again with another one if it ends.
 * @param log A file with what it said, for the error.
 */
export async function startOnFreePort(
  start: (port: number) => Promise<Deno.ChildProcess>,
  log?: string,
): Promise<Listening> {
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const port = freePort();
    const child = await start(port);
    let ended = false;
    child.status.then(() => ended = true);
    try {
      await until(async () => ended || await listens(child.pid, port));
    } catch {
      child.kill("SIGKILL");
      await child.status;
    }
    if (!ended) return { child, port };
  }
  const said = log && await Deno.readTextFile(log).catch(String);
  throw new Error(`the server does not start: ${said?.slice(-2000)}`);
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** Whether it is this process that listens at a port of 127.0.0.1. */
async function listens(pid: number, port: number): Promise<boolean> {
  const address = `0100007F:${port.toString(16).padStart(4, "0")}`;
  const table = (await Deno.readTextFile("/proc/net/tcp")).split("\n");
  const inode = table.map((line) => line.trim().split(/ +/))
    .find((row) => row[1] === address.toUpperCase() && row[3] === LISTENING)
    ?.[9];
  if (inode === undefined) return false;
  try {
    for await (const { name } of Deno.readDir(`/proc/${pid}/fd`)) {
      const link = await Deno.readLink(`/proc/${pid}/fd/${name}`)
        .catch(() => "");
      if (link === `socket:[${inode}]`) return true;
    }
  } catch {
    // It has just ended.
  }
  return false;
}

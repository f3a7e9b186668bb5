/**
 * The HTTP server under the status API. Strangers may connect to its TCP
 * listeners, and the process serves devices: no number of connections, and
 * nobody who dawdles, may cost it the files that it needs.
 *
 * Not `Deno.serve`: that bounds neither, and its promise of an end rejects,
 * which ends the process, when a connection cannot be accepted because there
 * are too many open files (Deno 2.9.6).
 */

import * as http from "node:http";
import type { AddressInfo } from "node:net";
import { errorText, type Logger } from "../lib/io/mod.ts";

/** Connections of one listener; more are closed at once. Three listeners' worth fits into 1,024 files. */
const CONNECTIONS_MAX = 256;
/** For the head of a request. */
const HEAD_DEADLINE_MS = 10_000;
/** For a whole request; not for what answers it, which may build an image. */
const REQUEST_DEADLINE_MS = 30_000;
/** Between two requests of a connection. */
const IDLE_MS = 15_000;
/** For a client to take its answer. */
const TAKE_DEADLINE_MS = 60_000;
/** How often the runtime looks at the first two. */
const CHECK_INTERVAL_MS = 1_000;

/** What answers requests; it has bounds of its own for bodies. */
export interface ApiApp {
  fetch(request: Request): Response | Promise<Response>;
}

/** Bounds other than the defaults, for tests. */
export interface ApiServerLimits {
  connections?: number;
  headDeadlineMs?: number;
  requestDeadlineMs?: number;
}

/** One listening server. */
export class ApiServer {
  readonly #server: http.Server;

  private constructor(server: http.Server) {
    this.#server = server;
  }

  /**
   * Listens at a TCP address, or at the path of a Unix socket.
   *
   * @throws {Error} The runtime's, if the address cannot be had.
   */
  static async listen(
    where: { hostname: string; port: number } | { path: string },
    app: ApiApp,
    log: Logger,
    limits: ApiServerLimits = {},
  ): Promise<ApiServer> {
    const server = http.createServer({
      headersTimeout: limits.headDeadlineMs ?? HEAD_DEADLINE_MS,
      requestTimeout: limits.requestDeadlineMs ?? REQUEST_DEADLINE_MS,
      keepAliveTimeout: IDLE_MS,
      connectionsCheckingInterval: CHECK_INTERVAL_MS,
    }, (incoming, outgoing) => {
      answer(app, incoming, outgoing).catch((error) => {
        log.error("api-request-failed", { error: errorText(error) });
        outgoing.destroy();
      });
    });
    server.maxConnections = limits.connections ?? CONNECTIONS_MAX;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once("error", reject);
    server.listen(
      "path" in where
        ? { path: where.path }
        : { host: where.hostname, port: where.port },
      resolve,
    );
    await promise;
    server.off("error", reject);
    server.on("error", (error) => {
      log.error("api-accept-failed", { error: errorText(error) });
    });
    return new ApiServer(server);
  }

  /** The TCP port. */
  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Lets requests that are being answered end, until a deadline; no new ones. */
  async close(deadlineMs: number): Promise<void> {
    const late = setTimeout(
      () => this.#server.closeAllConnections(),
      deadlineMs,
    );
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeIdleConnections();
    });
    clearTimeout(late);
  }
}

async function answer(
  app: ApiApp,
  incoming: http.IncomingMessage,
  outgoing: http.ServerResponse,
): Promise<void> {
  const request = toRequest(incoming);
  const response = request
    ? await app.fetch(request)
    : new Response(null, { status: 400 });
  for (const [name, value] of response.headers) outgoing.setHeader(name, value);
  // The rest of a body that nobody wanted is not waited for.
  if (!incoming.complete) outgoing.setHeader("connection", "close");
  const late = setTimeout(() => outgoing.destroy(), TAKE_DEADLINE_MS);
  outgoing.once("close", () => clearTimeout(late));
  outgoing.statusCode = response.status;
  if (response.body === null) {
    outgoing.end();
    return;
  }
  const body = new Uint8Array(await response.arrayBuffer());
  outgoing.setHeader("content-length", body.length);
  outgoing.end(body);
}

/** @returns Undefined if the target or the method are none of a `Request`. */
function toRequest(incoming: http.IncomingMessage): Request | undefined {
  const { method = "GET", url = "", rawHeaders } = incoming;
  // A target that begins with two slashes is a path, too.
  const target = url.startsWith("/") ? `http://localhost${url}` : url;
  try {
    const headers = new Headers();
    for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
      headers.append(rawHeaders[i]!, rawHeaders[i + 1]!);
    }
    const hasBody = method !== "GET" && method !== "HEAD";
    return new Request(target, {
      method,
      headers,
      ...(hasBody ? { body: ReadableStream.from(incoming) } : {}),
    });
  } catch {
    return undefined;
  }
}

/** The NBD server: listeners, connections and exports. */

import {
  ByteBudget,
  delay,
  errorText,
  type Logger,
  silentLogger,
} from "../io/mod.ts";
import type * as net from "node:net";
import { type NbdAddress, parseNbdAddress } from "./address.ts";
import { BufferPool } from "./buffer_pool.ts";
import { type ConnectionShared, ServerConnection } from "./connection.ts";
import {
  type ExportOptions,
  ExportRegistry,
  type NbdExport,
} from "./exports.ts";
import { openListener } from "./listen.ts";
import { LogBudget } from "./log_budget.ts";
import { type ByteStream, NodeStream } from "./stream.ts";

/** Settings of an {@linkcode NbdServer}. */
export interface NbdServerOptions {
  logger?: Logger | undefined;
  /** For one request, and for the payload of a write to arrive; then EIO. Default 60,000. */
  requestDeadlineMs?: number | undefined;
  /** From the connection to the choice of an export. Default 10,000. */
  handshakeDeadlineMs?: number | undefined;
  /** For a client to take a reply; then its connection ends. Default 120,000. */
  writeStallMs?: number | undefined;
  /** Further connections are closed at once. Default 256. */
  maxConnections?: number | undefined;
  /** Requests of one connection that may wait for their source. Default 64. */
  maxInFlight?: number | undefined;
  /** Bytes of such requests, and of their replies. Default 64 MiB. */
  maxInFlightBytes?: number | undefined;
  /** Memory of waiting requests of all connections. Default 256 MiB. */
  memoryLimit?: number | undefined;
  /** Told of every valid read before it is answered; must not throw or wait. */
  onRead?: (exportName: string, offset: number, length: number) => void;
}

/** How often accepting is tried again when it failed, e.g. for want of descriptors. */
const ACCEPT_RETRY_MS = 100;

/** Serves any number of sources by name. Sources are borrowed. */
export class NbdServer implements AsyncDisposable {
  readonly #exports = new ExportRegistry();
  readonly #shared: ConnectionShared;
  readonly #maxConnections: number;
  readonly #connections = new Set<ServerConnection>();
  readonly #closers: (() => Promise<void>)[] = [];
  readonly #accepting: Promise<void>[] = [];
  readonly #stopControl = new AbortController();
  #stopped: Promise<void> | undefined;
  #ticker: ReturnType<typeof setInterval> | undefined;
  #refused = 0;
  readonly #acceptLines = new LogBudget();

  constructor(options: NbdServerOptions = {}) {
    const MiB = 1024 * 1024;
    this.#maxConnections = options.maxConnections ?? 256;
    this.#shared = {
      exports: this.#exports,
      logger: options.logger ?? silentLogger,
      requestDeadlineMs: options.requestDeadlineMs ?? 60_000,
      handshakeDeadlineMs: options.handshakeDeadlineMs ?? 10_000,
      writeStallMs: options.writeStallMs ?? 120_000,
      maxInFlight: options.maxInFlight ?? 64,
      maxInFlightBytes: options.maxInFlightBytes ?? 64 * MiB,
      budget: new ByteBudget(options.memoryLimit ?? 256 * MiB),
      pool: new BufferPool(),
      onRead: options.onRead,
    };
  }

  /** Connections now, those in the handshake included. */
  get connectionCount(): number {
    return this.#connections.size;
  }

  /** Connections that were closed at once because there were too many. */
  get refusedCount(): number {
    return this.#refused;
  }

  /**
   * Starts to serve a source.
   *
   * @throws {UsageError} If the name is too long or the source cannot be written.
   * @throws {ObdError} With code "conflict" if the name is taken.
   */
  addExport(options: ExportOptions): NbdExport {
    return this.#exports.add(options);
  }

  /**
   * Stops to serve a source. When it resolves no connection uses it any more,
   * though reads that were cancelled may not have settled.
   *
   * @throws {NotFoundError} If there is none of that name.
   * @throws {ObdError} With code "conflict" if it has connections and `force` is not set.
   */
  async removeExport(
    name: string,
    options: { force?: boolean } = {},
  ): Promise<NbdExport> {
    return await this.#exports.remove(name, options.force ?? false);
  }

  /** The export of that exact name. */
  getExport(name: string): NbdExport | undefined {
    return this.#exports.get(name);
  }

  /** All exports, with their live counters. */
  listExports(): NbdExport[] {
    return this.#exports.list();
  }

  /**
   * Listens at an address, e.g. `"unix:/run/obd/nbd.sock"`; may be called
   * several times.
   *
   * A Unix socket gets mode 0600 and replaces a stale one.
   *
   * @returns The address, with the real port.
   * @throws {UsageError} If the address is bad.
   * @throws {ObdError} Code `conflict` if it is taken by another process.
   */
  async listen(address: NbdAddress | string): Promise<NbdAddress> {
    const parsed = typeof address === "string"
      ? parseNbdAddress(address)
      : address;
    const open = await openListener(parsed);
    if (this.#stopped) await open.close();
    else {
      this.#closers.push(open.close);
      this.#accepting.push(this.#accept(open.listener));
    }
    return open.address;
  }

  /** Takes connections from a listening socket of someone else, and closes it in the end. */
  serve(listener: Deno.Listener | net.Server): void {
    if (this.#stopped) {
      listener.close();
      return;
    }
    if (Symbol.asyncIterator in listener) {
      this.#closers.push(() => Promise.resolve(listener.close()));
      this.#accepting.push(this.#accept(listener));
      return;
    }
    listener.on("connection", (socket: net.Socket) => {
      this.serveStream(new NodeStream(socket));
    });
    this.#closers.push(() => {
      // Its callback waits for connections that are drained later.
      listener.close();
      return Promise.resolve();
    });
  }

  /** Serves one connected socket; owns it from now on. */
  serveStream(stream: ByteStream): void {
    if (this.#stopped || this.#connections.size >= this.#maxConnections) {
      this.#refuse(stream);
      return;
    }
    const connection = new ServerConnection(stream, this.#shared);
    this.#connections.add(connection);
    this.#startTicker();
    connection.closed.then(() => {
      this.#connections.delete(connection);
      if (this.#connections.size === 0) this.#stopTicker();
    });
  }

  /**
   * Stops: no new connections, requests in flight are finished, then all is
   * closed. What is not done by the deadline is cut off.
   *
   * @param deadlineMs Milliseconds for requests in flight. Default 5,000.
   */
  stop(deadlineMs = 5_000): Promise<void> {
    this.#stopped ??= this.#stop(deadlineMs);
    return this.#stopped;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop(0);
  }

  async #stop(deadlineMs: number): Promise<void> {
    this.#stopControl.abort();
    for (const close of this.#closers) await close();
    await Promise.all(this.#accepting);
    const open = [...this.#connections];
    const cut = () => {
      for (const connection of open) connection.abort();
    };
    const timer = deadlineMs > 0 ? setTimeout(cut, deadlineMs) : undefined;
    if (deadlineMs <= 0) cut();
    await Promise.all(open.map((connection) => connection.drain()));
    clearTimeout(timer);
    this.#stopTicker();
  }

  async #accept(listener: Deno.Listener): Promise<void> {
    const { signal } = this.#stopControl;
    while (!signal.aborted) {
      try {
        const conn = await listener.accept();
        if ("setNoDelay" in conn) {
          const tcp = conn as Deno.TcpConn;
          tcp.setNoDelay(true);
          // A machine that is gone says no goodbye.
          tcp.setKeepAlive(true);
        }
        this.serveStream(conn);
      } catch (error) {
        if (signal.aborted) return;
        const unlogged = this.#acceptLines.take(performance.now());
        if (unlogged !== undefined) {
          this.#shared.logger.error("nbd-accept-failed", {
            error: errorText(error),
            ...(unlogged > 0 ? { unlogged } : {}),
          });
        }
        if (error instanceof Deno.errors.BadResource) return;
        await delay(ACCEPT_RETRY_MS, signal).catch(() => {});
      }
    }
  }

  #refuse(stream: ByteStream): void {
    // One line for the first of many: a flood must not fill the log.
    if (this.#refused++ % 1000 === 0) {
      this.#shared.logger.warn("nbd-connection-refused", {
        connections: this.#connections.size,
        limit: this.#maxConnections,
      });
    }
    stream.close();
  }

  #startTicker(): void {
    if (this.#ticker !== undefined) return;
    const { requestDeadlineMs, handshakeDeadlineMs, writeStallMs } =
      this.#shared;
    const nearest = Math.min(
      requestDeadlineMs,
      handshakeDeadlineMs,
      writeStallMs,
    );
    const every = Math.min(1000, Math.max(5, Math.ceil(nearest / 10)));
    this.#ticker = setInterval(() => {
      const now = performance.now();
      for (const connection of this.#connections) connection.tick(now);
      this.#shared.pool.tick(now);
    }, every);
  }

  #stopTicker(): void {
    clearInterval(this.#ticker);
    this.#ticker = undefined;
    // Nobody tells it the time any more.
    this.#shared.pool.clear();
  }
}

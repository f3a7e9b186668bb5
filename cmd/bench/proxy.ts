/**
 * A TCP proxy that adds the round trip of a distant registry: what comes in
 * leaves half a round trip later, in both directions, and a connection costs
 * one more. It also counts, so that every contender is counted alike, and
 * where nothing else shapes the link it can do that too.
 */

import { BufferPool, DelayedBytes } from "./delayed_bytes.ts";
import { DueClock } from "./due_clock.ts";
import { type BlobTraffic, RequestHeads } from "./request_heads.ts";

/** Bytes in flight on one connection and direction: 100 ms of 2.5 Gbit/s. */
const IN_FLIGHT_MAX = 32 * 1024 * 1024;
const PIECE_SIZE = 256 * 1024;
/** With a rate: pieces are small against a round trip, and what waits for the line is bounded. */
const PACED_PIECE_SIZE = 64 * 1024;
const PACED_QUEUE_SECONDS = 0.05;
/** How late a piece may leave, to leave with others: an awakening takes CPU time of what is measured. */
const LATE_MAX_MS = 0.25;
/** The time that a piece takes on a line of 500 Mbit/s: else each would need an awakening. */
const PACED_LATE_MAX_MS = 1;
/** Distance of the points of the curve of bytes over time. */
const CURVE_INTERVAL_MS = 50;

/** What went through the proxy since {@linkcode LatencyProxy.reset}. */
export interface Traffic {
  /** HTTP requests. */
  requests: number;
  connections: number;
  /** Bytes from the registry, headers included. */
  bytes: number;
  /** Points of (seconds since the reset, bytes so far). */
  curve: [seconds: number, bytes: number][];
  /** When the first request came; undefined without one. */
  firstRequestSeconds?: number;
  /** What of each blob was asked for. */
  blobs: BlobTraffic[];
}

/** How far away the proxy makes its target. */
export interface ProxyLink {
  /** Round trip, in ms. */
  rttMs: number;
  /** Towards the client; undefined = as fast as it goes. */
  bytesPerSecond?: number | undefined;
}

/** See the module's comment. */
export class LatencyProxy implements AsyncDisposable {
  readonly #listener: Deno.TcpListener;
  readonly #target: { hostname: string; port: number };
  readonly #oneWayMs: number;
  readonly #bytesPerSecond: number | undefined;
  /** When the line towards the clients has sent what waits for it, as `performance.now()`. */
  #lineFreeAt = 0;
  readonly #connections = new Set<Deno.TcpConn>();
  readonly #clock: DueClock;
  readonly #buffers = new BufferPool();
  #traffic = emptyTraffic();
  #heads = new RequestHeads();
  #started = performance.now();

  constructor(target: { hostname: string; port: number }, link: ProxyLink) {
    this.#target = target;
    this.#oneWayMs = link.rttMs / 2;
    this.#bytesPerSecond = link.bytesPerSecond;
    this.#clock = new DueClock(
      link.bytesPerSecond === undefined ? LATE_MAX_MS : PACED_LATE_MAX_MS,
    );
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    this.#accept();
  }

  /** HOST:PORT for clients. */
  get address(): string {
    return `127.0.0.1:${this.#listener.addr.port}`;
  }

  get traffic(): Traffic {
    const curve = [...this.#traffic.curve];
    const last = curve.at(-1);
    if (last && last[1] !== this.#traffic.bytes) {
      curve.push([this.#seconds(), this.#traffic.bytes]);
    }
    return { ...this.#traffic, curve, blobs: this.#heads.blobs() };
  }

  /** Counts from zero. */
  reset(): void {
    this.#traffic = emptyTraffic();
    this.#heads = new RequestHeads();
    this.#started = performance.now();
  }

  #seconds(): number {
    return Math.round(performance.now() - this.#started) / 1000;
  }

  async #accept(): Promise<void> {
    for await (const client of this.#listener) {
      this.#traffic.connections++;
      this.#connections.add(client);
      this.#serve(client).catch(() => {
        // A side that goes away ends its connection, nothing else.
      });
    }
  }

  async #serve(client: Deno.TcpConn): Promise<void> {
    let server: Deno.TcpConn | undefined;
    try {
      server = await Deno.connect(this.#target);
      this.#connections.add(server);
      client.setNoDelay();
      server.setNoDelay();
      // The handshake, which ended here, would have taken one round trip.
      const handshakeMs = 2 * this.#oneWayMs;
      const up = this.#pump(client, server, {
        firstExtraMs: handshakeMs,
        note: (piece) => {
          if (!this.#heads.note(piece)) return;
          this.#traffic.requests++;
          this.#traffic.firstRequestSeconds ??= this.#seconds();
        },
      });
      const down = this.#pump(server, client, {
        firstExtraMs: 0,
        bytesPerSecond: this.#bytesPerSecond,
        note: (piece) => this.#count(piece.length),
      });
      await Promise.all([up, down]);
    } finally {
      for (const side of [client, server]) {
        if (!side) continue;
        this.#connections.delete(side);
        closeQuietly(side);
      }
    }
  }

  #count(bytes: number): void {
    const { curve } = this.#traffic;
    this.#traffic.bytes += bytes;
    const now = this.#seconds();
    const last = curve.at(-1)!;
    if (now - last[0] >= CURVE_INTERVAL_MS / 1000) {
      curve.push([now, this.#traffic.bytes]);
    }
  }

  /** Moves pieces of one direction; each leaves at its own time, so many are on the way at once. */
  async #pump(
    from: Deno.TcpConn,
    to: Deno.TcpConn,
    { firstExtraMs, note, bytesPerSecond }: {
      firstExtraMs: number;
      note: (piece: Uint8Array) => void;
      bytesPerSecond?: number | undefined;
    },
  ): Promise<void> {
    let extraMs = firstExtraMs;
    const inFlightMax = bytesPerSecond === undefined ? IN_FLIGHT_MAX : Math.max(
      2 * PACED_PIECE_SIZE,
      bytesPerSecond * (PACED_QUEUE_SECONDS + 2 * this.#oneWayMs / 1000),
    );
    const pieceSize = bytesPerSecond === undefined
      ? PIECE_SIZE
      : PACED_PIECE_SIZE;
    const delayed = new DelayedBytes(to, this.#clock, this.#buffers);
    // A client that is gone ends the reading too.
    const writing = delayed.write().catch(() => closeQuietly(from));
    try {
      for (;;) {
        const space = delayed.space(pieceSize);
        const length = await from.read(space);
        this.#clock.tick();
        if (length === null || delayed.failed) break;
        note(space.subarray(0, length));
        const sent = bytesPerSecond === undefined
          ? performance.now()
          : this.#sentAt(length, bytesPerSecond);
        delayed.add(length, sent + this.#oneWayMs + extraMs);
        extraMs = 0;
        await delayed.below(inFlightMax);
      }
    } finally {
      delayed.end();
    }
    await writing;
    if (!delayed.failed) await to.closeWrite();
  }

  /** When the last byte of a piece has left a line that all connections share. */
  #sentAt(length: number, bytesPerSecond: number): number {
    const start = Math.max(performance.now(), this.#lineFreeAt);
    this.#lineFreeAt = start + length / bytesPerSecond * 1000;
    return this.#lineFreeAt;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    for (const connection of this.#connections) closeQuietly(connection);
    await this.#clock.stop();
  }
}

function emptyTraffic(): Traffic {
  return { requests: 0, connections: 0, bytes: 0, curve: [[0, 0]], blobs: [] };
}

function closeQuietly(connection: Deno.TcpConn): void {
  try {
    connection.close();
  } catch {
    // Closed already.
  }
}

/** One client of a server, from its first byte to its last. */

import {
  CancelledError,
  DeadlineError,
  errorText,
  FormatError,
} from "../io/mod.ts";
import type { ExportConnection, ExportRegistry, NbdExport } from "./exports.ts";
import { ServerHandshake } from "./handshake.ts";
import { type ByteStream, ReceiveBuffer, SharedStream } from "./stream.ts";
import { Transmission, type TransmissionShared } from "./transmission.ts";

/** What all connections of a server share. */
export interface ConnectionShared extends TransmissionShared {
  readonly exports: ExportRegistry;
  /** Milliseconds from the connection to the choice of an export. */
  readonly handshakeDeadlineMs: number;
}

/** A connection; it runs until its stream is closed, by either side. */
export class ServerConnection implements ExportConnection {
  readonly closed: Promise<void>;
  readonly #stream: SharedStream;
  readonly #shared: ConnectionShared;
  readonly #started = performance.now();
  #transmission: Transmission | undefined;
  #stopping = false;
  #ended = false;

  /** Owns `stream` from now on. */
  constructor(stream: ByteStream, shared: ConnectionShared) {
    this.#stream = new SharedStream(stream);
    this.#shared = shared;
    this.closed = this.#run();
  }

  /** Finishes what was asked, then closes. */
  async drain(): Promise<void> {
    this.#stopping = true;
    // A handshake under way has nothing to finish.
    await this.#transmission?.drain();
    this.#stream.close();
    await this.closed;
  }

  abort(): void {
    this.#stopping = true;
    this.#transmission?.abort(new CancelledError("Connection is ended"));
    this.#stream.close();
  }

  /** Enforces deadlines; called now and then. */
  tick(now: number): void {
    if (this.#transmission) this.#transmission.tick(now);
    else if (now - this.#started >= this.#shared.handshakeDeadlineMs) {
      if (this.#ended) return;
      this.#ended = true;
      const { logger, handshakeDeadlineMs } = this.#shared;
      const error = new DeadlineError("Handshake", handshakeDeadlineMs);
      logger.warn("nbd-connection-failed", { error: error.message });
      this.#stream.close();
    }
  }

  async #run(): Promise<void> {
    let served: NbdExport | undefined;
    try {
      const rx = new ReceiveBuffer(this.#stream);
      const { exports } = this.#shared;
      const handshake = new ServerHandshake(this.#stream, rx, exports);
      const negotiated = await handshake.run();
      // The export may have been removed while the last answer was on its way.
      if (!negotiated || this.#stopping) return;
      if (!exports.has(negotiated.export)) return;
      served = negotiated.export;
      served.connections.add(this);
      served.stats.connections++;
      served.stats.connectionsTotal++;
      const transmission = new Transmission(
        this.#stream,
        rx,
        negotiated,
        this.#shared,
      );
      this.#transmission = transmission;
      await transmission.run();
    } catch (error) {
      this.#log(error, served);
    } finally {
      this.#ended = true;
      this.#stream.close();
      if (served) {
        served.connections.delete(this);
        served.stats.connections--;
      }
    }
  }

  #log(error: unknown, served: NbdExport | undefined): void {
    if (this.#stopping || this.#ended) return;
    const fields = { export: served?.name, error: errorText(error) };
    const { logger } = this.#shared;
    // A client that vanishes is ordinary; one that breaks the protocol is not.
    if (error instanceof FormatError || error instanceof DeadlineError) {
      logger.warn("nbd-connection-failed", fields);
    } else logger.debug("nbd-connection-lost", fields);
  }
}

/**
 * The transmission phase of one connection, server side [proto.md,
 * Transmission].
 *
 * One loop reads requests. What the source has at hand is answered in the loop,
 * straight into the reply buffer; what must wait runs beside it, so replies go
 * out in the order in which they are ready.
 */

import { setImmediate } from "node:timers";
import {
  BudgetShare,
  DeadlineError,
  errorText,
  FormatError,
  type Logger,
} from "../io/mod.ts";
import { Answers } from "./answers.ts";
import { answerBlockStatus, BLOCK_STATUS_MAX } from "./block_status.ts";
import { GATHER_MAX } from "./buffer_pool.ts";
import { nbdErrorOf } from "./errno.ts";
import type { Negotiated } from "./handshake.ts";
import {
  COMMAND,
  COMMAND_FLAG,
  MAX_PAYLOAD,
  readRequest,
  REQUEST,
  type Request,
} from "./protocol.ts";
import { layOutRead, planRead, type ReadPlan } from "./read_plan.ts";
import { ReplyStream, RESERVE_MAX } from "./reply_stream.ts";
import {
  lease,
  readAnswer,
  warmRange,
  type WorkMemory,
} from "./source_work.ts";
import { recordLatency } from "./stats.ts";
import type { ByteStream, ReceiveBuffer } from "./stream.ts";
import { checkRequest, isWriting } from "./validate.ts";
import {
  type Waiting,
  type WaitingLimits,
  WaitingRequests,
} from "./waiting.ts";

/** Bytes of a refused write that are still dropped to stay in step. */
const MAX_SKIP = 2 * MAX_PAYLOAD;
/** After so much work without a pause the loop lets other connections run. */
const YIELD_REQUESTS = 64;
const YIELD_BYTES = 1024 * 1024;
/** A server that stops waits so long for a moment without requests before it takes no more. */
const DRAIN_MS = 1000;
/** Bytes of any answer without data. */
const SMALL_ANSWER = 64;

/** Of the memory of all, what a connection has though the others hold all: a read as kernels send them. */
const GUARANTEED_BYTES = 256 * 1024 + 4096;

/** What all connections of a server share. */
export interface TransmissionShared extends WorkMemory, WaitingLimits {
  readonly logger: Logger;
  /** Milliseconds for one request, and for a write payload to arrive. */
  readonly requestDeadlineMs: number;
  /** Milliseconds after which a client that takes no replies is given up. */
  readonly writeStallMs: number;
  readonly onRead:
    | ((exportName: string, offset: number, length: number) => void)
    | undefined;
}

/** One client in the transmission phase. */
export class Transmission {
  readonly #stream: ByteStream;
  readonly #rx: ReceiveBuffer;
  readonly #negotiated: Negotiated;
  readonly #shared: TransmissionShared;
  readonly #out: ReplyStream;
  readonly #answers: Answers;
  readonly #waiting: WaitingRequests;
  /** No more requests are taken: the client said so, or the server stops. */
  #draining = false;
  #dead = false;
  #deadError: unknown;
  /** When the write payload that is arriving began. */
  #payloadSince: number | undefined;
  #requestsSinceYield = 0;
  #bytesSinceYield = 0;
  /** `performance.now()` when the last request was answered or bytes came in. */
  #clock = 0;
  /** Aborted when the connection ends. */
  readonly #gone = new AbortController();
  readonly #share = new BudgetShare(GUARANTEED_BYTES);

  constructor(
    stream: ByteStream,
    rx: ReceiveBuffer,
    negotiated: Negotiated,
    shared: TransmissionShared,
  ) {
    this.#stream = stream;
    this.#rx = rx;
    this.#negotiated = negotiated;
    this.#shared = shared;
    this.#out = new ReplyStream(stream, (error) => this.abort(error));
    this.#answers = new Answers(this.#out, negotiated.structured);
    this.#waiting = new WaitingRequests(shared, negotiated.export.stats);
  }

  /**
   * Serves until the client or the server ends it. Does not close the stream.
   *
   * @throws {FormatError} If the client is out of step.
   * @throws {Error} Whatever {@linkcode abort} was given.
   */
  async run(): Promise<void> {
    try {
      await this.#loop();
      // After a disconnect request what was asked before is still answered.
      if (this.#draining && !this.#dead) await this.#untilIdle();
      if (this.#deadError !== undefined) throw this.#deadError;
    } catch (error) {
      // The stream was closed under a read: the reason is what matters.
      throw this.#deadError ?? error;
    } finally {
      this.abort(undefined);
    }
  }

  /**
   * Resolves in a moment without requests under way; from then on none is taken.
   *
   * Refusals would be final. A client that connects again sends once more what
   * was not answered, but the kernel's only after its timeout, so that what
   * comes in time is answered.
   */
  async drain(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, DRAIN_MS);
    await Promise.race([this.#untilIdle(), promise]);
    clearTimeout(timer);
    this.#draining = true;
    await this.#untilIdle();
  }

  /**
   * Ends at once: what waits is cancelled and never answered.
   *
   * @param reason Why; without one the caller closes the stream.
   */
  abort(reason: unknown): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#deadError = reason;
    this.#out.kill();
    this.#gone.abort();
    this.#waiting.cancelAll();
    if (reason !== undefined) this.#stream.close();
  }

  /** Enforces deadlines; called now and then with `performance.now()`. */
  tick(now: number): void {
    const { requestDeadlineMs, writeStallMs } = this.#shared;
    const overdue = this.#waiting.startedBefore(now - requestDeadlineMs);
    for (const waiting of overdue) {
      const error = new DeadlineError("Request", requestDeadlineMs);
      this.#negotiated.export.stats.deadlines++;
      this.#fail(waiting, error);
      waiting.control.abort(error);
    }
    const since = this.#payloadSince;
    if (since !== undefined && now - since >= requestDeadlineMs) {
      this.abort(new DeadlineError("Write payload", requestDeadlineMs));
    }
    const write = this.#out.writeStarted;
    if (write !== undefined && now - write >= writeStallMs) {
      this.abort(new DeadlineError("Reply", writeStallMs));
    }
  }

  async #loop(): Promise<void> {
    const rx = this.#rx;
    for (;;) {
      this.#clock = performance.now();
      while (rx.available >= REQUEST.SIZE && !this.#draining) {
        const request = readRequest(rx.view, rx.start);
        if (!request) throw new FormatError("NBD request", "magic", "is wrong");
        rx.start += REQUEST.SIZE;
        if (request.type === COMMAND.disconnect) {
          this.#draining = true;
          return;
        }
        const work = this.#handle(request);
        if (work) await work;
        while (this.#waiting.full && !this.#dead) {
          this.#out.flush();
          await this.#waiting.changed();
        }
        // Answers without data would pile up behind a client that takes none.
        if (!this.#out.reserve(SMALL_ANSWER)) await this.#whenRoom(() => {});
        if (this.#dead) return;
        this.#out.flushIfFull();
        this.#bytesSinceYield += request.length;
        if (
          ++this.#requestsSinceYield >= YIELD_REQUESTS ||
          this.#bytesSinceYield >= YIELD_BYTES
        ) await this.#yield();
      }
      this.#out.flush();
      if (this.#draining || !await rx.fill() || this.#dead) return;
    }
  }

  /** Lets the event loop serve others: a client whose data is always at hand would keep it for itself. */
  async #yield(): Promise<void> {
    this.#requestsSinceYield = 0;
    this.#bytesSinceYield = 0;
    this.#out.flushIfFull();
    await new Promise<void>((resolve) => setImmediate(resolve));
    this.#clock = performance.now();
  }

  /** Answers a request or starts its work; a promise means that the loop must wait. */
  #handle(request: Request): Promise<void> | undefined {
    const { export: served, structured, allocation } = this.#negotiated;
    const error = checkRequest(served, structured, allocation, request);
    if (request.type === COMMAND.write) return this.#write(request, error);
    if (error !== 0) return this.#refuse(request, error);
    const { stats, source } = served;
    const { offset, length, flags } = request;
    switch (request.type) {
      case COMMAND.read:
        this.#shared.onRead?.(served.name, offset, length);
        return this.#read(request);
      case COMMAND.blockStatus:
        return this.#blockStatus(request);
      case COMMAND.cache:
        stats.caches++;
        this.#start(
          request,
          (signal) => warmRange(source, offset, length, this.#shared, signal),
        );
        return undefined;
      case COMMAND.flush:
        stats.flushes++;
        this.#start(request, () => source.flush!());
        return undefined;
      case COMMAND.trim:
        stats.trims++;
        this.#start(request, () => source.trim!(offset, length));
        return undefined;
      default: {
        stats.writeZeroes++;
        const noHole = (flags & COMMAND_FLAG.noHole) !== 0;
        const work = () => source.writeZeroes!(offset, length, { noHole });
        this.#start(request, work);
        return undefined;
      }
    }
  }

  /** Answers from what is at hand, else starts waiting. */
  #read(request: Request): Promise<void> | undefined {
    const out = this.#out;
    const { structured, export: { stats, source } } = this.#negotiated;
    const { offset, length, flags } = request;
    let plan: ReadPlan;
    try {
      const sparse = structured && (flags & COMMAND_FLAG.df) === 0;
      plan = planRead(source, offset, length, structured, sparse);
      if (plan.wireBytes <= RESERVE_MAX) {
        if (!out.reserve(plan.wireBytes)) {
          return this.#whenRoom(() => this.#read(request));
        }
        const { front, view, fill } = out;
        const now = (dst: Uint8Array, offset: number) =>
          source.preadNow?.(dst, offset) ?? false;
        if (layOutRead(plan, request, front, view, fill, now)) {
          out.fill = fill + plan.wireBytes;
          stats.reads++;
          stats.readsAtOnce++;
          stats.readBytes += length;
          const time = performance.now();
          recordLatency(stats.readLatency, (time - this.#clock) / 1000);
          this.#clock = time;
          return undefined;
        }
      }
    } catch (error) {
      return this.#refuseFailed(request, error);
    }
    this.#readWaiting(this.#waiting.start(request), plan);
    return undefined;
  }

  async #readWaiting(waiting: Waiting, plan: ReadPlan): Promise<void> {
    const { stats, source } = this.#negotiated.export;
    const { signal } = waiting.control;
    let give = () => {};
    try {
      const leased = await lease(this.#shared, plan.wireBytes, {
        signal,
        share: this.#share,
      });
      give = leased.give;
      const { buffer } = leased;
      await readAnswer(source, plan, waiting.request, buffer, signal);
      if (waiting.settled) return;
      this.#waiting.settle(waiting);
      stats.reads++;
      stats.readBytes += plan.length;
      const ms = performance.now() - waiting.started;
      recordLatency(stats.readLatency, ms / 1000);
      const wire = buffer.subarray(0, plan.wireBytes);
      if (wire.length <= GATHER_MAX && this.#answers.gather(wire)) {
        this.#waiting.release(waiting);
        return;
      }
      give = () => {};
      this.#out.send(wire, () => {
        leased.give();
        this.#waiting.release(waiting);
      });
    } catch (error) {
      this.#fail(waiting, error);
    } finally {
      give();
    }
  }

  async #write(request: Request, error: number): Promise<void> {
    const { length, offset } = request;
    const rx = this.#rx;
    const { source, stats } = this.#negotiated.export;
    this.#payloadSince = performance.now();
    this.#out.flush();
    try {
      if (error !== 0) {
        if (length > MAX_SKIP) {
          throw new FormatError("NBD request", "length", `is ${length}`);
        }
        if (!await rx.skip(length)) throw endOfPayload();
        await this.#refuse(request, error);
        return;
      }
      // Without memory in time, the deadline of the payload ends the connection.
      const { signal } = this.#gone;
      const { buffer, give } = await lease(this.#shared, length, {
        signal,
        share: this.#share,
      });
      const payload = buffer.subarray(0, length);
      if (!await rx.take(payload).catch(() => false)) {
        give();
        throw endOfPayload();
      }
      const work = async () => {
        try {
          await source.pwrite!(payload, offset);
        } finally {
          give();
        }
        stats.writes++;
        stats.writeBytes += length;
      };
      this.#start(request, work);
    } finally {
      this.#payloadSince = undefined;
    }
  }

  /** Runs a request without data in its answer. */
  async #start(
    request: Request,
    work: (signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const waiting = this.#waiting.start(request);
    try {
      await work(waiting.control.signal);
      const fua = (request.flags & COMMAND_FLAG.fua) !== 0;
      const { source } = this.#negotiated.export;
      if (fua && isWriting(request.type)) await source.flush!();
      if (waiting.settled) return;
      this.#waiting.settle(waiting);
      this.#waiting.release(waiting);
      this.#answers.ok(request);
    } catch (error) {
      this.#fail(waiting, error);
    }
  }

  #blockStatus(request: Request): Promise<void> | undefined {
    const out = this.#out;
    if (!out.reserve(BLOCK_STATUS_MAX)) {
      return this.#whenRoom(() => this.#blockStatus(request));
    }
    const { source, stats } = this.#negotiated.export;
    try {
      out.fill += answerBlockStatus(source, request, out.view, out.fill);
      stats.blockStatuses++;
    } catch (error) {
      return this.#refuseFailed(request, error);
    }
  }

  /** A source that throws where it should not costs one request, not the connection. */
  #refuseFailed(request: Request, error: unknown): Promise<void> | undefined {
    this.#logFailure(request, performance.now(), error);
    return this.#refuse(request, nbdErrorOf(error, false));
  }

  /** Answers with an error that is the client's doing, in order with the loop. */
  #refuse(request: Request, error: number): Promise<void> | undefined {
    this.#negotiated.export.stats.errors++;
    this.#answers.error(request, error);
    if (!this.#out.reserve(RESERVE_MAX / 4)) return this.#whenRoom(() => {});
  }

  /** Waits until something was written, then goes on. */
  async #whenRoom(then: () => Promise<void> | undefined | void): Promise<void> {
    await this.#out.room();
    if (!this.#dead) await then();
  }

  #fail(waiting: Waiting, error: unknown): void {
    if (waiting.settled) return;
    const { stats } = this.#negotiated.export;
    const { request, started } = waiting;
    stats.errors++;
    const ms = this.#logFailure(request, started, error);
    if (request.type === COMMAND.read) {
      recordLatency(stats.readLatency, ms / 1000);
    }
    this.#waiting.settle(waiting);
    this.#waiting.release(waiting);
    const { type } = request;
    this.#answers.error(request, nbdErrorOf(error, isWriting(type)));
  }

  #logFailure(request: Request, started: number, error: unknown): number {
    const now = performance.now();
    const ms = Math.round(now - started);
    const { name, failureLines } = this.#negotiated.export;
    const unlogged = failureLines.take(now);
    if (unlogged === undefined) return ms;
    this.#shared.logger.warn("nbd-request-failed", {
      export: name,
      command: commandName(request.type),
      offset: request.offset,
      length: request.length,
      ms,
      error: errorText(error),
      ...(unlogged > 0 ? { unlogged } : {}),
    });
    return ms;
  }

  /** Resolves when every request was answered and every answer written, or the connection is dead. */
  async #untilIdle(): Promise<void> {
    this.#out.flush();
    while (!this.#dead) {
      if (!this.#waiting.empty) await this.#waiting.changed();
      else if (!this.#out.idle) await this.#out.room();
      else return;
    }
  }
}

function endOfPayload(): FormatError {
  return new FormatError("NBD request", "payload", "is cut short");
}

function commandName(type: number): string {
  for (const [name, value] of Object.entries(COMMAND)) {
    if (value === type) return name;
  }
  return String(type);
}

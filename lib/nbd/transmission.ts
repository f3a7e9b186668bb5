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
  type ByteBudget,
  CancelledError,
  DeadlineError,
  errorText,
  FormatError,
  type Logger,
} from "../io/mod.ts";
import { answerBlockStatus, BLOCK_STATUS_MAX } from "./block_status.ts";
import { type BufferPool, GATHER_MAX } from "./buffer_pool.ts";
import { NBD_ERROR, nbdErrorName, nbdErrorOf } from "./errno.ts";
import type { Negotiated } from "./handshake.ts";
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_HEADER,
  COMMAND,
  COMMAND_FLAG,
  MAX_PAYLOAD,
  readRequest,
  REQUEST,
  type Request,
  SIMPLE_REPLY,
  writeChunkHeader,
  writeSimpleReply,
} from "./protocol.ts";
import { layOutRead, planRead, type ReadPlan } from "./read_plan.ts";
import { ReplyStream, RESERVE_MAX } from "./reply_stream.ts";
import { recordLatency } from "./stats.ts";
import type { ByteStream, ReceiveBuffer } from "./stream.ts";
import { checkRequest, isWriting } from "./validate.ts";

/** Bytes of a refused write that are still dropped to stay in step. */
const MAX_SKIP = 2 * MAX_PAYLOAD;
/** After so much work without a pause the loop lets other connections run. */
const YIELD_REQUESTS = 64;
const YIELD_BYTES = 1024 * 1024;
/** A CACHE request is read in pieces of this size, so many at once. */
const CACHE_PIECE = 1024 * 1024;
const CACHE_LANES = 4;

/** What all connections of a server share. */
export interface TransmissionShared {
  readonly logger: Logger;
  /** Milliseconds for one request, and for a write payload to arrive. */
  readonly requestDeadlineMs: number;
  /** Milliseconds after which a client that takes no replies is given up. */
  readonly writeStallMs: number;
  /** Requests of one connection that may wait for their source. */
  readonly maxInFlight: number;
  /** Bytes of such requests. */
  readonly maxInFlightBytes: number;
  /** Memory of waiting requests of all connections. */
  readonly budget: ByteBudget;
  readonly pool: BufferPool;
  readonly onRead:
    | ((exportName: string, offset: number, length: number) => void)
    | undefined;
}

/** A request that waits for its source. */
interface Waiting {
  readonly request: Request;
  /** `performance.now()` at its arrival. */
  readonly started: number;
  readonly control: AbortController;
  /** Answered, or never to be. */
  settled: boolean;
}

/** One client in the transmission phase. */
export class Transmission {
  readonly #stream: ByteStream;
  readonly #rx: ReceiveBuffer;
  readonly #negotiated: Negotiated;
  readonly #shared: TransmissionShared;
  readonly #out: ReplyStream;
  /** In order of arrival, so the first has the nearest deadline. */
  readonly #waiting = new Set<Waiting>();
  #waitingBytes = 0;
  #slotFree: (() => void) | undefined;
  #flushScheduled = false;
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
  #idleWaiters: (() => void)[] = [];
  /** Aborted when the connection ends. */
  readonly #gone = new AbortController();

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

  /** Refuses further requests, and resolves when those before are answered. */
  async drain(): Promise<void> {
    this.#draining = true;
    await this.#untilIdle();
  }

  /** Ends at once: what waits is cancelled and never answered. The caller closes the stream. */
  abort(reason: unknown): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#deadError = reason;
    this.#out.kill();
    for (const waiting of [...this.#waiting]) {
      this.#settle(waiting);
      waiting.control.abort(new CancelledError("Client is gone"));
    }
    this.#gone.abort();
    this.#slotFree?.();
    this.#wakeIdle();
    if (reason !== undefined) this.#stream.close();
  }

  /** Enforces deadlines; called now and then with `performance.now()`. */
  tick(now: number): void {
    const { requestDeadlineMs, writeStallMs } = this.#shared;
    for (const waiting of this.#waiting) {
      if (now - waiting.started < requestDeadlineMs) break;
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
    const { maxInFlight, maxInFlightBytes } = this.#shared;
    for (;;) {
      this.#clock = performance.now();
      while (rx.available >= REQUEST.SIZE) {
        const request = readRequest(rx.view, rx.start);
        if (!request) throw new FormatError("NBD request", "magic", "is wrong");
        rx.start += REQUEST.SIZE;
        if (request.type === COMMAND.disconnect) {
          this.#draining = true;
          return;
        }
        const work = this.#handle(request);
        if (work) await work;
        while (
          this.#waiting.size >= maxInFlight ||
          this.#waitingBytes >= maxInFlightBytes
        ) {
          this.#out.flush();
          await new Promise<void>((resolve) => this.#slotFree = resolve);
          this.#slotFree = undefined;
        }
        if (this.#dead) return;
        this.#out.flushIfFull();
        this.#bytesSinceYield += request.length;
        if (
          ++this.#requestsSinceYield >= YIELD_REQUESTS ||
          this.#bytesSinceYield >= YIELD_BYTES
        ) await this.#yield();
      }
      this.#out.flush();
      if (!await rx.fill() || this.#dead) return;
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
    let error = checkRequest(served, structured, allocation, request);
    if (this.#draining) error = NBD_ERROR.ESHUTDOWN;
    if (request.type === COMMAND.write) return this.#write(request, error);
    if (error !== 0) return this.#refuse(request, error);
    const { stats, source } = served;
    const { offset, length, flags } = request;
    switch (request.type) {
      case COMMAND.read:
        try {
          this.#shared.onRead?.(served.name, offset, length);
          const sparse = structured && (flags & COMMAND_FLAG.df) === 0;
          const plan = planRead(source, offset, length, structured, sparse);
          return this.#read(request, plan);
        } catch (error) {
          return this.#refuseFailed(request, error);
        }
      case COMMAND.blockStatus:
        return this.#blockStatus(request);
      case COMMAND.cache:
        stats.caches++;
        this.#start(request, (waiting) => this.#cache(waiting));
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
  #read(request: Request, plan: ReadPlan): Promise<void> | undefined {
    const out = this.#out;
    const { stats, source } = this.#negotiated.export;
    if (plan.wireBytes <= RESERVE_MAX) {
      if (!out.reserve(plan.wireBytes)) {
        return this.#whenRoom(() => this.#read(request, plan));
      }
      const { front, view, fill } = out;
      const done = layOutRead(
        plan,
        request,
        front,
        view,
        fill,
        (dst, offset) => source.preadNow?.(dst, offset) ?? false,
      );
      if (done) {
        out.fill = fill + plan.wireBytes;
        stats.reads++;
        stats.readsAtOnce++;
        stats.readBytes += plan.length;
        const now = performance.now();
        recordLatency(stats.readLatency, (now - this.#clock) / 1000);
        this.#clock = now;
        return undefined;
      }
    }
    const waiting = this.#wait(request);
    this.#readWaiting(waiting, plan);
    return undefined;
  }

  async #readWaiting(waiting: Waiting, plan: ReadPlan): Promise<void> {
    const { pool, budget } = this.#shared;
    const { stats, source } = this.#negotiated.export;
    const { signal } = waiting.control;
    let give = () => {};
    try {
      const release = await budget.acquire(plan.wireBytes, { signal });
      const buffer = pool.take(plan.wireBytes);
      give = () => {
        pool.give(buffer);
        release();
      };
      const view = new DataView(buffer.buffer);
      const reads: Promise<void>[] = [];
      layOutRead(plan, waiting.request, buffer, view, 0, (dst, offset) => {
        try {
          reads.push(source.pread(dst, offset, { signal }));
        } catch (error) {
          reads.push(Promise.reject(error));
        }
        return true;
      });
      // All of them, also after a failure: each owns its part of the buffer until it settles.
      const results = await Promise.allSettled(reads);
      for (const r of results) if (r.status === "rejected") throw r.reason;
      if (waiting.settled) return;
      this.#settle(waiting);
      stats.reads++;
      stats.readBytes += plan.length;
      const ms = performance.now() - waiting.started;
      recordLatency(stats.readLatency, ms / 1000);
      const wire = buffer.subarray(0, plan.wireBytes);
      if (wire.length <= GATHER_MAX && this.#out.reserve(wire.length)) {
        this.#out.front.set(wire, this.#out.fill);
        this.#out.fill += wire.length;
        this.#scheduleFlush();
      } else {
        const sent = give;
        give = () => {};
        this.#out.send(wire, sent);
      }
    } catch (error) {
      this.#fail(waiting, error);
    } finally {
      give();
    }
  }

  async #write(request: Request, error: number): Promise<void> {
    const { length, offset } = request;
    const rx = this.#rx;
    const { pool, budget } = this.#shared;
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
      const release = await budget.acquire(length, { signal });
      const buffer = pool.take(length);
      const give = () => {
        pool.give(buffer);
        release();
      };
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
  #start(
    request: Request,
    work: (waiting: Waiting) => Promise<void>,
  ): void {
    const waiting = this.#wait(request);
    const run = async () => {
      try {
        await work(waiting);
        const fua = (request.flags & COMMAND_FLAG.fua) !== 0;
        const { source } = this.#negotiated.export;
        if (fua && isWriting(request.type)) await source.flush!();
        if (waiting.settled) return;
        this.#settle(waiting);
        this.#small(SIMPLE_REPLY.SIZE, (view, at) => {
          writeSimpleReply(view, at, request, 0);
        });
      } catch (error) {
        this.#fail(waiting, error);
      }
    };
    run();
  }

  /** Reads a range and drops it, so that caches below keep it. */
  async #cache(waiting: Waiting): Promise<void> {
    const { source } = this.#negotiated.export;
    const { pool, budget } = this.#shared;
    const { signal } = waiting.control;
    const end = waiting.request.offset + waiting.request.length;
    let next = waiting.request.offset;
    const lane = async () => {
      while (next < end && !waiting.settled) {
        const offset = next;
        const length = Math.min(CACHE_PIECE, end - offset);
        next += length;
        const release = await budget.acquire(length, {
          signal,
          priority: "prefetch",
        });
        const buffer = pool.take(length);
        try {
          const dst = buffer.subarray(0, length);
          await source.pread(dst, offset, { signal, priority: "prefetch" });
        } finally {
          pool.give(buffer);
          release();
        }
      }
    };
    await Promise.all(Array.from({ length: CACHE_LANES }, lane));
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
    this.#sendError(request, error);
    if (!this.#out.reserve(RESERVE_MAX / 4)) return this.#whenRoom(() => {});
  }

  /** Waits until something was written, then goes on. */
  async #whenRoom(then: () => Promise<void> | undefined | void): Promise<void> {
    await this.#out.room();
    if (!this.#dead) await then();
  }

  #sendError(request: Request, error: number): void {
    if (!this.#negotiated.structured) {
      this.#small(SIMPLE_REPLY.SIZE, (view, at) => {
        writeSimpleReply(view, at, request, error);
      });
      return;
    }
    const text = new TextEncoder().encode(nbdErrorName(error));
    const length = 6 + text.length;
    this.#small(CHUNK_HEADER.SIZE + length, (view, at, bytes) => {
      const { error: type } = CHUNK;
      writeChunkHeader(view, at, request, type, CHUNK_DONE, length);
      view.setUint32(at + 20, error);
      view.setUint16(at + 24, text.length);
      bytes.set(text, at + 26);
    });
  }

  /** Adds a reply of a few bytes, also when the gathering buffers are full. */
  #small(
    length: number,
    write: (view: DataView, at: number, bytes: Uint8Array) => void,
  ): void {
    const out = this.#out;
    if (out.reserve(length)) {
      write(out.view, out.fill, out.front);
      out.fill += length;
      this.#scheduleFlush();
      return;
    }
    const bytes = new Uint8Array(length);
    write(new DataView(bytes.buffer), 0, bytes);
    out.send(bytes, () => {});
  }

  /** Flushes once for all replies that become ready together. */
  #scheduleFlush(): void {
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    queueMicrotask(() => {
      this.#flushScheduled = false;
      this.#out.flush();
    });
  }

  #wait(request: Request): Waiting {
    const waiting = {
      request,
      started: performance.now(),
      control: new AbortController(),
      settled: false,
    };
    this.#waiting.add(waiting);
    this.#waitingBytes += heldBytes(request);
    this.#negotiated.export.stats.inFlight++;
    return waiting;
  }

  #settle(waiting: Waiting): void {
    waiting.settled = true;
    this.#waiting.delete(waiting);
    this.#waitingBytes -= heldBytes(waiting.request);
    this.#negotiated.export.stats.inFlight--;
    this.#slotFree?.();
    if (this.#waiting.size === 0) this.#wakeIdle();
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
    this.#settle(waiting);
    this.#sendError(request, nbdErrorOf(error, isWriting(request.type)));
  }

  #logFailure(request: Request, started: number, error: unknown): number {
    const ms = Math.round(performance.now() - started);
    this.#shared.logger.warn("nbd-request-failed", {
      export: this.#negotiated.export.name,
      command: commandName(request.type),
      offset: request.offset,
      length: request.length,
      ms,
      error: errorText(error),
    });
    return ms;
  }

  #wakeIdle(): void {
    for (const waiter of this.#idleWaiters.splice(0)) waiter();
  }

  /** Resolves when every request was answered and every answer written, or the connection is dead. */
  async #untilIdle(): Promise<void> {
    this.#out.flush();
    while (!this.#dead) {
      if (this.#waiting.size > 0) {
        await new Promise<void>((resolve) => this.#idleWaiters.push(resolve));
      } else if (!this.#out.idle) await this.#out.room();
      else return;
    }
  }
}

/** Bytes that a waiting request keeps in memory. */
function heldBytes(request: Request): number {
  const { type, length } = request;
  return type === COMMAND.read || type === COMMAND.write ? length : 0;
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

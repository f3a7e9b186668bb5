/** Bytes of one direction of a connection, each of which leaves at its own time. */

import type { DueClock } from "./due_clock.ts";

const BUFFER_SIZE = 512 * 1024;
/** Buffers that are kept for later: 16 MiB. */
const FREE_MAX = 32;

interface Buffer {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Pieces in it that have not left. */
  pieces: number;
}

/** Buffers that go from hand to hand: fresh ones would be cleared, and faulted in, page by page. */
export class BufferPool {
  readonly #free: Buffer[] = [];

  take(): Buffer {
    return this.#free.pop() ??
      { bytes: new Uint8Array(BUFFER_SIZE), pieces: 0 };
  }

  give(buffer: Buffer): void {
    if (this.#free.length < FREE_MAX) this.#free.push(buffer);
  }
}

interface Piece {
  buffer: Buffer;
  start: number;
  end: number;
  due: number;
}

/** See the module's comment. One reads into {@linkcode space}, another runs {@linkcode write}. */
export class DelayedBytes {
  readonly #to: Deno.TcpConn;
  readonly #clock: DueClock;
  readonly #pool: BufferPool;
  /** The oldest first. */
  readonly #queue: Piece[] = [];
  #inFlight = 0;
  /** Where the next bytes go, and how much of it is taken. */
  #buffer: Buffer;
  #filled = 0;
  #state: "open" | "ended" | "failed" = "open";
  #wakeReader = () => {};
  #wakeWriter = () => {};

  constructor(to: Deno.TcpConn, clock: DueClock, pool: BufferPool) {
    this.#to = to;
    this.#clock = clock;
    this.#pool = pool;
    this.#buffer = pool.take();
  }

  /** Whether nothing can be written any more. */
  get failed(): boolean {
    return this.#state === "failed";
  }

  /** Room for the next bytes. @param size At most half a MiB. */
  space(size: number): Uint8Array<ArrayBuffer> {
    if (this.#buffer.pieces === 0) this.#filled = 0;
    if (this.#filled + size > BUFFER_SIZE) {
      this.#buffer = this.#pool.take();
      this.#filled = 0;
    }
    return this.#buffer.bytes.subarray(this.#filled, this.#filled + size);
  }

  /** The first `length` bytes of {@linkcode space} leave at `due`, but not before those that came before. */
  add(length: number, due: number): void {
    const start = this.#filled;
    this.#filled += length;
    this.#inFlight += length;
    this.#buffer.pieces++;
    this.#queue.push({ buffer: this.#buffer, start, end: this.#filled, due });
    this.#wakeWriter();
  }

  /** Waits until less than so many bytes have not left, or nothing can leave. */
  async below(bytes: number): Promise<void> {
    while (this.#inFlight > bytes && !this.failed) {
      await new Promise<void>((resolve) => this.#wakeReader = resolve);
    }
  }

  /** No more will be added. */
  end(): void {
    if (this.#state === "open") this.#state = "ended";
    this.#wakeWriter();
  }

  /** Writes everything at its time, until {@linkcode end}. Rejects when the connection breaks. */
  async write(): Promise<void> {
    try {
      for (;;) {
        const first = this.#queue[0];
        if (first) {
          await this.#clock.until(first.due);
          await this.#writeDue();
        } else if (this.#state === "open") {
          await new Promise<void>((resolve) => this.#wakeWriter = resolve);
        } else break;
      }
      if (this.#buffer.pieces === 0) this.#pool.give(this.#buffer);
    } catch (error) {
      this.#state = "failed";
      throw error;
    } finally {
      this.#wakeReader();
    }
  }

  /** The first piece, and what is due with it behind it in the same buffer. */
  async #writeDue(): Promise<void> {
    const { buffer, start, end: firstEnd } = this.#queue.shift()!;
    let end = firstEnd;
    let pieces = 1;
    const now = performance.now();
    for (let next; (next = this.#queue[0]); pieces++) {
      if (next.buffer !== buffer || next.start !== end || next.due > now) break;
      end = next.end;
      this.#queue.shift();
    }
    for (let at = start; at < end;) {
      at += await this.#to.write(buffer.bytes.subarray(at, end));
    }
    this.#inFlight -= end - start;
    buffer.pieces -= pieces;
    if (buffer.pieces === 0 && buffer !== this.#buffer) this.#pool.give(buffer);
    this.#wakeReader();
  }
}

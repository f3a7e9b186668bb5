/** The sending half of a connection: small replies gathered, big ones as they are. */

import { type ByteStream, writeStream } from "./stream.ts";

/** Most bytes that {@linkcode ReplyStream.reserve} gives: data of 256 KiB and its headers. */
export const RESERVE_MAX = 256 * 1024 + 4096;
/** Gathered bytes at which a write starts without waiting for more. */
const FLUSH_BYTES = 128 * 1024;

interface Piece {
  bytes: Uint8Array;
  /** Called when the bytes were written, or never will be. */
  done: () => void;
}

/**
 * Two buffers in turn: one is filled while the other is written. Pieces go out
 * in the order in which they were given; a reply is always one piece of it, so
 * replies never mix.
 */
export class ReplyStream {
  /** Where reserved bytes are: at {@linkcode fill}. Changes with every `reserve`. */
  front: Uint8Array<ArrayBuffer>;
  view: DataView;
  /** Bytes of `front` that are taken; whoever wrote a reply there moves it. */
  fill = 0;
  readonly #stream: ByteStream;
  readonly #onError: (error: unknown) => void;
  #spare: Uint8Array<ArrayBuffer> | undefined;
  readonly #queue: Piece[] = [];
  #pumping = false;
  #dead = false;
  /** When the write that is under way started; undefined when none is. */
  #writeStarted: number | undefined;
  #waiters: (() => void)[] = [];

  /** @param onError Called once when writing fails; everything is dropped from then on. */
  constructor(stream: ByteStream, onError: (error: unknown) => void) {
    this.#stream = stream;
    this.#onError = onError;
    // Untouched pages of these cost no memory.
    this.front = new Uint8Array(RESERVE_MAX);
    this.#spare = new Uint8Array(RESERVE_MAX);
    this.view = new DataView(this.front.buffer);
  }

  /** Nothing is left to write. */
  get idle(): boolean {
    return this.#dead || (this.fill === 0 && !this.#pumping);
  }

  /** Milliseconds (of `performance.now`) at which the running write began. */
  get writeStarted(): number | undefined {
    return this.#writeStarted;
  }

  /**
   * Makes room for a reply of up to {@linkcode RESERVE_MAX} bytes at
   * `front[fill…]`.
   *
   * @returns False if there is none before {@linkcode room} resolves.
   */
  reserve(length: number): boolean {
    return RESERVE_MAX - this.fill >= length || this.#rotate();
  }

  /** Resolves when `reserve` may succeed again, or the stream is dead. */
  room(): Promise<void> {
    if (this.#dead) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  /** Starts to write when enough was gathered. */
  flushIfFull(): void {
    if (this.fill >= FLUSH_BYTES) this.flush();
  }

  /** Starts to write what was gathered; it goes on by itself. */
  flush(): void {
    if (this.fill > 0) this.#rotate();
  }

  /** Sends `bytes` after what was given before; they belong to the stream until `done` is called. */
  send(bytes: Uint8Array, done: () => void): void {
    if (this.#dead) return done();
    this.flush();
    // A full front that could not rotate follows later: replies have no order.
    this.#queue.push({ bytes, done });
    this.#startPump();
  }

  /** Drops everything, for a connection that is gone. */
  kill(): void {
    if (this.#dead) return;
    this.#dead = true;
    for (const piece of this.#queue.splice(0)) piece.done();
    this.fill = 0;
    this.#wake();
  }

  /** Hands the front to the writer and goes on in the spare. */
  #rotate(): boolean {
    if (this.#dead) {
      // Whatever is written here goes nowhere, but there is room for it.
      this.fill = 0;
      return true;
    }
    const next = this.#spare;
    if (!next) return false;
    const buffer = this.front;
    this.#queue.push({
      bytes: buffer.subarray(0, this.fill),
      done: () => {
        this.#spare = buffer;
        this.#wake();
      },
    });
    this.#spare = undefined;
    this.front = next;
    this.view = new DataView(next.buffer);
    this.fill = 0;
    this.#startPump();
    return true;
  }

  #startPump(): void {
    if (!this.#pumping) this.#pump();
  }

  async #pump(): Promise<void> {
    this.#pumping = true;
    try {
      for (;;) {
        const piece = this.#queue.shift();
        if (!piece) break;
        this.#writeStarted = performance.now();
        try {
          await writeStream(this.#stream, piece.bytes);
        } finally {
          piece.done();
        }
        // What was gathered while the spare was away.
        if (this.#queue.length === 0 && this.fill > 0) this.flush();
      }
    } catch (error) {
      const first = !this.#dead;
      this.kill();
      if (first) this.#onError(error);
    } finally {
      this.#pumping = false;
      this.#writeStarted = undefined;
      this.#wake();
    }
  }

  #wake(): void {
    for (const waiter of this.#waiters.splice(0)) waiter();
  }
}

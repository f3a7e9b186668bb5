/** Buffers for replies that wait for their source, used again instead of made anew. */

import { RESERVE_MAX } from "./reply_stream.ts";

/** Room for the headers of a reply beside its data: 64 runs of 60 bytes. */
const HEADROOM = 4096;
const SMALLEST = 4096;
/** Larger buffers are left to the garbage collector. */
const LARGEST = 2 * 1024 * 1024;
/** Bytes kept for later use. */
const MAX_IDLE_BYTES = 16 * 1024 * 1024;
/** Nothing is kept for longer than this since a buffer was taken. */
const KEEP_MS = 10_000;

/** Buffers by size class: a power of two and {@linkcode HEADROOM}. */
export class BufferPool {
  readonly #idle = new Map<number, Uint8Array<ArrayBuffer>[]>();
  #idleBytes = 0;
  #isUsed = false;
  #usedAt = 0;

  /** Lets go of what nobody came back for; called now and then with `performance.now()`. */
  tick(now: number): void {
    if (this.#isUsed) this.#usedAt = now;
    this.#isUsed = false;
    if (now - this.#usedAt >= KEEP_MS) this.clear();
  }

  /** Lets go of all. */
  clear(): void {
    this.#idle.clear();
    this.#idleBytes = 0;
  }

  /** A buffer of at least `length` bytes with any content. */
  take(length: number): Uint8Array<ArrayBuffer> {
    let size = SMALLEST + HEADROOM;
    while (size < length && size <= LARGEST) {
      size = (size - HEADROOM) * 2 + HEADROOM;
    }
    if (size < length || size > LARGEST) return new Uint8Array(length);
    this.#isUsed = true;
    const found = this.#idle.get(size)?.pop();
    if (!found) return new Uint8Array(size);
    this.#idleBytes -= size;
    return found;
  }

  /** Takes back a buffer from {@linkcode take} that nobody uses any more. */
  give(buffer: Uint8Array<ArrayBuffer>): void {
    const size = buffer.length;
    const shift = Math.log2(size - HEADROOM);
    if (
      size > LARGEST || !Number.isInteger(shift) ||
      size < SMALLEST + HEADROOM ||
      this.#idleBytes + size > MAX_IDLE_BYTES
    ) return;
    const list = this.#idle.get(size);
    if (list) list.push(buffer);
    else this.#idle.set(size, [buffer]);
    this.#idleBytes += size;
  }
}

/** Replies up to this size are gathered with others instead of written alone. */
export const GATHER_MAX = RESERVE_MAX / 4;

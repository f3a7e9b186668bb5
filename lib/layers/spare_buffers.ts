/** Shared memory that is used again: new memory costs page faults, and garbage of it a collection. */

/** New buffers have a multiple of it, so that they fit other needs too. */
const GRAIN_BYTES = 256 * 1024;
/** More than this is left to the collector at once. */
const MAX_SPARE = 16;

/**
 * Buffers between two uses. They are held weakly: what is not used again is
 * garbage like any other, so an idle process does not keep it.
 */
export class SpareBuffers {
  readonly #spare: WeakRef<SharedArrayBuffer>[] = [];

  /** A buffer of at least `length` bytes, of any content, the caller's. */
  take(length: number): SharedArrayBuffer {
    for (let i = this.#spare.length - 1; i >= 0; i--) {
      const buffer = this.#spare[i]!.deref();
      const fits = buffer !== undefined && buffer.byteLength >= length;
      if (fits || !buffer) this.#spare.splice(i, 1);
      if (fits) return buffer;
    }
    return new SharedArrayBuffer(Math.ceil(length / GRAIN_BYTES) * GRAIN_BYTES);
  }

  /** Takes a buffer that nobody uses any more, in no thread. */
  give(buffer: SharedArrayBuffer): void {
    if (this.#spare.length < MAX_SPARE) this.#spare.push(new WeakRef(buffer));
  }
}

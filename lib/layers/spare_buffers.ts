/** Shared memory that is used again: new memory costs page faults, and garbage of it a collection. */

/** New buffers have a multiple of it, so that they fit other needs too. */
const GRAIN_BYTES = 64 * 1024;
/** More than this is left to the collector at once. */
const MAX_SPARE = 16;
/** What a test sees when it reads a buffer that went back. */
const POISON = 0xdb;

/**
 * Buffers between two uses. They are held weakly: what is not used again is
 * garbage like any other, so an idle process does not keep it.
 *
 * The engine does not count shared memory when it decides to collect, so there
 * is a bound on what exists of it: beyond that users take memory of their own.
 */
export class SpareBuffers {
  readonly #limit: number;
  /** The oldest first. */
  readonly #spare: WeakRef<SharedArrayBuffer>[] = [];
  readonly #collected: FinalizationRegistry<number>;
  #bytes = 0;

  /** @param limit Most bytes of buffers that exist, in use or not. */
  constructor(limit: number) {
    this.#limit = limit;
    this.#collected = new FinalizationRegistry((bytes) => this.#bytes -= bytes);
  }

  /** Bytes of all buffers that exist: in use, spare, or not collected yet. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * A buffer of at least `length` and at most twice as many bytes (or
   * {@linkcode GRAIN_BYTES}), of any content, the caller's; undefined when too
   * much memory is in use.
   */
  take(length: number): SharedArrayBuffer | undefined {
    const grains = Math.max(1, Math.ceil(length / GRAIN_BYTES));
    const most = Math.max(GRAIN_BYTES, 2 * length);
    for (let i = this.#spare.length - 1; i >= 0; i--) {
      const buffer = this.#spare[i]!.deref();
      const fits = buffer !== undefined && buffer.byteLength >= length &&
        buffer.byteLength <= most;
      if (fits || !buffer) this.#spare.splice(i, 1);
      if (fits) return buffer;
    }
    const bytes = grains * GRAIN_BYTES;
    if (this.#bytes + bytes > this.#limit) return undefined;
    const buffer = new SharedArrayBuffer(bytes);
    this.#bytes += bytes;
    this.#collected.register(buffer, bytes);
    return buffer;
  }

  /** Takes a buffer that nobody uses any more, in no thread. */
  give(buffer: SharedArrayBuffer): void {
    if (isPoisoning()) new Uint8Array(buffer).fill(POISON);
    if (this.#spare.length === MAX_SPARE) this.#spare.shift();
    this.#spare.push(new WeakRef(buffer));
  }
}

let poisoning: boolean | undefined;

/** Whether buffers that went back are spoilt, so that who still reads them is found out: for tests. */
function isPoisoning(): boolean {
  return poisoning ??= Deno.env.get("OBD_POISON_BUFFERS") !== undefined;
}

/** Sources that misbehave or wait on purpose. */
import { type ByteSource, checkRange } from "../../lib/io/mod.ts";

/** Memory that answers a few microtasks later, out of order, and records what was read. */
export class WaitingSource implements ByteSource {
  readonly size: number;
  /** Ranges read, in order of the calls. */
  readonly reads: { offset: number; length: number }[] = [];
  active = 0;
  peak = 0;
  disposed = 0;
  /** A read that touches this byte fails. */
  failAt = -1;
  /** Microtasks that good reads take on top; failures come at once. */
  slowness = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.size = bytes.length;
  }

  async pread(dst: Uint8Array, offset: number): Promise<void> {
    checkRange(this.size, offset, dst.length);
    this.reads.push({ offset, length: dst.length });
    this.active++;
    this.peak = Math.max(this.peak, this.active);
    const fails = this.failAt >= offset && this.failAt < offset + dst.length;
    const ticks = fails ? 0 : offset % 5 + this.slowness;
    for (let i = ticks; i >= 0; i--) await Promise.resolve();
    this.active--;
    if (fails) throw new Error("injected");
    dst.set(this.#bytes.subarray(offset, offset + dst.length));
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.disposed++;
    return Promise.resolve();
  }
}

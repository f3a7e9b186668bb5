/** A circular buffer that is addressed by absolute stream positions. */

/** Bytes `[position − capacity, position)` of a stream, at `position % capacity`. */
export class ByteRing {
  /** The storage; may be shared memory. */
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  /** Bytes that it holds. */
  get capacity(): number {
    return this.bytes.length;
  }

  /** Index in {@linkcode bytes} of a stream position. */
  at(position: number): number {
    return position % this.bytes.length;
  }

  /** A new array with the stream's bytes `[from, to)`. */
  copy(from: number, to: number): Uint8Array<ArrayBuffer> {
    const out = new Uint8Array(to - from);
    let done = 0;
    for (const part of this.views(from, to)) {
      out.set(part, done);
      done += part.length;
    }
    return out;
  }

  /** Views of the stream's bytes `[from, to)` in order: none, one or two. */
  *views(from: number, to: number): Iterable<Uint8Array> {
    for (let at = from; at < to;) {
      const index = this.at(at);
      const size = Math.min(to - at, this.bytes.length - index);
      yield this.bytes.subarray(index, index + size);
      at += size;
    }
  }

  /** Puts `bytes` at a stream position. */
  put(position: number, bytes: Uint8Array): void {
    let done = 0;
    while (done < bytes.length) {
      const index = this.at(position + done);
      const size = Math.min(bytes.length - done, this.bytes.length - index);
      this.bytes.set(bytes.subarray(done, done + size), index);
      done += size;
    }
  }
}

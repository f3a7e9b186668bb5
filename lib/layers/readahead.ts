/** Tells sequential readers from random ones, and how far ahead of them to read. */

/** Streams that are followed at once; a new one takes the place of the one used longest ago. */
const MAX_STREAMS = 16;
/** How far a read may lie from where its stream is, for readers with several requests in flight. */
const SLACK_BYTES = 512 * 1024;
/** A stream must have come this far, mostly read, before anything is read ahead of it. */
const PROOF_BYTES = 256 * 1024;
const FIRST_WINDOW_BYTES = 1024 * 1024;
/** Largest window of a reader of one layer: what 2.5 Gbit/s carry in 25 ms. */
export const READAHEAD_BYTES = 8 * 1024 * 1024;

/** One reader that moves forward. */
export interface Stream {
  /** Where it began, and the end of its furthest read. */
  start: number;
  next: number;
  /** Bytes it has read. */
  read: number;
  /** How far ahead of `next` to read; grows as the reader moves. */
  window: number;
  /** Where the window grows next. */
  growAt: number;
  /** End of what was read ahead already; the caller's to advance. */
  ahead: number;
  usedAt: number;
}

/**
 * Follows readers by position. A stream proves itself by coming 256 KiB forward
 * with at least half of that read; random reads do not, and neither do the
 * scattered small reads of starting programs.
 */
export class StreamTracker {
  readonly #maxWindow: number;
  readonly #streams: Stream[] = [];
  #clock = 0;
  #last: Stream | undefined;

  /** @param maxWindow Most bytes ahead of a reader; 0 turns reading ahead off. */
  constructor(maxWindow: number) {
    this.#maxWindow = maxWindow;
  }

  /**
   * Takes note of a read.
   *
   * @returns Its stream, when reading ahead of that pays; up to
   * `next + window` is worth having.
   */
  note(offset: number, length: number): Stream | undefined {
    if (this.#maxWindow === 0 || length === 0) return undefined;
    const stream = this.#find(offset);
    if (!stream) {
      this.#begin(offset, length);
      return undefined;
    }
    stream.usedAt = ++this.#clock;
    stream.read += length;
    stream.next = Math.max(stream.next, offset + length);
    const come = stream.next - stream.start;
    if (come < PROOF_BYTES || stream.read < come / 2) return undefined;
    if (stream.next >= stream.growAt) {
      stream.window = Math.min(
        this.#maxWindow,
        stream.window === 0 ? FIRST_WINDOW_BYTES : stream.window * 2,
      );
      stream.growAt = stream.next + stream.window / 2;
    }
    return stream;
  }

  #find(offset: number): Stream | undefined {
    const last = this.#last;
    if (last && isNear(last, offset)) return last;
    for (const stream of this.#streams) {
      if (isNear(stream, offset)) return this.#last = stream;
    }
    return undefined;
  }

  #begin(offset: number, length: number): void {
    const stream: Stream = {
      start: offset,
      next: offset + length,
      read: length,
      window: 0,
      growAt: 0,
      ahead: 0,
      usedAt: ++this.#clock,
    };
    this.#last = stream;
    if (this.#streams.length < MAX_STREAMS) {
      this.#streams.push(stream);
      return;
    }
    let oldest = 0;
    for (let i = 1; i < MAX_STREAMS; i++) {
      if (this.#streams[i]!.usedAt < this.#streams[oldest]!.usedAt) oldest = i;
    }
    this.#streams[oldest] = stream;
  }
}

function isNear(stream: Stream, offset: number): boolean {
  return Math.abs(offset - stream.next) <= SLACK_BYTES;
}

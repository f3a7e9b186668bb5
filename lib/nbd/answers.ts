/** Answers without data, and gathering those that become ready together. */

import { nbdErrorName } from "./errno.ts";
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_HEADER,
  type Cookie,
  SIMPLE_REPLY,
  writeChunkHeader,
  writeSimpleReply,
} from "./protocol.ts";
import type { ReplyStream } from "./reply_stream.ts";

const encoder = new TextEncoder();

/** Writes small answers into a reply stream. */
export class Answers {
  readonly #out: ReplyStream;
  readonly #structured: boolean;
  #flushScheduled = false;

  constructor(out: ReplyStream, structured: boolean) {
    this.#out = out;
    this.#structured = structured;
  }

  /** Done; also with structured replies this may be a simple one. */
  ok(cookie: Cookie): void {
    this.#put(
      SIMPLE_REPLY.SIZE,
      (view, at) => writeSimpleReply(view, at, cookie, 0),
    );
  }

  /** Failed. A structured answer carries the error's name, and no cause: that is for the log. */
  error(cookie: Cookie, error: number): void {
    if (!this.#structured) {
      this.#put(
        SIMPLE_REPLY.SIZE,
        (view, at) => writeSimpleReply(view, at, cookie, error),
      );
      return;
    }
    const text = encoder.encode(nbdErrorName(error));
    const length = 6 + text.length;
    this.#put(CHUNK_HEADER.SIZE + length, (view, at, bytes) => {
      writeChunkHeader(view, at, cookie, CHUNK.error, CHUNK_DONE, length);
      view.setUint32(at + CHUNK_HEADER.SIZE, error);
      view.setUint16(at + CHUNK_HEADER.SIZE + 4, text.length);
      bytes.set(text, at + CHUNK_HEADER.SIZE + 6);
    });
  }

  /**
   * Adds a copy of a whole answer to what is gathered.
   *
   * @returns False if there is no room now.
   */
  gather(wire: Uint8Array): boolean {
    const out = this.#out;
    if (!out.reserve(wire.length)) return false;
    out.front.set(wire, out.fill);
    out.fill += wire.length;
    this.#scheduleFlush();
    return true;
  }

  /** Adds a few bytes, also when the gathering buffers are full. */
  #put(
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

  /** Flushes once for all answers of one turn of the event loop. */
  #scheduleFlush(): void {
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    queueMicrotask(() => {
      this.#flushScheduled = false;
      this.#out.flush();
    });
  }
}

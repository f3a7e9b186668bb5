/** The sending half of a client: requests of one turn of the event loop in one write. */

import { REQUEST, type Request, writeRequest } from "./protocol.ts";
import { type ByteStream, writeStream } from "./stream.ts";

/** Requests gathered before they are written, in bytes. */
const SEND_BYTES = 64 * REQUEST.SIZE;

/** Gathers requests and writes them in order, each followed by its payload. */
export class RequestSender {
  readonly #stream: ByteStream;
  readonly #onError: (error: Error) => void;
  readonly #bytes = new Uint8Array(SEND_BYTES);
  readonly #view = new DataView(this.#bytes.buffer);
  #fill = 0;
  #scheduled = false;
  #stopped = false;
  /** Settles when everything so far was written; never rejects. */
  #tail: Promise<void> = Promise.resolve();

  /** @param onError Called when writing fails; what follows is dropped. */
  constructor(stream: ByteStream, onError: (error: Error) => void) {
    this.#stream = stream;
    this.#onError = onError;
  }

  /** Adds a request. `payload` belongs to the sender until the server has answered. */
  send(request: Request, payload: Uint8Array | undefined): void {
    if (this.#fill + REQUEST.SIZE > SEND_BYTES) this.#flush();
    writeRequest(this.#view, this.#fill, request);
    this.#fill += REQUEST.SIZE;
    if (payload) {
      this.#flush();
      this.#write(payload);
    } else if (!this.#scheduled) {
      this.#scheduled = true;
      queueMicrotask(() => this.#flush());
    }
  }

  /** Resolves when all that was sent is written, or writing has failed. */
  written(): Promise<void> {
    this.#flush();
    return this.#tail;
  }

  /** Drops what was not written. */
  stop(): void {
    this.#stopped = true;
  }

  #flush(): void {
    this.#scheduled = false;
    if (this.#fill === 0) return;
    // A copy: the buffer is filled again while this is written.
    const bytes = this.#bytes.slice(0, this.#fill);
    this.#fill = 0;
    this.#write(bytes);
  }

  #write(bytes: Uint8Array): void {
    this.#tail = this.#tail.then(async () => {
      if (this.#stopped) return;
      try {
        await writeStream(this.#stream, bytes);
      } catch (error) {
        this.#stopped = true;
        this.#onError(error as Error);
      }
    });
  }
}

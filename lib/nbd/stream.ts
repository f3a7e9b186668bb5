/** Byte streams in both directions, and the receiving buffer on top of them. */

import type { NbdAddress } from "./address.ts";
import type * as net from "node:net";

/** A connected socket; `Deno.Conn` is one. */
export interface ByteStream {
  /** Reads at least one byte, or null at the end. */
  read(into: Uint8Array): Promise<number | null>;
  /** Writes at least one byte; the bytes belong to the stream until it settles. */
  write(bytes: Uint8Array): Promise<number>;
  /** Ends both directions; pending calls reject. To be called once. */
  close(): void;
}

/** Connects to a server. */
export async function dial(address: NbdAddress): Promise<ByteStream> {
  if (address.transport === "unix") {
    return await Deno.connect({ transport: "unix", path: address.path });
  }
  const { hostname, port } = address;
  const conn = await Deno.connect({ transport: "tcp", hostname, port });
  conn.setNoDelay(true);
  return conn;
}

/** Wraps a socket of `node:net`, which is how sockets passed by systemd arrive. */
export class NodeStream implements ByteStream {
  readonly #socket: net.Socket;
  #wake: (() => void) | undefined;
  #error: Error | undefined;
  #ended = false;

  constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.setNoDelay?.(true);
    const wake = () => {
      const waiting = this.#wake;
      this.#wake = undefined;
      waiting?.();
    };
    socket.on("readable", wake);
    socket.on("end", () => {
      this.#ended = true;
      wake();
    });
    socket.on("error", (error: Error) => {
      this.#error = error;
      wake();
    });
    socket.on("close", () => {
      this.#ended = true;
      wake();
    });
  }

  async read(into: Uint8Array): Promise<number | null> {
    for (;;) {
      if (this.#error) throw this.#error;
      const waiting = this.#socket.readableLength;
      const bytes: Uint8Array | null = waiting === 0
        ? this.#socket.read()
        : this.#socket.read(Math.min(waiting, into.length));
      if (bytes !== null) {
        into.set(bytes.subarray(0, into.length));
        const rest = bytes.subarray(into.length);
        if (rest.length > 0) this.#socket.unshift(rest);
        return Math.min(bytes.length, into.length);
      }
      if (this.#ended) return null;
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  write(bytes: Uint8Array): Promise<number> {
    return new Promise((resolve, reject) => {
      const socket = this.#socket;
      if (socket.destroyed) return reject(new Error("Socket is closed"));
      const onClose = () => reject(new Error("Socket is closed"));
      socket.once("close", onClose);
      socket.write(bytes, (error) => {
        socket.removeListener("close", onClose);
        if (error) reject(error);
        else resolve(bytes.length);
      });
    });
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Bytes of a connection's receive buffer: 2,340 requests. */
const RECEIVE_BYTES = 64 * 1024;

/** Received bytes that were not taken yet: `bytes[start…end)`. */
export class ReceiveBuffer {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView;
  /** First byte not taken; whoever takes bytes moves it. */
  start = 0;
  /** End of what was received, exclusive. */
  end = 0;
  readonly #stream: ByteStream;

  /** @param size Most bytes that {@linkcode need} can be asked for. */
  constructor(stream: ByteStream, size = RECEIVE_BYTES) {
    this.#stream = stream;
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
  }

  /** Bytes received and not taken. */
  get available(): number {
    return this.end - this.start;
  }

  /**
   * Receives more; the buffer must not be full of untaken bytes.
   *
   * @returns False at the end of the stream.
   */
  async fill(): Promise<boolean> {
    if (this.start > 0) {
      this.bytes.copyWithin(0, this.start, this.end);
      this.end -= this.start;
      this.start = 0;
    }
    const got = await this.#stream.read(this.bytes.subarray(this.end));
    if (got === null) return false;
    this.end += got;
    return true;
  }

  /**
   * Waits until `length` bytes stand in the buffer.
   *
   * @returns False if the stream ends before.
   */
  async need(length: number): Promise<boolean> {
    while (this.available < length) if (!await this.fill()) return false;
    return true;
  }

  /** Takes exactly `dst.length` bytes, straight into `dst` where they are not here yet. False at the end. */
  async take(dst: Uint8Array): Promise<boolean> {
    let done = Math.min(this.available, dst.length);
    dst.set(this.bytes.subarray(this.start, this.start + done));
    this.start += done;
    while (done < dst.length) {
      const got = await this.#stream.read(dst.subarray(done));
      if (got === null) return false;
      done += got;
    }
    return true;
  }

  /** Drops `length` bytes. False at the end. */
  async skip(length: number): Promise<boolean> {
    let left = length;
    for (;;) {
      const now = Math.min(left, this.available);
      this.start += now;
      left -= now;
      if (left === 0) return true;
      if (!await this.fill()) return false;
    }
  }
}

/** Writes all of `bytes`. */
export async function writeStream(
  stream: ByteStream,
  bytes: Uint8Array,
): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    done += await stream.write(done === 0 ? bytes : bytes.subarray(done));
  }
}

/** A stream that may be closed any number of times, by whoever notices first. */
export class SharedStream implements ByteStream {
  readonly #inner: ByteStream;
  #closed = false;

  constructor(inner: ByteStream) {
    this.#inner = inner;
  }

  read(into: Uint8Array): Promise<number | null> {
    return this.#inner.read(into);
  }

  write(bytes: Uint8Array): Promise<number> {
    return this.#inner.write(bytes);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    try {
      this.#inner.close();
    } catch {
      // The other end was faster.
    }
  }
}

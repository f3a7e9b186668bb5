/**
 * One HTTP/1.1 exchange, through `fetch` or, where certificates must not be
 * checked, through node:https (the runtime's fetch cannot leave the check out
 * for one client).
 *
 * HTTP/2 is off: over it the runtime's ranges of 1 MiB stall (measured:
 * 43 MB/s against 250 and more, Deno 2.9.6).
 */

import http from "node:http";
import https from "node:https";
import { copyBytes, errorText, UsageError } from "../io/mod.ts";
import { type HostTls, readSystemBundle } from "./tls.ts";

/** A request body; a stream is opened anew for each attempt. */
export type RequestBody =
  | Uint8Array<ArrayBuffer>
  | (() => AsyncIterable<Uint8Array>);

/** What is sent. */
export interface WireRequest {
  method: string;
  url: URL;
  headers: Headers;
  body?: Uint8Array<ArrayBuffer> | AsyncIterable<Uint8Array>;
}

/** What comes back; redirects are answers like any other. */
export interface WireResponse {
  status: number;
  headers: Headers;
  /**
   * Reads some bytes into the front of `dst`.
   *
   * @returns How many; 0 at the end of the body. Rejects when the body breaks off.
   */
  read(dst: Uint8Array): Promise<number>;
  /** Lets go of the connection, also in the middle of the body. */
  cancel(): Promise<void>;
}

/** Sends requests to the hosts of one TLS configuration. */
export interface HttpEngine {
  /** @throws {Error} What the runtime throws; aborts reject in some way. */
  send(request: WireRequest, signal: AbortSignal): Promise<WireResponse>;
  close(): void;
}

/** Bytes that are taken from the runtime at once. */
const READ_SIZE = 256 * 1024;

/**
 * Chooses an engine.
 *
 * @throws {UsageError} If the runtime does not accept a certificate or key.
 */
export async function createEngine(
  tls: HostTls,
  options: { skipVerify: boolean; idleConnectionsPerHost: number },
): Promise<HttpEngine> {
  return options.skipVerify
    ? new NodeEngine(tls, await readSystemBundle())
    : new FetchEngine(tls, options.idleConnectionsPerHost);
}

class FetchEngine implements HttpEngine {
  readonly #client: Deno.HttpClient;
  readonly #scratches = new Scratches();

  constructor(tls: HostTls, poolMaxIdlePerHost: number) {
    try {
      this.#client = Deno.createHttpClient({
        http2: false,
        caCerts: tls.caCerts,
        poolMaxIdlePerHost,
        ...(tls.clientCert !== undefined && tls.clientKey !== undefined
          ? { cert: tls.clientCert, key: tls.clientKey }
          : {}),
      });
    } catch (cause) {
      throw new UsageError(
        `A CA certificate or client certificate cannot be used: ${
          errorText(cause)
        }`,
      );
    }
  }

  async send(
    request: WireRequest,
    signal: AbortSignal,
  ): Promise<WireResponse> {
    const { method, url, headers, body } = request;
    const response = await fetch(url, {
      client: this.#client,
      method,
      headers,
      redirect: "manual",
      signal,
      body: body === undefined || body instanceof Uint8Array
        ? body ?? null
        : ReadableStream.from(body),
    });
    return new FetchResponse(response, this.#scratches);
  }

  close(): void {
    this.#client.close();
  }
}

/**
 * What bodies are read into, for the next body: fresh memory for each costs page
 * faults and collections. Held weakly, so that an idle process keeps none.
 */
class Scratches {
  readonly #spare: WeakRef<ArrayBuffer>[] = [];

  take(): ArrayBuffer {
    return this.#spare.pop()?.deref() ?? new ArrayBuffer(READ_SIZE + 8);
  }

  give(scratch: ArrayBuffer): void {
    this.#spare.push(new WeakRef(scratch));
  }
}

class FetchResponse implements WireResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly #reader: ReadableStreamBYOBReader | undefined;
  readonly #scratches: Scratches;
  #scratch: ArrayBuffer | undefined;

  constructor(response: Response, scratches: Scratches) {
    this.#scratches = scratches;
    this.status = response.status;
    this.headers = response.headers;
    // Twice as fast as the default reader.
    this.#reader = response.body?.getReader({ mode: "byob" });
  }

  async read(dst: Uint8Array): Promise<number> {
    if (!this.#reader) return 0;
    // The stream takes the buffer that it fills away, so it never gets `dst`.
    const scratch = this.#scratch ?? this.#scratches.take();
    this.#scratch = undefined;
    // It begins at the same byte of a word, since `dst` may be shared memory,
    // into which the runtime copies words or else single bytes.
    const { value, done } = await this.#reader.read(
      new Uint8Array(
        scratch,
        dst.byteOffset % 8,
        Math.min(READ_SIZE, dst.length),
      ),
    );
    // Undefined when the stream was cancelled meanwhile: the buffer is lost.
    if (!value) return 0;
    if (done) this.#scratches.give(value.buffer);
    else this.#scratch = value.buffer;
    dst.set(value);
    return value.length;
  }

  async cancel(): Promise<void> {
    await this.#reader?.cancel().catch(() => {});
  }
}

class NodeEngine implements HttpEngine {
  readonly #secure: https.Agent;
  readonly #plain = new http.Agent({ keepAlive: true });

  constructor(tls: HostTls, systemBundle: string) {
    this.#secure = new https.Agent({
      keepAlive: true,
      rejectUnauthorized: false,
      ca: [systemBundle, ...tls.caCerts].filter((pem) => pem !== ""),
      ...(tls.clientCert !== undefined && tls.clientKey !== undefined
        ? { cert: tls.clientCert, key: tls.clientKey }
        : {}),
    });
  }

  async send(
    request: WireRequest,
    signal: AbortSignal,
  ): Promise<WireResponse> {
    const { method, url, body } = request;
    const headers: Record<string, string> = Object.fromEntries(request.headers);
    if (body instanceof Uint8Array) {
      headers["content-length"] = String(body.length);
    }
    const isSecure = url.protocol === "https:";
    const outgoing = (isSecure ? https : http).request(url, {
      agent: isSecure ? this.#secure : this.#plain,
      method,
      headers,
      signal,
    });
    const answered = new Promise<http.IncomingMessage>((resolve, reject) => {
      outgoing.once("response", resolve);
      outgoing.on("error", reject); // stays: an abort may raise it later
      // Of a request on a connection that was used before, the runtime (Deno
      // 2.9.6) takes an abort for a break, tells nobody and sends it again.
      signal.addEventListener("abort", () => reject(signal.reason));
      outgoing.on("socket", (socket) => {
        if (signal.aborted) socket.destroy();
      });
    });
    answered.catch(() => {});
    const writing = writeBody(outgoing, body, answered);
    writing.catch(() => outgoing.destroy()); // the rest never comes
    // An answer, or an abort, does not wait for more of the body.
    await Promise.race([writing, answered]);
    return new NodeResponse(await answered);
  }

  close(): void {
    this.#secure.destroy();
    this.#plain.destroy();
  }
}

/** Writes until the body ends or an answer (or error) comes first. */
async function writeBody(
  outgoing: http.ClientRequest,
  body: WireRequest["body"],
  answered: Promise<unknown>,
): Promise<void> {
  if (body === undefined || body instanceof Uint8Array) {
    outgoing.end(body);
    return;
  }
  let isAnswered = false;
  const done = answered.then(
    () => void (isAnswered = true),
    () => void (isAnswered = true),
  );
  // One listener for the whole body: they would pile up otherwise.
  let drained = () => {};
  outgoing.on("drain", () => drained());
  for await (const piece of body) {
    const drain = new Promise<void>((resolve) => drained = resolve);
    if (isAnswered) break;
    if (!outgoing.write(piece)) await Promise.race([drain, done]);
  }
  outgoing.end();
}

class NodeResponse implements WireResponse {
  readonly status: number;
  readonly headers = new Headers();
  readonly #message: http.IncomingMessage;
  readonly #pieces: AsyncIterator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array(0);

  constructor(message: http.IncomingMessage) {
    this.#message = message;
    this.status = message.statusCode ?? 0;
    for (let i = 0; i + 1 < message.rawHeaders.length; i += 2) {
      this.headers.append(message.rawHeaders[i]!, message.rawHeaders[i + 1]!);
    }
    this.#pieces = message[Symbol.asyncIterator]();
  }

  async read(dst: Uint8Array): Promise<number> {
    while (this.#rest.length === 0) {
      const { value, done } = await this.#pieces.next();
      if (done) {
        if (!this.#message.complete) throw new Error("Body ended early");
        return 0;
      }
      this.#rest = value;
    }
    const length = Math.min(dst.length, this.#rest.length);
    copyBytes(dst, this.#rest.subarray(0, length));
    this.#rest = this.#rest.subarray(length);
    return length;
  }

  cancel(): Promise<void> {
    this.#message.destroy();
    return Promise.resolve();
  }
}

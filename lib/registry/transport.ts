/**
 * Requests with deadlines, bounded concurrency and retries. Knows hosts and
 * certificates, but neither authentication nor redirects (see `session.ts`).
 */

import {
  DeadlineError,
  LimitError,
  type Logger,
  ObdError,
  Semaphore,
  silentLogger,
  type Urgent,
} from "../io/mod.ts";
import { hostKind } from "./addresses.ts";
import { type Clock, systemClock } from "./clock.ts";
import { redactText, redactUrl, RegistryError } from "./errors.ts";
import {
  createEngine,
  type HttpEngine,
  type RequestBody,
  type WireResponse,
} from "./http.ts";
import { apiHost } from "./reference.ts";
import { abortError } from "./signals.ts";
import { Peer } from "./peer.ts";
import { keepLoopbackDirect } from "./proxies.ts";
import {
  CERTS_DIRECTORIES,
  type ClientPair,
  hasHostTls,
  loadHostTls,
  useSystemCas,
} from "./tls.ts";

/** Deadlines and retries; milliseconds unless named. */
export interface TransportLimits {
  /** From the start of a request to the headers of its answer. */
  answerMs: number;
  /**
   * The same for content that is stored: registries move blobs about then.
   * From its last byte where it is streamed, which each piece may take
   * `answerMs` for; else from the start.
   */
  commitMs: number;
  /** A body must bring {@linkcode stallBytes} in each such time. */
  stallMs: number;
  /** Bytes. */
  stallBytes: number;
  /** Attempts that bring nothing forward; one more ends in an error. */
  attempts: number;
  /** From the first attempt to the last one's start, while nothing comes forward. */
  totalMs: number;
  /** First and largest pause between attempts; the real one is a random part. */
  pauseMs: number;
  pauseMaxMs: number;
  /** Longest `Retry-After` that is waited for. */
  retryAfterMaxMs: number;
}

/** Defaults of {@linkcode TransportLimits}. */
export const DEFAULT_LIMITS: Readonly<TransportLimits> = {
  answerMs: 30_000,
  commitMs: 300_000,
  stallMs: 30_000,
  stallBytes: 16 * 1024,
  attempts: 6,
  totalMs: 120_000,
  pauseMs: 250,
  pauseMaxMs: 10_000,
  retryAfterMaxMs: 60_000,
};

/** Options of a {@linkcode Transport}. */
export interface TransportOptions {
  /** True: HTTP for every host. Absent: for loopback hosts without certificates of their own. */
  plainHttp?: boolean | undefined;
  /** PEM file with more CAs. */
  caFile?: string | undefined;
  tlsSkipVerify?: boolean | undefined;
  /** Client certificate for hosts that have none of their own. */
  clientPair?: ClientPair | undefined;
  /** URL of a P2P agent that blobs are fetched through; see `peer.ts`. */
  peerAddress?: string | undefined;
  /** Directories with certificates per host; for tests. */
  certsDirectories?: readonly string[] | undefined;
  /** Requests at once per host. Default 16. */
  concurrency?: number | undefined;
  limits?: Partial<TransportLimits> | undefined;
  userAgent?: string | undefined;
  logger?: Logger | undefined;
  clock?: Clock | undefined;
}

/** A request to an absolute URL. */
export interface ExchangeRequest extends Urgent {
  method: string;
  url: URL;
  headers?: Record<string, string> | undefined;
  body?: RequestBody | undefined;
  signal?: AbortSignal | undefined;
  /** It reads content that has a digest, which a P2P agent may have. */
  isBlob?: boolean | undefined;
  /** It has content stored: the answer may take as long as that does. */
  isUpload?: boolean | undefined;
}

/** An answer whose body is still to be read. One of its methods must see the end of it. */
export interface Exchange {
  readonly method: string;
  readonly url: URL;
  readonly status: number;
  readonly headers: Headers;
  /** Some bytes into the front of `dst`; 0 at the end. Rejects when the body stalls or breaks off. */
  read(dst: Uint8Array): Promise<number>;
  /** The whole body. @throws {LimitError} If it is larger than `sizeMax` bytes. */
  bytes(sizeMax: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Ends it. A short rest is read, so that the connection can be used again. */
  discard(): Promise<void>;
}

/** What went to and came from one host. Live: it goes on changing. */
export interface HostStatistics {
  /** `host[:port]`. */
  host: string;
  requests: number;
  /** Bytes of bodies received. */
  bytes: number;
  /** Requests without an answer, and bodies that broke off. */
  errors: number;
}

/** Part of a host's permits that prefetch may hold: demand finds the others free. */
const PREFETCH_SHARE = 0.5;
const DRAIN_SIZE_MAX = 64 * 1024;
/** What is read to be thrown away, of all exchanges. */
const drain = new Uint8Array(16 * 1024);
const USER_AGENT = "obd/0.1";

/** Connections to registries and to what they redirect to. Shared by many repositories. */
export class Transport implements AsyncDisposable {
  readonly limits: Readonly<TransportLimits>;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly #options: TransportOptions;
  readonly #engines = new Map<string, Promise<HttpEngine>>();
  readonly #permits = new Map<string, Semaphore>();
  readonly #statistics = new Map<string, HostStatistics>();
  readonly #schemes = new Map<string, Promise<"http:" | "https:">>();
  readonly #open = new Set<() => Promise<void>>();
  readonly #peer: Peer | undefined;

  constructor(options: TransportOptions = {}) {
    useSystemCas();
    keepLoopbackDirect();
    this.#options = options;
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.clock = options.clock ?? systemClock;
    this.logger = options.logger ?? silentLogger;
    const { peerAddress } = options;
    this.#peer = peerAddress === undefined
      ? undefined
      : new Peer(peerAddress, this.clock, this.logger);
  }

  /** `http://host:port/` or `https://…/` of a registry's API. */
  async baseUrl(registry: string): Promise<URL> {
    const host = apiHost(registry);
    let scheme = this.#schemes.get(host);
    if (!scheme) {
      scheme = this.#chooseScheme(host);
      scheme.catch(() => this.#schemes.delete(host));
      this.#schemes.set(host, scheme);
    }
    return new URL(`${await scheme}//${host}/`);
  }

  /**
   * Speaks plain HTTP to one registry, as a URL that somebody wrote says; of no
   * effect once it was spoken to.
   */
  usePlainHttp(registry: string): void {
    const host = apiHost(registry);
    if (this.#options.plainHttp === undefined && !this.#schemes.has(host)) {
      this.#schemes.set(host, Promise.resolve("http:"));
    }
  }

  async #chooseScheme(host: string): Promise<"http:" | "https:"> {
    const { plainHttp, caFile, tlsSkipVerify, certsDirectories } =
      this.#options;
    if (plainHttp !== undefined) return plainHttp ? "http:" : "https:";
    const isLoopback =
      hostKind(new URL(`http://${host}/`).hostname) === "loopback";
    const wantsTls = caFile !== undefined || tlsSkipVerify === true ||
      await hasHostTls(host, certsDirectories ?? CERTS_DIRECTORIES);
    return isLoopback && !wantsTls ? "http:" : "https:";
  }

  #engine(url: URL): Promise<HttpEngine> {
    const key = url.protocol === "http:" ? "http:" : url.host;
    let engine = this.#engines.get(key);
    if (!engine) {
      engine = this.#createEngine(url);
      engine.catch(() => this.#engines.delete(key));
      this.#engines.set(key, engine);
    }
    return engine;
  }

  async #createEngine(url: URL): Promise<HttpEngine> {
    const isSecure = url.protocol === "https:";
    const tls = isSecure
      ? await loadHostTls(url.host, {
        caFile: this.#options.caFile,
        directories: this.#options.certsDirectories ?? CERTS_DIRECTORIES,
        clientPair: this.#options.clientPair,
      })
      : { caCerts: [] };
    return await createEngine(tls, {
      skipVerify: isSecure && this.#options.tlsSkipVerify === true,
      idleConnectionsPerHost: this.#concurrency,
    });
  }

  get #concurrency(): number {
    return this.#options.concurrency ?? 16;
  }

  #semaphore(host: string): Semaphore {
    let semaphore = this.#permits.get(host);
    if (!semaphore) {
      semaphore = new Semaphore(
        this.#concurrency,
        Math.ceil(this.#concurrency * PREFETCH_SHARE),
      );
      this.#permits.set(host, semaphore);
    }
    return semaphore;
  }

  /** Counters of all hosts, in the order in which they were first asked. */
  get statistics(): HostStatistics[] {
    return [...this.#statistics.values()];
  }

  #statisticsOf(host: string): HostStatistics {
    let one = this.#statistics.get(host);
    if (!one) {
      one = { host, requests: 0, bytes: 0, errors: 0 };
      this.#statistics.set(host, one);
    }
    return one;
  }

  /**
   * One request, one answer. Holds one of the host's permits until the body
   * has ended or was discarded.
   *
   * @throws {RegistryError} With status 0 if there is no answer.
   * @throws {DeadlineError} If it does not come in time.
   * @throws {CancelledError} If `signal` was aborted.
   */
  async exchange(request: ExchangeRequest): Promise<Exchange> {
    const peer = request.isBlob && request.method === "GET"
      ? this.#peer
      : undefined;
    const answer = await peer?.try(
      request.url,
      (url) => this.#exchangeAt(request, url),
      request.headers?.range !== undefined,
      request.signal,
    );
    if (!answer) return await this.#exchangeAt(request, request.url);
    return {
      ...answer,
      read: (dst) =>
        answer.read(dst).catch((error) => {
          peer!.failed(error, request.signal);
          throw error;
        }),
    };
  }

  /** @param at The URL that is really asked. */
  async #exchangeAt(request: ExchangeRequest, at: URL): Promise<Exchange> {
    // Throws if one cannot be said; a permit would be kept for ever.
    const headers = this.#wireHeaders(request);
    const engine = await this.#engine(at);
    const held = Promise.withResolvers<void>();
    const granted = Promise.withResolvers<void>();
    this.#semaphore(at.host).run(() => {
      granted.resolve();
      return held.promise;
    }, request).catch(granted.reject);
    await granted.promise;
    const statistics = this.#statisticsOf(at.host);
    statistics.requests++;
    const guard = new Guard(request, this.limits, statistics, () => {
      this.#open.delete(guard.cancel);
      held.resolve();
    });
    this.#open.add(guard.cancel);
    return await guard.send(engine, at, headers);
  }

  #wireHeaders(request: ExchangeRequest): Headers {
    const headers = new Headers(request.headers);
    headers.set("user-agent", this.#options.userAgent ?? USER_AGENT);
    // Blobs and manifests are checked as stored: nothing may decode them on
    // the way, and a range must be one of the stored bytes.
    headers.set("accept-encoding", "identity");
    return headers;
  }

  /** Ends what is still open and closes the connections. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#open].map((cancel) => cancel()));
    const engines = [...this.#engines.values()];
    this.#engines.clear();
    for (const engine of await Promise.allSettled(engines)) {
      if (engine.status === "fulfilled") engine.value.close();
    }
  }
}

/** Deadlines and cleanup around one exchange. */
class Guard {
  readonly #request: ExchangeRequest;
  readonly #limits: TransportLimits;
  readonly #statistics: HostStatistics;
  readonly #control = new AbortController();
  readonly #onAbort: () => void;
  #release: (() => void) | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #response: WireResponse | undefined;
  #bodyError: unknown;
  #isPending = false;
  #received = 0;
  /** State when the stall timer last ran. */
  #seen = { wasPending: false, received: 0 };

  constructor(
    request: ExchangeRequest,
    limits: TransportLimits,
    statistics: HostStatistics,
    release: () => void,
  ) {
    this.#request = request;
    this.#limits = limits;
    this.#statistics = statistics;
    this.#release = release;
    const { signal } = request;
    this.#onAbort = () => this.#control.abort(abortError(signal!));
    signal?.addEventListener("abort", this.#onAbort, { once: true });
    if (signal?.aborted) this.#onAbort();
  }

  /** @param at The URL that is asked in the request's place. */
  async send(
    engine: HttpEngine,
    at: URL,
    headers: Headers,
  ): Promise<Exchange> {
    const { method, url, body, isUpload } = this.#request;
    try {
      const isWhole = isUpload === true && body instanceof Uint8Array;
      const { answerMs, commitMs } = this.#limits;
      this.#armAnswer(isWhole ? commitMs : answerMs);
      const response = await engine.send({
        method,
        url: at,
        headers,
        ...(body === undefined
          ? {}
          : { body: body instanceof Uint8Array ? body : this.#watch(body()) }),
      }, this.#control.signal);
      this.#response = response;
      this.#armStall();
      return {
        method,
        url,
        status: response.status,
        headers: response.headers,
        read: (dst) => this.#read(dst),
        bytes: (sizeMax) => this.#bytes(sizeMax),
        discard: () => this.#discard(),
      };
    } catch (error) {
      this.#countError();
      const typed = this.#typed(error);
      this.#finish();
      throw typed;
    }
  }

  /** Passes an upload on; as long as it moves, the answer is not waited for. */
  async *#watch(
    body: AsyncIterable<Uint8Array>,
  ): AsyncGenerator<Uint8Array> {
    try {
      for await (const piece of body) {
        this.#armAnswer(this.#limits.answerMs);
        yield piece;
      }
      this.#armAnswer(this.#limits.commitMs);
    } catch (error) {
      this.#bodyError = error;
      throw error;
    }
  }

  #armAnswer(milliseconds: number): void {
    clearTimeout(this.#timer);
    if (!this.#release || this.#response) return;
    this.#timer = setTimeout(() => {
      const what = `${this.#request.method} ${redactUrl(this.#request.url)}`;
      this.#control.abort(new DeadlineError(what, milliseconds));
    }, milliseconds);
  }

  /** A reader that pauses is no stall, so only time in which a read waited counts. */
  #armStall(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const { wasPending, received } = this.#seen;
      if (
        this.#isPending && wasPending &&
        this.#received - received < this.#limits.stallBytes
      ) {
        const what = `The body of ${redactUrl(this.#request.url)}`;
        this.#control.abort(new DeadlineError(what, this.#limits.stallMs));
        // The read may hang in a runtime that does not see the signal.
        this.#response?.cancel();
        return;
      }
      this.#seen = { wasPending: this.#isPending, received: this.#received };
      this.#armStall();
    }, this.#limits.stallMs / 2);
  }

  async #read(dst: Uint8Array): Promise<number> {
    if (!this.#release) return 0;
    this.#isPending = true;
    try {
      const length = await this.#response!.read(dst);
      if (this.#control.signal.aborted) throw this.#control.signal.reason;
      this.#received += length;
      this.#statistics.bytes += length;
      if (length === 0) this.#finish();
      return length;
    } catch (error) {
      this.#countError();
      const typed = this.#typed(error);
      await this.cancel();
      throw typed;
    } finally {
      this.#isPending = false;
    }
  }

  async #bytes(sizeMax: number): Promise<Uint8Array<ArrayBuffer>> {
    const stated = Number(this.#response!.headers.get("content-length")) || 0;
    let buffer = new Uint8Array(
      Math.min(sizeMax + 1, Math.max(4096, stated + 1)),
    );
    let at = 0;
    for (;;) {
      if (at > sizeMax) {
        await this.cancel();
        throw new LimitError(
          `Answer of ${
            redactUrl(this.#request.url)
          } has more than ${sizeMax} bytes`,
        );
      }
      if (at === buffer.length) {
        const larger = new Uint8Array(Math.min(sizeMax + 1, 2 * at));
        larger.set(buffer);
        buffer = larger;
      }
      const length = await this.#read(buffer.subarray(at));
      if (length === 0) return buffer.subarray(0, at);
      at += length;
    }
  }

  async #discard(): Promise<void> {
    if (!this.#release) return;
    try {
      for (let rest = DRAIN_SIZE_MAX; rest > 0;) {
        const length = await this.#read(drain);
        if (length === 0) return;
        rest -= length;
      }
    } catch {
      // What is thrown away may also break.
    }
    await this.cancel();
  }

  /** Lets go at once. */
  readonly cancel = async (): Promise<void> => {
    const response = this.#response;
    const wasOpen = this.#release !== undefined;
    this.#finish();
    if (!wasOpen) return;
    this.#control.abort(new ObdError("cancelled", "The exchange was closed"));
    await response?.cancel();
  };

  #finish(): void {
    clearTimeout(this.#timer);
    this.#request.signal?.removeEventListener("abort", this.#onAbort);
    const release = this.#release;
    this.#release = undefined;
    release?.();
  }

  /** What its asker called off is no fault of the host. */
  #countError(): void {
    if (!this.#request.signal?.aborted) this.#statistics.errors++;
  }

  #typed(error: unknown): unknown {
    if (this.#bodyError !== undefined) return this.#bodyError;
    const { signal } = this.#control;
    if (signal.aborted && signal.reason instanceof ObdError) {
      return signal.reason;
    }
    if (error instanceof ObdError) return error;
    return connectionError(this.#request, error);
  }
}

/** The runtime's messages quote full URLs, so the original is not kept as a cause. */
function connectionError(
  request: ExchangeRequest,
  error: unknown,
): RegistryError {
  const { method, url } = request;
  const text = causeText(error);
  const isCertificate = /certificate|UnknownIssuer|NotValidForName/i.test(text);
  const isTlsMismatch = /InvalidContentType|corrupt message|wrong version/i
    .test(text);
  const hint = isTlsMismatch
    ? " (the server does not speak TLS; is --plain-http missing?)"
    : isCertificate
    ? ` (${certificateHint(text)})`
    : "";
  return new RegistryError(
    `${method} ${redactUrl(url)} failed: ${shorten(text)}${hint}`,
    {
      status: 0,
      method,
      url,
      temporary: !isCertificate && !isTlsMismatch,
    },
  );
}

/** What helps; where the runtime (rustls) is stricter than OpenSSL and Go, no CA file does. */
function certificateHint(text: string): string {
  if (text.includes("CaUsedAsEndEntity")) {
    return "it is that of a CA: the server needs one that the CA signed, or one with basicConstraints=CA:FALSE; or --tls-skip-verify";
  }
  if (text.includes("UnsupportedCertVersion")) {
    return "it needs version 3, with a subjectAltName; or --tls-skip-verify";
  }
  return "see --ca-file and --tls-skip-verify";
}

function causeText(error: unknown): string {
  const parts: string[] = [];
  for (let e = error; e instanceof Error && parts.length < 5; e = e.cause) {
    parts.push(e.message);
  }
  return parts.length === 0 ? String(error) : parts.join(": ");
}

/**
 * "fetch failed: error sending request for url (…): client error (Connect): X: Y"
 * → "Connect: X: Y"; with a connection it is "… from ADDRESS for URL (ADDRESS): …".
 */
function shorten(text: string): string {
  return redactText(
    text.replace(
      /^(fetch failed: )?error sending request (for url \(.*?\)|from \S+ for \S+ \(\S+\)): /,
      "",
    ).replace(/client error \((\w+)\)/, "$1"),
    300,
  );
}

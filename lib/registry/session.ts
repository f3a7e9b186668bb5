/**
 * Requests to one repository of one registry: authentication, redirects,
 * errors, retries.
 */

import type { Urgent } from "../io/mod.ts";
import { Authenticator, type Scope } from "./auth.ts";
import { answerError, RegistryError } from "./errors.ts";
import type { RequestBody } from "./http.ts";
import { checkedHop, REDIRECT_STATUSES, redirectTarget } from "./redirect.ts";
import { noteRetryAfter, withRetries } from "./retry.ts";
import { unlessAborted } from "./signals.ts";
import type { Exchange, ExchangeRequest, Transport } from "./transport.ts";

/** Rights that a request needs on its repository. */
export type Access = "pull" | "push";

/** A request of a {@linkcode Session}. */
export interface SessionRequest extends Urgent {
  method: string;
  /** Path below `/v2/REPOSITORY/`, or a full URL that the registry gave. */
  target: string | URL;
  access: Access;
  /** More scopes, as a mount needs. */
  scopes?: readonly Scope[] | undefined;
  headers?: Record<string, string> | undefined;
  body?: RequestBody | undefined;
  isUpload?: ExchangeRequest["isUpload"];
  /** Leave redirects of these statuses to the caller. */
  keepRedirects?: readonly number[] | undefined;
  signal?: AbortSignal | undefined;
}

const ERROR_BODY_SIZE_MAX = 64 * 1024;
/** Challenge, then one token that was no longer accepted. */
const AUTH_ROUNDS_MAX = 2;

/** One repository's way to its registry. Borrows the transport. */
export class Session {
  readonly transport: Transport;
  readonly registry: string;
  readonly repository: string;
  readonly #auth: Authenticator;
  /**
   * Whether the registry sent the last reader of a blob to a storage
   * elsewhere; undefined before there was one.
   */
  redirectsBlobs: boolean | undefined;

  constructor(
    transport: Transport,
    auth: Authenticator,
    registry: string,
    repository: string,
  ) {
    this.transport = transport;
    this.#auth = auth;
    this.registry = registry;
    this.repository = repository;
  }

  /** URL of a path below the repository. */
  async url(path: string): Promise<URL> {
    const base = await this.transport.baseUrl(this.registry);
    return new URL(`/v2/${this.repository}/${path}`, base);
  }

  /**
   * Sends a request until it is answered with one of `accepted`, and hands
   * the answer to `consume`; both are repeated together when they fail for a
   * passing reason.
   *
   * @throws {RegistryError} For any other status.
   */
  request<T>(
    request: SessionRequest,
    accepted: readonly number[],
    consume: (answer: Exchange) => Promise<T>,
  ): Promise<T> {
    return withRetries(
      this.transport,
      () => this.once(request, accepted, consume),
      request.signal,
    );
  }

  /** {@linkcode request} without repeating. */
  async once<T>(
    request: SessionRequest,
    accepted: readonly number[],
    consume: (answer: Exchange) => Promise<T>,
  ): Promise<T> {
    const answer = await this.send(request);
    try {
      if (!accepted.includes(answer.status)) {
        throw await this.error(answer);
      }
      return await consume(answer);
    } finally {
      await answer.discard();
    }
  }

  /**
   * One attempt: authenticates and follows redirects.
   *
   * @returns An answer of any status. Its `url` tells where it came from.
   */
  async send(request: SessionRequest): Promise<Exchange> {
    const base = await this.transport.baseUrl(this.registry);
    const url = typeof request.target === "string"
      ? await this.url(request.target)
      : request.target;
    const scopes = [
      `repository:${this.repository}:${
        request.access === "push" ? "pull,push" : "pull"
      }`,
      ...request.scopes ?? [],
    ];
    const { signal } = request;
    let header = await unlessAborted(
      this.#auth.header(base, this.repository, scopes),
      signal,
    );
    for (let round = 0;; round++) {
      const answer = await this.#follow(request, base, url, header);
      const isRefused = answer.status === 401 ||
        (answer.status === 403 && header !== undefined);
      // A storage that refuses a signed URL is no matter of our credentials.
      if (
        !isRefused || round >= AUTH_ROUNDS_MAX ||
        answer.url.origin !== base.origin
      ) return answer;
      const refusal = await keep(answer);
      const challengeHeader = answer.headers.get("www-authenticate");
      const next = await unlessAborted(
        this.#auth.renew(base, this.repository, scopes, {
          status: answer.status,
          challengeHeader,
        }, header),
        signal,
      );
      if (next === undefined) return refusal;
      header = next;
    }
  }

  async #follow(
    request: SessionRequest,
    base: URL,
    first: URL,
    authorization: string | undefined,
  ): Promise<Exchange> {
    let url = first;
    for (let hop = 0;; hop++) {
      const isOwn = url.origin === base.origin;
      const answer = await this.transport.exchange({
        method: request.method,
        url,
        headers: {
          ...request.headers,
          ...(authorization !== undefined && isOwn && { authorization }),
        },
        body: request.body,
        isUpload: request.isUpload,
        signal: request.signal,
        priority: request.priority,
        urgency: request.urgency,
        isBlob: typeof request.target === "string" &&
          request.target.startsWith("blobs/"),
      });
      if (!isFollowed(request, answer.status)) return answer;
      await answer.discard();
      url = await redirectTarget(base, answer, hop);
    }
  }

  /**
   * The URL that an answer sends us to, if we may go there.
   *
   * @throws {RegistryError} If it is missing or leads from TLS to plain HTTP or into a private network.
   */
  async checkHop(answer: Exchange, location: string | null): Promise<URL> {
    const base = await this.transport.baseUrl(this.registry);
    return await checkedHop(base, answer, location);
  }

  /** The error of an answer that was not accepted; reads its body. */
  async error(answer: Exchange): Promise<RegistryError> {
    const { method, url, status } = answer;
    const body = await answer.bytes(ERROR_BODY_SIZE_MAX)
      .catch(() => new Uint8Array(0));
    const plain = answerError(method, url, status, body);
    const base = await this.transport.baseUrl(this.registry);
    const isOwn = url.origin === base.origin;
    if (!isOwn && status === 401) {
      return new RegistryError(
        `${plain.message}: registry "${this.registry}" redirects there, where no credentials go (is it to be called "${url.host}"?)`,
        { status, codes: plain.codes, method, url, temporary: false },
      );
    }
    if (!isOwn || (status !== 401 && status !== 403)) {
      noteRetryAfter(plain, answer.headers);
      return plain;
    }
    return new RegistryError(
      `Registry "${this.registry}" refused access to "${this.repository}" (${
        [status, ...plain.codes].join(" ")
      }): ${this.#auth.explain(this.repository)}`,
      { status, codes: plain.codes, method, url, temporary: false },
    );
  }
}

/**
 * The answer with its body in memory. A token server may be on the registry's
 * own host: if refusals kept that host's permits, tokens would wait for them,
 * and they for the tokens.
 */
async function keep(answer: Exchange): Promise<Exchange> {
  const { method, url, status, headers } = answer;
  let rest = await answer.bytes(ERROR_BODY_SIZE_MAX)
    .catch(() => new Uint8Array(0));
  const read = (dst: Uint8Array) => {
    const length = Math.min(dst.length, rest.length);
    dst.set(rest.subarray(0, length));
    rest = rest.subarray(length);
    return Promise.resolve(length);
  };
  return {
    method,
    url,
    status,
    headers,
    read,
    bytes: () => Promise.resolve(rest),
    discard: () => Promise.resolve(),
  };
}

function isFollowed(request: SessionRequest, status: number): boolean {
  if (!REDIRECT_STATUSES.includes(status)) return false;
  if (request.keepRedirects?.includes(status)) return false;
  if (request.method === "GET" || request.method === "HEAD") return true;
  // Others may be repeated elsewhere only when the method stays the same and
  // the body is still at hand.
  return (status === 307 || status === 308) &&
    typeof request.body !== "function";
}

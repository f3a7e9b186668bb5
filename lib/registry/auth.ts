/**
 * Authentication with one registry: Basic, and bearer tokens of a token server
 * (distribution-spec; Docker "Token Authentication" and "OAuth2 Token
 * Authentication").
 */

import { FormatError, LimitError, SingleFlight, utf8 } from "../io/mod.ts";
import { mayRedirect } from "./addresses.ts";
import { type Challenge, parseChallenges } from "./challenge.ts";
import type { CredentialSource, FoundCredentials } from "./credentials.ts";
import { answerError, redactUrl, RegistryError } from "./errors.ts";
import { REDIRECT_STATUSES, redirectTarget } from "./redirect.ts";
import { noteRetryAfter, withRetries } from "./retry.ts";
import type { Exchange, Transport } from "./transport.ts";

/** What a token must allow, e.g. `repository:library/alpine:pull`. */
export type Scope = string;

const TOKEN_ANSWER_SIZE_MAX = 256 * 1024;
const DEFAULT_LIFETIME_S = 60; // Docker token spec, `expires_in`
const CACHE_ENTRIES_MAX = 256;

interface Token {
  header: string;
  expiresAtMs: number;
}

/** Authorization headers for one registry; remembers challenge and tokens. */
export class Authenticator {
  readonly #transport: Transport;
  readonly #registry: string;
  readonly #credentials: CredentialSource;
  /** By repository, as each may have credentials of its own. */
  readonly #challenges = new Map<string, Challenge>();
  readonly #tokens = new Map<string, Token>();
  readonly #flights = new SingleFlight<string, Token | undefined>();
  /** How the last header came about, by repository. */
  readonly #origins = new Map<string, string>();

  constructor(
    transport: Transport,
    registry: string,
    credentials: CredentialSource,
  ) {
    this.#transport = transport;
    this.#registry = registry;
    this.#credentials = credentials;
  }

  /**
   * The header to send, as far as it is known before the first answer.
   *
   * @param repository Whose credentials to use.
   */
  async header(
    base: URL,
    repository: string,
    scopes: readonly Scope[],
  ): Promise<string | undefined> {
    const challenge = this.#challenges.get(repository);
    if (!challenge) return undefined;
    return (await this.#token(base, repository, challenge, scopes))?.header;
  }

  /**
   * After a 401 or 403: another header than `used`, or undefined when there is
   * nothing else to try.
   */
  async renew(
    base: URL,
    repository: string,
    scopes: readonly Scope[],
    answer: { status: number; challengeHeader: string | null },
    used: string | undefined,
  ): Promise<string | undefined> {
    const offered = chooseChallenge(parseChallenges(answer.challengeHeader));
    const challenge = offered ?? this.#challenges.get(repository);
    if (!challenge) return undefined;
    remember(this.#challenges, repository, challenge);
    for (const [key, token] of this.#tokens) {
      if (token.header === used) this.#tokens.delete(key);
    }
    const fresh = await this.#token(base, repository, challenge, scopes);
    return fresh?.header === used ? undefined : fresh?.header;
  }

  /** What was tried, for the message of a 401; never a secret. */
  explain(repository: string): string {
    const origin = this.#origins.get(repository);
    if (origin !== undefined) return `tried credentials from ${origin}`;
    const { places } = this.#credentials;
    return places.length === 0
      ? "no credentials"
      : `no credentials found in ${places.map((p) => `"${p}"`).join(", ")}`;
  }

  async #token(
    base: URL,
    repository: string,
    challenge: Challenge,
    scopes: readonly Scope[],
  ): Promise<Token | undefined> {
    const wanted = mergeScopes(scopes, challenge.params.scope);
    const key = challenge.scheme === "basic"
      ? `basic ${repository}`
      : JSON.stringify([
        repository,
        challenge.params.realm,
        challenge.params.service,
        wanted,
      ]);
    const cached = this.#tokens.get(key);
    if (cached && cached.expiresAtMs > this.#transport.clock.now()) {
      return cached;
    }
    return await this.#flights.run(key, async () => {
      const found = await this.#credentials.find(this.#registry, repository);
      if (found) remember(this.#origins, repository, found.source);
      else this.#origins.delete(repository);
      const token = challenge.scheme === "basic"
        ? basicToken(found)
        : await this.#bearerToken(base, repository, challenge, wanted, found);
      if (token) remember(this.#tokens, key, token);
      return token;
    });
  }

  async #bearerToken(
    base: URL,
    repository: string,
    challenge: Challenge,
    scopes: readonly Scope[],
    found: FoundCredentials | undefined,
  ): Promise<Token> {
    const { credentials } = found ?? {};
    if (credentials?.kind === "bearer") {
      return { header: `Bearer ${credentials.token}`, expiresAtMs: Infinity };
    }
    const realm = await checkRealm(base, challenge.params.realm);
    const request = tokenRequest(realm, challenge, scopes, found);
    const startedMs = this.#transport.clock.now();
    const bytes = await withRetries(this.#transport, async () => {
      const answer = await this.#follow(base, request);
      const body = await answer.bytes(TOKEN_ANSWER_SIZE_MAX).catch((e) => {
        if (e instanceof LimitError && answer.status !== 200) {
          return new Uint8Array(0);
        }
        throw e;
      });
      if (answer.status === 200) return body;
      throw this.#tokenError(realm, repository, request.method, answer, body);
    });
    const { token, lifetimeS } = parseTokenAnswer(realm, bytes);
    // A bit early, so that it does not run out on the way.
    const early = Math.min(10, lifetimeS / 5);
    return {
      header: `Bearer ${token}`,
      expiresAtMs: startedMs + (lifetimeS - early) * 1000,
    };
  }

  /**
   * A GET follows redirects, as those of token servers that moved to TLS; the
   * password goes no further than the host that the registry named.
   */
  async #follow(base: URL, request: TokenRequest): Promise<Exchange> {
    let { url } = request;
    for (let hop = 0;; hop++) {
      const isOwn = url.hostname === request.url.hostname;
      const answer = await this.#transport.exchange({
        ...request,
        url,
        headers: isOwn ? request.headers : {},
      });
      const isFollowed = request.method === "GET" &&
        REDIRECT_STATUSES.includes(answer.status);
      if (!isFollowed) return answer;
      await answer.discard();
      url = await redirectTarget(base, answer, hop);
    }
  }

  #tokenError(
    realm: URL,
    repository: string,
    method: string,
    answer: { status: number; headers: Headers },
    body: Uint8Array,
  ): RegistryError {
    const error = answerError(method, realm, answer.status, body);
    noteRetryAfter(error, answer.headers);
    if (answer.status !== 401 && answer.status !== 403) return error;
    // The body may quote what was sent, so it is left out.
    return new RegistryError(
      `Token server ${
        redactUrl(realm)
      } refused access to "${this.#registry}/${repository}" (${answer.status}): ${
        this.explain(repository)
      }`,
      {
        status: answer.status,
        codes: error.codes,
        method,
        url: realm,
        temporary: false,
      },
    );
  }
}

/** Bearer before Basic: it shows the password to the token server only. */
function chooseChallenge(challenges: Challenge[]): Challenge | undefined {
  return challenges.find((c) => c.scheme === "bearer" && c.params.realm) ??
    challenges.find((c) => c.scheme === "basic");
}

function mergeScopes(
  scopes: readonly Scope[],
  challenged: string | undefined,
): string[] {
  const merged = new Set(scopes);
  for (const scope of (challenged ?? "").split(" ")) {
    if (scope !== "" && !covers(merged, scope)) merged.add(scope);
  }
  return [...merged].sort();
}

/** Whether `repository:x:pull` is part of `repository:x:pull,push`. */
function covers(scopes: Iterable<string>, scope: string): boolean {
  const split = (text: string) => {
    const colon = text.lastIndexOf(":");
    return [text.slice(0, colon), text.slice(colon + 1).split(",")] as const;
  };
  const [name, actions] = split(scope);
  for (const other of scopes) {
    const [otherName, otherActions] = split(other);
    if (
      name === otherName && actions.every((a) => otherActions.includes(a))
    ) return true;
  }
  return false;
}

function basicToken(found: FoundCredentials | undefined): Token | undefined {
  if (found?.credentials.kind === "bearer") {
    return {
      header: `Bearer ${found.credentials.token}`,
      expiresAtMs: Infinity,
    };
  }
  if (found?.credentials.kind !== "password") return undefined;
  return { header: basicHeader(found.credentials), expiresAtMs: Infinity };
}

function basicHeader(
  { username, password }: { username: string; password: string },
): string {
  return `Basic ${utf8(`${username}:${password}`).toBase64()}`;
}

/** A realm gets the password, so it is held to the rules of redirects. */
async function checkRealm(
  base: URL,
  text: string | undefined,
): Promise<URL> {
  const realm = URL.parse(text ?? "", base);
  const fail = (why: string) =>
    new RegistryError(
      `Registry "${base.host}" names a token server that ${why}`,
      { status: 401, method: "GET", url: base, temporary: false },
    );
  if (!realm || !/^https?:$/.test(realm.protocol)) {
    throw fail("is no HTTP URL");
  }
  if (base.protocol === "https:" && realm.protocol === "http:") {
    throw fail(
      `does not use TLS while the registry does, ${redactUrl(realm)}`,
    );
  }
  if (!await mayRedirect(base.hostname, realm.hostname)) {
    throw fail(`is at an inner address, "${realm.hostname}"`);
  }
  realm.username = "";
  realm.password = "";
  return realm;
}

interface TokenRequest {
  method: "GET" | "POST";
  url: URL;
  headers: Record<string, string>;
  body?: Uint8Array<ArrayBuffer>;
}

function tokenRequest(
  realm: URL,
  challenge: Challenge,
  scopes: readonly Scope[],
  found: FoundCredentials | undefined,
): TokenRequest {
  const service = challenge.params.service;
  const { credentials } = found ?? {};
  if (credentials?.kind === "refresh") {
    const form = new URLSearchParams({
      grant_type: "refresh_token",
      refresh_token: credentials.token,
      client_id: "obd",
      ...(service !== undefined && { service }),
      ...(scopes.length > 0 && { scope: scopes.join(" ") }),
    });
    return {
      method: "POST",
      url: realm,
      headers: { "content-type": "application/x-www-form-urlencoded" },
      body: utf8(form.toString()),
    };
  }
  const url = new URL(realm);
  if (service !== undefined) url.searchParams.set("service", service);
  for (const scope of scopes) url.searchParams.append("scope", scope);
  return {
    method: "GET",
    url,
    headers: credentials?.kind === "password"
      ? { authorization: basicHeader(credentials) }
      : {},
  };
}

function parseTokenAnswer(
  realm: URL,
  bytes: Uint8Array,
): { token: string; lifetimeS: number } {
  const what = `token answer of ${redactUrl(realm)}`;
  let json: {
    token?: unknown;
    access_token?: unknown;
    expires_in?: unknown;
  } | null;
  try {
    json = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    // Without the cause: V8's message quotes the text, and with it the token.
    throw new FormatError(what, "document", "is no valid JSON");
  }
  const token = json?.token || json?.access_token;
  // Anything else could add a header line.
  if (typeof token !== "string" || !/^[\x21-\x7e]+$/.test(token)) {
    throw new FormatError(what, "token", "is missing or has odd characters");
  }
  const stated = Number(json?.expires_in);
  return {
    token,
    lifetimeS: stated > 0 ? Math.min(stated, 86_400) : DEFAULT_LIFETIME_S,
  };
}

/** Adds to a bounded map; the oldest entry leaves. */
function remember<V>(map: Map<string, V>, key: string, value: V): void {
  map.delete(key);
  map.set(key, value);
  if (map.size > CACHE_ENTRIES_MAX) map.delete(map.keys().next().value!);
}

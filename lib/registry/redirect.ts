/** Where an answer may send us. */

import { mayRedirect } from "./addresses.ts";
import { redactUrl, RegistryError } from "./errors.ts";
import type { Exchange } from "./transport.ts";

/** Statuses that name another place for the same request. */
export const REDIRECT_STATUSES: readonly number[] = [301, 302, 303, 307, 308];

/** Most hops of one request. */
const REDIRECTS_MAX = 10;

type Answer = Pick<Exchange, "method" | "url" | "status" | "headers">;

/**
 * The URL that an answer's `Location` names, if a registry may send us there.
 *
 * @param base Of the registry.
 * @param hop How many redirects came before this one.
 * @throws {RegistryError} As {@linkcode checkedHop}, and if there were too many.
 */
export async function redirectTarget(
  base: URL,
  answer: Answer,
  hop: number,
): Promise<URL> {
  if (hop >= REDIRECTS_MAX) {
    throw redirectError(answer, `more than ${REDIRECTS_MAX} redirects`);
  }
  return await checkedHop(base, answer, answer.headers.get("location"));
}

/**
 * The URL that something in an answer names, if a registry may send us there.
 *
 * @param base Of the registry.
 * @throws {RegistryError} If it is missing or leads from TLS to plain HTTP or into a private network.
 */
export async function checkedHop(
  base: URL,
  answer: Answer,
  location: string | null,
): Promise<URL> {
  const next = location === null ? null : URL.parse(location, answer.url);
  if (!next || !/^https?:$/.test(next.protocol)) {
    throw redirectError(answer, "a redirect without a usable Location");
  }
  if (answer.url.protocol === "https:" && next.protocol === "http:") {
    throw redirectError(answer, "a redirect from TLS to plain HTTP");
  }
  if (
    next.hostname !== base.hostname &&
    !await mayRedirect(base.hostname, next.hostname)
  ) {
    throw redirectError(
      answer,
      `a redirect to the inner address "${next.hostname}"`,
    );
  }
  next.username = "";
  next.password = "";
  next.hash = "";
  return next;
}

function redirectError(answer: Answer, what: string): RegistryError {
  return new RegistryError(
    `${answer.method} ${redactUrl(answer.url)} was answered with ${what}`,
    {
      status: answer.status,
      method: answer.method,
      url: answer.url,
      temporary: false,
    },
  );
}

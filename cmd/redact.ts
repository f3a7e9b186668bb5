/** Takes secrets out of what leaves the machine in a report. */

/** What stands where a secret was. */
export const REMOVED = "[removed]";

/** Keys whose values are secrets, in configuration files, Docker's credential files and environments. */
const SECRET_KEY =
  /^(auth|authorization|cookie|passphrase|pat|pwd)$|tokens?$|passw(or)?d$|secret$|secret_?key$|private_?key$|access_?key$|api_?key$|credentials?$/i;
/** Keys that end like secrets and name where they are. */
const PLACE_KEY = /(file|path|dir|config)$/i;
/** Values nested deeper than this are removed whole. */
const DEPTH_MAX = 32;

/**
 * A copy of a JSON value without secrets: values of telling keys, user names
 * and passwords in URLs, queries of URLs (they sign), `Authorization` values.
 */
export function redactValue(value: unknown, depth = 0): unknown {
  if (typeof value === "string") return redactText(value);
  if (typeof value !== "object" || value === null) return value;
  if (depth >= DEPTH_MAX) return REMOVED;
  if (Array.isArray(value)) return value.map((v) => redactValue(v, depth + 1));
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      redactText(key),
      isSecretKey(key) ? removed(inner) : redactValue(inner, depth + 1),
    ]),
  );
}

/** Whether the value of a key, or of a dotted path of keys, is a secret. */
export function isSecretKey(key: string): boolean {
  const name = key.slice(key.lastIndexOf(".") + 1);
  return SECRET_KEY.test(name) && !PLACE_KEY.test(name);
}

/** An empty value stays: that nothing is set is no secret. */
function removed(value: unknown): unknown {
  return value === "" || value === null || value === undefined ||
      typeof value === "boolean"
    ? value
    : REMOVED;
}

/** A text, e.g. a log line, without the secrets that have a form. */
export function redactText(text: string): string {
  return text
    // userinfo of a URL
    .replaceAll(
      /([a-z][a-z0-9+.-]{0,20}:\/\/)[^\s/?#"'<>]*@/gi,
      `$1${REMOVED}@`,
    )
    // the query of a URL, which may sign it; NBD URIs have a socket there
    .replaceAll(
      /(https?:\/\/[^\s?#"'<>]*)\?[^\s"'<>]*/gi,
      `$1?${REMOVED}`,
    )
    // credentials of HTTP, wherever they were copied to
    .replaceAll(
      /\b(Bearer|Basic|Negotiate)\s+[A-Za-z0-9._~+/=-]{4,}/gi,
      `$1 ${REMOVED}`,
    )
    // key=value and "key":"value" of log lines
    .replaceAll(
      /(["']?)([\w.-]{0,40}?(?:token|passw(?:or)?d|secret|authorization))\1(\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}"'&]+)/gi,
      (match, quote, key, sign, value) =>
        PLACE_KEY.test(key) || value.includes(REMOVED)
          ? match
          : `${quote}${key}${quote}${sign}${
            value.startsWith('"') ? `"${REMOVED}"` : REMOVED
          }`,
    );
}

/** Errors of registries, and what may be shown of a URL. */

import { ObdError } from "../io/mod.ts";

/** A registry (or the store behind it) that refused, failed or could not be reached. */
export class RegistryError extends ObdError {
  /** HTTP status; 0 when there was no answer. */
  readonly status: number;
  /** Codes of the distribution-spec, e.g. `MANIFEST_UNKNOWN`; sent by the server, so only for showing and comparing. */
  readonly codes: readonly string[];
  readonly method: string;
  /** Without query string and userinfo. */
  readonly url: string;
  /** Whether the same request may succeed later. */
  readonly temporary: boolean;

  constructor(
    message: string,
    details: {
      status: number;
      codes?: readonly string[];
      method: string;
      url: URL;
      temporary: boolean;
    },
    options?: ErrorOptions,
  ) {
    super("registry", message, options);
    this.status = details.status;
    this.codes = details.codes ?? [];
    this.method = details.method;
    this.url = redactUrl(details.url);
    this.temporary = details.temporary;
  }
}

/** A URL without userinfo, query string and fragment: signed URLs and tokens live there. */
export function redactUrl(url: URL): string {
  return `${url.protocol}//${url.host}${url.pathname}`;
}

/** Text from outside for people: URLs redacted, control characters gone, short. */
export function redactText(text: string, lengthMax = 500): string {
  const clean = text
    // A query may have parentheses; one after a path is the text's.
    .replace(/https?:\/\/[^\s"'()<>?#]+([?#][^\s"<>]*)?/gi, (found) => {
      const url = URL.parse(found);
      return url ? redactUrl(url) : "URL";
    })
    // deno-lint-ignore no-control-regex -- they would garble a terminal
    .replace(/[\x00-\x20\x7f-\x9f]+/g, " ")
    .trim();
  return clean.length > lengthMax ? `${clean.slice(0, lengthMax)}…` : clean;
}

/** Whether a request that got this status may be tried again. */
export function isTemporaryStatus(status: number): boolean {
  return status === 408 || status === 429 ||
    (status >= 500 && status !== 501 && status !== 505);
}

/**
 * The error of an unexpected answer.
 *
 * @param body Up to 64 KiB of what the server said; the distribution-spec's
 * error list is understood, anything else is quoted shortly.
 */
export function answerError(
  method: string,
  url: URL,
  status: number,
  body: Uint8Array,
): RegistryError {
  const { codes, text } = errorList(body);
  const said = text ? `: ${text}` : "";
  return new RegistryError(
    `${method} ${redactUrl(url)} was answered with ${status}${said}`,
    { status, codes, method, url, temporary: isTemporaryStatus(status) },
  );
}

function errorList(body: Uint8Array): { codes: string[]; text: string } {
  const plain = new TextDecoder().decode(body);
  try {
    const { errors } = JSON.parse(plain) as { errors?: unknown };
    if (Array.isArray(errors)) {
      const list = errors.slice(0, 10).map((e) => ({
        code: redactText(String(e?.code ?? "UNKNOWN"), 60),
        message: redactText(String(e?.message ?? ""), 200),
      }));
      return {
        codes: list.map((e) => e.code),
        text: list.map((e) => e.message ? `${e.code} (${e.message})` : e.code)
          .join(", "),
      };
    }
  } catch {
    // Not JSON: a proxy's page, say.
  }
  const isPage = /<html|<!doctype/i.test(plain);
  const title = /<title>([^<]*)/i.exec(plain)?.[1] ?? "";
  return { codes: [], text: redactText(isPage ? title : plain, 200) };
}

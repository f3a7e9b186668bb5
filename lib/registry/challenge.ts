/** `WWW-Authenticate` headers (RFC 9110 §11.6.1). */

/** One challenge: scheme and parameter names in lower case. */
export interface Challenge {
  scheme: string;
  params: Record<string, string>;
}

const HEADER_LENGTH_MAX = 16 * 1024;
const CHALLENGE_COUNT_MAX = 16;

// One step at a time: a comma, a scheme or parameter name, its value.
const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;
const QUOTED = /"((?:[^"\\]|\\.)*)"/y;
const SPACE = /[ \t]*/y;
// Basic and Bearer have parameters, Negotiate a bare token68.
const TOKEN68 = /[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))/y;

/**
 * Parses a header that may hold several challenges, also when the server sent
 * several headers (joined by commas). What does not follow the grammar ends
 * the parse; the challenges before it are kept.
 */
export function parseChallenges(header: string | null): Challenge[] {
  const text = (header ?? "").slice(0, HEADER_LENGTH_MAX);
  const challenges: Challenge[] = [];
  let at = 0;
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match) at = pattern.lastIndex;
    return match;
  };
  while (at < text.length && challenges.length <= CHALLENGE_COUNT_MAX) {
    take(SPACE);
    if (text[at] === ",") {
      at++;
      continue;
    }
    const word = take(TOKEN)?.[0];
    if (word === undefined) break;
    const hadSpace = take(SPACE)![0] !== "";
    const current = challenges.at(-1);
    if (text[at] === "=" && current) {
      at++;
      take(SPACE);
      const quoted = take(QUOTED);
      const value = quoted ? unquote(quoted[1]!) : take(TOKEN)?.[0];
      if (value === undefined) break;
      const name = word.toLowerCase();
      // The first one counts: a second could only confuse.
      if (!Object.hasOwn(current.params, name)) current.params[name] = value;
    } else {
      challenges.push({ scheme: word.toLowerCase(), params: {} });
      if (hadSpace) take(TOKEN68);
    }
  }
  return challenges;
}

function unquote(text: string): string {
  return text.replace(/\\(.)/g, "$1");
}

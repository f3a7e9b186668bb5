/** Which database a build uses, as users say it. */

import * as fs from "node:fs";
import { isIP } from "node:net";
import { errorText, ObdError, UsageError } from "../../io/mod.ts";
import type { MySqlSettings } from "./mysql.ts";

/** A database of conversions, or none. */
export type DatabaseSettings =
  | { kind: "none" }
  | { kind: "sqlite"; path: string }
  | { kind: "mysql"; mysql: MySqlSettings };

/** What {@linkcode parseDatabase} goes by. */
export interface ParseDatabaseOptions {
  /** Whether the text may have a password: nobody else sees it. */
  mayHavePassword?: boolean;
  /** Reads a variable of the environment. */
  env: (name: string) => string | undefined;
  /** Of the user; 0 is root. */
  uid: number | null;
}

/** Variable with the password, where the text names none. */
export const PASSWORD_VARIABLE = "OBD_DEDUP_DB_PASSWORD";

const FILE_NAME = "conversions.db";
const DEFAULT_PORT = 3306;
const PASSWORD_FILE_SIZE_MAX = 4096;
const PARAMETERS = new Set(["socket", "password-file", "tls", "tls-ca"]);

/**
 * Parses `none`, `sqlite`, `sqlite:PATH` or
 * `mysql://USER@HOST[:PORT]/DATABASE[?socket=PATH&password-file=PATH&tls=true&tls-ca=PATH]`
 * (`mariadb:` is the same).
 *
 * @throws {UsageError} With what is wrong; a password is never quoted.
 */
export function parseDatabase(
  text: string,
  options: ParseDatabaseOptions,
): DatabaseSettings {
  if (text === "none") return { kind: "none" };
  if (text === "sqlite") {
    const path = defaultPath(options);
    return path === undefined ? { kind: "none" } : { kind: "sqlite", path };
  }
  if (text.startsWith("sqlite:")) {
    const path = text.slice("sqlite:".length);
    if (path === "") throw bad("sqlite: names no file");
    return { kind: "sqlite", path };
  }
  if (!/^(mysql|mariadb):\/\//.test(text)) {
    throw bad("want none, sqlite, sqlite:PATH or mysql://USER@HOST/DATABASE");
  }
  return { kind: "mysql", mysql: parseMySql(text, options) };
}

/** Where SQLite's file is unless somebody says otherwise; undefined for a user without a home. */
function defaultPath(
  { env, uid }: ParseDatabaseOptions,
): string | undefined {
  const cache = env("OBD_CACHE_DIR") || (uid === 0 ? "/var/lib/obd" : "");
  if (cache) return `${cache}/${FILE_NAME}`;
  const state = env("XDG_STATE_HOME") ||
    (env("HOME") ? `${env("HOME")}/.local/state` : "");
  return state ? `${state}/obd/${FILE_NAME}` : undefined;
}

function parseMySql(
  text: string,
  { env, mayHavePassword }: ParseDatabaseOptions,
): MySqlSettings {
  // As http: the rules for hosts and ports of other schemes are looser.
  const url = URL.parse(text.replace(/^[a-z]+:/, "http:"));
  if (!url) throw bad("it is no URL");
  const database = decode(url.pathname.slice(1));
  const user = decode(url.username);
  if (!/^[^/]+$/.test(database)) throw bad("it names no database");
  if (user === "") throw bad("it names no user");
  if (url.password !== "" && !mayHavePassword) {
    throw bad(
      `a password does not belong on a command line, where others see it: put it into ${PASSWORD_VARIABLE} or a file (?password-file=PATH)`,
    );
  }
  for (const name of url.searchParams.keys()) {
    if (!PARAMETERS.has(name)) throw bad(`it has no parameter "${name}"`);
  }
  const parameter = (name: string) => url.searchParams.get(name) || undefined;
  const tls = parameter("tls");
  if (tls !== undefined && tls !== "true" && tls !== "false") {
    throw bad("tls is true or false");
  }
  const file = parameter("password-file");
  const caFile = parameter("tls-ca");
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const speaksTls = tls === undefined ? caFile !== undefined : tls === "true";
  if (speaksTls && isIP(host) !== 0) {
    // The driver compares certificates with names only.
    throw bad("with TLS the server must have a name: it has an address");
  }
  return {
    host,
    // A URL leaves out the port that http has by itself.
    port: /^[^/]*:\/\/[^/?]*:80(?:[/?]|$)/.test(text)
      ? 80
      : Number(url.port || DEFAULT_PORT),
    socket: parameter("socket"),
    user,
    password: file !== undefined
      ? () => readPassword(file)
      : () => decode(url.password) || env(PASSWORD_VARIABLE) || "",
    database,
    tls: speaksTls,
    caFile,
  };
}

function readPassword(file: string): string {
  try {
    const { size } = fs.statSync(file);
    if (size > PASSWORD_FILE_SIZE_MAX) throw new Error("it is too large");
    return fs.readFileSync(file, "utf8").replace(/\r?\n$/, "");
  } catch (error) {
    throw new ObdError(
      "state",
      `Cannot read the database's password from "${file}": ${errorText(error)}`,
      { cause: error },
    );
  }
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw bad("it has a % that stands for nothing");
  }
}

function bad(problem: string): UsageError {
  return new UsageError(`Bad database of conversions: ${problem}`);
}

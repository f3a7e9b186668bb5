/**
 * Where user names, passwords and tokens come from.
 *
 * The files have Docker's `config.json` form (containers-auth.json(5), Docker
 * CLI `cli/config`): `auths`, `credHelpers`, `credsStore`. Overlaybd's
 * credential file is the `auths` part of it.
 */

import { homedir } from "node:os";
import {
  errorText,
  FormatError,
  fromUtf8,
  type Logger,
  readFileUpTo,
  silentLogger,
  UsageError,
} from "../io/mod.ts";
import { runCredentialHelper } from "./credential_helper.ts";
import {
  askCredentialService,
  type CredentialService,
  serviceName,
} from "./credential_service.ts";

/** What to authenticate with. Never logged. */
export type Credentials =
  | { kind: "password"; username: string; password: string }
  /** An OAuth2 refresh token (`identitytoken`). */
  | { kind: "refresh"; token: string }
  /** A bearer token to be used as it is (`registrytoken`). */
  | { kind: "bearer"; token: string };

/** Credentials with where they were found, for messages. */
export interface FoundCredentials {
  credentials: Credentials;
  /** E.g. `"/root/.docker/config.json" (key "ghcr.io")`. */
  source: string;
}

/** Where to look. */
export interface CredentialOptions {
  /** `--authfile`; an error if it is missing. */
  authFile?: string | undefined;
  /** overlaybd's `credentialConfig.path` in mode `file`. */
  overlaybdFile?: string | undefined;
  /** overlaybd's `credentialConfig` in its other modes. */
  overlaybdService?: CredentialService | undefined;
  /** Defaults to the process environment; tests give their own. */
  env?: ((name: string) => string | undefined) | undefined;
  /** Deadline of one credential helper. Default 30,000. */
  helperTimeoutMs?: number | undefined;
  logger?: Logger | undefined;
}

/** Looks for credentials of a repository; undefined is "none". */
export type CredentialSource = {
  find(
    registry: string,
    repository: string,
  ): Promise<FoundCredentials | undefined>;
  /** The places that were looked into, for a message. */
  readonly places: readonly string[];
};

const FILE_SIZE_MAX = 4 * 1024 * 1024;
const HELPER_TIMEOUT_MS = 30_000;
const DOCKER_HUB_URL = "https://index.docker.io/v1/";

interface AuthEntry {
  auth?: string;
  username?: string;
  password?: string;
  identitytoken?: string;
  registrytoken?: string;
}

interface AuthFile {
  /** By normalized key. */
  auths: Map<string, AuthEntry>;
  credHelpers: Map<string, string>;
  credsStore?: string;
}

/** The order that the README states; files are read anew at each look, so a login is seen. */
export function createCredentialSource(
  options: CredentialOptions = {},
): CredentialSource {
  const env = options.env ?? readEnvironment;
  const files = credentialFiles(options, env);
  const logger = options.logger ?? silentLogger;
  const service = options.overlaybdService;
  const helpers = {
    logger,
    timeoutMs: options.helperTimeoutMs ?? HELPER_TIMEOUT_MS,
  };
  return {
    places: [
      ...files.map((file) => file.path),
      ...(service ? [serviceName(service)] : []),
    ],
    async find(registry, repository) {
      for (const file of files) {
        const text = await readOptional(file.path, file.required);
        if (text === undefined) continue;
        const found = await findInFile(
          file.path,
          parseAuthFile(file.path, text),
          registry,
          repository,
          helpers,
        );
        if (found) return found;
      }
      return service &&
        await findByService(service, registry, repository, helpers);
    },
  };
}

/** A service that fails must not stop a pull that needs no credentials. */
async function findByService(
  service: CredentialService,
  registry: string,
  repository: string,
  helpers: { logger: Logger; timeoutMs: number },
): Promise<FoundCredentials | undefined> {
  const name = serviceName(service);
  try {
    const text = await askCredentialService(service, registry, repository);
    const file = parseAuthFile(name, text);
    return await findInFile(name, file, registry, repository, helpers);
  } catch (error) {
    helpers.logger.warn("credential service failed", {
      registry,
      error: errorText(error),
    });
    return undefined;
  }
}

/** A source without any credentials. */
export const noCredentials: CredentialSource = {
  places: [],
  find: () => Promise.resolve(undefined),
};

/** Services of systemd have no HOME; the home of their user is where the user database says. */
function readEnvironment(name: string): string | undefined {
  return Deno.env.get(name) ??
    (name === "HOME" ? homedir() ?? undefined : undefined);
}

function credentialFiles(
  options: CredentialOptions,
  env: (name: string) => string | undefined,
): { path: string; required: boolean }[] {
  const files: { path: string; required: boolean }[] = [];
  const add = (path: string | undefined, required = false) => {
    if (path && !files.some((f) => f.path === path)) {
      files.push({ path, required });
    }
  };
  add(options.authFile, true);
  add(env("REGISTRY_AUTH_FILE"));
  const dockerConfig = env("DOCKER_CONFIG");
  add(dockerConfig && `${dockerConfig}/config.json`);
  const runtime = env("XDG_RUNTIME_DIR");
  // containers-auth.json(5): the place of root, who has no runtime directory.
  add(
    runtime
      ? `${runtime}/containers/auth.json`
      : `/run/containers/${Deno.uid() ?? 0}/auth.json`,
  );
  const home = env("HOME");
  add(home && `${home}/.docker/config.json`);
  add(options.overlaybdFile);
  return files;
}

/**
 * Reads a file as a look for credentials would.
 *
 * @throws {UsageError} If it cannot be read.
 * @throws {FormatError} If it is not in Docker's form; never with its content.
 */
export async function checkCredentialsFile(path: string): Promise<void> {
  parseAuthFile(path, (await readOptional(path, true))!);
}

async function readOptional(
  path: string,
  required: boolean,
): Promise<string | undefined> {
  try {
    const info = await Deno.stat(path);
    if (info.size > FILE_SIZE_MAX) {
      throw new FormatError(
        `credentials file "${path}"`,
        "size",
        `is ${info.size} bytes, at most ${FILE_SIZE_MAX} are allowed`,
      );
    }
    return fromUtf8(await readFileUpTo(path, FILE_SIZE_MAX));
  } catch (cause) {
    const isAbsent = cause instanceof Deno.errors.NotFound ||
      cause instanceof Deno.errors.NotADirectory ||
      cause instanceof Deno.errors.PermissionDenied;
    if (isAbsent && !required) return undefined;
    if (cause instanceof FormatError) throw cause;
    throw new UsageError(
      `Cannot read credentials file "${path}": ${errorText(cause)}`,
    );
  }
}

/** @throws {FormatError} That never quotes the file's content. */
function parseAuthFile(path: string, text: string): AuthFile {
  const what = `credentials file "${path}"`;
  const isObject = (x: unknown): x is Record<string, unknown> =>
    typeof x === "object" && x !== null && !Array.isArray(x);
  let json: unknown;
  try {
    json = text.trim() === "" ? {} : JSON.parse(text);
  } catch {
    throw new FormatError(what, "document", "is no valid JSON");
  }
  if (!isObject(json)) {
    throw new FormatError(what, "document", "is no JSON object");
  }
  const section = (name: string): [string, unknown][] => {
    const value = json[name] ?? {};
    if (!isObject(value)) throw new FormatError(what, name, "is no object");
    return Object.entries(value);
  };
  const file: AuthFile = { auths: new Map(), credHelpers: new Map() };
  for (const [key, value] of section("auths")) {
    if (!isObject(value)) {
      throw new FormatError(what, `auths.${key}`, "is no object");
    }
    const entry: Record<string, string> = {};
    for (const [field, content] of Object.entries(value)) {
      if (typeof content === "string") entry[field] = content;
    }
    file.auths.set(normalizeKey(key), entry);
  }
  for (const [key, value] of section("credHelpers")) {
    if (typeof value === "string") {
      file.credHelpers.set(normalizeKey(key), value);
    }
  }
  if (typeof json.credsStore === "string" && json.credsStore !== "") {
    file.credsStore = json.credsStore;
  }
  return file;
}

/** Docker writes some keys as URLs; all names of Docker Hub are one. */
function normalizeKey(key: string): string {
  const bare = key.replace(/^https?:\/\//i, "").replace(/\/+$/, "")
    .replace(/^([^/]+)\/v[12]$/, "$1");
  const slash = bare.indexOf("/");
  const host = (slash < 0 ? bare : bare.slice(0, slash)).toLowerCase();
  const path = slash < 0 ? "" : bare.slice(slash);
  const isHub = host === "index.docker.io" || host === "registry-1.docker.io";
  return `${isHub ? "docker.io" : host}${path}`;
}

/** `host/a/b`, `host/a`, `host`. */
function keyCandidates(registry: string, repository: string): string[] {
  const parts = [normalizeKey(registry), ...repository.split("/")];
  return parts.map((_, i) => parts.slice(0, parts.length - i).join("/"));
}

async function findInFile(
  path: string,
  file: AuthFile,
  registry: string,
  repository: string,
  helpers: { logger: Logger; timeoutMs: number },
): Promise<FoundCredentials | undefined> {
  const ask = async (helper: string, server: string) => {
    try {
      const credentials = await runCredentialHelper(
        helper,
        server,
        helpers.timeoutMs,
      );
      return credentials &&
        { credentials, source: `docker-credential-${helper}` };
    } catch (error) {
      // A broken helper must not stop a pull that needs no credentials.
      helpers.logger.warn("credential helper failed", {
        helper,
        registry,
        error: errorText(error),
      });
      return undefined;
    }
  };
  for (const key of keyCandidates(registry, repository)) {
    const helper = file.credHelpers.get(key);
    const found = helper && await ask(helper, serverName(key));
    if (found) return found;
    const entry = file.auths.get(key);
    const credentials = entry && entryCredentials(path, key, entry);
    if (credentials) {
      return { credentials, source: `"${path}" (key "${key}")` };
    }
  }
  if (file.credsStore === undefined) return undefined;
  return await ask(file.credsStore, serverName(normalizeKey(registry)));
}

/** What a helper is asked for; Docker Hub's entry has kept its old name. */
function serverName(key: string): string {
  return key === "docker.io" ? DOCKER_HUB_URL : key;
}

function entryCredentials(
  path: string,
  key: string,
  entry: AuthEntry,
): Credentials | undefined {
  if (entry.identitytoken) {
    return { kind: "refresh", token: entry.identitytoken };
  }
  if (entry.registrytoken) {
    const token = entry.registrytoken.trim();
    if (!/^[ -~]+$/.test(token)) {
      throw new FormatError(
        `credentials file "${path}"`,
        `auths.${key}.registrytoken`,
        "has odd characters",
      );
    }
    return { kind: "bearer", token };
  }
  if (entry.auth) {
    let decoded: string;
    try {
      decoded = new TextDecoder().decode(
        Uint8Array.fromBase64(entry.auth.trim()),
      );
    } catch {
      throw new FormatError(
        `credentials file "${path}"`,
        `auths.${key}.auth`,
        "is no base64",
      );
    }
    const colon = decoded.indexOf(":");
    if (colon < 0) {
      throw new FormatError(
        `credentials file "${path}"`,
        `auths.${key}.auth`,
        "has no colon between user name and password",
      );
    }
    return {
      kind: "password",
      username: decoded.slice(0, colon),
      password: decoded.slice(colon + 1).replace(/\0+$/, ""),
    };
  }
  if (entry.username || entry.password) {
    return {
      kind: "password",
      username: entry.username ?? "",
      password: entry.password ?? "",
    };
  }
  return undefined; // an empty entry only marks what a credsStore holds
}

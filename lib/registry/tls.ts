/**
 * Certificates: the system's store, `--ca-file`, and the per-host directories
 * of containerd and Docker (`/etc/docker/certs.d/HOST[:PORT]/`: `*.crt` are
 * CAs, `NAME.cert` with `NAME.key` are client pairs). containerd's
 * `hosts.toml` is not read.
 */

import { errorText, fromUtf8, readFileUpTo, UsageError } from "../io/mod.ts";
import { splitHostPort } from "./reference.ts";

/** Default places of per-host certificates. */
export const CERTS_DIRECTORIES = [
  "/etc/containerd/certs.d",
  "/etc/docker/certs.d",
] as const;

/** Certificates for one host, PEM. */
export interface HostTls {
  caCerts: string[];
  clientCert?: string;
  clientKey?: string;
}

/** PEM files of a client's certificate and its key. */
export interface ClientPair {
  certFile: string;
  keyFile: string;
}

const PEM_SIZE_MAX = 4 * 1024 * 1024;
// Where distributions keep the bundle (Go's crypto/x509/root_linux.go).
const SYSTEM_BUNDLES = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/pki/tls/cacert.pem",
  "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
  "/etc/ssl/cert.pem",
];

/**
 * Makes the runtime trust the system's CAs instead of its built-in list. It
 * looks at this variable when it first needs the list, so this runs before the
 * first request; a system without any CAs keeps the built-in list.
 */
export function useSystemCas(): void {
  if (Deno.env.get("DENO_TLS_CA_STORE") !== undefined) return;
  const hasOwn = Deno.env.get("SSL_CERT_FILE") !== undefined ||
    Deno.env.get("SSL_CERT_DIR") !== undefined;
  if (hasOwn || SYSTEM_BUNDLES.some(isFileSync)) {
    Deno.env.set("DENO_TLS_CA_STORE", "system");
  }
}

function isFileSync(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/**
 * Reads the certificates for a host.
 *
 * @param registry `HOST[:PORT]`, as in references and as in URLs.
 * @throws {UsageError} Naming the file that is missing, broken or without its pair.
 */
export async function loadHostTls(
  registry: string,
  options: {
    caFile?: string | undefined;
    directories?: readonly string[];
    /** For hosts without a pair of their own. */
    clientPair?: ClientPair | undefined;
  },
): Promise<HostTls> {
  const tls: HostTls = { caCerts: [] };
  if (options.caFile !== undefined) {
    tls.caCerts.push(await readPem(options.caFile, "CERTIFICATE"));
  }
  for (const directory of options.directories ?? CERTS_DIRECTORIES) {
    for (const name of directoryNames(registry)) {
      await addDirectory(tls, `${directory}/${name}`);
    }
  }
  const { clientPair } = options;
  if (clientPair && tls.clientCert === undefined) {
    tls.clientCert = await readPem(clientPair.certFile, "CERTIFICATE");
    tls.clientKey = await readPem(clientPair.keyFile, "PRIVATE KEY");
  }
  return tls;
}

/** Whether a host has certificates of its own. */
export async function hasHostTls(
  registry: string,
  directories: readonly string[] = CERTS_DIRECTORIES,
): Promise<boolean> {
  const tls = await loadHostTls(registry, { directories });
  return tls.caCerts.length > 0 || tls.clientCert !== undefined;
}

/** containerd writes `HOST_PORT_` where a file system has no colons. */
function directoryNames(registry: string): string[] {
  const { host, port } = splitHostPort(registry);
  const names = port === undefined
    ? [registry]
    : [registry, `${host}_${port}_`];
  return registry === "registry-1.docker.io" ? [...names, "docker.io"] : names;
}

async function addDirectory(tls: HostTls, path: string): Promise<void> {
  const names: string[] = [];
  try {
    for await (const entry of Deno.readDir(path)) names.push(entry.name);
  } catch (error) {
    if (
      error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotADirectory ||
      error instanceof Deno.errors.PermissionDenied
    ) return;
    throw error;
  }
  for (const name of names.sort()) {
    if (name.endsWith(".crt")) {
      tls.caCerts.push(await readPem(`${path}/${name}`, "CERTIFICATE"));
    } else if (name.endsWith(".cert") && tls.clientCert === undefined) {
      const key = name.replace(/cert$/, "key");
      if (!names.includes(key)) {
        throw new UsageError(`"${path}/${name}" has no key "${key}" beside it`);
      }
      tls.clientCert = await readPem(`${path}/${name}`, "CERTIFICATE");
      tls.clientKey = await readPem(`${path}/${key}`, "PRIVATE KEY");
    }
  }
}

/**
 * Reads a PEM file.
 *
 * @param kind What one of its blocks has to be.
 * @throws {UsageError} If it is missing, or has none.
 */
export async function readPem(path: string, kind: string): Promise<string> {
  let text: string;
  try {
    const info = await Deno.stat(path);
    if (info.size > PEM_SIZE_MAX) {
      throw new UsageError(`"${path}" is too large for a PEM file`);
    }
    text = fromUtf8(await readFileUpTo(path, PEM_SIZE_MAX));
  } catch (cause) {
    if (cause instanceof UsageError) throw cause;
    throw new UsageError(`Cannot read "${path}": ${errorText(cause)}`);
  }
  if (!new RegExp(`-----BEGIN [A-Z ]*${kind}-----`).test(text)) {
    throw new UsageError(`"${path}" has no ${kind} in PEM form`);
  }
  return text;
}

/** PEM text of the system's bundle, for clients that take a full list; "" when there is none. */
export async function readSystemBundle(): Promise<string> {
  const own = Deno.env.get("SSL_CERT_FILE");
  for (const path of own ? [own] : SYSTEM_BUNDLES) {
    try {
      return await Deno.readTextFile(path);
    } catch {
      // The next distribution's place.
    }
  }
  return "";
}

/**
 * overlaybd's credential service (its `credentialConfig` in the modes `http`,
 * `https` and `uds`): a local program that is asked for the credentials of a
 * blob's URL and answers with the `auths` of Docker's `config.json` (overlaybd
 * src/image_service.cpp: reload_auth).
 */

import { once } from "node:events";
import http from "node:http";
import { errorText, LimitError, ObdError, UsageError } from "../io/mod.ts";
import { EMPTY_DIGEST } from "./digest.ts";
import { apiHost } from "./reference.ts";
import { readPem } from "./tls.ts";

/** Where the service is. */
export interface CredentialService {
  mode: "http" | "https" | "uds";
  /** URL, or the path of a Unix socket; without a scheme the mode's is meant. */
  path: string;
  /** Of one question. Default 1,000. */
  timeoutMs?: number | undefined;
  /** PEM files for mode `https`. */
  clientCertFile?: string | undefined;
  clientKeyFile?: string | undefined;
  caFile?: string | undefined;
}

const TIMEOUT_MS = 1000;
const ANSWER_SIZE_MAX = 1024 * 1024;
/** Services parse a blob's URL; which blob it is does not matter: this is the empty one. */
const SOME_BLOB = EMPTY_DIGEST;

/**
 * Asks for the credentials of a repository.
 *
 * @returns The text of a JSON object with `auths`.
 * @throws {ObdError} That never quotes the answer.
 */
export async function askCredentialService(
  service: CredentialService,
  registry: string,
  repository: string,
): Promise<string> {
  const url = serviceUrl(service);
  // As overlaybd writes it: a URL in a query, not encoded.
  url.search = `${
    url.search === "" ? "?" : `${url.search}&`
  }remote_url=https://${apiHost(registry)}/v2/${repository}/blobs/${SOME_BLOB}`;
  const timeoutMs = service.timeoutMs ?? TIMEOUT_MS;
  const signal = AbortSignal.timeout(timeoutMs);
  try {
    const { status, text } = service.mode === "uds"
      ? await askSocket(service.path, url, signal)
      : await askUrl(service, url, signal);
    if (status !== 200) {
      throw problem(service, `answered with status ${status}`);
    }
    return authsOf(service, text);
  } catch (error) {
    if (error instanceof ObdError) throw error;
    throw problem(
      service,
      signal.aborted ? `did not answer in ${timeoutMs} ms` : errorText(error),
    );
  }
}

interface Answer {
  status: number;
  text: string;
}

async function askUrl(
  service: CredentialService,
  url: URL,
  signal: AbortSignal,
): Promise<Answer> {
  const client = await openServiceClient(service);
  try {
    const response = await fetch(url, { client, redirect: "error", signal });
    const text = await readText(response.body ?? []);
    return { status: response.status, text };
  } finally {
    client.close();
  }
}

/** Over node:http: to `fetch` a Unix socket is a proxy, which `NO_PROXY` switches off. */
async function askSocket(
  socketPath: string,
  { pathname, search }: URL,
  signal: AbortSignal,
): Promise<Answer> {
  const request = http.request({
    socketPath,
    path: pathname + search,
    agent: false,
    signal,
    headers: { connection: "close" },
  });
  // A connection that breaks during the answer fails the answer, and once more the request.
  request.on("error", () => {});
  try {
    const answered = once(request, "response");
    request.end();
    const [response] = await answered as [http.IncomingMessage];
    const text = await readText(response);
    return { status: response.statusCode ?? 0, text };
  } finally {
    request.destroy();
  }
}

/** How the service is named in messages. */
export function serviceName({ mode, path }: CredentialService): string {
  return `${mode} credential service ${path}`;
}

function problem(service: CredentialService, what: string): ObdError {
  return new ObdError("state", `The ${serviceName(service)} ${what}`);
}

function serviceUrl({ mode, path }: CredentialService): URL {
  if (mode === "uds") return new URL("http://localhost/auth");
  const text = /^https?:\/\//.test(path) ? path : `${mode}://${path}`;
  const url = URL.parse(text);
  if (!url) {
    throw new UsageError(
      `Key "credentialConfig.path": "${path}" is no URL, which mode "${mode}" needs`,
    );
  }
  return url;
}

/**
 * A client with the service's certificates; the caller closes it.
 *
 * @throws {UsageError} If one is missing or cannot be used, or the path is no URL.
 */
export async function openServiceClient(
  service: CredentialService,
): Promise<Deno.HttpClient> {
  const { mode, clientCertFile, clientKeyFile, caFile } = service;
  serviceUrl(service);
  const isSecure = mode === "https";
  const options = {
    http2: false,
    ...(isSecure && caFile
      ? { caCerts: [await readPem(caFile, "CERTIFICATE")] }
      : {}),
    ...(isSecure && clientCertFile && clientKeyFile
      ? {
        cert: await readPem(clientCertFile, "CERTIFICATE"),
        key: await readPem(clientKeyFile, "PRIVATE KEY"),
      }
      : {}),
  };
  try {
    return Deno.createHttpClient(options);
  } catch (cause) {
    throw new UsageError(
      `A certificate for the ${serviceName(service)} cannot be used: ${
        errorText(cause)
      }`,
    );
  }
}

async function readText(
  body: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): Promise<string> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  for await (const piece of body) {
    size += piece.length;
    if (size > ANSWER_SIZE_MAX) {
      throw new LimitError(
        `Answer of the credential service is larger than ${ANSWER_SIZE_MAX} bytes`,
      );
    }
    pieces.push(piece);
  }
  return await new Blob(pieces as BlobPart[]).text();
}

/** `{"success": true, "data": {"auths": {…}}}`. */
function authsOf(service: CredentialService, text: string): string {
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    throw problem(service, "answered with what is no JSON");
  }
  const { success, data } = (answer ?? {}) as Record<string, unknown>;
  if (success !== true) throw problem(service, "answered that it failed");
  if (typeof data !== "object" || data === null) {
    throw problem(service, 'answered without "data"');
  }
  return JSON.stringify(data);
}

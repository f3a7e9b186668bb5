/** What the tests of lib/registry share. */

import {
  type Clock,
  type CredentialOptions,
  type Descriptor,
  MediaType,
  RegistryClient,
  type RegistryOptions,
  type RemoteRepository,
} from "../../lib/registry/mod.ts";
import {
  RegistryServer,
  type RegistryServerOptions,
} from "../testutil/registry_server.ts";

/** A clock whose pauses take no time; `pauses` lists them. */
export class FakeClock implements Clock {
  readonly pauses: number[] = [];
  #nowMs = 1000;

  now(): number {
    return this.#nowMs;
  }

  advance(milliseconds: number): void {
    this.#nowMs += milliseconds;
  }

  delay(milliseconds: number): Promise<void> {
    this.pauses.push(milliseconds);
    this.advance(milliseconds);
    return Promise.resolve();
  }

  random(): number {
    return 0.5;
  }
}

/** No credentials but those in `files`, whatever this machine has. */
export function onlyCredentials(
  more: CredentialOptions = {},
  env: Record<string, string> = {},
): CredentialOptions {
  // A runtime directory of its own, else /run/containers would be looked at.
  const own: Record<string, string> = {
    XDG_RUNTIME_DIR: "/nonexistent",
    ...env,
  };
  return { env: (name) => own[name], ...more };
}

export interface Setup extends AsyncDisposable {
  server: RegistryServer;
  client: RegistryClient;
  clock: FakeClock;
  repository: RemoteRepository;
}

/** A server, a client and its repository "app". */
export async function setup(
  serverOptions: RegistryServerOptions = {},
  options: RegistryOptions = {},
): Promise<Setup> {
  const server = await RegistryServer.start(serverOptions);
  const clock = new FakeClock();
  const client = new RegistryClient({
    clock,
    credentials: onlyCredentials(),
    certsDirectories: [],
    ...options,
    // Long: tests in which something hangs have limits of their own.
    limits: { answerMs: 20_000, stallMs: 10_000, ...options.limits },
  });
  return {
    server,
    client,
    clock,
    repository: client.open(server.host, "app"),
    async [Symbol.asyncDispose]() {
      await client[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

/** Bytes that differ everywhere, the same on each run. */
export function patternBytes(size: number, seed = 1): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(size / 4));
  let x = seed * 0x9e3779b9 >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return new Uint8Array(words.buffer, 0, size);
}

/** All pieces as one array. */
export async function collect(
  pieces: AsyncIterable<Uint8Array>,
): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const piece of pieces) parts.push(piece);
  const whole = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** A manifest document. */
export function manifestOf(
  config: Descriptor,
  layers: Descriptor[],
  more: Record<string, unknown> = {},
): Record<string, unknown> {
  return {
    schemaVersion: 2,
    mediaType: MediaType.ociManifest,
    config: { ...config, mediaType: MediaType.ociConfig },
    layers: layers.map((l) => ({ ...l, mediaType: MediaType.ociLayer })),
    ...more,
  };
}

/** A temporary directory that is gone afterwards. */
export async function withTempDir(
  work: (path: string) => Promise<void>,
): Promise<void> {
  const path = await Deno.makeTempDir({ prefix: "obd-registry-" });
  try {
    await work(path);
  } finally {
    await Deno.remove(path, { recursive: true });
  }
}

/** Runs a program that must succeed. */
export async function run(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args,
    stdout: "piped",
    stderr: "piped",
  }).output();
  const text = new TextDecoder();
  if (code !== 0) {
    throw new Error(`${program} ${args.join(" ")}: ${text.decode(stderr)}`);
  }
  return text.decode(stdout);
}

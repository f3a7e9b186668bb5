/** A real `obd serve` in a process of its own, and what its tests share. */

import assert from "node:assert/strict";
import { createApiClient } from "../../cmd/api_client.ts";
import {
  Ext4Reader,
  openEnvironment,
  publishImage,
} from "../../lib/image/mod.ts";
import {
  type ByteSource,
  equalBytes,
  loadLibc,
  readBytes,
} from "../../lib/io/mod.ts";
import { NbdClient } from "../../lib/nbd/mod.ts";
import {
  file,
  type LayerDescription,
  makeImage,
} from "../testutil/oci_image.ts";
import { seededBytes } from "../testutil/source_contract.ts";

// Opened once per process, so it must not count as a leak of the first test.
loadLibc();

export const MiB = 1024 * 1024;
const READY_DEADLINE_MS = 60_000;
const EXIT_DEADLINE_MS = 30_000;

/** Program and arguments that run obd from source. */
export const OBD: readonly string[] = [
  Deno.execPath(),
  "run",
  "-A",
  new URL("../../main.ts", import.meta.url).pathname,
];

/** One export of the ready line. */
export interface ReadyExport {
  name: string;
  uri: string;
  size: number;
  source?: string;
  meta?: string;
}

/** The ready line. */
export interface ReadyLine {
  event: string;
  pid: number;
  api: string;
  exports: ReadyExport[];
}

/** How a process of ours ended. */
export interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

/** Collects a stream's text while it comes. */
class Text {
  text = "";
  readonly done: Promise<void>;
  readonly #waiting = new Set<() => void>();

  constructor(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
    this.done = this.#collect(stream);
  }

  async #collect(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
    for await (const piece of stream.pipeThrough(new TextDecoderStream())) {
      this.text += piece;
      for (const wake of this.#waiting) wake();
    }
    for (const wake of this.#waiting) wake();
  }

  /** Resolves once `found` holds, or when nothing more comes. */
  async until(found: (text: string) => boolean): Promise<void> {
    let ended = false;
    this.done.then(() => ended = true);
    while (!found(this.text) && !ended) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting.add(resolve);
      await Promise.race([promise, this.done]);
      this.#waiting.delete(resolve);
      await Promise.resolve();
    }
  }
}

/** A running `obd serve`. */
export class ServeProcess implements AsyncDisposable {
  readonly ready: ReadyLine;
  readonly #child: Deno.ChildProcess;
  readonly #stdout: Text;
  readonly #stderr: Text;

  private constructor(
    child: Deno.ChildProcess,
    stdout: Text,
    stderr: Text,
    ready: ReadyLine,
  ) {
    this.#child = child;
    this.#stdout = stdout;
    this.#stderr = stderr;
    this.ready = ready;
  }

  /** Starts it and waits for the ready line. */
  static async start(
    config: string,
    options: SpawnOptions = {},
  ): Promise<ServeProcess> {
    const child = spawnServe(config, options);
    const stdout = new Text(child.stdout);
    const stderr = new Text(child.stderr);
    const timer = setTimeout(() => kill(child), READY_DEADLINE_MS);
    await stdout.until((text) => text.includes("\n"));
    clearTimeout(timer);
    const [line, ...rest] = stdout.text.split("\n");
    if (rest.length === 0) {
      kill(child);
      const { code } = await child.status;
      await stderr.done;
      throw new Error(`obd serve ended with ${code}: ${stderr.text}`);
    }
    return new ServeProcess(child, stdout, stderr, JSON.parse(line!));
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** What it has logged so far. */
  get log(): string {
    return this.#stderr.text;
  }

  /** Waits for a log line. */
  async logged(pattern: RegExp): Promise<string> {
    const timer = setTimeout(() => kill(this.#child), EXIT_DEADLINE_MS);
    await this.#stderr.until((text) => pattern.test(text));
    clearTimeout(timer);
    const line = this.log.split("\n").find((l) => pattern.test(l));
    assert.ok(line !== undefined, `${pattern} is not in the log:\n${this.log}`);
    return line;
  }

  /** The URI of an export. */
  uri(name: string): string {
    const found = this.ready.exports.find((e) => e.name === name);
    assert.ok(found, `no export "${name}"`);
    return found.uri;
  }

  /** A client of one of its exports. */
  connect(name: string): Promise<NbdClient> {
    return NbdClient.connect(this.uri(name), { deadlineMs: 60_000 });
  }

  /** A client of its status API. */
  api(): ReturnType<typeof createApiClient> {
    return createApiClient(this.ready.api);
  }

  /** Sends a signal and waits for the end. */
  async end(signal: Deno.Signal = "SIGTERM"): Promise<Ended> {
    try {
      this.#child.kill(signal);
    } catch {
      // It has ended already.
    }
    const timer = setTimeout(() => kill(this.#child), EXIT_DEADLINE_MS);
    const { code } = await this.#child.status;
    clearTimeout(timer);
    await Promise.all([this.#stdout.done, this.#stderr.done]);
    return { code, stdout: this.#stdout.text, stderr: this.log };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end("SIGKILL");
  }
}

/** How it is started. */
interface SpawnOptions {
  args?: string[];
  env?: Record<string, string>;
  /** Instead of {@linkcode OBD}. */
  command?: readonly string[];
}

function spawnServe(
  config: string,
  options: SpawnOptions,
): Deno.ChildProcess {
  const [program, ...args] = options.command ?? OBD;
  return new Deno.Command(program!, {
    args: [...args, "serve", "--config", config, ...options.args ?? []],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1", XDG_RUNTIME_DIR: "/nonexistent", ...options.env },
  }).spawn();
}

function kill(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGKILL");
  } catch {
    // It has ended already.
  }
}

/** Runs `obd` with these arguments to its end. */
export async function obd(...args: string[]): Promise<Ended> {
  const [program, ...first] = OBD;
  return await run(program!, ...first, ...args);
}

/** Runs a program to its end. */
export async function run(program: string, ...args: string[]): Promise<Ended> {
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args,
    stdin: "null",
    env: { NO_COLOR: "1" },
    signal: AbortSignal.timeout(60_000),
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

/** Runs a program that must succeed. */
export async function sh(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, ...args);
  assert.equal(code, 0, `${program} ${args.join(" ")}\n${stdout}\n${stderr}`);
  return stdout;
}

/** Writes a configuration with everything below `dir`. */
export async function writeConfig(
  dir: string,
  images: readonly Record<string, unknown>[],
  more: Record<string, unknown> = {},
): Promise<string> {
  const path = `${dir}/serve.json`;
  const { nbd, ...rest } = more;
  await Deno.writeTextFile(
    path,
    JSON.stringify({
      nbd: { listen: `unix:${dir}/nbd.sock`, ...nbd as object },
      api: { listen: `unix:${dir}/api.sock` },
      cacheConfig: { cacheDir: `${dir}/blobs`, cacheSizeGB: 0.25 },
      gzipCacheConfig: { cacheDir: `${dir}/gzip`, cacheSizeGB: 0.25 },
      workers: 1,
      images,
      ...rest,
    }),
  );
  return path;
}

/** Runs `work` with a directory that is removed afterwards. */
export async function withTempDir(
  work: (dir: string) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-serve-" });
  try {
    await work(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** Builds and pushes a meta image in this process; its digest. */
export async function build(source: string, dest?: string): Promise<string> {
  await using environment = await openEnvironment({ workers: 1 });
  const { platforms } = await publishImage(environment, {
    source,
    dest,
    jobs: 1,
    virtualSize: 2 ** 30,
  });
  return platforms[0]!.meta.digest;
}

/** Files by path, with their content. */
export type Files = Record<string, Uint8Array<ArrayBuffer>>;

/** A file's content that deflate hardly shrinks, so that spans lie where one thinks. */
export function content(seed: number, size: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(seededBytes(size, seed));
}

/** A layer with these files. */
export function layerOf(
  files: Files,
  more: Partial<LayerDescription> = {},
): LayerDescription {
  return {
    entries: Object.entries(files).map(([path, bytes]) => file(path, bytes)),
    ...more,
  };
}

/** An image with one layer of these files. */
export function imageOf(files: Files) {
  return makeImage({ layers: [layerOf(files)] });
}

/** A whole file's content on a device. */
export async function readFile(
  device: ByteSource,
  path: string,
): Promise<Uint8Array> {
  const reader = await Ext4Reader.open(device);
  const opened = await reader.openFile(await reader.lookup(path));
  return await readBytes(opened, 0, opened.size);
}

/** Records what a reader of some files does, by `obd trace record` with more options. */
export async function recordTrace(
  serve: ServeProcess,
  output: string,
  paths: readonly string[],
  ...options: string[]
): Promise<void> {
  const [program, ...args] = OBD;
  const recorder = new Deno.Command(program!, {
    args: [
      ...args,
      "trace",
      "record",
      "app",
      "--output",
      output,
      "--api",
      serve.ready.api,
      ...options,
    ],
    stdout: "null",
    stderr: "piped",
  }).spawn();
  // It says so once the server records.
  const errors = recorder.stderr.getReader();
  await errors.read();
  {
    await using client = await serve.connect("app");
    for (const path of paths) await readFile(client, path);
  }
  recorder.kill("SIGINT");
  await errors.cancel();
  assert.equal((await recorder.status).code, 0);
}

/** Fails unless every file on the device is what it should be. */
export async function checkFiles(
  device: ByteSource,
  files: Files,
): Promise<void> {
  for (const [path, bytes] of Object.entries(files)) {
    const got = await readFile(device, path);
    assert.ok(equalBytes(got, bytes), `${path} has other content`);
  }
}

/** The blob reads in a registry's log. */
export function blobReads(
  requests: readonly { method: string; path: string; status: number }[],
  digest: string,
): number {
  return requests.filter((r) =>
    r.method === "GET" && r.path.endsWith(digest) && r.status < 300
  ).length;
}

/** What the tests of lib/image share: environments, builds, what a registry or layout holds afterwards. */

import {
  type ImageEnvironment,
  openEnvironment,
  openImage,
  publishImage,
  type PublishOptions,
  type PublishReport,
} from "../../lib/image/mod.ts";
import { loadLibc, type LogFields, type Logger } from "../../lib/io/mod.ts";
import {
  type Clock,
  openRepository,
  RegistryClient,
} from "../../lib/registry/mod.ts";
import { deviceTree } from "../testutil/device_tree.ts";

// Opened once per process, so it must not count as a leak of the first test.
loadLibc();

/** Program and arguments that run obd from source. */
export const OBD: readonly string[] = [
  Deno.execPath(),
  "run",
  "-A",
  new URL("../../main.ts", import.meta.url).pathname,
];

/** Keeps lines of level warn and error. */
export class KeepingLogger implements Logger {
  readonly warnings: string[] = [];

  debug(): void {}
  info(): void {}

  warn(event: string, fields: LogFields = {}): void {
    this.warnings.push(`${event} ${JSON.stringify(fields)}`);
  }

  error(event: string, fields: LogFields = {}): void {
    this.warn(event, fields);
  }
}

/** Pauses take no time. */
const hastyClock: Clock = {
  now: () => performance.now(),
  delay: () => Promise.resolve(),
  random: () => 0.5,
};

/** An environment without this machine's credentials, whose retries do not wait. */
export interface TestEnvironment extends ImageEnvironment {
  log: KeepingLogger;
}

/** Opens one. */
export async function testEnvironment(
  options: { signal?: AbortSignal } = {},
): Promise<TestEnvironment> {
  const log = new KeepingLogger();
  const real = await openEnvironment({
    log,
    workers: 1,
    ...options,
  });
  const own: Record<string, string> = { XDG_RUNTIME_DIR: "/nonexistent" };
  const client = new RegistryClient({
    clock: hastyClock,
    certsDirectories: [],
    credentials: { env: (name) => own[name] },
    logger: log,
    limits: { answerMs: 5000, stallMs: 1000, attempts: 3 },
  });
  return {
    ...real,
    log,
    openRepository: (reference, { create = false } = {}) =>
      openRepository(reference, { create, client }),
    async [Symbol.asyncDispose]() {
      await client[Symbol.asyncDispose]();
      await real[Symbol.asyncDispose]();
    },
  };
}

/** What a build did. */
export interface BuildResult {
  report: PublishReport;
  warnings: string[];
}

/** Builds in this process, on one thread. */
export async function build(
  options: PublishOptions,
): Promise<BuildResult> {
  await using environment = await testEnvironment();
  const report = await publishImage(environment, { jobs: 1, ...options });
  return { report, warnings: environment.log.warnings };
}

/** The tree of an image, as its device shows it. */
export async function imageTree(
  image: string,
  platform?: string,
): Promise<string[]> {
  await using environment = await testEnvironment();
  await using opened = await openImage(environment, image, {
    platform,
    metaFrom: ["digest", "tag", "referrer"],
  });
  return await deviceTree(opened.source);
}

/** Writes an image's whole device to a sparse file. */
export async function dumpImage(image: string, path: string): Promise<void> {
  await using environment = await testEnvironment();
  await using opened = await openImage(environment, image, {
    metaFrom: ["digest", "tag", "referrer"],
  });
  const { source } = opened;
  using file = await Deno.open(path, { write: true, createNew: true });
  await file.truncate(source.size);
  const buffer = new Uint8Array(1 << 20);
  for (const extent of source.extents(0, source.size)) {
    if (extent.kind !== "data") continue;
    for (let at = 0; at < extent.length; at += buffer.length) {
      const part = buffer.subarray(
        0,
        Math.min(buffer.length, extent.length - at),
      );
      await source.pread(part, extent.offset + at);
      await file.seek(extent.offset + at, Deno.SeekMode.Start);
      await file.write(part);
    }
  }
}

/** Runs a program. */
export async function run(
  command: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  const [program, ...args] = command;
  const { code, stdout, stderr } = await new Deno.Command(program!, {
    args,
    stdin: "null",
    ...options,
    // Nothing outlives a test.
    env: { NO_COLOR: "1", OBD_DEDUP_DB: "none", ...options.env },
  }).output();
  const decoder = new TextDecoder();
  return {
    code,
    stdout: decoder.decode(stdout),
    stderr: decoder.decode(stderr),
  };
}

/** Runs a program that must succeed. */
export async function sh(
  command: readonly string[],
  options: Parameters<typeof run>[1] = {},
): Promise<string> {
  const { code, stdout, stderr } = await run(command, options);
  if (code !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
  return stdout;
}

/** Runs `work` with a directory that is removed afterwards. */
export async function withTempDir(
  work: (dir: string) => Promise<void>,
): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-image-test-" });
  try {
    await work(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** Every file below a directory with its content's size and time, to see that nothing changed. */
export async function fingerprint(path: string): Promise<string[]> {
  const lines: string[] = [];
  for await (const entry of Deno.readDir(path)) {
    const inner = `${path}/${entry.name}`;
    if (entry.isDirectory) lines.push(...await fingerprint(inner));
    else {
      const { size, mtime } = await Deno.stat(inner);
      lines.push(`${inner} ${size} ${mtime?.getTime()}`);
    }
  }
  return lines.sort();
}

/** Entries of a layout's `index.json` by tag. */
export async function layoutTags(
  layout: string,
): Promise<Map<string, string>> {
  const { manifests } = JSON.parse(
    await Deno.readTextFile(`${layout}/index.json`),
  );
  const tags = new Map<string, string>();
  for (const { digest, annotations } of manifests) {
    const tag = annotations?.["org.opencontainers.image.ref.name"];
    if (tag !== undefined) tags.set(tag, digest);
  }
  return tags;
}

/** Takes entries out of a layout's `index.json`. */
export async function removeTags(
  layout: string,
  isGone: (tag: string) => boolean,
): Promise<void> {
  const path = `${layout}/index.json`;
  const index = JSON.parse(await Deno.readTextFile(path));
  index.manifests = index.manifests.filter((
    m: { annotations?: Record<string, string> },
  ) => !isGone(m.annotations?.["org.opencontainers.image.ref.name"] ?? ""));
  await Deno.writeTextFile(path, JSON.stringify(index));
}

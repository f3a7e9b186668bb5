/**
 * Images that are generated while they are written, so that they may be larger
 * than memory, and builds of them that are watched. A helper of benchmarks.
 */

import { createHash } from "node:crypto";
import { createGzip } from "node:zlib";
import {
  dir,
  file,
  makeBlob,
  nameOf,
  tarEntry,
} from "../tests/testutil/oci_image.ts";

export const MIB = 2 ** 20;
const POLL_MS = 20;
/** USER_HZ of every Linux. */
const TICKS_PER_SECOND = 100;
const MAIN = new URL("../main.ts", import.meta.url).pathname;

/** What architecture demands of a build of so many entries, in bytes. */
export function memoryBudget(entries: number): number {
  return 200 * MIB + Math.max(0, entries - 50_000) * 1024;
}

/** Files in a directory of {@linkcode manyFiles}. */
const PER_DIRECTORY = 25;

/** Name of a file of {@linkcode manyFiles}. */
export function pathOf(prefix: string, i: number): string {
  const directory = Math.floor(i / PER_DIRECTORY);
  return `${prefix}/package-${directory}/lib/some-module-name-${i}.py`;
}

/** What it holds: ASCII. */
export function contentOf(prefix: string, i: number): string {
  return `${prefix} ${i} `.repeat(1 + i % 200);
}

/** A tree like a system's: directories of 25 files, names and contents that differ. */
export function* manyFiles(
  prefix: string,
  count: number,
): Iterable<Uint8Array> {
  for (let i = 0; i < count; i++) {
    const path = pathOf(prefix, i);
    if (i % PER_DIRECTORY === 0) {
      yield tarEntry(dir(path.slice(0, path.lastIndexOf("/"))));
    }
    yield tarEntry(file(path, contentOf(prefix, i), {
      mtime: 1_700_000_000 + i,
    }));
  }
  yield new Uint8Array(1024);
}

/** Writes one gzip layer into a layout; nothing is held in memory. */
async function writeLayer(
  layout: string,
  pieces: Iterable<Uint8Array>,
): Promise<WrittenLayer> {
  const tarHash = createHash("sha256");
  const blobHash = createHash("sha256");
  const temp = `${layout}/layer.tmp`;
  using out = await Deno.open(temp, { write: true, create: true });
  // Fast rather than small; level 1 of zlib-ng makes one block of everything.
  const gzip = createGzip({ level: 2 });
  let size = 0;
  const reading = (async () => {
    for await (const bytes of gzip) {
      blobHash.update(bytes);
      size += bytes.length;
      for (let at = 0; at < bytes.length;) {
        at += await out.write(bytes.subarray(at));
      }
    }
  })();
  for (const piece of pieces) {
    tarHash.update(piece);
    if (!gzip.write(piece)) {
      await new Promise<void>((resolve) => gzip.once("drain", resolve));
    }
  }
  gzip.end();
  await reading;
  const hex = blobHash.digest("hex");
  await Deno.rename(temp, `${layout}/blobs/sha256/${hex}`);
  return {
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    digest: `sha256:${hex}`,
    size,
    diffId: `sha256:${tarHash.digest("hex")}`,
  };
}

/**
 * Writes an image as `oci:LAYOUT:v1`.
 *
 * @param pieces Of each layer's tar.
 */
export async function writeImage(
  layout: string,
  pieces: readonly (() => Iterable<Uint8Array>)[],
): Promise<void> {
  await Deno.mkdir(`${layout}/blobs/sha256`, { recursive: true });
  const layers = [];
  for (const each of pieces) {
    layers.push(await writeLayer(layout, each()));
  }
  await writeDocuments(layout, layers);
}

/** A layer blob that is in the layout. */
export interface WrittenLayer {
  mediaType: string;
  digest: string;
  size: number;
  diffId: string;
}

/** Writes everything of `oci:LAYOUT:v1` but its layers. */
export async function writeDocuments(
  layout: string,
  layers: readonly WrittenLayer[],
): Promise<void> {
  const config = makeBlob("application/vnd.oci.image.config.v1+json", {
    os: "linux",
    architecture: "amd64",
    rootfs: { type: "layers", diff_ids: layers.map((l) => l.diffId) },
  });
  const manifest = makeBlob("application/vnd.oci.image.manifest.v1+json", {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: nameOf(config),
    layers: layers.map(nameOf),
  });
  for (const { digest, bytes } of [config, manifest]) {
    await Deno.writeFile(
      `${layout}/blobs/${digest.replace(":", "/")}`,
      bytes,
    );
  }
  await Deno.writeTextFile(
    `${layout}/oci-layout`,
    '{"imageLayoutVersion":"1.0.0"}',
  );
  await Deno.writeTextFile(
    `${layout}/index.json`,
    JSON.stringify({
      schemaVersion: 2,
      manifests: [{
        ...nameOf(manifest),
        annotations: { "org.opencontainers.image.ref.name": "v1" },
      }],
    }),
  );
}

/** What a build says of its layers. */
export interface BuildReport {
  layers: {
    entries: number;
    spans: number;
    size: number;
    metaSize: number;
    parts?: number;
  }[];
}

/** Runs a build and gives the most memory that it had at once, in bytes, and the time that it took. */
export async function buildPeak(
  layout: string,
  jobs: string | undefined,
  ...options: string[]
): Promise<
  { peak: number; seconds: number; cpuSeconds: number; report: BuildReport }
> {
  const started = performance.now();
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      MAIN,
      "build",
      `oci:${layout}:v1`,
      "-q",
      "--json",
      ...options,
      ...(jobs ? ["--jobs", jobs] : []),
    ],
    // As the one-file executable starts it (packaging/header.sh).
    env: { DENO_V8_FLAGS: "--max-semi-space-size=8" },
    stdin: "null",
    stdout: "piped",
  }).spawn();
  const report = new Response(child.stdout).text();
  let peak = 0;
  let cpuSeconds = 0;
  const timer = setInterval(() => {
    try {
      const status = Deno.readTextFileSync(`/proc/${child.pid}/status`);
      const kib = /^VmHWM:\s+([0-9]+) kB/m.exec(status);
      if (kib) peak = Number(kib[1]) * 1024;
      const stat = Deno.readTextFileSync(`/proc/${child.pid}/stat`);
      // Behind the name in parentheses; user and system time (proc(5)).
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      const ticks = Number(fields[11]) + Number(fields[12]);
      cpuSeconds = ticks / TICKS_PER_SECOND;
    } catch {
      // It is gone.
    }
  }, POLL_MS);
  const { code } = await child.status;
  clearInterval(timer);
  if (code !== 0) throw new Error(`obd build ended with ${code}`);
  const seconds = (performance.now() - started) / 1000;
  return { peak, seconds, cpuSeconds, report: JSON.parse(await report) };
}

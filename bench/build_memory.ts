/**
 * How much memory does `obd build` take? Peak RSS (VmHWM) of the whole process
 * for 50,000 entries, for 200,000, and for a layer of 2 GB. Budget: 200 MB up
 * to 50,000 entries, and 1 KiB for each further one, whatever the layers'
 * bytes.
 *
 * `deno run -A bench/build_memory.ts [--case NAME] [--jobs N]`
 *
 * Writes one JSON line per case: peak in bytes, the budget, and whether it held.
 */

import { createHash } from "node:crypto";
import { parseArgs } from "node:util";
import { createGzip } from "node:zlib";
import {
  dir,
  file,
  makeBlob,
  nameOf,
  tarEntry,
} from "../tests/testutil/oci_image.ts";

const MIB = 2 ** 20;
const BUDGET = 200 * MIB;
const BUDGET_ENTRIES = 50_000;
const BUDGET_PER_ENTRY = 1024;
const POLL_MS = 20;
const MAIN = new URL("../main.ts", import.meta.url).pathname;

interface Case {
  name: string;
  entries: number;
  /** Pieces of each layer's tar. */
  layers: (() => Iterable<Uint8Array>)[];
}

/** A tree like a system's: directories of 25 files, names and contents that differ. */
function* manyFiles(prefix: string, count: number): Iterable<Uint8Array> {
  for (let i = 0; i < count; i++) {
    const inner = `${prefix}/package-${Math.floor(i / 25)}/lib`;
    if (i % 25 === 0) yield tarEntry(dir(inner));
    const content = `${prefix} ${i} `.repeat(1 + i % 200);
    yield tarEntry(file(`${inner}/some-module-name-${i}.py`, content, {
      mtime: 1_700_000_000 + i,
    }));
  }
  yield new Uint8Array(1024);
}

/** Few files, many bytes. */
function* manyBytes(gigabytes: number): Iterable<Uint8Array> {
  const size = 100_000_000;
  const piece = new Uint8Array(MIB);
  for (let i = 0; i < piece.length; i++) piece[i] = (i >> 8) & 0xff;
  for (let i = 0; i < gigabytes * 10; i++) {
    // A header for the whole body, then the body in pieces.
    const head = tarEntry(file(`blob-${i}`, new Uint8Array(0))).slice();
    head.set(new TextEncoder().encode(size.toString(8).padStart(11, "0")), 124);
    head.fill(32, 148, 156);
    const sum = head.reduce((a, b) => a + b, 0);
    head.set(
      new TextEncoder().encode(`${sum.toString(8).padStart(6, "0")}\0 `),
      148,
    );
    yield head;
    for (let at = 0; at < size; at += piece.length) {
      yield piece.subarray(0, Math.min(piece.length, size - at));
    }
    yield new Uint8Array((512 - size % 512) % 512);
  }
  yield new Uint8Array(1024);
}

const CASES: Case[] = [
  {
    name: "50,000 entries in 3 layers",
    entries: 50_000,
    layers: ["base", "python", "app"].map((name, i) => () =>
      manyFiles(name, [30_000, 12_000, 6_080][i]!)
    ),
  },
  {
    name: "200,000 entries in 2 layers",
    entries: 200_000,
    layers: ["base", "app"].map((name) => () => manyFiles(name, 96_150)),
  },
  { name: "2 GB layer", entries: 20, layers: [() => manyBytes(2)] },
];

/** Writes one gzip layer into a layout; nothing is held in memory. */
async function writeLayer(
  layout: string,
  pieces: Iterable<Uint8Array>,
): Promise<
  { mediaType: string; digest: string; size: number; diffId: string }
> {
  const tarHash = createHash("sha256");
  const blobHash = createHash("sha256");
  const temp = `${layout}/layer.tmp`;
  using out = await Deno.open(temp, { write: true, create: true });
  const gzip = createGzip();
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

async function writeImage(layout: string, from: Case): Promise<void> {
  await Deno.mkdir(`${layout}/blobs/sha256`, { recursive: true });
  const layers = [];
  for (const pieces of from.layers) {
    layers.push(await writeLayer(layout, pieces()));
  }
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

/** Runs a build and gives the most memory that it had at once, in bytes. */
async function buildPeak(
  layout: string,
  jobs: string | undefined,
): Promise<{ peak: number; seconds: number }> {
  const started = performance.now();
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      MAIN,
      "build",
      `oci:${layout}:v1`,
      "-q",
      ...(jobs ? ["--jobs", jobs] : []),
    ],
    // As the one-file executable starts it (packaging/header.sh).
    env: { DENO_V8_FLAGS: "--max-semi-space-size=8" },
    stdin: "null",
  }).spawn();
  let peak = 0;
  const timer = setInterval(() => {
    try {
      const status = Deno.readTextFileSync(`/proc/${child.pid}/status`);
      const kib = /^VmHWM:\s+([0-9]+) kB/m.exec(status);
      if (kib) peak = Number(kib[1]) * 1024;
    } catch {
      // It is gone.
    }
  }, POLL_MS);
  const { code } = await child.status;
  clearInterval(timer);
  if (code !== 0) throw new Error(`obd build ended with ${code}`);
  return { peak, seconds: (performance.now() - started) / 1000 };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    args: Deno.args,
    options: { case: { type: "string" }, jobs: { type: "string" } },
  });
  for (const each of CASES) {
    if (values.case && !each.name.includes(values.case)) continue;
    const layout = await Deno.makeTempDir({ prefix: "obd-bench-" });
    try {
      await writeImage(layout, each);
      const { peak, seconds } = await buildPeak(layout, values.jobs);
      const budget = BUDGET +
        Math.max(0, each.entries - BUDGET_ENTRIES) * BUDGET_PER_ENTRY;
      console.log(JSON.stringify({
        bench: "build_memory",
        case: each.name,
        peakMiB: Math.round(peak / MIB),
        budgetMiB: Math.round(budget / MIB),
        ratio: Number((peak / budget).toFixed(2)),
        isWithin: peak <= budget,
        seconds: Number(seconds.toFixed(1)),
      }));
    } finally {
      await Deno.remove(layout, { recursive: true });
    }
  }
}

await main();

/**
 * How fast is the first sequential read of a gzip layer, with empty caches, from
 * a registry on loopback? Against `curl -s BLOB | gzip -dc | sha256sum`,
 * alternating in one run. Budget: at least 1.5 times its throughput.
 *
 * `deno run -A bench/cold_read.ts [--megabytes N] [--rounds N] [--read BYTES]`
 *
 * Both sides fetch from the same registry process and end with the SHA-256 of
 * the whole tar; ours also fills both caches on disk and checks each span.
 * Writes one JSON line per measurement and one for the summary.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { parseArgs } from "node:util";
import { CodecPool } from "../lib/compress/mod.ts";
import { toHex } from "../lib/io/mod.ts";
import {
  CachedSource,
  CacheStore,
  GunzipSource,
  SpanCache,
  SpanTable,
} from "../lib/layers/mod.ts";
import { type LayerScan, scanLayer } from "../lib/layers/pass/mod.ts";
import { type Descriptor, openRepository } from "../lib/registry/mod.ts";
import { RegistryServer } from "../tests/testutil/registry_server.ts";

const MEGABYTE = 1e6;
const YIELD_BYTES = 2 ** 20;
const CACHE_BYTES = 4 * 2 ** 30;
const MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip";

interface Setup {
  dir: string;
  host: string;
  descriptor: Descriptor;
  scan: LayerScan;
}

async function sh(command: string): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("bash", {
    args: ["-c", command],
  }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout).trim();
}

async function* pieces(path: string): AsyncGenerator<Uint8Array> {
  using file = await Deno.open(path);
  for (;;) {
    const bytes = new Uint8Array(1 << 20);
    const read = await file.read(bytes);
    if (read === null) return;
    yield bytes.subarray(0, read);
  }
}

/** The registry's process: prints its host and serves until its input ends. */
async function serveRegistry(directory: string): Promise<void> {
  await using server = await RegistryServer.start({ directory });
  console.log(server.host);
  await Deno.stdin.read(new Uint8Array(1));
}

async function startRegistry(
  directory: string,
): Promise<{ host: string; stop: () => Promise<void> }> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", import.meta.filename!, "--registry", directory],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  return {
    host: new TextDecoder().decode(value).trim(),
    stop: async () => {
      await child.stdin.close();
      await reader.cancel();
      await child.status;
    },
  };
}

/** A layer of files of this machine, pushed and indexed. */
async function prepare(
  dir: string,
  host: string,
  megabytes: number,
): Promise<Setup> {
  const blob = `${dir}/layer.tar.gz`;
  // Sorted, so that runs on one machine are alike; cut, since only bytes count.
  await sh(
    `set +o pipefail; tar -C /usr --sort=name -cf - lib share 2>/dev/null |
     head -c ${megabytes * MEGABYTE} | gzip -c > ${blob}`,
  );
  const digest = `sha256:${(await sh(`sha256sum < ${blob}`)).slice(0, 64)}`;
  const { size } = await Deno.stat(blob);
  const descriptor = { mediaType: MEDIA_TYPE, digest, size };
  const scan = await scanLayer(pieces(blob), {
    blobSize: size,
    expectedDigest: digest,
  });
  await using repository = await openRepository(`${host}/bench`);
  await repository.pushBlob(descriptor, { open: () => pieces(blob) });
  return { dir, host, descriptor, scan };
}

async function theirs({ host, descriptor, scan }: Setup): Promise<number> {
  const url = `http://${host}/v2/bench/blobs/${descriptor.digest}`;
  const start = performance.now();
  const sum = await sh(`curl -s ${url} | gzip -dc | sha256sum`);
  const ms = performance.now() - start;
  assert.equal(`sha256:${sum.slice(0, 64)}`, scan.diffId);
  return ms;
}

async function ours(setup: Setup, readBytes: number): Promise<number> {
  const { host, descriptor, scan } = setup;
  const directory = await Deno.makeTempDir({ dir: setup.dir });
  const open = (name: string) =>
    CacheStore.open({
      directory: `${directory}/${name}`,
      sizeBytes: CACHE_BYTES,
      name,
    });
  await using repository = await openRepository(`${host}/bench`);
  await using blobs = await open("blobs");
  await using gzip = await open("gzip");
  using pool = new CodecPool();
  const start = performance.now();
  const compressed = new CachedSource(await repository.openBlob(descriptor), {
    key: descriptor.digest,
    store: blobs,
  });
  const { spans, checkpoints } = scan;
  await using source = new GunzipSource(compressed, {
    digest: descriptor.digest,
    spans: new SpanTable(spans.uncompressedOffset, scan.tarSize, spans.sha256),
    checkpoints: {
      count: checkpoints.count,
      compressedOffset: (i) => checkpoints.compressedOffset[i]!,
      bits: (i) => checkpoints.bits[i]!,
      window: (i) => checkpoints.window[i]!,
    },
    inflater: pool,
    cache: new SpanCache({ store: gzip }),
  });
  const hash = createHash("sha256");
  const buffer = new Uint8Array(readBytes);
  for (let at = 0; at < source.size; at += readBytes) {
    const dst = buffer.subarray(0, Math.min(readBytes, source.size - at));
    if (!source.preadNow(dst, at)) await source.pread(dst, at);
    // Like a server, which waits for its socket now and then.
    else if (at % YIELD_BYTES === 0) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    hash.update(dst);
  }
  const ms = performance.now() - start;
  assert.equal(`sha256:${toHex(hash.digest())}`, scan.diffId);
  return ms;
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

async function main(
  megabytes: number,
  rounds: number,
  readBytes: number,
): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-cold-read-" });
  const registry = await startRegistry(`${dir}/registry`);
  try {
    const setup = await prepare(dir, registry.host, megabytes);
    const rate = (ms: number) => setup.scan.tarSize / MEGABYTE / (ms / 1000);
    const results = { theirs: [] as number[], ours: [] as number[] };
    for (let round = 0; round < rounds; round++) {
      for (
        const [who, run] of [
          ["theirs", () => theirs(setup)],
          ["ours", () => ours(setup, readBytes)],
        ] as const
      ) {
        const ms = await run();
        results[who].push(ms);
        console.log(JSON.stringify({ round, who, ms, mbPerSecond: rate(ms) }));
      }
    }
    console.log(JSON.stringify({
      bench: "cold_read",
      deno: Deno.version.deno,
      arch: Deno.build.arch,
      cores: navigator.hardwareConcurrency,
      tarBytes: setup.scan.tarSize,
      blobBytes: setup.descriptor.size,
      readBytes,
      rounds,
      oursMbPerSecond: rate(median(results.ours)),
      theirsMbPerSecond: rate(median(results.theirs)),
      ratio: median(results.theirs) / median(results.ours),
      budget: 1.5,
    }));
  } finally {
    await registry.stop();
    await Deno.remove(dir, { recursive: true });
  }
}

const { values } = parseArgs({
  args: Deno.args,
  options: {
    megabytes: { type: "string", default: "250" },
    rounds: { type: "string", default: "3" },
    read: { type: "string", default: "131072" },
    registry: { type: "string" },
  },
});
if (values.registry !== undefined) await serveRegistry(values.registry);
else {
  await main(
    Number(values.megabytes),
    Number(values.rounds),
    Number(values.read),
  );
}

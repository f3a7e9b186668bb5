/**
 * zstd layers: the pass over one, reads of one of many frames, and how long the
 * first and the last byte of one of one frame take. The reference is the `zstd`
 * command with `sha256sum`.
 *
 *     deno run -A bench/zstd_read.ts [MIB=128]
 */

import { createHash } from "node:crypto";
import { CodecPool, zstdCompress } from "../lib/compress/mod.ts";
import { concatBytes, MemorySource } from "../lib/io/mod.ts";
import {
  type LayerScan,
  PinnedSource,
  PinnedStore,
  scanLayer,
  SpanCache,
  spanIndexOf,
  SpanTable,
  ZstdSource,
} from "../lib/layers/mod.ts";

const MIB = 2 ** 20;
const size = Number(Deno.args[0] ?? 128) * MIB;

/** Words out of a small vocabulary: compresses about 4 to 1. */
function makeTar(length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  const words = new Uint32Array(bytes.buffer);
  let state = 1;
  for (let i = 0; i < words.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    words[i] = (state >>> 24) * 0x9e3779b1 ^ (i >>> 12);
  }
  bytes.fill(0, length - 1024);
  return bytes;
}

async function run(script: string, file: string): Promise<number> {
  const started = performance.now();
  const { success } = await new Deno.Command("sh", {
    args: ["-c", script, "sh", file],
    stdout: "null",
  }).output();
  if (!success) throw new Error(`${script} failed`);
  return (performance.now() - started) / 1000;
}

async function scan(blob: Uint8Array): Promise<[LayerScan, number]> {
  async function* pieces() {
    for (let at = 0; at < blob.length; at += 256 * 1024) {
      yield blob.subarray(at, at + 256 * 1024);
      await Promise.resolve();
    }
  }
  const digest = createHash("sha256").update(blob).digest("hex");
  const started = performance.now();
  const found = await scanLayer(pieces(), {
    blobSize: blob.length,
    expectedDigest: `sha256:${digest}`,
  });
  return [found, (performance.now() - started) / 1000];
}

function spansOf(found: LayerScan): SpanTable {
  const { uncompressedOffset, sha256 } = found.spans;
  return new SpanTable(uncompressedOffset, found.tarSize, sha256);
}

function say(what: string, ours: number, reference?: number): void {
  const rate = (size / MIB / ours).toFixed(0);
  const ratio = reference === undefined
    ? ""
    : `, zstd -dc | sha256sum ${reference.toFixed(2)} s, ratio ${
      (ours / reference).toFixed(2)
    }`;
  console.log(`${what}: ${ours.toFixed(2)} s (${rate} MiB/s)${ratio}`);
}

const tar = makeTar(size);
const parts: Uint8Array[] = [];
for (let at = 0; at < size; at += 512 * 1024) {
  parts.push(zstdCompress(tar.subarray(at, at + 512 * 1024)));
}
const many = concatBytes(parts);
const dir = await Deno.makeTempDir({ prefix: "obd-bench-zstd-" });
try {
  const path = `${dir}/one.zst`;
  await Deno.writeFile(`${dir}/tar`, tar);
  await run(`zstd -q -3 "$1" -o "$1.zst"; mv "$1.zst" ${path}`, `${dir}/tar`);
  const one = await Deno.readFile(path);
  const reference = await run(`zstd -qdc "$1" | sha256sum`, path);

  const [oneScan, onePass] = await scan(one);
  say("pass, one frame", onePass, reference);
  const [manyScan, manyPass] = await scan(many);
  say("pass, many frames", manyPass, reference);

  using pool = new CodecPool();
  const index = spanIndexOf(manyScan, { mediaType: "", spanSize: MIB });
  const open = () =>
    new ZstdSource(new MemorySource(many), {
      digest: manyScan.blobDigest,
      spans: spansOf(manyScan),
      checkpoints: index.checkpoints!,
      decoder: pool,
      cache: new SpanCache(),
    });
  {
    await using source = open();
    const piece = new Uint8Array(256 * 1024);
    const started = performance.now();
    for (let at = 0; at < size; at += piece.length) {
      await source.pread(piece, at);
    }
    const seconds = (performance.now() - started) / 1000;
    say("sequential read, many frames", seconds, reference);
  }
  {
    await using source = open();
    const page = new Uint8Array(4096);
    const count = 50;
    const started = performance.now();
    for (let i = 0; i < count; i++) {
      await source.pread(page, (i * 7919 * 4096) % (size - 4096));
    }
    const each = (performance.now() - started) / count;
    console.log(`random 4 KiB, many frames, cold: ${each.toFixed(2)} ms each`);
  }

  await using store = await PinnedStore.open();
  await using source = await PinnedSource.open(new MemorySource(one), {
    digest: oneScan.blobDigest,
    diffId: oneScan.diffId,
    spans: spansOf(oneScan),
    compressedStart: 0,
    store,
  });
  const started = performance.now();
  const page = new Uint8Array(4096);
  await source.pread(page, 0);
  const first = performance.now() - started;
  await source.pread(page, size - 4096);
  say(
    "one frame, pinned, last byte",
    (performance.now() - started) / 1000,
    reference,
  );
  console.log(`one frame, pinned, first byte: ${first.toFixed(0)} ms`);
} finally {
  await Deno.remove(dir, { recursive: true });
}

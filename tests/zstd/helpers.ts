/** Layers compressed with zstd in the ways that are found in registries, and what reads them. */

import { createHash } from "node:crypto";
import { concatBytes, viewOf } from "../../lib/io/mod.ts";
import { zstdCompress } from "../../lib/compress/mod.ts";
import {
  type LayerScan,
  scanLayer,
  type TarReceiver,
} from "../../lib/layers/mod.ts";
import {
  dir,
  file,
  hardlink,
  layerTar,
  symlink,
} from "../testutil/oci_image.ts";
import { seededBytes } from "../testutil/source_contract.ts";

/** Bytes that compress to about two thirds. */
export function content(length: number, seed = 1): Uint8Array<ArrayBuffer> {
  const bytes = seededBytes(length, seed);
  for (let i = 0; i < length; i += 3) bytes[i] = 65;
  return bytes;
}

/** A tar of about `mib` MiB in files of many sizes. */
export function someTar(mib: number, seed = 1): Uint8Array<ArrayBuffer> {
  const sizes = [0, 1, 511, 512, 5000, 70_000, 300_001];
  const entries = [dir("d"), symlink("link", "d/f1"), file("empty", "")];
  let total = 0;
  for (let i = 0; total < mib * 2 ** 20; i++) {
    const size = sizes[i % sizes.length]! * (i % 14 === 6 ? 3 : 1);
    entries.push(file(`d/f${i}`, content(size, seed + i)));
    total += size;
  }
  entries.push(hardlink("d/hard", "d/f5"));
  return layerTar(entries);
}

/** A skippable frame (RFC 8878 §3.1.2). */
export function skippable(data: Uint8Array, kind = 0): Uint8Array<ArrayBuffer> {
  const frame = new Uint8Array(8 + data.length);
  viewOf(frame).setUint32(0, 0x184d2a50 + kind, true);
  viewOf(frame).setUint32(4, data.length, true);
  frame.set(data, 8);
  return frame;
}

/** One frame for each piece of `size` bytes. */
export function frames(bytes: Uint8Array, size: number): Uint8Array[] {
  const out: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; at += size) {
    out.push(zstdCompress(bytes.subarray(at, at + size)));
  }
  return out;
}

/** The seekable format: frames, then their sizes in a skippable frame (zstd's contrib/seekable_format). */
export function seekable(
  bytes: Uint8Array,
  size: number,
): Uint8Array<ArrayBuffer> {
  const parts = frames(bytes, size);
  const table = new Uint8Array(parts.length * 8 + 9);
  const view = viewOf(table);
  for (const [i, part] of parts.entries()) {
    view.setUint32(i * 8, part.length, true);
    view.setUint32(i * 8 + 4, Math.min(size, bytes.length - i * size), true);
  }
  view.setUint32(parts.length * 8, parts.length, true);
  view.setUint32(parts.length * 8 + 5, 0x8f92eab1, true);
  return concatBytes([...parts, skippable(table, 14)]);
}

/** As zstd:chunked: files in frames of their own, the manifest in skippable frames at the end. */
export function chunked(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array[] = [];
  const sizes = [512, 70_144, 1024, 300_544, 512, 2_000_384];
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length]!;
    parts.push(zstdCompress(bytes.subarray(at, at + size)));
    at += size;
  }
  const manifest = zstdCompress(new TextEncoder().encode('{"version":1}'));
  return concatBytes([
    ...parts,
    skippable(manifest),
    skippable(content(64)),
  ]);
}

/** Runs a compressor over `input` from its stdin, or from a file where `FILE` is among the arguments. */
export async function compressWith(
  command: readonly string[],
  input: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  const path = await Deno.makeTempFile({ prefix: "obd-zstd-test-" });
  try {
    await Deno.writeFile(path, input);
    const [program, ...args] = command;
    using file = await Deno.open(path);
    const child = new Deno.Command(program!, {
      args: args.map((arg) => arg === "FILE" ? path : arg),
      stdin: args.includes("FILE") ? "null" : "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const fed = args.includes("FILE")
      ? undefined
      : file.readable.pipeTo(child.stdin);
    const { code, stdout, stderr } = await child.output();
    await fed;
    if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
    return new Uint8Array(stdout);
  } finally {
    await Deno.remove(path);
  }
}

export function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** Collects the tar that a pass hands out. */
export class Collector implements TarReceiver {
  readonly parts: Uint8Array[] = [];

  push(bytes: Uint8Array): void {
    this.parts.push(bytes.slice());
  }

  finish(): void {}

  bytes(): Uint8Array<ArrayBuffer> {
    return concatBytes(this.parts);
  }
}

/** A pass over a blob, in pieces of odd sizes. */
export function scan(
  blob: Uint8Array,
  options: { threads?: number; walker?: TarReceiver; spanSize?: number } = {},
): Promise<LayerScan> {
  async function* pieces() {
    for (let at = 0, size = 1; at < blob.length; size = size * 3 % 100_003) {
      yield blob.subarray(at, at + size);
      at += size;
      if (size % 64 === 1) await Promise.resolve();
    }
  }
  return scanLayer(pieces(), {
    blobSize: blob.length,
    expectedDigest: sha256(blob),
    threads: 1,
    ...options,
  });
}

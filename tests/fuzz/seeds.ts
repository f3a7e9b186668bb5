/** Where seeds come from, and what several targets do with what they read. */

import * as zlib from "node:zlib";
import {
  type ByteSource,
  equalBytes,
  MemorySource,
  setU64,
  viewOf,
} from "../../lib/io/mod.ts";
import { crc32c } from "../../lib/compress/mod.ts";
import { golden } from "../testutil/requires.ts";
import type { Mutant } from "./mutant.ts";
import type { Random } from "./random.ts";
import { must } from "./target.ts";

/** A golden file, or undefined (and a printed reason) where there is none. */
export function goldenBytes(name: string): Uint8Array<ArrayBuffer> | undefined {
  const path = golden(name);
  return path === undefined ? undefined : Deno.readFileSync(path);
}

/** Those golden files that are there, by name. */
export function goldenFiles(
  names: readonly string[],
): [name: string, bytes: Uint8Array<ArrayBuffer>][] {
  return names.flatMap((name) => {
    const bytes = goldenBytes(name);
    const found: [string, Uint8Array<ArrayBuffer>][] = [];
    if (bytes) found.push([name, bytes]);
    return found;
  });
}

/** All of a source. */
export async function allBytes(
  source: ByteSource,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(source.size);
  await source.pread(bytes, 0);
  return bytes;
}

/** Most bytes of one read. */
const READ_MAX = 64 * 1024;

/** Random ranges of a source, the ends among them. */
export async function readSome(
  source: ByteSource,
  random: Random,
  onRead?: (bytes: Uint8Array, offset: number) => void,
): Promise<void> {
  const { size } = source;
  for (let n = 0; n < 4; n++) {
    const length = Math.min(size, random.length(READ_MAX));
    const offset = n === 0
      ? 0
      : n === 1
      ? size - length
      : Math.floor(random.next() / 2 ** 32 * (size - length));
    const now = new Uint8Array(length);
    const hasNow = source.preadNow?.(now, offset) ?? false;
    const bytes = new Uint8Array(length);
    await source.pread(bytes, offset);
    if (hasNow) must(equalBytes(now, bytes), "preadNow differs from pread");
    onRead?.(bytes, offset);
  }
}

/** A source over an input; the input is not kept. */
export function sourceOf(bytes: Uint8Array): MemorySource {
  return new MemorySource(bytes);
}

/** Puts a CRC-32C of overlaybd's kind (seed 0) over a range. */
export function putCrc32c(
  mutant: Mutant,
  at: number,
  start: number,
  end: number,
  seed = 0,
): void {
  if (end > mutant.length || at + 4 > mutant.length) return;
  const crc = crc32c(mutant.bytes.subarray(start, end), seed);
  mutant.put(at, 4, BigInt(crc));
}

/** Makes the checksum of a tar header right. */
export function putTarChecksum(mutant: Mutant, at: number): void {
  const { bytes } = mutant;
  if (at + 512 > bytes.length) return;
  let sum = 8 * 0x20;
  for (let i = 0; i < 512; i++) {
    if (i < 148 || i >= 156) sum += bytes[at + i]!;
  }
  const text = `${sum.toString(8).padStart(6, "0")}\0 `;
  mutant.write(at + 148, new TextEncoder().encode(text));
}

/** Makes the CRC-32 and size behind a single gzip member right, if it decodes. */
export function putGzipTrailer(mutant: Mutant, headerSize: number): void {
  const { bytes } = mutant;
  try {
    const { buffer, engine } = zlib.inflateRawSync(
      bytes.subarray(headerSize),
      { info: true, maxOutputLength: 64 * 1024 * 1024 },
    ) as unknown as { buffer: Uint8Array; engine: { bytesWritten: number } };
    const trailer = new Uint8Array(8);
    const view = viewOf(trailer);
    view.setUint32(0, zlib.crc32(buffer), true);
    view.setUint32(4, buffer.length % 2 ** 32, true);
    mutant.write(headerSize + engine.bytesWritten, trailer);
  } catch {
    // It does not decode: nothing to make right.
  }
}

/** A little-endian number of 8 bytes. */
export function u64(value: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8);
  setU64(viewOf(bytes), 0, value);
  return bytes;
}

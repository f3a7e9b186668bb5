/** Walks whole archives, and checks what every entry must satisfy. */
import assert from "node:assert/strict";
import { type TarEntry, type TarLimits, TarWalker } from "../../lib/tar/mod.ts";

/** Lengths of the pieces that an archive is cut into; the last one repeats. */
export type Cuts = (remaining: number) => number;

/** @returns All entries of a tar. */
export function walk(
  tar: Uint8Array,
  { cuts, limits }: { cuts?: Cuts; limits?: Partial<TarLimits> } = {},
): TarEntry[] {
  const entries: TarEntry[] = [];
  const walker = new TarWalker({
    onEntry: (entry) => entries.push(entry),
    ...(limits === undefined ? {} : { limits }),
  });
  for (let at = 0; at < tar.length;) {
    const length = cuts === undefined
      ? tar.length
      : Math.min(Math.max(1, cuts(tar.length - at)), tar.length - at);
    // A copy that is overwritten: the walker must not keep what it borrowed.
    const piece = new Uint8Array(tar.subarray(at, at + length));
    walker.push(piece);
    piece.fill(0xee);
    at += length;
  }
  walker.finish();
  for (const entry of entries) checkEntry(entry);
  return entries;
}

/** The only entry of a tar. */
export function walkOne(tar: Uint8Array): TarEntry {
  const entries = walk(tar);
  assert.equal(entries.length, 1);
  return entries[0]!;
}

/** Checks what holds for every entry: order, bounds, no sector named twice. */
export function checkEntry(entry: TarEntry): void {
  const sectors = Math.ceil(entry.size / 512);
  const used: [number, number][] = [
    ...entry.runs.map((r): [number, number] => [r.fileSector, r.sectors]),
    ...entry.patches.map((
      p,
    ): [number, number] => [p.fileSector, p.bytes.length / 512]),
  ];
  for (const list of [entry.runs, entry.patches]) {
    for (let i = 1; i < list.length; i++) {
      assert.ok(list[i - 1]!.fileSector < list[i]!.fileSector);
    }
  }
  used.sort(([a], [b]) => a - b);
  let end = 0;
  for (const [first, count] of used) {
    assert.ok(Number.isInteger(count) && count > 0);
    assert.ok(first >= end, "sectors overlap");
    end = first + count;
  }
  assert.ok(end <= sectors, "sectors behind the file's end");
}

/**
 * A file's content, put together as a block device would show it: whole
 * sectors, so the bytes behind the end of the file must be zero.
 */
export function contentOf(entry: TarEntry, tar: Uint8Array): Uint8Array {
  const out = new Uint8Array(Math.ceil(entry.size / 512) * 512);
  for (const { fileSector, tarSector, sectors } of entry.runs) {
    const end = (tarSector + sectors) * 512;
    assert.ok(end <= tar.length, "run passes the tar");
    out.set(tar.subarray(tarSector * 512, end), fileSector * 512);
  }
  for (const { fileSector, bytes } of entry.patches) {
    out.set(bytes, fileSector * 512);
  }
  assert.ok(
    out.subarray(entry.size).every((b) => b === 0),
    "bytes behind the file's end",
  );
  return out.subarray(0, entry.size);
}

/** A small generator of numbers, so that a failure can be repeated (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** An integer in 0 … limit − 1. */
export function below(random: () => number, limit: number): number {
  return Math.floor(random() * limit);
}

/** Bytes without a pattern, none of them zero. */
export function noise(random: () => number, length: number): Uint8Array {
  return Uint8Array.from({ length }, () => 1 + below(random, 255));
}

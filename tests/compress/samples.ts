/** Seeded bytes for tests of codecs. */

/** A small seeded generator of numbers in [0, 1). */
export function mulberry32(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What the bytes are like: incompressible, all zero, words, or a short period. */
export type SampleKind = "random" | "zeros" | "text" | "pattern";

/** `size` bytes that depend on the seed and kind alone. */
export function sampleBytes(
  seed: number,
  size: number,
  kind: SampleKind,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  const random = mulberry32(seed);
  if (kind === "random") {
    for (let i = 0; i < size; i++) bytes[i] = random() * 256;
  } else if (kind === "pattern") {
    const period = 1 + Math.floor(random() * 20);
    for (let i = 0; i < size; i++) bytes[i] = (i % period) * 7 + (i >>> 12);
  } else if (kind === "text") {
    const words = Array.from(
      { length: 500 },
      () =>
        Array.from(
          { length: 2 + Math.floor(random() * 9) },
          () => 97 + Math.floor(random() * 26),
        ),
    );
    for (let i = 0; i < size;) {
      // The square makes some words common, as in real text.
      const word = words[Math.floor(random() ** 2 * words.length)]!;
      for (const c of word) if (i < size) bytes[i++] = c;
      if (i < size) bytes[i++] = random() < 0.1 ? 10 : 32;
    }
  }
  return bytes;
}

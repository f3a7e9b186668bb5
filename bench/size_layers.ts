/** Layers of extreme kinds for `meta_size`, the same bytes every time. A helper of benchmarks. */

import {
  dir,
  file,
  type LayerEntry,
  makeImage,
  writeLayout,
} from "../tests/testutil/oci_image.ts";

/** Numbers from 0 up to 1, the same for the same seed (mulberry32). */
function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Latin text of made-up words. */
function makeWords(random: () => number, count: number): string[] {
  return Array.from(
    { length: count },
    () =>
      Array.from(
        { length: 3 + Math.floor(random() * 7) },
        () => String.fromCharCode(97 + Math.floor(random() * 26)),
      ).join(""),
  );
}

/** Content of `size` bytes out of lines. */
function fill(size: number, line: () => string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  const encoder = new TextEncoder();
  for (let at = 0; at < size;) {
    at += encoder.encodeInto(line(), bytes.subarray(at)).written || size;
  }
  return bytes;
}

const MB = 1_000_000;

/** What is in each layer, by its name in the results. */
export const SIZE_LAYERS: Record<string, () => LayerEntry[]> = {
  // Windows of text are referred to a lot, and one file pays for all of them.
  "one table of numbers": () => {
    const random = seeded(1);
    let row = 0;
    const line = () =>
      `${row++},${(random() * 8 - 4).toFixed(4)},${
        (random() * 100).toFixed(2)
      },${"ABC"[Math.floor(random() * 3)]}\n`;
    return [file("data/table.csv", fill(58 * MB, line))];
  },
  // Little blob is left between two checkpoints.
  "one log, 11:1": () => {
    const random = seeded(2);
    const paths = makeWords(random, 400);
    let time = 1_700_000_000;
    const line = () => {
      time += random() < 0.4 ? 1 : 0;
      return `10.0.${Math.floor(random() * 4)}.${
        Math.floor(random() * 256)
      } - - [${time}] "GET /api/v1/${
        paths[Math.floor(random() * paths.length)]
      } HTTP/1.1" 200 ${
        Math.floor(random() * 10_000)
      } "-" "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36"\n`;
    };
    return [file("var/log/access.log", fill(240 * MB, line))];
  },
  // All metadata: 40,000 files of a few hundred bytes.
  "many small files": () => {
    const random = seeded(3);
    const words = makeWords(random, 3000);
    const pick = () => words[Math.floor(random() * words.length)]!;
    const entries: LayerEntry[] = [];
    for (let i = 0; i < 40_000; i++) {
      if (i % 200 === 0) entries.push(dir(`srv/${i / 200}`));
      const text = Array.from({ length: 5 + i % 130 }, pick).join(" ");
      entries.push(
        file(`srv/${Math.floor(i / 200)}/${pick()}-${i}.txt`, text, {
          mtime: 1_700_000_000 + Math.floor(random() * 1e6),
        }),
      );
    }
    return entries;
  },
};

/** Writes a layout with one image `v1` of one such layer. */
export async function writeSizeLayer(
  path: string,
  name: string,
): Promise<void> {
  const entries = SIZE_LAYERS[name]!();
  const image = makeImage({ layers: [{ entries }] });
  await writeLayout(path, [{ tag: "v1", image }]);
}

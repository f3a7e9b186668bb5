/** Tar archives: every form that the walker reads. */

import * as zlib from "node:zlib";
import { FormatError } from "../../../lib/io/mod.ts";
import { type TarEntry, TarWalker } from "../../../lib/tar/mod.ts";
import { checkEntry, contentOf } from "../../tar/walk.ts";
import { type Mutant, mutate, type Ranges } from "../mutant.ts";
import { Random } from "../random.ts";
import { goldenFiles, putTarChecksum } from "../seeds.ts";
import { generateTar } from "../tar_generate.ts";
import { must, type Seed, type Target, WrongBytes } from "../target.ts";

/** Contents up to this size are put together; a sparse file may claim any. */
const CONTENT_MAX = 2 ** 24;

/** Entries, with the archive cut into pieces. */
function walkIn(tar: Uint8Array, pieceSize: () => number): TarEntry[] {
  const entries: TarEntry[] = [];
  const walker = new TarWalker({ onEntry: (entry) => entries.push(entry) });
  for (let at = 0; at < tar.length;) {
    const size = Math.max(1, pieceSize());
    walker.push(tar.slice(at, at + size));
    at += size;
  }
  walker.finish();
  return entries;
}

/** Offsets of what are headers in a good archive: not bodies, as far as sizes tell. */
function headersOf(tar: Uint8Array): number[] {
  const found: number[] = [];
  const decoder = new TextDecoder("latin1");
  for (let at = 0; at + 512 <= tar.length;) {
    const field = decoder.decode(tar.subarray(at + 124, at + 136));
    const type = decoder.decode(tar.subarray(at + 156, at + 157));
    const size = parseInt(field.replace(/\0.*/s, ""), 8);
    if (tar[at] === 0 && type === "\0") break;
    found.push(at);
    const hasBody = !/[1-6]/.test(type);
    at += 512 + (hasBody && size > 0 ? Math.ceil(size / 512) * 512 : 0);
  }
  return found;
}

/** Digits of headers, records and maps: texts stay what they are, numbers do not. */
function mutateDigits(
  bytes: Uint8Array,
  hot: Ranges,
): NonNullable<Seed["mutate"]> {
  const isDigit = (byte: number) => byte >= 0x30 && byte <= 0x39;
  const digits = [...bytes.keys()].filter((at) =>
    isDigit(bytes[at]!) &&
    hot.some(([start, end]) => at >= start && at < end)
  );
  return (mutant, random) => {
    if (random.oneIn(2) || digits.length === 0) {
      return mutate(mutant, hot, random);
    }
    for (let n = random.length(3); n > 0; n--) {
      mutant.put(random.pick(digits), 1, BigInt(0x30 + random.below(10)));
    }
  };
}

function tarSeed(name: string, bytes: Uint8Array): Seed {
  const heads = headersOf(bytes);
  const hot: Ranges = heads.flatMap((at) =>
    [[at, at + 345], [at + 345, at + 512], [at + 512, at + 1024]] as const
  ).filter(([start]) => start < bytes.length);
  return {
    name,
    bytes,
    hot,
    mutate: mutateDigits(bytes, hot),
    repair(mutant: Mutant) {
      const shifted = mutant.length !== bytes.length;
      for (const at of shifted ? headersOf(mutant.bytes) : heads) {
        const changed = mutant.changes.some(([start, end]) =>
          start < at + 512 && end > at
        );
        if (changed) putTarChecksum(mutant, at);
      }
    },
    read({ bytes: tar }, random) {
      const whole = walkIn(tar, () => tar.length);
      for (const entry of whole) {
        try {
          checkEntry(entry);
          if (entry.size <= CONTENT_MAX) contentOf(entry, tar);
        } catch (error) {
          throw new WrongBytes(`Entry "${entry.path}": ${error}`);
        }
      }
      // However it arrives, it is the same archive.
      const pieces = walkIn(tar, () => random.length(1024));
      must(
        JSON.stringify(pieces) === JSON.stringify(whole),
        "Entries depend on how the archive is cut",
      );
    },
  };
}

/** The beginning of an archive, up to a header: what follows is more of the same. */
function firstPart(tar: Uint8Array, size: number): Uint8Array {
  const end = headersOf(tar).find((at) => at > size);
  if (end === undefined) return tar;
  const part = new Uint8Array(end + 1024);
  part.set(tar.subarray(0, end));
  return part;
}

function seeds(): Seed[] {
  const found: Seed[] = [];
  for (let i = 0; i < 12; i++) {
    found.push(tarSeed(
      `generated ${i}`,
      generateTar(new Random(i, "tar seeds"), { entries: 12 }).bytes,
    ));
  }
  for (
    const [name, gz] of goldenFiles([
      "layers/layer1.tar.gz",
      "layers/layer2.tar.gz",
    ])
  ) {
    const tar = new Uint8Array(zlib.gunzipSync(gz));
    found.push(tarSeed(name, firstPart(tar, 200_000)));
  }
  if (found.some((seed) => seed.bytes.length === 0)) {
    throw new FormatError("fuzz seed", "size", "is 0");
  }
  return found;
}

/** Targets of this file. */
export const TAR_TARGETS: Target[] = [{
  name: "tar",
  summary: "tar archives of every form",
  weight: 80,
  load: () => Promise.resolve(seeds()),
}];

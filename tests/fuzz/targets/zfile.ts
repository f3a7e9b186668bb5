/** ZFile containers: header, jump table, blocks. */

import { getU64, MemorySource, viewOf } from "../../../lib/io/mod.ts";
import { ZFILE_BLOCK_SEED } from "../../../lib/compress/mod.ts";
import { openZFile } from "../../../lib/zfile/mod.ts";
import { type Mutant, mutate, type Ranges } from "../mutant.ts";
import type { Random } from "../random.ts";
import {
  allBytes,
  goldenFiles,
  putCrc32c,
  readSome,
  sourceOf,
} from "../seeds.ts";
import { must, type Seed, type Target } from "../target.ts";

const HEADER = 512;
/** Of header and trailer: lib/zfile/README.md. */
const FIELD = { digest: 28, flags: 32, indexOffset: 40, blocks: 48, crc: 64 };

interface Layout {
  /** Where the table starts and how many blocks it has; of the good file. */
  index: number;
  blocks: number;
  /** Offset of each block, and the end. */
  starts: number[];
}

function layoutOf(bytes: Uint8Array, isTrailer: boolean): Layout {
  const at = isTrailer ? bytes.length - HEADER : 0;
  const view = viewOf(bytes);
  const index = getU64(view, at + FIELD.indexOffset);
  const blocks = getU64(view, at + FIELD.blocks);
  const starts = [HEADER];
  for (let i = 0; i < blocks; i++) {
    starts.push(starts[i]! + view.getUint32(index + i * 4, true));
  }
  return { index, blocks, starts };
}

/** Digest of a header or trailer: over all of it, the field itself zero. */
function putDigest(mutant: Mutant, at: number): void {
  if (at < 0) return;
  mutant.put(at + FIELD.digest, 4, 0n);
  putCrc32c(mutant, at + FIELD.digest, at, at + HEADER);
}

/** Changes inside blocks, with a right checksum behind each: decoders must cope. */
function mutateBlocks(mutant: Mutant, layout: Layout, random: Random): void {
  for (let n = random.length(3); n > 0; n--) {
    const block = random.below(layout.blocks);
    const start = layout.starts[block]!;
    const end = layout.starts[block + 1]! - 4;
    for (let m = random.length(4); m > 0; m--) {
      const at = start + random.below(random.oneIn(2) ? 16 : end - start);
      mutant.put(at, 1, BigInt(random.below(256)));
    }
    if (!random.oneIn(8)) {
      putCrc32c(mutant, end, start, end, ZFILE_BLOCK_SEED);
    }
  }
}

async function seedOf(name: string, bytes: Uint8Array): Promise<Seed> {
  // Both are written but in files made to lack one; where both are, they agree.
  const hasTrailer = name !== "unit/ztr";
  const layout = layoutOf(bytes, hasTrailer);
  const { index, blocks } = layout;
  const tableEnd = index + blocks * 4;
  const trailer = hasTrailer ? bytes.length - HEADER : -1;
  const good = await allBytes(await openZFile(new MemorySource(bytes)));
  const ends: [number, number][] = hasTrailer ? [[trailer, trailer + 92]] : [];
  const hot: Ranges = [[0, 92], [index, tableEnd], ...ends];
  return {
    name,
    bytes,
    hot,
    mutate(mutant, random) {
      if (random.oneIn(2)) mutateBlocks(mutant, layout, random);
      else mutate(mutant, hot, random);
    },
    repair(mutant) {
      for (const at of [0, trailer]) {
        if (at < 0) continue;
        putCrc32c(mutant, at + FIELD.crc, index, tableEnd);
        putDigest(mutant, at);
      }
    },
    async read({ bytes, changes }, random) {
      // Only blocks differ: each has a checksum, so nothing wrong may come out.
      const isProtected = changes?.length === 1 && name !== "unit/znodig" &&
        changes[0]![0] >= HEADER && changes[0]![1] <= index &&
        changes[0]![1] - changes[0]![0] < 64;
      const blocksOnly = isProtected &&
        !hasGoodSums(bytes, layout, changes[0]!);
      const source = await openZFile(sourceOf(bytes));
      await readSome(source, random, (got, offset) => {
        if (!blocksOnly) return;
        const want = good.subarray(offset, offset + got.length);
        must(Buffer.compare(got, want) === 0, `Bytes at ${offset} are wrong`);
      });
    },
  };
}

/** Whether the checksum of the changed block was made right by the mutation. */
function hasGoodSums(
  bytes: Uint8Array,
  { starts }: Layout,
  [start]: readonly [number, number],
): boolean {
  const block = starts.findLastIndex((at) => at <= start);
  const end = starts[block + 1];
  if (end === undefined) return true;
  const part = bytes.subarray(starts[block]!, end - 4);
  const want = viewOf(bytes).getUint32(end - 4, true);
  return crcOf(part) === want;
}

/** CRC-32C bit by bit, with overlaybd's seed of blocks: independent of lib/compress. */
function crcOf(bytes: Uint8Array): number {
  let crc = ZFILE_BLOCK_SEED;
  for (const byte of bytes) {
    crc ^= byte;
    for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ (crc & 1 && 0x82f63b78);
  }
  return crc >>> 0;
}

/** Targets of this file. */
export const ZFILE_TARGETS: Target[] = [{
  name: "zfile",
  summary: "ZFile: header, trailer, jump table, LZ4 and zstd blocks",
  weight: 80,
  load: () =>
    Promise.all(
      goldenFiles([
        ...["unit/z4", "unit/zs4", "unit/ztr", "unit/zgarb", "unit/znodig"],
        ...["unit/zbody", "turbo-gz/layer1.ext4.fs.meta"],
        "turbo-gz/layer2.ext4.fs.meta",
      ]).map(([name, bytes]) => seedOf(name, bytes)),
    ),
}];

/** Block and inode bitmaps, read in batches and checked. */

import { mapConcurrent } from "../io/mod.ts";
import { bitmapChecksum } from "./checksum.ts";
import {
  descriptorBlocksOf,
  GD,
  GROUP_FLAGS,
  type GroupDescriptor,
  hasSuperblock,
  type Superblock,
} from "./format.ts";
import { type BlockReader, METADATA_READ_MAX } from "./reader_blocks.ts";
import { demandChecksum, type GroupTable } from "./reader_super.ts";

/** Which bitmap of a group. */
export type BitmapKind = "block" | "inode";

/** A group's bitmap: one block, bit i of byte i >>> 3. The caller owns the bytes. */
export interface GroupBitmap {
  group: number;
  descriptor: GroupDescriptor;
  bitmap: Uint8Array;
  /** It is not on the device (BLOCK_UNINIT, INODE_UNINIT) but stands for its initial content. */
  uninit: boolean;
}

/** Groups whose bitmaps are read together. */
const BATCH = 64;
/** Reads at once: enough to hide the latency of a remote device. */
const CONCURRENCY = 8;

/** What bitmaps are read with. */
export interface BitmapContext {
  blocks: BlockReader;
  superblock: Superblock;
  groups: GroupTable;
  /** Set under metadata_csum. */
  checksumSeed: number | undefined;
}

/**
 * The bitmaps of groups [first, limit), in order.
 *
 * @throws {IntegrityError} If one's checksum is wrong.
 */
export async function* readBitmaps(
  context: BitmapContext,
  kind: BitmapKind,
  first: number,
  limit: number,
): AsyncGenerator<GroupBitmap> {
  for (let from = first; from < limit; from += BATCH) {
    yield* await readBatch(context, kind, from, Math.min(from + BATCH, limit));
  }
}

async function readBatch(
  context: BitmapContext,
  kind: BitmapKind,
  first: number,
  limit: number,
): Promise<GroupBitmap[]> {
  const { blocks, groups } = context;
  const batch: GroupBitmap[] = [];
  const flag = kind === "block"
    ? GROUP_FLAGS.blockUninit
    : GROUP_FLAGS.inodeUninit;
  for (let group = first; group < limit; group++) {
    const descriptor = groups.get(group);
    const uninit = groups.isUninit(descriptor, flag);
    const bitmap = !uninit
      ? new Uint8Array()
      : kind === "block"
      ? initialBlockBitmap(context, group)
      : new Uint8Array(blocks.blockSize);
    batch.push({ group, descriptor, bitmap, uninit });
  }
  const stored = batch.filter(({ uninit }) => !uninit);
  await mapConcurrent(
    consecutiveRuns(stored, kind, blocks),
    CONCURRENCY,
    async (run) => {
      const bytes = await blocks.run(
        `${kind} bitmap`,
        blockOf(run[0]!, kind),
        run.length,
      );
      run.forEach((item, i) => {
        const at = i * blocks.blockSize;
        item.bitmap = bytes.subarray(at, at + blocks.blockSize);
        verify(context, kind, item);
      });
    },
  );
  return batch;
}

function blockOf(item: GroupBitmap, kind: BitmapKind): number {
  return kind === "block"
    ? item.descriptor.blockBitmap
    : item.descriptor.inodeBitmap;
}

/** With flex_bg bitmaps of neighbouring groups are neighbours: one read for many. */
function consecutiveRuns(
  items: readonly GroupBitmap[],
  kind: BitmapKind,
  blocks: BlockReader,
): GroupBitmap[][] {
  const most = Math.max(1, Math.floor(METADATA_READ_MAX / blocks.blockSize));
  const runs: GroupBitmap[][] = [];
  for (const item of items) {
    const run = runs.at(-1);
    if (
      run && run.length < most &&
      blockOf(item, kind) === blockOf(run.at(-1)!, kind) + 1
    ) run.push(item);
    else runs.push([item]);
  }
  return runs;
}

function verify(
  context: BitmapContext,
  kind: BitmapKind,
  { group, descriptor, bitmap }: GroupBitmap,
): void {
  const { superblock: sb, checksumSeed, groups } = context;
  if (checksumSeed === undefined) return;
  const bits = kind === "block" ? sb.clustersPerGroup : sb.inodesPerGroup;
  const stored = kind === "block"
    ? descriptor.blockBitmapCsum
    : descriptor.inodeBitmapCsum;
  const computed = bitmapChecksum(checksumSeed, bitmap, bits);
  const wide = groups.descriptorSize >= GD.SIZE_64;
  demandChecksum(
    `${kind} bitmap of group ${group}`,
    stored,
    wide ? computed : computed & 0xffff,
  );
}

/** What a never written block bitmap stands for. Kernel: `ext4_init_block_bitmap()`. */
function initialBlockBitmap(
  { blocks, superblock: sb, groups }: BitmapContext,
  group: number,
): Uint8Array {
  const bitmap = new Uint8Array(blocks.blockSize);
  const first = sb.firstDataBlock + group * sb.blocksPerGroup;
  const count = Math.min(sb.blocksPerGroup, sb.blocksCount - first);
  /** Marks device blocks as far as they lie in this group. */
  const mark = (block: number, length: number) => {
    const start = Math.max(0, block - first);
    const end = Math.min(count, block + length - first);
    for (let i = start; i < end; i++) bitmap[i >>> 3]! |= 1 << (i & 7);
  };
  if (hasSuperblock(sb, group)) {
    mark(first, 1 + descriptorBlocksOf(sb) + sb.reservedGdtBlocks);
  }
  // Not blocksPerGroup: a bitmap's unused bits are all set, to the end of its block.
  for (let i = count; i < bitmap.length * 8; i++) {
    bitmap[i >>> 3]! |= 1 << (i & 7);
  }
  const d = groups.get(group);
  mark(d.blockBitmap, 1);
  mark(d.inodeBitmap, 1);
  mark(d.inodeTable, sb.inodesPerGroup * sb.inodeSize / blocks.blockSize);
  return bitmap;
}

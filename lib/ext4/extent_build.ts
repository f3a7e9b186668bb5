/** Extent trees: from a list of extents to the root in the inode and the node blocks below it. */

import { viewOf } from "../io/mod.ts";
import { extentBlockChecksum } from "./checksum.ts";
import {
  EE,
  EH,
  EI,
  EXTENT_LENGTH_MAX,
  EXTENT_MAGIC,
  EXTENT_ROOT_ENTRIES,
  extentNodeCapacity,
  extentTailOffset,
  type FileExtent,
  INODE_BLOCK_SIZE,
  writeExtent,
  writeExtentHeader,
  writeExtentIndex,
} from "./format.ts";
import type { BlockRun } from "./block_alloc.ts";
import { BLOCK_SIZE } from "./geometry.ts";

const NODE_ENTRIES = extentNodeCapacity(BLOCK_SIZE);

/**
 * Extents of a file whose blocks `logical` … lie in `runs`, appended to
 * `extents`; neighbours are joined up to 32,768 blocks.
 */
export function appendExtents(
  extents: FileExtent[],
  logical: number,
  runs: readonly BlockRun[],
): void {
  let at = logical;
  for (const run of runs) {
    let { start, count } = run;
    const last = extents.at(-1);
    if (
      last !== undefined && last.logicalBlock + last.count === at &&
      last.physicalBlock + last.count === start
    ) {
      const joined = Math.min(count, EXTENT_LENGTH_MAX - last.count);
      last.count += joined;
      at += joined;
      start += joined;
      count -= joined;
    }
    while (count > 0) {
      const length = Math.min(count, EXTENT_LENGTH_MAX);
      extents.push({
        logicalBlock: at,
        physicalBlock: start,
        count: length,
        unwritten: false,
      });
      at += length;
      start += length;
      count -= length;
    }
  }
}

/** Node counts per level below the root, leaves first; none if the root holds all extents. */
function levelSizes(extentCount: number): number[] {
  const levels: number[] = [];
  for (let n = extentCount; n > EXTENT_ROOT_ENTRIES;) {
    n = Math.ceil(n / NODE_ENTRIES);
    levels.push(n);
  }
  return levels;
}

/** Blocks that the tree of `extentCount` extents needs outside the inode. */
export function extentNodeCount(extentCount: number): number {
  return levelSizes(extentCount).reduce((sum, n) => sum + n, 0);
}

/** One block of an extent tree. */
export interface ExtentNode {
  block: number;
  bytes: Uint8Array;
}

/**
 * Builds a tree.
 *
 * @param extents In order of their logical blocks.
 * @param nodeBlocks Where the nodes go, exactly {@linkcode extentNodeCount};
 * leaves come last.
 * @param inodeSeed For checksums (metadata_csum), else undefined.
 * @returns The 60 bytes of `i_block`, and the nodes.
 */
export function buildExtentTree(
  extents: readonly FileExtent[],
  nodeBlocks: readonly number[],
  inodeSeed: number | undefined,
): { root: Uint8Array; nodes: ExtentNode[] } {
  const levels = levelSizes(extents.length);
  const nodes: ExtentNode[] = [];
  // The level below, as the level above sees it.
  let below: { logicalBlock: number; child: number }[] = [];
  let end = nodeBlocks.length;
  levels.forEach((size, depth) => {
    const level: typeof below = [];
    for (let i = 0; i < size; i++) {
      const block = nodeBlocks[end - size + i]!;
      const bytes = new Uint8Array(BLOCK_SIZE);
      const from = i * NODE_ENTRIES;
      const to = from + NODE_ENTRIES;
      const first = writeNode(
        bytes,
        depth,
        NODE_ENTRIES,
        extents,
        below,
        from,
        to,
      );
      if (inodeSeed !== undefined) {
        viewOf(bytes).setUint32(
          extentTailOffset(NODE_ENTRIES),
          extentBlockChecksum(inodeSeed, bytes, NODE_ENTRIES),
          true,
        );
      }
      nodes.push({ block, bytes });
      level.push({ logicalBlock: first, child: block });
    }
    end -= size;
    below = level;
  });
  const root = new Uint8Array(INODE_BLOCK_SIZE);
  writeNode(
    root,
    levels.length,
    EXTENT_ROOT_ENTRIES,
    extents,
    below,
    0,
    EXTENT_ROOT_ENTRIES,
  );
  return { root, nodes };
}

/** Writes entries `[from, to)` of a level; gives the first logical block. */
function writeNode(
  bytes: Uint8Array,
  depth: number,
  max: number,
  extents: readonly FileExtent[],
  below: readonly { logicalBlock: number; child: number }[],
  from: number,
  to: number,
): number {
  const view = viewOf(bytes);
  const entries = depth === 0 ? extents.slice(from, to) : below.slice(from, to);
  writeExtentHeader(view, 0, {
    magic: EXTENT_MAGIC,
    entries: entries.length,
    max,
    depth,
    generation: 0,
  });
  if (depth === 0) {
    extents.slice(from, to).forEach((extent, i) =>
      writeExtent(view, EH.SIZE + i * EE.SIZE, extent)
    );
  } else {
    below.slice(from, to).forEach((index, i) =>
      writeExtentIndex(view, EH.SIZE + i * EI.SIZE, index)
    );
  }
  return entries[0]?.logicalBlock ?? 0;
}

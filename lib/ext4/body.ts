/** Which blocks of a file's body hold something. */

import type { BlockRun } from "./block_alloc.ts";
import { BLOCK_SIZE } from "./geometry.ts";

const BLOCK_SECTORS = BLOCK_SIZE / 512;

/** A range of a file that holds something. 512-byte sectors. */
export interface FileSectors {
  fileSector: number;
  sectors: number;
}

/** A file's body. */
export interface FileBody {
  /** Bytes. */
  size: number;
  /**
   * What holds something, in any order; the rest is a hole where it covers
   * whole blocks. Absent: everything. Each block that these touch must be
   * mapped by the layer, in at least one sector.
   */
  ranges?: readonly FileSectors[] | undefined;
}

/** Logical blocks of a body that hold something, in order and disjoint. */
export function logicalRuns(body: FileBody): BlockRun[] {
  const blocks = Math.ceil(body.size / BLOCK_SIZE);
  if (body.ranges === undefined) {
    return blocks > 0 ? [{ start: 0, count: blocks }] : [];
  }
  const runs: BlockRun[] = [];
  const sorted = [...body.ranges].sort((a, b) => a.fileSector - b.fileSector);
  for (const { fileSector, sectors } of sorted) {
    const start = Math.floor(fileSector / BLOCK_SECTORS);
    const end = Math.min(
      Math.ceil((fileSector + sectors) / BLOCK_SECTORS),
      blocks,
    );
    if (sectors <= 0 || end <= start) continue;
    const last = runs.at(-1);
    if (last !== undefined && start <= last.start + last.count) {
      last.count = Math.max(last.count, end - last.start);
    } else {
      runs.push({ start, count: end - start });
    }
  }
  return runs;
}

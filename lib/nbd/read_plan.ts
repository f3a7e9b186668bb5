/** How a read is answered: which parts are data, which are holes, and what that is on the wire. */

import type { ByteSource } from "../io/mod.ts";
import {
  CHUNK,
  CHUNK_DONE,
  type Cookie,
  DATA_CHUNK_PREFIX,
  HOLE_CHUNK_SIZE,
  setU64be,
  SIMPLE_REPLY,
  writeChunkHeader,
  writeSimpleReply,
} from "./protocol.ts";

/** Zeros shorter than this travel as data: a chunk more costs more than it saves. */
const MIN_HOLE = 4096;
/** A read of more runs than this is answered as one piece of data. */
const MAX_RUNS = 64;

/** A part of a read, in order and without gaps. */
export interface ReadRun {
  offset: number;
  length: number;
  zero: boolean;
}

/** A read and the form of its answer. */
export interface ReadPlan {
  readonly offset: number;
  readonly length: number;
  /** False: a simple reply. */
  readonly structured: boolean;
  /** Undefined: all data. */
  readonly runs: readonly ReadRun[] | undefined;
  /** Bytes of the good answer. */
  readonly wireBytes: number;
}

/**
 * Plans the answer to a read that lies inside the source.
 *
 * @param sparse Whether holes may be left out: structured replies without DF.
 */
export function planRead(
  source: ByteSource,
  offset: number,
  length: number,
  structured: boolean,
  sparse: boolean,
): ReadPlan {
  const runs = sparse && source.extents
    ? findRuns(source, offset, length)
    : undefined;
  let wireBytes = (structured ? DATA_CHUNK_PREFIX : SIMPLE_REPLY.SIZE) + length;
  if (runs) {
    wireBytes = 0;
    for (const run of runs) {
      wireBytes += run.zero ? HOLE_CHUNK_SIZE : DATA_CHUNK_PREFIX + run.length;
    }
  }
  return { offset, length, structured, runs, wireBytes };
}

function findRuns(
  source: ByteSource,
  offset: number,
  length: number,
): ReadRun[] | undefined {
  const end = offset + length;
  const runs: ReadRun[] = [];
  let at = offset;
  for (const extent of source.extents!(offset, length)) {
    const next = Math.min(extent.offset + extent.length, end);
    if (next <= at) continue;
    const zero = extent.kind !== "data" &&
      (next - at >= MIN_HOLE || next - at === length);
    const last = runs.at(-1);
    if (last && last.zero === zero) last.length += next - at;
    else if (runs.length === MAX_RUNS) return undefined;
    else runs.push({ offset: at, length: next - at, zero });
    at = next;
  }
  // Extents that do not reach the end say nothing of the rest.
  if (at < end) return undefined;
  return runs.length === 1 && !runs[0]!.zero ? undefined : runs;
}

/**
 * Writes everything of the answer but the data, and says where that goes.
 *
 * @param bytes Holds `plan.wireBytes` from `at` on.
 * @param fill Given each piece of `bytes` to fill and the offset of its data;
 * returning false ends the work.
 * @returns False if `fill` did once.
 */
export function layOutRead(
  plan: ReadPlan,
  cookie: Cookie,
  bytes: Uint8Array,
  view: DataView,
  at: number,
  fill: (dst: Uint8Array, offset: number) => boolean,
): boolean {
  if (!plan.structured) {
    writeSimpleReply(view, at, cookie, 0);
    at += SIMPLE_REPLY.SIZE;
    return fill(bytes.subarray(at, at + plan.length), plan.offset);
  }
  if (!plan.runs) {
    const { offset, length } = plan;
    writeDataPrefix(view, at, cookie, CHUNK_DONE, offset, length);
    at += DATA_CHUNK_PREFIX;
    return fill(bytes.subarray(at, at + length), offset);
  }
  let left = plan.runs.length;
  for (const { offset, length, zero } of plan.runs) {
    const flags = --left === 0 ? CHUNK_DONE : 0;
    if (zero) {
      writeChunkHeader(view, at, cookie, CHUNK.offsetHole, flags, 12);
      setU64be(view, at + 20, offset);
      view.setUint32(at + 28, length);
      at += HOLE_CHUNK_SIZE;
      continue;
    }
    writeDataPrefix(view, at, cookie, flags, offset, length);
    at += DATA_CHUNK_PREFIX;
    if (!fill(bytes.subarray(at, at + length), offset)) return false;
    at += length;
  }
  return true;
}

function writeDataPrefix(
  view: DataView,
  at: number,
  cookie: Cookie,
  flags: number,
  offset: number,
  length: number,
): void {
  writeChunkHeader(view, at, cookie, CHUNK.offsetData, flags, 8 + length);
  setU64be(view, at + 20, offset);
}

/**
 * From a block boundary to a checkpoint: the bit where the block starts, and
 * which bytes of the window it needs.
 *
 * Native inflate tells only the byte of a boundary. Each of the 8 bits that it
 * can be is tried with the TypeScript inflate against the output that is known
 * to follow; the same decode marks the window bytes that are referred to. 32
 * KiB of output are enough: what comes later can no longer reach the window,
 * and two decoders that agree in position and state after it agree for ever.
 */

import * as zlib from "node:zlib";
import { Inflate, STATUS } from "./inflate.ts";
import { WINDOW_SIZE } from "./raw_inflate.ts";

/** Where decoding can resume. Field meanings are those of a `gzip.meta` entry (`lib/layers/gzip_meta.ts`). */
export interface Checkpoint {
  /** Offset in the blob of the first whole byte (`en_pos`). */
  compressedOffset: number;
  /** Bits of the byte before it that belong to what follows, 0 … 7: its top ones. */
  bits: number;
  /** Offset in the decompressed stream (`de_pos`). */
  uncompressedOffset: number;
  /**
   * The 32,768 bytes before `uncompressedOffset`, zeros where nothing is
   * referred to; or empty when nothing at all is (the start of a member).
   */
  window: Uint8Array;
}

/** Most compressed bytes in a {@linkcode BoundarySample}. */
export const SAMPLE_SIZE = 128 * 1024;

/** A block boundary with the bytes around it. */
export interface BoundarySample {
  /** Compressed bytes from the byte BEFORE the boundary on; all that its output needs, or {@linkcode SAMPLE_SIZE}. */
  compressed: Uint8Array;
  /** Output before the boundary, within the member; up to 32 KiB. */
  before: Uint8Array;
  /** Output behind the boundary, within the member; 32 KiB, less only at the member's end. */
  after: Uint8Array;
  /** Whether the block behind the boundary is known not to be the last of its stream. */
  notLast: boolean;
}

/** A boundary that is to become a checkpoint. */
export interface CheckpointCandidate
  extends Pick<Checkpoint, "compressedOffset" | "uncompressedOffset"> {
  /** undefined at the start of a member: bit 0, nothing before it. */
  sample: BoundarySample | undefined;
}

/** A found bit position. */
export interface FoundBoundary {
  /** Unused bits of the byte before the boundary, 0 … 7: the block starts in them. */
  bits: number;
  /** One byte for each byte of `before`: 1 where it is referred to. undefined when that is not known. */
  marks: Uint8Array | undefined;
}

/** Output compared before the rest, so that wrong candidates end early. */
const FIRST_COMPARE = 64;

/** One decoder for each bit, kept because its tables are big. */
class Candidate {
  readonly bits: number;
  readonly inflate = new Inflate();
  readonly marks = new Uint8Array(WINDOW_SIZE);
  /** Whether it decoded all of the sample's output. */
  complete = false;

  constructor(bits: number) {
    this.bits = bits;
  }
}

/** Finds the bit. Its buffers are reused: one for each index. */
export class BoundarySearch {
  readonly #output = new Uint8Array(2 * WINDOW_SIZE);
  readonly #candidates = Array.from({ length: 8 }, (_, i) => new Candidate(i));

  /**
   * @returns What fits; its marks are valid until the next call. Or undefined when several bits would do that do not lead to the same
   * state: then this boundary cannot be a checkpoint. By chance alone that
   * happens once in some 2^16 stored blocks at most.
   */
  find(sample: BoundarySample): FoundBoundary | undefined {
    let found: Candidate | undefined;
    for (const candidate of this.#candidates) {
      if (!this.#fits(candidate, sample)) continue;
      if (found === undefined) found = candidate;
      else if (!candidate.inflate.sameState(found.inflate)) return undefined;
    }
    return found && {
      bits: found.bits,
      marks: found.complete
        ? found.marks.subarray(0, sample.before.length)
        : undefined,
    };
  }

  #fits(candidate: Candidate, sample: BoundarySample): boolean {
    const { compressed, before, after } = sample;
    const { inflate, marks } = candidate;
    const output = this.#output;
    output.set(before);
    marks.fill(0);
    candidate.complete = false;
    inflate.reset(8 - candidate.bits, 0, before.length);
    inflate.marks = marks;
    inflate.marksEnd = before.length;
    const end = before.length + after.length;
    let compared = before.length;
    let first = true;
    for (const goal of [before.length + FIRST_COMPARE, end]) {
      const outputEnd = Math.min(goal, end);
      while (inflate.outputAt < outputEnd) {
        const status = inflate.run(
          compressed,
          compressed.length,
          output,
          outputEnd,
        );
        if (first && inflate.last && sample.notLast) return false;
        first = false;
        if (status === STATUS.bad) return false;
        for (; compared < inflate.outputAt; compared++) {
          if (output[compared] !== after[compared - before.length]) {
            return false;
          }
        }
        if (status === STATUS.streamEnd && inflate.outputAt < end) {
          return false;
        }
        if (status === STATUS.needInput) {
          // The sample was cut: nothing speaks against it, but marks are missing.
          return true;
        }
      }
    }
    candidate.complete = true;
    return true;
  }
}

/** A checkpoint whose window is a zlib stream, or empty where it was. */
export type PackedCheckpoint = Checkpoint;

/** Makes checkpoints of candidates. */
export class CheckpointMaker {
  readonly #search = new BoundarySearch();
  readonly #sparse: boolean;

  /** @param sparse Zero the window bytes that nothing refers to. */
  constructor(sparse = true) {
    this.#sparse = sparse;
  }

  /** @returns undefined where the bit cannot be told; see {@linkcode BoundarySearch.find}. */
  make(candidate: CheckpointCandidate): Checkpoint | undefined {
    const { compressedOffset, uncompressedOffset, sample } = candidate;
    if (sample === undefined) {
      return startOfStream(compressedOffset, uncompressedOffset);
    }
    const found = this.#search.find(sample);
    if (found === undefined) return undefined;
    const { bits } = found;
    const marks = this.#sparse ? found.marks : undefined;
    const isReferenced = marks ? marks.includes(1) : sample.before.length > 0;
    const window = isReferenced
      ? makeWindow(sample.before, marks)
      : new Uint8Array(0);
    return { compressedOffset, bits, uncompressedOffset, window };
  }
}

/** The checkpoint at the start of a gzip member or zstd frame, or anywhere in a plain tar. */
export function startOfStream(
  compressedOffset: number,
  uncompressedOffset: number,
): PackedCheckpoint {
  const window = new Uint8Array(0);
  return { compressedOffset, bits: 0, uncompressedOffset, window };
}

/**
 * Packs the window the way `gzip.meta` keeps it: zlib, level 6. Level 9 takes
 * ten times as long and saves 1 to 3 %.
 */
export function packCheckpoint(checkpoint: Checkpoint): PackedCheckpoint {
  if (checkpoint.window.length === 0) return checkpoint;
  const packed = zlib.deflateSync(checkpoint.window, { level: 6 });
  // Out of the runtime's shared buffer pool, so that it can be kept and transferred.
  return { ...checkpoint, window: new Uint8Array(packed) };
}

function makeWindow(
  before: Uint8Array,
  marks: Uint8Array | undefined,
): Uint8Array {
  const window = new Uint8Array(WINDOW_SIZE);
  const start = WINDOW_SIZE - before.length;
  if (marks === undefined) window.set(before, start);
  else {
    for (let i = 0; i < before.length; i++) {
      if (marks[i] === 1) window[start + i] = before[i]!;
    }
  }
  return window;
}

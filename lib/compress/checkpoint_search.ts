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

import { Inflate, STATUS } from "./inflate.ts";
import { WINDOW_SIZE } from "./raw_inflate.ts";

/** A boundary with the bytes around it. */
export interface BoundarySample {
  /** Compressed bytes from the byte BEFORE the boundary on; when cut, cut behind at least 64 KiB. */
  compressed: Uint8Array;
  /** Output before the boundary, within the member; up to 32 KiB. */
  before: Uint8Array;
  /** Output behind the boundary, within the member; 32 KiB, less only at the member's end. */
  after: Uint8Array;
  /** Whether the block behind the boundary is known not to be the last of its stream. */
  notLast: boolean;
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

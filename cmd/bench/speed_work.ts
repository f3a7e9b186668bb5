/**
 * The work that a speed probe times: what starts of images consist of, always
 * the same bytes, without files and the network.
 */

import { createHash } from "node:crypto";
import { deflateRawSync, inflateRawSync } from "node:zlib";
import { IntegrityError } from "../../lib/io/mod.ts";

/** Bytes that are inflated, hashed and copied: more than a core's own caches hold. */
export const WORK_BYTES = 4 * 1024 * 1024;
/** SHA-256 of these bytes. */
export const WORK_DIGEST =
  "f831ad1fb71c5134ddd95bbdf00874347e0bf7d82d1c7a8e5a1f7f4d1aceded5";
/** Together some 0.2 s. */
const TIMES = 10;
const COPIES = 4;

/** The work in words: times of probes can be compared where it is the same. */
export const WORK_NAME = `inflate, hash (SHA-256) and copy ${COPIES} times ${
  TIMES * WORK_BYTES / 1024 / 1024
} MiB of data ${WORK_DIGEST.slice(0, 12)}`;

/** Literals begin so that matches may be as far back as deflate allows. */
const WINDOW = 32 * 1024;

/**
 * Bytes that deflate like programs, to two fifths: matches of 3 to 10 bytes with
 * letters between them.
 */
export function workBytes(): Uint8Array {
  const bytes = new Uint8Array(WORK_BYTES);
  // Marsaglia's xorshift with 32 bits.
  let state = 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
  for (let at = 0; at < bytes.length;) {
    const random = next();
    if (at < WINDOW || random % 4 === 0) {
      bytes[at++] = 0x40 + (random >>> 26);
      continue;
    }
    const from = at - 1 - (random >>> 17);
    const length = Math.min(3 + (random >>> 2) % 8, bytes.length - at);
    for (let i = 0; i < length; i++) bytes[at + i] = bytes[from + i]!;
    at += length;
  }
  return bytes;
}

/** One thread's part of a probe, with buffers of its own that are used again. */
export class SpeedWork {
  readonly #packed: Uint8Array;
  readonly #target = new Uint8Array(WORK_BYTES * COPIES);

  /** @param packed The work's bytes, deflated; how well depends on the runtime. */
  constructor(packed: Uint8Array = deflateRawSync(workBytes())) {
    this.#packed = packed;
  }

  /**
   * Does the work.
   *
   * @throws {IntegrityError} If it is not what it was everywhere else: times say nothing then.
   */
  run(): void {
    for (let i = 0; i < TIMES; i++) {
      const bytes = inflateRawSync(this.#packed, { chunkSize: WORK_BYTES });
      for (let j = 0; j < COPIES; j++) this.#target.set(bytes, j * WORK_BYTES);
      const copy = this.#target.subarray((COPIES - 1) * WORK_BYTES);
      const digest = createHash("sha256").update(copy).digest("hex");
      if (digest === WORK_DIGEST) continue;
      throw new IntegrityError("The work", WORK_DIGEST, digest);
    }
  }
}

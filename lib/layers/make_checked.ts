/** Bytes that are fetched, decoded and checked before anybody sees them. */

import type { ArrivingSpan } from "../compress/mod.ts";
import {
  type ByteSource,
  IntegrityError,
  ObdError,
  toHex,
  type Urgency,
} from "../io/mod.ts";
import { isCaching } from "./cache/mod.ts";
import type { MakeOptions } from "./span_source.ts";
import { SpareBuffers } from "./spare_buffers.ts";

/** What spans are decoded from, of all layers. */
const inputs = new SpareBuffers(64 * 1024 * 1024);

/** Compressed bytes that are worth a message to the thread that decodes them. */
const ARRIVAL_STEP = 64 * 1024;

/** Has a span decoded while it comes, if somebody waits for it and there is more to come than a step. */
class Arrival {
  readonly #input: Uint8Array;
  readonly #urgency: Urgency;
  readonly #begin: (input: Uint8Array) => ArrivingSpan | undefined;
  #span: ArrivingSpan | undefined;
  #next = ARRIVAL_STEP;

  constructor(
    input: Uint8Array,
    urgency: Urgency,
    begin: (input: Uint8Array) => ArrivingSpan | undefined,
  ) {
    this.#input = input;
    this.#urgency = urgency;
    this.#begin = begin;
  }

  /** So many bytes are there. */
  progress(available: number): void {
    if (available < this.#next || available >= this.#input.length) return;
    this.#next = available + ARRIVAL_STEP;
    if (!this.#span) {
      const isSoon = this.#next >= this.#input.length;
      if (isSoon || this.#urgency.priority !== "demand") return;
      this.#span = this.#begin(this.#input);
    }
    this.#span?.advance(available);
  }

  /** All of it is there. @returns The span, if it was begun. */
  finish(): Promise<Uint8Array> | undefined {
    this.#span?.advance(this.#input.length);
    return this.#span?.bytes;
  }

  /** The rest will not come. */
  drop(): void {
    this.#span?.drop();
  }
}

/**
 * Reads, decodes and checks; once more when it was wrong and a cache below may
 * be to blame, its own or a neighbour's read. Bytes that stay wrong are not left in that cache either.
 *
 * @throws {IntegrityError} When the bytes are not what they should be.
 */
export async function makeChecked(job: {
  what: string;
  source: ByteSource;
  start: number;
  length: number;
  /** Read into shared memory, which goes to a worker without being copied. */
  shared: boolean;
  /** The result is stored: the compressed bytes need not be. */
  once?: boolean;
  sha256: Uint8Array | undefined;
  /** Done with a shared `input` when it resolves. */
  decode: (input: Uint8Array) => Promise<Uint8Array>;
  /** Does the same with a shared `input` that is still arriving, if it can. */
  stream?: (input: Uint8Array) => ArrivingSpan | undefined;
  options: MakeOptions;
}): Promise<Uint8Array> {
  for (let attempt = 1;; attempt++) {
    const shared = job.shared ? inputs.take(job.length) : undefined;
    const input = new Uint8Array(
      shared ?? new ArrayBuffer(job.length),
      0,
      job.length,
    );
    job.options.timer.enter("fetch", job.length);
    // What was wrong once is looked at as a whole.
    const arrival = shared && job.stream && attempt === 1
      ? new Arrival(input, job.options.urgency, job.stream)
      : undefined;
    try {
      if (job.once && isCaching(job.source)) {
        await job.source.preadOnce(
          input,
          job.start,
          job.options,
          (available) => arrival?.progress(available),
        );
      } else await job.source.pread(input, job.start, job.options);
    } catch (error) {
      arrival?.drop();
      throw error;
    }
    job.options.timer.enter("decode");
    try {
      const bytes = await (arrival?.finish() ?? job.decode(input));
      // Not after a failure: a job that was called off may still read it.
      if (shared) inputs.give(shared);
      return bytes;
    } catch (error) {
      if (!isWrongData(error)) throw error;
      if (isCaching(job.source)) {
        job.source.discard(job.start, job.length);
        // Also when nothing was left to discard: a neighbour that read the same
        // wrong block may have done so already.
        if (attempt === 1) continue;
      }
      const want = job.sha256 ? toHex(job.sha256) : "decodable";
      const got = error instanceof IntegrityError ? error.got : "not decodable";
      throw new IntegrityError(job.what, want, got, { cause: error });
    }
  }
}

/**
 * What decoders say of damaged bytes. Also that they are beyond them: the pass
 * that made the tables has decoded all of the blob.
 */
const WRONG_DATA = ["integrity", "format", "unsupported", "limit"];

function isWrongData(error: unknown): boolean {
  return error instanceof ObdError && WRONG_DATA.includes(error.code);
}

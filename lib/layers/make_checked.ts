/** Bytes that are fetched, decoded and checked before anybody sees them. */

import type { ArrivingSpan } from "../compress/mod.ts";
import {
  type ByteSource,
  IntegrityError,
  ObdError,
  toHex,
  type Urgency,
} from "../io/mod.ts";
import { isCaching, Lease } from "./cache/mod.ts";
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
  readonly #begin: () => ArrivingSpan | undefined;
  #span: ArrivingSpan | undefined;
  #next = ARRIVAL_STEP;

  constructor(
    input: Uint8Array,
    urgency: Urgency,
    begin: () => ArrivingSpan | undefined,
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
      this.#span = this.#begin();
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

/** What is to be made, and how. */
interface CheckedJob {
  what: string;
  source: ByteSource;
  start: number;
  length: number;
  /** Read into shared memory, which goes to a worker without being copied. */
  shared: boolean;
  /** The result is stored: the compressed bytes need not be. */
  once?: boolean;
  sha256: Uint8Array | undefined;
  /**
   * Done with `input` when it resolves, or when it has called `onFree`; until
   * then it may still look at it, also after a failure.
   */
  decode: (input: Uint8Array, onFree: () => void) => Promise<Uint8Array>;
  /** Does the same with a shared `input` that is still arriving, if it can. */
  stream?: (
    input: Uint8Array,
    onFree: () => void,
  ) => ArrivingSpan | undefined;
  options: MakeOptions;
}

/**
 * Reads, decodes and checks; once more when it was wrong and a cache below may
 * be to blame, its own or a neighbour's read. Bytes that stay wrong are not left in that cache either.
 *
 * @throws {IntegrityError} When the bytes are not what they should be.
 */
export async function makeChecked(job: CheckedJob): Promise<Uint8Array> {
  for (let attempt = 1;; attempt++) {
    let isRead = false;
    try {
      // What was wrong once is looked at as a whole.
      return await make(job, attempt === 1, () => isRead = true);
    } catch (error) {
      if (!isRead || !isWrongData(error)) throw error;
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

/** @param onRead Called when all bytes are there: an error that comes later is about them. */
async function make(
  job: CheckedJob,
  mayStream: boolean,
  onRead: () => void,
): Promise<Uint8Array> {
  const { source, start, length, options } = job;
  const shared = job.shared ? inputs.take(length) : undefined;
  const lease = shared && new Lease(() => inputs.give(shared));
  const input = new Uint8Array(shared ?? new ArrayBuffer(length), 0, length);
  /** Of what decodes it. */
  let free = () => {};
  const lend = () => free = lease?.lend() ?? free;
  const { stream } = job;
  const arrival = shared && stream && mayStream
    ? new Arrival(input, options.urgency, () => {
      const span = stream(input, lend());
      if (!span) free();
      return span;
    })
    : undefined;
  options.timer.enter("fetch", length);
  try {
    try {
      if (job.once && isCaching(source)) {
        await source.preadOnce(
          input,
          start,
          options,
          (available) => arrival?.progress(available),
        );
      } else await source.pread(input, start, options);
    } catch (error) {
      arrival?.drop();
      throw error;
    }
    onRead();
    options.timer.enter("decode");
    const bytes = await (arrival?.finish() ?? job.decode(input, lend()));
    free();
    return bytes;
  } finally {
    // The source is done with it. What decodes it may not be.
    lease?.release();
  }
}

/**
 * What decoders say of damaged bytes. Also that they are beyond them: the pass
 * that made the tables has decoded all of the blob.
 */
const WRONG_DATA = ["integrity", "format", "unsupported", "limit"];

/** Whether it may be the bytes that are wrong: for errors of a decoder. */
export function isWrongData(error: unknown): error is ObdError {
  return error instanceof ObdError && WRONG_DATA.includes(error.code);
}

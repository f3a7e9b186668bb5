/** Fetches what a trace says, before anybody asks: behind all demand reads, within a budget. */

import {
  ByteBudget,
  CancelledError,
  delay,
  type Logger,
  ObdError,
} from "../io/mod.ts";
import { SpanSource, type TraceRecord } from "../layers/mod.ts";
import type { OpenedImage } from "./open.ts";
import {
  planPrefetch,
  type PrefetchJob,
  type TargetRecord,
} from "./prefetch_plan.ts";

/** Jobs at once, as overlaybd's `prefetchConfig.concurrency`. */
const DEFAULT_CONCURRENCY = 16;
/** Decoded bytes of the jobs under way: the network's share of them covers 2.5 Gbit/s at 20 ms. */
const IN_FLIGHT_BYTES = 32 * 1024 * 1024;
/** A registry that fails this often is left in peace. */
const MAX_FAILURES = 32;

/** Options of {@linkcode replayTrace}. */
export interface ReplayOptions {
  /** Jobs at once; at least 1. */
  concurrency?: number | undefined;
  /** Most bytes fetched in a second; default as fast as it goes. */
  bytesPerSecond?: number | undefined;
  /** Most bytes, decoded, that are fetched at all: what caches can keep. Default no bound. */
  limitBytes?: number | undefined;
  logger: Logger;
  signal: AbortSignal;
}

/** What a replay did. */
export interface ReplayResult {
  /** Pieces of layers that were asked for, and what did not come; a reader will meet the error itself. */
  jobs: number;
  failures: number;
  /** Bytes of them, decoded and about as they are stored. */
  bytes: number;
  storedBytes: number;
  /** What cut it short: `limitBytes`, or a registry that failed too often. */
  cutBy?: "limit" | "failures";
}

/**
 * Fetches what a trace says into the caches, in the order of first need, many
 * pieces at once.
 *
 * @param records Of the merged device, of single layers as in overlaybd's
 * traces, or of targets; what the image does not have is left out.
 * @throws {CancelledError} When the signal is aborted.
 */
export async function replayTrace(
  image: Pick<OpenedImage, "source" | "layers">,
  records: Iterable<TraceRecord | TargetRecord>,
  options: ReplayOptions,
): Promise<ReplayResult> {
  const jobs = planPrefetch(image, records);
  const replay = new Replay(jobs, options);
  const started = performance.now();
  using _announced = options.bytesPerSecond === undefined
    ? announce(jobs)
    : undefined;
  await replay.run();
  options.logger.info("trace replayed", {
    ...replay.result,
    ms: Math.round(performance.now() - started),
  });
  return replay.result;
}

/**
 * What a trace knows need not be guessed: guesses beside it were a sixth of all
 * bytes of a start. Not while a replay is slowed down: that may take minutes.
 */
function announce(jobs: readonly PrefetchJob[]): DisposableStack {
  const ends = new DisposableStack();
  for (const [source, own] of Map.groupBy(jobs, (job) => job.source)) {
    if (source instanceof SpanSource) ends.defer(source.followPlan(own));
  }
  return ends;
}

/** One run through a plan. */
class Replay {
  readonly result: ReplayResult = {
    jobs: 0,
    failures: 0,
    bytes: 0,
    storedBytes: 0,
  };
  readonly #jobs: Iterator<PrefetchJob>;
  readonly #options: ReplayOptions;
  readonly #budget = new ByteBudget(IN_FLIGHT_BYTES);
  readonly #started = performance.now();

  constructor(jobs: readonly PrefetchJob[], options: ReplayOptions) {
    this.#jobs = jobs.values();
    this.#options = options;
  }

  async run(): Promise<void> {
    const lanes = this.#options.concurrency ?? DEFAULT_CONCURRENCY;
    const results = await Promise.allSettled(
      Array.from({ length: lanes }, () => this.#lane()),
    );
    for (const result of results) {
      if (result.status === "rejected") throw result.reason;
    }
    if (this.#options.signal.aborted) throw new CancelledError();
  }

  async #lane(): Promise<void> {
    const { signal } = this.#options;
    for (let job; (job = this.#next());) {
      await this.#pace(job);
      const release = await this.#budget.acquire(job.length, { signal });
      try {
        await job.source.prefetch!(job.offset, job.length, { signal });
      } catch (error) {
        if (signal.aborted) throw new CancelledError();
        if (!(error instanceof ObdError)) throw error;
        this.result.failures++;
      } finally {
        release();
      }
    }
  }

  #next(): PrefetchJob | undefined {
    const { result } = this;
    const { limitBytes = Infinity, signal } = this.#options;
    if (signal.aborted) throw new CancelledError();
    if (result.cutBy) return undefined;
    const { value: job, done } = this.#jobs.next();
    if (done) return undefined;
    if (result.failures >= MAX_FAILURES) result.cutBy = "failures";
    else if (result.bytes + job.length > limitBytes) result.cutBy = "limit";
    if (result.cutBy) return undefined;
    result.jobs++;
    result.bytes += job.length;
    return job;
  }

  /** Waits until the rate allows a job. */
  async #pace(job: PrefetchJob): Promise<void> {
    const { bytesPerSecond, signal } = this.#options;
    const { result } = this;
    const before = result.storedBytes;
    result.storedBytes += job.storedBytes;
    if (bytesPerSecond === undefined) return;
    const due = this.#started + before / bytesPerSecond * 1000;
    const wait = due - performance.now();
    if (wait > 0) await delay(wait, signal);
  }
}

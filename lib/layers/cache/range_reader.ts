/**
 * Ranges of a source that nobody keeps as they are: read straight into the
 * reader's memory, adjacent ones together.
 */

import {
  type ByteBudget,
  type ByteSource,
  CancelledError,
  copyBytes,
  ObdError,
  priorityOf,
  type ReadOptions,
  SharedFlight,
  Urgency,
} from "../../io/mod.ts";

interface Wanted {
  start: number;
  end: number;
  dst: Uint8Array;
  options: ReadOptions;
  onProgress: OnProgress | undefined;
  resolve(done: Promise<void>): void;
}

/** Is told how many bytes from a range's start are there for good. */
export type OnProgress = (available: number) => void;

/** Settings of a {@linkcode RangeReader}. */
export interface RangeReaderOptions {
  /** Most bytes of one read of several ranges; one range is always read whole. */
  maxFetchBytes: number;
  /** Bytes in flight. */
  budget: ByteBudget;
}

/**
 * Reads ranges. What is wanted in one turn and lies side by side is one read of
 * the source, through a buffer; a range alone goes to its reader without one.
 * How many reads run at once, and in which order, the source decides: a
 * registry has permits, and demand is first there.
 *
 * Borrows the source.
 */
export class RangeReader {
  readonly #source: ByteSource;
  readonly #maxFetchBytes: number;
  readonly #budget: ByteBudget;
  #wanted: Wanted[] = [];
  readonly #running = new Map<Promise<void>, AbortController>();
  #closed = false;

  constructor(source: ByteSource, options: RangeReaderOptions) {
    this.#source = source;
    this.#maxFetchBytes = options.maxFetchBytes;
    this.#budget = options.budget;
  }

  /**
   * Fills `dst` from byte `offset`; a range inside the source.
   *
   * @param onProgress May be told of the bytes that have come, of a range that
   * is read alone from a source that says so.
   * @throws {CancelledError} When the signal is aborted first.
   */
  pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions,
    onProgress?: OnProgress,
  ): Promise<void> {
    return new Promise((resolve) => {
      // After this turn, so that all that is wanted in it is seen together.
      if (this.#wanted.length === 0) queueMicrotask(() => this.#start());
      const end = offset + dst.length;
      this.#wanted.push({
        start: offset,
        end,
        dst,
        options,
        onProgress,
        resolve,
      });
    });
  }

  /** Fails what is under way and waits until none of it touches the source. */
  async close(): Promise<void> {
    this.#closed = true;
    const running = [...this.#running];
    for (const [, control] of running) control.abort(closedError());
    await Promise.allSettled(running.map(([done]) => done));
  }

  #start(): void {
    // What was called off already must not end the run that others are in.
    const wanted = this.#wanted.filter(isStillWanted)
      .sort((a, b) => a.start - b.start);
    this.#wanted = [];
    for (let i = 0; i < wanted.length;) {
      const run = [wanted[i]!];
      while (++i < wanted.length && this.#goesOn(run, wanted[i]!)) {
        run.push(wanted[i]!);
      }
      const control = new AbortController();
      if (this.#closed) control.abort(closedError());
      const done = run.length === 1
        ? this.#readOne(run[0]!, control)
        : this.#readRun(run, control);
      this.#running.set(done, control);
      done.catch(() => {}).finally(() => this.#running.delete(done));
    }
  }

  /** Whether a range belongs behind a run; two spans of deflate may share the byte between them. */
  #goesOn(run: readonly Wanted[], next: Wanted): boolean {
    const first = run[0]!;
    const { end } = run.at(-1)!;
    return next.start <= end && next.end >= end &&
      next.end - first.start <= this.#maxFetchBytes &&
      // Prefetch must not delay demand.
      priorityOf(next.options) === priorityOf(first.options);
  }

  #readOne(
    { start, dst, options, onProgress, resolve }: Wanted,
    control: AbortController,
  ): Promise<void> {
    const { signal: outer } = options;
    const cancel = () => control.abort(new CancelledError());
    outer?.addEventListener("abort", cancel, { once: true });
    const { signal } = control;
    const done = this.#read(dst, start, { ...options, signal }, onProgress)
      .finally(() => outer?.removeEventListener("abort", cancel));
    resolve(done);
    return done;
  }

  #readRun(run: readonly Wanted[], control: AbortController): Promise<void> {
    const { start } = run[0]!;
    const urgency = new Urgency(priorityOf(run[0]!.options));
    const { signal } = control;
    const bytes = new Uint8Array(run.at(-1)!.end - start);
    // Ends early only when nobody waits any more.
    const flight = new SharedFlight<void>(() => control.abort());
    for (const { start: from, end, dst, options, resolve } of run) {
      const leave = urgency.follow(options);
      const arrived = flight.join(options.signal).then(() =>
        copyBytes(dst, bytes.subarray(from - start, end - start))
      );
      resolve(arrived.finally(leave));
    }
    const done = this.#read(bytes, start, { urgency, signal });
    done.then(() => flight.resolve(), (error) => flight.reject(error));
    return done;
  }

  async #read(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions,
    onProgress?: OnProgress,
  ): Promise<void> {
    const release = await this.#budget.acquire(dst.length, options);
    try {
      if (onProgress && this.#source.preadProgressive) {
        await this.#source.preadProgressive(dst, offset, onProgress, options);
      } else await this.#source.pread(dst, offset, options);
    } finally {
      release();
    }
  }
}

/** Fails a range whose reader has left. */
function isStillWanted({ options, resolve }: Wanted): boolean {
  if (!options.signal?.aborted) return true;
  resolve(Promise.reject(new CancelledError()));
  return false;
}

/** Of reads after the end. */
export function closedError(): ObdError {
  return new ObdError("state", "Cannot read: the source is closed");
}

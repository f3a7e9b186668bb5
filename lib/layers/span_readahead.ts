/** Which spans of a layer are fetched before they are asked for. */

import { NeighbourPredictor } from "./neighbours.ts";
import { READAHEAD_BYTES, type Stream, StreamTracker } from "./readahead.ts";
import type { SpanTable } from "./span_table.ts";
import { WholeLayerPredictor } from "./whole_layer.ts";

/** Spans of one layer that are read ahead at once. */
const MAX_AHEAD = 16;
/** Of these, guesses of what a reader of everything wants: enough to keep a link busy, and room for others. */
const MAX_WHOLE_AHEAD = 8;
/** Such guesses that nobody came to yet take at most this part of the store. */
const WHOLE_STORE_SHARE = 1 / 8;
/** A plan that readers went outside of more often than this is no plan of theirs. */
const MAX_UNPLANNED = 16;

/** What somebody fetches who knows what readers want next. */
interface Plan {
  /** 1 for each span of it. */
  readonly spans: Uint8Array;
  /** Spans that were wanted, and are not in it. */
  unplanned: number;
}

/** Settings of a {@linkcode SpanReadahead}. */
export interface SpanReadaheadOptions {
  /** As in `SpanSourceOptions`. */
  readaheadBytes: number | undefined;
  /** Of the memory cache. */
  memoryBytes: number;
  /**
   * Of the store; undefined without one. Then nothing is fetched for readers of
   * everything: what is read long before it is wanted would not stay.
   */
  storeBytes: number | undefined;
  /** Starts to fetch a span; undefined where it is at hand or on its way already, or must not be fetched. Never rejects. */
  fetch(index: number): Promise<void> | undefined;
}

/**
 * Follows the demand reads of a layer and starts what probably comes next:
 * ahead of sequential readers, beside the last read, and all the rest.
 */
export class SpanReadahead {
  readonly #table: SpanTable;
  readonly #fetch: (index: number) => Promise<void> | undefined;
  readonly #tracker: StreamTracker;
  readonly #neighbours: NeighbourPredictor | undefined;
  readonly #whole: WholeLayerPredictor | undefined;
  /** Spans on their way. */
  #ahead = 0;
  readonly #plans = new Set<Plan>();
  #recent = 0;

  /** @param table Borrowed. */
  constructor(table: SpanTable, options: SpanReadaheadOptions) {
    const { readaheadBytes, memoryBytes, storeBytes } = options;
    this.#table = table;
    this.#fetch = options.fetch;
    this.#tracker = new StreamTracker(
      Math.min(readaheadBytes ?? READAHEAD_BYTES, memoryBytes / 4),
    );
    if (readaheadBytes === 0) return;
    this.#neighbours = new NeighbourPredictor(table.count);
    if (storeBytes !== undefined) {
      this.#whole = new WholeLayerPredictor(
        table,
        storeBytes * WHOLE_STORE_SHARE,
      );
    }
  }

  /**
   * Has nothing started ahead of readers while what they want is fetched by
   * plan: what is guessed beside it comes late or in vain. They are followed
   * all the same, and a plan that they do not keep to does not count.
   *
   * @param ranges Of the tar; bytes. What lies outside of it does not count.
   * @returns Ends it.
   */
  follow(ranges: Iterable<{ offset: number; length: number }>): () => void {
    const plan = { spans: new Uint8Array(this.#table.count), unplanned: 0 };
    for (const { offset, length } of ranges) {
      const end = Math.min(offset + length, this.#table.size);
      for (let at = offset; at < end;) {
        const index = this.#table.find(at);
        plan.spans[index] = 1;
        at = this.#endOf(index);
      }
    }
    this.#plans.add(plan);
    return () => void this.#plans.delete(plan);
  }

  get #isPlanned(): boolean {
    return this.#plans.size > 0;
  }

  /** Takes note of the first demand read of a span, after it was started. */
  wanted(index: number): void {
    for (const plan of this.#plans) {
      if (plan.spans[index] === 1) continue;
      if (++plan.unplanned > MAX_UNPLANNED) this.#plans.delete(plan);
    }
    const next = this.#neighbours?.wanted(index);
    if (next === undefined || this.#isPlanned) return;
    if (this.#ahead < MAX_AHEAD) this.#start(next);
  }

  /** Takes note of a demand read, after it was started; bytes of the tar. */
  note(offset: number, length: number): void {
    const stream = this.#tracker.note(offset, length);
    if (
      !this.#isPlanned && stream &&
      stream.ahead < stream.next + stream.window
    ) {
      this.#readAhead(stream);
    }
    if (this.#whole && length > 0) {
      this.#noteWhole(this.#whole, offset, length, stream !== undefined);
    }
  }

  #noteWhole(
    whole: WholeLayerPredictor,
    offset: number,
    length: number,
    inStream: boolean,
  ): void {
    const end = offset + length;
    // Most reads are of the span that was read last.
    let index = this.#endOf(this.#recent) > offset &&
        this.#table.offsetOf(this.#recent) <= offset
      ? this.#recent
      : this.#table.find(offset);
    for (let at = offset;; index++) {
      const next = this.#endOf(index);
      whole.read(index, Math.min(next, end) - at, inStream);
      if (next >= end) break;
      at = next;
    }
    this.#recent = index;
    this.#guess();
  }

  #endOf(index: number): number {
    return this.#table.offsetOf(index) + this.#table.sizeOf(index);
  }

  /** Starts the spans that a stream comes to next. */
  #readAhead(stream: Stream): void {
    const limit = Math.min(this.#table.size, stream.next + stream.window);
    let at = Math.max(stream.ahead, stream.next);
    while (at < limit && this.#ahead < MAX_AHEAD) {
      const index = this.#table.find(at);
      this.#start(index);
      at = this.#endOf(index);
    }
    stream.ahead = at;
  }

  /** Starts what a reader of everything comes to some time. */
  #guess(): void {
    while (!this.#isPlanned && this.#ahead < MAX_WHOLE_AHEAD) {
      const index = this.#whole?.next();
      if (index === undefined) return;
      this.#start(index);
    }
  }

  #start(index: number): void {
    const done = this.#fetch(index);
    if (!done) return;
    this.#ahead++;
    void done.then(() => {
      this.#ahead--;
      this.#guess();
    });
  }
}

/** A block cache in front of any source. */

import {
  ByteBudget,
  type ByteSource,
  checkRange,
  ObdError,
  priorityOf,
  type ReadOptions,
  SharedFlight,
  type SourceDescription,
  Urgency,
} from "../../io/mod.ts";
import type { ReadStats } from "../read_stats.ts";
import { type Stream, StreamTracker } from "../readahead.ts";
import type { CacheEntry } from "./entry.ts";
import { RangeReader } from "./range_reader.ts";
import type { CacheStore } from "./store.ts";

const DEFAULT_BLOCK_SIZE = 256 * 1024;
const DEFAULT_FETCH_BYTES = 1024 * 1024;
const DEFAULT_IN_FLIGHT_BYTES = 32 * 1024 * 1024;
/** As many as a registry is asked at once (lib/registry: Transport). */
const MAX_FETCHES = 16;
/** Prefetch starts nothing beyond this, so that demand finds room. */
const MAX_PREFETCHES = 8;
/** Blocks that the store did not take and that are kept in memory, per source. */
const MAX_RECENT = 4;

/** Settings of a {@linkcode CachedSource}. */
export interface CachedSourceOptions {
  /** Names the content, e.g. the blob's digest: equal keys must mean equal bytes. At most 200 characters. */
  key: string;
  /** Without one, the source only joins and coalesces reads. Borrowed. */
  store?: CacheStore | undefined;
  /** Bytes of a block, a multiple of 4096; default 256 KiB. */
  blockSize?: number;
  /** Most bytes of one read of the inner source; default 1 MiB, at least one block. */
  maxFetchBytes?: number;
  /** Bytes in flight; shared between sources to bound a process. */
  budget?: ByteBudget;
  /** Where fetches are counted. Default nowhere: what lies above counts more. */
  stats?: ReadStats | undefined;
  /** Most bytes read ahead of a sequential reader; needs a store. Default none: what lies above may do it better. */
  readaheadBytes?: number;
}

/** What a reader can tell a cache below it. */
export interface CachingSource extends ByteSource {
  /**
   * As `pread`, of a range that the caller keeps in another form: what the
   * cache has of it is used, else it is fetched as it is and not stored.
   */
  preadOnce(
    dst: Uint8Array,
    offset: number,
    options?: ReadOptions,
  ): Promise<void>;
  /**
   * Forgets what is cached of a range.
   *
   * @returns Whether anything was: reading again may give other bytes.
   */
  discard(offset: number, length: number): boolean;
}

/** Whether a source is a {@linkcode CachingSource}. */
export function isCaching(source: ByteSource): source is CachingSource {
  return "discard" in source && typeof source.discard === "function";
}

interface BlockFlight extends SharedFlight<Uint8Array> {
  block: number;
  urgency: Urgency;
  fetch: Fetch | undefined;
}

interface Fetch {
  control: AbortController;
  /** Rises with any of its blocks'. */
  urgency: Urgency;
  /** Blocks that somebody still waits for. */
  wanted: number;
}

/**
 * Reads whole blocks of the inner source once, keeps them in a
 * {@linkcode CacheStore}, and joins what is wanted at the same time: the same
 * block is fetched once, adjacent blocks in one read, demand before prefetch.
 * A read is answered from the fetched buffer; storing happens behind it.
 *
 * Owns the inner source.
 */
export class CachedSource implements CachingSource {
  readonly size: number;
  readonly #inner: ByteSource;
  readonly #key: string;
  readonly #store: CacheStore | undefined;
  readonly #blockSize: number;
  readonly #maxBlocks: number;
  readonly #budget: ByteBudget;
  readonly #stats: ReadStats | undefined;
  readonly #entries = new Map<number, CacheEntry>();
  readonly #recent = new Map<number, Uint8Array>();
  readonly #flights = new Map<number, BlockFlight>();
  readonly #queues = {
    demand: new Map<number, BlockFlight>(),
    prefetch: new Map<number, BlockFlight>(),
  };
  readonly #fetches = new Map<Promise<void>, Fetch>();
  readonly #tracker: StreamTracker;
  readonly #ranges: RangeReader;
  /** Blocks that are being read ahead. */
  #ahead = 0;
  #dispatching = false;
  #closed: Promise<void> | undefined;

  constructor(inner: ByteSource, options: CachedSourceOptions) {
    const blockSize = options.blockSize ?? DEFAULT_BLOCK_SIZE;
    if (!(blockSize >= 4096) || blockSize % 4096 !== 0) {
      throw new RangeError(
        `Cannot cache in blocks of ${blockSize} bytes: not a multiple of 4096`,
      );
    }
    this.#inner = inner;
    this.size = inner.size;
    this.#key = `${options.key}/${blockSize}/`;
    this.#store = options.store;
    this.#blockSize = blockSize;
    const maxFetchBytes = options.maxFetchBytes ?? DEFAULT_FETCH_BYTES;
    this.#maxBlocks = Math.max(1, Math.floor(maxFetchBytes / blockSize));
    this.#budget = options.budget ?? new ByteBudget(DEFAULT_IN_FLIGHT_BYTES);
    this.#stats = options.stats;
    this.#ranges = new RangeReader(inner, {
      maxFetchBytes,
      budget: this.#budget,
    });
    this.#tracker = new StreamTracker(
      options.store ? options.readaheadBytes ?? 0 : 0,
    );
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    for (let at = 0; at < dst.length;) {
      const block = Math.floor((offset + at) / this.#blockSize);
      const inside = offset + at - block * this.#blockSize;
      const length = Math.min(dst.length - at, this.#blockSize - inside);
      const part = dst.subarray(at, at + length);
      if (!this.#readNow(part, block, inside)) return false;
      at += length;
    }
    this.#note(offset, dst.length);
    return true;
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    if (this.#closed) throw closedError();
    const parts: Promise<void>[] = [];
    for (let at = 0; at < dst.length;) {
      const block = Math.floor((offset + at) / this.#blockSize);
      const inside = offset + at - block * this.#blockSize;
      const length = Math.min(dst.length - at, this.#blockSize - inside);
      const part = dst.subarray(at, at + length);
      parts.push(this.#readPart(part, block, inside, options));
      at += length;
    }
    if (priorityOf(options) === "demand") this.#note(offset, dst.length);
    // All of them, also after a failure: `dst` is ours until none writes to it.
    await allSettled(parts);
  }

  async preadOnce(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    if (this.#closed) throw closedError();
    const end = Math.ceil((offset + dst.length) / this.#blockSize);
    for (let b = Math.floor(offset / this.#blockSize); b < end; b++) {
      if (this.#recent.has(b) || this.#flights.has(b) || this.#lookup(b)) {
        return await this.pread(dst, offset, options);
      }
    }
    await this.#ranges.pread(dst, offset, options);
  }

  #note(offset: number, length: number): void {
    const stream = this.#tracker.note(offset, length);
    if (stream && stream.ahead < stream.next + stream.window) {
      this.#readAhead(stream);
    }
  }

  /** Starts the blocks that a stream comes to next. */
  #readAhead(stream: Stream): void {
    const limit = Math.min(this.size, stream.next + stream.window);
    let at = Math.max(stream.ahead, stream.next);
    const most = MAX_PREFETCHES * this.#maxBlocks;
    while (at < limit && this.#ahead < most && !this.#closed) {
      const block = Math.floor(at / this.#blockSize);
      if (!this.#recent.has(block) && !this.#lookup(block)) {
        this.#ahead++;
        // Nobody is told of a failure: the read that needs the block tries again.
        this.#flightOf(block).join().catch(() => {}).finally(() =>
          this.#ahead--
        );
      }
      at = (block + 1) * this.#blockSize;
    }
    stream.ahead = at;
  }

  /** Without a store nothing would stay, so nothing is done. */
  async prefetch(
    offset: number,
    length: number,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    checkRange(this.size, offset, length);
    if (!this.#store) return;
    const end = Math.ceil((offset + length) / this.#blockSize);
    const parts: Promise<unknown>[] = [];
    for (let b = Math.floor(offset / this.#blockSize); b < end; b++) {
      if (this.#recent.has(b) || this.#lookup(b)) continue;
      parts.push(this.#flightOf(b).join(options.signal));
    }
    await allSettled(parts);
  }

  discard(offset: number, length: number): boolean {
    const first = Math.floor(offset / this.#blockSize);
    const end = Math.ceil((offset + length) / this.#blockSize);
    let any = false;
    for (let block = first; block < end; block++) {
      const entry = this.#lookup(block);
      if (entry) this.#store!.drop(entry);
      any = this.#recent.delete(block) || entry !== undefined || any;
    }
    return any;
  }

  describe(): SourceDescription {
    const inner = this.#inner.describe?.();
    return {
      kind: "cache",
      detail: {
        blockSize: this.#blockSize,
        ...(this.#store ? { store: this.#store.name } : {}),
      },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close(): Promise<void> {
    for (const queue of Object.values(this.#queues)) {
      for (const flight of queue.values()) flight.reject(closedError());
      queue.clear();
    }
    const running = [...this.#fetches];
    for (const [, fetch] of running) fetch.control.abort();
    await Promise.allSettled([
      ...running.map(([done]) => done),
      this.#ranges.close(),
    ]);
    await this.#inner[Symbol.asyncDispose]();
  }

  #lookup(block: number): CacheEntry | undefined {
    if (!this.#store) return undefined;
    let entry = this.#entries.get(block);
    if (entry && entry.state !== "dead") return entry;
    entry = this.#store.get(this.#key + block);
    // A name may be longer-lived than what it names: never trust its length.
    if (entry && entry.size !== this.#sizeOf(block)) {
      this.#store.drop(entry);
      entry = undefined;
    }
    if (entry) this.#entries.set(block, entry);
    else this.#entries.delete(block);
    return entry;
  }

  #sizeOf(block: number): number {
    const start = block * this.#blockSize;
    return Math.min(this.#blockSize, this.size - start);
  }

  #readNow(dst: Uint8Array, block: number, inside: number): boolean {
    const recent = this.#recent.get(block);
    if (recent) {
      dst.set(recent.subarray(inside, inside + dst.length));
      return true;
    }
    const entry = this.#lookup(block);
    return entry !== undefined && this.#store!.preadNow(entry, dst, inside);
  }

  async #readPart(
    dst: Uint8Array,
    block: number,
    inside: number,
    options: ReadOptions,
  ): Promise<void> {
    if (this.#readNow(dst, block, inside)) return;
    const entry = this.#lookup(block);
    if (entry && await this.#store!.pread(entry, dst, inside)) return;
    const flight = this.#flightOf(block);
    const leave = flight.urgency.follow(options);
    try {
      const bytes = await flight.join(options.signal);
      dst.set(bytes.subarray(inside, inside + dst.length));
    } finally {
      leave();
    }
  }

  /** The flight of a block: the one under way, or a new one, which waits as prefetch. */
  #flightOf(block: number): BlockFlight {
    if (this.#closed) throw closedError();
    const running = this.#flights.get(block);
    if (running) return running;
    const urgency = new Urgency("prefetch");
    const flight: BlockFlight = Object.assign(
      new SharedFlight<Uint8Array>(() => this.#abandon(flight)),
      { block, urgency, fetch: undefined },
    );
    this.#flights.set(block, flight);
    this.#queues.prefetch.set(block, flight);
    urgency.onHurry(() => {
      flight.fetch?.urgency.hurry();
      if (!this.#queues.prefetch.delete(block)) return;
      this.#queues.demand.set(block, flight);
      this.#scheduleDispatch();
    });
    this.#scheduleDispatch();
    return flight;
  }

  #abandon(flight: BlockFlight): void {
    if (this.#flights.get(flight.block) === flight) {
      this.#flights.delete(flight.block);
    }
    if (!flight.fetch) {
      this.#queues[flight.urgency.priority].delete(flight.block);
    } else if (--flight.fetch.wanted === 0) flight.fetch.control.abort();
  }

  /** After this turn, so that all blocks wanted in it are seen together. */
  #scheduleDispatch(): void {
    if (this.#dispatching) return;
    this.#dispatching = true;
    queueMicrotask(() => {
      this.#dispatching = false;
      this.#dispatch();
    });
  }

  #dispatch(): void {
    while (!this.#closed) {
      const queue = this.#queues.demand.size > 0
        ? this.#queues.demand
        : this.#queues.prefetch;
      const limit = queue === this.#queues.demand
        ? MAX_FETCHES
        : MAX_PREFETCHES;
      const next = queue.keys().next();
      if (next.done || this.#fetches.size >= limit) return;
      // Only neighbours of the same urgency: prefetch must not delay demand.
      let first = next.value;
      let end = first + 1;
      while (end - first < this.#maxBlocks && queue.has(end)) end++;
      while (end - first < this.#maxBlocks && queue.has(first - 1)) first--;
      const flights: BlockFlight[] = [];
      for (let block = first; block < end; block++) {
        flights.push(queue.get(block)!);
        queue.delete(block);
      }
      this.#start(flights);
    }
  }

  #start(flights: BlockFlight[]): void {
    const fetch = {
      control: new AbortController(),
      urgency: new Urgency(flights[0]!.urgency.priority),
      wanted: flights.length,
    };
    for (const flight of flights) flight.fetch = fetch;
    const done = this.#fetch(flights, fetch).finally(() => {
      this.#fetches.delete(done);
      this.#dispatch();
    });
    this.#fetches.set(done, fetch);
  }

  /** Reads a run of adjacent blocks and settles their flights; never rejects. */
  async #fetch(
    flights: BlockFlight[],
    { control: { signal }, urgency }: Fetch,
  ): Promise<void> {
    const start = flights[0]!.block * this.#blockSize;
    const length = Math.min(
      flights.length * this.#blockSize,
      this.size - start,
    );
    const timer = this.#stats?.load(urgency);
    let release: (() => void) | undefined;
    try {
      release = await this.#budget.acquire(length, { urgency, signal });
      timer?.enter("fetch", length);
      const bytes = new Uint8Array(length);
      await this.#inner.pread(bytes, start, { urgency, signal });
      timer?.end(length);
      for (const flight of flights) this.#arrived(flight, bytes, start);
    } catch (error) {
      for (const flight of flights) {
        this.#forget(flight);
        flight.reject(error);
      }
    } finally {
      timer?.end();
      release?.();
    }
  }

  #arrived(flight: BlockFlight, bytes: Uint8Array, start: number): void {
    const { block } = flight;
    const at = block * this.#blockSize - start;
    const mine = bytes.subarray(at, at + this.#sizeOf(block));
    const entry = this.#store?.put(this.#key + block, mine);
    if (entry) this.#entries.set(block, entry);
    else this.#remember(block, mine);
    this.#forget(flight);
    flight.resolve(mine);
  }

  #forget(flight: BlockFlight): void {
    if (this.#flights.get(flight.block) === flight) {
      this.#flights.delete(flight.block);
    }
  }

  /** Neighbouring ranges share their border block: it must not cost two fetches when nothing is stored. */
  #remember(block: number, bytes: Uint8Array): void {
    this.#recent.delete(block);
    this.#recent.set(block, bytes.slice());
    if (this.#recent.size > MAX_RECENT) {
      this.#recent.delete(this.#recent.keys().next().value!);
    }
  }
}

function closedError(): ObdError {
  return new ObdError("state", "Cannot read: the source is closed");
}

/** Waits for all; then throws the first failure, if any. */
export async function allSettled(
  parts: readonly Promise<unknown>[],
): Promise<void> {
  if (parts.length === 1) return void await parts[0];
  const results = await Promise.allSettled(parts);
  for (const result of results) {
    if (result.status === "rejected") throw result.reason;
  }
}

/** A block cache in front of any source. */

import {
  ByteBudget,
  type ByteSource,
  checkRange,
  ObdError,
  type Priority,
  type ReadOptions,
  SharedFlight,
  type SourceDescription,
} from "../../io/mod.ts";
import type { CacheEntry } from "./entry.ts";
import type { CacheStore } from "./store.ts";

const DEFAULT_BLOCK_SIZE = 256 * 1024;
const DEFAULT_FETCH_BYTES = 1024 * 1024;
const DEFAULT_IN_FLIGHT_BYTES = 32 * 1024 * 1024;
const MAX_FETCHES = 8;
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
}

/** What a reader can tell a cache below it. */
export interface CachingSource extends ByteSource {
  /**
   * Forgets what is cached of a range.
   *
   * @returns Whether anything was: reading again may give other bytes.
   */
  discard(offset: number, length: number): boolean;
  /** A range that was asked for as prefetch is wanted now. */
  hurry(offset: number, length: number): void;
}

/** Whether a source is a {@linkcode CachingSource}. */
export function isCaching(source: ByteSource): source is CachingSource {
  return "discard" in source && typeof source.discard === "function" &&
    "hurry" in source && typeof source.hurry === "function";
}

interface BlockFlight extends SharedFlight<Uint8Array> {
  block: number;
  priority: Priority;
  fetch: Fetch | undefined;
}

interface Fetch {
  control: AbortController;
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
  readonly #entries = new Map<number, CacheEntry>();
  readonly #recent = new Map<number, Uint8Array>();
  readonly #flights = new Map<number, BlockFlight>();
  readonly #queues = {
    demand: new Map<number, BlockFlight>(),
    prefetch: new Map<number, BlockFlight>(),
  };
  readonly #fetches = new Map<Promise<void>, Fetch>();
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
    this.#maxBlocks = Math.max(
      1,
      Math.floor((options.maxFetchBytes ?? DEFAULT_FETCH_BYTES) / blockSize),
    );
    this.#budget = options.budget ?? new ByteBudget(DEFAULT_IN_FLIGHT_BYTES);
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
    // All of them, also after a failure: `dst` is ours until none writes to it.
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

  hurry(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / this.#blockSize);
    let block = Math.floor(offset / this.#blockSize);
    for (; block < end; block++) {
      const flight = this.#flights.get(block);
      if (flight) this.#hurry(flight);
    }
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
    await Promise.allSettled(running.map(([done]) => done));
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
    const flight = this.#flightOf(block, options.priority ?? "demand");
    const bytes = await flight.join(options.signal);
    dst.set(bytes.subarray(inside, inside + dst.length));
  }

  /** The flight of a block: joined, and hurried up if need be, or started. */
  #flightOf(block: number, priority: Priority): BlockFlight {
    if (this.#closed) throw closedError();
    const running = this.#flights.get(block);
    if (running) {
      if (priority === "demand") this.#hurry(running);
      return running;
    }
    const flight: BlockFlight = Object.assign(
      new SharedFlight<Uint8Array>(() => this.#abandon(flight)),
      { block, priority, fetch: undefined },
    );
    this.#flights.set(block, flight);
    this.#queues[priority].set(block, flight);
    this.#scheduleDispatch();
    return flight;
  }

  #hurry(flight: BlockFlight): void {
    if (!this.#queues.prefetch.delete(flight.block)) return;
    flight.priority = "demand";
    this.#queues.demand.set(flight.block, flight);
  }

  #abandon(flight: BlockFlight): void {
    if (this.#flights.get(flight.block) === flight) {
      this.#flights.delete(flight.block);
    }
    if (!flight.fetch) this.#queues[flight.priority].delete(flight.block);
    else if (--flight.fetch.wanted === 0) flight.fetch.control.abort();
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
    const { demand, prefetch } = this.#queues;
    while (this.#fetches.size < MAX_FETCHES && !this.#closed) {
      const queue = demand.size > 0 ? demand : prefetch;
      const next = queue.keys().next();
      if (next.done) return;
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
    const fetch = { control: new AbortController(), wanted: flights.length };
    for (const flight of flights) flight.fetch = fetch;
    const done = this.#fetch(flights, fetch.control.signal).finally(() => {
      this.#fetches.delete(done);
      this.#dispatch();
    });
    this.#fetches.set(done, fetch);
  }

  /** Reads a run of adjacent blocks and settles their flights; never rejects. */
  async #fetch(flights: BlockFlight[], signal: AbortSignal): Promise<void> {
    const start = flights[0]!.block * this.#blockSize;
    const length = Math.min(
      flights.length * this.#blockSize,
      this.size - start,
    );
    const { priority } = flights[0]!;
    let release: (() => void) | undefined;
    try {
      release = await this.#budget.acquire(length, { priority, signal });
      const bytes = new Uint8Array(length);
      await this.#inner.pread(bytes, start, { priority, signal });
      for (const flight of flights) this.#arrived(flight, bytes, start);
    } catch (error) {
      for (const flight of flights) {
        this.#forget(flight);
        flight.reject(error);
      }
    } finally {
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
export async function allSettled(parts: Promise<void>[]): Promise<void> {
  if (parts.length === 1) return await parts[0];
  const results = await Promise.allSettled(parts);
  for (const result of results) {
    if (result.status === "rejected") throw result.reason;
  }
}

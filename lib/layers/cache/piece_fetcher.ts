/** Decides what is fetched together, and when. */

import {
  type ByteBudget,
  type ByteSource,
  type Priority,
  SharedFlight,
  Urgency,
} from "../../io/mod.ts";
import type { ReadStats } from "../read_stats.ts";
import { closedError } from "./range_reader.ts";
import type { StoredBlocks } from "./stored_blocks.ts";

/** As many as a registry is asked at once (lib/registry: Transport). */
const MAX_FETCHES = 16;
/** Prefetch starts nothing beyond this, so that demand finds room. */
const MAX_PREFETCHES = 8;
/**
 * So many demand fetches under way, and what lies around a wanted piece is left
 * for later: it would take bandwidth and time from what others wait for.
 */
const BUSY_FETCHES = 4;

/** Settings of a {@linkcode PieceFetcher}. */
export interface PieceFetcherOptions {
  /** Most blocks of one fetch, ≥ 1. */
  maxBlocks: number;
  /** Bytes in flight. */
  budget: ByteBudget;
  /** Where fetches are counted. */
  stats: ReadStats | undefined;
}

/** One piece that somebody wants. */
export interface Flight extends SharedFlight<Uint8Array> {
  piece: number;
  urgency: Urgency;
  fetch: Fetch | undefined;
}

/** A read of pieces `first … end - 1` of the inner source. */
interface Fetch {
  first: number;
  end: number;
  control: AbortController;
  /** Rises with any of its flights'. */
  urgency: Urgency;
  /** Of the pieces that somebody asked for; of the others there is none yet. */
  flights: Flight[];
  /** Flights that somebody still waits for. */
  wanted: number;
  /** Whether flights may join: it has not ended and was not called off. */
  isOpen: boolean;
  done: Promise<void>;
}

/**
 * Fetches pieces of blocks. What is wanted at the same time is joined: the same
 * piece is fetched once, adjacent ones in one read, demand before prefetch.
 *
 * How much is fetched around a wanted piece is decided when its fetch begins:
 * what is missing of its block, as readers mostly come to that too; or nothing,
 * while several reads of this source wait already. Prefetch is by the block.
 *
 * Borrows the source, and puts into `held` what came.
 */
export class PieceFetcher {
  readonly #inner: ByteSource;
  readonly #held: StoredBlocks;
  readonly #maxBlocks: number;
  readonly #maxPieces: number;
  readonly #budget: ByteBudget;
  readonly #stats: ReadStats | undefined;
  /** By piece. */
  readonly #flights = new Map<number, Flight>();
  /** Of the flights, those that no fetch has taken. */
  readonly #queues = {
    demand: new Map<number, Flight>(),
    prefetch: new Map<number, Flight>(),
  };
  readonly #fetches = new Set<Fetch>();
  /** Of the fetches, those that somebody waits for. */
  #demandFetches = 0;
  #dispatching = false;
  #isClosed = false;

  constructor(
    inner: ByteSource,
    held: StoredBlocks,
    { maxBlocks, budget, stats }: PieceFetcherOptions,
  ) {
    this.#inner = inner;
    this.#held = held;
    this.#maxBlocks = maxBlocks;
    this.#maxPieces = maxBlocks * held.piecesPerBlock;
    this.#budget = budget;
    this.#stats = stats;
  }

  /** Pieces of all prefetch that may be under way at once. */
  get maxPrefetchPieces(): number {
    return MAX_PREFETCHES * this.#maxPieces;
  }

  /** Fails what waits and what is under way; resolves when none of it touches the source. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const queue of Object.values(this.#queues)) {
      for (const flight of queue.values()) flight.reject(closedError());
      queue.clear();
    }
    const running = [...this.#fetches];
    for (const fetch of running) callOff(fetch);
    await Promise.allSettled(running.map((fetch) => fetch.done));
  }

  /** The flight of a piece: the one under way, or a new one, which waits as prefetch. */
  flightOf(piece: number): Flight {
    if (this.#isClosed) throw closedError();
    const running = this.#flights.get(piece);
    if (running) return running;
    const urgency = new Urgency("prefetch");
    const flight: Flight = Object.assign(
      new SharedFlight<Uint8Array>(() => this.#abandon(flight)),
      { piece, urgency, fetch: undefined },
    );
    this.#flights.set(piece, flight);
    const fetch = this.#fetchOf(piece);
    if (fetch) board(flight, fetch);
    else {
      this.#queues.prefetch.set(piece, flight);
      this.#scheduleDispatch();
    }
    urgency.onHurry(() => {
      flight.fetch?.urgency.hurry();
      // Who gave it up may still hurry it: the piece may have another by now.
      if (this.#queues.prefetch.get(piece) !== flight) return;
      this.#queues.prefetch.delete(piece);
      this.#queues.demand.set(piece, flight);
      this.#scheduleDispatch();
    });
    return flight;
  }

  /** The fetch that brings a piece, if one is under way. */
  #fetchOf(piece: number): Fetch | undefined {
    for (const fetch of this.#fetches) {
      if (fetch.isOpen && fetch.first <= piece && piece < fetch.end) {
        return fetch;
      }
    }
    return undefined;
  }

  /** Whether somebody wants a piece already, or it comes along with another. */
  isComing(piece: number): boolean {
    return this.#flights.has(piece) || this.#fetchOf(piece) !== undefined;
  }

  #abandon(flight: Flight): void {
    this.#forget(flight);
    const { piece, urgency, fetch } = flight;
    if (!fetch) this.#queues[urgency.priority].delete(piece);
    else if (--fetch.wanted === 0) callOff(fetch);
  }

  /** After this turn, so that all pieces wanted in it are seen together. */
  #scheduleDispatch(): void {
    if (this.#dispatching) return;
    this.#dispatching = true;
    queueMicrotask(() => {
      this.#dispatching = false;
      this.#dispatch();
    });
  }

  #dispatch(): void {
    while (!this.#isClosed) {
      const priority = this.#queues.demand.size > 0 ? "demand" : "prefetch";
      const limit = priority === "demand" ? MAX_FETCHES : MAX_PREFETCHES;
      const next = this.#queues[priority].keys().next();
      if (next.done || this.#fetches.size >= limit) return;
      this.#start(
        priority === "prefetch" || !this.#isBusy()
          ? this.#blocksAround(next.value, priority)
          : this.#piecesBeside(next.value),
        priority,
      );
    }
  }

  /** Whether so much is wanted elsewhere that a piece had better come alone. */
  #isBusy(): boolean {
    const { demand } = this.#queues;
    // Of the runs in the queue one is the piece's own.
    let others = this.#demandFetches - 1;
    for (const piece of demand.keys()) {
      if (!demand.has(piece - 1)) others++;
      if (others >= BUSY_FETCHES) return true;
    }
    return false;
  }

  /**
   * What is fetched with a piece by itself: of this queue what is adjacent, and
   * what is wanted ahead of the same block, which then takes no fetch of its own.
   */
  #piecesBeside(piece: number): [first: number, end: number] {
    const { demand, prefetch } = this.#queues;
    const most = this.#maxPieces;
    const goesOn = (next: number, isBorder: boolean) =>
      demand.has(next) || (!isBorder && prefetch.has(next));
    let first = piece;
    let end = piece + 1;
    while (
      end - first < most && goesOn(end, end % this.#held.piecesPerBlock === 0)
    ) end++;
    while (
      end - first < most &&
      goesOn(first - 1, first % this.#held.piecesPerBlock === 0)
    ) first--;
    return [first, end];
  }

  /** What is fetched with a piece by the block: what is missing of its own, and of adjacent ones that are wanted. */
  #blocksAround(
    piece: number,
    priority: Priority,
  ): [first: number, end: number] {
    const queue = this.#queues[priority];
    const size = this.#held.piecesPerBlock;
    // Only neighbours of the same urgency: prefetch must not delay demand.
    const isWanted = (block: number) => {
      for (let i = 0; i < size; i++) {
        if (queue.has(block * size + i)) return true;
      }
      return false;
    };
    let from = Math.floor(piece / size);
    let to = from + 1;
    while (to - from < this.#maxBlocks && isWanted(to)) to++;
    while (to - from < this.#maxBlocks && isWanted(from - 1)) from--;
    const last = Math.min(to * size, this.#held.pieces);
    let first = piece;
    let end = piece + 1;
    while (end < last && this.#isMissing(end)) end++;
    while (first > from * size && this.#isMissing(first - 1)) first--;
    return [first, end];
  }

  /** Neither held nor on its way. */
  #isMissing(piece: number): boolean {
    const flight = this.#flights.get(piece);
    if (flight) return flight.fetch === undefined;
    return !this.#fetchOf(piece) && !this.#held.has(piece);
  }

  #start([first, end]: [number, number], priority: Priority): void {
    const fetch: Fetch = {
      first,
      end,
      control: new AbortController(),
      urgency: new Urgency(priority),
      flights: [],
      wanted: 0,
      isOpen: true,
      done: Promise.resolve(),
    };
    for (let piece = first; piece < end; piece++) {
      const flight = this.#flights.get(piece);
      if (!flight) continue;
      this.#queues[flight.urgency.priority].delete(piece);
      board(flight, fetch);
    }
    this.#fetches.add(fetch);
    const leave = fetch.urgency.onHurry(() => this.#demandFetches++);
    fetch.done = this.#run(fetch).finally(() => {
      this.#fetches.delete(fetch);
      // Nobody hurries what has ended.
      leave();
      if (fetch.urgency.priority === "demand") this.#demandFetches--;
      this.#dispatch();
    });
  }

  /** Reads a run of adjacent pieces and settles their flights; never rejects. */
  async #run(fetch: Fetch): Promise<void> {
    const { urgency, control: { signal } } = fetch;
    const { pieceSize } = this.#held;
    const start = fetch.first * pieceSize;
    const length = Math.min(fetch.end * pieceSize, this.#inner.size) - start;
    const timer = this.#stats?.load(urgency);
    let release: (() => void) | undefined;
    try {
      release = await this.#budget.acquire(length, { urgency, signal });
      timer?.enter("fetch", length);
      const bytes = new Uint8Array(length);
      await this.#inner.pread(bytes, start, { urgency, signal });
      timer?.end(length);
      fetch.isOpen = false;
      this.#held.put(fetch.first, bytes);
      for (const flight of fetch.flights) {
        const at = flight.piece * pieceSize - start;
        this.#forget(flight);
        flight.resolve(bytes.subarray(at, at + pieceSize));
      }
    } catch (error) {
      fetch.isOpen = false;
      for (const flight of fetch.flights) {
        this.#forget(flight);
        flight.reject(error);
      }
    } finally {
      timer?.end();
      release?.();
    }
  }

  #forget(flight: Flight): void {
    if (this.#flights.get(flight.piece) === flight) {
      this.#flights.delete(flight.piece);
    }
  }
}

/** A piece is to come with a fetch. */
function board(flight: Flight, fetch: Fetch): void {
  flight.fetch = fetch;
  fetch.flights.push(flight);
  fetch.wanted++;
}

/** Ends a fetch that nobody waits for; nobody may come to. */
function callOff(fetch: Fetch): void {
  fetch.isOpen = false;
  fetch.control.abort();
}

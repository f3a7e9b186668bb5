/**
 * A layer's uncompressed tar, made span by span: each is fetched, decoded and
 * checked once, then served from memory or from the span cache.
 */

import {
  BudgetShare,
  ByteBudget,
  type ByteSource,
  checkRange,
  copyBytes,
  invariant,
  type Logger,
  ObdError,
  priorityOf,
  type ReadOptions,
  SharedFlight,
  silentLogger,
  type SourceDescription,
  toHex,
  Urgency,
  withDeadline,
} from "../io/mod.ts";
import {
  allSettled,
  type CacheEntry,
  type CacheStore,
  type Lease,
  MemoryCache,
  type MemoryEntry,
} from "./cache/mod.ts";
import { type LoadTimer, ReadStats } from "./read_stats.ts";
import { SpanReadahead } from "./span_readahead.ts";
import type { SpanTable } from "./span_table.ts";

const DEFAULT_MEMORY_BYTES = 32 * 1024 * 1024;
const DEFAULT_IN_FLIGHT_BYTES = 64 * 1024 * 1024;
/** The part of these that a layer has though the spans of others, whose registry stands still, hold all. */
const GUARANTEED_PART = 1 / 16;
const DEFAULT_DEADLINE_MS = 120_000;
/** A span that stays wrong is logged this often. */
const LOG_INTERVAL_MS = 60_000;

/** What all layers of a process share to keep spans. */
export class SpanCache {
  /** Spans on disk; undefined keeps them in memory only. Borrowed. */
  readonly store: CacheStore | undefined;
  /** Recent spans. */
  readonly memory: MemoryCache;
  /** Bounds the decoded bytes of spans that are being made. */
  readonly budget: ByteBudget;

  constructor(
    options: {
      store?: CacheStore | undefined;
      memoryBytes?: number;
      inFlightBytes?: number;
    } = {},
  ) {
    this.store = options.store;
    this.memory = new MemoryCache(options.memoryBytes ?? DEFAULT_MEMORY_BYTES);
    this.budget = new ByteBudget(
      options.inFlightBytes ?? DEFAULT_IN_FLIGHT_BYTES,
    );
  }
}

/** Settings that every {@linkcode SpanSource} has. */
export interface SpanSourceOptions {
  cache: SpanCache;
  logger?: Logger;
  /**
   * Most bytes read ahead of a sequential reader; default 8 MiB, but a quarter
   * of the memory cache at most. 0 = nothing is read ahead, neither of them nor
   * of readers that want neighbours (`neighbours.ts`) or all (`whole_layer.ts`).
   */
  readaheadBytes?: number;
  /** A span that takes longer fails its readers, in ms. */
  deadlineMs?: number;
  /** Where loads are counted; shared with the image's other layers. */
  stats?: ReadStats | undefined;
}

/** How a span is made: until it is cancelled, and faster once somebody waits. */
export interface MakeOptions {
  signal: AbortSignal;
  urgency: Urgency;
  /** Is told of its stages. */
  timer: LoadTimer;
}

type LoadOptions = Omit<MakeOptions, "timer">;

/** The bytes of a span, never to be changed. */
export interface MadeSpan {
  bytes: Uint8Array;
  /** Where their memory is used again: the taker's, to be released. */
  lease?: Lease | undefined;
}

/** Makes the bytes of a span. */
export interface SpanMaker {
  /** For people: the layer's digest. */
  readonly name: string;
  readonly spans: SpanTable;
  /** Key of a span in the caches: equal keys must mean equal bytes. */
  keyOf(index: number): string;
  /**
   * The span's bytes: as long as the table says and checked, where there is
   * something to check them against.
   */
  make(index: number, options: MakeOptions): Promise<MadeSpan>;
  /** What must be fetched and decoded to have a span. */
  unitOf(index: number): StoredUnit;
  describe(): SourceDescription;
  dispose(): Promise<void>;
}

/** A piece of a layer that is decoded as a whole; bytes. */
export interface StoredUnit {
  /** In the uncompressed tar. */
  offset: number;
  length: number;
  /** In the blob as it is stored. */
  blobOffset: number;
  blobLength: number;
}

interface Span {
  readonly index: number;
  readonly key: string;
  memory: MemoryEntry | undefined;
  entry: CacheEntry | undefined;
  flight: SpanFlight | undefined;
  loggedAt: number;
  /** A demand read has come to it. */
  wanted: boolean;
}

/** A reader's piece of a span. */
interface Piece {
  dst: Uint8Array;
  /** Byte of the span with which it begins. */
  inside: number;
}

/**
 * A span under way. Its readers do not get its bytes, which may be others a turn
 * later: their pieces are filled when it lands.
 */
class SpanFlight extends SharedFlight<void> {
  readonly urgency = new Urgency("prefetch");
  readonly #pieces = new Set<Piece>();

  /**
   * Waits until the piece is filled.
   *
   * @throws {CancelledError} When the reader's signal is aborted first.
   */
  async fill(piece: Piece, options: ReadOptions): Promise<void> {
    const leave = this.urgency.follow(options);
    this.#pieces.add(piece);
    try {
      await this.join(options.signal);
      invariant(!this.#pieces.has(piece), "a span landed without its reader");
    } finally {
      this.#pieces.delete(piece);
      leave();
    }
  }

  /** Fills what was asked for until now. */
  land(bytes: Uint8Array): void {
    for (const { dst, inside } of this.#pieces) {
      copyBytes(dst, bytes.subarray(inside, inside + dst.length));
    }
    this.#pieces.clear();
    this.resolve();
  }
}

/** The key of a span in the caches when its digest is known: equal spans of different layers meet. */
export function digestKey(digest: Uint8Array): string {
  return `sha256:${toHex(digest)}`;
}

/** See the module's comment. Owns its maker. */
export class SpanSource implements ByteSource {
  readonly size: number;
  readonly #maker: SpanMaker;
  readonly #share: BudgetShare;
  readonly #table: SpanTable;
  readonly #cache: SpanCache;
  readonly #logger: Logger;
  readonly #deadlineMs: number;
  readonly #stats: ReadStats;
  readonly #readahead: SpanReadahead;
  readonly #spans = new Map<number, Span>();
  readonly #flying = new Map<Promise<void>, AbortController>();
  #recent: Span | undefined;
  #closed: Promise<void> | undefined;

  constructor(maker: SpanMaker, options: SpanSourceOptions) {
    this.#maker = maker;
    this.#table = maker.spans;
    this.size = maker.spans.size;
    this.#cache = options.cache;
    this.#share = new BudgetShare(options.cache.budget.limit * GUARANTEED_PART);
    this.#logger = options.logger ?? silentLogger;
    this.#deadlineMs = options.deadlineMs ?? DEFAULT_DEADLINE_MS;
    this.#stats = options.stats ?? new ReadStats();
    const { store, memory } = options.cache;
    this.#readahead = new SpanReadahead(maker.spans, {
      readaheadBytes: options.readaheadBytes,
      memoryBytes: memory.limit,
      storeBytes: store?.sizeBytes,
      fetch: (index) => this.#fetchAhead(index),
    });
  }

  /**
   * About where the blob holds a byte of the tar: at the ends of what is
   * decoded as a whole exactly, between them by proportion.
   */
  storedAt(offset: number): number {
    if (this.size === 0) return 0;
    const unit = this.#maker.unitOf(
      this.#table.find(Math.min(offset, this.size - 1)),
    );
    const share = (offset - unit.offset) / Math.max(1, unit.length);
    return Math.round(unit.blobOffset + share * unit.blobLength);
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    for (let at = 0; at < dst.length;) {
      const span = this.#spanAt(offset + at);
      const inside = offset + at - this.#table.offsetOf(span.index);
      const length = Math.min(
        dst.length - at,
        this.#table.sizeOf(span.index) - inside,
      );
      const whole = at === 0 && length === dst.length;
      const part = whole ? dst : dst.subarray(at, at + length);
      if (!this.#readNow(span, part, inside)) return false;
      if (!span.wanted) this.#wanted(span);
      at += length;
    }
    this.#readahead.note(offset, dst.length);
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
      const span = this.#spanAt(offset + at);
      const inside = offset + at - this.#table.offsetOf(span.index);
      const length = Math.min(
        dst.length - at,
        this.#table.sizeOf(span.index) - inside,
      );
      const part = dst.subarray(at, at + length);
      parts.push(this.#readPart(span, part, inside, options));
      at += length;
    }
    if (priorityOf(options) === "demand") {
      this.#readahead.note(offset, dst.length);
    }
    // All of them, also after a failure: `dst` is ours until none writes to it.
    await allSettled(parts);
  }

  async prefetch(
    offset: number,
    length: number,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    checkRange(this.size, offset, length);
    const parts: Promise<unknown>[] = [];
    for (let at = offset; at < offset + length;) {
      const index = this.#table.find(at);
      const span = this.#span(index);
      if (!this.#isNear(span)) {
        parts.push(this.#flightOf(span).join(options.signal));
      }
      at = this.#table.offsetOf(index) + this.#table.sizeOf(index);
    }
    await allSettled(parts);
  }

  /** What is fetched and decoded to have a byte of the tar. */
  unitAt(offset: number): StoredUnit {
    return this.#maker.unitOf(this.#table.find(offset));
  }

  /**
   * Nothing else is read ahead of readers while somebody prefetches what they
   * are known to want; unless they want something else.
   *
   * @param ranges What will be prefetched; bytes.
   * @returns Ends it.
   */
  followPlan(
    ranges: Iterable<{ offset: number; length: number }>,
  ): () => void {
    return this.#readahead.follow(ranges);
  }

  describe(): SourceDescription {
    return this.#maker.describe();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close(): Promise<void> {
    const running = [...this.#flying];
    for (const [, control] of running) control.abort();
    await Promise.all(running.map(([done]) => done));
    this.#spans.clear();
    await this.#maker.dispose();
  }

  #spanAt(offset: number): Span {
    const recent = this.#recent;
    if (recent) {
      const inside = offset - this.#table.offsetOf(recent.index);
      if (inside >= 0 && inside < this.#table.sizeOf(recent.index)) {
        return recent;
      }
    }
    return this.#recent = this.#span(this.#table.find(offset));
  }

  #span(index: number): Span {
    let span = this.#spans.get(index);
    if (!span) {
      span = {
        index,
        key: this.#maker.keyOf(index),
        memory: undefined,
        entry: undefined,
        flight: undefined,
        loggedAt: -Infinity,
        wanted: false,
      };
      this.#spans.set(index, span);
    }
    return span;
  }

  /** The span's place in memory, if it is there; found under its key when another layer brought it. */
  #memoryOf(span: Span): MemoryEntry | undefined {
    if (span.memory?.bytes) return span.memory;
    return span.memory = this.#cache.memory.get(span.key);
  }

  #entryOf(span: Span): CacheEntry | undefined {
    const known = span.entry;
    if (known && known.state !== "dead") return known;
    const { store } = this.#cache;
    let entry = store?.get(span.key);
    if (entry && entry.size !== this.#table.sizeOf(span.index)) {
      store!.drop(entry);
      entry = undefined;
    }
    return span.entry = entry;
  }

  #readNow(span: Span, dst: Uint8Array, inside: number): boolean {
    const memory = this.#memoryOf(span);
    if (memory) {
      const bytes = memory.bytes!;
      copyBytes(
        dst,
        dst.length === bytes.length
          ? bytes
          : bytes.subarray(inside, inside + dst.length),
      );
      this.#cache.memory.touch(memory);
      return true;
    }
    const entry = this.#entryOf(span);
    return entry !== undefined &&
      this.#cache.store!.preadNow(entry, dst, inside);
  }

  async #readPart(
    span: Span,
    dst: Uint8Array,
    inside: number,
    options: ReadOptions,
  ): Promise<void> {
    const isFirst = !span.wanted && priorityOf(options) === "demand";
    if (this.#readNow(span, dst, inside)) {
      if (isFirst) this.#wanted(span);
      return;
    }
    const entry = this.#entryOf(span);
    if (entry?.state === "ready") {
      if (await this.#cache.store!.pread(entry, dst, inside)) return;
    }
    const reading = this.#flightOf(span).fill({ dst, inside }, options);
    // Behind the span itself.
    if (isFirst) this.#wanted(span);
    await reading;
  }

  /** The flight of a span that is under way, or a new one. */
  #flightOf(span: Span): SpanFlight {
    if (this.#closed) throw closedError();
    if (span.flight) return span.flight;
    const control = new AbortController();
    const flight = new SpanFlight(() => {
      if (span.flight === flight) span.flight = undefined;
      control.abort();
    });
    span.flight = flight;
    const { signal } = control;
    const done = this.#load(span, flight, signal).catch((error) =>
      flight.reject(error)
    ).finally(() => {
      if (span.flight === flight) span.flight = undefined;
      this.#flying.delete(done);
    });
    this.#flying.set(done, control);
    return flight;
  }

  /** Brings a span to memory: from the store if it is there, else made anew and stored. */
  async #load(
    span: Span,
    flight: SpanFlight,
    signal: AbortSignal,
  ): Promise<void> {
    const { memory, store } = this.#cache;
    const entry = this.#entryOf(span);
    const stored = entry && await store!.readAll(entry);
    const { bytes, lease } = stored
      ? { bytes: stored, lease: undefined }
      : await this.#make(span, { signal, urgency: flight.urgency });
    // No turn of others from here to the release: everybody who looks at the
    // bytes later holds the lease, and who comes now finds no flight any more.
    span.memory = memory.set(span.key, bytes, lease);
    if (!stored) {
      const digest = this.#table.digestOf(span.index);
      span.entry = store?.put(span.key, bytes, digest, lease);
    }
    if (span.flight === flight) span.flight = undefined;
    flight.land(bytes);
    lease?.release();
  }

  async #make(
    span: Span,
    { signal, urgency }: LoadOptions,
  ): Promise<MadeSpan> {
    const what = `Span ${span.index} of layer "${this.#maker.name}"`;
    const size = this.#table.sizeOf(span.index);
    const timer = this.#stats.load(urgency);
    let release: (() => void) | undefined;
    try {
      const share = this.#share;
      const { budget } = this.#cache;
      release = await budget.acquire(size, { signal, urgency, share });
      const made = await withDeadline(
        what,
        this.#deadlineMs,
        (inner) =>
          this.#maker.make(span.index, { signal: inner, urgency, timer }),
        signal,
      );
      timer.end(size);
      return made;
    } catch (error) {
      this.#logFailure(span, error);
      throw error;
    } finally {
      timer.end();
      release?.();
    }
  }

  #logFailure(span: Span, error: unknown): void {
    if (!(error instanceof ObdError) || error.code === "cancelled") return;
    const now = performance.now();
    if (now - span.loggedAt < LOG_INTERVAL_MS) return;
    span.loggedAt = now;
    this.#logger.error("span.failed", {
      layer: this.#maker.name,
      span: span.index,
      code: error.code,
      error: error.message,
    });
  }

  /** The first demand read of a span. */
  #wanted(span: Span): void {
    if (span.wanted) return;
    span.wanted = true;
    this.#readahead.wanted(span.index);
  }

  /** Whether reading the span now needs no network and no decoding, or it is on its way. */
  #isNear(span: Span): boolean {
    if (span.flight || this.#memoryOf(span)) return true;
    const state = this.#entryOf(span)?.state;
    return state === "ready" || state === "writing";
  }

  /** Starts a span that nobody asked for, unless it is near; resolves when it came or failed. */
  #fetchAhead(index: number): Promise<void> | undefined {
    if (this.#closed) return undefined;
    const span = this.#span(index);
    if (this.#isNear(span)) return undefined;
    // Nobody is told of a failure: the read that needs the span tries again.
    return this.#flightOf(span).join().then(() => {}, () => {});
  }
}

function closedError(): ObdError {
  return new ObdError("state", "Cannot read: the layer is closed");
}

/**
 * A bounded on-disk store of byte arrays by key, least recently used evicted
 * first. Used for blocks of remote blobs and for decompressed spans.
 * README.md tells the design and why a crash cannot make it serve wrong bytes.
 */

import {
  copyBytes,
  errorText,
  invariant,
  latin1FromBytes,
  type Logger,
  silentLogger,
} from "../../io/mod.ts";
import { CheckAhead } from "./check_ahead.ts";
import { type DataFile, openDataFile } from "./data_file.ts";
import type { CacheEntry, CacheStats } from "./entry.ts";
import { JournalFile } from "./journal_file.ts";
import { type JournalEntry, MAX_KEY } from "./journal.ts";
import { MAX_ENTRY_BYTES, SLOT_SIZE, slotsOf } from "./layout.ts";
import type { Lease } from "./lease.ts";
import { lockDirectory, unlockDirectory } from "./lock.ts";
import { LruList } from "./lru.ts";
import { EntryReader } from "./reader.ts";
import { SlotAllocator } from "./slots.ts";
import { SpaceKeeper } from "./space.ts";
import { EntryWriter } from "./writer.ts";

const DATA = "data";
const INDEX = "index";

const MIN_SLOTS = 16;
/** Slot numbers must fit u32. */
const MAX_SLOTS = 2 ** 32 - 1;
const QUEUE_BYTES = 32 * 1024 * 1024;
const FLUSH_INTERVAL_MS = 5_000;
const RETRY_MS = 10_000;
const CLOSE_DEADLINE_MS = 10_000;

/** Settings of a {@linkcode CacheStore}. */
export interface CacheStoreOptions {
  /** Made if missing. Its files `data`, `index` and `lock` are the cache's; others are left alone. */
  directory: string;
  /** Most bytes of the data file; at least 1 MiB. */
  sizeBytes: number;
  /** Bytes that stay free on the file system; default: a tenth of it, but 1 … 10 GiB. */
  keepFreeBytes?: number | undefined;
  /** Most bytes that wait to be written; more are not stored. */
  queueBytes?: number;
  /** For log lines and statistics, e.g. `"gzip"`. */
  name?: string;
  logger?: Logger;
  /** Retry pause after a full or failing disk, in ms. */
  retryMs?: number;
  /** How often the index is brought to the disk, in ms. */
  flushIntervalMs?: number;
  /** Wraps the data file; for fault injection. */
  wrapFile?: (file: DataFile) => DataFile;
}

/** See the module's comment. One owner per directory. */
export class CacheStore implements AsyncDisposable {
  /** The counters; live. */
  readonly stats: CacheStats = {
    hits: 0,
    hitBytes: 0,
    misses: 0,
    writes: 0,
    writtenBytes: 0,
    skipped: 0,
    evictions: 0,
    evictedBytes: 0,
    corrupt: 0,
  };
  readonly name: string;
  /** Most bytes that are stored. */
  readonly sizeBytes: number;

  readonly #logger: Logger;
  readonly #file: DataFile;
  readonly #lock: Deno.FsFile | undefined;
  readonly #journal: JournalFile | undefined;
  readonly #reader: EntryReader;
  readonly #writer: EntryWriter;
  readonly #flushIntervalMs: number;
  readonly #entries = new Map<string, CacheEntry>();
  readonly #lru = new LruList<CacheEntry>();
  readonly #ahead = new CheckAhead((entry) => this.#check(entry));
  readonly #slots: SlotAllocator;
  #storedBytes = 0;
  #flushTimer: ReturnType<typeof setTimeout> | undefined;
  #flushing: Promise<void> | undefined;
  #indexFailed = false;
  #closed: Promise<void> | undefined;

  private constructor(
    options: CacheStoreOptions,
    slots: SlotAllocator,
    file: DataFile,
    journal: JournalFile | undefined,
    lock: Deno.FsFile | undefined,
  ) {
    this.name = options.name ?? "cache";
    this.sizeBytes = slots.capacity * SLOT_SIZE;
    this.#slots = slots;
    this.#logger = options.logger ?? silentLogger;
    this.#file = file;
    this.#journal = journal;
    this.#lock = lock;
    this.#reader = new EntryReader(
      file,
      this.name,
      this.#logger,
      this.stats,
      (entry) => this.drop(entry),
    );
    this.#writer = new EntryWriter({
      file,
      slots,
      space: new SpaceKeeper(file, options.keepFreeBytes),
      host: {
        evictOldest: () => this.#evictOldest(),
        drop: (entry) => this.drop(entry),
        dropStored: () => this.#dropStored(),
        written: (entry) => this.#written(entry),
      },
      name: this.name,
      logger: this.#logger,
      stats: this.stats,
      queueLimit: options.queueBytes ?? QUEUE_BYTES,
      retryMs: options.retryMs ?? RETRY_MS,
    });
    this.#flushIntervalMs = options.flushIntervalMs ?? FLUSH_INTERVAL_MS;
  }

  /**
   * Opens a directory's cache with what it holds.
   *
   * @throws {ObdError} Code `conflict` when another process owns the directory.
   */
  static async open(options: CacheStoreOptions): Promise<CacheStore> {
    const { directory } = options;
    const capacity = slotCapacity(options.sizeBytes);
    await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
    const lock = await lockDirectory(directory);
    let file: DataFile | undefined;
    try {
      file = await openDataFile(`${directory}/${DATA}`, directory);
      if (options.wrapFile) file = options.wrapFile(file);
      const journal = new JournalFile(`${directory}/${INDEX}`, SLOT_SIZE);
      const held = slotsOf(await file.size());
      const known = await journal.load({
        slotLimit: Math.min(held, capacity),
        maxEntrySize: MAX_ENTRY_BYTES,
      }, (reason) =>
        options.logger?.warn("cache.index-ignored", {
          cache: options.name ?? "cache",
          path: `${directory}/${INDEX}`,
          reason,
        }));
      const used = known.flatMap((e) => e.runs).sort((a, b) =>
        a.start - b.start
      );
      const slots = new SlotAllocator(capacity, used);
      // A cache that was made smaller, or whose index is lost, gives the storage
      // back at once: nobody would know of it when the disk runs low.
      if (held > slots.end) await file.truncate(slots.end * SLOT_SIZE);
      const store = new CacheStore(options, slots, file, journal, lock);
      store.#adopt(known);
      return store;
    } catch (error) {
      await file?.close();
      unlockDirectory(lock);
      throw error;
    }
  }

  /**
   * Opens an empty cache that leaves nothing behind, also after a crash: its
   * file has no name. For commands beside a running owner.
   *
   * @param options `directory` is where the nameless file lives.
   */
  static async temporary(options: CacheStoreOptions): Promise<CacheStore> {
    const capacity = slotCapacity(options.sizeBytes);
    const path = await Deno.makeTempFile({
      dir: options.directory,
      prefix: ".obd-cache-",
    });
    let file: DataFile;
    try {
      file = await openDataFile(path, options.directory);
    } finally {
      await Deno.remove(path);
    }
    if (options.wrapFile) file = options.wrapFile(file);
    const slots = new SlotAllocator(capacity);
    return new CacheStore(options, slots, file, undefined, undefined);
  }

  /** Entries held now. */
  get entryCount(): number {
    return this.#entries.size;
  }

  /** Bytes of the entries held now. */
  get storedBytes(): number {
    return this.#storedBytes;
  }

  /** Looks an entry up and marks it as used. */
  get(key: string): CacheEntry | undefined {
    const entry = this.#entries.get(key);
    if (entry) this.#lru.touch(entry);
    else this.stats.misses++;
    return entry;
  }

  /** Looks an entry up that may be of no use: nothing is counted or marked. */
  peek(key: string): CacheEntry | undefined {
    return this.#entries.get(key);
  }

  /** Whether {@linkcode put} would store `bytes` bytes now. */
  accepts(bytes: number): boolean {
    return !this.#closed && this.#writer.accepts(bytes);
  }

  /** Whether {@linkcode put} would store `bytes` bytes now and evict nothing for them. */
  hasRoomFor(bytes: number): boolean {
    return !this.#closed && this.#writer.hasRoomFor(bytes);
  }

  /**
   * Stores `bytes` in the background; they are readable at once.
   *
   * @param bytes 1 byte … 128 MiB; borrowed until written, not to be changed.
   * @param digest Their SHA-256 where the caller has checked it already.
   * @param lease Of the bytes, where their memory is used again.
   * @returns The entry, or undefined when it is not stored: full queue, full
   * or failing disk.
   */
  put(
    key: string,
    bytes: Uint8Array,
    digest?: Uint8Array,
    lease?: Lease,
  ): CacheEntry | undefined {
    invariant(key.length > 0 && key.length <= MAX_KEY, "cache key length");
    const known = this.#entries.get(key);
    if (known) return known;
    const fits = bytes.length > 0 && bytes.length <= MAX_ENTRY_BYTES;
    if (!fits || !this.accepts(bytes.length)) {
      this.stats.skipped++;
      return undefined;
    }
    const entry: CacheEntry = {
      key,
      size: bytes.length,
      state: "writing",
      digest: digest && latin1FromBytes(digest),
      runs: [],
      bytes,
      lease,
      check: undefined,
      following: undefined,
      older: undefined,
      newer: undefined,
    };
    lease?.retain();
    this.#entries.set(key, entry);
    this.#lru.add(entry);
    this.#storedBytes += entry.size;
    this.#writer.enqueue(entry);
    return entry;
  }

  /**
   * Fills `dst` from byte `offset` of an entry if that needs no waiting.
   *
   * @param offset With `dst.length` inside the entry.
   */
  preadNow(entry: CacheEntry, dst: Uint8Array, offset: number): boolean {
    if (entry.state === "writing") {
      copyBytes(dst, entry.bytes!.subarray(offset, offset + dst.length));
    } else if (
      entry.state !== "ready" || !this.#reader.preadNow(entry, dst, offset)
    ) return false;
    this.#hit(entry, dst.length);
    return true;
  }

  /**
   * Fills `dst` from byte `offset` of an entry.
   *
   * @returns False when the entry is lost (evicted, damaged, unreadable); the
   * content of `dst` is undefined then and the caller turns to the source.
   */
  async pread(
    entry: CacheEntry,
    dst: Uint8Array,
    offset: number,
  ): Promise<boolean> {
    if (this.preadNow(entry, dst, offset)) return true;
    if (entry.state === "unchecked") {
      const bytes = await this.readAll(entry);
      if (!bytes) return false;
      dst.set(bytes.subarray(offset, offset + dst.length));
      return true;
    }
    if (!await this.#reader.pread(entry, dst, offset)) return false;
    this.#hit(entry, dst.length);
    return true;
  }

  /**
   * The whole entry, checked against its digest if that was not done yet;
   * undefined when lost. Not to be changed: others may read the same.
   */
  async readAll(entry: CacheEntry): Promise<Uint8Array | undefined> {
    if (entry.state === "writing") {
      // What is leased may be used again as soon as it is written.
      return entry.lease ? entry.bytes!.slice() : entry.bytes;
    }
    if (entry.state === "unchecked") {
      const checking = this.#check(entry);
      this.#ahead.reached(entry);
      const bytes = await checking;
      if (bytes) this.#hit(entry, bytes.length);
      return bytes;
    }
    const bytes = new Uint8Array(entry.size);
    return await this.pread(entry, bytes, 0) ? bytes : undefined;
  }

  /** Forgets an entry; dropping it again does nothing. */
  drop(entry: CacheEntry): void {
    if (entry.state === "dead") return;
    const writing = entry.state === "writing";
    entry.state = "dead";
    entry.bytes = undefined;
    this.#entries.delete(entry.key);
    this.#lru.remove(entry);
    this.#storedBytes -= entry.size;
    // The writer may be at it: it frees the slots when its write has ended.
    if (writing) return;
    this.#slots.release(entry.runs);
    this.#journal?.removed(entry.key);
    this.#scheduleFlush();
  }

  /**
   * Leaves `bytes` of the bound to files that are not the cache's own; entries
   * are evicted in the background where they no longer fit.
   */
  reserve(bytes: number): void {
    this.#slots.reserved = Math.min(slotsOf(bytes), this.#slots.capacity);
    this.#writer.shrink();
  }

  /** Evicts entries of `bytes` bytes together, if it has so many, and gives their storage back to the file system. */
  async giveBack(bytes: number): Promise<void> {
    if (!this.#closed) await this.#writer.giveBack(bytes);
  }

  /** Resolves when everything queued so far is in the file or given up. */
  settled(): Promise<void> {
    return this.#writer.settled();
  }

  /** Writes out what is queued and the index, within a deadline; then lets go of the directory. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close(): Promise<void> {
    clearTimeout(this.#flushTimer);
    const timer = setTimeout(
      () => this.#writer.abandon(),
      CLOSE_DEADLINE_MS,
    );
    await this.settled();
    clearTimeout(timer);
    await this.#flushing;
    await this.#flush(true);
    for (const entry of this.#lru) entry.state = "dead";
    this.#entries.clear();
    await this.#file.close();
    if (this.#lock) unlockDirectory(this.#lock);
  }

  /** @param known Least recently used first. */
  #adopt(known: readonly JournalEntry[]): void {
    let last: CacheEntry | undefined;
    for (const one of known) {
      const entry: CacheEntry = {
        ...one,
        state: "unchecked",
        bytes: undefined,
        lease: undefined,
        check: undefined,
        following: undefined,
        older: undefined,
        newer: undefined,
      };
      if (last) last.following = entry;
      last = entry;
      this.#entries.set(entry.key, entry);
      this.#lru.add(entry);
      this.#storedBytes += entry.size;
    }
  }

  #check(entry: CacheEntry): Promise<Uint8Array | undefined> {
    return entry.check ??= this.#reader.check(entry).finally(() =>
      entry.check = undefined
    );
  }

  #hit(entry: CacheEntry, bytes: number): void {
    this.stats.hits++;
    this.stats.hitBytes += bytes;
    if (entry.state !== "dead") this.#lru.touch(entry);
    this.#ahead.read(entry);
  }

  /** Evicts the least recently used entry that is in the file; returns its bytes, 0 if there is none. */
  #evictOldest(): number {
    for (const entry of this.#lru) {
      if (entry.state === "writing") continue;
      this.stats.evictions++;
      this.stats.evictedBytes += entry.size;
      this.drop(entry);
      return entry.size;
    }
    return 0;
  }

  #dropStored(): void {
    for (const entry of [...this.#lru]) {
      if (entry.state !== "writing") this.drop(entry);
    }
    this.#journal?.forget();
  }

  #written(entry: CacheEntry): void {
    this.#journal?.added(journalEntry(entry));
    this.#scheduleFlush();
  }

  // ---- the index -----------------------------------------------------------

  #scheduleFlush(): void {
    if (!this.#journal || this.#closed || this.#flushTimer !== undefined) {
      return;
    }
    this.#flushTimer = setTimeout(async () => {
      this.#flushing = this.#flush(false);
      await this.#flushing;
      // Not before: a slow disk takes longer than the interval, and of two at
      // once each would write into what the other one writes.
      this.#flushTimer = undefined;
      if (this.#journal?.dirty) this.#scheduleFlush();
    }, this.#flushIntervalMs);
    Deno.unrefTimer(this.#flushTimer);
  }

  async #flush(final: boolean): Promise<void> {
    if (!this.#journal) return;
    try {
      await this.#journal.flush(
        () => this.#writer.sync(),
        () => this.#liveEntries(),
        final,
      );
      this.#indexFailed = false;
    } catch (error) {
      if (!this.#indexFailed) {
        this.#logger.warn("cache.index-not-written", {
          cache: this.name,
          error: errorText(error),
        });
      }
      this.#indexFailed = true;
    }
  }

  /** As {@linkcode JournalFile.flush} wants them. */
  #liveEntries(): Iterable<JournalEntry | undefined> {
    // Not one after the other: one that is used moves to the end, again and again.
    return [...this.#lru].values().map((entry) =>
      entry.state === "ready" || entry.state === "unchecked"
        ? journalEntry(entry)
        : undefined
    );
  }
}

function journalEntry(entry: CacheEntry): JournalEntry {
  return {
    key: entry.key,
    size: entry.size,
    digest: entry.digest!,
    runs: entry.runs,
  };
}

function slotCapacity(sizeBytes: number): number {
  const slots = Math.floor(sizeBytes / SLOT_SIZE);
  if (!(slots >= MIN_SLOTS)) {
    throw new RangeError(
      `Cannot open a cache of ${sizeBytes} bytes: at least ${
        MIN_SLOTS * SLOT_SIZE
      } are needed`,
    );
  }
  return Math.min(slots, MAX_SLOTS);
}

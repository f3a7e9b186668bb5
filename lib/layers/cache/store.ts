/**
 * A bounded on-disk store of byte arrays by key, least recently used evicted
 * first. Used for blocks of remote blobs and for decompressed spans.
 * README.md tells the design and why a crash cannot make it serve wrong bytes.
 */

import { createHash } from "node:crypto";
import {
  equalBytes,
  errorText,
  invariant,
  type Logger,
  ObdError,
  silentLogger,
  toHex,
} from "../../io/mod.ts";
import { type DataFile, openDataFile } from "./data_file.ts";
import type { CacheEntry, CacheStats } from "./entry.ts";
import { JournalFile } from "./journal_file.ts";
import { type JournalEntry, MAX_KEY, MAX_RUNS } from "./journal.ts";
import { LruList } from "./lru.ts";
import { SlotAllocator } from "./slots.ts";
import { SpaceKeeper } from "./space.ts";

const DATA = "data";
const INDEX = "index";
const LOCK = "lock";

const SLOT_SIZE = 64 * 1024;
const MIN_SLOTS = 16;
/** Slot numbers must fit u32. */
const MAX_SLOTS = 2 ** 32 - 1;
const MAX_ENTRY_BYTES = 64 * 1024 * 1024;
const QUEUE_BYTES = 32 * 1024 * 1024;
const FLUSH_INTERVAL_MS = 5_000;
const RETRY_MS = 10_000;
const CLOSE_DEADLINE_MS = 10_000;
/** Above this a digest is computed off the thread: more CPU, but no stall. */
const ASYNC_DIGEST_BYTES = 512 * 1024;

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
  readonly #space: SpaceKeeper;
  readonly #queueLimit: number;
  readonly #retryMs: number;
  readonly #flushIntervalMs: number;
  readonly #entries = new Map<string, CacheEntry>();
  readonly #lru = new LruList<CacheEntry>();
  #slots: SlotAllocator;
  #queue: CacheEntry[] = [];
  #queueBytes = 0;
  #storedBytes = 0;
  #writer: Promise<void> | undefined;
  #pausedUntil = 0;
  #flushTimer: ReturnType<typeof setTimeout> | undefined;
  #flushing: Promise<void> | undefined;
  #unsynced = false;
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
    this.#space = new SpaceKeeper(file, options.keepFreeBytes);
    this.#queueLimit = options.queueBytes ?? QUEUE_BYTES;
    this.#retryMs = options.retryMs ?? RETRY_MS;
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
      });
      // A cache that was made smaller gives the storage back at once.
      if (held > capacity) await file.truncate(capacity * SLOT_SIZE);
      const used = known.flatMap((e) => e.runs).sort((a, b) =>
        a.start - b.start
      );
      const slots = new SlotAllocator(capacity, used);
      const store = new CacheStore(options, slots, file, journal, lock);
      for (const entry of known) store.#adopt(entry);
      return store;
    } catch (error) {
      await file?.close();
      lock.close();
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

  /**
   * Stores `bytes` in the background; they are readable at once.
   *
   * @param bytes 1 byte … 64 MiB; borrowed until written, not to be changed.
   * @param digest Their SHA-256 where the caller has checked it already.
   * @returns The entry, or undefined when it is not stored: full queue, full
   * or failing disk.
   */
  put(
    key: string,
    bytes: Uint8Array,
    digest?: Uint8Array,
  ): CacheEntry | undefined {
    invariant(key.length > 0 && key.length <= MAX_KEY, "cache key length");
    const known = this.#entries.get(key);
    if (known) return known;
    const fits = bytes.length > 0 && bytes.length <= MAX_ENTRY_BYTES &&
      slotsOf(bytes.length) <= this.#slots.capacity / 4;
    if (
      !fits || this.#closed || this.#now() < this.#pausedUntil ||
      this.#queueBytes + bytes.length > this.#queueLimit
    ) {
      this.stats.skipped++;
      return undefined;
    }
    const entry: CacheEntry = {
      key,
      size: bytes.length,
      state: "writing",
      digest,
      runs: [],
      bytes,
      check: undefined,
      older: undefined,
      newer: undefined,
    };
    this.#entries.set(key, entry);
    this.#lru.add(entry);
    this.#storedBytes += entry.size;
    this.#queue.push(entry);
    this.#queueBytes += entry.size;
    this.#writer ??= this.#writeAll().finally(() => this.#writer = undefined);
    return entry;
  }

  /**
   * Fills `dst` from byte `offset` of an entry if that needs no waiting.
   *
   * @param offset With `dst.length` inside the entry.
   */
  preadNow(entry: CacheEntry, dst: Uint8Array, offset: number): boolean {
    if (entry.state === "writing") {
      dst.set(entry.bytes!.subarray(offset, offset + dst.length));
    } else if (
      entry.state !== "ready" || !this.#preadRunsNow(entry, dst, offset)
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
    if (!await this.#preadRuns(entry, dst, offset)) return false;
    this.#hit(entry, dst.length);
    return true;
  }

  /** The whole entry, checked against its digest if that was not done yet; undefined when lost. */
  async readAll(entry: CacheEntry): Promise<Uint8Array | undefined> {
    if (entry.state === "writing") return entry.bytes;
    if (entry.state === "unchecked") {
      entry.check ??= this.#check(entry).finally(() => entry.check = undefined);
      const bytes = await entry.check;
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

  /** Resolves when everything queued so far is in the file or given up. */
  async settled(): Promise<void> {
    while (this.#writer) await this.#writer;
  }

  /** Writes out what is queued and the index, within a deadline; then lets go of the directory. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close(): Promise<void> {
    clearTimeout(this.#flushTimer);
    const timer = setTimeout(() => {
      for (const entry of this.#queue.splice(0)) this.drop(entry);
    }, CLOSE_DEADLINE_MS);
    await this.settled();
    clearTimeout(timer);
    await this.#flushing;
    await this.#flush(true);
    for (const entry of this.#lru) entry.state = "dead";
    this.#entries.clear();
    await this.#file.close();
    this.#lock?.close();
  }

  #adopt(known: JournalEntry): void {
    const entry: CacheEntry = {
      ...known,
      state: "unchecked",
      bytes: undefined,
      check: undefined,
      older: undefined,
      newer: undefined,
    };
    this.#entries.set(entry.key, entry);
    this.#lru.add(entry);
    this.#storedBytes += entry.size;
  }

  #hit(entry: CacheEntry, bytes: number): void {
    this.stats.hits++;
    this.stats.hitBytes += bytes;
    if (entry.state !== "dead") this.#lru.touch(entry);
  }

  // ---- reading -------------------------------------------------------------

  #preadRunsNow(entry: CacheEntry, dst: Uint8Array, offset: number): boolean {
    const [first] = entry.runs;
    if (entry.runs.length === 1) {
      return this.#file.preadNow(dst, first!.start * SLOT_SIZE + offset);
    }
    for (const piece of piecesOf(entry, offset, dst.length)) {
      const part = dst.subarray(piece.at, piece.at + piece.length);
      if (!this.#file.preadNow(part, piece.offset)) return false;
    }
    return true;
  }

  async #preadRuns(
    entry: CacheEntry,
    dst: Uint8Array,
    offset: number,
  ): Promise<boolean> {
    if (entry.state === "dead") return false;
    try {
      for (const piece of piecesOf(entry, offset, dst.length)) {
        const part = dst.subarray(piece.at, piece.at + piece.length);
        await this.#file.pread(part, piece.offset);
      }
    } catch (error) {
      if (!isDead(entry)) {
        this.#logger.warn("cache.unreadable", {
          cache: this.name,
          key: entry.key,
          error: errorText(error),
        });
        this.drop(entry);
      }
      return false;
    }
    // Evicted meanwhile: the slots may hold something else already.
    return !isDead(entry);
  }

  async #check(entry: CacheEntry): Promise<Uint8Array | undefined> {
    const bytes = new Uint8Array(entry.size);
    if (!await this.#preadRuns(entry, bytes, 0)) return undefined;
    const got = await sha256(bytes);
    if (entry.state === "dead") return undefined;
    if (equalBytes(got, entry.digest!)) {
      entry.state = "ready";
      return bytes;
    }
    this.stats.corrupt++;
    this.#logger.warn("cache.corrupt", {
      cache: this.name,
      key: entry.key,
      want: toHex(entry.digest!),
      got: toHex(got),
    });
    this.drop(entry);
    return undefined;
  }

  // ---- writing -------------------------------------------------------------

  async #writeAll(): Promise<void> {
    for (;;) {
      const entry = this.#queue.shift();
      if (!entry) return;
      try {
        if (entry.state === "writing") await this.#write(entry);
      } catch (error) {
        this.#giveUp(entry, "cache.write-failed", errorText(error));
      } finally {
        this.#queueBytes -= entry.size;
      }
    }
  }

  async #write(entry: CacheEntry): Promise<void> {
    const bytes = entry.bytes!;
    const digest = entry.digest ?? await sha256(bytes);
    const need = slotsOf(entry.size);
    if (!await this.#makeRoom(need)) {
      return this.#giveUp(entry, "cache.full", "no space to use");
    }
    const runs = this.#slots.allocate(need, MAX_RUNS);
    if (!runs) return this.#skip(entry);
    this.#unsynced = true;
    try {
      let at = 0;
      for (const run of runs) {
        const end = Math.min(at + run.count * SLOT_SIZE, bytes.length);
        await this.#file.pwrite(bytes.subarray(at, end), run.start * SLOT_SIZE);
        at = end;
      }
    } catch (error) {
      this.#slots.release(runs);
      throw error;
    }
    this.#space.wrote(entry.size);
    if (entry.state !== "writing") return this.#slots.release(runs);
    entry.digest = digest;
    entry.runs = runs;
    entry.state = "ready";
    entry.bytes = undefined;
    this.stats.writes++;
    this.stats.writtenBytes += entry.size;
    if (this.#pausedUntil > 0) {
      this.#pausedUntil = 0;
      this.#logger.info("cache.storing-again", { cache: this.name });
    }
    this.#journal?.added({ key: entry.key, size: entry.size, digest, runs });
    this.#scheduleFlush();
  }

  /** Evicts until `need` slots are free, in the file and on the file system. */
  async #makeRoom(need: number): Promise<boolean> {
    while (this.#slots.available < need) if (!this.#evictOldest()) return false;
    const needBytes = need * SLOT_SIZE;
    let missing = await this.#space.missing(needBytes);
    while (missing > 0) {
      let given = 0;
      while (given < missing) {
        const evicted = this.#evictOldest();
        if (evicted === 0) break;
        given += evicted;
      }
      await this.#punchFree();
      missing = await this.#space.missing(needBytes, true);
      if (given === 0) break;
    }
    return missing <= 0;
  }

  /** Gives the storage of all free slots back; only the writer allocates, so none is taken meanwhile. */
  async #punchFree(): Promise<void> {
    let could = true;
    for (const run of [...this.#slots.freeRuns]) {
      could = await this.#file.punch(
        run.start * SLOT_SIZE,
        run.count * SLOT_SIZE,
      ) && could;
    }
    // Without hole punching the file can only be given back whole.
    if (!could) await this.#reset("cannot give storage back piecewise");
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

  #skip(entry: CacheEntry): void {
    this.stats.skipped++;
    this.drop(entry);
  }

  /** Stops storing for a while; reads go on from the source. */
  #giveUp(entry: CacheEntry, event: string, error: string): void {
    if (this.#pausedUntil === 0) {
      this.#logger.warn(event, {
        cache: this.name,
        error,
        retrySeconds: this.#retryMs / 1000,
      });
    }
    this.#pausedUntil = this.#now() + this.#retryMs;
    this.#skip(entry);
    for (const queued of this.#queue) this.#skip(queued);
  }

  /** Drops everything that is in the file. */
  async #reset(reason: string): Promise<void> {
    this.#logger.warn("cache.reset", { cache: this.name, reason });
    for (const entry of [...this.#lru]) {
      if (entry.state !== "writing") this.drop(entry);
    }
    this.#journal?.forget();
    this.#slots = new SlotAllocator(this.#slots.capacity);
    await this.#file.truncate(0);
  }

  // ---- the index -----------------------------------------------------------

  #scheduleFlush(): void {
    if (!this.#journal || this.#closed || this.#flushTimer !== undefined) {
      return;
    }
    this.#flushTimer = setTimeout(() => {
      this.#flushTimer = undefined;
      this.#flushing = this.#flush(false).finally(() =>
        this.#flushing = undefined
      );
    }, this.#flushIntervalMs);
    Deno.unrefTimer(this.#flushTimer);
  }

  async #flush(final: boolean): Promise<void> {
    if (!this.#journal) return;
    try {
      await this.#journal.flush(
        () => this.#syncData(),
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
      if (!final) this.#scheduleFlush();
    }
  }

  /**
   * Brings the data to the disk. Durability is not the point (an entry that a
   * power loss tore is found by its digest): a failed write-back is. The kernel
   * then forgets the dirty pages and later reads return what was there before,
   * so everything in the file is dropped.
   */
  async #syncData(): Promise<void> {
    if (!this.#unsynced) return;
    this.#unsynced = false;
    try {
      await this.#file.sync();
    } catch (error) {
      for (const entry of this.#queue.splice(0)) {
        this.#queueBytes -= entry.size;
        this.#skip(entry);
      }
      await this.settled();
      await this.#reset(`write-back failed: ${errorText(error)}`);
      throw error;
    }
  }

  *#liveEntries(): Generator<JournalEntry> {
    for (const entry of this.#lru) {
      if (entry.state !== "ready" && entry.state !== "unchecked") continue;
      yield {
        key: entry.key,
        size: entry.size,
        digest: entry.digest!,
        runs: [...entry.runs],
      };
    }
  }

  #now(): number {
    return performance.now();
  }
}

/** The state as it is now: it changes across awaits, which narrowing does not see. */
function isDead(entry: CacheEntry): boolean {
  return entry.state === "dead";
}

function slotsOf(bytes: number): number {
  return Math.ceil(bytes / SLOT_SIZE);
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

/** The pieces of the data file that hold bytes `[offset, offset + length)` of an entry. */
function* piecesOf(
  entry: CacheEntry,
  offset: number,
  length: number,
): Generator<{ offset: number; at: number; length: number }> {
  let start = 0;
  let at = 0;
  for (const run of entry.runs) {
    const end = start + run.count * SLOT_SIZE;
    if (at < length && offset + at < end) {
      const inside = offset + at - start;
      const take = Math.min(length - at, end - offset - at);
      yield { offset: run.start * SLOT_SIZE + inside, at, length: take };
      at += take;
    }
    start = end;
  }
}

/** An exclusive lock that the kernel takes back when this process ends, however it ends. */
async function lockDirectory(directory: string): Promise<Deno.FsFile> {
  const path = `${directory}/${LOCK}`;
  const lock = await Deno.open(path, {
    read: true,
    write: true,
    create: true,
    mode: 0o600,
  });
  try {
    if (await lock.tryLock(true)) {
      await lock.truncate(0);
      await lock.write(new TextEncoder().encode(`${Deno.pid}\n`));
      return lock;
    }
    const owner = (await Deno.readTextFile(path).catch(() => "")).trim();
    throw new ObdError(
      "conflict",
      `Cannot use cache directory "${directory}": process ${
        /^\d{1,10}$/.test(owner) ? owner : "unknown"
      } uses it`,
    );
  } catch (error) {
    lock.close();
    throw error;
  }
}

async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  if (bytes.length <= ASYNC_DIGEST_BYTES || isShared(bytes)) {
    return createHash("sha256").update(bytes).digest();
  }
  return new Uint8Array(
    await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>),
  );
}

/** WebCrypto refuses shared memory. */
function isShared(bytes: Uint8Array): boolean {
  return bytes.buffer instanceof SharedArrayBuffer;
}

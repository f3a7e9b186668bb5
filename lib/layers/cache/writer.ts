/** Brings entries to the data file, in the background. */

import {
  errorText,
  latin1FromBytes,
  type Logger,
  ShrunkFileError,
} from "../../io/mod.ts";
import type { DataFile } from "./data_file.ts";
import { sha256 } from "./digest.ts";
import type { CacheEntry, CacheStats } from "./entry.ts";
import { MAX_RUNS } from "./journal.ts";
import { SLOT_SIZE, slotsOf } from "./layout.ts";
import type { SlotAllocator } from "./slots.ts";
import type { SpaceKeeper } from "./space.ts";

/** What the writer needs of its store. */
export interface WriterHost {
  /** Evicts the least recently used entry that is in the file; returns its bytes, 0 if there is none. */
  evictOldest(): number;
  /** Forgets an entry. */
  drop(entry: CacheEntry): void;
  /** Forgets every entry that is in the file, and the index of them. */
  dropStored(): void;
  /** An entry is in the file now. */
  written(entry: CacheEntry): void;
}

/**
 * The write side of a {@linkcode CacheStore}: one write at a time, a bounded
 * queue, and the only one that takes slots or empties the file, so that nothing
 * moves under it.
 */
export class EntryWriter {
  readonly #file: DataFile;
  readonly #slots: SlotAllocator;
  readonly #space: SpaceKeeper;
  readonly #host: WriterHost;
  readonly #name: string;
  readonly #logger: Logger;
  readonly #stats: CacheStats;
  readonly #queueLimit: number;
  readonly #retryMs: number;
  #queue: CacheEntry[] = [];
  #queueBytes = 0;
  #running: Promise<void> | undefined;
  #resetReason: string | undefined;
  #pausedUntil = 0;
  #unsynced = false;
  /** The file system had too little space when it was last asked. */
  #isTight = false;
  #shrinks = false;
  /** Bytes that were asked back, and who waits for them. */
  #askedBack = 0;
  #given: PromiseWithResolvers<void> | undefined;

  constructor(options: {
    file: DataFile;
    slots: SlotAllocator;
    space: SpaceKeeper;
    host: WriterHost;
    name: string;
    logger: Logger;
    stats: CacheStats;
    queueLimit: number;
    retryMs: number;
  }) {
    this.#file = options.file;
    this.#slots = options.slots;
    this.#space = options.space;
    this.#host = options.host;
    this.#name = options.name;
    this.#logger = options.logger;
    this.#stats = options.stats;
    this.#queueLimit = options.queueLimit;
    this.#retryMs = options.retryMs;
  }

  /** Whether an entry of `bytes` would be taken now. */
  accepts(bytes: number): boolean {
    return performance.now() >= this.#pausedUntil &&
      this.#queueBytes + bytes <= this.#queueLimit &&
      slotsOf(bytes) <= this.#slots.capacity / 4;
  }

  /** Whether an entry of `bytes` would be taken now, and nothing evicted for it. */
  hasRoomFor(bytes: number): boolean {
    return this.accepts(bytes) && !this.#isTight &&
      this.#slots.available >= slotsOf(this.#queueBytes + bytes);
  }

  /** Queues an entry in state `writing`. What it leases is released when it was written or given up. */
  enqueue(entry: CacheEntry): void {
    this.#queue.push(entry);
    this.#queueBytes += entry.size;
    this.#start();
  }

  /** Evicts and gives back what is over the bound. */
  shrink(): void {
    if (this.#slots.available >= 0) return;
    this.#shrinks = true;
    this.#start();
  }

  /** Evicts `bytes` bytes, and gives back the storage of all that is free. */
  giveBack(bytes: number): Promise<void> {
    this.#askedBack += bytes;
    this.#shrinks = true;
    const { promise } = this.#given ??= Promise.withResolvers();
    this.#start();
    return promise;
  }

  /** Resolves when everything queued so far is in the file or given up. */
  async settled(): Promise<void> {
    while (this.#running) await this.#running;
  }

  /** Gives up what has not been begun. */
  abandon(): void {
    for (const entry of this.#queue) this.#skip(entry);
  }

  /**
   * Brings the data to the disk. Durability is not the point (an entry that a
   * power loss tore is found by its digest): a failed write-back is. The kernel
   * then forgets the dirty pages and later reads return what was there before,
   * so everything in the file is dropped.
   */
  async sync(): Promise<void> {
    if (!this.#unsynced) return;
    this.#unsynced = false;
    try {
      await this.#file.sync();
    } catch (error) {
      this.#resetReason = `write-back failed: ${errorText(error)}`;
      this.#start();
      await this.settled();
      throw error;
    }
  }

  #start(): void {
    this.#running ??= this.#writeAll().finally(() => {
      this.#running = undefined;
      if (
        this.#queue.length > 0 || this.#resetReason !== undefined ||
        this.#shrinks
      ) {
        this.#start();
      }
    });
  }

  async #writeAll(): Promise<void> {
    for (;;) {
      const reason = this.#resetReason;
      this.#resetReason = undefined;
      if (reason !== undefined) await this.#reset(reason);
      if (this.#shrinks) await this.#shrink();
      const entry = this.#queue.shift();
      if (!entry) return;
      try {
        if (entry.state === "writing") await this.#write(entry);
      } catch (error) {
        this.#giveUp(entry, "cache.write-failed", errorText(error));
      } finally {
        this.#queueBytes -= entry.size;
        // Only here, where no write of it runs: an entry that was dropped
        // meanwhile is in the queue, or being written, all the same.
        const { lease } = entry;
        entry.lease = undefined;
        lease?.release();
      }
    }
  }

  async #write(entry: CacheEntry): Promise<void> {
    const bytes = entry.bytes!;
    const digest = entry.digest ?? latin1FromBytes(await sha256(bytes));
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
      if (error instanceof ShrunkFileError) {
        this.#resetReason = errorText(error);
      }
      throw error;
    }
    this.#space.wrote(entry.size);
    if (entry.state !== "writing") return this.#slots.release(runs);
    entry.digest = digest;
    entry.runs = runs;
    entry.state = "ready";
    entry.bytes = undefined;
    this.#stats.writes++;
    this.#stats.writtenBytes += entry.size;
    if (this.#pausedUntil > 0) {
      this.#pausedUntil = 0;
      this.#logger.info("cache.storing-again", { cache: this.#name });
    }
    this.#host.written(entry);
  }

  async #shrink(): Promise<void> {
    const given = this.#given;
    let missing = this.#askedBack;
    this.#shrinks = false;
    this.#given = undefined;
    this.#askedBack = 0;
    while (this.#slots.available < 0 || missing > 0) {
      const evicted = this.#host.evictOldest();
      if (evicted === 0) break;
      missing -= evicted;
    }
    await this.#punchFree();
    given?.resolve();
  }

  /** Evicts until `need` slots are free, in the file and on the file system. */
  async #makeRoom(need: number): Promise<boolean> {
    while (this.#slots.available < need) {
      if (!this.#host.evictOldest()) return false;
    }
    const needBytes = need * SLOT_SIZE;
    let missing = await this.#space.missing(needBytes);
    this.#isTight = missing > 0;
    while (missing > 0) {
      let given = 0;
      while (given < missing) {
        const evicted = this.#host.evictOldest();
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

  #skip(entry: CacheEntry): void {
    this.#stats.skipped++;
    this.#host.drop(entry);
  }

  /** Stops storing for a while; reads go on from the source. */
  #giveUp(entry: CacheEntry, event: string, error: string): void {
    if (this.#pausedUntil === 0) {
      this.#logger.warn(event, {
        cache: this.#name,
        error,
        retrySeconds: this.#retryMs / 1000,
      });
    }
    this.#pausedUntil = performance.now() + this.#retryMs;
    this.#skip(entry);
    for (const queued of this.#queue) this.#skip(queued);
  }

  /** Empties the file. */
  async #reset(reason: string): Promise<void> {
    this.#logger.warn("cache.reset", { cache: this.#name, reason });
    this.#host.dropStored();
    this.#slots.clear();
    try {
      await this.#file.truncate(0);
    } catch (error) {
      this.#logger.warn("cache.not-emptied", {
        cache: this.#name,
        error: errorText(error),
      });
    }
  }
}

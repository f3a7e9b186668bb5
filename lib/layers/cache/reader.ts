/** Reads entries back from the data file. */

import {
  bytesFromLatin1,
  errorText,
  latin1FromBytes,
  type Logger,
  toHex,
} from "../../io/mod.ts";
import type { DataFile } from "./data_file.ts";
import { sha256 } from "./digest.ts";
import type { CacheEntry, CacheStats } from "./entry.ts";
import { piecesOf, SLOT_SIZE } from "./layout.ts";

/** The read side of a {@linkcode CacheStore}; entries are in the file. */
export class EntryReader {
  readonly #file: DataFile;
  readonly #name: string;
  readonly #logger: Logger;
  readonly #stats: CacheStats;
  readonly #drop: (entry: CacheEntry) => void;

  /** @param drop Forgets an entry that turned out to be lost. */
  constructor(
    file: DataFile,
    name: string,
    logger: Logger,
    stats: CacheStats,
    drop: (entry: CacheEntry) => void,
  ) {
    this.#file = file;
    this.#name = name;
    this.#logger = logger;
    this.#stats = stats;
    this.#drop = drop;
  }

  /** Fills `dst` from the page cache, or returns false. */
  preadNow(entry: CacheEntry, dst: Uint8Array, offset: number): boolean {
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

  /** Fills `dst`, or returns false when the entry is lost. */
  async pread(
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
          cache: this.#name,
          key: entry.key,
          error: errorText(error),
        });
        this.#drop(entry);
      }
      return false;
    }
    // Evicted meanwhile: the slots may hold something else already.
    return !isDead(entry);
  }

  /** The whole of an unchecked entry, which is `ready` then; undefined when lost. */
  async check(entry: CacheEntry): Promise<Uint8Array | undefined> {
    const bytes = new Uint8Array(entry.size);
    if (!await this.pread(entry, bytes, 0)) return undefined;
    const got = latin1FromBytes(await sha256(bytes));
    if (entry.state === "dead") return undefined;
    if (got === entry.digest) {
      entry.state = "ready";
      return bytes;
    }
    this.#stats.corrupt++;
    this.#logger.warn("cache.corrupt", {
      cache: this.#name,
      key: entry.key,
      want: toHex(bytesFromLatin1(entry.digest!)),
      got: toHex(bytesFromLatin1(got)),
    });
    this.#drop(entry);
    return undefined;
  }
}

/** The state as it is now: it changes across awaits, which narrowing does not see. */
function isDead(entry: CacheEntry): boolean {
  return entry.state === "dead";
}

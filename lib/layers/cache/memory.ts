/** Recently used byte arrays, bounded in bytes, shared by all layers of a process. */

import type { Lease } from "./lease.ts";
import { LruList, type LruNode } from "./lru.ts";

/** A place in a {@linkcode MemoryCache}; sources keep it to skip the lookup. */
export interface MemoryEntry extends LruNode<MemoryEntry> {
  readonly key: string;
  /**
   * The content, or undefined once evicted. Shared: never to be changed, and
   * not to be kept beyond the turn in which it was looked up.
   */
  bytes: Uint8Array | undefined;
  /** Held while there is content. */
  readonly lease: Lease | undefined;
}

/** Byte arrays by key, least recently used evicted first. */
export class MemoryCache {
  readonly limit: number;
  readonly #entries = new Map<string, MemoryEntry>();
  readonly #lru = new LruList<MemoryEntry>();
  #bytes = 0;

  /** @param limit Most bytes held; one entry larger than that is held alone. */
  constructor(limit: number) {
    this.limit = limit;
  }

  /** Bytes held now. */
  get bytes(): number {
    return this.#bytes;
  }

  get(key: string): MemoryEntry | undefined {
    const entry = this.#entries.get(key);
    if (entry) this.#lru.touch(entry);
    return entry;
  }

  /** Marks a live entry as just used. */
  touch(entry: MemoryEntry): void {
    this.#lru.touch(entry);
  }

  /**
   * Keeps `bytes` (borrowed until evicted) and evicts the oldest others. All of
   * the memory that they lie in counts.
   *
   * @param lease Of the bytes, where their memory is used again.
   */
  set(key: string, bytes: Uint8Array, lease?: Lease): MemoryEntry {
    const known = this.get(key);
    if (known) return known;
    const entry: MemoryEntry = {
      key,
      bytes,
      lease,
      older: undefined,
      newer: undefined,
    };
    lease?.retain();
    this.#entries.set(key, entry);
    this.#lru.add(entry);
    this.#bytes += bytes.buffer.byteLength;
    while (this.#bytes > this.limit && this.#lru.oldest !== entry) {
      this.drop(this.#lru.oldest!);
    }
    return entry;
  }

  /** Lets go of an entry; dropping it again does nothing. */
  drop(entry: MemoryEntry): void {
    if (!entry.bytes) return;
    this.#bytes -= entry.bytes.buffer.byteLength;
    entry.bytes = undefined;
    this.#entries.delete(entry.key);
    this.#lru.remove(entry);
    entry.lease?.release();
  }

  clear(): void {
    while (this.#lru.oldest) this.drop(this.#lru.oldest);
  }
}

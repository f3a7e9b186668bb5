/** One entry of a {@linkcode CacheStore}. */

import type { ByteString } from "../../io/mod.ts";
import type { Lease } from "./lease.ts";
import type { LruNode } from "./lru.ts";
import type { SlotRun } from "./slots.ts";

/**
 * - `writing`: its bytes are in memory and on their way to the file;
 * - `unchecked`: from an earlier run, to be checked before its first use;
 * - `ready`: in the file, and what it should be;
 * - `dead`: evicted or lost; reads of it fail.
 */
export type EntryState = "writing" | "unchecked" | "ready" | "dead";

/** A stored byte array. Callers keep it to skip the lookup and treat it as opaque. */
export interface CacheEntry extends LruNode<CacheEntry> {
  readonly key: string;
  /** Bytes. */
  readonly size: number;
  state: EntryState;
  /** SHA-256, one byte per character; undefined only while writing. */
  digest: ByteString | undefined;
  /** Where it lies in the data file; empty until written. */
  runs: readonly SlotRun[];
  /** The content while writing. Not to be kept beyond a turn, except by the writer. */
  bytes: Uint8Array | undefined;
  /** Of the content, held until the writer is done with it. */
  lease: Lease | undefined;
  /** The running check of an unchecked entry. */
  check: Promise<Uint8Array | undefined> | undefined;
  /** Of those that an earlier run left: the one used next after it. */
  following: CacheEntry | undefined;
}

/** Counters of a cache, since it was opened. */
export interface CacheStats {
  /** Reads that the cache answered, and their bytes. */
  hits: number;
  hitBytes: number;
  /** Lookups that found nothing. */
  misses: number;
  /** Entries written, and their bytes. */
  writes: number;
  writtenBytes: number;
  /** Entries not stored because the disk was slow, full or failing. */
  skipped: number;
  evictions: number;
  evictedBytes: number;
  /** Entries dropped because they were not what they should be. */
  corrupt: number;
}

/**
 * The cache's index file: a log of what was stored where. Little-endian.
 *
 * ```
 * header, 32 bytes
 *    0  8  magic "OBDCACHE"
 *    8  4  version, 1
 *   12  4  slot size in bytes
 *   16 12  zero
 *   28  4  CRC-32 of bytes 0…27
 * record
 *    0  4  CRC-32 of the rest of the record
 *    4  2  length of the record in bytes
 *    6  1  operation: 1 add, 2 remove
 *    7  1  length of the key, 1…255
 *    8  .  key, one byte per character
 *   then, only for add
 *       4  size of the entry in bytes
 *      32  SHA-256 of the entry
 *       2  count of runs
 *     8·n  runs: first slot (4), slots (4)
 * ```
 *
 * Records apply in order; the first wrong one ends the log (a crash tore it).
 * What the log says is a hint: an entry loaded from it is checked against its
 * SHA-256 before its first byte is served, so a log older than the data file
 * costs a miss, never wrong bytes.
 */

import { crc32 } from "node:zlib";
import {
  bytesFromLatin1,
  type ByteString,
  concatBytes,
  latin1FromBytes,
  viewOf,
} from "../../io/mod.ts";
import type { SlotRun } from "./slots.ts";

/** Byte offsets in the header. */
export const JOURNAL_HEADER = {
  magic: 0,
  version: 8,
  slotSize: 12,
  reserved: 16,
  crc: 28,
  SIZE: 32,
} as const;

/** Byte offsets in a record. */
export const JOURNAL_RECORD = {
  crc: 0,
  length: 4,
  operation: 6,
  keyLength: 7,
  key: 8,
} as const;

const MAGIC = "OBDCACHE";
const VERSION = 1;
const ADD = 1;
const REMOVE = 2;
const DIGEST_SIZE = 32;
/** Bytes of an add record that follow the key, without the runs. */
const ADD_FIXED = 4 + DIGEST_SIZE + 2;
const RUN_SIZE = 8;

/** Most runs of one entry; keeps a record below 64 KiB. */
export const MAX_RUNS = 1024;
/** Longest key, in bytes. */
export const MAX_KEY = 255;

/** What the log says about one entry. */
export interface JournalEntry {
  key: string;
  /** Bytes. */
  size: number;
  /** SHA-256, one byte per character: a third of the memory of an array. */
  digest: ByteString;
  runs: readonly SlotRun[];
}

export function writeJournalHeader(slotSize: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(JOURNAL_HEADER.SIZE);
  const view = viewOf(bytes);
  bytes.set(bytesFromLatin1(MAGIC), JOURNAL_HEADER.magic);
  view.setUint32(JOURNAL_HEADER.version, VERSION, true);
  view.setUint32(JOURNAL_HEADER.slotSize, slotSize, true);
  view.setUint32(
    JOURNAL_HEADER.crc,
    crc32(bytes.subarray(0, JOURNAL_HEADER.crc)),
    true,
  );
  return bytes;
}

export function writeAddRecord(entry: JournalEntry): Uint8Array<ArrayBuffer> {
  const body = new Uint8Array(ADD_FIXED + entry.runs.length * RUN_SIZE);
  const view = viewOf(body);
  view.setUint32(0, entry.size, true);
  body.set(bytesFromLatin1(entry.digest), 4);
  view.setUint16(4 + DIGEST_SIZE, entry.runs.length, true);
  let at = ADD_FIXED;
  for (const run of entry.runs) {
    view.setUint32(at, run.start, true);
    view.setUint32(at + 4, run.count, true);
    at += RUN_SIZE;
  }
  return writeRecord(ADD, entry.key, body);
}

export function writeRemoveRecord(key: string): Uint8Array<ArrayBuffer> {
  return writeRecord(REMOVE, key, new Uint8Array(0));
}

function writeRecord(
  operation: number,
  key: string,
  body: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const head = new Uint8Array(JOURNAL_RECORD.key);
  const record = concatBytes([head, bytesFromLatin1(key), body]);
  const view = viewOf(record);
  view.setUint16(JOURNAL_RECORD.length, record.length, true);
  record[JOURNAL_RECORD.operation] = operation;
  record[JOURNAL_RECORD.keyLength] = key.length;
  view.setUint32(
    JOURNAL_RECORD.crc,
    crc32(record.subarray(JOURNAL_RECORD.length)),
    true,
  );
  return record;
}

/**
 * Replays a log. Whatever is wrong with it only shortens the result.
 *
 * @param limits Entries with slots or sizes outside are left out, as are older
 * entries whose slots a later one has taken.
 * @returns Entries in the order in which they were added, and whether the log
 * was whole.
 */
export function readJournal(
  bytes: Uint8Array,
  limits: { slotSize: number; slotLimit: number; maxEntrySize: number },
): { entries: JournalEntry[]; whole: boolean } {
  if (!isHeader(bytes, limits.slotSize)) return { entries: [], whole: false };
  const view = viewOf(bytes);
  const live = new Map<string, JournalEntry>();
  let at: number = JOURNAL_HEADER.SIZE;
  let whole = true;
  while (at < bytes.length) {
    const length = recordLength(bytes, view, at);
    if (length === 0) {
      whole = false;
      break;
    }
    applyRecord(live, bytes.subarray(at, at + length), limits);
    at += length;
  }
  return { entries: withoutOverlaps([...live.values()]), whole };
}

function isHeader(bytes: Uint8Array, slotSize: number): boolean {
  if (bytes.length < JOURNAL_HEADER.SIZE) return false;
  const want = writeJournalHeader(slotSize);
  return want.every((b, i) => bytes[i] === b);
}

/** Length of the record at `at`, or 0 when it is not whole. */
function recordLength(bytes: Uint8Array, view: DataView, at: number): number {
  if (bytes.length - at < JOURNAL_RECORD.key) return 0;
  const length = view.getUint16(at + JOURNAL_RECORD.length, true);
  if (length < JOURNAL_RECORD.key || length > bytes.length - at) return 0;
  const crc = view.getUint32(at + JOURNAL_RECORD.crc, true);
  const covered = bytes.subarray(at + JOURNAL_RECORD.length, at + length);
  return crc32(covered) === crc ? length : 0;
}

function applyRecord(
  live: Map<string, JournalEntry>,
  record: Uint8Array,
  limits: { slotSize: number; slotLimit: number; maxEntrySize: number },
): void {
  const operation = record[JOURNAL_RECORD.operation];
  const keyEnd = JOURNAL_RECORD.key + record[JOURNAL_RECORD.keyLength]!;
  if (keyEnd === JOURNAL_RECORD.key || keyEnd > record.length) return;
  const key = latin1FromBytes(record.subarray(JOURNAL_RECORD.key, keyEnd));
  live.delete(key); // also for add: the later record is the newer use
  if (operation !== ADD) return;
  const body = record.subarray(keyEnd);
  if (body.length < ADD_FIXED) return;
  const view = viewOf(body);
  const size = view.getUint32(0, true);
  const runCount = view.getUint16(4 + DIGEST_SIZE, true);
  if (body.length !== ADD_FIXED + runCount * RUN_SIZE) return;
  if (size === 0 || size > limits.maxEntrySize || runCount > MAX_RUNS) return;
  const runs: SlotRun[] = [];
  let slots = 0;
  for (let i = 0; i < runCount; i++) {
    const start = view.getUint32(ADD_FIXED + i * RUN_SIZE, true);
    const count = view.getUint32(ADD_FIXED + i * RUN_SIZE + 4, true);
    if (count === 0 || start + count > limits.slotLimit) return;
    runs.push({ start, count });
    slots += count;
  }
  if (slots !== Math.ceil(size / limits.slotSize)) return;
  const digest = latin1FromBytes(body.subarray(4, 4 + DIGEST_SIZE));
  live.set(key, { key, size, digest, runs });
}

/** Where two entries claim a slot, the one added later has it. */
function withoutOverlaps(entries: JournalEntry[]): JournalEntry[] {
  const claims = entries.flatMap((entry, order) =>
    entry.runs.map((run) => ({ ...run, order }))
  ).sort((a, b) => a.start - b.start || a.order - b.order);
  const lost = new Set<number>();
  // Overlapping claims form a cluster; only its newest member stays.
  let clusterEnd = 0;
  let clusterOrder = -1;
  for (const claim of claims) {
    if (claim.start >= clusterEnd) clusterOrder = -1;
    if (clusterOrder >= 0) lost.add(Math.min(claim.order, clusterOrder));
    clusterOrder = Math.max(clusterOrder, claim.order);
    clusterEnd = Math.max(clusterEnd, claim.start + claim.count);
  }
  return entries.filter((_, order) => !lost.has(order));
}

/** The index file on disk: appended to in batches, rewritten whole now and then. */

import { concatBytes, Turns, writeAll } from "../../io/mod.ts";
import {
  type JournalEntry,
  readJournal,
  writeAddRecord,
  writeJournalHeader,
  writeRemoveRecord,
} from "./journal.ts";

/** A larger index file is not read: it cannot be ours at any supported cache size. */
const MAX_JOURNAL_BYTES = 512 * 1024 * 1024;
/** Bytes that may always be appended before the log is rewritten. */
const REWRITE_SLACK = 1 << 20;
/** Bytes of one write. */
const BATCH_BYTES = 256 * 1024;

/** Collects records and brings them to the index file. */
export class JournalFile {
  readonly #path: string;
  readonly #slotSize: number;
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  #fileBytes = 0;
  #rewriteAbove = 0;
  #mustRewrite = true;

  constructor(path: string, slotSize: number) {
    this.#path = path;
    this.#slotSize = slotSize;
  }

  /** Whether the file is behind. */
  get dirty(): boolean {
    return this.#mustRewrite || this.#pending.length > 0;
  }

  /**
   * Reads what an earlier owner left; a missing or foreign file is an empty log.
   *
   * @param onIgnored Told why a file that is there is not read.
   */
  async load(
    limits: { slotLimit: number; maxEntrySize: number },
    onIgnored: (reason: string) => void,
  ): Promise<JournalEntry[]> {
    const info = await Deno.lstat(this.#path).catch(() => undefined);
    if (!info) return [];
    if (!info.isFile) {
      onIgnored("it is no file");
      return [];
    }
    if (info.size > MAX_JOURNAL_BYTES) {
      onIgnored(
        `it has ${info.size} bytes, at most ${MAX_JOURNAL_BYTES} are read: the cache is too large for its pieces`,
      );
      return [];
    }
    const bytes = await Deno.readFile(this.#path);
    const read = readJournal(bytes, { slotSize: this.#slotSize, ...limits });
    this.#mustRewrite = !read.whole;
    this.#fileBytes = bytes.length;
    this.#rewriteAbove = growthLimit(bytes.length);
    return read.entries;
  }

  added(entry: JournalEntry): void {
    this.#push(writeAddRecord(entry));
  }

  removed(key: string): void {
    this.#push(writeRemoveRecord(key));
  }

  /** Forgets what is not on disk yet; the next flush rewrites the whole log. */
  forget(): void {
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#mustRewrite = true;
  }

  /**
   * Brings what was collected to the file. One call at a time.
   *
   * @param beforeWrite Runs after the records were taken and before they are
   * written: what they speak of must be on disk by its end.
   * @param live All entries, oldest use first; asked for only when the log is
   * rewritten, which `rewrite` forces. They are those of this turn; each is
   * looked at in a later one, and undefined if it went away meanwhile. What
   * happens meanwhile is told to this log as always, which puts it behind.
   */
  async flush(
    beforeWrite: () => Promise<void>,
    live: () => Iterable<JournalEntry | undefined>,
    rewrite = false,
  ): Promise<void> {
    const whole = rewrite || this.#mustRewrite ||
      this.#fileBytes + this.#pendingBytes > this.#rewriteAbove;
    // Taken before anything is awaited: what comes from here on is for the next time.
    const records = whole
      ? encoded(this.#slotSize, live())
      : this.#pending.values();
    this.#pending = [];
    this.#pendingBytes = 0;
    // Not at the end: what is written now may be forgotten meanwhile.
    this.#mustRewrite = false;
    try {
      const parts = await inBatches(records);
      await beforeWrite();
      await (whole ? this.#rewrite(parts) : this.#append(parts));
    } catch (error) {
      this.#mustRewrite = true;
      throw error;
    }
  }

  async #append(parts: readonly Uint8Array[]): Promise<void> {
    const file = await Deno.open(this.#path, { append: true, mode: 0o600 });
    this.#fileBytes += await writeParts(file, parts);
  }

  async #rewrite(parts: readonly Uint8Array[]): Promise<void> {
    const temp = `${this.#path}.new`;
    const file = await Deno.open(temp, {
      write: true,
      create: true,
      truncate: true,
      mode: 0o600,
    });
    const bytes = await writeParts(file, parts);
    await Deno.rename(temp, this.#path);
    this.#fileBytes = bytes;
    this.#rewriteAbove = growthLimit(bytes);
  }

  #push(record: Uint8Array): void {
    this.#pending.push(record);
    this.#pendingBytes += record.length;
  }
}

/** Bytes up to which a log of so many when it was whole may grow: twice, but not beyond what is read again. */
function growthLimit(bytes: number): number {
  const twice = Math.min(2 * bytes + REWRITE_SLACK, MAX_JOURNAL_BYTES);
  return Math.max(twice, bytes + REWRITE_SLACK);
}

/** Writes all, and closes the file in any case; returns the bytes. */
async function writeParts(
  file: Deno.FsFile,
  parts: readonly Uint8Array[],
): Promise<number> {
  using _open = file;
  let bytes = 0;
  for (const part of parts) {
    await writeAll(file, part);
    bytes += part.length;
  }
  return bytes;
}

/** A whole log. */
function* encoded(
  slotSize: number,
  entries: Iterable<JournalEntry | undefined>,
): Generator<Uint8Array | undefined> {
  yield writeJournalHeader(slotSize);
  for (const entry of entries) yield entry && writeAddRecord(entry);
}

/** Joins small arrays, for fewer calls; a large cache has a second's worth of them. */
async function inBatches(
  parts: Iterable<Uint8Array | undefined>,
): Promise<Uint8Array[]> {
  const batches: Uint8Array[] = [];
  const turns = new Turns();
  let batch: Uint8Array[] = [];
  let bytes = 0;
  for (const part of parts) {
    if (!part) continue;
    batch.push(part);
    bytes += part.length;
    if (turns.isDue) await turns.take();
    if (bytes < BATCH_BYTES) continue;
    batches.push(concatBytes(batch));
    batch = [];
    bytes = 0;
  }
  if (bytes > 0) batches.push(concatBytes(batch));
  return batches;
}

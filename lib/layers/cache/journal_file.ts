/** The index file on disk: appended to in batches, rewritten whole now and then. */

import { concatBytes, writeAll } from "../../io/mod.ts";
import {
  type JournalEntry,
  readJournal,
  writeAddRecord,
  writeJournalHeader,
  writeRemoveRecord,
} from "./journal.ts";

/** A larger index file is not read: it cannot be ours at any supported cache size. */
const MAX_JOURNAL_BYTES = 512 * 1024 * 1024;
/** Appended bytes after which the log is rewritten, beside those of live entries. */
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

  get dirty(): boolean {
    return this.#pending.length > 0;
  }

  /** Reads what an earlier owner left; a missing or foreign file is an empty log. */
  async load(
    limits: { slotLimit: number; maxEntrySize: number },
  ): Promise<JournalEntry[]> {
    const info = await Deno.lstat(this.#path).catch(() => undefined);
    if (!info?.isFile || info.size > MAX_JOURNAL_BYTES) return [];
    const bytes = await Deno.readFile(this.#path);
    const read = readJournal(bytes, { slotSize: this.#slotSize, ...limits });
    this.#mustRewrite = !read.whole;
    this.#fileBytes = bytes.length;
    this.#rewriteAbove = 2 * bytes.length + REWRITE_SLACK;
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
   * Brings what was collected to the file.
   *
   * @param beforeAppend Runs after the records were taken and before they are
   * written: what they speak of must be on disk by its end.
   * @param live All entries, oldest use first; asked for only when the log is
   * rewritten, which `rewrite` forces.
   */
  async flush(
    beforeAppend: () => Promise<void>,
    live: () => Iterable<JournalEntry>,
    rewrite = false,
  ): Promise<void> {
    if (
      rewrite || this.#mustRewrite ||
      this.#fileBytes + this.#pendingBytes > this.#rewriteAbove
    ) return await this.#rewrite(beforeAppend, live);
    const records = this.#pending;
    this.#pending = [];
    this.#pendingBytes = 0;
    await beforeAppend();
    this.#mustRewrite = true; // until the append went well
    const file = await Deno.open(this.#path, { append: true, mode: 0o600 });
    try {
      for (const batch of batches(records)) {
        await writeAll(file, batch);
        this.#fileBytes += batch.length;
      }
    } finally {
      file.close();
    }
    this.#mustRewrite = false;
  }

  async #rewrite(
    beforeAppend: () => Promise<void>,
    live: () => Iterable<JournalEntry>,
  ): Promise<void> {
    const header = writeJournalHeader(this.#slotSize);
    // Encoded before anything is awaited: entries may move meanwhile.
    const parts = [...batches(encoded(header, live()))];
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#mustRewrite = true;
    await beforeAppend();
    const temp = `${this.#path}.new`;
    const file = await Deno.open(temp, {
      write: true,
      create: true,
      truncate: true,
      mode: 0o600,
    });
    let bytes = 0;
    try {
      for (const part of parts) {
        await writeAll(file, part);
        bytes += part.length;
      }
    } finally {
      file.close();
    }
    await Deno.rename(temp, this.#path);
    this.#fileBytes = bytes;
    this.#rewriteAbove = 2 * bytes + REWRITE_SLACK;
    this.#mustRewrite = false;
  }

  #push(record: Uint8Array): void {
    this.#pending.push(record);
    this.#pendingBytes += record.length;
  }
}

function* encoded(
  header: Uint8Array,
  entries: Iterable<JournalEntry>,
): Generator<Uint8Array> {
  yield header;
  for (const entry of entries) yield writeAddRecord(entry);
}

/** Joins small arrays, for fewer calls. */
function* batches(parts: Iterable<Uint8Array>): Generator<Uint8Array> {
  let batch: Uint8Array[] = [];
  let bytes = 0;
  for (const part of parts) {
    batch.push(part);
    bytes += part.length;
    if (bytes < BATCH_BYTES) continue;
    yield concatBytes(batch);
    batch = [];
    bytes = 0;
  }
  if (bytes > 0) yield concatBytes(batch);
}

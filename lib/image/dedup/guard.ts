/** A database that may be away, slow or broken, to a build that must not care. */

import { CancelledError, errorText, type Logger } from "../../io/mod.ts";
import type { ConversionDatabase } from "./database.ts";

/** Options of {@linkcode GuardedDatabase}. */
export interface GuardOptions {
  log: Logger;
  signal?: AbortSignal | undefined;
  /** Nobody asked for this database: that it cannot be used is worth no warning. */
  isDefault?: boolean | undefined;
  /** Leave everything as it is. */
  readOnly?: boolean | undefined;
}

/**
 * After its first failure, which gets a line in the log, the database is not
 * asked again: whatever waits for a deadline waits once.
 */
export class GuardedDatabase {
  readonly #database: ConversionDatabase;
  readonly #options: GuardOptions;
  #isUsable = true;

  /** @param database Borrowed. */
  constructor(database: ConversionDatabase, options: GuardOptions) {
    this.#database = database;
    this.#options = options;
  }

  /** For people, without secrets. */
  get name(): string {
    return this.#database.name;
  }

  /** @returns What `work` gives, or `fallback` if the database cannot be used. */
  async ask<T>(
    fallback: T,
    work: (database: ConversionDatabase) => Promise<T>,
  ): Promise<T> {
    if (!this.#isUsable) return fallback;
    try {
      return await this.#untilAborted(work(this.#database));
    } catch (error) {
      this.#options.signal?.throwIfAborted();
      this.#isUsable = false;
      const { log, isDefault } = this.#options;
      log[isDefault ? "info" : "warn"](
        "going on without the database of conversions",
        { database: this.name, reason: errorText(error) },
      );
      return fallback;
    }
  }

  /** The same for what changes it. */
  async change(
    work: (database: ConversionDatabase) => Promise<unknown>,
  ): Promise<void> {
    if (this.#options.readOnly) return;
    await this.ask(undefined, work);
  }

  async #untilAborted<T>(work: Promise<T>): Promise<T> {
    const { signal } = this.#options;
    if (!signal) return await work;
    const { promise: stopped, reject } = Promise.withResolvers<never>();
    const stop = () => reject(new CancelledError());
    signal.addEventListener("abort", stop, { once: true });
    work.catch(() => {});
    try {
      return await Promise.race([work, stopped]);
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }
}

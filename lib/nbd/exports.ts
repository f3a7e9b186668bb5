/** The exports of a server: added and removed while it runs. */

import {
  type BlockSource,
  type ByteSource,
  NotFoundError,
  ObdError,
  UsageError,
  utf8,
} from "../io/mod.ts";
import { LogBudget } from "./log_budget.ts";
import { MAX_STRING, TRANSMISSION } from "./protocol.ts";
import { type ExportStats, newExportStats } from "./stats.ts";

/** What is served under a name. */
export interface ExportOptions {
  /** At most 4096 bytes of UTF-8 without NUL; "" is the default export. */
  name: string;
  /** Borrowed: whoever added the export disposes of it, after it was removed. */
  source: ByteSource | BlockSource;
  /** For people, at most 4096 bytes. */
  description?: string | undefined;
  /** Defaults to true; false needs a source with `pwrite`. */
  readOnly?: boolean | undefined;
}

/** A source whose writing methods may be there. */
export type ServedSource = ByteSource & Partial<BlockSource>;

/** A connection as its export sees it. */
export interface ExportConnection {
  /** Ends it at once. */
  abort(): void;
  /** Resolves when it has ended. */
  readonly closed: Promise<void>;
}

/** One export. */
export class NbdExport {
  readonly name: string;
  readonly source: ServedSource;
  readonly description: string | undefined;
  readonly readOnly: boolean;
  readonly stats: ExportStats = newExportStats();
  readonly connections: Set<ExportConnection> = new Set();
  /** Of the lines about its failed requests. */
  readonly failureLines: LogBudget = new LogBudget();

  /** @throws {UsageError} If a name is too long, or a source cannot be written. */
  constructor(options: ExportOptions) {
    checkString("export name", options.name);
    checkString("export description", options.description ?? "");
    this.name = options.name;
    this.source = options.source;
    this.description = options.description;
    this.readOnly = options.readOnly ?? true;
    if (!this.readOnly && !this.source.pwrite) {
      throw new UsageError(
        `Cannot add export "${this.name}": its source cannot be written`,
      );
    }
  }

  /**
   * The transmission flags. Connections to a read-only export all see the same
   * bytes for ever, so several may be used as one.
   *
   * @param structured Whether structured replies were negotiated, which DF needs.
   */
  transmissionFlags(structured: boolean): number {
    const { source } = this;
    const T = TRANSMISSION;
    let flags = T.hasFlags | T.sendCache;
    if (structured) flags |= T.sendDf;
    if (this.readOnly) return flags | T.readOnly | T.canMultiConn;
    if (source.flush) flags |= T.sendFlush | T.sendFua;
    if (source.trim) flags |= T.sendTrim;
    if (source.writeZeroes) flags |= T.sendWriteZeroes;
    return flags;
  }
}

function checkString(what: string, text: string): void {
  if (text.includes("\0") || utf8(text).length > MAX_STRING) {
    throw new UsageError(
      `Bad ${what}: it has a NUL or more than ${MAX_STRING} bytes`,
    );
  }
}

/** Exports by name. */
export class ExportRegistry {
  readonly #exports = new Map<string, NbdExport>();

  /**
   * Adds an export.
   *
   * @throws {ObdError} With code "conflict" if the name is taken.
   */
  add(options: ExportOptions): NbdExport {
    const added = new NbdExport(options);
    if (this.#exports.has(added.name)) {
      throw new ObdError(
        "conflict",
        `Cannot add export "${added.name}": the name is taken`,
      );
    }
    this.#exports.set(added.name, added);
    return added;
  }

  /** The export that a client asks for: by its name, or the only one by the empty name. */
  find(name: string): NbdExport | undefined {
    const found = this.#exports.get(name);
    if (found || name !== "" || this.#exports.size !== 1) return found;
    return this.#exports.values().next().value;
  }

  /** The export of exactly that name. */
  get(name: string): NbdExport | undefined {
    return this.#exports.get(name);
  }

  /** Whether this very export is still here. */
  has(one: NbdExport): boolean {
    return this.#exports.get(one.name) === one;
  }

  /** All exports, in the order in which they were added. */
  list(): NbdExport[] {
    return [...this.#exports.values()];
  }

  /**
   * Takes an export away; connections to it are ended when `force` is set.
   *
   * @throws {NotFoundError} If there is none of that exact name.
   * @throws {ObdError} With code "conflict" if it has connections and `force` is not set.
   */
  async remove(name: string, force: boolean): Promise<NbdExport> {
    const found = this.#exports.get(name);
    if (!found) throw new NotFoundError(`No export "${name}"`);
    const { size } = found.connections;
    if (size > 0 && !force) {
      throw new ObdError(
        "conflict",
        `Cannot remove export "${name}": ${size} connection(s)`,
      );
    }
    this.#exports.delete(name);
    const open = [...found.connections];
    for (const connection of open) connection.abort();
    await Promise.all(open.map((connection) => connection.closed));
    return found;
  }
}

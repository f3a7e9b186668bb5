/** SQLite, which the runtime has built in. */

import * as fs from "node:fs";
import * as path from "node:path";
import type { DatabaseSync } from "node:sqlite";
import type { SqlConnection, SqlRow, SqlValue } from "./connection.ts";

/** How long another process may hold the file. The thread stands still for it. */
const BUSY_MS = 3000;
/** SQLITE_CONSTRAINT_PRIMARYKEY (https://sqlite.org/rescode.html). */
const CONSTRAINT_PRIMARY_KEY = 1555;

/** A database file, made with its directory when it is first used; with `readOnly` an absent one is empty. */
export class SqliteConnection implements SqlConnection {
  readonly name: string;
  readonly dialect = "sqlite";
  readonly #path: string;
  readonly #readOnly: boolean;
  #db: Promise<DatabaseSync> | undefined;

  constructor(file: string, options: { readOnly?: boolean | undefined } = {}) {
    this.#path = file;
    this.#readOnly = options.readOnly ?? false;
    this.name = `sqlite:${file}`;
  }

  #open(): Promise<DatabaseSync> {
    return this.#db ??= (async () => {
      const { DatabaseSync } = await import("node:sqlite");
      if (!this.#readOnly) {
        fs.mkdirSync(path.dirname(this.#path), { recursive: true });
      } else if (!fs.existsSync(this.#path)) {
        return new DatabaseSync(":memory:");
      }
      const db = new DatabaseSync(this.#path, { readOnly: this.#readOnly });
      db.exec(`PRAGMA busy_timeout = ${BUSY_MS}`);
      return db;
    })();
  }

  async query(sql: string, values: readonly SqlValue[]): Promise<SqlRow[]> {
    const statement = (await this.#open()).prepare(sql);
    // Any number that a file may hold, without an error for the large ones.
    statement.setReadBigInts(true);
    return statement.all(...values) as SqlRow[];
  }

  async run(sql: string, values: readonly SqlValue[] = []): Promise<void> {
    (await this.#open()).prepare(sql).run(...values);
  }

  async insert(sql: string, values: readonly SqlValue[]): Promise<boolean> {
    try {
      await this.run(sql, values);
      return true;
    } catch (error) {
      const { errcode } = error as { errcode?: number };
      if (errcode === CONSTRAINT_PRIMARY_KEY) return false;
      throw error;
    }
  }

  async columns(table: string): Promise<Set<string>> {
    const rows = await this.query(`PRAGMA table_info(${table})`, []);
    return new Set(rows.map(({ name }) => String(name).toLowerCase()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const opened = this.#db;
    this.#db = undefined;
    // One that could not be opened needs no closing.
    (await opened?.catch(() => undefined))?.close();
  }
}

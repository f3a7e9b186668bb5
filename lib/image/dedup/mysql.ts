/** MySQL and MariaDB, by the npm package mysql2, which is loaded on first use. */

import * as fs from "node:fs";
import type { Connection, ConnectionOptions } from "mysql2/promise";
import { DeadlineError, ObdError } from "../../io/mod.ts";
import type { SqlConnection, SqlRow, SqlValue } from "./connection.ts";

/** Where a server is, and how to talk to it. */
export interface MySqlSettings {
  /** Host name or address; not used with a socket. */
  host: string;
  port: number;
  /** Path of a Unix socket. */
  socket?: string | undefined;
  user: string;
  /** Told when a connection is made, so that it can come from a file. */
  password?: (() => string) | undefined;
  database: string;
  /** Speak TLS, and check the server's certificate. */
  tls?: boolean | undefined;
  /** CA certificates for TLS, in PEM; default the system's. */
  caFile?: string | undefined;
  /** Milliseconds for connecting, and for each statement. */
  deadlineMs?: number | undefined;
}

const DEADLINE_MS = 5000;
/** A server closes connections that were idle for long: after this a new one is made. */
const IDLE_MS = 30_000;
/** ER_DUP_ENTRY (MariaDB error codes). */
const DUPLICATE = 1062;

/** A connection that is made when it is needed. */
export class MySqlConnection implements SqlConnection {
  readonly name: string;
  readonly dialect = "mysql";
  readonly #settings: MySqlSettings;
  readonly #deadlineMs: number;
  #connection: Connection | undefined;
  /** The connection that is being made, while somebody waits for it. */
  #attempt: object | undefined;
  #usedAt = 0;

  constructor(settings: MySqlSettings) {
    this.#settings = settings;
    this.#deadlineMs = settings.deadlineMs ?? DEADLINE_MS;
    const { host, port, socket, database } = settings;
    const place = socket ?? (host.includes(":") ? `[${host}]` : host);
    this.name = `mysql://${place}${
      socket === undefined ? `:${port}` : ""
    }/${database}`;
  }

  async query(sql: string, values: readonly SqlValue[]): Promise<SqlRow[]> {
    const rows = await this.#execute(sql, values);
    return Array.isArray(rows) ? rows as SqlRow[] : [];
  }

  async run(sql: string, values: readonly SqlValue[] = []): Promise<void> {
    await this.#execute(sql, values);
  }

  async insert(sql: string, values: readonly SqlValue[]): Promise<boolean> {
    try {
      await this.#execute(sql, values);
      return true;
    } catch (error) {
      if ((error as { errno?: number }).errno === DUPLICATE) return false;
      throw error;
    }
  }

  async columns(table: string): Promise<Set<string>> {
    const rows = await this.query(
      "SELECT column_name AS name FROM information_schema.columns WHERE table_schema = ? AND table_name = ?",
      [this.#settings.database, table],
    );
    return new Set(rows.map(({ name }) => String(name).toLowerCase()));
  }

  async #execute(sql: string, values: readonly SqlValue[]): Promise<unknown> {
    const connection = await this.#within("Connecting", this.#connected());
    const [result] = await this.#within(
      "A statement",
      connection.execute(sql, [...values]),
    );
    this.#usedAt = performance.now();
    return result;
  }

  /** A connection whose deadline has passed may still answer the old question: it is not used again. */
  async #within<T>(what: string, work: Promise<T>): Promise<T> {
    const { promise: late, reject } = Promise.withResolvers<never>();
    const timer = setTimeout(() => {
      this.#drop();
      reject(new DeadlineError(`${what} to ${this.name}`, this.#deadlineMs));
    }, this.#deadlineMs);
    // What comes after the deadline is nobody's any more.
    work.catch(() => {});
    try {
      return await Promise.race([work, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  #drop(): void {
    this.#attempt = undefined;
    this.#connection?.destroy();
    this.#connection = undefined;
  }

  async #connected(): Promise<Connection> {
    if (performance.now() - this.#usedAt > IDLE_MS) this.#drop();
    if (this.#connection) return this.#connection;
    const { createConnection } = await import("mysql2/promise");
    const attempt = this.#attempt = {};
    const connection = await createConnection(this.#options());
    if (this.#attempt !== attempt) {
      connection.destroy(); // too late: nobody waits for it any more
      throw new DeadlineError(`Connecting to ${this.name}`, this.#deadlineMs);
    }
    // A server that closes the connection is noticed by the next statement.
    connection.on("error", () => this.#drop());
    this.#usedAt = performance.now();
    return this.#connection = connection;
  }

  #options(): ConnectionOptions {
    const { host, port, socket, user, password, database, tls, caFile } =
      this.#settings;
    return {
      ...(socket === undefined ? { host, port } : { socketPath: socket }),
      user,
      password: password?.() ?? "",
      database,
      connectTimeout: this.#deadlineMs,
      // Numbers of any size come as text; rows are read without generated code.
      supportBigNumbers: true,
      bigNumberStrings: true,
      disableEval: true,
      ...(tls
        ? {
          ssl: {
            rejectUnauthorized: true,
            verifyIdentity: true,
            ...(caFile === undefined ? {} : { ca: readCa(caFile) }),
          },
        }
        : {}),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const connection = this.#connection;
    this.#connection = undefined;
    if (!connection) return;
    try {
      await this.#within("Taking leave", connection.end());
    } catch {
      connection.destroy();
    }
  }
}

function readCa(file: string): string {
  try {
    return fs.readFileSync(file, "utf8");
  } catch (error) {
    throw new ObdError("state", `Cannot read CA certificates in "${file}"`, {
      cause: error,
    });
  }
}

/** What the two database engines have in common, as far as it is used here. */

/** A value that goes into a statement. */
export type SqlValue = string | number;

/** A row by column; values as the engine gives them. */
export type SqlRow = Record<string, unknown>;

/** One engine's way to run statements; parameters are `?`. */
export interface SqlConnection extends AsyncDisposable {
  /** For people, without secrets. */
  readonly name: string;
  query(sql: string, values: readonly SqlValue[]): Promise<SqlRow[]>;
  /** Runs a statement for its effect. */
  run(sql: string, values?: readonly SqlValue[]): Promise<void>;
  /**
   * Runs an INSERT.
   *
   * @returns False if a row with that key is there: somebody was faster.
   */
  insert(sql: string, values: readonly SqlValue[]): Promise<boolean>;
  /** Columns of a table, in lower case; empty if there is no such table. */
  columns(table: string): Promise<Set<string>>;
  readonly dialect: "sqlite" | "mysql";
}

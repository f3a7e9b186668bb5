/** What libs write to when something happened that an operator wants to know. */

/** Values of a log line. Never blob bytes, tokens or signed URLs. */
export type LogFields = Record<string, string | number | boolean | undefined>;

/** One line per event. `cmd` owns the format and where it goes. */
export interface Logger {
  debug(event: string, fields?: LogFields): void;
  info(event: string, fields?: LogFields): void;
  warn(event: string, fields?: LogFields): void;
  error(event: string, fields?: LogFields): void;
}

/** Drops everything. */
export const silentLogger: Logger = {
  debug() {},
  info() {},
  warn() {},
  error() {},
};

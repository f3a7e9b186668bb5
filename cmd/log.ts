/** Log lines on stderr, as text or JSON, with the last ones kept for `obd report`. */

import { type LogFields, type Logger, printable } from "../lib/io/mod.ts";

/** Levels, most severe last. */
export type LogLevel = "debug" | "info" | "warn" | "error";

const ORDER: LogLevel[] = ["debug", "info", "warn", "error"];
const KEPT_LINES = 500;

/** Writes lines to stderr; keeps the last {@linkcode KEPT_LINES}. */
export class StderrLogger implements Logger {
  #minimum: number;
  readonly #json: boolean;
  readonly #kept: string[] = [];
  /** Called before a line is written, so that a progress bar can step aside. */
  beforeWrite: () => void = () => {};
  /** Called after a line was written. */
  afterWrite: () => void = () => {};

  constructor(options: { level: LogLevel; format: "text" | "json" }) {
    this.#minimum = ORDER.indexOf(options.level);
    this.#json = options.format === "json";
  }

  /** Lines below this level are kept, not written. */
  setLevel(level: LogLevel): void {
    this.#minimum = ORDER.indexOf(level);
  }

  /** The last lines, oldest first. */
  get recent(): readonly string[] {
    return this.#kept;
  }

  debug(event: string, fields?: LogFields) {
    this.#write("debug", event, fields);
  }
  info(event: string, fields?: LogFields) {
    this.#write("info", event, fields);
  }
  warn(event: string, fields?: LogFields) {
    this.#write("warn", event, fields);
  }
  error(event: string, fields?: LogFields) {
    this.#write("error", event, fields);
  }

  #write(level: LogLevel, event: string, fields: LogFields = {}) {
    const time = new Date().toISOString();
    const line = this.#json
      ? JSON.stringify({ time, level, event, ...fields })
      : textLine(time, level, event, fields);
    this.#kept.push(line);
    if (this.#kept.length > KEPT_LINES) this.#kept.shift();
    if (ORDER.indexOf(level) < this.#minimum) return;
    this.beforeWrite();
    try {
      console.error(line);
    } catch {
      // A full disk. Whoever logs serves a device, and goes on.
    }
    this.afterWrite();
  }
}

function textLine(
  time: string,
  level: LogLevel,
  event: string,
  fields: LogFields,
): string {
  let line = `${time} ${level.toUpperCase().padEnd(5)} ${event}`;
  for (const [key, value] of Object.entries(fields)) {
    if (value === undefined) continue;
    const text = String(value);
    // Control characters would let a hostile name forge a second line.
    const plain = /^[^\s"=\p{Cc}]+$/u.test(text);
    line += ` ${key}=${plain ? text : printable(JSON.stringify(text))}`;
  }
  return line;
}

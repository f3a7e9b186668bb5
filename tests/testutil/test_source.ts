/** Sources and data files that misbehave on purpose. */

import {
  type ByteSource,
  CancelledError,
  checkRange,
  type LogFields,
  type Logger,
  priorityOf,
  type ReadOptions,
} from "../../lib/io/mod.ts";

/** What a {@linkcode TestSource} was asked. */
export interface SeenRead {
  offset: number;
  length: number;
  priority: string;
}

/** Bytes in memory behind an asynchronous read that records, waits and fails. */
export class TestSource implements ByteSource {
  readonly size: number;
  readonly reads: SeenRead[] = [];
  /** Awaited by every read. */
  gate: Promise<unknown> = Promise.resolve();
  /** Reads fail with this while it is set. */
  failure: Error | undefined;
  /** Reads that are running now, and the most there ever were. */
  running = 0;
  mostRunning = 0;
  cancelled = 0;
  disposed = 0;
  /** Changes to be seen by later reads: write into it. */
  readonly content: Uint8Array;

  constructor(content: Uint8Array) {
    this.content = content;
    this.size = content.length;
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    this.reads.push({
      offset,
      length: dst.length,
      priority: priorityOf(options),
    });
    this.running++;
    this.mostRunning = Math.max(this.mostRunning, this.running);
    try {
      await Promise.race([this.gate, aborted(options.signal)]);
      if (this.failure) throw this.failure;
      dst.set(this.content.subarray(offset, offset + dst.length));
    } catch (error) {
      if (error instanceof CancelledError) this.cancelled++;
      throw error;
    } finally {
      this.running--;
    }
  }

  get bytesRead(): number {
    return this.reads.reduce((n, r) => n + r.length, 0);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.disposed++;
    return Promise.resolve();
  }
}

function aborted(signal: AbortSignal | undefined): Promise<never> {
  return new Promise((_, reject) => {
    if (signal?.aborted) reject(new CancelledError());
    signal?.addEventListener("abort", () => reject(new CancelledError()), {
      once: true,
    });
  });
}

/** Keeps what was logged. */
export class RecordingLogger implements Logger {
  readonly lines: { level: string; event: string; fields: LogFields }[] = [];

  debug(event: string, fields: LogFields = {}): void {
    this.lines.push({ level: "debug", event, fields });
  }
  info(event: string, fields: LogFields = {}): void {
    this.lines.push({ level: "info", event, fields });
  }
  warn(event: string, fields: LogFields = {}): void {
    this.lines.push({ level: "warn", event, fields });
  }
  error(event: string, fields: LogFields = {}): void {
    this.lines.push({ level: "error", event, fields });
  }

  /** How often an event was logged. */
  count(event: string): number {
    return this.lines.filter((l) => l.event === event).length;
  }
}

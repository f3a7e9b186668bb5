/** Traces of exports: being recorded, and in files. */

import {
  decodeTrace,
  type TraceRecord,
  TraceRecorder,
} from "../lib/image/mod.ts";
import { errorText, NotFoundError, ObdError } from "../lib/io/mod.ts";
import type { TraceControl } from "./api.ts";

const TRACE_SIZE_MAX = 64 * 1024 * 1024;

/**
 * Reads a trace file.
 *
 * @throws {ObdError} Naming the file, if it cannot be read or is no trace.
 */
export async function readTraceFile(path: string): Promise<TraceRecord[]> {
  try {
    const { size } = await Deno.stat(path);
    if (size > TRACE_SIZE_MAX) {
      throw new ObdError("limit", `it has ${size} bytes`);
    }
    return decodeTrace(await Deno.readFile(path));
  } catch (error) {
    const code = error instanceof ObdError
      ? error.code
      : error instanceof Deno.errors.NotFound
      ? "not-found"
      : "state";
    throw new ObdError(
      code,
      `Cannot read trace "${path}": ${errorText(error)}`,
      { cause: error },
    );
  }
}

/** The recordings of one serve, by export. */
export class TraceRecordings implements TraceControl {
  readonly #recorders = new Map<string, TraceRecorder>();
  readonly #isServed: (name: string) => boolean;

  constructor(isServed: (name: string) => boolean) {
    this.#isServed = isServed;
  }

  start(name: string): void {
    if (!this.#isServed(name)) throw new NotFoundError(`No export "${name}"`);
    if (this.#recorders.has(name)) {
      throw new ObdError("conflict", `Export "${name}" is recorded already`);
    }
    this.#recorders.set(name, new TraceRecorder());
  }

  stop(name: string): readonly TraceRecord[] {
    const recorder = this.#recorders.get(name);
    if (!recorder) throw new NotFoundError(`Export "${name}" is not recorded`);
    this.#recorders.delete(name);
    return recorder.records;
  }

  /** For every read of every export. */
  note(name: string, offset: number, length: number): void {
    if (this.#recorders.size === 0) return;
    this.#recorders.get(name)?.note(offset, length);
  }

  /** The export is gone. */
  drop(name: string): void {
    this.#recorders.delete(name);
  }
}

/** Traces of exports: being recorded, and in files. */

import {
  decodeTrace,
  readAccelerationLayer,
  readFileList,
  traceDevice,
  type TraceRecord,
  TraceRecorder,
} from "../lib/image/mod.ts";
import {
  errorText,
  latin1FromBytes,
  NotFoundError,
  ObdError,
  readFileUpTo,
} from "../lib/io/mod.ts";
import type { TraceControl } from "./api.ts";
import type { ImageConfig } from "./config.ts";

const TRACE_SIZE_MAX = 64 * 1024 * 1024;
/** Ranges of a trace that are fetched ahead, the first ones: as many as one beside an image may have. */
const REPLAYED_MAX = 350_000;

/** What a trace file has. */
export interface TraceFile {
  records: TraceRecord[];
  /** First digits of the fingerprint of the device that was traced, if it says so. */
  device?: string;
}

/**
 * Reads a trace file, or an overlaybd acceleration layer, which is a tar with one.
 *
 * @param most Ranges that are wanted, the first ones.
 * @throws {ObdError} Naming the file, if it cannot be read or is no trace.
 */
export async function readTraceFile(
  path: string,
  most = Infinity,
): Promise<TraceFile> {
  try {
    const bytes = await readFileUpTo(path, TRACE_SIZE_MAX);
    if (isTar(bytes)) {
      return { records: await readAccelerationLayer(bytes, { most }) };
    }
    const records = await decodeTrace(bytes, { most });
    const device = traceDevice(bytes, records);
    return { records, ...(device === undefined ? {} : { device }) };
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

/**
 * What the configuration of an image names to be fetched ahead.
 *
 * @throws {ObdError} Naming the file that cannot be used.
 */
export async function readPrefetchFiles(
  { trace, prefetchFiles }: ImageConfig,
): Promise<{ trace?: TraceFile; fileList?: string }> {
  return {
    ...(typeof trace === "string"
      ? { trace: await readTraceFile(trace, REPLAYED_MAX) }
      : {}),
    ...(prefetchFiles === undefined
      ? {}
      : { fileList: await readFileList(prefetchFiles) }),
  };
}

/** As acceleration layers are: POSIX tar, which says so in its first header. */
function isTar(bytes: Uint8Array): boolean {
  return latin1FromBytes(bytes.subarray(257, 262)) === "ustar";
}

/** The recordings of one serve, by export. */
export class TraceRecordings implements TraceControl {
  readonly #recorders = new Map<string, TraceRecorder>();
  /** Of those that are recorded: who asks what was read must not wait for a registry. */
  readonly #devices = new Map<string, string>();
  readonly #isServed: (name: string) => boolean;
  readonly #fingerprint: (name: string) => Promise<string>;

  /** @param fingerprint Of the device of an export that is served. */
  constructor(
    isServed: (name: string) => boolean,
    fingerprint: (name: string) => Promise<string>,
  ) {
    this.#isServed = isServed;
    this.#fingerprint = fingerprint;
  }

  start(name: string): void {
    if (!this.#isServed(name)) throw new NotFoundError(`No export "${name}"`);
    if (this.#recorders.has(name)) {
      throw new ObdError(
        "conflict",
        `Export "${name}" is recorded already; if nobody does, end that with DELETE /v1/traces/${
          encodeURIComponent(name)
        } of the status API`,
      );
    }
    this.#recorders.set(name, new TraceRecorder());
  }

  read(name: string, from: number): readonly TraceRecord[] {
    return this.#recorder(name).records.slice(from);
  }

  async device(name: string): Promise<string> {
    if (!this.#isServed(name)) throw new NotFoundError(`No export "${name}"`);
    const known = this.#devices.get(name);
    if (known !== undefined) return known;
    const device = await this.#fingerprint(name);
    if (this.#recorders.has(name)) this.#devices.set(name, device);
    return device;
  }

  stop(name: string): readonly TraceRecord[] {
    const { records } = this.#recorder(name);
    this.drop(name);
    return records;
  }

  #recorder(name: string): TraceRecorder {
    const recorder = this.#recorders.get(name);
    if (recorder) return recorder;
    throw new NotFoundError(
      this.#isServed(name)
        ? `Export "${name}" is not recorded`
        : `No export "${name}"`,
    );
  }

  /** For every read of every export. */
  note(name: string, offset: number, length: number): void {
    if (this.#recorders.size === 0) return;
    this.#recorders.get(name)?.note(offset, length);
  }

  /** The export is gone. */
  drop(name: string): void {
    this.#recorders.delete(name);
    this.#devices.delete(name);
  }
}

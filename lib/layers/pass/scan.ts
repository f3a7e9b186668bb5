/** One pass over a layer blob: see {@linkcode scanLayer}. */

import {
  CancelledError,
  concatBytes,
  IntegrityError,
  toHex,
  UnsupportedError,
} from "../../io/mod.ts";
import { makeTables } from "./checkpoint_list.ts";
import { SNIFF_SIZE, sniffLayer } from "./sniff.ts";
import { InlineStage, type PassStage, ThreadedStage } from "./stages.ts";
import type { LayerScan, ScanOptions } from "./types.ts";

/** Below this many bytes of blob, starting threads costs more than they save. */
const THREADS_SIZE_MIN = 2 * 1024 * 1024;

/**
 * Reads a layer blob once: checks its digest and size, decompresses it, checks
 * the tar's digest, records the SHA-256 of each span and the checkpoints, and
 * hands the tar to a walker. Nothing is stored; memory is bounded (about 25 MiB
 * and a few KiB for each MiB of tar).
 *
 * The walker sees bytes before their digest is known: what it built may be used
 * only when this resolves.
 *
 * @param input The blob in order, in pieces of any size; each is read before the next is asked for.
 * @throws {IntegrityError} If size, digest, diffID, gzip CRC or gzip size are wrong.
 * @throws {FormatError} If the blob is malformed, or whatever the walker throws.
 * @throws {UnsupportedError} If the blob is compressed with something else, or its digest is no SHA-256.
 * @throws {CancelledError} If `signal` was aborted.
 */
export async function scanLayer(
  input: AsyncIterable<Uint8Array>,
  options: ScanOptions,
): Promise<LayerScan> {
  checkDigestName(options.expectedDigest);
  if (options.expectedDiffId !== undefined) {
    checkDigestName(options.expectedDiffId);
  }
  const reader = new BlobReader(input, options);
  try {
    const head = await reader.readHead();
    const compression = sniffLayer(head);
    const settings = {
      compression,
      blobSize: options.blobSize,
      spanSize: options.spanSize,
      sparseWindows: options.sparseWindows,
    };
    const threads = options.threads ??
      Math.min(3, navigator.hardwareConcurrency);
    const isThreaded = threads > 1 && options.blobSize >= THREADS_SIZE_MIN;
    await using stage: PassStage = isThreaded
      ? new ThreadedStage(
        settings,
        options.walker,
        threads,
        (error) => reader.interrupt(error),
      )
      : new InlineStage(settings, options.walker);
    await stage.write(head);
    for (let bytes; (bytes = await reader.read()) !== undefined;) {
      await stage.write(bytes);
    }
    // Before the decoder is told: to it, a blob that is cut is a bad format.
    reader.checkSize();
    const { record, tarSize, members, checkpoints } = await stage.end();
    checkDigest("Blob digest", options.expectedDigest, record.blob);
    if (options.expectedDiffId !== undefined) {
      checkDigest("Layer diffID", options.expectedDiffId, record.tar);
    }
    options.walker?.finish();
    return {
      blobDigest: options.expectedDigest,
      blobSize: options.blobSize,
      compression,
      diffId: digestName(record.tar),
      tarSize,
      members,
      ...makeTables(
        compression,
        checkpoints,
        record.spans,
        tarSize,
      ),
    };
  } finally {
    reader.close();
  }
}

/** Reads the input with its size checked, and lets go of it when told to stop. */
class BlobReader {
  readonly #iterator: AsyncIterator<Uint8Array>;
  readonly #options: ScanOptions;
  readonly #onAbort: () => void;
  #rejectRead: ((error: unknown) => void) | undefined;
  #size = 0;
  #ended = false;

  constructor(input: AsyncIterable<Uint8Array>, options: ScanOptions) {
    this.#iterator = input[Symbol.asyncIterator]();
    this.#options = options;
    this.#onAbort = () => this.interrupt(new CancelledError());
    options.signal?.addEventListener("abort", this.#onAbort, { once: true });
  }

  /** Makes a running read reject. */
  interrupt(error: unknown): void {
    this.#rejectRead?.(error);
  }

  /** Called at the end: longer ones do not get there. */
  checkSize(): void {
    const { blobSize } = this.#options;
    if (this.#size !== blobSize) {
      throw new IntegrityError(
        "Blob size",
        `${blobSize} bytes`,
        `${this.#size} bytes`,
      );
    }
  }

  /** The first bytes, enough to tell what it is. */
  async readHead(): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    let size = 0;
    while (size < SNIFF_SIZE) {
      const bytes = await this.read();
      if (bytes === undefined) break;
      parts.push(bytes.slice());
      size += bytes.length;
    }
    return concatBytes(parts);
  }

  /** The next piece, or undefined at the end. */
  async read(): Promise<Uint8Array | undefined> {
    if (this.#ended) return undefined;
    const result = await this.#next();
    if (result.done) {
      this.#ended = true;
      return undefined;
    }
    this.#size += result.value.length;
    if (this.#size > this.#options.blobSize) {
      throw new IntegrityError(
        "Blob size",
        `${this.#options.blobSize} bytes`,
        `at least ${this.#size} bytes`,
      );
    }
    this.#options.onProgress?.(result.value.length);
    return result.value;
  }

  #next(): Promise<IteratorResult<Uint8Array>> {
    return new Promise((resolve, reject) => {
      if (this.#options.signal?.aborted) return reject(new CancelledError());
      this.#rejectRead = reject;
      this.#iterator.next().then(resolve, reject);
    });
  }

  /** Ends the input if it is not over. Not waited for: it may hang in its own read. */
  close(): void {
    this.#options.signal?.removeEventListener("abort", this.#onAbort);
    if (!this.#ended) this.#iterator.return?.().catch(() => {});
  }
}

function checkDigestName(digest: string): void {
  if (!/^sha256:[0-9a-f]{64}$/.test(digest)) {
    throw new UnsupportedError(
      "digest algorithm",
      `Digest "${digest.slice(0, 100)}" is not a SHA-256`,
    );
  }
}

function checkDigest(what: string, want: string, got: Uint8Array): void {
  if (digestName(got) !== want) {
    throw new IntegrityError(what, want, digestName(got));
  }
}

function digestName(sha256: Uint8Array): string {
  return `sha256:${toHex(sha256)}`;
}

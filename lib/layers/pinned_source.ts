/**
 * A layer that can only be decoded from its start: it is decoded once, in a
 * worker, into a pinned file, and read from there. A read waits until the
 * decoder has passed what it wants.
 */

import { createHash } from "node:crypto";
import { unpackError } from "../compress/mod.ts";
import {
  type ByteSource,
  CancelledError,
  checkRange,
  DeadlineError,
  equalBytes,
  errorText,
  FileSource,
  IntegrityError,
  type Logger,
  ObdError,
  type ReadOptions,
  silentLogger,
  type SourceDescription,
  startWorker,
} from "../io/mod.ts";
import { isCaching } from "./cache/mod.ts";
import { isWrongData } from "./make_checked.ts";
import type { PinnedFile, PinnedStore } from "./pinned_store.ts";
import {
  PIN_CHUNK,
  PIN_ROLE,
  PIN_WORKER_URL,
  type PinInput,
  type PinReply,
  type PinStart,
} from "./pinned_worker.ts";
import type { SpanTable } from "./span_table.ts";

/** Pieces of the blob on their way to the worker, and waiting in it. */
const CHUNKS_AHEAD = 4;
/** A read fails when the decoder stands still for so long. */
const DEFAULT_DEADLINE_MS = 120_000;
/** After a failure, reads fail with it for so long before decoding starts again. */
const DEFAULT_RETRY_MS = 5_000;
/** How often somebody may cut the file off under the decoder. */
const CUTS_MAX = 5;

/** Settings of a {@linkcode PinnedSource}. */
export interface PinnedOptions {
  /** Digest of the compressed blob. */
  digest: string;
  /** Names the content in the store. */
  diffId: string;
  /** Default `"zstd"`. */
  compression?: "gzip" | "zstd" | undefined;
  /** With digests. */
  spans: SpanTable;
  /** Where decoding starts in the blob: 0, or a frame of zstd. */
  compressedStart: number;
  store: PinnedStore;
  logger?: Logger | undefined;
  /** In ms. */
  deadlineMs?: number | undefined;
  /** In ms. */
  retryMs?: number | undefined;
}

/** Reads a layer out of its pinned file; see the module comment. Owns the compressed source. */
export class PinnedSource implements ByteSource {
  readonly size: number;
  readonly #compressed: ByteSource;
  readonly #options: PinnedOptions;
  readonly #spans: SpanTable;
  readonly #logger: Logger;
  readonly #pinned: PinnedFile;
  readonly #file: FileSource;
  /** Spans of an earlier process's file that turned out to be wrong, or not there. */
  readonly #absent: Uint8Array;
  readonly #waiters = new Set<() => void>();
  #run: Promise<void> | undefined;
  #control = new AbortController();
  #failure: { error: unknown; at: number } | undefined;
  #progressAt = 0;
  #closed: Promise<void> | undefined;

  private constructor(
    compressed: ByteSource,
    options: PinnedOptions,
    pinned: PinnedFile,
    file: FileSource,
  ) {
    this.#compressed = compressed;
    this.#options = options;
    this.#spans = options.spans;
    this.size = options.spans.size;
    this.#logger = options.logger ?? silentLogger;
    this.#pinned = pinned;
    this.#file = file;
    this.#absent = new Uint8Array(options.spans.count);
    if (!pinned.existed) this.#absent.fill(1);
  }

  /**
   * Reserves the file. Decoding starts with the first read.
   *
   * @throws {LimitError} If the layer does not fit.
   */
  static async open(
    compressed: ByteSource,
    options: PinnedOptions,
  ): Promise<PinnedSource> {
    const { spans, store, diffId } = options;
    const pinned = await store.pin(diffId, spans.size, spans.count);
    try {
      const file = await FileSource.open(pinned.path);
      return new PinnedSource(compressed, options, pinned, file);
    } catch (error) {
      await pinned.release();
      throw error;
    }
  }

  preadNow(dst: Uint8Array, offset: number): boolean {
    checkRange(this.size, offset, dst.length);
    if (this.#closed || !this.#isVerified(offset, dst.length)) return false;
    return this.#file.preadNow(dst, offset);
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    if (dst.length === 0) return;
    const first = this.#spans.find(offset);
    const last = this.#spans.find(offset + dst.length - 1);
    for (let isLost = false;;) {
      for (let i = first; i <= last; i++) await this.#await(i, options.signal);
      try {
        await this.#file.pread(dst, offset);
        // Another source of the layer may have found it to be lost meanwhile.
        if (this.#isVerified(offset, dst.length)) return;
      } catch (error) {
        if (isLost || this.#closed) throw error;
        isLost = true;
        await this.#forget(first, last, error);
      }
    }
  }

  /** Has spans that the file held, and that cannot be read, decoded again. */
  async #forget(first: number, last: number, error: unknown): Promise<void> {
    const { path, verified } = this.#pinned;
    this.#logger.warn("pinned.lost", {
      layer: this.#options.digest,
      path,
      error: errorText(error),
    });
    if (await this.#restore()) return;
    verified.fill(0, first, last + 1);
    this.#absent.fill(1, first, last + 1);
  }

  /**
   * Gives a file that somebody made shorter its length again. Before that
   * nobody may believe any more that it holds something: what was cut off would
   * read as zeros.
   *
   * @returns False if it has its length, or is gone.
   */
  async #restore(): Promise<boolean> {
    const { path, verified } = this.#pinned;
    const info = await Deno.stat(path).catch(() => undefined);
    if (!info || info.size >= this.size) return false;
    verified.fill(0);
    this.#absent.fill(1);
    await Deno.truncate(path, this.size);
    return true;
  }

  /** Starts the decoder, which fetches in its own order; waiting for it would hold up what else is prefetched. */
  // deno-lint-ignore require-await -- a range error must reject, not throw
  async prefetch(offset: number, length: number): Promise<void> {
    checkRange(this.size, offset, length);
    if (this.#closed || length === 0) return;
    const last = this.#spans.find(offset + length - 1);
    for (let i = this.#spans.find(offset); i <= last; i++) {
      // What an earlier process left may be right: a read will see.
      if (this.#pinned.verified[i] !== 1 && this.#absent[i] === 1) {
        return this.#start();
      }
    }
  }

  #isVerified(offset: number, length: number): boolean {
    if (length === 0) return true;
    const { verified } = this.#pinned;
    const last = this.#spans.find(offset + length - 1);
    for (let i = this.#spans.find(offset); i <= last; i++) {
      if (verified[i] !== 1) return false;
    }
    return true;
  }

  /** Resolves when the file holds a span. */
  async #await(span: number, signal: AbortSignal | undefined): Promise<void> {
    const { verified } = this.#pinned;
    const deadlineMs = this.#options.deadlineMs ?? DEFAULT_DEADLINE_MS;
    let since = performance.now();
    while (verified[span] !== 1) {
      if (this.#closed) throw closedError();
      if (signal?.aborted) throw new CancelledError();
      if (this.#absent[span] === 0) {
        await this.#checkOld(span);
        continue;
      }
      this.#start();
      since = Math.max(since, this.#progressAt);
      const left = since + deadlineMs - performance.now();
      if (left <= 0) {
        throw new DeadlineError(
          `Span ${span} of layer "${this.#options.digest}"`,
          deadlineMs,
        );
      }
      await this.#change(left, signal);
    }
  }

  /** Looks at what an earlier process left. */
  async #checkOld(span: number): Promise<void> {
    const bytes = new Uint8Array(this.#spans.sizeOf(span));
    try {
      await this.#file.pread(bytes, this.#spans.offsetOf(span));
      const got = createHash("sha256").update(bytes).digest();
      if (equalBytes(got, this.#spans.digestOf(span)!)) {
        this.#pinned.verified[span] = 1;
      }
    } catch {
      // Then it is decoded again.
    }
    this.#absent[span] = 1;
  }

  /** Resolves when anything happened, or after `milliseconds`. */
  #change(milliseconds: number, signal: AbortSignal | undefined) {
    return new Promise<void>((resolve) => {
      const settle = () => {
        clearTimeout(timer);
        this.#waiters.delete(settle);
        signal?.removeEventListener("abort", settle);
        resolve();
      };
      // Another source of the same layer may fill the file: look now and then.
      const timer = setTimeout(settle, Math.min(milliseconds, 1000));
      this.#waiters.add(settle);
      signal?.addEventListener("abort", settle, { once: true });
    });
  }

  #notify(): void {
    for (const settle of [...this.#waiters]) settle();
  }

  /** Starts the decoder, unless it runs or has just failed. */
  #start(): void {
    const retryMs = this.#options.retryMs ?? DEFAULT_RETRY_MS;
    if (this.#failure) {
      const age = performance.now() - this.#failure.at;
      if (age < retryMs) throw this.#failure.error;
      this.#failure = undefined;
    }
    if (this.#run) return;
    this.#progressAt = performance.now();
    this.#run = this.#decode().catch((error) => {
      if (this.#closed) return;
      this.#failure = { error, at: performance.now() };
      this.#logger.error("span.failed", {
        layer: this.#options.digest,
        code: error instanceof ObdError ? error.code : "state",
        error: errorText(error),
      });
    }).finally(() => {
      this.#run = undefined;
      this.#notify();
    });
  }

  /** Decodes the layer; again from the start where a cache below may be to blame. */
  async #decode(): Promise<void> {
    let isSecond = false;
    for (let cuts = 0;;) {
      const decoder = new PinDecoder(
        this.#compressed,
        this.#options,
        this.#pinned,
        () => {
          this.#progressAt = performance.now();
          this.#notify();
        },
      );
      try {
        return await decoder.run(this.#control.signal);
      } catch (error) {
        if (error !== decoder.said) throw error;
        if (decoder.isShort && ++cuts <= CUTS_MAX) {
          await this.#restore();
          continue;
        }
        if (!isWrongData(error)) throw error;
        const { digest, compressedStart } = this.#options;
        const cached = isCaching(this.#compressed) &&
          this.#compressed.discard(
            compressedStart,
            decoder.offset - compressedStart,
          );
        if (cached && !isSecond) {
          isSecond = true;
          continue;
        }
        const [want, got] = error instanceof IntegrityError
          ? [error.want, error.got]
          : ["decodable", "not decodable"];
        const what = `Span ${decoder.failedSpan} of layer "${digest}"`;
        throw new IntegrityError(what, want, got, { cause: error });
      }
    }
  }

  describe(): SourceDescription {
    const inner = this.#compressed.describe?.();
    return {
      kind: "pinned",
      detail: {
        layer: this.#options.digest,
        path: this.#pinned.path,
        spans: this.#spans.count,
        integrity: "spans",
      },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close(): Promise<void> {
    this.#control.abort();
    this.#notify();
    await this.#run;
    await this.#file[Symbol.asyncDispose]();
    await this.#pinned.release();
    await this.#compressed[Symbol.asyncDispose]();
  }
}

/** One run of the worker over the blob. */
class PinDecoder {
  /** Where it is in the blob. */
  offset: number;
  /** The span at which it failed. */
  failedSpan = 0;
  /** The worker's error, not the source's. */
  said: unknown;
  /** What it said was that somebody made the file shorter. */
  isShort = false;
  readonly #source: ByteSource;
  readonly #start: PinStart;
  readonly #verified: Uint8Array;
  readonly #onProgress: () => void;

  constructor(
    source: ByteSource,
    options: PinnedOptions,
    pinned: PinnedFile,
    onProgress: () => void,
  ) {
    const { spans } = options;
    const index = Array.from({ length: spans.count }, (_, i) => i);
    const digests = new Uint8Array(32 * spans.count);
    for (const i of index) digests.set(spans.digestOf(i)!, 32 * i);
    this.#source = source;
    this.#verified = pinned.verified;
    this.#onProgress = onProgress;
    this.offset = options.compressedStart;
    this.#start = {
      kind: "start",
      compression: options.compression ?? "zstd",
      path: pinned.path,
      offsets: Float64Array.from(index, (i) => spans.offsetOf(i)),
      tarSize: spans.size,
      digests,
      verified: pinned.verified,
    };
  }

  async run(outer: AbortSignal): Promise<void> {
    const control = new AbortController();
    const worker = startWorker(PIN_WORKER_URL, PIN_ROLE);
    const done = Promise.withResolvers<void>();
    done.promise.catch(() => {});
    const onAbort = () => done.reject(new CancelledError());
    outer.addEventListener("abort", onAbort, { once: true });
    if (outer.aborted) onAbort();
    let used = () => {};
    worker.onmessage = ({ data }: MessageEvent<PinReply>) => {
      if (data.kind === "used") used();
      else if (data.kind === "done") done.resolve();
      else if (data.kind === "span") {
        this.#verified[data.index] = 1;
        this.#onProgress();
      } else {
        this.failedSpan = data.span;
        this.isShort = data.isShort;
        done.reject(this.said = unpackError(data.error));
      }
    };
    worker.onerror = (event) => {
      event.preventDefault();
      done.reject(
        new ObdError("state", `Layer worker failed: ${event.message}`),
      );
    };
    try {
      worker.postMessage(this.#start);
      let free = CHUNKS_AHEAD;
      let wake = () => {};
      used = () => {
        free++;
        wake();
      };
      const room = async () => {
        while (free === 0) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
        free--;
      };
      const feed = this.#feed(worker, room, control.signal);
      feed.catch((error) => done.reject(error));
      await done.promise;
    } finally {
      outer.removeEventListener("abort", onAbort);
      control.abort();
      worker.terminate();
    }
  }

  /** Posts the blob in order, with reads of the next pieces under way. */
  async #feed(
    worker: Worker,
    room: () => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const { size } = this.#source;
    const ahead: Promise<Uint8Array<ArrayBuffer>>[] = [];
    let next = this.offset;
    const read = () => {
      const length = Math.min(PIN_CHUNK, size - next);
      const bytes = new Uint8Array(length);
      const reading = this.#source.pread(bytes, next, { signal });
      const piece = Promise.resolve(reading).then(() => bytes);
      piece.catch(() => {});
      ahead.push(piece);
      next += length;
    };
    do {
      await room();
      if (signal.aborted) return;
      while (ahead.length < CHUNKS_AHEAD && next < size) read();
      const bytes = await ahead.shift() ?? new Uint8Array(0);
      if (signal.aborted) return;
      this.offset += bytes.length;
      const isLast = this.offset >= size;
      const message: PinInput = { kind: "input", bytes, isLast };
      worker.postMessage(message, [bytes.buffer]);
    } while (this.offset < size);
  }
}

function closedError(): ObdError {
  return new ObdError("state", "Cannot read: the layer is closed");
}

/** The uncompressed tar of a gzip layer, read at random. */

import { type CodecPool, inputStart, type SpanJob } from "../compress/mod.ts";
import {
  type ByteSource,
  FormatError,
  type ReadOptions,
  type SourceDescription,
  UnsupportedError,
} from "../io/mod.ts";
import { type CacheStore, Lease } from "./cache/mod.ts";
import { makeChecked } from "./make_checked.ts";
import { SpareBuffers } from "./spare_buffers.ts";
import {
  digestKey,
  type MadeSpan,
  type MakeOptions,
  type SpanMaker,
  SpanSource,
  type SpanSourceOptions,
  type StoredUnit,
} from "./span_source.ts";
import { MAX_SPAN_BYTES, type SpanTable } from "./span_table.ts";

/**
 * Most compressed bytes of one span. Deflate grows by a few bytes per 64 KiB at
 * worst, but a stream may hold any number of empty blocks.
 */
const MAX_COMPRESSED_BYTES = MAX_SPAN_BYTES + 2 ** 20;
/** What is read beyond the largest sensible end of the last span: the gzip trailer and then some. */
const TAIL_SLACK = 64 * 1024;

/** Where decoding may start: one entry per span, in the order of the spans. */
export interface CheckpointTable {
  readonly count: number;
  /** First whole byte, in the compressed blob. */
  compressedOffset(index: number): number;
  /** Bits of the byte before it that belong to the checkpoint, 0–7. */
  bits(index: number): number;
  /** The preceding output as a zlib stream (RFC 1950) of 32768 bytes; empty at the start of a member. */
  window(index: number): Uint8Array;
}

/** Decodes spans, off this thread: a {@linkcode CodecPool}, or a part of one. */
export type SpanInflater =
  & Pick<CodecPool, "inflateSpan">
  & Partial<Pick<CodecPool, "expectJob" | "streamSpan">>;

/** Settings of a {@linkcode GunzipSource}. */
export interface GunzipOptions extends SpanSourceOptions {
  /** Digest of the compressed blob. */
  digest: string;
  /** Without digests in it nothing can be checked (integrity "none"). */
  spans: SpanTable;
  checkpoints: CheckpointTable;
  /** Names blob and tables in the span cache where spans have no digests; default the blob's digest. */
  cacheKey?: string;
  /** Borrowed. */
  inflater: SpanInflater;
}

/**
 * Reads a gzip layer at random: a read fetches just the compressed bytes of its
 * spans, decodes each from its checkpoint and checks it against its SHA-256
 * before any of it is served or stored. Owns the compressed source.
 *
 * A read fails with an `IntegrityError` when a span is not what the table says
 * (read twice, if the first bytes came from a cache).
 */
export class GunzipSource extends SpanSource {
  /**
   * @throws {FormatError} When the tables do not fit each other or the blob.
   * @throws {UnsupportedError} When a span is too large to decode in memory.
   */
  constructor(compressed: ByteSource, options: GunzipOptions) {
    super(new GunzipMaker(compressed, options), options);
  }
}

class GunzipMaker implements SpanMaker {
  readonly name: string;
  readonly spans: SpanTable;
  readonly #compressed: ByteSource;
  readonly #checkpoints: CheckpointTable;
  readonly #cacheKey: string;
  readonly #inflater: SpanInflater;
  readonly #store: CacheStore | undefined;

  constructor(compressed: ByteSource, options: GunzipOptions) {
    this.name = options.digest;
    this.spans = options.spans;
    this.#compressed = compressed;
    this.#checkpoints = options.checkpoints;
    this.#cacheKey = options.cacheKey ?? options.digest;
    this.#inflater = options.inflater;
    this.#store = options.cache.store;
    checkTables(compressed.size, options.spans, options.checkpoints);
  }

  keyOf(index: number): string {
    const digest = this.spans.digestOf(index);
    if (digest) return digestKey(digest);
    const offset = this.spans.offsetOf(index);
    // Two indexes of one blob may cut it differently.
    return `${this.#cacheKey}/gunzip/${offset}+${this.spans.sizeOf(index)}`;
  }

  async make(index: number, options: MakeOptions): Promise<MadeSpan> {
    const { start, length } = this.#range(index);
    const sha256 = this.spans.digestOf(index);
    let output: Output | undefined;
    const jobs: (() => void)[] = [];
    const jobOf = (input: Uint8Array, onFree: () => void) => {
      // Without a digest the store computes one, off this thread, which it
      // cannot do with shared memory. A second attempt has the memory of the
      // first, which the decoder is done with when its bytes were wrong.
      if (sha256) output ??= takeOutput(this.spans.sizeOf(index));
      const freeOutput = output?.lease.lend();
      if (freeOutput) jobs.push(freeOutput);
      return {
        ...this.#spanJob(index, input, options),
        output: output?.bytes,
        onFree: () => {
          freeOutput?.();
          onFree();
        },
      };
    };
    this.#inflater.expectJob?.();
    const making = makeChecked({
      what: `Span ${index} of layer "${this.name}"`,
      source: this.#compressed,
      start,
      length,
      shared: true,
      // What the span cache has room for is not kept a second time, compressed.
      // Once it evicts, the blob's cache keeps what it would fetch again.
      once: this.#store?.hasRoomFor(this.spans.sizeOf(index)) ?? false,
      sha256,
      decode: (input, onFree) =>
        this.#inflater.inflateSpan(jobOf(input, onFree)),
      stream: (input, onFree) => {
        const job = jobOf(input, onFree);
        const span = this.#inflater.streamSpan?.(job);
        if (!span) job.onFree();
        return span;
      },
      options,
    });
    let bytes: Uint8Array;
    try {
      bytes = await making;
    } catch (error) {
      output?.lease.release();
      throw error;
    }
    for (const free of jobs) free();
    return leased(bytes, output);
  }

  unitOf(index: number): StoredUnit {
    const { start, length } = this.#range(index);
    return {
      offset: this.spans.offsetOf(index),
      length: this.spans.sizeOf(index),
      blobOffset: start,
      blobLength: length,
    };
  }

  #spanJob(index: number, input: Uint8Array, options: ReadOptions): SpanJob {
    const window = this.#checkpoints.window(index);
    return {
      ...options,
      input,
      bits: this.#checkpoints.bits(index),
      window,
      windowIsZlib: window.length > 0,
      length: this.spans.sizeOf(index),
      sha256: this.spans.digestOf(index),
    };
  }

  /** The compressed bytes of a span, with the partial bytes at both ends. */
  #range(index: number): { start: number; length: number } {
    const table = this.#checkpoints;
    const start = compressedStart(table, index);
    let end = this.#compressed.size;
    if (index + 1 < table.count) end = table.compressedOffset(index + 1);
    else end = Math.min(end, start + worstCompressed(this.spans.sizeOf(index)));
    return { start, length: end - start };
  }

  describe(): SourceDescription {
    const inner = this.#compressed.describe?.();
    return {
      kind: "gunzip",
      detail: {
        layer: this.name,
        spans: this.spans.count,
        integrity: this.spans.digestOf(0) ? "spans" : "none",
      },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  dispose(): Promise<void> {
    return Promise.resolve(this.#compressed[Symbol.asyncDispose]());
  }
}

function compressedStart(table: CheckpointTable, index: number): number {
  return inputStart({
    compressedOffset: table.compressedOffset(index),
    bits: table.bits(index),
  });
}

/** Stored blocks cost 5 bytes per 65,535 (RFC 1951 §3.2.4); a tenth more allows for poor compressors. */
function worstCompressed(length: number): number {
  return Math.ceil(length * 1.1) + TAIL_SLACK;
}

function checkTables(
  blobSize: number,
  spans: SpanTable,
  checkpoints: CheckpointTable,
): void {
  const wrong = (field: string, problem: string) =>
    new FormatError("gzip index", field, problem);
  if (checkpoints.count !== spans.count) {
    throw wrong(
      "checkpoints",
      `are ${checkpoints.count}, spans ${spans.count}`,
    );
  }
  let start = 0;
  for (let i = 0; i < checkpoints.count; i++) {
    const offset = checkpoints.compressedOffset(i);
    const bits = checkpoints.bits(i);
    if (!Number.isInteger(bits) || bits < 0 || bits > 7) {
      throw wrong(`bits of checkpoint ${i}`, `are ${bits}`);
    }
    const from = offset - (bits > 0 ? 1 : 0);
    if (!Number.isSafeInteger(offset) || from < start || offset > blobSize) {
      throw wrong(`offset of checkpoint ${i}`, `is ${offset}`);
    }
    if (i > 0 && from - start > MAX_COMPRESSED_BYTES) {
      throw new UnsupportedError(
        "large span",
        `Cannot serve lazily: span ${i - 1} has ${
          from - start
        } compressed bytes, at most ${MAX_COMPRESSED_BYTES} are supported`,
      );
    }
    start = from;
  }
}

/**
 * What spans are decoded into, of all layers: as much as the memory cache has by
 * default.
 */
const outputs = new SpareBuffers(32 * 1024 * 1024);

/** Memory to decode a span into, of its length. */
interface Output {
  bytes: Uint8Array<SharedArrayBuffer>;
  /** Held by who makes the span, and by each job until it is done. */
  lease: Lease;
}

/** Memory for a span of `length` bytes; undefined: the decoder takes its own. */
function takeOutput(length: number): Output | undefined {
  const buffer = outputs.take(length);
  return buffer && {
    bytes: new Uint8Array(buffer, 0, length),
    lease: new Lease(() => outputs.give(buffer)),
  };
}

/** A span as its decoder gave it. */
function leased(bytes: Uint8Array, output: Output | undefined): MadeSpan {
  if (!output || bytes.buffer !== output.bytes.buffer) return { bytes };
  return { bytes, lease: output.lease };
}

/**
 * One pass over a gzip blob: its bytes, and the checkpoints from which it can
 * be read later.
 *
 * Checkpoints are chosen like overlaybd's `gzip_index_create.cpp` does, so that
 * they can be written as its `gzip.meta`: the last block boundary before each
 * multiple of the span, one that lies on a multiple itself, and the start. The
 * start of a later member counts as a boundary.
 *
 * A boundary is known to be a checkpoint only once the next one is met, so the
 * spans are reported behind the decoder, as commands to a {@linkcode SpanSink}.
 *
 * Deterministic: decoding proceeds in steps that depend on stream positions
 * alone, never on how much input happened to be there.
 */

import * as zlib from "node:zlib";
import {
  FormatError,
  IntegrityError,
  isZero,
  UnsupportedError,
  viewOf,
} from "../io/mod.ts";
import type { ByteRing } from "./byte_ring.ts";
import type { CheckpointCandidate } from "./checkpoint_search.ts";
import { SAMPLE_SIZE } from "./checkpoint_search.ts";
import {
  GZIP_HEADER_SIZE_MAX,
  GZIP_TRAILER_SIZE,
  gzipHeaderSize,
  hasGzipMagic,
} from "./gzip_header.ts";
import { openRawInflate, type RawInflate, WINDOW_SIZE } from "./raw_inflate.ts";

/** Receives the decompressed stream cut into spans. All positions are absolute. */
export interface SpanSink {
  /** Bytes up to `to` belong to the current span. */
  advance(to: number): void;
  /**
   * A new span starts where the last one advanced to, unless the candidate is
   * no checkpoint (see {@linkcode CheckpointMaker}). Called first at 0.
   */
  split(candidate: CheckpointCandidate): void;
  /** What follows belongs to the current span or to a new one; `resolve` tells later. */
  fork(): void;
  /** Settles a fork: as `split` where it forked, or the span went on. */
  resolve(candidate: CheckpointCandidate | undefined): void;
}

/** Uncompressed bytes between checkpoints when not told otherwise. */
export const DEFAULT_SPAN_SIZE = 1024 * 1024;
/** As overlaybd's `gzip.meta` demands. */
export const SPAN_SIZE_MIN = 65536;
/** Longest span of any index, also when its deflate blocks are bigger than it. */
export const SPAN_SIZE_MAX = 128 * 1024 * 1024;

// Primes: a block boundary is not seen when it falls on the end of a step, and
// writers like multiples of powers of two.
const INPUT_STEP = 65537;
const OUTPUT_STEP = 262147;
/** A fitting capacity for the input ring in bytes. */
export const INPUT_RING_SIZE = 64 * INPUT_STEP;
/** A fitting capacity for the output ring in bytes. */
export const OUTPUT_RING_SIZE = 31 * OUTPUT_STEP;

interface Boundary {
  compressedOffset: number;
  uncompressedOffset: number;
  member: number;
  memberStart: number;
  /** Right behind a member's header: bit 0, nothing before it. */
  startsMember: boolean;
  /** Whether the block behind it is known not to be the last of its member. */
  notLast: boolean;
  /** Copies taken before the rings are overwritten. */
  compressed?: Uint8Array;
  before?: Uint8Array;
  after?: Uint8Array;
}

/** Why {@linkcode GzipIndexer.run} returned. */
export type IndexerNeed = "input" | "output" | "nothing";

/** Options of {@linkcode GzipIndexer}. */
export interface GzipIndexerOptions {
  /** Holds the blob; capacity a multiple of the input step, e.g. {@linkcode INPUT_RING_SIZE}. */
  input: ByteRing;
  /** Takes the output; capacity like {@linkcode OUTPUT_RING_SIZE}. */
  output: ByteRing;
  sink: SpanSink;
  /** Uncompressed bytes, {@linkcode SPAN_SIZE_MIN} … 64 MiB. */
  spanSize?: number | undefined;
  /** Largest decompressed size in bytes. */
  outputSizeMax: number;
  /** The decoder, owned by the indexer. Default: the fastest that works here. */
  inflate?: RawInflate | undefined;
}

/** See the module comment. Drive it with {@linkcode run}. */
export class GzipIndexer {
  /** Members met so far. */
  members = 0;
  /** Bytes of the blob that were decoded. */
  compressedOffset = 0;
  /** Bytes of output in the output ring so far. */
  uncompressedOffset = 0;

  readonly #input: ByteRing;
  readonly #output: ByteRing;
  readonly #sink: SpanSink;
  readonly #spanSize: number;
  readonly #outputSizeMax: number;
  readonly #inflate: RawInflate;

  #phase: "header" | "deflate" | "trailer" | "between" | "padding" | "done" =
    "header";
  #memberStart = 0;
  #crc = 0;
  /** Where the decoder stopped at a block's end; a boundary once it goes on. */
  #stopped = false;
  /** The last boundary, not yet known to be a checkpoint. */
  #last: Boundary | undefined;
  /** Whether the sink was told to fork at #last. */
  #forked = false;
  /** Checkpoints whose following 32 KiB are not there yet. */
  readonly #pending: Boundary[] = [];
  #nextMultiple: number;
  /** Where the last boundary that became a checkpoint lies. */
  #lastCheckpoint = -1;
  #spanStart = 0;
  #advanced = 0;

  constructor(options: GzipIndexerOptions) {
    this.#input = options.input;
    this.#output = options.output;
    this.#sink = options.sink;
    this.#spanSize = options.spanSize ?? DEFAULT_SPAN_SIZE;
    this.#outputSizeMax = options.outputSizeMax;
    this.#inflate = options.inflate ?? openRawInflate();
    this.#nextMultiple = this.#spanSize;
    if (
      this.#spanSize < SPAN_SIZE_MIN || this.#spanSize > SPAN_SIZE_MAX / 2
    ) {
      throw new RangeError(
        `Span size ${this.#spanSize} is not in ${SPAN_SIZE_MIN} … ${
          SPAN_SIZE_MAX / 2
        }`,
      );
    }
  }

  /** Blob bytes below this are no longer needed in the input ring. */
  get inputNeeded(): number {
    let needed = this.compressedOffset;
    for (const b of this.#held()) {
      if (!b.compressed) needed = Math.min(needed, b.compressedOffset - 1);
    }
    return needed;
  }

  /** Frees native memory. */
  close(): void {
    this.#inflate.close();
  }

  /**
   * Decodes as far as it can.
   *
   * @param inputEnd Bytes of the blob that are in the input ring, from {@linkcode inputNeeded} on.
   * @param isEnd Whether the blob ends there.
   * @param outputLimit How far the output ring may be written: what its readers consumed plus its capacity.
   * @throws {FormatError} If the blob is malformed, truncated, or has bytes behind its last member.
   * @throws {IntegrityError} If a member's CRC or size is wrong.
   * @throws {UnsupportedError} If a span would pass {@linkcode SPAN_SIZE_MAX}.
   */
  run(inputEnd: number, isEnd: boolean, outputLimit: number): IndexerNeed {
    while (true) {
      let need: IndexerNeed | undefined;
      if (this.#phase === "header") need = this.#readHeader(inputEnd, isEnd);
      else if (this.#phase === "deflate") {
        need = this.#decode(inputEnd, isEnd, outputLimit);
      } else if (this.#phase === "trailer") {
        need = this.#readTrailer(inputEnd, isEnd);
      } else if (this.#phase === "between") {
        need = this.#lookBehindMember(inputEnd, isEnd);
      } else if (this.#phase === "padding") {
        need = this.#skipPadding(inputEnd, isEnd);
      } else return "nothing";
      if (need !== undefined) return need;
    }
  }

  #readHeader(inputEnd: number, isEnd: boolean): IndexerNeed | undefined {
    const from = this.compressedOffset;
    // Mostly 10 to 30 bytes; only odd ones make this look again with more.
    for (let size = 512;; size *= 4) {
      const end = Math.min(
        inputEnd,
        from + Math.min(size, GZIP_HEADER_SIZE_MAX),
      );
      const header = gzipHeaderSize(this.#input.copy(from, end));
      if (header !== undefined) {
        this.compressedOffset += header;
        break;
      }
      if (end === inputEnd) {
        if (isEnd) throw truncated(inputEnd, "gzip header");
        return "input";
      }
    }
    this.members++;
    this.#phase = "deflate";
    this.#crc = 0;
    this.#stopped = false;
    this.#memberStart = this.uncompressedOffset;
    this.#inflate.reset();
    this.#record(false);
    return undefined;
  }

  #decode(
    inputEnd: number,
    isEnd: boolean,
    outputLimit: number,
  ): IndexerNeed | undefined {
    const from = this.compressedOffset;
    const to = this.uncompressedOffset;
    let stepEnd = from - (from % INPUT_STEP) + INPUT_STEP;
    if (stepEnd > inputEnd) {
      if (!isEnd) return "input";
      stepEnd = inputEnd;
    }
    if (stepEnd === from) throw truncated(inputEnd, "deflate stream");
    const outputEnd = to - (to % OUTPUT_STEP) + OUTPUT_STEP;
    if (outputEnd > outputLimit) return "output";
    const inflate = this.#inflate;
    const outputAt = this.#output.at(to);
    inflate.write(
      this.#input.bytes,
      this.#input.at(from),
      stepEnd - from,
      this.#output.bytes,
      outputAt,
      outputEnd - to,
      true,
    );
    const consumed = stepEnd - from - inflate.availableIn;
    const produced = outputEnd - to - inflate.availableOut;
    if (consumed === 0 && produced === 0) {
      this.#phase = "trailer";
      return undefined;
    }
    if (this.#stopped) {
      // It went on behind the stop, so that was no stream end.
      this.#record(true);
    }
    this.#stopped = inflate.availableIn > 0 && inflate.availableOut > 0;
    this.#crc = zlib.crc32(
      this.#output.bytes.subarray(outputAt, outputAt + produced),
      this.#crc,
    );
    this.compressedOffset += consumed;
    this.uncompressedOffset += produced;
    this.#afterOutput();
    return undefined;
  }

  /** Bounds, and what the new output makes possible for held boundaries. */
  #afterOutput(): void {
    const now = this.uncompressedOffset;
    if (now > this.#outputSizeMax) {
      throw new FormatError(
        "gzip blob",
        "content",
        `decompresses to more than ${this.#outputSizeMax} bytes`,
      );
    }
    if (now - this.#spanStart > SPAN_SIZE_MAX) {
      throw new UnsupportedError(
        "gzip span",
        `gzip blob has no place to resume in ${SPAN_SIZE_MAX} bytes from ${this.#spanStart}: its deflate blocks are too big to be read lazily`,
      );
    }
    while (
      this.#pending.length > 0 &&
      now >= this.#pending[0]!.uncompressedOffset + WINDOW_SIZE
    ) this.#finishPending();
    for (const b of this.#held()) {
      if (
        this.compressedOffset - b.compressedOffset > this.#input.capacity / 4
      ) {
        b.compressed ??= this.#copySample(b);
      }
    }
    this.#advanceBehind(now);
  }

  /** Tells the sink about output whose span is known, or forks where it waited too long. */
  #advanceBehind(now: number): void {
    if (this.#pending.length > 0) return;
    const open = this.#openBoundary();
    if (open === undefined || this.#forked) {
      this.#advance(now);
      return;
    }
    this.#advance(open.uncompressedOffset);
    if (now - open.uncompressedOffset > this.#output.capacity / 4) {
      // A big block: let go of the ring before the next boundary tells what this one is.
      this.#copyOutput(open);
      this.#sink.fork();
      this.#forked = true;
      this.#advance(now);
    }
  }

  /** The last boundary, while it may still become a checkpoint. */
  #openBoundary(): Boundary | undefined {
    const last = this.#last;
    return last && last.uncompressedOffset > this.#lastCheckpoint
      ? last
      : undefined;
  }

  *#held(): Iterable<Boundary> {
    yield* this.#pending;
    const open = this.#openBoundary();
    if (open) yield open;
  }

  /** A block (or member) starts at the current position. */
  #record(inMember: boolean): void {
    const here: Boundary = {
      compressedOffset: this.compressedOffset,
      uncompressedOffset: this.uncompressedOffset,
      member: this.members,
      memberStart: this.#memberStart,
      startsMember: !inMember,
      notLast: false,
    };
    const at = here.uncompressedOffset;
    const open = this.#openBoundary();
    if (this.#lastCheckpoint < 0) {
      this.#settle(here);
    } else if (at === this.#nextMultiple) {
      this.#resolveFork(undefined);
      this.#settle(here);
    } else if (at > this.#nextMultiple) {
      if (open) {
        open.notLast = inMember && open.member === this.members;
        this.#settle(open);
      } else this.#resolveFork(undefined);
    } else this.#resolveFork(undefined);
    if (at >= this.#nextMultiple) {
      this.#nextMultiple = (Math.floor(at / this.#spanSize) + 1) *
        this.#spanSize;
    }
    this.#last = here;
  }

  #resolveFork(candidate: CheckpointCandidate | undefined): void {
    if (!this.#forked) return;
    this.#forked = false;
    this.#sink.resolve(candidate);
  }

  /** Makes a boundary a checkpoint, at once or when enough output follows. */
  #settle(boundary: Boundary): void {
    this.#lastCheckpoint = boundary.uncompressedOffset;
    if (this.#forked && boundary === this.#last) {
      this.#spanStart = boundary.uncompressedOffset;
      this.#resolveFork(this.#makeCandidate(boundary));
      return;
    }
    this.#pending.push(boundary);
    if (
      boundary.startsMember ||
      this.uncompressedOffset >= boundary.uncompressedOffset + WINDOW_SIZE
    ) this.#finishPending();
  }

  /** Hands the oldest pending boundary to the sink. */
  #finishPending(): void {
    const boundary = this.#pending.shift()!;
    this.#advance(boundary.uncompressedOffset);
    this.#spanStart = boundary.uncompressedOffset;
    this.#sink.split(this.#makeCandidate(boundary));
  }

  #makeCandidate(boundary: Boundary): CheckpointCandidate {
    const { compressedOffset, uncompressedOffset, startsMember } = boundary;
    if (startsMember) {
      return { compressedOffset, uncompressedOffset, sample: undefined };
    }
    this.#copyOutput(boundary);
    const sample = {
      compressed: boundary.compressed ?? this.#copySample(boundary),
      before: boundary.before!,
      after: boundary.after!,
      notLast: boundary.notLast,
    };
    return { compressedOffset, uncompressedOffset, sample };
  }

  #copySample(boundary: Boundary): Uint8Array {
    const from = boundary.compressedOffset - 1;
    const to = Math.min(from + SAMPLE_SIZE, this.compressedOffset);
    return this.#input.copy(from, to);
  }

  #copyOutput(boundary: Boundary): void {
    if (boundary.after !== undefined) return;
    const at = boundary.uncompressedOffset;
    const from = Math.max(boundary.memberStart, at - WINDOW_SIZE);
    const to = Math.min(at + WINDOW_SIZE, this.uncompressedOffset);
    boundary.before = this.#output.copy(from, at);
    boundary.after = this.#output.copy(at, to);
  }

  #advance(to: number): void {
    if (to <= this.#advanced) return;
    this.#advanced = to;
    this.#sink.advance(to);
  }

  #readTrailer(inputEnd: number, isEnd: boolean): IndexerNeed | undefined {
    const from = this.compressedOffset;
    if (inputEnd < from + GZIP_TRAILER_SIZE) {
      if (isEnd) throw truncated(inputEnd, "gzip trailer");
      return "input";
    }
    const trailer = viewOf(this.#input.copy(from, from + GZIP_TRAILER_SIZE));
    const crc = trailer.getUint32(0, true);
    if (crc !== this.#crc) {
      throw new IntegrityError("gzip CRC-32", hex32(crc), hex32(this.#crc));
    }
    const size = (this.uncompressedOffset - this.#memberStart) % 2 ** 32;
    if (trailer.getUint32(4, true) !== size) {
      throw new IntegrityError(
        "gzip member size",
        String(trailer.getUint32(4, true)),
        String(size),
      );
    }
    // What follows is another stream: held boundaries have seen all of theirs.
    while (this.#pending.length > 0) this.#finishPending();
    const open = this.#openBoundary();
    if (open) {
      this.#copyOutput(open);
      open.compressed ??= this.#copySample(open);
    }
    this.compressedOffset += GZIP_TRAILER_SIZE;
    this.#phase = "between";
    return undefined;
  }

  /** Another member, zero padding (as `gzip -d` accepts it), or the end. */
  #lookBehindMember(inputEnd: number, isEnd: boolean): IndexerNeed | undefined {
    const from = this.compressedOffset;
    const head = this.#input.copy(from, Math.min(inputEnd, from + 2));
    if (head.length < 2 && !isEnd) return "input";
    if (head.length === 0) this.#finish();
    else if (hasGzipMagic(head)) this.#phase = "header";
    else if (head[0] === 0) this.#phase = "padding";
    else throw trailing(from);
    return undefined;
  }

  #skipPadding(inputEnd: number, isEnd: boolean): IndexerNeed | undefined {
    for (const view of this.#input.views(this.compressedOffset, inputEnd)) {
      if (!isZero(view)) throw trailing(this.compressedOffset);
      this.compressedOffset += view.length;
    }
    if (!isEnd) return "input";
    this.#finish();
    return undefined;
  }

  #finish(): void {
    this.#resolveFork(undefined);
    this.#last = undefined;
    this.#advance(this.uncompressedOffset);
    this.#phase = "done";
  }
}

function truncated(at: number, where: string): FormatError {
  return new FormatError("gzip blob", "length", `ends in its ${where}`, {
    offset: at,
  });
}

function trailing(at: number): FormatError {
  return new FormatError(
    "gzip blob",
    "end",
    "is followed by bytes that are neither a gzip member nor zeros",
    { offset: at },
  );
}

function hex32(value: number): string {
  return `0x${value.toString(16).padStart(8, "0")}`;
}

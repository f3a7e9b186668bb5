/**
 * One pass over a gzip blob: its bytes, and the checkpoints from which it can
 * be read later.
 *
 * Each end of a deflate block is a boundary: decoding can resume there, given
 * the 32 KiB before. So is the start of a member. A span ends at the last of the
 * boundaries that the {@linkcode SpanPlan} lets it reach, or at the first one
 * behind, where blocks are that big. (The cheapest of the last three made the
 * index 5 % smaller; but each takes a millisecond of the decoding thread, which
 * all others wait for: 0.63 instead of 0.54 in `bench/index_pass.ts`.)
 *
 * Which boundary it is shows only behind it, so the spans are reported behind
 * the decoder, as commands to a {@linkcode SpanSink}.
 *
 * Deterministic: decoding proceeds in steps that depend on stream positions
 * alone, never on how much input happened to be there.
 */

import * as zlib from "node:zlib";
import { FormatError, IntegrityError, isZero, viewOf } from "../io/mod.ts";
import type { ByteRing } from "./byte_ring.ts";
import {
  type Checkpoint,
  type CheckpointCandidate,
  CheckpointMaker,
  packCheckpoint,
  type PackedCheckpoint,
  SAMPLE_SIZE,
} from "./checkpoint_search.ts";
import {
  GZIP_HEADER_SIZE_MAX,
  GZIP_TRAILER_SIZE,
  gzipHeaderSize,
  hasGzipMagic,
} from "./gzip_header.ts";
import { openRawInflate, type RawInflate, WINDOW_SIZE } from "./raw_inflate.ts";
import type { SpanPlan } from "./span_plan.ts";

/** Receives the decompressed stream cut into spans. All positions are absolute. */
export interface SpanSink {
  /** Bytes up to `to` belong to the current span. */
  advance(to: number): void;
  /** A new span starts where the last one advanced to. Called first at 0. */
  split(checkpoint: PackedCheckpoint): void;
}

/** Longest span of any index. */
export const SPAN_SIZE_MAX = 128 * 1024 * 1024;

/** Longest stored block (RFC 1951 §3.2.4). */
const STORED_SIZE_MAX = 65535;
/** Boundaries that are kept behind those that the span reaches; there are more only where blocks are tiny. */
const KEPT_BEHIND = 8;

/**
 * Output of one deflate block after which spans end inside of it. Compressors
 * that look for codes end their blocks below 9 MiB; those that do not may make
 * one block of everything (zlib-ng at level 1, igzip at level 0).
 */
const LONG_BLOCK = 32 * 1024 * 1024;
/** Spans inside of such a block, in bytes. */
const SPAN_SIZE_INSIDE = 1024 * 1024;

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
  /** Whether the member is over, so that no more output follows in it. */
  isComplete: boolean;
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
  /** Where spans end; owned by the indexer. */
  plan: SpanPlan;
  /** Zero the window bytes that nothing refers to. Default true. */
  sparseWindows?: boolean | undefined;
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
  readonly #plan: SpanPlan;
  readonly #maker: CheckpointMaker;
  readonly #outputSizeMax: number;
  readonly #inflate: RawInflate;

  #phase: "header" | "deflate" | "trailer" | "between" | "padding" | "done" =
    "header";
  #memberStart = 0;
  #crc = 0;
  /** Where the decoder stopped at a block's end; a boundary once it goes on. */
  #stopped = false;
  /** The last boundary met. */
  #last: Boundary | undefined;
  /** Boundaries where the span may end: those that it reaches, then those behind. In order. */
  readonly #open: Boundary[] = [];
  /** Where the current span starts, in the output; -1 before the first. */
  #spanStart = -1;
  /** The last checkpoint. */
  #checkpoint: PackedCheckpoint | undefined;
  #advanced = 0;

  constructor(options: GzipIndexerOptions) {
    this.#input = options.input;
    this.#output = options.output;
    this.#sink = options.sink;
    this.#plan = options.plan;
    this.#maker = new CheckpointMaker(options.sparseWindows);
    this.#outputSizeMax = options.outputSizeMax;
    this.#inflate = options.inflate ?? openRawInflate();
  }

  /** Blob bytes below this are no longer needed in the input ring. */
  get inputNeeded(): number {
    let needed = this.compressedOffset;
    for (const b of this.#open) {
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
    // Nothing is held that far behind a boundary: all is advanced.
    if (produced > 0) this.#cutLongBlock();
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
    for (const b of this.#open) {
      if (
        this.compressedOffset - b.compressedOffset > this.#input.capacity / 4
      ) {
        b.compressed ??= this.#copySample(b);
      }
    }
    this.#endSpans(false);
    // Whoever reads the ring waits for a boundary that is held: not for ever.
    while (
      this.#open.length > 0 &&
      now - this.#open[0]!.uncompressedOffset > this.#output.capacity / 2
    ) this.#open.shift();
    this.#advance(this.#open[0]?.uncompressedOffset ?? now);
  }

  /**
   * Ends the span inside of a long block, where output follows and decoding
   * cannot begin. What follows is a span for the sake of its digest; it is
   * decoded from the checkpoint before it, which is told once more.
   */
  #cutLongBlock(): void {
    const at = this.uncompressedOffset;
    const inBlock = at - this.#last!.uncompressedOffset;
    const inSpan = at - this.#spanStart;
    if (inBlock < LONG_BLOCK || inSpan < SPAN_SIZE_INSIDE) return;
    this.#spanStart = at;
    this.#plan.start(at, 0);
    this.#sink.split({
      ...this.#checkpoint!,
      uncompressedOffset: at,
      window: new Uint8Array(0),
    });
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
      isComplete: false,
    };
    const before = this.#last;
    if (inMember && before?.member === this.members) before.notLast = true;
    this.#last = here;
    if (this.#spanStart < 0) {
      this.#split(here, this.#make(here)!);
    } else if (here.uncompressedOffset > this.#spanStart) {
      this.#keep(here);
    }
  }

  /** Adds a boundary, in place of those that it makes useless. */
  #keep(boundary: Boundary): void {
    const open = this.#open;
    // Nothing is between them: the later one has less to decode.
    if (open.at(-1)?.uncompressedOffset === boundary.uncompressedOffset) {
      open.pop();
    }
    open.push(boundary);
    let reached = this.#reached();
    for (; reached > 1; reached--) open.shift();
    if (open.length - reached > KEPT_BEHIND) open.splice(-2, 1);
  }

  /** How many of the open boundaries the span may reach; they come first. */
  #reached(): number {
    const behind = this.#open.findIndex((b) =>
      !this.#plan.reaches(b.compressedOffset, b.uncompressedOffset)
    );
    return behind < 0 ? this.#open.length : behind;
  }

  /**
   * Ends spans that can reach no further boundary.
   *
   * @param isEnd Whether no output follows.
   */
  #endSpans(isEnd: boolean): void {
    const open = this.#open;
    while (
      open.length > 0 &&
      !this.#plan.reaches(this.compressedOffset, this.uncompressedOffset)
    ) {
      const end = Math.max(1, this.#reached());
      const last = open[end - 1]!;
      if (!isEnd && !this.#isComplete(last)) return;
      // Where nothing follows there is nothing to read.
      const checkpoint = last.uncompressedOffset < this.uncompressedOffset
        ? this.#make(last)
        : undefined;
      // None, by chance: as if it were not there.
      if (!checkpoint) open.splice(0, end);
      else this.#split(last, checkpoint);
    }
  }

  /** Whether all is there that a checkpoint is made of, and something follows it. */
  #isComplete(boundary: Boundary): boolean {
    const behind = this.uncompressedOffset - boundary.uncompressedOffset;
    if (boundary.startsMember || boundary.isComplete) return behind > 0;
    // Stored blocks need to know whether they are the last to tell their bit.
    return behind >= WINDOW_SIZE &&
      (boundary.notLast || behind > STORED_SIZE_MAX);
  }

  /** Starts a span at a boundary. */
  #split(boundary: Boundary, unpacked: Checkpoint): void {
    const at = boundary.uncompressedOffset;
    while (this.#open[0] && this.#open[0].uncompressedOffset <= at) {
      this.#open.shift();
    }
    const checkpoint = this.#checkpoint = packCheckpoint(unpacked);
    this.#spanStart = at;
    this.#plan.start(at, checkpoint.window.length);
    this.#advance(at);
    this.#sink.split(checkpoint);
  }

  #make(boundary: Boundary): Checkpoint | undefined {
    return this.#maker.make(this.#candidateOf(boundary));
  }

  #candidateOf(boundary: Boundary): CheckpointCandidate {
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
    // What follows is another stream: these have seen all of theirs.
    for (const boundary of this.#open) {
      if (boundary.isComplete || boundary.startsMember) continue;
      this.#copyOutput(boundary);
      boundary.compressed ??= this.#copySample(boundary);
      boundary.isComplete = true;
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
    this.#endSpans(true);
    this.#open.length = 0;
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

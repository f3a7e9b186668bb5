/** The uncompressed tar of a zstd layer of many frames, read at random. */

import type { CodecPool } from "../compress/mod.ts";
import {
  BudgetShare,
  ByteBudget,
  type ByteSource,
  FormatError,
  ObdError,
  SharedFlight,
  type SourceDescription,
  Urgency,
} from "../io/mod.ts";
import { makeChecked } from "./make_checked.ts";
import {
  digestKey,
  type MadeSpan,
  type MakeOptions,
  type SpanCache,
  type SpanMaker,
  SpanSource,
  type SpanSourceOptions,
  type StoredUnit,
} from "./span_source.ts";
import type { LayerScan } from "./pass/mod.ts";
import { ReadStats } from "./read_stats.ts";
import { SpanTable } from "./span_table.ts";
import { type SpanCheckpoints, spanIndexOf } from "./spans.ts";

/**
 * Longest run of spans that is decoded at once because it can only be reached
 * from its start. `pzstd -19` makes frames of 32 MiB.
 */
export const GROUP_BYTES_MAX = 32 * 1024 * 1024;
/** Most compressed bytes of such a run: what does not compress, and its headers. */
const GROUP_COMPRESSED_MAX = GROUP_BYTES_MAX + 2 * 1024 * 1024;
/** Runs are decoded within this many bytes, for all layers of a process. */
const GROUPS_IN_FLIGHT = 2 * GROUP_BYTES_MAX;
const groupBudget = new ByteBudget(GROUPS_IN_FLIGHT);

const DIGEST_SIZE = 32;

/** Decodes spans, off this thread: a {@linkcode CodecPool}, or a part of one. */
export type ZstdDecoder = Pick<CodecPool, "decodeZstd">;

/** Settings of a {@linkcode ZstdSource}. */
export interface ZstdOptions extends SpanSourceOptions {
  /** Digest of the compressed blob. */
  digest: string;
  /** With digests. */
  spans: SpanTable;
  /** The frames with which spans start. */
  checkpoints: SpanCheckpoints;
  /** Borrowed. */
  decoder: ZstdDecoder;
}

/**
 * Whether decoding can start in enough places for a layer to be read at random.
 *
 * @param blobSize Bytes of the compressed blob.
 */
export function isSeekable(
  blobSize: number,
  spans: SpanTable,
  checkpoints: SpanCheckpoints,
): boolean {
  for (let i = 0; i < checkpoints.count; i++) {
    const group = groupAt(blobSize, spans, checkpoints, i);
    if (
      group.length > GROUP_BYTES_MAX ||
      group.compressedLength > GROUP_COMPRESSED_MAX
    ) return false;
  }
  return true;
}

/** Whether a layer that was scanned can be read without decoding all before. */
export function isLazyLayer(scan: LayerScan): boolean {
  // Without a checkpoint for each span its deflate blocks were too long.
  if (scan.compression === "gzip") {
    return scan.checkpoints.count === scan.spans.count;
  }
  if (scan.compression === "none") return true;
  const { checkpoints } = spanIndexOf(scan, { mediaType: "", spanSize: 0 });
  const { uncompressedOffset, sha256 } = scan.spans;
  const spans = new SpanTable(uncompressedOffset, scan.tarSize, sha256);
  return isSeekable(scan.blobSize, spans, checkpoints!);
}

/** Consecutive spans that are decoded from one frame's start. */
interface Group {
  firstSpan: number;
  endSpan: number;
  /** Bytes of the spans. */
  length: number;
  compressedStart: number;
  /** For the last group an estimate: what follows may be skippable frames of any size. */
  compressedLength: number;
}

function groupAt(
  blobSize: number,
  spans: SpanTable,
  checkpoints: SpanCheckpoints,
  index: number,
): Group {
  const isLast = index + 1 === checkpoints.count;
  const firstSpan = checkpoints.span[index]!;
  const endSpan = isLast ? spans.count : checkpoints.span[index + 1]!;
  const end = isLast ? spans.size : spans.offsetOf(endSpan);
  const length = end - spans.offsetOf(firstSpan);
  const compressedStart = checkpoints.compressedOffset[index]!;
  const compressedLength = isLast
    ? Math.min(blobSize - compressedStart, length + 2 * 1024 * 1024)
    : checkpoints.compressedOffset[index + 1]! - compressedStart;
  return { firstSpan, endSpan, length, compressedStart, compressedLength };
}

/**
 * Reads a zstd layer at random: a read fetches just the frames of its span,
 * decodes them and checks the span's SHA-256 before any of it is served or
 * stored. The other spans of a frame that is larger than one are kept too.
 * Owns the compressed source.
 */
export class ZstdSource extends SpanSource {
  /** @throws {FormatError} When the tables do not fit each other or the blob. */
  constructor(compressed: ByteSource, options: ZstdOptions) {
    super(new ZstdMaker(compressed, options), options);
  }
}

interface GroupFlight {
  flight: SharedFlight<Uint8Array>;
  urgency: Urgency;
}

class ZstdMaker implements SpanMaker {
  readonly name: string;
  readonly spans: SpanTable;
  readonly #compressed: ByteSource;
  /** A layer has one group though others, whose registry stands still, hold all bytes. */
  readonly #share = new BudgetShare(GROUP_BYTES_MAX);
  readonly #checkpoints: SpanCheckpoints;
  readonly #decoder: ZstdDecoder;
  readonly #cache: SpanCache;
  readonly #stats: ReadStats;
  readonly #flights = new Map<number, GroupFlight>();

  constructor(compressed: ByteSource, options: ZstdOptions) {
    this.name = options.digest;
    this.spans = options.spans;
    this.#compressed = compressed;
    this.#checkpoints = options.checkpoints;
    this.#decoder = options.decoder;
    this.#cache = options.cache;
    this.#stats = options.stats ?? new ReadStats();
    const { count } = options.checkpoints;
    if (options.spans.count > 0 && !options.spans.digestOf(0)) {
      throw new FormatError("span table", "digests", "are missing");
    }
    if (
      options.spans.count > 0 && (count === 0 || options.checkpoints.span[0])
    ) throw new FormatError("zstd index", "checkpoints", "do not start at 0");
    for (let i = 0; i < count; i++) {
      if (options.checkpoints.span[i]! >= options.spans.count) {
        throw new FormatError("zstd index", `checkpoint ${i}`, "has no span");
      }
    }
  }

  keyOf(index: number): string {
    return digestKey(this.spans.digestOf(index)!);
  }

  async make(index: number, options: MakeOptions): Promise<MadeSpan> {
    const number = this.#find(index);
    const group = this.#group(number);
    if (group.endSpan - group.firstSpan === 1) {
      return { bytes: await this.#decode(group, options) };
    }
    // The group counts as one load, whoever waits for it.
    options.timer.end();
    const bytes = await this.#join(number, group, options);
    const at = this.spans.offsetOf(index) -
      this.spans.offsetOf(group.firstSpan);
    return { bytes: bytes.slice(at, at + this.spans.sizeOf(index)) };
  }

  unitOf(index: number): StoredUnit {
    const group = this.#group(this.#find(index));
    return {
      offset: this.spans.offsetOf(group.firstSpan),
      length: group.length,
      blobOffset: group.compressedStart,
      blobLength: group.compressedLength,
    };
  }

  /** The group of a span. */
  #find(span: number): number {
    const starts = this.#checkpoints.span;
    let low = 0;
    let high = this.#checkpoints.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (starts[middle]! <= span) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #group(number: number): Group {
    const { size } = this.#compressed;
    return groupAt(size, this.spans, this.#checkpoints, number);
  }

  /** The bytes of a group, which several of its spans may be waiting for. */
  async #join(
    number: number,
    group: Group,
    options: MakeOptions,
  ): Promise<Uint8Array> {
    const { flight, urgency } = this.#flightOf(number, group);
    const leave = urgency.follow(options);
    try {
      return await flight.join(options.signal);
    } finally {
      leave();
    }
  }

  #flightOf(number: number, group: Group): GroupFlight {
    const running = this.#flights.get(number);
    if (running) return running;
    const control = new AbortController();
    const urgency = new Urgency("prefetch");
    const forget = () => {
      if (this.#flights.get(number)?.flight === flight) {
        this.#flights.delete(number);
      }
    };
    const flight = new SharedFlight<Uint8Array>(() => {
      forget();
      control.abort();
    });
    const started = { flight, urgency };
    this.#flights.set(number, started);
    this.#decodeGroup(group, { signal: control.signal, urgency }).then(
      (bytes) => flight.resolve(bytes),
      (error) => flight.reject(error),
    ).finally(forget);
    return started;
  }

  async #decodeGroup(
    group: Group,
    options: Omit<MakeOptions, "timer">,
  ): Promise<Uint8Array> {
    const timer = this.#stats.load(options.urgency);
    let release: (() => void) | undefined;
    try {
      const share = this.#share;
      release = await groupBudget.acquire(group.length, { ...options, share });
      const bytes = await this.#decode(group, { ...options, timer });
      timer.end(group.length);
      this.#keep(group, bytes);
      return bytes;
    } finally {
      timer.end();
      release?.();
    }
  }

  /** Puts all spans of a group where reads look first. */
  #keep(group: Group, bytes: Uint8Array): void {
    const { memory, store } = this.#cache;
    const start = this.spans.offsetOf(group.firstSpan);
    for (let i = group.firstSpan; i < group.endSpan; i++) {
      const at = this.spans.offsetOf(i) - start;
      const key = this.keyOf(i);
      // Copies: a view would hold the whole group in memory.
      const span = bytes.slice(at, at + this.spans.sizeOf(i));
      memory.set(key, span);
      store?.put(key, span, this.spans.digestOf(i));
    }
  }

  #decode(
    group: Group,
    options: MakeOptions,
  ): Promise<Uint8Array> {
    const { firstSpan, endSpan, compressedStart, compressedLength } = group;
    const spans = endSpan - firstSpan === 1
      ? `Span ${firstSpan}`
      : `Spans ${firstSpan} to ${endSpan - 1}`;
    const job = {
      ...options,
      sizes: Float64Array.from(
        { length: endSpan - firstSpan },
        (_, i) => this.spans.sizeOf(firstSpan + i),
      ),
      sha256: this.#digests(group),
    };
    return makeChecked({
      what: `${spans} of layer "${this.name}"`,
      source: this.#compressed,
      start: compressedStart,
      length: compressedLength,
      shared: true,
      once: this.#cache.store?.hasRoomFor(group.length) ?? false,
      sha256: this.spans.digestOf(firstSpan),
      decode: (input, onFree) =>
        this.#decoder.decodeZstd({ ...job, input, onFree }),
      options,
    });
  }

  #digests(group: Group): Uint8Array {
    const { firstSpan, endSpan } = group;
    const digests = new Uint8Array((endSpan - firstSpan) * DIGEST_SIZE);
    for (let i = firstSpan; i < endSpan; i++) {
      const digest = this.spans.digestOf(i);
      if (!digest) throw new ObdError("state", `Span ${i} has no digest`);
      digests.set(digest, (i - firstSpan) * DIGEST_SIZE);
    }
    return digests;
  }

  describe(): SourceDescription {
    const inner = this.#compressed.describe?.();
    return {
      kind: "unzstd",
      detail: {
        layer: this.name,
        spans: this.spans.count,
        frames: this.#checkpoints.count,
        integrity: "spans",
      },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  dispose(): Promise<void> {
    return Promise.resolve(this.#compressed[Symbol.asyncDispose]());
  }
}

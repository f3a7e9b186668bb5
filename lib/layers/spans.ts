/**
 * `obd.spans`: digests of every span of a layer's uncompressed tar, and the
 * random-access index where `gzip.meta` cannot express it. The layout is
 * written down in SPANS.md; this file is its only reader and writer.
 */

import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import {
  concatBytes,
  equalBytes,
  FormatError,
  fromUtf8,
  getU64,
  IntegrityError,
  LimitError,
  setU64,
  UnsupportedError,
  utf8,
  viewOf,
} from "../io/mod.ts";
import type { GzipMeta } from "./gzip_meta.ts";
import type { LayerCheckpoints, LayerScan } from "./pass/types.ts";
import { readVarints, VarintWriter } from "./varint.ts";

/** Byte offsets in the header (SPANS.md). */
export const SP = {
  magic: 0, // 8: "OBDSPANS"
  version: 8, // u16
  headerSize: 10, // u16
  flags: 12, // u32
  fileSize: 16, // u64
  compression: 24, // u8
  access: 25, // u8
  mediaTypeSize: 26, // u16 bytes
  spanCount: 28, // u32
  blobSize: 32, // u64
  tarSize: 40, // u64
  blobDigest: 48, // 32
  diffId: 80, // 32
  spanSize: 112, // u32
  members: 116, // u32
  sizesStored: 120, // u32
  sizesRaw: 124, // u32
  checkpointsStored: 128, // u32
  checkpointsRaw: 132, // u32
  checkpointCount: 136, // u32
  reserved: 140, // 4
  windowsSize: 144, // u64
  SIZE: 152,
} as const;

const MAGIC = "OBDSPANS";
const VERSION = 1;
const DIGEST_SIZE = 32;
const CHECKSUM_SIZE = 32;
/** Fields of one checkpoint: span step, offset step, bits, window length. */
const CHECKPOINT_FIELDS = 4;
const MAX_MEDIA_TYPE = 255;
/** Spans of one layer: 512 GiB of 128 KiB spans, 128 MiB of digests. */
export const MAX_SPANS = 4_194_304;
const MAX_WINDOW = 32768 + 1024;
const LEVEL = 6;

/** How the blob is compressed. */
export const COMPRESSIONS = ["none", "gzip", "zstd"] as const;
/** Where to start decoding: the tar itself, the `gzip.meta` beside this file, or this file's own table. */
export const ACCESSES = ["identity", "gzip.meta", "checkpoints"] as const;

/** Resume points that do not fit in a `gzip.meta`. */
export interface SpanCheckpoints {
  count: number;
  /** Which span starts at each checkpoint; ascending from 0. */
  span: Uint32Array;
  /** As in `LayerCheckpoints`. */
  compressedOffset: Float64Array;
  bits: Uint8Array;
  window: readonly Uint8Array[];
}

/** The content of an `obd.spans`. Sizes and offsets in bytes. */
export interface SpanIndex {
  /** `sha256:…` of the layer blob as it lies in the registry. */
  blobDigest: string;
  blobSize: number;
  /** The layer's true media type. */
  mediaType: string;
  compression: typeof COMPRESSIONS[number];
  /** gzip members or zstd frames (skippable ones not counted); 0 for a plain tar. */
  members: number;
  /** `sha256:…` of the uncompressed tar. */
  diffId: string;
  tarSize: number;
  /** The span that was aimed at. */
  spanSize: number;
  /** Start of each span in the tar: ascending from 0, no gaps. */
  spanOffset: Float64Array;
  /** SHA-256 of each span, 32 bytes each. */
  spanDigest: Uint8Array;
  access: typeof ACCESSES[number];
  /** Set exactly when `access` is `"checkpoints"`. */
  checkpoints?: SpanCheckpoints | undefined;
}

/**
 * What a pass over a layer found, as a span index. A gzip layer of one member
 * refers to its `gzip.meta`, which must be written beside, unless spans end
 * where decoding cannot begin.
 *
 * @param spanSize Uncompressed bytes that spans were cut at.
 */
export function spanIndexOf(
  scan: LayerScan,
  options: { mediaType: string; spanSize: number },
): SpanIndex {
  const { spans, checkpoints, compression, members } = scan;
  const access = compression === "none"
    ? "identity"
    : compression === "gzip" && members === 1 &&
        checkpoints.count === spans.count
    ? "gzip.meta"
    : "checkpoints";
  return {
    blobDigest: scan.blobDigest,
    blobSize: scan.blobSize,
    mediaType: options.mediaType,
    compression,
    members,
    diffId: scan.diffId,
    tarSize: scan.tarSize,
    spanSize: options.spanSize,
    spanOffset: spans.uncompressedOffset,
    spanDigest: spans.sha256,
    access,
    ...(access === "checkpoints"
      ? {
        checkpoints: {
          count: checkpoints.count,
          span: spansAt(checkpoints, spans.uncompressedOffset),
          compressedOffset: checkpoints.compressedOffset,
          bits: checkpoints.bits,
          window: checkpoints.window,
        },
      }
      : {}),
  };
}

/** The span that starts at each checkpoint. */
function spansAt(
  checkpoints: LayerCheckpoints,
  spanOffset: Float64Array,
): Uint32Array {
  let span = 0;
  return Uint32Array.from(checkpoints.uncompressedOffset, (offset) => {
    while (spanOffset[span]! < offset) span++;
    return span;
  });
}

/**
 * The checkpoints that a compressed layer is read with.
 *
 * @param gzipMeta The `gzip.meta` of the same meta blob, if it has one.
 * @returns One checkpoint for each span in the case of gzip, for the spans that
 * frames start in the case of zstd; none for a plain tar.
 * @throws {FormatError} If the `gzip.meta` is missing, or not of the same
 * layer and spans.
 */
export function checkpointsOf(
  index: SpanIndex,
  gzipMeta: GzipMeta | undefined,
): LayerCheckpoints {
  if (index.access === "gzip.meta") {
    if (!gzipMeta) {
      throw wrong("access", "needs the member gzip.meta, which is missing");
    }
    const { checkpoints } = gzipMeta;
    const same = gzipMeta.gzipSize === index.blobSize &&
      gzipMeta.uncompressedSize === index.tarSize &&
      checkpoints.count === index.spanOffset.length &&
      index.spanOffset.every((offset, i) =>
        offset === checkpoints.uncompressedOffset[i]
      );
    if (!same) throw wrong("spans", "are not those of gzip.meta");
    return checkpoints;
  }
  const own = index.checkpoints;
  return {
    count: own?.count ?? 0,
    uncompressedOffset: Float64Array.from(
      own?.span ?? [],
      (span) => index.spanOffset[span]!,
    ),
    compressedOffset: own?.compressedOffset ?? new Float64Array(0),
    bits: own?.bits ?? new Uint8Array(0),
    window: own?.window ?? [],
  };
}

/**
 * Encodes a span index. Deterministic for one release of the runtime.
 *
 * @throws {TypeError} If the index contradicts itself.
 */
export function encodeSpans(index: SpanIndex): Uint8Array<ArrayBuffer> {
  const mediaType = utf8(index.mediaType);
  const sizes = packSection(sizesOf(index));
  const own = index.checkpoints;
  const checkpoints = packSection(own ? checkpointFields(own) : empty());
  const windows = own ? concatBytes([...own.window]) : empty();
  const header = new Uint8Array(SP.SIZE);
  const h = viewOf(header);
  const size = SP.SIZE + mediaType.length + sizes.stored.length +
    index.spanDigest.length + checkpoints.stored.length + windows.length +
    CHECKSUM_SIZE;
  header.set(utf8(MAGIC), SP.magic);
  h.setUint16(SP.version, VERSION, true);
  h.setUint16(SP.headerSize, SP.SIZE, true);
  setU64(h, SP.fileSize, size);
  h.setUint8(SP.compression, COMPRESSIONS.indexOf(index.compression));
  h.setUint8(SP.access, ACCESSES.indexOf(index.access));
  h.setUint16(SP.mediaTypeSize, mediaType.length, true);
  h.setUint32(SP.spanCount, index.spanOffset.length, true);
  setU64(h, SP.blobSize, index.blobSize);
  setU64(h, SP.tarSize, index.tarSize);
  header.set(digestBytes(index.blobDigest), SP.blobDigest);
  header.set(digestBytes(index.diffId), SP.diffId);
  h.setUint32(SP.spanSize, index.spanSize, true);
  h.setUint32(SP.members, index.members, true);
  h.setUint32(SP.sizesStored, sizes.stored.length, true);
  h.setUint32(SP.sizesRaw, sizes.rawSize, true);
  h.setUint32(SP.checkpointsStored, checkpoints.stored.length, true);
  h.setUint32(SP.checkpointsRaw, checkpoints.rawSize, true);
  h.setUint32(SP.checkpointCount, own?.count ?? 0, true);
  setU64(h, SP.windowsSize, windows.length);
  const body = concatBytes([
    ...[header, mediaType, sizes.stored, index.spanDigest],
    ...[checkpoints.stored, windows, new Uint8Array(CHECKSUM_SIZE)],
  ]);
  const content = body.subarray(0, size - CHECKSUM_SIZE);
  body.set(sha256(content), content.length);
  // What we write we can read: a contradiction ends here, not at a reader.
  try {
    decodeSpans(body);
  } catch (error) {
    throw new TypeError("Cannot encode spans: they contradict themselves", {
      cause: error,
    });
  }
  return body;
}

/** Sizes of all spans; nothing at all when every span but the last is `spanSize`. */
function sizesOf(index: SpanIndex): Uint8Array {
  const { spanOffset, spanSize, tarSize } = index;
  const count = spanOffset.length;
  if (isRegular(spanOffset, spanSize, tarSize)) return empty();
  const out = new VarintWriter();
  for (let i = 0; i < count; i++) {
    out.push((spanOffset[i + 1] ?? tarSize) - spanOffset[i]!);
  }
  return out.bytes();
}

function isRegular(
  spanOffset: Float64Array,
  spanSize: number,
  tarSize: number,
): boolean {
  return spanSize > 0 &&
    spanOffset.length === Math.ceil(tarSize / spanSize) &&
    spanOffset.every((offset, i) => offset === i * spanSize);
}

function checkpointFields(own: SpanCheckpoints): Uint8Array {
  const out = new VarintWriter();
  let span = 0;
  let offset = 0;
  for (let i = 0; i < own.count; i++) {
    out.push(own.span[i]! - span);
    out.push(own.compressedOffset[i]! - offset);
    out.push(own.bits[i]!);
    out.push(own.window[i]!.length);
    span = own.span[i]!;
    offset = own.compressedOffset[i]!;
  }
  return out.bytes();
}

/**
 * Decodes a span index and checks all of it.
 *
 * @param bytes The whole file; borrowed for the life of the result.
 * @throws {UnsupportedError} If the version or a flag is unknown.
 * @throws {IntegrityError} If the checksum is wrong.
 * @throws {FormatError} If anything contradicts itself.
 * @throws {LimitError} If there are more than {@linkcode MAX_SPANS} spans.
 */
export function decodeSpans(bytes: Uint8Array): SpanIndex {
  const h = checkHeader(bytes);
  const compression = COMPRESSIONS[h.getUint8(SP.compression)];
  const access = ACCESSES[h.getUint8(SP.access)];
  if (!compression) throw wrong("compression", "is unknown");
  if (!access) throw wrong("access", "is unknown");
  const parts = splitParts(bytes, h);
  const spanSize = h.getUint32(SP.spanSize, true);
  const tarSize = size(h, SP.tarSize, "tar_size");
  const index: SpanIndex = {
    blobDigest: digestText(bytes, SP.blobDigest),
    blobSize: size(h, SP.blobSize, "blob_size"),
    mediaType: fromUtf8(parts.mediaType),
    compression,
    members: h.getUint32(SP.members, true),
    diffId: digestText(bytes, SP.diffId),
    tarSize,
    spanSize,
    spanOffset: readSizes(
      unpackSection(parts.sizes, h.getUint32(SP.sizesRaw, true), "sizes"),
      h.getUint32(SP.spanCount, true),
      spanSize,
      tarSize,
    ),
    spanDigest: parts.digests,
    access,
  };
  if (access === "checkpoints") {
    const raw = h.getUint32(SP.checkpointsRaw, true);
    index.checkpoints = readCheckpoints(
      unpackSection(parts.checkpoints, raw, "checkpoints"),
      h.getUint32(SP.checkpointCount, true),
      parts.windows,
      index,
    );
  }
  checkConsistency(index, parts);
  return index;
}

/** Magic, version, size, checksum; in this order, so that the message is the helpful one. */
function checkHeader(bytes: Uint8Array): DataView {
  if (bytes.length < SP.SIZE + CHECKSUM_SIZE) {
    throw wrong("size", `is ${bytes.length}, less than a header`);
  }
  const h = viewOf(bytes);
  if (!equalBytes(bytes.subarray(0, MAGIC.length), utf8(MAGIC))) {
    throw wrong("magic", "is wrong");
  }
  const version = h.getUint16(SP.version, true);
  if (version !== VERSION) {
    throw new UnsupportedError(
      "obd.spans version",
      `Cannot read obd.spans of version ${version}: this obd knows ${VERSION}`,
    );
  }
  const fileSize = getU64(h, SP.fileSize);
  if (fileSize !== bytes.length) {
    throw wrong("file_size", `is ${fileSize}, the file has ${bytes.length}`);
  }
  const content = bytes.subarray(0, bytes.length - CHECKSUM_SIZE);
  const want = bytes.subarray(content.length);
  const got = sha256(content);
  if (!equalBytes(got, want)) {
    throw new IntegrityError(
      "obd.spans checksum",
      want.toHex(),
      got.toHex(),
    );
  }
  const flags = h.getUint32(SP.flags, true);
  if (flags !== 0) {
    throw new UnsupportedError(
      "obd.spans flags",
      `Cannot read obd.spans with flags 0x${flags.toString(16)}: none is known`,
    );
  }
  if (
    h.getUint16(SP.headerSize, true) !== SP.SIZE ||
    h.getUint32(SP.reserved, true) !== 0
  ) throw wrong("header", "has an unknown form");
  return h;
}

interface Parts {
  mediaType: Uint8Array;
  sizes: Uint8Array;
  digests: Uint8Array;
  checkpoints: Uint8Array;
  windows: Uint8Array;
}

function splitParts(bytes: Uint8Array, h: DataView): Parts {
  const spanCount = h.getUint32(SP.spanCount, true);
  const mediaTypeSize = h.getUint16(SP.mediaTypeSize, true);
  if (spanCount > MAX_SPANS) {
    throw new LimitError(
      `Cannot read obd.spans of ${spanCount} spans: limit is ${MAX_SPANS}`,
    );
  }
  if (mediaTypeSize > MAX_MEDIA_TYPE) {
    throw wrong("media_type_size", `is ${mediaTypeSize}`);
  }
  let at: number = SP.SIZE;
  const end = bytes.length - CHECKSUM_SIZE;
  const take = (length: number): Uint8Array => {
    if (length > end - at) throw wrong("sections", "pass the end of the file");
    at += length;
    return bytes.subarray(at - length, at);
  };
  const parts = {
    mediaType: take(mediaTypeSize),
    sizes: take(h.getUint32(SP.sizesStored, true)),
    digests: take(spanCount * DIGEST_SIZE),
    checkpoints: take(h.getUint32(SP.checkpointsStored, true)),
    windows: take(getU64(h, SP.windowsSize)),
  };
  if (at !== end) throw wrong("sections", "do not fill the file");
  return parts;
}

function readSizes(
  raw: Uint8Array,
  count: number,
  spanSize: number,
  tarSize: number,
): Float64Array {
  const offsets = new Float64Array(count);
  if (raw.length === 0) {
    if (
      spanSize === 0 ? tarSize > 0 : count !== Math.ceil(tarSize / spanSize)
    ) {
      throw wrong("span_count", `is ${count} for ${tarSize} bytes`);
    }
    for (let i = 0; i < count; i++) offsets[i] = i * spanSize;
    return offsets;
  }
  const sizes = readVarints(raw, count, "obd.spans sizes");
  let at = 0;
  for (let i = 0; i < count; i++) {
    // An empty tar may still have the checkpoint that its stream starts with.
    if (sizes[i] === 0 && tarSize > 0) throw wrong(`span ${i}`, "is empty");
    offsets[i] = at;
    at += sizes[i]!;
  }
  if (at !== tarSize) {
    throw wrong("sizes", `add up to ${at}, expected ${tarSize}`);
  }
  return offsets;
}

function readCheckpoints(
  raw: Uint8Array,
  count: number,
  windows: Uint8Array,
  index: SpanIndex,
): SpanCheckpoints {
  // There is at most one for a span, and the spans are bounded.
  if (count > index.spanOffset.length) {
    throw wrong("checkpoint_count", `is ${count}, more than spans`);
  }
  const fields = readVarints(
    raw,
    count * CHECKPOINT_FIELDS,
    "obd.spans checkpoints",
  );
  const span = new Uint32Array(count);
  const compressedOffset = new Float64Array(count);
  const bits = new Uint8Array(count);
  const window: Uint8Array[] = [];
  let windowAt = 0;
  for (let i = 0; i < count; i++) {
    const [spanStep, offsetStep, bit, windowSize] = fields.subarray(
      i * CHECKPOINT_FIELDS,
    ) as unknown as [number, number, number, number];
    const s = spanStep + (i > 0 ? span[i - 1]! : 0);
    const offset = offsetStep + (i > 0 ? compressedOffset[i - 1]! : 0);
    const good = (i === 0 ? s === 0 : spanStep > 0 && offsetStep > 0) &&
      s < index.spanOffset.length && offset <= index.blobSize && bit <= 7 &&
      (bit === 0 || offset > 0) && windowSize <= MAX_WINDOW &&
      windowSize <= windows.length - windowAt;
    if (!good) throw wrong(`checkpoint ${i}`, "is out of order or bounds");
    span[i] = s;
    compressedOffset[i] = offset;
    bits[i] = bit;
    window.push(windows.subarray(windowAt, windowAt + windowSize));
    windowAt += windowSize;
  }
  if (windowAt !== windows.length) {
    throw wrong("windows", `are ${windows.length} bytes, used ${windowAt}`);
  }
  return { count, span, compressedOffset, bits, window };
}

function checkConsistency(index: SpanIndex, parts: Parts): void {
  const { compression, access, tarSize, blobSize } = index;
  const fits = compression === "none"
    ? access === "identity" && tarSize === blobSize &&
      index.diffId === index.blobDigest && index.members === 0
    : compression === "gzip"
    ? access !== "identity"
    : access === "checkpoints";
  if (!fits) {
    throw wrong("access", `"${access}" does not go with "${compression}"`);
  }
  const own = index.checkpoints;
  if (!own && parts.checkpoints.length + parts.windows.length > 0) {
    throw wrong("checkpoints", `are there, but access is "${access}"`);
  }
  if (own && own.count === 0 && tarSize > 0) {
    throw wrong("checkpoints", "are missing");
  }
}

function size(h: DataView, at: number, field: string): number {
  const value = getU64(h, at);
  if (!Number.isSafeInteger(value)) throw wrong(field, `is ${value}`);
  return value;
}

/** Stored as it is, or as a zlib stream where that is shorter. */
function packSection(raw: Uint8Array): { stored: Uint8Array; rawSize: number } {
  const packed = zlib.deflateSync(raw, { level: LEVEL });
  return {
    stored: packed.length < raw.length ? packed : raw,
    rawSize: raw.length,
  };
}

function unpackSection(
  stored: Uint8Array,
  rawSize: number,
  field: string,
): Uint8Array {
  if (stored.length === rawSize) return stored;
  if (stored.length > rawSize) throw wrong(field, "are stored too long");
  // Ten bytes for each number, four numbers for each span at most.
  if (rawSize > MAX_SPANS * 40) throw wrong(field, `are ${rawSize} bytes`);
  let raw: Uint8Array;
  try {
    raw = zlib.inflateSync(stored, { maxOutputLength: rawSize });
  } catch (error) {
    throw wrong(field, "do not inflate", error);
  }
  if (raw.length !== rawSize) {
    throw wrong(field, `inflate to ${raw.length} bytes, expected ${rawSize}`);
  }
  return raw;
}

function sha256(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(createHash("sha256").update(bytes).digest());
}

function digestBytes(digest: string): Uint8Array {
  const hex = /^sha256:([0-9a-f]{64})$/.exec(digest)?.[1];
  if (!hex) throw new TypeError(`Cannot encode digest "${digest}"`);
  return Uint8Array.fromHex(hex);
}

function digestText(bytes: Uint8Array, at: number): string {
  return `sha256:${bytes.subarray(at, at + DIGEST_SIZE).toHex()}`;
}

function empty(): Uint8Array {
  return new Uint8Array(0);
}

function wrong(field: string, problem: string, cause?: unknown): FormatError {
  return new FormatError("obd.spans", field, problem, { cause });
}

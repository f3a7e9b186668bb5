/**
 * Single zstd frames (RFC 8878) over the runtime's zlib.
 *
 * The runtime decodes only the first frame of its input and reports neither a
 * truncated frame nor trailing bytes, so the frame is walked here first: it
 * must fill the input exactly.
 */

import * as zlib from "node:zlib";
import { FormatError, invariant, UnsupportedError, viewOf } from "../io/mod.ts";

const MAGIC = 0xfd2fb528; // RFC 8878 §3.1.1
const SKIPPABLE_MAGIC = 0x184d2a50; // low 4 bits free, §3.1.2
/** Decoders should support at least 8 MiB (§3.1.1.1.2); more is not needed for blocks. */
const WINDOW_SIZE_MAX = 8 * 1024 * 1024;

/** What a frame says about itself. */
export interface ZstdFrame {
  /** Bytes of the whole frame, header and checksum included. */
  frameSize: number;
  /** Decoded bytes, where the header has them. */
  contentSize: number | undefined;
  /** Bytes of history that the decoder must keep. */
  windowSize: number;
  /** A skippable frame decodes to nothing. */
  skippable: boolean;
}

/**
 * Walks the block headers of the frame at the start of `bytes`.
 *
 * @throws {FormatError} If it is no zstd frame or ends early.
 * @throws {UnsupportedError} If it needs a dictionary.
 */
export function readZstdFrame(bytes: Uint8Array): ZstdFrame {
  const view = viewOf(bytes);
  if (bytes.length < 5) throw truncated();
  const magic = view.getUint32(0, true);
  if ((magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC) {
    if (bytes.length < 8) throw truncated();
    const frameSize = 8 + view.getUint32(4, true);
    if (frameSize > bytes.length) throw truncated();
    return { frameSize, contentSize: 0, windowSize: 0, skippable: true };
  }
  if (magic !== MAGIC) {
    throw new FormatError(
      "zstd frame",
      "magic",
      `is 0x${magic.toString(16)}, expected 0x${MAGIC.toString(16)}`,
    );
  }
  const descriptor = bytes[4]!;
  if ((descriptor & 0x08) !== 0) {
    throw new FormatError("zstd frame", "descriptor", "has its reserved bit");
  }
  const singleSegment = (descriptor & 0x20) !== 0;
  const hasChecksum = (descriptor & 0x04) !== 0;
  const dictionaryIdSize = [0, 1, 2, 4][descriptor & 3]!;
  const contentSizeFlag = descriptor >>> 6;
  const contentSizeSize = contentSizeFlag === 0
    ? (singleSegment ? 1 : 0)
    : 1 << contentSizeFlag;
  let at = 5;
  const headerEnd = at + (singleSegment ? 0 : 1) + dictionaryIdSize +
    contentSizeSize;
  if (headerEnd > bytes.length) throw truncated();
  let windowSize = 0;
  if (!singleSegment) {
    const windowByte = bytes[at++]!; // §3.1.1.1.2
    const base = 2 ** (10 + (windowByte >>> 3));
    windowSize = base + (base / 8) * (windowByte & 7);
  }
  for (let i = 0; i < dictionaryIdSize; i++) {
    if (bytes[at + i] !== 0) {
      throw new UnsupportedError(
        "zstd dictionary",
        "zstd frame needs a dictionary, which is not supported",
      );
    }
  }
  at += dictionaryIdSize;
  let contentSize: number | undefined;
  if (contentSizeSize > 0) {
    contentSize = contentSizeSize === 2 ? 256 : 0;
    for (let i = 0; i < contentSizeSize; i++) {
      contentSize += bytes[at + i]! * 2 ** (8 * i);
    }
  }
  if (singleSegment) windowSize = contentSize!;
  const frameSize = walkBlocks(bytes, headerEnd) + (hasChecksum ? 4 : 0);
  if (frameSize > bytes.length) throw truncated();
  return { frameSize, contentSize, windowSize, skippable: false };
}

/** @returns The offset behind the last block (§3.1.1.2). */
function walkBlocks(bytes: Uint8Array, start: number): number {
  for (let at = start;;) {
    if (at + 3 > bytes.length) throw truncated();
    const header = bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16;
    const type = (header >>> 1) & 3;
    if (type === 3) {
      throw new FormatError("zstd frame", "block type", "is reserved");
    }
    at += 3 + (type === 1 ? 1 : header >>> 3);
    if (at > bytes.length) throw truncated();
    if ((header & 1) !== 0) return at;
  }
}

/**
 * Encodes `src` as one frame with its content size in the header.
 *
 * Deterministic for one release of the runtime.
 *
 * @param level 1 … 19.
 */
export function zstdCompress(
  src: Uint8Array,
  level = 3,
): Uint8Array<ArrayBuffer> {
  const bytes = zlib.zstdCompressSync(src, {
    params: { [zlib.constants.ZSTD_c_compressionLevel]: level },
    pledgedSrcSize: src.length,
    // Output that needs a second buffer makes the runtime (Deno 2.9.6) append an empty frame.
    chunkSize: src.length + Math.floor(src.length / 128) + 1024,
  } as zlib.ZstdOptions);
  invariant(
    readZstdFrame(bytes).frameSize === bytes.length,
    "the runtime's zstd gave more than one frame",
  );
  // A copy: a Buffer's `slice` would share memory, and it sits in a bigger one.
  return new Uint8Array(bytes);
}

/**
 * Decodes exactly one frame.
 *
 * @param src The frame, without anything behind it.
 * @param dst Owned by the caller; its length is the most that the frame may decode to.
 * @returns Bytes written to the start of `dst`.
 * @throws {FormatError} If the frame is malformed, does not fill `src`, or does not fit `dst`.
 * @throws {UnsupportedError} If it needs a dictionary or a window over 8 MiB.
 */
export function zstdDecompress(src: Uint8Array, dst: Uint8Array): number {
  const frame = readZstdFrame(src);
  if (frame.skippable || frame.frameSize !== src.length) {
    throw new FormatError(
      "zstd block",
      "length",
      `is ${src.length} bytes, its frame has ${frame.frameSize}`,
    );
  }
  if ((frame.contentSize ?? 0) > dst.length) throw tooLong(dst.length);
  if (frame.windowSize > WINDOW_SIZE_MAX) {
    throw new UnsupportedError(
      "zstd window",
      `zstd frame needs a window of ${frame.windowSize} bytes, at most ${WINDOW_SIZE_MAX} are supported`,
    );
  }
  if (
    frame.contentSize !== undefined && decodeFast(src, dst, frame.contentSize)
  ) {
    return frame.contentSize;
  }
  let bytes: Uint8Array;
  try {
    bytes = zlib.zstdDecompressSync(src, {
      maxOutputLength: Math.max(1, dst.length),
    } as zlib.ZstdOptions);
  } catch (error) {
    if ((error as { code?: string }).code === "ERR_BUFFER_TOO_LARGE") {
      throw tooLong(dst.length);
    }
    throw new FormatError("zstd block", "data", "is malformed", {
      cause: error,
    });
  }
  if (bytes.length > dst.length) throw tooLong(dst.length);
  if (frame.contentSize !== undefined && bytes.length !== frame.contentSize) {
    throw new FormatError(
      "zstd block",
      "content size",
      `is ${frame.contentSize}, but ${bytes.length} bytes were decoded`,
    );
  }
  dst.set(bytes);
  return bytes.length;
}

interface ZstdHandle {
  writeSync(
    flush: number,
    input: Uint8Array,
    inputAt: number,
    inputSize: number,
    output: Uint8Array,
    outputAt: number,
    outputSize: number,
  ): void;
  reset(): void;
}

/** One native decoder for each thread, reset between frames: 4× faster for 4 KiB blocks. */
class FastZstd {
  readonly #handle: ZstdHandle;
  readonly #state: Uint32Array;

  constructor() {
    const stream = zlib.createZstdDecompress();
    // An error closes the handle later and is reported here; decode() sees it at once.
    stream.on("error", () => {});
    const internals = stream as unknown as {
      _handle: ZstdHandle;
      _writeState: Uint32Array;
    };
    this.#handle = internals._handle;
    this.#state = internals._writeState;
  }

  /** Whether `src` was used up and gave exactly `size` bytes. */
  decode(src: Uint8Array, dst: Uint8Array, size: number): boolean {
    this.#handle.reset();
    this.#state.fill(0xffffffff);
    const flush = zlib.constants.ZSTD_e_end;
    this.#handle.writeSync(flush, src, 0, src.length, dst, 0, dst.length);
    return this.#state[0] === dst.length - size && this.#state[1] === 0;
  }
}

let fast: FastZstd | undefined;
let fastWorks: boolean | undefined;

/** False where the runtime's internals are not as expected, or the frame is odd in any way. */
function decodeFast(src: Uint8Array, dst: Uint8Array, size: number): boolean {
  fastWorks ??= testFast();
  if (!fastWorks || size === 0) return false;
  try {
    fast ??= new FastZstd();
    if (fast.decode(src, dst, size)) return true;
  } catch {
    // The public way below says what is wrong.
  }
  fast = undefined;
  return false;
}

function testFast(): boolean {
  try {
    const content = new Uint8Array(1000).map((_, i) => i * i);
    const packed = zstdCompress(content);
    const decoder = new FastZstd();
    const got = new Uint8Array(1100);
    for (let round = 0; round < 2; round++) {
      got.fill(0);
      if (!decoder.decode(packed, got, 1000)) return false;
      if (content.some((byte, i) => byte !== got[i])) return false;
    }
    // It must not take a cut frame for a whole one.
    return !decoder.decode(packed.subarray(0, packed.length - 4), got, 1000);
  } catch {
    return false;
  }
}

function truncated(): FormatError {
  return new FormatError("zstd frame", "length", "is too short");
}

function tooLong(limit: number): FormatError {
  return new FormatError(
    "zstd block",
    "data",
    `decodes to more than ${limit} bytes`,
  );
}

/**
 * Single zstd frames (RFC 8878) over the runtime's zlib.
 *
 * The runtime decodes only the first frame of its input and reports neither a
 * truncated frame nor trailing bytes, so the frame is walked here first: it
 * must fill the input exactly.
 */

import * as zlib from "node:zlib";
import { FormatError, invariant, UnsupportedError } from "../io/mod.ts";
import { nativeCodec, type NativeHandle } from "./native_handle.ts";
import {
  readZstdBlock,
  readZstdHeader,
  ZSTD_BLOCK_HEADER_SIZE,
  ZSTD_HEADER_SIZE_MAX,
} from "./zstd_header.ts";

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
  const header = readZstdHeader(bytes.subarray(0, ZSTD_HEADER_SIZE_MAX));
  if (header === undefined) throw truncated();
  const { headerSize, skippableSize, contentSize, windowSize } = header;
  const frameSize = skippableSize !== undefined
    ? headerSize + skippableSize
    : walkBlocks(bytes, headerSize) + (header.hasChecksum ? 4 : 0);
  if (frameSize > bytes.length) throw truncated();
  const skippable = skippableSize !== undefined;
  return { frameSize, contentSize, windowSize, skippable };
}

/** @returns The offset behind the last block (§3.1.1.2). */
function walkBlocks(bytes: Uint8Array, start: number): number {
  for (let at = start;;) {
    if (at + ZSTD_BLOCK_HEADER_SIZE > bytes.length) throw truncated();
    const { storedSize, isLast } = readZstdBlock(
      bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16,
    );
    at += ZSTD_BLOCK_HEADER_SIZE + storedSize;
    if (at > bytes.length) throw truncated();
    if (isLast) return at;
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

/** One native decoder for each thread, reset between frames: 4× faster for 4 KiB blocks. */
class FastZstd {
  readonly #handle: NativeHandle;
  readonly #state: Uint32Array;

  constructor() {
    const stream = zlib.createZstdDecompress();
    // An error closes the handle later and is reported here; decode() sees it at once.
    stream.on("error", () => {});
    const { handle, state } = nativeCodec(stream);
    this.#handle = handle;
    this.#state = state;
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

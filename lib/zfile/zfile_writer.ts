/** Writes ZFiles that overlaybd reads. */

import { crc32c } from "../compress/mod.ts";
import { type ByteSink, invariant, LimitError, viewOf } from "../io/mod.ts";
import type { BlockPacker, PackedBatch } from "./block_packer.ts";
import {
  ALGORITHM,
  type BlockCodec,
  HEADER_SEED,
  writeZFileFields,
  ZF,
  type ZFileFields,
  ZFLAG,
} from "./format.ts";
import { MAX_BLOCKS } from "./open.ts";
import { packBlock, packedBound, packedRoom } from "./pack_blocks.ts";

/**
 * Block sizes that overlaybd reads back whatever the content: 64 KiB of
 * incompressible bytes are stored longer than its 65536-byte buffer.
 */
const BLOCK_SIZES = [4096, 8192, 16384, 32768];
/** Output is handed to the sink in pieces of about this many bytes. */
const FLUSH_AT = 256 * 1024;
/** Content that is handed to a packer at once; a multiple of every block size. */
const BATCH_SIZE = 512 * 1024;

/** How to write a ZFile. */
export interface ZFileOptions {
  /** Default `"lz4"`. `"lz4-for-gzip"` is for files that are compressed once more as a whole. */
  codec?: BlockCodec | undefined;
  /** 4096 (default), 8192, 16384 or 32768 bytes. */
  blockSize?: number | undefined;
  /**
   * Complete the header at the end, so that a reader needs no trailer; the sink
   * must have `rewrite`. Readers of either kind of file exist.
   */
  headerOverwrite?: boolean | undefined;
  /** Compresses on other threads; borrowed. Default: on the calling one. */
  packer?: BlockPacker | undefined;
}

/** What was written. All in bytes but `blockCount`. */
export interface ZFileSummary {
  size: number;
  originalSize: number;
  blockCount: number;
}

/**
 * Compresses what is written to it, block by block, into another sink. The
 * output depends on the content and the options only, not on how the content
 * was cut into writes, nor on where it was compressed. Memory: one block, the
 * table (4 bytes per block), and the output buffer; with a packer some batches
 * of 512 KiB.
 */
export class ZFileWriter implements ByteSink {
  readonly #sink: ByteSink;
  readonly #codec: BlockCodec;
  readonly #headerOverwrite: boolean;
  readonly #block: Uint8Array;
  #blockFill = 0;
  readonly #out: Uint8Array;
  readonly #outView: DataView;
  #outFill: number;
  #size = 0; // bytes handed to the sink
  #originalSize = 0;
  #lengths = new Uint32Array(1024);
  #blockCount = 0;
  #finished = false;
  readonly #packer: BlockPacker | undefined;
  #batch = new ArrayBuffer(0);
  #batchFill = 0;
  /** Batches being packed, in order. */
  readonly #packing: Promise<PackedBatch>[] = [];
  /** Memory to use again: of content, and of packed blocks. */
  readonly #spare: ArrayBuffer[] = [];
  readonly #spareRoom: ArrayBuffer[] = [];

  /**
   * @param sink Borrowed; it must be at its start.
   * @throws {RangeError} If the block size is none of the four.
   * @throws {TypeError} If `headerOverwrite` is wanted of a sink that cannot.
   */
  constructor(sink: ByteSink, options: ZFileOptions = {}) {
    const blockSize = options.blockSize ?? 4096;
    if (!BLOCK_SIZES.includes(blockSize)) {
      throw new RangeError(
        `Cannot write ZFile with blocks of ${blockSize} bytes: not one of ${
          BLOCK_SIZES.join(", ")
        }`,
      );
    }
    this.#headerOverwrite = options.headerOverwrite ?? false;
    if (this.#headerOverwrite && !sink.rewrite) {
      throw new TypeError("Cannot overwrite the header: sink has no rewrite");
    }
    this.#sink = sink;
    this.#codec = options.codec ?? "lz4";
    this.#block = new Uint8Array(blockSize);
    this.#packer = options.packer;
    this.#out = new Uint8Array(FLUSH_AT + packedBound(blockSize) + ZF.SIZE);
    this.#outView = viewOf(this.#out);
    this.#out.set(writeZFileFields(this.#fields(ZFLAG.header)));
    this.#outFill = ZF.SIZE;
  }

  /** @throws {LimitError} If the file gets more blocks than readers take. */
  async write(bytes: Uint8Array): Promise<void> {
    invariant(!this.#finished, "write after finish");
    this.#originalSize += bytes.length;
    if (this.#packer) return await this.#writeBatches(bytes, this.#packer);
    const size = this.#block.length;
    let at = 0;
    while (at < bytes.length) {
      if (this.#blockFill === 0 && bytes.length - at >= size) {
        this.#pack(bytes.subarray(at, at + size)); // no copy needed
        at += size;
      } else {
        const take = Math.min(size - this.#blockFill, bytes.length - at);
        this.#block.set(bytes.subarray(at, at + take), this.#blockFill);
        this.#blockFill += take;
        at += take;
        if (this.#blockFill === size) {
          this.#pack(this.#block);
          this.#blockFill = 0;
        }
      }
      if (this.#outFill >= FLUSH_AT) await this.#flush();
    }
  }

  /** Writes the last block, the table and the trailer. The sink stays open. */
  async finish(): Promise<ZFileSummary> {
    invariant(!this.#finished, "finish twice");
    this.#finished = true;
    if (this.#packer) await this.#finishBatches(this.#packer);
    if (this.#blockFill > 0) {
      this.#pack(this.#block.subarray(0, this.#blockFill));
    }
    await this.#flush();
    const indexOffset = this.#size;
    const table = new Uint8Array(
      this.#lengths.buffer as ArrayBuffer,
      0,
      this.#blockCount * 4,
    );
    const indexCrc = crc32c(table, HEADER_SEED);
    await this.#sink.write(table);
    await this.#sink.write(
      writeZFileFields(this.#fields(ZFLAG.sealed, { indexOffset, indexCrc })),
    );
    if (this.#headerOverwrite) {
      const flags = ZFLAG.header | ZFLAG.headerOverwrite;
      await this.#sink.rewrite!(
        writeZFileFields(this.#fields(flags, { indexOffset, indexCrc })),
        0,
      );
    }
    return {
      size: indexOffset + table.length + ZF.SIZE,
      originalSize: this.#originalSize,
      blockCount: this.#blockCount,
    };
  }

  /** @param table Absent for the first header, which knows nothing yet. */
  #fields(
    flags: number,
    table?: { indexOffset: number; indexCrc: number },
  ): ZFileFields {
    return {
      flags: flags | ZFLAG.data | ZFLAG.digest,
      digest: 0,
      indexOffset: table?.indexOffset ?? 0,
      blockCount: table ? this.#blockCount : 0,
      originalSize: table ? this.#originalSize : 0,
      indexCrc: table?.indexCrc ?? 0,
      blockSize: this.#block.length,
      algorithm: ALGORITHM[this.#codec === "zstd" ? "zstd" : "lz4"],
      dictSize: 0,
      verify: true,
    };
  }

  /** Compresses one block behind the output buffer's content. */
  #pack(block: Uint8Array): void {
    this.#addLength(
      packBlock(block, this.#codec, this.#out, this.#outView, this.#outFill),
    );
    this.#outFill += this.#lengths[this.#blockCount - 1]!;
  }

  #addLength(length: number): void {
    if (this.#blockCount === MAX_BLOCKS) {
      throw new LimitError(
        `Cannot write ZFile: over ${MAX_BLOCKS} blocks of ${this.#block.length} bytes`,
      );
    }
    if (this.#blockCount === this.#lengths.length) {
      const grown = new Uint32Array(this.#lengths.length * 2);
      grown.set(this.#lengths);
      this.#lengths = grown;
    }
    this.#lengths[this.#blockCount++] = length;
  }

  async #writeBatches(bytes: Uint8Array, packer: BlockPacker): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      if (this.#batch.byteLength === 0) {
        this.#batch = this.#spare.pop() ?? new ArrayBuffer(BATCH_SIZE);
      }
      const piece = bytes.subarray(at, at + BATCH_SIZE - this.#batchFill);
      new Uint8Array(this.#batch).set(piece, this.#batchFill);
      this.#batchFill += piece.length;
      at += piece.length;
      if (this.#batchFill === BATCH_SIZE) {
        this.#submit(packer);
        if (this.#packing.length > packer.depth) await this.#takeBatch();
      }
    }
  }

  async #finishBatches(packer: BlockPacker): Promise<void> {
    if (this.#batchFill > 0) this.#submit(packer);
    while (this.#packing.length > 0) await this.#takeBatch();
  }

  #submit(packer: BlockPacker): void {
    const room = this.#spareRoom.pop() ??
      new ArrayBuffer(packedRoom(BATCH_SIZE, this.#block.length));
    const batch = packer.pack(
      this.#batch,
      room,
      this.#batchFill,
      this.#block.length,
      this.#codec,
    );
    // It is awaited when its turn comes; until then a failure must not end the process.
    batch.catch(() => {});
    this.#packing.push(batch);
    this.#batch = new ArrayBuffer(0);
    this.#batchFill = 0;
  }

  /** Writes the oldest batch down. */
  async #takeBatch(): Promise<void> {
    const { bytes, lengths, content } = await this.#packing.shift()!;
    this.#spare.push(content);
    for (const length of lengths) this.#addLength(length);
    await this.#flush();
    this.#size += bytes.length;
    await this.#sink.write(bytes);
    this.#spareRoom.push(bytes.buffer);
  }

  async #flush(): Promise<void> {
    if (this.#outFill === 0) return;
    const bytes = this.#out.subarray(0, this.#outFill);
    this.#size += bytes.length;
    this.#outFill = 0;
    await this.#sink.write(bytes);
  }
}

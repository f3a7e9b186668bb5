/**
 * From a body in the tar to sectors of the file.
 *
 * A sector of the tar can stand for a sector of the file only when all 512
 * bytes are equal. That is so for every whole sector of a segment whose file
 * and tar offsets are congruent modulo 512, and for the body's last, partial
 * sector when the padding behind it is zero. All other sectors are captured
 * from the stream while it passes and become patches.
 *
 * The plan is made before the first byte of the body is seen, so the patch
 * budget is checked before anything is allocated.
 */
import { type ByteString, roundUp } from "../io/mod.ts";
import { SECTOR_SIZE, type TarPatch, type TarRun } from "./entry.ts";
import type { PatchBudget } from "./limits.ts";
import type { SparseMap } from "./sparse.ts";

/** Bytes to copy out of the tar. */
interface Capture {
  tarOffset: number;
  length: number;
  /** Index of the patch. */
  patch: number;
  /** Byte offset in the patch. */
  at: number;
}

/** One file's body, from its first byte to the end of its padding. */
export class TarBody {
  readonly runs: TarRun[] = [];
  readonly patches: TarPatch[] = [];
  /** Bytes of the tar where the data ends, and where its padding ends. */
  readonly dataEnd: number;
  readonly end: number;

  readonly #path: ByteString;
  readonly #budget: PatchBudget;
  readonly #captures: Capture[] = [];
  #nextCapture = 0;
  /** The partial last sector that may become part of a run: its sector in the file, or −1. */
  #tailSector = -1;
  readonly #tail: Uint8Array;

  /**
   * @param map Checked segments; `undefined` for a file without holes.
   * @param dataOffset Byte offset of the data in the tar, a multiple of 512.
   * @param dataBytes Bytes of data, without padding.
   * @param path The file's, for errors.
   * @param budget Of the whole archive.
   * @param scratch 512 bytes that are this body's until `finish`.
   * @throws {LimitError} When the patches pass the budget.
   */
  constructor(
    map: SparseMap | undefined,
    dataOffset: number,
    dataBytes: number,
    path: ByteString,
    budget: PatchBudget,
    scratch: Uint8Array,
  ) {
    this.dataEnd = dataOffset + dataBytes;
    this.end = dataOffset + roundUp(dataBytes, SECTOR_SIZE);
    this.#path = path;
    this.#budget = budget;
    this.#tail = scratch;
    if (map === undefined) {
      this.#planSegment(0, dataBytes, dataOffset);
    } else {
      this.#planSparse(map, dataOffset);
    }
  }

  /**
   * Looks at bytes of the tar from `offset` on, all of them inside the body or
   * its padding, each byte once and in order.
   *
   * @param bytes Borrowed; `bytes[at … at + length)` are meant.
   */
  take(bytes: Uint8Array, at: number, length: number, offset: number): void {
    const limit = offset + length;
    while (this.#nextCapture < this.#captures.length) {
      const capture = this.#captures[this.#nextCapture]!;
      if (capture.tarOffset >= limit) break;
      const from = Math.max(offset, capture.tarOffset);
      const to = Math.min(limit, capture.tarOffset + capture.length);
      this.patches[capture.patch]!.bytes.set(
        bytes.subarray(at + from - offset, at + to - offset),
        capture.at + from - capture.tarOffset,
      );
      if (to < capture.tarOffset + capture.length) break;
      this.#nextCapture++;
    }
    const tailOffset = this.end - SECTOR_SIZE;
    if (this.#tailSector < 0 || limit <= tailOffset) return;
    const from = Math.max(offset, tailOffset);
    this.#tail.set(
      bytes.subarray(at + from - offset, at + length),
      from - tailOffset,
    );
  }

  /**
   * Settles the last sector: part of a run when the padding is all there and
   * zero, else a patch.
   *
   * @param offset Where the stream stands: `end`, or less where the archive
   * stops within the padding.
   */
  finish(offset: number): void {
    if (this.#tailSector < 0) return;
    const tail = this.#tail;
    const used = SECTOR_SIZE - (this.end - this.dataEnd);
    let clean = offset === this.end;
    for (let i = used; clean && i < SECTOR_SIZE; i++) clean = tail[i] === 0;
    if (clean) {
      this.#addRun(this.#tailSector, this.end / SECTOR_SIZE - 1, 1);
      return;
    }
    this.#budget.take(SECTOR_SIZE, this.#path);
    const bytes = new Uint8Array(SECTOR_SIZE);
    bytes.set(tail.subarray(0, used));
    this.patches.push({ fileSector: this.#tailSector, bytes });
  }

  #planSparse(map: SparseMap, dataOffset: number): void {
    const open: OpenPatch[] = [];
    let tarOffset = dataOffset;
    for (let i = 0; i < map.length; i += 2) {
      const length = map[i + 1]!;
      if (length === 0) continue;
      for (const piece of this.#planSegment(map[i]!, length, tarOffset)) {
        this.#plan(open, piece);
      }
      tarOffset += length;
    }
    for (const { fileSector, sectors } of open) {
      this.patches.push({
        fileSector,
        bytes: new Uint8Array(sectors * SECTOR_SIZE),
      });
    }
  }

  /** Adds the runs of a segment; returns the pieces that must be captured. */
  #planSegment(
    fileOffset: number,
    length: number,
    tarOffset: number,
  ): Piece[] {
    const fileEnd = fileOffset + length;
    const shift = tarOffset - fileOffset;
    const first = Math.ceil(fileOffset / SECTOR_SIZE);
    const limit = Math.floor(fileEnd / SECTOR_SIZE);
    const whole = { fileOffset, length, tarOffset };
    if (shift % SECTOR_SIZE !== 0 || first > limit) return [whole];

    if (first < limit) {
      this.#addRun(first, first + shift / SECTOR_SIZE, limit - first);
    }
    const pieces: Piece[] = [];
    const firstByte = first * SECTOR_SIZE;
    const limitByte = limit * SECTOR_SIZE;
    if (fileOffset < firstByte) {
      pieces.push({ fileOffset, length: firstByte - fileOffset, tarOffset });
    }
    if (limitByte === fileEnd) return pieces;
    if (tarOffset + length === this.dataEnd) {
      this.#tailSector = limit;
    } else {
      pieces.push({
        fileOffset: limitByte,
        length: fileEnd - limitByte,
        tarOffset: limitByte + shift,
      });
    }
    return pieces;
  }

  /** Gives a piece its place in a patch: in the last one when it touches or overlaps it. */
  #plan(open: OpenPatch[], piece: Piece): void {
    const first = Math.floor(piece.fileOffset / SECTOR_SIZE);
    const limit = Math.ceil((piece.fileOffset + piece.length) / SECTOR_SIZE);
    let last = open.at(-1);
    if (last === undefined || first > last.fileSector + last.sectors) {
      last = { fileSector: first, sectors: 0 };
      open.push(last);
    }
    const more = limit - (last.fileSector + last.sectors);
    this.#budget.take(more * SECTOR_SIZE, this.#path);
    last.sectors += more;
    this.#captures.push({
      tarOffset: piece.tarOffset,
      length: piece.length,
      patch: open.length - 1,
      at: piece.fileOffset - last.fileSector * SECTOR_SIZE,
    });
  }

  #addRun(fileSector: number, tarSector: number, sectors: number): void {
    const last = this.runs.at(-1);
    if (
      last !== undefined && last.fileSector + last.sectors === fileSector &&
      last.tarSector + last.sectors === tarSector
    ) {
      last.sectors += sectors;
    } else {
      this.runs.push({ fileSector, tarSector, sectors });
    }
  }
}

/** Part of a segment that cannot be a run. */
interface Piece {
  fileOffset: number;
  length: number;
  tarOffset: number;
}

/** A patch whose size still grows. */
interface OpenPatch {
  fileSector: number;
  sectors: number;
}

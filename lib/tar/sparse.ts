/**
 * Sparse maps: which parts of a file the body holds, in GNU tar's forms.
 *
 * | form | where the map is |
 * |---|---|
 * | old GNU, type "S" | four segments in the header, 21 in each extension block behind it |
 * | PAX 0.0 | `GNU.sparse.offset`, `GNU.sparse.numbytes` records in turn |
 * | PAX 0.1 | `GNU.sparse.map` record, commas between the numbers |
 * | PAX 1.0 | decimal lines at the start of the body, padded to 512 bytes |
 *
 * The body holds the segments' bytes back to back (GNU tar manual, "Storing
 * Sparse Files"). Star's own sparse form shares the type byte with another
 * layout; it is not supported.
 */
import {
  type ByteString,
  FormatError,
  LimitError,
  quoteName,
  UnsupportedError,
} from "../io/mod.ts";
import { readNumberField } from "./header.ts";
import type { TarLimits } from "./limits.ts";
import type { PaxSparse } from "./pax.ts";

const HEADER_MAP_AT = 386;
const HEADER_SEGMENTS = 4;
const HEADER_EXTENDED_AT = 482;
const HEADER_REAL_SIZE_AT = 483;
const EXTENSION_SEGMENTS = 21;
const EXTENSION_EXTENDED_AT = 504;
const NUMBER_BYTES = 12;

const NEWLINE = 0x0a;

/** Segments as offset and length in turn: bytes in the file, ascending once checked. */
export type SparseMap = number[];

function bad(field: string, problem: string, offset: number): FormatError {
  return new FormatError("sparse map", field, problem, { offset });
}

function tooMany(limits: TarLimits, path: ByteString): LimitError {
  return new LimitError(
    `Cannot take sparse file ${
      quoteName(path)
    }: its map has over ${limits.sparseSegments} segments`,
  );
}

/** The old GNU form: header first, then extension blocks while `more`. */
export class OldGnuMap {
  readonly map: SparseMap = [];
  readonly realSize: number;
  /** Whether an extension block follows. */
  more: boolean;
  readonly #limits: TarLimits;
  readonly #path: ByteString;

  /** @param path The file's, for errors. */
  constructor(
    header: Uint8Array,
    at: number,
    limits: TarLimits,
    path: ByteString,
    offset: number,
  ) {
    this.#limits = limits;
    this.#path = path;
    this.#read(header, at + HEADER_MAP_AT, HEADER_SEGMENTS, offset);
    this.more = header[at + HEADER_EXTENDED_AT] !== 0;
    this.realSize = readNumberField(
      header,
      at + HEADER_REAL_SIZE_AT,
      NUMBER_BYTES,
      "real size",
      offset,
    );
  }

  /** Takes one extension block of 512 bytes. */
  extend(block: Uint8Array, at: number, offset: number): void {
    this.#read(block, at, EXTENSION_SEGMENTS, offset);
    this.more = block[at + EXTENSION_EXTENDED_AT] !== 0;
  }

  #read(block: Uint8Array, at: number, count: number, offset: number): void {
    for (let i = 0; i < count; i++, at += 2 * NUMBER_BYTES) {
      if (block[at] === 0) return; // the rest of the block is unused
      if (this.map.length >= 2 * this.#limits.sparseSegments) {
        throw tooMany(this.#limits, this.#path);
      }
      this.map.push(
        readNumberField(block, at, NUMBER_BYTES, "segment offset", offset),
        readNumberField(
          block,
          at + NUMBER_BYTES,
          NUMBER_BYTES,
          "segment length",
          offset,
        ),
      );
    }
  }
}

/** The PAX 1.0 form: fed with the start of the body until `done`. */
export class BodyMap {
  readonly map: SparseMap = [];
  done = false;
  #count: number | undefined;
  #value = 0;
  #digits = 0;
  readonly #limits: TarLimits;
  readonly #path: ByteString;

  /** @param path The file's, for errors. */
  constructor(limits: TarLimits, path: ByteString) {
    this.#limits = limits;
    this.#path = path;
  }

  /**
   * Takes bytes of the body until the map is complete.
   *
   * @param offset Of `bytes[at]` in the tar, for errors.
   * @returns How many bytes were taken; the last is the map's last newline when `done`.
   */
  push(bytes: Uint8Array, at: number, end: number, offset: number): number {
    for (let i = at; i < end; i++) {
      const b = bytes[i]!;
      if (b === NEWLINE) {
        if (this.#digits === 0) throw bad("number", "is empty", offset);
        this.#take(this.#value);
        this.#value = this.#digits = 0;
        if (this.done) return i + 1 - at;
      } else {
        const digit = b - 0x30;
        if (digit < 0 || digit > 9 || ++this.#digits > 20) {
          throw bad("number", "is not decimal", offset + i - at);
        }
        this.#value = this.#value * 10 + digit;
      }
    }
    return end - at;
  }

  #take(value: number): void {
    if (this.#count === undefined) {
      if (value > this.#limits.sparseSegments) {
        throw tooMany(this.#limits, this.#path);
      }
      this.#count = value;
    } else {
      this.map.push(value);
    }
    this.done = this.map.length === 2 * this.#count;
  }
}

/**
 * Checks a map: inside the file, ascending, not overlapping, and with just the
 * bytes that the body has.
 *
 * @param realSize The file's size in bytes, already bounded.
 * @param bodyBytes Bytes of segment data in the tar.
 * @param offset Byte offset of the entry's header, for errors.
 * @throws {FormatError} When it is not so.
 */
export function checkSparseMap(
  map: SparseMap,
  realSize: number,
  bodyBytes: number,
  path: ByteString,
  offset: number,
): void {
  let end = 0;
  let total = 0;
  if (map.length % 2 !== 0) {
    throw bad("last segment", `of ${quoteName(path)} has no length`, offset);
  }
  for (let i = 0; i < map.length; i += 2) {
    const start = map[i]!;
    const length = map[i + 1]!;
    // Ascending starts at most realSize keep every sum below 2^53.
    if (!(start >= end && length >= 0 && start + length <= realSize)) {
      throw bad(
        `segment ${i / 2}`,
        `of ${length} bytes at ${start} in ${
          quoteName(path)
        } overlaps another or passes the file's ${realSize} bytes`,
        offset,
      );
    }
    end = start + length;
    total += length;
  }
  if (total !== bodyBytes) {
    throw bad(
      "segments",
      `of ${quoteName(path)} have ${total} bytes, the body has ${bodyBytes}`,
      offset,
    );
  }
}

/** How a PAX sparse map is stored. */
export type SparseVersion = "0.x" | "1.0";

/**
 * Tells the version from the keywords, as GNU tar and Go do: 0.0 and 0.1 may
 * come without one.
 *
 * @throws {UnsupportedError} For another version: the body would not be the file.
 */
export function paxSparseVersion(
  sparse: PaxSparse | undefined,
  offset: number,
): SparseVersion | undefined {
  if (sparse === undefined) return undefined;
  const { major, minor } = sparse;
  if (major === "0" && (minor === "0" || minor === "1")) return "0.x";
  if (major === "1" && minor === "0") return "1.0";
  if (major !== "" || minor !== "") {
    const version = quoteName(`${major}.${minor}`);
    throw new UnsupportedError(
      `GNU sparse version ${version}`,
      `Cannot take tar entry at offset ${offset}: GNU sparse version ${version} is not supported`,
    );
  }
  return sparse.map === undefined ? undefined : "0.x";
}

/**
 * PAX record areas (POSIX.1-2017 pax, "pax Extended Header"): records
 * `"%d %s=%s\n"` with length, keyword, value.
 *
 * An empty value leaves the header's own field in force, a repeated keyword
 * replaces the earlier value, unknown keywords are ignored. Values stay bytes:
 * a `security.capability` is binary.
 */
import {
  type ByteString,
  FormatError,
  latin1FromBytes,
  LimitError,
  quoteName,
} from "../io/mod.ts";
import type { TarLimits } from "./limits.ts";

/** The `GNU.sparse.*` keywords of versions 0.0, 0.1 and 1.0. */
export interface PaxSparse {
  major: string;
  minor: string;
  name: ByteString;
  /** `GNU.sparse.size` (0.x). */
  size: number | undefined;
  /** `GNU.sparse.realsize` (1.0). */
  realSize: number | undefined;
  /** `GNU.sparse.numblocks` (0.x). */
  segmentCount: number | undefined;
  /** Offset and length of each segment in turn (0.x). */
  map: number[] | undefined;
}

/** What a record area says of the next entry; `undefined` where it is silent. */
export interface PaxRecords {
  path: ByteString | undefined;
  linkPath: ByteString | undefined;
  size: number | undefined;
  uid: number | undefined;
  gid: number | undefined;
  mtime: { seconds: number; nanoseconds: number } | undefined;
  devMajor: number | undefined;
  devMinor: number | undefined;
  /** Unsorted; the values are copies. */
  xattrs: Map<ByteString, Uint8Array>;
  sparse: PaxSparse | undefined;
}

const SPACE = 0x20;
const NEWLINE = 0x0a;
const EQUALS = 0x3d;
const XATTR = "SCHILY.xattr.";
const LIBARCHIVE_XATTR = "LIBARCHIVE.xattr.";
const MAX_XATTR_NAME_BYTES = 255; // Linux XATTR_NAME_MAX

function bad(field: string, problem: string, offset: number): FormatError {
  return new FormatError("PAX record", field, problem, { offset });
}

/** A decimal integer with an optional sign, as Go's ParseInt takes it. */
function parseInteger(text: string, key: string, offset: number): number {
  if (!/^[+-]?[0-9]{1,20}$/.test(text)) {
    throw bad(key, `is not a number: ${quoteName(text)}`, offset);
  }
  return Number(text);
}

/**
 * Parses `[-]SECONDS[.FRACTION]`; the fraction is cut to nanoseconds towards
 * zero, and counts downwards when the seconds are negative.
 *
 * @throws {FormatError} When it is anything else.
 */
export function parsePaxTime(
  text: string,
  key: string,
  offset: number,
): { seconds: number; nanoseconds: number } {
  const match = /^([+-]?[0-9]{1,20})(?:\.([0-9]*))?$/.exec(text);
  if (match === null) {
    throw bad(key, `is not a time: ${quoteName(text)}`, offset);
  }
  const seconds = Number(match[1]);
  const nanoseconds = Number((match[2] ?? "").slice(0, 9).padEnd(9, "0"));
  if (!text.startsWith("-") || nanoseconds === 0) {
    return { seconds: seconds === 0 ? 0 : seconds, nanoseconds };
  }
  return { seconds: seconds - 1, nanoseconds: 1e9 - nanoseconds };
}

function parseMap(
  text: string,
  limits: TarLimits,
  offset: number,
): number[] {
  const map: number[] = [];
  for (const part of text.split(",")) {
    if (map.length >= 2 * limits.sparseSegments) {
      throw new LimitError(
        `Cannot take sparse file: its map has over ${limits.sparseSegments} segments`,
      );
    }
    map.push(parseInteger(part, "GNU.sparse.map", offset));
  }
  return map;
}

function emptySparse(): PaxSparse {
  return {
    major: "",
    minor: "",
    name: "",
    size: undefined,
    realSize: undefined,
    segmentCount: undefined,
    map: undefined,
  };
}

function noNul(value: ByteString, key: string, offset: number): ByteString {
  if (value.includes("\0")) {
    throw bad(key, `${quoteName(value)} holds a NUL byte`, offset);
  }
  return value;
}

function setXattr(
  xattrs: Map<ByteString, Uint8Array>,
  name: ByteString,
  value: Uint8Array,
  offset: number,
): void {
  if (name === "") throw bad("xattr name", "is empty", offset);
  if (name.length > MAX_XATTR_NAME_BYTES) {
    throw new LimitError(
      `Cannot take xattr ${
        quoteName(name)
      }: its name is over ${MAX_XATTR_NAME_BYTES} bytes`,
    );
  }
  xattrs.set(name, value);
}

/** Name URL-encoded, value base64; what does not decode is left out, as libarchive does. */
function decodeLibarchive(
  name: ByteString,
  value: ByteString,
): [ByteString, Uint8Array] | undefined {
  const decoded = name.replace(
    /%([0-9A-Fa-f]{2})/g,
    (_, hex) => String.fromCharCode(parseInt(hex, 16)),
  );
  if (decoded === "" || decoded.includes("\0")) return undefined;
  try {
    return [decoded, Uint8Array.fromBase64(value)];
  } catch {
    return undefined;
  }
}

/** Parses one area. One per area: 0.0 sparse maps are spread over many records. */
class PaxParser {
  readonly records: PaxRecords = {
    path: undefined,
    linkPath: undefined,
    size: undefined,
    uid: undefined,
    gid: undefined,
    mtime: undefined,
    devMajor: undefined,
    devMinor: undefined,
    xattrs: new Map(),
    sparse: undefined,
  };
  /** From LIBARCHIVE records; SCHILY ones of the same name win. */
  readonly #libarchive = new Map<ByteString, Uint8Array>();
  /** From the records of a 0.0 map. */
  readonly #map: number[] = [];
  readonly #limits: TarLimits;
  readonly #offset: number;

  constructor(limits: TarLimits, offset: number) {
    this.#limits = limits;
    this.#offset = offset;
  }

  add(key: ByteString, value: Uint8Array): void {
    if (key.startsWith(XATTR)) {
      const name = key.slice(XATTR.length);
      setXattr(this.records.xattrs, name, value.slice(), this.#offset);
    } else if (key.startsWith(LIBARCHIVE_XATTR)) {
      const name = key.slice(LIBARCHIVE_XATTR.length);
      const pair = decodeLibarchive(name, latin1FromBytes(value));
      if (pair) setXattr(this.#libarchive, ...pair, this.#offset);
    } else if (key.startsWith("GNU.sparse.")) {
      this.#addSparse(key, latin1FromBytes(value));
    } else {
      this.#addField(key, value);
    }
  }

  finish(): PaxRecords {
    const { records } = this;
    for (const [name, value] of this.#libarchive) {
      if (!records.xattrs.has(name)) records.xattrs.set(name, value);
    }
    if (this.#map.length > 0) {
      (records.sparse ??= emptySparse()).map = this.#map;
    }
    return records;
  }

  #addField(key: ByteString, bytes: Uint8Array): void {
    const { records } = this;
    const offset = this.#offset;
    const text = () => latin1FromBytes(bytes);
    const integer = () =>
      bytes.length === 0 ? undefined : parseInteger(text(), key, offset);
    switch (key) {
      case "path":
        records.path = noNul(text(), key, offset) || undefined;
        break;
      case "linkpath":
        records.linkPath = noNul(text(), key, offset) || undefined;
        break;
      case "size":
        records.size = integer();
        break;
      case "uid":
        records.uid = integer();
        break;
      case "gid":
        records.gid = integer();
        break;
      case "mtime":
        records.mtime = bytes.length === 0
          ? undefined
          : parsePaxTime(text(), key, offset);
        break;
      case "SCHILY.devmajor":
        records.devMajor = integer();
        break;
      case "SCHILY.devminor":
        records.devMinor = integer();
        break;
    }
  }

  #addSparse(key: ByteString, text: ByteString): void {
    const offset = this.#offset;
    const sparse = this.records.sparse ??= emptySparse();
    const integer = () =>
      text === "" ? undefined : parseInteger(text, key, offset);
    switch (key) {
      case "GNU.sparse.major":
        sparse.major = text;
        break;
      case "GNU.sparse.minor":
        sparse.minor = text;
        break;
      case "GNU.sparse.name":
        sparse.name = noNul(text, key, offset);
        break;
      case "GNU.sparse.size":
        sparse.size = integer();
        break;
      case "GNU.sparse.realsize":
        sparse.realSize = integer();
        break;
      case "GNU.sparse.numblocks":
        sparse.segmentCount = integer();
        break;
      case "GNU.sparse.map":
        sparse.map = text === "" ? undefined : parseMap(
          text,
          this.#limits,
          offset,
        );
        break;
      case "GNU.sparse.offset":
      case "GNU.sparse.numbytes": {
        const isOffset = key === "GNU.sparse.offset";
        if ((this.#map.length % 2 === 0) !== isOffset) {
          throw bad(key, "is out of turn in a sparse map", offset);
        }
        if (this.#map.length >= 2 * this.#limits.sparseSegments) {
          throw new LimitError(
            `Cannot take sparse file: its map has over ${this.#limits.sparseSegments} segments`,
          );
        }
        this.#map.push(parseInteger(text, key, offset));
        break;
      }
    }
  }
}

/**
 * Parses a whole record area.
 *
 * @param bytes Borrowed for the call.
 * @param offset Byte offset of the area in the tar, for errors.
 * @throws {FormatError} When a record is malformed or a known value is not of its kind.
 * @throws {LimitError} When a sparse map or xattr name is too long.
 */
export function parsePax(
  bytes: Uint8Array,
  limits: TarLimits,
  offset: number,
): PaxRecords {
  const parser = new PaxParser(limits, offset);
  let at = 0;
  while (at < bytes.length) {
    let length = 0;
    let p = at;
    for (; p < bytes.length && bytes[p] !== SPACE; p++) {
      const digit = bytes[p]! - 0x30;
      if (digit < 0 || digit > 9) {
        throw bad("length", "is not a number", offset + at);
      }
      length = length * 10 + digit;
      if (length > bytes.length) break;
    }
    // Shortest record: "5 k=\n".
    if (length < 5 || length > bytes.length - at) {
      throw bad("length", `${length} passes the record area`, offset + at);
    }
    const end = at + length - 1;
    if (bytes[end] !== NEWLINE) {
      throw bad("end", "is not a newline", offset + at);
    }
    const keyAt = p + 1;
    const equals = bytes.subarray(0, end).indexOf(EQUALS, keyAt);
    if (equals <= keyAt) throw bad("keyword", "is missing", offset + at);
    const key = latin1FromBytes(bytes.subarray(keyAt, equals));
    parser.add(
      noNul(key, "keyword", offset + at),
      bytes.subarray(equals + 1, end),
    );
    at = end + 1;
  }
  return parser.finish();
}

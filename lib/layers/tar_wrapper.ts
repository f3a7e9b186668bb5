/**
 * The one-member tar around a native layer blob (overlaybd tar/tar_file.cpp).
 *
 * ```
 * 0     PAX header "overlaybd.pax"      512   one record block "<len> size=<bytes>\n"
 * 1024  ustar header "overlaybd.commit" 1536  payload, zero padding to 512, two zero blocks
 * ```
 *
 * Detection follows the real reader to the letter: it takes the payload for a
 * raw file wherever it does not see a tar, and so must we. The tar of an OCI
 * layer is lib/tar's business, not this file's.
 */

import {
  type ByteSource,
  FormatError,
  isZero,
  latin1FromBytes,
  readBytes,
  roundUp,
  SliceSource,
} from "../io/mod.ts";

const BLOCK = 512;
/** Where the payload starts behind a PAX header with one record block. */
const PAX_PAYLOAD = 3 * BLOCK;

/** Byte offsets in a tar header (POSIX.1-2017 pax, "ustar Interchange Format"). */
const TH = {
  name: 0, // 100
  mode: 100, // 8
  uid: 108, // 8
  gid: 116, // 8
  size: 124, // 12
  mtime: 136, // 12
  checksum: 148, // 8
  typeflag: 156, // 1
  magic: 257, // 6: "ustar" NUL
  version: 263, // 2: "00"
  uname: 265, // 32
  gname: 297, // 32
} as const;

/** Where the payload lies, in bytes of the wrapped file. */
export interface TarPayload {
  offset: number;
  size: number;
}

/**
 * Finds the payload of a tar-wrapped layer.
 *
 * @returns Undefined if overlaybd would take the file as it is: other magic
 * (also GNU tar's), other version, wrong checksum.
 * @throws {FormatError} If it is a tar whose payload cannot be told: a PAX area
 * of more than one block (overlaybd reads garbage there), no size, or more
 * bytes than there are.
 */
export async function findTarPayload(
  source: ByteSource,
): Promise<TarPayload | undefined> {
  if (source.size < BLOCK) return undefined;
  const head = await readBytes(
    source,
    0,
    Math.min(PAX_PAYLOAD, source.size),
  );
  const first = head.subarray(0, BLOCK);
  if (!isUstar(first)) return undefined;
  const payload = first[TH.typeflag] === 0x78 // "x"
    ? paxPayload(head)
    : { offset: BLOCK, size: parseOctal(first, TH.size, 12) };
  if (payload.offset + payload.size > source.size) {
    throw new FormatError(
      "tar wrapper",
      "size",
      `is ${payload.size} at ${payload.offset}, but the file has ${source.size} bytes`,
    );
  }
  return payload;
}

/**
 * The payload of a tar-wrapped layer, or the source itself if it is none.
 *
 * @param source Owned by the result.
 */
export async function unwrapTar(source: ByteSource): Promise<ByteSource> {
  const payload = await findTarPayload(source);
  return payload
    ? new SliceSource(source, payload.offset, payload.size)
    : source;
}

/** Bytes looked at at once behind the payload. */
const TAIL_PIECE = 64 * 1024;

/**
 * Checks what readers of a wrapper skip: the second header, and that nothing
 * but zeros fills it up and follows it. Of the zero blocks at the end there may
 * be more than two (tools that copy a wrapped file into an archive).
 *
 * @param source A file in which {@linkcode findTarPayload} found `payload`, borrowed.
 * @throws {FormatError} Naming what is there.
 */
export async function checkTarWrapper(
  source: ByteSource,
  payload: TarPayload,
): Promise<void> {
  const wrong = (field: string, problem: string, offset: number) =>
    new FormatError("tar wrapper", field, problem, { offset });
  if (payload.offset === PAX_PAYLOAD) {
    const head = await readBytes(source, 0, PAX_PAYLOAD);
    const used = BLOCK + parseOctal(head, TH.size, 12);
    if (!isZero(head.subarray(used, 2 * BLOCK))) {
      throw wrong("PAX area", "has bytes behind its records", used);
    }
    if (!isUstar(head.subarray(2 * BLOCK))) {
      throw wrong("member header", "has a wrong magic or checksum", 2 * BLOCK);
    }
  }
  const end = payload.offset + payload.size;
  if (source.size < roundUp(end, BLOCK) + 2 * BLOCK) {
    throw wrong("end", "has less than two zero blocks", end);
  }
  for (let at = end; at < source.size; at += TAIL_PIECE) {
    const length = Math.min(TAIL_PIECE, source.size - at);
    if (!isZero(await readBytes(source, at, length))) {
      throw wrong("end", "has other bytes than zeros", at);
    }
  }
}

function isUstar(block: Uint8Array): boolean {
  // Five characters of the magic and the whole version, as TarHeader does.
  const magic = latin1FromBytes(block.subarray(TH.magic, TH.magic + 5));
  const version = latin1FromBytes(block.subarray(TH.version, TH.version + 2));
  if (magic !== "ustar" || version !== "00") return false;
  let unsigned = 0;
  let signed = 0;
  for (let i = 0; i < BLOCK; i++) {
    const inField = i >= TH.checksum && i < TH.checksum + 8;
    const byte = inField ? 0x20 : block[i]!;
    unsigned += byte;
    signed += byte > 127 ? byte - 256 : byte;
  }
  const stored = octal(block, TH.checksum, 8);
  return stored === unsigned || stored === signed;
}

function paxPayload(head: Uint8Array): TarPayload {
  const areaSize = parseOctal(head, TH.size, 12);
  if (areaSize > BLOCK || head.length < PAX_PAYLOAD) {
    throw new FormatError(
      "tar wrapper",
      "PAX area",
      `has ${areaSize} bytes: readers take exactly one block`,
      { offset: 0 },
    );
  }
  const records = latin1FromBytes(head.subarray(BLOCK, BLOCK + areaSize));
  const paxSize = paxRecord(records, "size");
  const size = paxSize !== undefined && paxSize > 0
    ? paxSize
    : parseOctal(head.subarray(2 * BLOCK), TH.size, 12);
  return { offset: PAX_PAYLOAD, size };
}

/** A numeric PAX record, `"<len> <key>=<digits>\n"`; the last one counts. */
function paxRecord(text: string, key: string): number | undefined {
  let found: number | undefined;
  for (let at = 0; at < text.length && text[at] !== "\0";) {
    const digits = /^\d{1,4} /.exec(text.slice(at, at + 6))?.[0];
    const length = Number(digits);
    if (
      digits === undefined || length <= digits.length ||
      at + length > text.length || text[at + length - 1] !== "\n"
    ) {
      throw new FormatError("tar wrapper", "PAX record", "is malformed", {
        offset: BLOCK + at,
      });
    }
    const record = text.slice(at + digits.length, at + length - 1);
    if (record.startsWith(`${key}=`)) {
      const value = record.slice(key.length + 1);
      if (!/^\d{1,15}$/.test(value)) {
        throw new FormatError("tar wrapper", key, `is "${value}"`, {
          offset: BLOCK + at,
        });
      }
      found = Number(value);
    }
    at += length;
  }
  return found;
}

/** Octal digits between blanks; undefined where there is anything else. */
function octal(
  block: Uint8Array,
  at: number,
  length: number,
): number | undefined {
  const text = latin1FromBytes(block.subarray(at, at + length));
  const digits = /^ *([0-7]*)[ \0]*$/.exec(text)?.[1];
  return digits === undefined ? undefined : parseInt(digits || "0", 8);
}

function parseOctal(block: Uint8Array, at: number, length: number): number {
  const value = octal(block, at, length);
  if (value === undefined) {
    throw new FormatError("tar wrapper", "size", "is not octal");
  }
  return value;
}

/**
 * The 1536 bytes before a payload. They depend on its size only: overlaybd's
 * own also carry the build host's umask and group names.
 *
 * @param payloadSize Bytes.
 */
export function tarWrapperHead(payloadSize: number): Uint8Array<ArrayBuffer> {
  const head = new Uint8Array(PAX_PAYLOAD);
  const record = paxSizeRecord(payloadSize);
  const pax = head.subarray(0, BLOCK);
  putText(pax, TH.name, "overlaybd.pax");
  putOctal(pax, TH.size, 12, record.length);
  pax[TH.typeflag] = 0x78; // "x"
  seal(pax);
  putText(head, BLOCK, record);
  const file = head.subarray(2 * BLOCK);
  putText(file, TH.name, "overlaybd.commit");
  putOctal(file, TH.mode, 8, 0o100644); // with the file type, as overlaybd does
  putOctal(file, TH.uid, 8, 0);
  putOctal(file, TH.gid, 8, 0);
  putOctal(file, TH.size, 12, 0); // the PAX record tells
  putOctal(file, TH.mtime, 12, 0);
  file[TH.typeflag] = 0x30; // "0"
  putText(file, TH.uname, "root");
  putText(file, TH.gname, "root");
  seal(file);
  return head;
}

/** What follows the payload: zeros to the block's end, and two zero blocks. */
export function tarWrapperTail(payloadSize: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(
    roundUp(payloadSize, BLOCK) - payloadSize + 2 * BLOCK,
  );
}

function paxSizeRecord(size: number): string {
  const rest = ` size=${size}\n`;
  let length = rest.length;
  // The length counts its own digits, which may change how many they are.
  while (String(length).length + rest.length !== length) {
    length = String(length).length + rest.length;
  }
  return `${length}${rest}`;
}

function putText(block: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) block[at + i] = text.charCodeAt(i);
}

/** overlaybd's number form: right-aligned with blanks, then a blank, and NUL in short fields. */
function putOctal(
  block: Uint8Array,
  at: number,
  length: 8 | 12,
  value: number,
): void {
  const digits = length === 8 ? 6 : 11;
  putText(block, at, value.toString(8).padStart(digits) + " ");
}

/** Magic, version and checksum. */
function seal(block: Uint8Array): void {
  putText(block, TH.magic, "ustar\0" + "00");
  block.fill(0x20, TH.checksum, TH.checksum + 8);
  let sum = 0;
  for (const byte of block) sum += byte;
  putOctal(block, TH.checksum, 8, sum);
  block[TH.checksum + 7] = 0;
}

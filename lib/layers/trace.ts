/**
 * Traces: which ranges a running image read, in the order of time, so that the
 * next start can have them fetched before they are asked for.
 *
 * The file is overlaybd's (src/prefetch.cpp): a header of 24 bytes
 *
 *     magic u32 0xC2EF1820 @0 · pad 4 · data_size u64 = 24 · records @8 ·
 *     checksum u32 @16 (CRC-32C over the records as stored, seed 0) · pad 4
 *
 * (overlaybd leaves its padding as it was in memory; ours has the name of the
 * device there, or zeros)
 *
 * and records of 24 bytes
 *
 *     op u8 'R' @0 · pad 3 · layer_index u32 @4 · count u64 @8 · offset i64 @16
 *
 * overlaybd's offsets are those of one layer's uncompressed LSMT file. Ours are
 * those of the merged device, marked by the layer index {@linkcode DEVICE_LAYER},
 * because most reads of a TurboOCI image are of targets, which overlaybd does
 * not trace.
 */

import {
  crc32c,
  FormatError,
  getU64,
  LimitError,
  setU64,
  toHex,
  Turns,
  viewOf,
} from "../io/mod.ts";

const MAGIC = 0xc2ef1820;
const HEADER_SIZE = 24;
const RECORD_SIZE = 24;
const OP_READ = 0x52;
/** Bytes of padding in the header. */
const DEVICE_NAME_SIZE = 8;
const BLOCK_SIZE = 4096;
/** 64 MiB of file. */
const MAX_RECORDS = (64 * 1024 * 1024) / RECORD_SIZE;
/** overlaybd replays with buffers of this size (src/prefetch.cpp). */
export const MAX_TRACE_READ = 1024 * 1024;
/** Layer index of records whose offsets are those of the merged device. */
export const DEVICE_LAYER = 0xffffffff;

/** One range that was read; bytes. */
export interface TraceRecord {
  /** Position of the layer, 0 = bottom, or {@linkcode DEVICE_LAYER}. */
  layer: number;
  offset: number;
  length: number;
}

/**
 * The bytes of a trace file.
 *
 * @param device Fingerprint of the traced device, hex; 8 bytes of it are kept.
 */
export function encodeTrace(
  records: readonly TraceRecord[],
  device = "",
): Uint8Array<ArrayBuffer> {
  if (records.length > MAX_RECORDS) {
    throw new LimitError(`A trace has at most ${MAX_RECORDS} records`);
  }
  const bytes = new Uint8Array(HEADER_SIZE + records.length * RECORD_SIZE);
  const view = viewOf(bytes);
  let at = HEADER_SIZE;
  for (const { layer, offset, length } of records) {
    bytes[at] = OP_READ;
    view.setUint32(at + 4, layer, true);
    setU64(view, at + 8, length);
    setU64(view, at + 16, offset);
    at += RECORD_SIZE;
  }
  view.setUint32(0, MAGIC, true);
  const name = Uint8Array.fromHex(device.slice(0, 2 * DEVICE_NAME_SIZE));
  bytes.set(name.subarray(0, 4), 4);
  bytes.set(name.subarray(4), 20);
  setU64(view, 8, bytes.length - HEADER_SIZE);
  view.setUint32(16, crc32c(bytes.subarray(HEADER_SIZE), 0), true);
  return bytes;
}

/**
 * The device that a trace says to be of: the first hex digits of its
 * fingerprint. Undefined if it says nothing.
 *
 * @param bytes A whole trace.
 * @param records What is in it; those of layers are overlaybd's, whose padding is anything.
 */
export function traceDevice(
  bytes: Uint8Array,
  records: readonly TraceRecord[],
): string | undefined {
  const name = toHex(bytes.subarray(4, 8)) + toHex(bytes.subarray(20, 24));
  const isOurs = records.every(({ layer }) => layer === DEVICE_LAYER);
  return isOurs && !/^0*$/.test(name) ? name : undefined;
}

/** Whether bytes begin as a trace does; overlaybd takes anything else for a file list (src/prefetch.cpp). */
export function isTrace(bytes: Uint8Array): boolean {
  return bytes.length >= HEADER_SIZE &&
    viewOf(bytes).getUint32(0, true) === MAGIC;
}

/**
 * Reads a trace file whole.
 *
 * @throws {FormatError} If anything about it is wrong: half a trace is none.
 */
export function decodeTrace(bytes: Uint8Array): TraceRecord[];
/**
 * The same while others have their turns: 64 MiB take more than a second, and
 * as objects 300 MB.
 *
 * @param options `most`: records that are wanted, the first ones. The whole file is checked.
 */
export function decodeTrace(
  bytes: Uint8Array,
  options: { most: number },
): Promise<TraceRecord[]>;
export function decodeTrace(
  bytes: Uint8Array,
  options?: { most: number },
): TraceRecord[] | Promise<TraceRecord[]> {
  if (options) return inTurns(decodeInSteps(bytes, options.most));
  const steps = decodeInSteps(bytes, Infinity);
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

async function inTurns<T>(steps: Generator<undefined, T>): Promise<T> {
  const turns = new Turns();
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
    if (turns.isDue) await turns.take();
  }
}

/** Of a trace, between two chances to do something else. */
const STEP_BYTES = 1024 * RECORD_SIZE;

function* decodeInSteps(
  bytes: Uint8Array,
  most: number,
): Generator<undefined, TraceRecord[]> {
  if (bytes.length < HEADER_SIZE) {
    throw new FormatError("trace", "size", `is ${bytes.length}`);
  }
  const view = viewOf(bytes);
  const magic = view.getUint32(0, true);
  if (magic !== MAGIC) {
    throw new FormatError("trace", "magic", `is 0x${magic.toString(16)}`);
  }
  const size = readU64(view, 8, "data size");
  if (size !== bytes.length - HEADER_SIZE || size % RECORD_SIZE !== 0) {
    throw new FormatError(
      "trace",
      "data size",
      `is ${size} in a file of ${bytes.length} bytes`,
    );
  }
  let checksum = 0;
  for (let at = HEADER_SIZE; at < bytes.length; at += STEP_BYTES) {
    checksum = crc32c(bytes.subarray(at, at + STEP_BYTES), checksum);
    yield;
  }
  if (checksum !== view.getUint32(16, true)) {
    throw new FormatError("trace", "checksum", "does not match");
  }
  const records: TraceRecord[] = [];
  for (let at = HEADER_SIZE; at < bytes.length; at += RECORD_SIZE) {
    if ((at - HEADER_SIZE) % STEP_BYTES === 0) yield;
    // Writes are in the format, but nobody records them.
    if (bytes[at] !== OP_READ) continue;
    const length = readU64(view, at + 8, "count");
    const offset = readU64(view, at + 16, "offset");
    if (!Number.isSafeInteger(offset + length)) {
      throw new FormatError("trace", "offset", `is ${offset}`);
    }
    if (records.length >= most) continue;
    records.push({ layer: view.getUint32(at + 4, true), offset, length });
  }
  return records;
}

function readU64(view: DataView, at: number, field: string): number {
  // The high half alone says whether the value is safe.
  if (view.getUint32(at + 4, true) >= 2 ** 21) {
    throw new FormatError("trace", field, "is above 2^53");
  }
  return getU64(view, at);
}

/** Blocks that one recorder remembers: 8 GiB of them. */
const MAX_BLOCKS = 2 * 1024 * 1024;

/** Collects what is read of one device: each block once, in the order of first reads. */
export class TraceRecorder {
  readonly #records: TraceRecord[] = [];
  readonly #seen = new Set<number>();

  /** Takes note of a read. Beyond 8 GiB of distinct blocks nothing more is noted. */
  note(offset: number, length: number): void {
    const first = Math.floor(offset / BLOCK_SIZE);
    const end = Math.ceil((offset + length) / BLOCK_SIZE);
    for (let block = first; block < end; block++) {
      if (this.#seen.has(block)) continue;
      if (this.#seen.size >= MAX_BLOCKS) return;
      this.#seen.add(block);
      this.#add(block * BLOCK_SIZE);
    }
  }

  #add(offset: number): void {
    const last = this.#records.at(-1);
    if (
      last && last.offset + last.length === offset &&
      last.length < MAX_TRACE_READ
    ) {
      last.length += BLOCK_SIZE;
      return;
    }
    this.#records.push({ layer: DEVICE_LAYER, offset, length: BLOCK_SIZE });
  }

  /** What was read so far, in whole blocks of 4 KiB. */
  get records(): readonly TraceRecord[] {
    return this.#records;
  }
}

/** Unsigned LEB128 numbers up to 2^53 - 1, as in `obd.spans`. */

import { FormatError } from "../io/mod.ts";

/** 7 · 8 bits hold 2^53 - 1; a ninth byte would pass it. */
const MAX_BYTES = 8;

/** Collects numbers. */
export class VarintWriter {
  #bytes = new Uint8Array(1024);
  #length = 0;

  /** @param value A safe integer, not negative. */
  push(value: number): void {
    if (!Number.isSafeInteger(value) || value < 0) {
      throw new TypeError(`Cannot encode ${value} as a varint`);
    }
    if (this.#bytes.length - this.#length < MAX_BYTES) {
      const grown = new Uint8Array(this.#bytes.length * 2);
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    let rest = value;
    while (rest >= 0x80) {
      this.#bytes[this.#length++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#bytes[this.#length++] = rest;
  }

  /** What was pushed; not to be pushed to afterwards. */
  bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#length);
  }
}

/**
 * Reads exactly `count` numbers that fill `bytes`, each in its shortest form:
 * one meaning has one encoding.
 *
 * @param what For errors.
 * @throws {FormatError} Otherwise.
 */
export function readVarints(
  bytes: Uint8Array,
  count: number,
  what: string,
): Float64Array {
  // Each number takes a byte at least: nothing is allocated for less.
  if (count > bytes.length) {
    throw new FormatError(what, "length", "is too short");
  }
  const values = new Float64Array(count);
  let at = 0;
  for (let i = 0; i < count; i++) {
    let value = 0;
    let scale = 1;
    const start = at;
    for (;;) {
      if (at === bytes.length || at - start === MAX_BYTES) {
        throw new FormatError(what, `number ${i}`, "does not end");
      }
      const byte = bytes[at++]!;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) {
        if (byte === 0 && at - start > 1) {
          throw new FormatError(what, `number ${i}`, "is not in shortest form");
        }
        break;
      }
      scale *= 0x80;
    }
    if (value > Number.MAX_SAFE_INTEGER) {
      throw new FormatError(what, `number ${i}`, "passes 2^53");
    }
    values[i] = value;
  }
  if (at !== bytes.length) {
    throw new FormatError(what, "length", `is ${bytes.length}, used ${at}`);
  }
  return values;
}

/**
 * A seed's bytes, changed, and put back afterwards.
 *
 * Seeds have up to 5 MB and a thousand inputs a second are made of them, so they
 * are not copied each time: changes are made in a buffer that is kept, and undone
 * there.
 */

import { viewOf } from "../../lib/io/mod.ts";
import type { Random } from "./random.ts";

/** Room for bytes that are put in. */
const GROWTH_MAX = 64 * 1024;
/** Seeds beyond this size are seldom moved about, which costs a copy. */
const SMALL = 64 * 1024;

/** Ranges of a seed where a change is likely to matter: `[start, end)`. */
export type Ranges = readonly (readonly [start: number, end: number])[];

/** What readers compare with, in every width. */
const TELLING: readonly bigint[] = [
  ...[0n, 1n, 2n, 3n, 7n, 8n, 16n, 255n, 256n, 511n, 512n, 4095n, 4096n],
  ...[15, 16, 31, 32, 49, 50, 53, 55, 63, 64].flatMap((bit) => {
    const power = 1n << BigInt(bit);
    return [power - 1n, power, power + 1n];
  }),
];

/** The bytes of one input, made from a seed. */
export class Mutant {
  readonly #base: Uint8Array;
  readonly #buffer: Uint8Array<ArrayBuffer>;
  #length: number;
  /** Changed ranges; all from `#movedFrom` on counts as changed. */
  #changes: [start: number, end: number][] = [];
  #movedFrom: number;

  /** @param base Never changed. */
  constructor(base: Uint8Array) {
    this.#base = base;
    this.#buffer = new Uint8Array(base.length + GROWTH_MAX);
    this.#buffer.set(base);
    this.#length = base.length;
    this.#movedFrom = base.length;
  }

  /** The input as it is now; a view that {@linkcode reset} changes. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#buffer.subarray(0, this.#length);
  }

  get length(): number {
    return this.#length;
  }

  /** What was changed, in no order; bytes behind the seed's end are in none. */
  get changes(): Ranges {
    return this.#movedFrom < this.#base.length
      ? [...this.#changes, [this.#movedFrom, this.#base.length]]
      : this.#changes;
  }

  /** Makes it the seed again. */
  reset(): void {
    for (const [start, end] of this.changes) {
      this.#buffer.set(this.#base.subarray(start, end), start);
    }
    this.#changes = [];
    this.#movedFrom = this.#base.length;
    this.#length = this.#base.length;
  }

  /** Writes bytes; what would lie behind the end is dropped. */
  write(at: number, bytes: Uint8Array): void {
    if (at < 0 || at >= this.#length) return;
    const part = bytes.subarray(0, this.#length - at);
    this.#touch(at, part.length);
    this.#buffer.set(part, at);
  }

  /** Writes a number of 1, 2, 4 or 8 bytes, cut to its width. */
  put(at: number, width: number, value: bigint, bigEndian = false): void {
    const bytes = new Uint8Array(8);
    viewOf(bytes).setBigUint64(0, BigInt.asUintN(64, value), !bigEndian);
    this.write(
      at,
      bigEndian ? bytes.subarray(8 - width) : bytes.subarray(0, width),
    );
  }

  /** Fills a range. */
  fill(at: number, length: number, value: number): void {
    const end = Math.min(at + length, this.#length);
    if (at < 0 || end <= at) return;
    this.#touch(at, end - at);
    this.#buffer.fill(value, at, end);
  }

  /** Cuts the end off, or adds zeros. */
  resize(length: number): void {
    const most = Math.min(length, this.#buffer.length);
    if (most > this.#length) this.#buffer.fill(0, this.#length, most);
    if (most > this.#base.length || most < this.#length) {
      this.#movedFrom = Math.min(this.#movedFrom, most);
    }
    this.#length = most;
  }

  /** Puts bytes in, as many as there is room for. */
  insert(at: number, bytes: Uint8Array): void {
    const room = this.#buffer.length - this.#length;
    const part = bytes.slice(0, room);
    this.#buffer.copyWithin(at + part.length, at, this.#length);
    this.#buffer.set(part, at);
    this.#length += part.length;
    this.#movedFrom = Math.min(this.#movedFrom, at);
  }

  /** Takes bytes out. */
  remove(at: number, length: number): void {
    const end = Math.min(at + length, this.#length);
    this.#buffer.copyWithin(at, end, this.#length);
    this.#length -= end - at;
    this.#movedFrom = Math.min(this.#movedFrom, at);
  }

  /** Makes it other bytes altogether, for seeds that are built anew. */
  replace(bytes: Uint8Array): void {
    this.resize(bytes.length);
    this.#movedFrom = 0;
    this.#buffer.set(bytes.subarray(0, this.#length));
  }

  #touch(at: number, length: number): void {
    const last = this.#changes.at(-1);
    if (last && at >= last[0] && at <= last[1]) {
      last[1] = Math.max(last[1], at + length);
    } else this.#changes.push([at, at + length]);
  }
}

/** A place to change: in one of the ranges mostly. */
export function choosePlace(
  length: number,
  hot: Ranges | undefined,
  random: Random,
): number {
  if (hot && hot.length > 0 && !random.oneIn(5)) {
    const [start, end] = random.pick(hot);
    const at = start + random.below(end - start);
    if (at < length) return at;
  }
  return random.below(length);
}

/** A telling number: bounds of widths and formats, and those near the input's own length. */
export function tellingNumber(length: number, random: Random): bigint {
  switch (random.below(5)) {
    case 0:
      return BigInt(length + random.below(5) - 2);
    case 1:
      return 1n << BigInt(random.below(64));
    case 2:
      return BigInt(random.below(length));
    default:
      return random.pick(TELLING);
  }
}

/** One change to a number or byte in place. */
function changeInPlace(
  mutant: Mutant,
  hot: Ranges | undefined,
  random: Random,
): void {
  const { bytes } = mutant;
  const width = random.pick([1, 2, 4, 8]);
  let at = choosePlace(mutant.length, hot, random);
  switch (random.below(6)) {
    case 0:
      mutant.put(at, 1, BigInt(bytes[at]! ^ (1 << random.below(8))));
      break;
    case 1:
      mutant.put(at, 1, BigInt(random.below(256)));
      break;
    case 2:
    case 3:
      // Fields are aligned mostly.
      if (!random.oneIn(4)) at -= at % width;
      mutant.put(
        at,
        width,
        tellingNumber(mutant.length, random),
        random.oneIn(4),
      );
      break;
    case 4: {
      if (!random.oneIn(4)) at -= at % width;
      const bigEndian = random.oneIn(4);
      let value = 0n;
      for (let i = 0; i < width; i++) {
        const byte = BigInt(bytes[at + (bigEndian ? i : width - 1 - i)] ?? 0);
        value = (value << 8n) | byte;
      }
      const step = BigInt(random.pick([1, 1, 2, 8, 16, 512, 4096]));
      mutant.put(at, width, random.oneIn(2) ? value + step : value - step);
      break;
    }
    default:
      mutant.fill(at, random.length(64), random.pick([0, 0xff, 0x20, 0x30]));
  }
}

/** One change that moves, repeats or cuts bytes. */
function changeShape(
  mutant: Mutant,
  hot: Ranges | undefined,
  random: Random,
): void {
  const { length } = mutant;
  const unit = random.pick([1, 1, 16, 32, 512, 4096]);
  const align = (at: number) => at - at % unit;
  const at = align(choosePlace(length, hot, random));
  const other = align(choosePlace(length, hot, random));
  const size = unit * random.length(unit === 1 ? 256 : 4);
  const piece = mutant.bytes.slice(other, other + size);
  const mayMove = length <= SMALL || random.oneIn(16);
  switch (random.below(mayMove ? 7 : 3)) {
    case 0:
      mutant.write(at, piece);
      break;
    case 1: {
      const own = mutant.bytes.slice(at, at + size);
      mutant.write(at, piece);
      mutant.write(other, own);
      break;
    }
    case 2:
      mutant.write(at, random.bytes(random.length(64)));
      break;
    case 3:
      mutant.resize(random.oneIn(2) ? at : length - random.length(length));
      break;
    case 4:
      mutant.insert(at, piece);
      break;
    case 5:
      mutant.remove(at, size);
      break;
    default:
      mutant.resize(length + random.length(8192));
  }
}

/** Between one and some ten changes of any kind. */
export function mutate(
  mutant: Mutant,
  hot: Ranges | undefined,
  random: Random,
): void {
  for (let n = random.length(8); n > 0 && mutant.length > 0; n--) {
    if (random.oneIn(4)) changeShape(mutant, hot, random);
    else changeInPlace(mutant, hot, random);
  }
}

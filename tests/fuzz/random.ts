/** Numbers of one input: the same seed, target and iteration always give the same ones. */

/** A 32-bit FNV-1a of a text. */
function textHash(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  }
  return hash >>> 0;
}

/** Generator of 32-bit numbers (sfc32), seeded by several numbers. */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  /** @param name Keeps the numbers of different targets apart. */
  constructor(seed: number, name = "", iteration = 0) {
    this.#a = seed | 0;
    this.#b = textHash(name) | 0;
    this.#c = iteration | 0;
    // The first outputs of near seeds resemble each other.
    for (let i = 0; i < 12; i++) this.next();
  }

  /** 0 … 2^32 − 1. */
  next(): number {
    const sum = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (this.#c << 21) | (this.#c >>> 11);
    this.#c = (this.#c + sum) | 0;
    return sum >>> 0;
  }

  /** 0 … limit − 1; 0 if the limit is 0. */
  below(limit: number): number {
    return limit <= 0 ? 0 : Math.floor(this.next() / 2 ** 32 * limit);
  }

  /** True once in `n` times. */
  oneIn(n: number): boolean {
    return this.next() < 2 ** 32 / n;
  }

  /** One of a list that is not empty. */
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }

  /** Small lengths mostly, now and then long ones: 1 … max. */
  length(max: number): number {
    const bits = this.below(Math.ceil(Math.log2(max + 1)) + 1);
    return Math.max(1, Math.min(max, this.below(2 ** bits) + 1));
  }

  /** Bytes without a pattern. */
  bytes(length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.next() >>> 24;
    return bytes;
  }
}

/**
 * The hashes that order names in an htree directory.
 *
 * Source: fs/ext4/hash.c. Which one a directory uses stands in its root block
 * (`hash_version`); whether chars are signed stands in the superblock's
 * `s_flags`, because it is a property of the machine that made the directory.
 */

/** `hash_version` in a root block, and `s_def_hash_version`. */
export const HASH_VERSION = {
  legacy: 0,
  halfMd4: 1,
  tea: 2,
  /** Never on disk below casefold: these are what the kernel makes of the three above. */
  legacyUnsigned: 3,
  halfMd4Unsigned: 4,
  teaUnsigned: 5,
} as const;

/** Four words from the superblock; all zero stands for the MD4 start values. */
export type HashSeed = readonly [number, number, number, number];

/** How a file system hashes names. */
export interface HashOptions {
  /** One of {@linkcode HASH_VERSION}; the unsigned versions imply `signed: false`. */
  version: number;
  /** Whether name bytes above 0x7f count as negative. */
  signed: boolean;
  seed: HashSeed;
}

/** The two words that order names; `minor` breaks ties and is not stored. Both are u32. */
export interface NameHash {
  major: number;
  minor: number;
}

const MD4_START: HashSeed = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476];
/**
 * Reserved for "end of directory" by readdir positions: EXT4_HTREE_EOF_32BIT
 * << 1. The kernel moves such a hash down; e2fsprogs 1.47 does not.
 */
const HASH_EOF = 0xfffffffe;

/**
 * Hashes a name, as `ext4fs_dirhash()` does.
 *
 * @returns Undefined if the version is unknown. `major` has bit 0 clear.
 */
export function hashName(
  name: Uint8Array,
  options: HashOptions,
): NameHash | undefined {
  const signed = options.signed &&
    options.version < HASH_VERSION.legacyUnsigned;
  const state = Int32Array.from(
    options.seed.some((word) => word !== 0) ? options.seed : MD4_START,
  );
  let major: number;
  let minor = 0;
  switch (options.version) {
    case HASH_VERSION.legacy:
    case HASH_VERSION.legacyUnsigned:
      major = legacyHash(name, signed);
      break;
    case HASH_VERSION.halfMd4:
    case HASH_VERSION.halfMd4Unsigned:
      for (let at = 0; at < name.length; at += 32) {
        nameWords(name, at, signed, words8);
        halfMd4(state, words8);
      }
      major = state[1]!;
      minor = state[2]!;
      break;
    case HASH_VERSION.tea:
    case HASH_VERSION.teaUnsigned:
      for (let at = 0; at < name.length; at += 16) {
        nameWords(name, at, signed, words4);
        tea(state, words4);
      }
      major = state[0]!;
      minor = state[1]!;
      break;
    default:
      return undefined;
  }
  major = (major & ~1) >>> 0;
  if (major === HASH_EOF) major = HASH_EOF - 2;
  return { major, minor: minor >>> 0 };
}

// Scratch of one synchronous call.
const words8 = new Int32Array(8);
const words4 = new Int32Array(4);

/** `str2hashbuf`: packs the name from `at` on into words, padded with its remaining length. */
function nameWords(
  name: Uint8Array,
  at: number,
  signed: boolean,
  words: Int32Array,
): void {
  const left = name.length - at;
  // Only the low byte's copies matter for names up to 255 bytes.
  let pad = left | (left << 8);
  pad |= pad << 16;
  const length = Math.min(left, words.length * 4);
  let value = pad;
  let word = 0;
  for (let i = 0; i < length; i++) {
    const byte = name[at + i]!;
    value = ((signed ? (byte << 24) >> 24 : byte) + (value << 8)) | 0;
    if (i % 4 === 3) {
      words[word++] = value;
      value = pad;
    }
  }
  if (word < words.length) words[word++] = value;
  while (word < words.length) words[word++] = pad;
}

/** `dx_hack_hash`. */
function legacyHash(name: Uint8Array, signed: boolean): number {
  let hash0 = 0x12a3fe2d;
  let hash1 = 0x37abe8f9;
  for (const byte of name) {
    const char = signed ? (byte << 24) >> 24 : byte;
    let hash = (hash1 + (hash0 ^ Math.imul(char, 7152373))) >>> 0;
    if (hash & 0x80000000) hash = (hash - 0x7fffffff) >>> 0;
    hash1 = hash0;
    hash0 = hash;
  }
  return hash0 << 1;
}

/** `TEA_transform`. */
function tea(state: Int32Array, input: Int32Array): void {
  const a = input[0]!, b = input[1]!, c = input[2]!, d = input[3]!;
  let b0 = state[0]!, b1 = state[1]!;
  let sum = 0;
  for (let round = 0; round < 16; round++) {
    sum = (sum + 0x9e3779b9) | 0;
    b0 = (b0 + (((b1 << 4) + a) ^ (b1 + sum) ^ ((b1 >>> 5) + b))) | 0;
    b1 = (b1 + (((b0 << 4) + c) ^ (b0 + sum) ^ ((b0 >>> 5) + d))) | 0;
  }
  state[0] = state[0]! + b0;
  state[1] = state[1]! + b1;
}

/** Order of input words and shifts in the three rounds of `half_md4_transform`. */
const ROUND_WORDS = [
  [0, 1, 2, 3, 4, 5, 6, 7],
  [1, 3, 5, 7, 0, 2, 4, 6],
  [3, 7, 2, 6, 1, 5, 0, 4],
] as const;
const ROUND_SHIFTS = [[3, 7, 11, 19], [3, 5, 9, 13], [3, 9, 11, 15]] as const;
const ROUND_CONSTANTS = [0, 0x5a827999, 0x6ed9eba1] as const;

function halfMd4(state: Int32Array, input: Int32Array): void {
  let a = state[0]!, b = state[1]!, c = state[2]!, d = state[3]!;
  for (let round = 0; round < 3; round++) {
    const words = ROUND_WORDS[round]!;
    const shifts = ROUND_SHIFTS[round]!;
    const constant = ROUND_CONSTANTS[round]!;
    for (let step = 0; step < 8; step++) {
      let f: number;
      if (round === 0) f = d ^ (b & (c ^ d));
      else if (round === 1) f = (b & c) + ((b ^ c) & d);
      else f = b ^ c ^ d;
      const sum = (a + f + input[words[step]!]! + constant) | 0;
      const shift = shifts[step & 3]!;
      const rotated = (sum << shift) | (sum >>> (32 - shift));
      // The registers rotate: a' = d, b' = new, c' = b, d' = c.
      a = d;
      d = c;
      c = b;
      b = rotated;
    }
  }
  state[0] = state[0]! + a;
  state[1] = state[1]! + b;
  state[2] = state[2]! + c;
  state[3] = state[3]! + d;
}

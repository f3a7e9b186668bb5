/** Huffman tables of deflate (RFC 1951), as two-level lookup tables. */

/** Bits that index the first level. */
export const LITERAL_BITS = 10;
export const DISTANCE_BITS = 8;
const CODE_LENGTH_BITS = 7;

/** Base length of symbols 257 … 285 (RFC 1951 §3.2.5). */
// deno-fmt-ignore
export const LENGTH_BASE = Uint16Array.of(
  3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67,
  83, 99, 115, 131, 163, 195, 227, 258,
);
// deno-fmt-ignore
export const LENGTH_EXTRA = Uint8Array.of(
  0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5,
  5, 5, 0,
);
/** Base distance of symbols 0 … 29. */
// deno-fmt-ignore
export const DISTANCE_BASE = Uint16Array.of(
  1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769,
  1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
);
// deno-fmt-ignore
export const DISTANCE_EXTRA = Uint8Array.of(
  0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11,
  11, 12, 12, 13, 13,
);
/** Order in which code length code lengths are stored (§3.2.7). */
// deno-fmt-ignore
const CODE_LENGTH_ORDER = Uint8Array.of(
  16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
);

/** A longest code has 15 bits; every prefix that has long codes owns one second-level table. */
const LITERAL_TABLE_SIZE = (1 << LITERAL_BITS) + 288 * (1 << 5);
const DISTANCE_TABLE_SIZE = (1 << DISTANCE_BITS) + 32 * (1 << 7);

/**
 * The two tables of one block. Entries: `symbol << 4 | code length`, or
 * `index of a second-level table << 4` (length 0), or 0 for a code that is not
 * in use.
 */
export interface BlockTables {
  literal: Uint32Array;
  distance: Uint32Array;
  /** Bits that index a second-level table. */
  literalSubBits: number;
  distanceSubBits: number;
}

/** New tables, to be filled by {@linkcode readDynamicTables}. */
export function newTables(): BlockTables {
  return {
    literal: new Uint32Array(LITERAL_TABLE_SIZE),
    distance: new Uint32Array(DISTANCE_TABLE_SIZE),
    literalSubBits: 0,
    distanceSubBits: 0,
  };
}

const counts = new Uint16Array(16);
const nextCodes = new Uint16Array(16);

/**
 * Fills a table from code lengths.
 *
 * @param strict Whether an incomplete code is always wrong; else one single
 * code of one bit is allowed, as in zlib's inftrees.c.
 * @returns Bits of the second level, or −1 when the lengths are no valid code.
 */
function buildTable(
  lengths: Uint8Array,
  from: number,
  count: number,
  tableBits: number,
  table: Uint32Array,
  strict: boolean,
): number {
  counts.fill(0);
  for (let i = 0; i < count; i++) counts[lengths[from + i]!]!++;
  let longest = 15;
  while (longest > 0 && counts[longest] === 0) longest--;
  table.fill(0, 0, 1 << tableBits);
  // No codes at all: allowed until one is used (a block of literals has no distances).
  if (longest === 0) return strict ? -1 : 0;
  let left = 1;
  for (let length = 1; length <= 15; length++) {
    left = (left << 1) - counts[length]!;
    if (left < 0) return -1;
  }
  if (left > 0 && (strict || longest !== 1)) return -1;
  let code = 0;
  counts[0] = 0;
  for (let length = 1; length <= 15; length++) {
    code = (code + counts[length - 1]!) << 1;
    nextCodes[length] = code;
  }
  const subBits = Math.max(0, longest - tableBits);
  let free = 1 << tableBits;
  for (let symbol = 0; symbol < count; symbol++) {
    const length = lengths[from + symbol]!;
    if (length === 0) continue;
    const reversed = reverseBits(nextCodes[length]!++, length);
    const entry = (symbol << 4) | length;
    if (length <= tableBits) {
      for (let i = reversed; i < 1 << tableBits; i += 1 << length) {
        table[i] = entry;
      }
      continue;
    }
    const prefix = reversed & ((1 << tableBits) - 1);
    let start = table[prefix]! >>> 4;
    if (start === 0) {
      start = free;
      free += 1 << subBits;
      table.fill(0, start, free);
      table[prefix] = start << 4;
    }
    const step = 1 << (length - tableBits);
    for (let i = reversed >>> tableBits; i < 1 << subBits; i += step) {
      table[start + i] = entry;
    }
  }
  return subBits;
}

function reverseBits(code: number, length: number): number {
  let out = 0;
  for (let i = 0; i < length; i++) {
    out = (out << 1) | (code & 1);
    code >>>= 1;
  }
  return out;
}

/** The fixed code (§3.2.6). */
export const FIXED_TABLES: BlockTables = makeFixedTables();

function makeFixedTables(): BlockTables {
  const tables = newTables();
  const lengths = new Uint8Array(288).fill(8, 0, 144).fill(9, 144, 256)
    .fill(7, 256, 280).fill(8, 280, 288);
  buildTable(lengths, 0, 288, LITERAL_BITS, tables.literal, true);
  buildTable(
    new Uint8Array(32).fill(5),
    0,
    32,
    DISTANCE_BITS,
    tables.distance,
    true,
  );
  return tables;
}

/** At least 24 bits from a bit position; zeros behind the end of the input. */
export function peekBits(input: Uint8Array, end: number, bit: number): number {
  const at = bit >>> 3;
  const a = at < end ? input[at]! : 0;
  const b = at + 1 < end ? input[at + 1]! : 0;
  const c = at + 2 < end ? input[at + 2]! : 0;
  const d = at + 3 < end ? input[at + 3]! : 0;
  return (a | b << 8 | c << 16 | d << 24) >>> (bit & 7);
}

const lengths = new Uint8Array(320);
const codeLengths = new Uint8Array(19);
const codeLengthTable = new Uint32Array(1 << CODE_LENGTH_BITS);

/**
 * Reads the header of a dynamic block, behind its 3 type bits (§3.2.7).
 *
 * @returns The bit position behind it, or the problem. A problem means nothing
 * when the header passes `end`: the caller compares the position, so it is
 * kept in {@linkcode headerEnd} in both cases.
 */
export function readDynamicTables(
  input: Uint8Array,
  end: number,
  start: number,
  tables: BlockTables,
): string | undefined {
  let bit = start;
  headerEnd = bit + 14;
  const head = peekBits(input, end, bit);
  const literals = (head & 31) + 257;
  const distances = ((head >>> 5) & 31) + 1;
  const codes = ((head >>> 10) & 15) + 4;
  bit += 14;
  if (literals > 286 || distances > 30) {
    return "too many length or distance symbols";
  }
  codeLengths.fill(0);
  for (let i = 0; i < codes; i++) {
    codeLengths[CODE_LENGTH_ORDER[i]!] = peekBits(input, end, bit) & 7;
    bit += 3;
  }
  headerEnd = bit;
  if (
    buildTable(codeLengths, 0, 19, CODE_LENGTH_BITS, codeLengthTable, true) < 0
  ) {
    return "invalid code lengths set";
  }
  const total = literals + distances;
  for (let have = 0; have < total;) {
    const bits = peekBits(input, end, bit);
    const entry = codeLengthTable[bits & ((1 << CODE_LENGTH_BITS) - 1)]!;
    const symbol = entry >>> 4;
    const length = entry & 15;
    bit += length;
    if (symbol < 16) {
      lengths[have++] = symbol;
      headerEnd = bit;
      continue;
    }
    const extra = bits >>> length;
    let repeat: number;
    let value = 0;
    if (symbol === 16) {
      bit += 2;
      headerEnd = bit;
      if (have === 0) return "invalid bit length repeat";
      value = lengths[have - 1]!;
      repeat = 3 + (extra & 3);
    } else if (symbol === 17) {
      bit += 3;
      repeat = 3 + (extra & 7);
    } else {
      bit += 7;
      repeat = 11 + (extra & 127);
    }
    headerEnd = bit;
    if (have + repeat > total) return "invalid bit length repeat";
    lengths.fill(value, have, have + repeat);
    have += repeat;
  }
  if (lengths[256] === 0) return "invalid code -- missing end-of-block";
  const literalSubBits = buildTable(
    lengths,
    0,
    literals,
    LITERAL_BITS,
    tables.literal,
    false,
  );
  if (literalSubBits < 0) return "invalid literal/lengths set";
  const distanceSubBits = buildTable(
    lengths,
    literals,
    distances,
    DISTANCE_BITS,
    tables.distance,
    false,
  );
  if (distanceSubBits < 0) return "invalid distances set";
  tables.literalSubBits = literalSubBits;
  tables.distanceSubBits = distanceSubBits;
  return undefined;
}

/** Where the last {@linkcode readDynamicTables} stopped reading, in bits. */
export let headerEnd = 0;

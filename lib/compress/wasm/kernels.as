// The hot loops of lib/compress, in AssemblyScript (compiled to kernels.wasm by
// build.ts; the file is not named .ts because it is not TypeScript).
//
// Memory: [0, 1024) unused, then the tables below, then whatever the callers in
// lz4.ts and crc32c.ts lay out from BASE on. Callers leave SLACK bytes behind
// every region, because copies run in 16-byte steps and may pass a region's end
// by less than that. Logical bounds are always checked first: the slack is
// never part of a result.

const CRC_TABLES: usize = 1024; // 16 tables of 256 u32
const HASH_TABLE: usize = 1024 + 16 * 1024; // 4096 u32: position + 1 of a 4-byte sequence
const HASH_LOG: u32 = 12;

/** First byte that callers may use. */
export const BASE: usize = 1024 + 16 * 1024 + 16 * 1024;

const MIN_MATCH: usize = 4;
/** The last 5 bytes of a block are always literals (lz4_Block_format, end of block condition 2). */
const LAST_LITERALS: usize = 5;
/** The last match starts at least 12 bytes before the end (end of block condition 3). */
const MATCH_LIMIT: usize = 12;
const MAX_DISTANCE: usize = 65535;

/** Fills the CRC tables; called once. Castagnoli polynomial, reflected. */
export function init(): void {
  for (let i: u32 = 0; i < 256; i++) {
    let c = i;
    for (let k = 0; k < 8; k++) c = (c & 1) != 0 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
    store<u32>(CRC_TABLES + (i << 2), c);
  }
  for (let i: u32 = 0; i < 256; i++) {
    let c = load<u32>(CRC_TABLES + (i << 2));
    for (let t: u32 = 1; t < 16; t++) {
      c = load<u32>(CRC_TABLES + ((c & 255) << 2)) ^ (c >>> 8);
      store<u32>(CRC_TABLES + (t << 10) + (i << 2), c);
    }
  }
}

// @ts-ignore: decorator
@inline
function crcTable(table: u32, value: u32): u32 {
  return load<u32>(CRC_TABLES + (table << 10) + ((value & 255) << 2));
}

/** Raw CRC-32C register after `length` bytes at `at`: no inversion before or after. */
export function crc32c(at: usize, length: usize, seed: u32): u32 {
  let c = seed;
  const end = at + length;
  while (at + 16 <= end) {
    const a = load<u32>(at) ^ c;
    const b = load<u32>(at, 4);
    const d = load<u32>(at, 8);
    const e = load<u32>(at, 12);
    c = crcTable(15, a) ^ crcTable(14, a >>> 8) ^ crcTable(13, a >>> 16) ^ crcTable(12, a >>> 24) ^
      crcTable(11, b) ^ crcTable(10, b >>> 8) ^ crcTable(9, b >>> 16) ^ crcTable(8, b >>> 24) ^
      crcTable(7, d) ^ crcTable(6, d >>> 8) ^ crcTable(5, d >>> 16) ^ crcTable(4, d >>> 24) ^
      crcTable(3, e) ^ crcTable(2, e >>> 8) ^ crcTable(1, e >>> 16) ^ crcTable(0, e >>> 24);
    at += 16;
  }
  while (at < end) {
    c = crcTable(0, c ^ load<u8>(at)) ^ (c >>> 8);
    at++;
  }
  return c;
}

/**
 * Decodes one LZ4 block.
 *
 * @returns The decoded length, or a negative reason: −1 input ends inside a
 * sequence, −2 output would pass `capacity`, −3 offset is 0 or before the start
 * of the output, −4 the block ends in a match, −5 the block is empty.
 */
export function lz4Decode(src: usize, srcLength: usize, dst: usize, capacity: usize): i32 {
  let ip = src;
  const inEnd = src + srcLength;
  let op = dst;
  const outEnd = dst + capacity;
  if (srcLength == 0) return -5;
  while (true) {
    if (ip >= inEnd) return -4;
    const token = <u32> load<u8>(ip++);
    let literals: usize = token >>> 4;
    if (literals == 15) {
      let more: u32;
      do {
        if (ip >= inEnd) return -1;
        more = load<u8>(ip++);
        literals += more;
      } while (more == 255);
    }
    if (literals > <usize> (inEnd - ip)) return -1;
    if (literals > <usize> (outEnd - op)) return -2;
    // Literals: always one 16-byte step, more only when they are longer.
    v128.store(op, v128.load(ip));
    if (literals > 16) {
      let at: usize = 16;
      do {
        v128.store(op + at, v128.load(ip + at));
        at += 16;
      } while (at < literals);
    }
    ip += literals;
    op += literals;
    if (ip == inEnd) return <i32> (op - dst); // the last sequence has no match
    if (<usize> (inEnd - ip) < 2) return -1;
    const distance: usize = load<u16>(ip);
    ip += 2;
    if (distance == 0 || distance > <usize> (op - dst)) return -3;
    let length = <usize> (token & 15) + MIN_MATCH;
    if (length == 15 + MIN_MATCH) {
      let more: u32;
      do {
        if (ip >= inEnd) return -1;
        more = load<u8>(ip++);
        length += more;
      } while (more == 255);
    }
    if (length > <usize> (outEnd - op)) return -2;
    const from = op - distance;
    const matchEnd = op + length;
    if (distance >= 16) {
      v128.store(op, v128.load(from));
      if (length > 16) {
        let at: usize = 16;
        do {
          v128.store(op + at, v128.load(from + at));
          at += 16;
        } while (at < length);
      }
    } else if (distance == 1) {
      memory.fill(op, load<u8>(from), length);
    } else if (distance >= 8) {
      let at: usize = 0;
      do {
        store<u64>(op + at, load<u64>(from + at));
        at += 8;
      } while (at < length);
    } else {
      // A pattern shorter than a word: lay down 8 bytes one by one, then copy
      // words from a whole number of periods (8 to 14 bytes) back.
      for (let at: usize = 0; at < 8; at++) store<u8>(op + at, load<u8>(from + at));
      const period = distance * ((7 + distance) / distance);
      let at: usize = 8;
      while (at < length) {
        store<u64>(op + at, load<u64>(op + at - period));
        at += 8;
      }
    }
    op = matchEnd;
  }
}

// @ts-ignore: decorator
@inline
function hashSlot(sequence: u32): usize {
  return HASH_TABLE + (<usize> ((sequence * 2654435761) >>> (32 - HASH_LOG)) << 2);
}

// @ts-ignore: decorator
@inline
function matchLength(a: usize, b: usize, limit: usize): usize {
  const start = a;
  while (a + 8 <= limit) {
    const difference = load<u64>(a) ^ load<u64>(b);
    if (difference != 0) return (a - start) + <usize> (ctz(difference) >>> 3);
    a += 8;
    b += 8;
  }
  while (a < limit && load<u8>(a) == load<u8>(b)) {
    a++;
    b++;
  }
  return a - start;
}

// @ts-ignore: decorator
@inline
function putLength(op: usize, rest: usize): usize {
  while (rest >= 255) {
    store<u8>(op++, 255);
    rest -= 255;
  }
  store<u8>(op++, <u8> rest);
  return op;
}

// @ts-ignore: decorator
@inline
function putLiterals(op: usize, token: usize, from: usize, literals: usize): usize {
  if (literals >= 15) {
    store<u8>(token, 15 << 4);
    op = putLength(op, literals - 15);
  } else {
    store<u8>(token, <u8> (literals << 4));
  }
  let at: usize = 0;
  while (at < literals) {
    v128.store(op + at, v128.load(from + at));
    at += 16;
  }
  return op + literals;
}

/**
 * Encodes one LZ4 block: greedy, one hash probe for each position, bigger steps
 * the longer nothing matches. The output region holds at least
 * length + length / 255 + 16 bytes.
 *
 * @returns The encoded length.
 */
export function lz4Encode(src: usize, length: usize, dst: usize): usize {
  const end = src + length;
  let op = dst;
  let anchor = src;
  if (length > MATCH_LIMIT) {
    memory.fill(HASH_TABLE, 0, 4 << HASH_LOG);
    const lastStart = end - MATCH_LIMIT; // a match may start here at the latest
    const matchEnd = end - LAST_LITERALS;
    let ip = src;
    // Slots hold position + 1 relative to src, so that 0 means empty.
    store<u32>(hashSlot(load<u32>(ip)), 1);
    ip++;
    let misses: usize = 1 << 6;
    while (ip <= lastStart) {
      const sequence = load<u32>(ip);
      const slot = hashSlot(sequence);
      const candidate = <usize> load<u32>(slot);
      store<u32>(slot, <u32> (ip - src + 1));
      let from = src + candidate - 1;
      if (candidate == 0 || ip - from > MAX_DISTANCE || load<u32>(from) != sequence) {
        ip += misses++ >>> 6;
        continue;
      }
      misses = 1 << 6;
      while (ip > anchor && from > src && load<u8>(ip - 1) == load<u8>(from - 1)) {
        ip--;
        from--;
      }
      const matched = MIN_MATCH + matchLength(ip + MIN_MATCH, from + MIN_MATCH, matchEnd);
      const token = op++;
      op = putLiterals(op, token, anchor, ip - anchor);
      store<u16>(op, <u16> (ip - from));
      op += 2;
      const rest = matched - MIN_MATCH;
      if (rest >= 15) {
        store<u8>(token, load<u8>(token) | 15);
        op = putLength(op, rest - 15);
      } else {
        store<u8>(token, load<u8>(token) | <u8> rest);
      }
      ip += matched;
      anchor = ip;
      if (ip <= lastStart) {
        store<u32>(hashSlot(load<u32>(ip - 2)), <u32> (ip - 2 - src + 1));
      }
    }
  }
  const token = op++;
  op = putLiterals(op, token, anchor, end - anchor);
  return op - dst;
}

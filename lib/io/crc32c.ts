/**
 * CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) as a plain running
 * remainder: no inversion of the seed or the result. That is what ext4's
 * `crc32c_le()` and overlaybd use; the textbook value (RFC 3720) is
 * `~crc32c(bytes, 0xffffffff)`.
 */

const POLYNOMIAL = 0x82f63b78;

/** Slice-by-8 tables: `TABLES[k * 256 + b]` advances byte b by k further bytes. */
const TABLES = /* @__PURE__ */ makeTables();

function makeTables(): Int32Array {
  const tables = new Int32Array(8 * 256);
  for (let b = 0; b < 256; b++) {
    let crc = b;
    for (let bit = 0; bit < 8; bit++) {
      crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    }
    tables[b] = crc;
  }
  for (let i = 256; i < tables.length; i++) {
    const before = tables[i - 256]!;
    tables[i] = (before >>> 8) ^ tables[before & 255]!;
  }
  return tables;
}

/**
 * Advances a CRC-32C over `bytes`.
 *
 * @param seed The remainder so far, any u32 (ext4 starts with 0xffffffff).
 * @returns The new remainder as a u32.
 */
export function crc32c(bytes: Uint8Array, seed: number): number {
  const t = TABLES;
  const length = bytes.length;
  let crc = seed | 0;
  let i = 0;
  // The loop bound keeps every index inside `bytes`, and table indexes are masked to 8 bits.
  for (const limit = length - 7; i < limit; i += 8) {
    crc ^= bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) |
      (bytes[i + 3]! << 24);
    crc = t[1792 + (crc & 255)]! ^
      t[1536 + ((crc >>> 8) & 255)]! ^
      t[1280 + ((crc >>> 16) & 255)]! ^
      t[1024 + (crc >>> 24)]! ^
      t[768 + bytes[i + 4]!]! ^
      t[512 + bytes[i + 5]!]! ^
      t[256 + bytes[i + 6]!]! ^
      t[bytes[i + 7]!]!;
  }
  for (; i < length; i++) {
    crc = (crc >>> 8) ^ t[(crc ^ bytes[i]!) & 255]!;
  }
  return crc >>> 0;
}

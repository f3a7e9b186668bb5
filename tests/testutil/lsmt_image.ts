/**
 * A plain encoder of LSMT files for tests: DataView and BigInt only, nothing of
 * lib/layers, so that a reader's mistake cannot hide behind a writer's.
 */

/** A seeded generator of numbers in [0, 1); xorshift32. */
export function seeded(seed: number): () => number {
  let state = (seed * 2654435761) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state / 2 ** 32;
  };
}

/** One raw entry; units are sectors. */
export interface RawEntry {
  offset: number | bigint;
  length: number;
  moffset: number | bigint;
  zeroed?: boolean;
  tag?: number;
}

/** What {@linkcode lsmtImage} puts together; everything has a valid default. */
export interface RawLsmt {
  virtualSize?: number | bigint;
  /** Content of the data area, a multiple of 512. */
  data?: Uint8Array;
  entries?: RawEntry[];
  headerFlags?: number;
  trailerFlags?: number;
  indexOffset?: number | bigint;
  indexCount?: number | bigint;
}

const MAGIC = Uint8Array.fromHex(
  "4c534d5400010200657e63d29444084ca2d2c8ec4fcfae8a",
);

function block(
  flags: number,
  indexOffset: bigint,
  indexCount: bigint,
  virtualSize: bigint,
): Uint8Array {
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC);
  view.setUint32(24, 390, true);
  view.setUint32(28, flags, true);
  view.setBigUint64(32, indexOffset, true);
  view.setBigUint64(40, indexCount, true);
  view.setBigUint64(48, virtualSize, true);
  view.setUint8(132, 1);
  view.setUint8(133, 1);
  return bytes;
}

/** The 16 bytes of one entry by shifting BigInts: the oracle for our codec. */
export function rawEntry(entry: RawEntry): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(
    0,
    BigInt(entry.offset) | BigInt(entry.length) << 50n,
    true,
  );
  view.setBigUint64(
    8,
    BigInt(entry.moffset) | (entry.zeroed ? 1n << 55n : 0n) |
      BigInt(entry.tag ?? 0) << 56n,
    true,
  );
  return bytes;
}

/** A sealed LSMT file. */
export function lsmtImage(raw: RawLsmt): Uint8Array {
  const data = raw.data ?? new Uint8Array(0);
  const entries = raw.entries ?? [];
  const indexOffset = 4096 + data.length;
  const out = new Uint8Array(indexOffset + entries.length * 16 + 4096);
  const virtualSize = BigInt(raw.virtualSize ?? 1 << 20);
  out.set(block(raw.headerFlags ?? 7, 0n, 0n, virtualSize));
  out.set(data, 4096);
  entries.forEach((e, i) => out.set(rawEntry(e), indexOffset + i * 16));
  out.set(
    block(
      raw.trailerFlags ?? 6,
      BigInt(raw.indexOffset ?? indexOffset),
      BigInt(raw.indexCount ?? entries.length),
      virtualSize,
    ),
    out.length - 4096,
  );
  return out;
}

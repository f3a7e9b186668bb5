/** Rates as people write them. */

const UNITS: Record<string, number> = {
  B: 1,
  kB: 1e3,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  kbit: 1e3 / 8,
  mbit: 1e6 / 8,
  gbit: 1e9 / 8,
};
const RATE_MIN = 1000;
const RATE_MAX = 1e12;

/** How a rate is written, for messages. */
export const RATE_FORM =
  "a number with B, kB, MB, GB, KiB, MiB, GiB, kbit, mbit or gbit, and /s if you like, e.g. 20MB/s";

/** Bytes per second of a text like `20MB/s`; undefined if it is none, or out of bounds. */
export function parsePrefetchRate(text: string): number | undefined {
  const parts = /^(\d{1,12}(?:\.\d{1,6})?) ?([A-Za-z]{1,4})(?:\/s)?$/.exec(
    text,
  );
  const unit = parts && Object.hasOwn(UNITS, parts[2]!)
    ? UNITS[parts[2]!]
    : undefined;
  if (!parts || unit === undefined) return undefined;
  const rate = Number(parts[1]) * unit;
  return rate >= RATE_MIN && rate <= RATE_MAX ? rate : undefined;
}

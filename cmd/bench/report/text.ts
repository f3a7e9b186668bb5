/** Text of the report: escaping, figures with units, scales. */

import type { Spread } from "../result.ts";

/** Text or an attribute's value in HTML: results may come from anybody's file. */
export function escapeHtml(text: string): string {
  return text.replaceAll(
    /[&<>"'\p{Cc}]/gu,
    (c) => `&#${c.codePointAt(0) === 0 ? 0xfffd : c.codePointAt(0)};`,
  );
}

/** Three digits or so. */
export function seconds(value: number): string {
  return value < 0.0995
    ? `${Math.round(value * 1000)} ms`
    : `${digits(value)} s`;
}

/** Decimal megabytes, as links have them. */
export function megabytes(bytes: number): string {
  return bytes < 99_500
    ? `${digits(bytes / 1e3)} kB`
    : `${digits(bytes / 1e6)} MB`;
}

/** A number with about three digits. */
export function digits(value: number): string {
  const places = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", {
    minimumFractionDigits: places,
    maximumFractionDigits: places,
  });
}

/** A quotient of two figures. */
export function factor(value: number): string {
  return `${
    value >= 10 ? value.toFixed(1) : value.toFixed(value < 1 ? 3 : 2)
  } ×`;
}

/** HTML: the median with the ends below, or just the value where all are equal. */
export function spread(
  value: Spread | undefined,
  format: (n: number) => string,
): string {
  if (!value) return "–";
  const { median, min, max } = value;
  return min === max
    ? format(median)
    : `${format(median)}<small>${format(min)} – ${format(max)}</small>`;
}

/** A position on an axis as a percentage with enough digits for a wide screen. */
export function percent(value: number, max: number): string {
  const share = max > 0 ? Math.min(1, Math.max(0, value / max)) : 0;
  return `${Math.round(share * 100_000) / 1000}%`;
}

/** Round numbers from 0 to at least `max`, four or five of them. */
export function ticks(max: number): number[] {
  const rough = Math.max(max, 1e-9) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) =>
    n * 4 >= max
  )!;
  const count = Math.max(1, Math.ceil(max / step - 1e-9));
  return Array.from(
    { length: count + 1 },
    (_, i) => Number((i * step).toPrecision(12)),
  );
}

/** A tick's label: no more digits than the step needs. */
export function tickLabel(value: number): string {
  return String(Number(value.toPrecision(6)));
}

/** CSS class that gives a contender its colour; others share one. */
export function colourClass(contender: string): string {
  const known = ["oci", "umoci", "obd", "obd-trace", "obd-native", "obd-warm"];
  return known.includes(contender) ? `c-${contender}` : "c-other";
}

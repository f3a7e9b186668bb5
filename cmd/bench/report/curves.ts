/** Bytes fetched over time. */

import type { Measurement } from "../measurement.ts";
import type { RunResult, Summary } from "../result.ts";
import { figure, typicalRun, ZOOM_SHARE } from "./bars.ts";
import {
  colourClass,
  escapeHtml,
  megabytes,
  percent,
  seconds,
  tickLabel,
  ticks,
} from "./text.ts";

const HEIGHT = 220;
/** Lines have no more corners: a screen has no more pixels. */
const POINTS_MAX = 300;

/** One contender's line. */
interface Line {
  contender: string;
  points: readonly (readonly [seconds: number, bytes: number])[];
  readySeconds: number;
  bytes: number;
}

/** A line for each contender's typical run, and a second chart of the beginning. */
export function bytesCharts(
  summaries: readonly Summary[],
  runs: readonly RunResult[],
): string {
  const lines = summaries.flatMap((s): Line[] => {
    const run = typicalRun(runs, s);
    return run ? [lineOf(s.contender, run)] : [];
  });
  if (lines.length === 0) {
    return figure("bytes", TITLE, "No run was measured.", "");
  }
  const ends = lines.map((line) => line.readySeconds);
  const end = Math.max(...ends);
  const lazy = lines.filter((l) => l.contender.startsWith("obd"));
  const begin = Math.max(0, ...lazy.map((l) => l.readySeconds)) * 1.1;
  const whole = plot("bytes", TITLE, lines, end);
  return begin > 0 && begin < end * ZOOM_SHARE
    ? whole + plot("bytes-begin", `${TITLE}: the beginning`, lines, begin)
    : whole;
}

const TITLE = "Bytes fetched over time";

function lineOf(contender: string, run: Measurement): Line {
  // All was counted when the service answered; the last point may bear a later time.
  const { curve, bytes } = run.traffic;
  const inTime = curve.filter(([at]) => at <= run.readySeconds);
  return {
    contender,
    points: thinned([...inTime, [run.readySeconds, bytes]]),
    readySeconds: run.readySeconds,
    bytes,
  };
}

function thinned<T>(points: readonly T[]): T[] {
  const step = Math.ceil(points.length / POINTS_MAX);
  return points.filter((_, i) => i % step === 0 || i === points.length - 1);
}

function plot(
  kind: string,
  title: string,
  lines: readonly Line[],
  endSeconds: number,
): string {
  const times = ticks(endSeconds);
  const right = times.at(-1)!;
  // Lines that end in view set the scale; others may leave it.
  const inView = lines.filter((l) => l.readySeconds <= right)
    .map((line) => line.bytes);
  const amounts = ticks(Math.max(...inView, 1e5) / 1e6);
  const top = amounts.at(-1)! * 1e6;
  const y = (bytes: number) => percent(top - bytes, top);
  const grid = amounts.map((mark) => {
    const at = y(mark * 1e6);
    return `<line class="grid" x1="0" x2="100%" y1="${at}" y2="${at}"/>`;
  }).join("");
  const paths = lines.map((line) => path(line, right, top)).join("");
  const dots = lines.filter((l) => l.readySeconds <= right).map((line) =>
    `<circle class="${colourClass(line.contender)} ready" data-contender="${
      escapeHtml(line.contender)
    }" data-seconds="${line.readySeconds}" data-bytes="${line.bytes}" cx="${
      percent(line.readySeconds, right)
    }" cy="${y(line.bytes)}" r="5"><title>${
      escapeHtml(line.contender)
    }: ready after ${seconds(line.readySeconds)}, ${
      megabytes(line.bytes)
    }</title></circle>`
  ).join("");
  const label = lines.map((l) =>
    `${l.contender} ${megabytes(l.bytes)} in ${seconds(l.readySeconds)}`
  ).join(", ");
  const amountLabels = amounts.map((mark, i) =>
    `<text x="100%" y="${y(mark * 1e6)}" dy="${
      i === 0 ? "-2" : i === amounts.length - 1 ? "10" : "4"
    }" text-anchor="end">${tickLabel(mark)}${
      i === amounts.length - 1 ? " MB" : ""
    }</text>`
  ).join("");
  const timeLabels = times.map((mark, i) => {
    const last = i === times.length - 1;
    return `<text x="${percent(mark, right)}" y="14" text-anchor="${
      i === 0 ? "start" : last ? "end" : "middle"
    }">${tickLabel(mark)}${last ? " s" : ""}</text>`;
  }).join("");
  const legend = lines.map((line) =>
    `<span><svg width="22" height="12"><line class="${
      colourClass(line.contender)
    } curve" x1="0" x2="22" y1="6" y2="6"/></svg> ${
      escapeHtml(line.contender)
    } ${megabytes(line.bytes)}</span>`
  ).join("");
  return figure(
    kind,
    title,
    "Dot: the service answers.",
    `<div class="plot"><svg class="amounts" height="${HEIGHT}" aria-hidden="true">${amountLabels}</svg><svg class="area" height="${HEIGHT}" role="img" aria-label="${
      escapeHtml(label)
    }">${grid}<svg viewBox="0 0 1000 1000" width="100%" height="100%" preserveAspectRatio="none">${paths}</svg>${dots}</svg><svg class="times" height="18" aria-hidden="true">${timeLabels}</svg></div><p class="legend">${legend}</p>`,
  );
}

/** Steps would be right but for a sampled curve straight lines are as true, and easier to follow. */
function path(line: Line, right: number, top: number): string {
  const points = line.points.map(([at, bytes]) =>
    `${round(at / right * 1000)},${round(1000 - bytes / top * 1000)}`
  );
  return `<polyline class="${
    colourClass(line.contender)
  } curve" vector-effect="non-scaling-stroke" points="${points.join(" ")}"/>`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

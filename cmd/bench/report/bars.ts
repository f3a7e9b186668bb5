/** Bars of a workload: time to the answer with its spread; and what other bars are made of. */

import type { Measurement } from "../measurement.ts";
import type { RunResult, Summary } from "../result.ts";
import {
  colourClass,
  escapeHtml,
  percent,
  seconds,
  tickLabel,
  ticks,
} from "./text.ts";

/** Of a track, in px. */
export const TRACK_HEIGHT = 28;
const MIDDLE = TRACK_HEIGHT / 2;

/** One bar for each contender: the median, whiskers to the ends, a dot for each run. */
export function readyChart(
  summaries: readonly Summary[],
  limitSeconds: number | undefined,
): string {
  const marks = ticks(
    Math.max(...summaries.map((s) => s.ready?.max ?? 0), limitSeconds ?? 0),
  );
  const max = marks.at(-1)!;
  const limit = limitSeconds === undefined ? "" : limitLine(limitSeconds, max);
  const rows = summaries.map((s) =>
    row(s.contender, readyValue(s), readyTrack(s, max, limit), s.failures)
  );
  const legend = limitSeconds === undefined
    ? ""
    : `<p class="legend"><span><svg width="14" height="12"><line class="limit" x1="7" x2="7" y1="0" y2="12"/></svg> the limit: ${
      seconds(limitSeconds)
    }</span></p>`;
  return figure(
    "ready",
    "Time until the service answers",
    "Bar: median. Line: fastest to slowest run. Dots: the runs.",
    rows.join("") + axis(marks, "s") + legend,
  );
}

function readyValue({ ready, ratio, limitMultiple }: Summary): string {
  if (!ready) return "failed";
  return [
    `<strong>${seconds(ready.median)}</strong>`,
    ...(ratio === undefined || ratio === 1
      ? []
      : [`${ratio.toFixed(ratio < 0.1 ? 3 : 2)} × plain`]),
    ...(limitMultiple === undefined
      ? []
      : [`${limitMultiple.toFixed(1)} × limit`]),
  ].join(" · ");
}

function readyTrack(
  { contender, ready, readyRuns }: Summary,
  max: number,
  limit: string,
): string {
  if (!ready) return track(`${contender}: failed`, limit);
  const { median, min, max: most } = ready;
  const [from, to] = [percent(min, max), percent(most, max)];
  const cap = (x: string) =>
    `<line x1="${x}" x2="${x}" y1="${MIDDLE - 5}" y2="${MIDDLE + 5}"/>`;
  return track(
    `${contender}: median ${seconds(median)}, from ${seconds(min)} to ${
      seconds(most)
    }`,
    `<rect class="${colourClass(contender)}" data-contender="${
      escapeHtml(contender)
    }" data-median="${median}" data-min="${min}" data-max="${most}" x="0" y="4" width="${
      percent(median, max)
    }" height="${TRACK_HEIGHT - 8}" rx="3"/>` +
      `<g class="whisker"><line x1="${from}" x2="${to}" y1="${MIDDLE}" y2="${MIDDLE}"/>${
        cap(from)
      }${cap(to)}</g>` +
      readyRuns.map((value) =>
        `<circle class="run" cx="${percent(value, max)}" cy="${MIDDLE}" r="3"/>`
      ).join("") + limit,
  );
}

function limitLine(value: number, max: number): string {
  const x = percent(value, max);
  return `<line class="limit" x1="${x}" x2="${x}" y1="0" y2="${TRACK_HEIGHT}"/>`;
}

/** The run whose time is closest to the median. */
export function typicalRun(
  runs: readonly RunResult[],
  { workload, contender, ready }: Summary,
): Measurement | undefined {
  const own = runs.flatMap((r) =>
    r.workload === workload && r.contender === contender && r.measurement
      ? [r.measurement]
      : []
  );
  const distance = (m: Measurement) =>
    Math.abs(m.readySeconds - (ready?.median ?? 0));
  return own.sort((a, b) => distance(a) - distance(b))[0];
}

// ---- shared with other charts ---------------------------------------------------

/** The lazy contenders get a chart of their own if they would be no wider than this share. */
export const ZOOM_SHARE = 0.4;

/** A chart with its title. */
export function figure(
  kind: string,
  title: string,
  note: string,
  body: string,
): string {
  return `<figure data-chart="${kind}"><figcaption><h3>${title}</h3><p>${note}</p></figcaption>${body}</figure>`;
}

/** A contender's line of a chart. */
export function row(
  contender: string,
  value: string,
  body: string,
  failures: readonly string[],
): string {
  const failed = failures.length === 0
    ? ""
    : `<p class="failure">${failures.length} ${
      failures.length === 1 ? "run" : "runs"
    } failed: ${escapeHtml(failures[0]!)}</p>`;
  return `<div class="row"><span class="name">${
    escapeHtml(contender)
  }</span>${body}<span class="value${
    value === "failed" ? " failure" : ""
  }">${value}</span>${failed}</div>`;
}

/** The part of a line that is to scale. */
export function track(label: string, body: string): string {
  return `<svg class="track" height="${TRACK_HEIGHT}" role="img" aria-label="${
    escapeHtml(label)
  }">${body}</svg>`;
}

/** Ticks below the tracks. */
export function axis(marks: readonly number[], unit: string): string {
  const max = marks.at(-1)!;
  const labels = marks.map((mark, i) => {
    const x = percent(mark, max);
    const last = i === marks.length - 1;
    const anchor = i === 0 ? "start" : last ? "end" : "middle";
    return `<line x1="${x}" x2="${x}" y1="0" y2="4"/><text x="${x}" y="16" text-anchor="${anchor}">${
      tickLabel(mark)
    }${last ? ` ${unit}` : ""}</text>`;
  });
  return `<div class="row axis"><span class="name"></span><svg class="track" height="20" aria-hidden="true">${
    labels.join("")
  }</svg><span class="value"></span></div>`;
}

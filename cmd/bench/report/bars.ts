/** Bars of a workload: time to the answer with its spread, and the phases that it is made of. */

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

const TRACK_HEIGHT = 28;
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

/** A part of a start, in order. */
export interface Phase {
  name: string;
  seconds: number;
}

const PHASES = [
  "to the first request",
  "pull, or open the image",
  "rest of unpacking, or mount",
  "container start",
  "service",
] as const;

/** Takes a run apart. The phases add up to the time until the service was available. */
export function phasesOf(measurement: Measurement): Phase[] {
  const {
    traffic,
    openedSeconds,
    rootSeconds,
    containerSeconds,
    firstByteSeconds,
    readySeconds,
  } = measurement;
  const pulled = openedSeconds ?? lastByteBefore(traffic.curve, rootSeconds);
  const ends = [
    traffic.firstRequestSeconds ?? 0,
    pulled ?? rootSeconds,
    rootSeconds,
    firstByteSeconds ?? containerSeconds ?? rootSeconds,
    readySeconds,
  ];
  let at = 0;
  return ends.map((end, i) => {
    const start = at;
    at = Math.min(readySeconds, Math.max(at, end));
    return { name: PHASES[i]!, seconds: at - start };
  });
}

/** When the last byte came that was fetched before a time. */
function lastByteBefore(
  curve: Measurement["traffic"]["curve"],
  end: number,
): number | undefined {
  const before = curve.filter(([at]) => at <= end);
  return before.length > 1 ? before.at(-1)![0] : undefined;
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

/** The lazy contenders get a chart of their own if they would be no wider than this share. */
export const ZOOM_SHARE = 0.4;

/** Stacked phases of each contender's typical run, and once more of obd's alone. */
export function phaseCharts(
  summaries: readonly Summary[],
  runs: readonly RunResult[],
): string {
  const title = "What the time goes into";
  const end = (some: readonly Summary[]) =>
    Math.max(0, ...some.map((s) => typicalRun(runs, s)?.readySeconds ?? 0));
  const lazy = summaries.filter((s) => s.contender.startsWith("obd"));
  const whole = phaseChart("phases", title, summaries, runs);
  return end(lazy) > 0 && end(lazy) < end(summaries) * ZOOM_SHARE
    ? whole + phaseChart("phases-lazy", `${title}: obd alone`, lazy, runs)
    : whole;
}

function phaseChart(
  kind: string,
  title: string,
  summaries: readonly Summary[],
  runs: readonly RunResult[],
): string {
  const typical = summaries.map((s) => ({ s, run: typicalRun(runs, s) }));
  const marks = ticks(
    Math.max(0, ...typical.map(({ run }) => run?.readySeconds ?? 0)),
  );
  const max = marks.at(-1)!;
  const rows = typical.map(({ s, run }) => {
    if (!run) return row(s.contender, "failed", track("failed", ""), []);
    const phases = phasesOf(run);
    return row(
      s.contender,
      seconds(run.readySeconds),
      track(phaseText(s.contender, phases), phaseRects(phases, max)),
      [],
    );
  });
  const legend = PHASES.map((name, i) =>
    `<span><i class="swatch p${i}"></i>${name}</span>`
  ).join("");
  return figure(
    kind,
    title,
    "The run closest to each median.",
    rows.join("") + axis(marks, "s") + `<p class="legend">${legend}</p>`,
  );
}

function phaseText(contender: string, phases: readonly Phase[]): string {
  return `${contender}: ${
    phases.map((p) => `${p.name} ${seconds(p.seconds)}`).join(", ")
  }`;
}

function phaseRects(phases: readonly Phase[], max: number): string {
  let at = 0;
  return phases.map(({ name, seconds: length }, i) => {
    const start = at;
    at += length;
    if (length === 0) return "";
    return `<rect class="p${i}" data-phase="${i}" data-seconds="${
      Number(length.toFixed(3))
    }" x="${percent(start, max)}" y="4" width="${
      percent(length, max)
    }" height="${TRACK_HEIGHT - 8}"><title>${name}: ${
      seconds(length)
    }</title></rect>`;
  }).join("");
}

// ---- shared with other charts ---------------------------------------------------

/** A chart with its title. */
export function figure(
  kind: string,
  title: string,
  note: string,
  body: string,
): string {
  return `<figure data-chart="${kind}"><figcaption><h3>${title}</h3><p>${note}</p></figcaption>${body}</figure>`;
}

function row(
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

function track(label: string, body: string): string {
  return `<svg class="track" height="${TRACK_HEIGHT}" role="img" aria-label="${
    escapeHtml(label)
  }">${body}</svg>`;
}

/** Ticks below the tracks. */
function axis(marks: readonly number[], unit: string): string {
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

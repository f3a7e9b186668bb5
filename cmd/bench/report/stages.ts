/** Where the time went: stacked bars of typical runs, and a table of medians beside the limit. */

import type { Limit } from "../limit.ts";
import type { RunResult, Summary } from "../result.ts";
import {
  limitStages,
  STAGE_TITLES,
  type StageName,
  STAGES,
  type Stages,
  stagesOf,
} from "../stages.ts";
import {
  axis,
  figure,
  row,
  track,
  TRACK_HEIGHT,
  typicalRun,
  ZOOM_SHARE,
} from "./bars.ts";
import { scrolled } from "./tables.ts";
import { escapeHtml, factor, percent, seconds, spread, ticks } from "./text.ts";

const TITLE = "Where the time went";

/** Stacked stages of each contender's typical run, and once more of obd's alone. */
export function stageCharts(
  summaries: readonly Summary[],
  runs: readonly RunResult[],
): string {
  const end = (some: readonly Summary[]) =>
    Math.max(0, ...some.map((s) => typicalRun(runs, s)?.readySeconds ?? 0));
  const lazy = summaries.filter((s) => s.contender.startsWith("obd"));
  const whole = stageChart("stages", TITLE, summaries, runs);
  return end(lazy) > 0 && end(lazy) < end(summaries) * ZOOM_SHARE
    ? whole + stageChart("stages-lazy", `${TITLE}: obd alone`, lazy, runs)
    : whole;
}

function stageChart(
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
  const shown = new Set<StageName>();
  const rows = typical.map(({ s, run }) => {
    if (!run) return row(s.contender, "failed", track("failed", ""), []);
    const stages = stagesOf(run);
    for (const name of STAGES) if (stages[name]) shown.add(name);
    return row(
      s.contender,
      seconds(run.readySeconds),
      track(stageText(s.contender, stages), stageRects(stages, max)),
      [],
    );
  });
  const legend = STAGES.filter((name) => shown.has(name)).map((name) =>
    `<span><i class="swatch s-${name}"></i>${STAGE_TITLES[name]}</span>`
  ).join("");
  const isCounted = typical.every(({ s, run }) =>
    !run || run.stages || !s.contender.startsWith("obd")
  );
  return figure(
    kind,
    title,
    `The run closest to each median.${
      isCounted
        ? ""
        : " Where waiting was not counted, it is part of container and service."
    }`,
    rows.join("") + axis(marks, "s") + `<p class="legend">${legend}</p>`,
  );
}

function stageText(contender: string, stages: Stages): string {
  const parts = STAGES.flatMap((name) =>
    stages[name] === undefined
      ? []
      : [`${STAGE_TITLES[name]} ${seconds(stages[name])}`]
  );
  return `${contender}: ${parts.join(", ")}`;
}

function stageRects(stages: Stages, max: number): string {
  let at = 0;
  return STAGES.map((name) => {
    const length = stages[name] ?? 0;
    const start = at;
    at += length;
    if (length === 0) return "";
    return `<rect class="s-${name}" data-stage="${name}" data-seconds="${length}" x="${
      percent(start, max)
    }" y="4" width="${percent(length, max)}" height="${
      TRACK_HEIGHT - 8
    }"><title>${STAGE_TITLES[name]}: ${seconds(length)}</title></rect>`;
  }).join("");
}

/** Every stage of every contender, and what of it the limit has: the rest stands in between. */
export function stageTable(
  summaries: readonly Summary[],
  limit: Limit | undefined,
): string {
  const names = STAGES.filter((name) =>
    summaries.some((s) => s.stages?.[name] !== undefined)
  );
  if (names.length === 0) return "";
  const least = limit && limitStages(limit);
  const line = (
    title: string,
    of: (s: Summary) => string,
    ofLimit: string,
  ) =>
    `<tr><th scope="row">${title}</th>${
      summaries.map((s) => `<td>${of(s)}</td>`).join("")
    }${limit ? `<td>${ofLimit}</td>` : ""}</tr>`;
  const known = (value: number | undefined, format: (n: number) => string) =>
    value === undefined ? "–" : format(value);
  const rows = names.map((name) =>
    line(
      STAGE_TITLES[name],
      (s) => spread(s.stages?.[name], seconds),
      known(least?.[name], seconds),
    )
  );
  rows.push(line(
    "service answers after",
    (s) => spread(s.ready, seconds),
    known(limit?.totalSeconds, seconds),
  ));
  if (limit) {
    rows.push(
      line("÷ the limit", (s) => known(s.limitMultiple, factor), "1 ×"),
    );
  }
  const head = summaries.map((s) =>
    `<th scope="col">${escapeHtml(s.contender)}</th>`
  ).join("");
  return `<figure>${
    scrolled(
      `<table data-table="stages"><thead><tr><th scope="col">Median<small>lowest – highest</small></th>${head}${
        limit ? `<th scope="col">the limit</th>` : ""
      }</tr></thead><tbody>${rows.join("")}</tbody></table>`,
    )
  }</figure>`;
}

/**
 * The report of benches for people: one HTML file with its charts as inline
 * SVG, without scripts and without anything from elsewhere.
 *
 * Positions in the charts are percentages of their width and texts have sizes
 * of their own, so that a narrow screen has narrow charts and legible labels.
 */

import {
  plainOf,
  type Session,
  summarize,
  type Summary,
  type Touched,
} from "../result.ts";
import { readyChart } from "./bars.ts";
import { bytesCharts } from "./curves.ts";
import { mapChart } from "./read_map.ts";
import { stageCharts, stageTable } from "./stages.ts";
import { STYLE } from "./style.ts";
import {
  figureTable,
  imageFacts,
  machineFacts,
  overviewTable,
  processTable,
} from "./tables.ts";
import { escapeHtml, seconds } from "./text.ts";

/** The whole document. */
export function renderReport(sessions: readonly Session[]): string {
  const parts = sessions.map((session) => {
    const summaries = summarize(session.runs, session.touched);
    return { session, summaries };
  });
  const headlines = parts.flatMap(({ summaries }) =>
    workloadsOf(summaries).map((w) => headline(summaries, w))
  );
  const title = headlines.length === 1
    ? `${headlines[0]} – obd bench`
    : "obd bench";
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="content-security-policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${escapeHtml(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<header><h1>obd bench</h1></header>
<main>
${
    parts.map(({ session, summaries }) => sessionPart(session, summaries)).join(
      "\n",
    )
  }
</main>
</body>
</html>
`;
}

function sessionPart(
  session: Session,
  summaries: readonly Summary[],
): string {
  const { machine } = session;
  const workloads = workloadsOf(summaries);
  const leavesOut = machine.leavesOut.length === 0
    ? ""
    : `<aside class="leaves-out"><strong>Reduced mode.</strong> These figures leave out:<ul>${
      machine.leavesOut.map((text) => `<li>${escapeHtml(text)}</li>`).join("")
    }</ul></aside>`;
  return [
    leavesOut,
    workloads.length > 1
      ? `<section><h2>${workloads.length} workloads</h2>${
        overviewTable(summaries)
      }</section>`
      : "",
    ...workloads.map((workload) => workloadPart(session, summaries, workload)),
    workloads.length === 0 ? `<section><h2>No run was made</h2></section>` : "",
    `<section><h4>Where and how</h4>${machineFacts(session)}</section>`,
  ].join("\n");
}

function workloadPart(
  session: Session,
  all: readonly Summary[],
  workload: string,
): string {
  const summaries = all.filter((s) => s.workload === workload);
  const touched = session.touched.find((t) => t.workload === workload);
  const image = session.images.find((i) => i.workload === workload);
  const { runs } = session;
  return `<section data-workload="${escapeHtml(workload)}">
<p class="workload">${escapeHtml(workload)}</p>
<h2>${escapeHtml(headline(all, workload))}</h2>
<p class="lead">${escapeHtml(lead(all, workload, touched))}</p>
${readyChart(summaries, touched?.limit?.totalSeconds)}
${stageCharts(summaries, runs)}
${stageTable(summaries, touched?.limit)}
${bytesCharts(summaries, runs)}
${mapChart(image, touched, summaries, runs)}
<h4>All figures</h4>
${figureTable(summaries)}
<h4>Processes</h4>
${processTable(summaries)}
<h4>Image</h4>
${imageFacts(image, touched)}
</section>`;
}

function workloadsOf(summaries: readonly Summary[]): string[] {
  return [...new Set(summaries.map((s) => s.workload))];
}

/** The contender that a reader wants to know about first. */
function mainOf(
  summaries: readonly Summary[],
  workload: string,
): Summary | undefined {
  const own = summaries.filter((s) => s.workload === workload && s.ready);
  return own.find((s) => s.contender === "obd") ??
    own.find((s) => s.contender.startsWith("obd"));
}

/** The result in half a sentence. */
export function headline(
  summaries: readonly Summary[],
  workload: string,
): string {
  const main = mainOf(summaries, workload);
  const plain = plainOf(summaries, workload);
  if (!main) {
    return summaries.some((s) => s.workload === workload && s.ready)
      ? "obd was not measured"
      : "Every run failed";
  }
  const name = main.contender;
  if (!plain) return `${name} answers after ${seconds(main.ready!.median)}`;
  const times = plain.ready!.median / main.ready!.median;
  if (times >= 1.05) return `${name} answers ${times.toFixed(1)} × sooner`;
  if (times <= 0.95) return `${name} answers ${(1 / times).toFixed(1)} × later`;
  return `${name} answers as soon as plain OCI`;
}

function lead(
  summaries: readonly Summary[],
  workload: string,
  touched: Touched | undefined,
): string {
  const main = mainOf(summaries, workload);
  const plain = plainOf(summaries, workload);
  const texts: string[] = [];
  if (main && plain) {
    texts.push(
      `${seconds(main.ready!.median)} against ${
        seconds(plain.ready!.median)
      } of plain OCI`,
    );
  }
  if (touched?.limit) {
    texts.push(`no lazy start can beat ${seconds(touched.limit.totalSeconds)}`);
  }
  const runs = Math.max(
    0,
    ...summaries.filter((s) => s.workload === workload).map((s) => s.runs),
  );
  texts.push(`${runs} ${runs === 1 ? "run" : "runs"} of each`);
  return `${texts.join("; ")}.`;
}

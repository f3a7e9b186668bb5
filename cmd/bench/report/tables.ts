/** Tables of the report: all figures, every process, the image, the machine. */

import type {
  BuildFacts,
  ImageFacts,
  Session,
  Spread,
  Summary,
  Touched,
} from "../result.ts";
import { speedText } from "../table.ts";
import {
  digits,
  escapeHtml,
  factor,
  megabytes,
  seconds,
  spread,
} from "./text.ts";

type Figure = readonly [name: string, cell: (s: Summary) => string];

const times = (
  value: (s: Summary) => Spread | undefined,
) =>
(s: Summary) => spread(value(s), seconds);
const sizes = (value: (s: Summary) => Spread | undefined) => (s: Summary) =>
  spread(value(s), megabytes);
const factors = (value: (s: Summary) => Spread | undefined) => (s: Summary) =>
  spread(value(s), factor);
const numbers = (value: (s: Summary) => Spread | undefined) => (s: Summary) =>
  spread(
    value(s),
    (n) => Number.isInteger(n) ? n.toLocaleString("en") : digits(n),
  );

const FIGURES: readonly Figure[] = [
  ["Runs", (s) => String(s.runs)],
  [
    "Failed",
    (s) => s.failures.length === 0 ? "none" : String(s.failures.length),
  ],
  ["Service answers after", times((s) => s.ready)],
  ["÷ plain OCI", (s) => s.ratio === undefined ? "–" : factor(s.ratio)],
  [
    "÷ the limit",
    (s) => s.limitMultiple === undefined ? "–" : factor(s.limitMultiple),
  ],
  ["First request after", times((s) => s.firstRequest)],
  ["Image opened after", times((s) => s.opened)],
  ["Root file system after", times((s) => s.root)],
  ["First byte of the program after", times((s) => s.firstByte)],
  ["Fetched", sizes((s) => s.bytes)],
  ["Requests", numbers((s) => s.requests)],
  ["Read of the block device", sizes((s) => s.edgeBytes)],
  ["Reads that waited", numbers((s) => s.waits)],
  ["Loads that reads waited for", numbers((s) => s.demandLoads)],
  ["Loads ahead of reads", numbers((s) => s.aheadLoads)],
  ["Fetched ÷ read", factors((s) => s.amplification)],
  ["Fetched ÷ stored size of what is touched", factors((s) => s.perTouched)],
  ["CPU time of the tools", times((s) => s.cpuSeconds)],
  ["CPU time of the whole machine", times((s) => s.machineCpuSeconds)],
  ["Peak memory of the tools", sizes((s) => s.peakRssBytes)],
  ["Disk used", sizes((s) => s.diskBytes)],
  ["Steady requests per second", numbers((s) => s.steadyRate)],
  [
    "Steady ÷ plain OCI",
    (s) => s.steadyRatio === undefined ? "–" : factor(s.steadyRatio),
  ],
  [
    "CPU time of a steady request",
    (s) => spread(s.steadyCpuSeconds, (n) => `${digits(n * 1000)} ms`),
  ],
  [
    "CPU time of a steady request ÷ plain OCI",
    (s) => s.steadyCpuRatio === undefined ? "–" : factor(s.steadyCpuRatio),
  ],
];

/** Every figure of every contender. What nobody has is left out. */
export function figureTable(summaries: readonly Summary[]): string {
  const head = summaries.map((s) =>
    `<th scope="col">${escapeHtml(s.contender)}</th>`
  ).join("");
  const rows = FIGURES.flatMap(([name, cell]) => {
    const cells = summaries.map(cell);
    if (cells.every((text) => text === "–")) return [];
    return [
      `<tr><th scope="row">${name}</th>${
        cells.map((text) => `<td>${text}</td>`).join("")
      }</tr>`,
    ];
  });
  return scrolled(
    `<table data-table="figures"><thead><tr><th scope="col">Median<small>lowest – highest</small></th>${head}</tr></thead><tbody>${
      rows.join("")
    }</tbody></table>`,
  );
}

/** CPU time and memory by program. */
export function processTable(summaries: readonly Summary[]): string {
  const names = [
    ...new Set(summaries.flatMap((s) => s.processes.map((p) => p.name))),
  ];
  if (names.length === 0) return "";
  const rows = names.map((name) => {
    const cells = summaries.map((s) => {
      const own = s.processes.find((p) => p.name === name);
      if (!own) return "<td>–</td>";
      const memory = own.peakRssBytes
        ? `, ${megabytes(own.peakRssBytes.median)}`
        : "";
      return `<td>${seconds(own.cpuSeconds.median)}${memory}</td>`;
    });
    return `<tr><th scope="row">${escapeHtml(name)}</th>${cells.join("")}</tr>`;
  });
  const head = summaries.map((s) =>
    `<th scope="col">${escapeHtml(s.contender)}</th>`
  ).join("");
  return scrolled(
    `<table data-table="processes"><thead><tr><th scope="col">CPU time, peak memory</th>${head}</tr></thead><tbody>${
      rows.join("")
    }</tbody></table>`,
  );
}

/** Workloads against contenders: the times, and how they compare. */
export function overviewTable(summaries: readonly Summary[]): string {
  const workloads = [...new Set(summaries.map((s) => s.workload))];
  const contenders = [...new Set(summaries.map((s) => s.contender))];
  const rows = workloads.map((workload) => {
    const cells = contenders.map((contender) => {
      const own = summaries.find((s) =>
        s.workload === workload && s.contender === contender
      );
      if (!own) return "<td>–</td>";
      if (!own.ready) return `<td class="failure">failed</td>`;
      const ratio = own.ratio === undefined || own.ratio === 1
        ? ""
        : `<small>${factor(own.ratio)}</small>`;
      return `<td>${seconds(own.ready.median)}${ratio}</td>`;
    });
    return `<tr><th scope="row">${escapeHtml(workload)}</th>${
      cells.join("")
    }</tr>`;
  });
  return scrolled(
    `<table data-table="overview"><thead><tr><th scope="col">Service answers after, × plain OCI</th>${
      contenders.map((c) => `<th scope="col">${escapeHtml(c)}</th>`).join("")
    }</tr></thead><tbody>${rows.join("")}</tbody></table>`,
  );
}

/** A table that may be wider than the page. */
export function scrolled(table: string): string {
  return `<div class="scroll" tabindex="0">${table}</div>`;
}

/** The image, its meta image, the limit. */
export function imageFacts(
  image: ImageFacts | undefined,
  touched: Touched | undefined,
): string {
  const facts: [string, string][] = [];
  if (image) {
    const { build, native, compressedBytes, layers } = image;
    const share = (bytes: number) =>
      compressedBytes > 0
        ? ` (${(bytes / compressedBytes * 100).toFixed(2)} %)`
        : "";
    facts.push(
      ["Image", `${image.reference}, ${image.digest}`],
      [
        "Size",
        `${megabytes(compressedBytes)} in ${layers.length} ${
          layers.length === 1 ? "layer" : "layers"
        }`,
      ],
      [
        "Meta image",
        `${megabytes(build.bytes)}${share(build.bytes)}, built in ${
          seconds(build.seconds)
        }${reused(build)}${build.digest ? `, ${build.digest}` : ""}`,
      ],
    );
    if (native) {
      facts.push([
        "Native image",
        `${megabytes(native.bytes)}${share(native.bytes)}, built in ${
          seconds(native.seconds)
        }${reused(native)}`,
      ]);
    }
  }
  if (touched?.failure !== undefined) {
    facts.push(["The limit", `not known: ${touched.failure}`]);
  } else if (touched) {
    facts.push([
      "Touched",
      `${megabytes(touched.bytes)}, stored as ${
        megabytes(touched.storedBytes)
      }`,
    ]);
    const { limit } = touched;
    if (limit) {
      facts.push([
        "The limit",
        `${seconds(limit.totalSeconds)}: warm start ${
          seconds(limit.warmSeconds)
        }, what is touched over the link ${
          seconds(limit.transferSeconds)
        }, one round trip ${seconds(limit.rttSeconds)}`,
      ]);
    }
  }
  return list(facts);
}

function reused({ layersReused }: BuildFacts): string {
  return layersReused
    ? `, ${layersReused} of its layers were there already`
    : "";
}

/** Where and how it was measured. */
export function machineFacts(session: Session): string {
  const { machine } = session;
  const speed = speedText(session);
  return list([
    ["Command", machine.command.join(" ")],
    ["When", machine.started],
    ["Link", machine.link.method],
    [
      "Machine",
      `${machine.cores} × ${machine.cpu}, ${
        megabytes(machine.memoryBytes)
      } of memory`,
    ],
    ...(speed === undefined ? [] : [["Speed", speed] as const]),
    ["Kernel", machine.kernel],
    ["Commit", machine.commit ?? "not known"],
    ...(machine.program ? [["Program", machine.program] as const] : []),
    ...Object.entries(machine.versions),
  ]);
}

function list(facts: readonly (readonly [string, string])[]): string {
  return `<dl>${
    facts.map(([name, value]) =>
      `<div><dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd></div>`
    ).join("")
  }</dl>`;
}

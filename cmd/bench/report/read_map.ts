/** The read map: which parts of each layer the service touches, and which were fetched. */

import type { Measurement } from "../measurement.ts";
import type { RunResult, Session, Summary, Touched } from "../result.ts";
import { figure, typicalRun } from "./bars.ts";
import { colourClass, escapeHtml, megabytes, percent } from "./text.ts";

const CELLS = 200;
/** Shades of a cell. */
const LEVELS = 5;
/** Further layers are folded away, smallest first. */
const LAYERS_OPEN = 6;

type Image = Session["images"][number];

/** What was fetched of one blob by one contender. */
interface Fetched {
  contender: string;
  cells: number[];
  share: number;
}

/** A map of each layer of the image, and of each native layer. */
export function mapChart(
  image: Image | undefined,
  touched: Touched | undefined,
  summaries: readonly Summary[],
  runs: readonly RunResult[],
): string {
  if (!image) return "";
  const measured = summaries.flatMap((s) => {
    const run = typicalRun(runs, s);
    return run ? [{ contender: s.contender, run }] : [];
  });
  const of = (
    layers: Image["layers"],
    who: (contender: string) => boolean,
    kind: string,
  ) => {
    const bySize = [...layers].sort((a, b) => b.size - a.size);
    const open = new Set(bySize.slice(0, LAYERS_OPEN));
    return layers.map((layer, i) => {
      const fetched = measured.filter((m) => who(m.contender)).map((
        { contender, run },
      ) => fetchedOf(contender, run, layer));
      const reads = touched?.layers.find((l) => l.digest === layer.digest);
      return layerMap(
        `${kind} ${i + 1}`,
        layer,
        reads,
        fetched,
        open.has(layer),
      );
    }).join("");
  };
  const plain = of(image.layers, (name) => name !== "obd-native", "Layer");
  const native = image.native
    ? of(image.native.layers, (name) => name === "obd-native", "Native layer")
    : "";
  return figure(
    "map",
    "Read map of each layer",
    "From the first to the last byte of the stored layer. Touched: what the service reads until it answers, in blocks of 4 KiB. Below: what each contender fetched.",
    plain + native,
  );
}

function layerMap(
  title: string,
  { digest, size }: Image["layers"][number],
  reads: Touched["layers"][number] | undefined,
  fetched: readonly Fetched[],
  isOpen: boolean,
): string {
  const text = reads
    ? `${megabytes(reads.storedBytes)} of ${megabytes(size)} touched`
    : megabytes(size);
  const strips = [
    ...(reads
      ? [strip("touched", "c-touched", reads.cells, share(reads.cells))]
      : []),
    ...fetched.map((f) =>
      strip(f.contender, colourClass(f.contender), f.cells, f.share)
    ),
  ];
  return `<details class="layer"${isOpen ? " open" : ""} data-layer="${
    escapeHtml(digest)
  }"><summary>${title} <span>${text}</span> <code>${
    escapeHtml(digest.slice(0, 19))
  }</code></summary>${strips.join("")}</details>`;
}

function strip(
  name: string,
  colour: string,
  cells: readonly number[],
  whole: number,
): string {
  const part = `${(whole * 100).toFixed(whole > 0 && whole < 0.1 ? 1 : 0)} %`;
  return `<div class="row strip"><span class="name">${
    escapeHtml(name)
  }</span><svg class="track" height="12" role="img" aria-label="${
    escapeHtml(name)
  }: ${part}" data-share="${
    Number(whole.toFixed(4))
  }"><rect class="empty" width="100%" height="12"/>${
    cellRects(cells, colour)
  }</svg><span class="value">${part}</span></div>`;
}

/** Neighbours of one shade are one rectangle. */
function cellRects(cells: readonly number[], colour: string): string {
  const levels = cells.map((share) => Math.ceil(Math.min(1, share) * LEVELS));
  let out = "";
  for (let i = 0; i < levels.length;) {
    const level = levels[i]!;
    let end = i + 1;
    while (levels[end] === level) end++;
    if (level > 0) {
      out += `<rect class="${colour}" x="${percent(i, levels.length)}" width="${
        percent(end - i, levels.length)
      }" height="12" fill-opacity="${level / LEVELS}"/>`;
    }
    i = end;
  }
  return out;
}

function share(cells: readonly number[]): number {
  return cells.reduce((sum, cell) => sum + cell, 0) / Math.max(1, cells.length);
}

function fetchedOf(
  contender: string,
  { traffic }: Measurement,
  { digest, size }: Image["layers"][number],
): Fetched {
  const cells = new Array<number>(CELLS).fill(0);
  const ranges = traffic.blobs.find((b) => b.digest === digest)?.ranges ?? [];
  let bytes = 0;
  for (const [start, end] of ranges) {
    const stop = Math.min(size, end ?? size);
    if (stop <= start) continue;
    bytes += stop - start;
    const [from, to] = [start / size * CELLS, stop / size * CELLS];
    for (let i = Math.floor(from); i < to && i < CELLS; i++) {
      cells[i] = cells[i]! + Math.min(to, i + 1) - Math.max(from, i);
    }
  }
  return { contender, cells, share: size > 0 ? bytes / size : 0 };
}

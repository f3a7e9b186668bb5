/** `obd inspect` for people. */

import type {
  Fact,
  FileInspection,
  FilePart,
  FileReport,
  ImageInspection,
  LayerInspection,
  LayoutEntry,
  LayoutInspection,
  Problem,
  StackInspection,
} from "../lib/image/mod.ts";
import {
  formatSize,
  printable,
  type SourceDescription,
} from "../lib/io/mod.ts";

/** Width of the column of names. */
const NAME_WIDTH = 10;
/** Characters of a digest that people compare. */
const SHORT_DIGEST = "sha256:".length + 12;

/** A file and everything in it. */
export function fileLines({ path, report }: FileInspection): string[] {
  return reportLines(printable(path), report, "");
}

function reportLines(
  name: string,
  report: FileReport,
  indent: string,
): string[] {
  const lines = [
    `${indent}${name}: ${report.title}, ${formatSize(report.size)}`,
  ];
  const facts = Object.entries(report.facts);
  const width = Math.max(0, ...facts.map(([key]) => spaced(key).length));
  for (const [key, value] of facts) {
    lines.push(
      `${indent}  ${spaced(key).padEnd(width)}  ${factText(key, value)}`,
    );
  }
  for (const note of report.notes) lines.push(`${indent}  note: ${note}`);
  lines.push(...problemLines(report.problem, `${indent}  `));
  for (const part of report.parts) {
    lines.push(...reportLines(part.name, part.report, `${indent}  `));
  }
  return lines;
}

function problemLines(problem: Problem | undefined, indent: string): string[] {
  return problem
    ? [`${indent}BROKEN (${problem.code}): ${printable(problem.message)}`]
    : [];
}

/** `virtualSize` → `virtual size`. */
function spaced(key: string): string {
  return key.replaceAll(/[A-Z]/g, (c) => ` ${c.toLowerCase()}`);
}

/** Numbers whose names say that they are bytes are also given in units. */
function factText(key: string, value: Fact): string {
  if (typeof value === "string") return printable(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  const isBytes = /(Size|Bytes|UpTo|Offset)$/.test(key);
  const plain = value.toLocaleString("en");
  return isBytes && value >= 1024
    ? `${formatSize(value)} (${plain} bytes)`
    : isBytes
    ? `${plain} bytes`
    : plain;
}

/** An image: facts, layers, meta images, stack. */
export function imageLines(image: ImageInspection): string[] {
  return [
    ...headLines(image),
    ...image.layers.flatMap(layerLines),
    ...metaLines(image),
    ...(image.device
      ? [
        row(
          "device",
          `${formatSize(image.device.size)}, ${
            count(image.device.segments, "segment")
          }, integrity ${image.device.integrity}`,
        ),
      ]
      : []),
    ...(image.stack ? stackLines(image.stack) : []),
    ...image.notes.map((note) => row("note", printable(note))),
    ...problemLines(
      image.layers.some((l) => l.problem) ? undefined : image.problem,
      "",
    ),
  ];
}

const IMAGE_KINDS: Record<ImageInspection["kind"], string> = {
  plain: "plain image: served with a meta image",
  turbo: "meta image (TurboOCI)",
  native: "overlaybd-native image",
  config: "overlaybd config",
};

function headLines(image: ImageInspection): string[] {
  const { manifest, config, index, subject, referrers } = image;
  const lines = [row("image", `${printable(image.name)}`)];
  lines.push(row("kind", IMAGE_KINDS[image.kind]));
  if (index) {
    lines.push(
      row("index", `${index.digest}`),
      row("", `platforms ${printable(index.platforms.join(", "))}`),
    );
  }
  if (manifest) {
    lines.push(
      row("manifest", manifest.digest),
      row(
        "",
        `${printable(manifest.mediaType)}, ${formatSize(manifest.size)}`,
      ),
    );
    if (manifest.artifactType) {
      lines.push(row("", `artifact type ${printable(manifest.artifactType)}`));
    }
    for (const [key, value] of Object.entries(manifest.annotations).sort()) {
      lines.push(row("", `${printable(key)} = ${printable(value)}`));
    }
  }
  if (config) {
    lines.push(row(
      "config",
      `${printable(config.platform)}${
        config.created ? `, created ${printable(config.created)}` : ""
      }`,
    ));
  }
  if (subject) lines.push(row("subject", subject.digest));
  for (const [i, referrer] of (referrers ?? []).entries()) {
    lines.push(row(
      i === 0 ? "referrers" : "",
      `${referrer.digest} ${printable(referrer.artifactType ?? "")}`.trim(),
    ));
  }
  return lines;
}

function layerLines(layer: LayerInspection): string[] {
  const size = layer.size === undefined
    ? "size unknown"
    : formatSize(layer.size);
  const presence = layer.present === undefined
    ? ""
    : layer.present
    ? ", present"
    : ", MISSING";
  const level = layer.integrity ? `, integrity ${layer.integrity}` : "";
  const lines = [
    row(
      `layer ${layer.number}`,
      `${layer.kind}${partText(layer)}, ${size}${presence}${level}`,
    ),
    row("", `${layer.digest} ${printable(layer.mediaType)}`.trim()),
  ];
  if (layer.meta) {
    const percent = layer.size
      ? ` (${(layer.meta.size / layer.size * 100).toFixed(2)} %)`
      : "";
    const parts = layer.meta.parts.map((p) =>
      `${p.name} ${formatSize(p.report.size)}`
    );
    lines.push(
      row(
        "",
        `meta ${formatSize(layer.meta.size)}${percent}${
          parts.length > 0 ? `: ${parts.join(", ")}` : ""
        }`,
      ),
    );
    if (layer.meta.digest !== "") lines.push(row("", layer.meta.digest));
    const index = indexText(layer.meta.parts);
    if (index !== undefined) lines.push(row("", index));
  }
  if (layer.map) lines.push(row("", mapText(layer.map)));
  return [
    ...lines,
    ...problemLines(layer.problem, " ".repeat(NAME_WIDTH)),
  ];
}

function partText({ part }: LayerInspection): string {
  return part ? `, part ${part.index} of ${part.count}` : "";
}

/** What the index of a layer says of it. */
function indexText(parts: FilePart[]): string | undefined {
  const spans = parts.find((p) => p.name === "obd.spans")?.report.facts;
  if (spans) {
    return `${spans.compression}, ${count(Number(spans.spans), "span")}, tar ${
      formatSize(Number(spans.tarSize))
    }`;
  }
  const gzip = parts.find((p) => p.name === "gzip.meta")?.report.facts;
  return gzip &&
    `gzip, ${count(Number(gzip.entries), "checkpoint")}, tar ${
      formatSize(Number(gzip.tarSize))
    }`;
}

function mapText(map: Record<string, Fact>): string {
  const target = Number(map.targetBytes ?? 0);
  return `${count(Number(map.entries), "map entry", "map entries")}: ${
    formatSize(Number(map.dataBytes))
  } of its own${
    target > 0 ? `, ${formatSize(target)} of the original layer` : ""
  }; virtual size ${formatSize(Number(map.virtualSize))}`;
}

function metaLines(image: ImageInspection): string[] {
  if (!image.meta) return [];
  const { used, ways, ignored } = image.meta;
  const lines = [
    row(
      "meta",
      used
        ? `${used.digest} would be used`
        : "none found: run obd build (mount, ls, cat and dump build one in memory)",
    ),
  ];
  for (const { way, digest } of ways) {
    lines.push(row("", `by ${way}: ${digest ?? "none that fits"}`));
  }
  for (const reason of ignored) lines.push(row("", printable(reason)));
  return lines;
}

/** The sources, innermost first, as data flows. */
function stackLines({ layers, merged }: StackInspection): string[] {
  const lines = [row("stack", "innermost first")];
  for (const [i, { data, target }] of layers.entries()) {
    const name = `  layer ${i + 1}`;
    if (!target) {
      lines.push(row(name, `${pipeline(data)} > lsmt`));
      continue;
    }
    const [meta, content] = aligned(pipeline(data), pipeline(target));
    lines.push(row(name, `meta     ${meta} ┐`));
    lines.push(row("", `content  ${content} ┴ lsmt`));
  }
  lines.push(row("  merged", `${stage(merged)} > nbd`));
  return lines;
}

function aligned(a: string, b: string): [string, string] {
  const width = Math.max(a.length, b.length);
  return [a.padEnd(width), b.padEnd(width)];
}

function pipeline(source: SourceDescription): string {
  const inner = source.inner?.[0];
  const here = stage(source);
  return inner ? `${pipeline(inner)} > ${here}` : here;
}

/** One stage with the details that distinguish it. */
function stage({ kind, detail = {} }: SourceDescription): string {
  const parts: string[] = [];
  for (const [key, value] of Object.entries(detail)) {
    // Counters and what the lines above say already.
    if (/^(requests|bytesRead|layer|repository|verify)$/.test(key)) continue;
    if (key === "digest") parts.push(String(value).slice(0, SHORT_DIGEST));
    else if (key === "path") parts.push(shortPath(String(value)));
    else if (key === "spans") parts.push(count(Number(value), "span"));
    else if (key === "integrity") {
      parts.push(value === "spans" ? "each checked" : "unchecked");
    } else if (key === "size") parts.push(formatSize(Number(value)));
    else if (key === "blockSize") {
      parts.push(`${formatSize(Number(value))} blocks`);
    } else if (typeof value === "number") {
      parts.push(`${key} ${value.toLocaleString("en")}`);
    } else parts.push(printable(String(value)));
  }
  return parts.length > 0 ? `${kind}(${parts.join(", ")})` : kind;
}

/** A blob of a layout by its digest, another file by its path. */
function shortPath(path: string): string {
  const hex = /\/blobs\/sha256\/([0-9a-f]{12})[0-9a-f]{52}$/.exec(path)?.[1];
  return hex === undefined ? printable(path) : `sha256:${hex}`;
}

/** A layout: its images, and what is missing. */
export function layoutLines(layout: LayoutInspection): string[] {
  const width = Math.max(...layout.entries.map((e) => tagOf(e).length), 0);
  return [
    row("layout", printable(layout.path)),
    row(
      "blobs",
      `${count(layout.blobs, "blob")}, ${formatSize(layout.blobBytes)}${
        layout.unreferenced > 0 ? `, ${layout.unreferenced} unreferenced` : ""
      }`,
    ),
    ...layout.entries.flatMap((entry) => entryLines(entry, "", width)),
    ...problemLines(
      layout.entries.some((e) => e.problem) ? undefined : layout.problem,
      "",
    ),
  ];
}

function tagOf(entry: LayoutEntry): string {
  return printable(entry.tag ?? "(no tag)");
}

function entryLines(
  entry: LayoutEntry,
  indent: string,
  width: number,
): string[] {
  const parts = [
    entry.kind === "index"
      ? `index of ${entry.entries?.length ?? 0}`
      : entry.kind,
    ...(entry.platform ? [printable(entry.platform)] : []),
    ...(entry.layers === undefined ? [] : [
      `${count(entry.layers, "layer")} of ${formatSize(entry.layerBytes!)}`,
    ]),
    ...(entry.subject ? [`of ${entry.subject.slice(0, SHORT_DIGEST)}`] : []),
  ];
  return [
    `${indent}${tagOf(entry).padEnd(width)}  ${entry.digest}  ${
      parts.join(", ")
    }`,
    ...problemLines(entry.problem, `${indent}  `),
    ...(entry.entries ?? []).flatMap((e) =>
      entryLines(e, `${indent}  `, width)
    ),
  ];
}

function row(name: string, text: string): string {
  return `${name.padEnd(NAME_WIDTH)}${text}`;
}

function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

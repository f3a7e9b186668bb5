/** `obd build SOURCE [DEST]`: writes and pushes meta images, and says what they cost. */

import {
  type BuildFormat,
  type DatabaseSettings,
  type LayerReport,
  openConversionDatabase,
  openEnvironment,
  parseDatabase,
  type PlatformReport,
  publishImage,
  type PublishReport,
} from "../lib/image/mod.ts";
import { formatSize } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";

const GIB = 1024 ** 3;

interface BuildFlags {
  vsize: number;
  platform?: string;
  allPlatforms?: boolean;
  flatten?: boolean;
  base?: string;
  /** KiB. */
  spanSize?: number;
  /** A name, or false for `--no-tag`. */
  tag?: string | boolean;
  /** False for `--no-referrer`. */
  referrer?: boolean;
  jobs: number;
  dryRun?: boolean;
  format: BuildFormat[];
  compat?: string;
  convertUnseekable?: boolean;
  algorithm: "lz4" | "zstd";
  /** KiB. */
  blockSize: string;
  /** False for `--no-oci`. */
  oci?: boolean;
  dedupDb?: string;
}

export async function run(
  context: Context,
  [source, dest]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  const flags = options as unknown as BuildFlags;
  await using database = openConversionDatabase(databaseOf(flags), {
    readOnly: flags.dryRun,
  });
  await using environment = await openEnvironment({
    log: context.log,
    progress: context.progress,
    signal: context.signal,
    registry: context.registry,
  });
  const report = await publishImage(environment, {
    source: source!,
    dest,
    virtualSize: flags.vsize * GIB,
    platform: flags.platform,
    allPlatforms: flags.allPlatforms,
    flatten: flags.flatten,
    base: flags.base,
    spanSize: flags.spanSize && flags.spanSize * 1024,
    tag: flags.tag === true ? undefined : flags.tag,
    referrer: flags.referrer,
    jobs: flags.jobs,
    dryRun: flags.dryRun,
    formats: flags.format,
    compat: flags.compat === "overlaybd",
    convertUnseekable: flags.convertUnseekable,
    native: {
      codec: flags.algorithm,
      blockSize: Number(flags.blockSize) * 1024,
    },
    nativeTypes: flags.oci === false ? "docker" : "oci",
    database,
    isDefaultDatabase: chosenDatabase(flags) === undefined,
  });
  // The formats of an image have the same ones.
  const warnings = report.platforms.flatMap(({ warnings }) => warnings);
  for (const warning of new Set(warnings)) context.log.warn(warning);
  for (const platform of report.platforms) {
    say(context, platform, flags.dryRun ?? false);
  }
  for (const index of report.indexes ?? []) {
    context.say(`index    ${index.reference} (${index.digest})`);
  }
  context.result(jsonReport(report, flags));
}

/** What the command line or the environment says, in this order. */
function chosenDatabase({ dedupDb }: BuildFlags): string | undefined {
  return dedupDb ?? (Deno.env.get("OBD_DEDUP_DB") || undefined);
}

function databaseOf(flags: BuildFlags): DatabaseSettings {
  return parseDatabase(chosenDatabase(flags) ?? "sqlite", {
    // Only an argument is seen by everybody who may list processes.
    mayHavePassword: flags.dedupDb === undefined,
    env: (name) => Deno.env.get(name),
    uid: Deno.uid(),
  });
}

/** `, reused` and where from. */
function reuseText({ reused, reusedFrom }: LayerReport): string {
  if (!reused) return "";
  if (reusedFrom === undefined) return ", reused";
  const { repository, by } = reusedFrom;
  return `, reused from ${repository} (${by})`;
}

function say(
  context: Context,
  report: PlatformReport,
  dryRun: boolean,
): void {
  const { source, meta, layers, breakdown } = report;
  const total = layers.reduce((sum, layer) => sum + layer.size, 0);
  const reused = layers.filter((layer) => layer.reused).length;
  const percent = (part: number, whole: number) =>
    whole === 0 ? "" : ` (${(part / whole * 100).toFixed(2)} %)`;
  context.say(`source   ${source.reference} (${report.platform})`);
  context.say(`         ${source.digest}`);
  for (const [i, layer] of layers.entries()) {
    context.say(
      `layer ${i + 1}  ${formatSize(layer.size)} -> ${
        formatSize(layer.metaSize)
      }${percent(layer.metaSize, layer.size)}, ${
        layer.entries.toLocaleString("en")
      } entries, ${layer.spans.toLocaleString("en")} spans${
        layer.parts === undefined ? "" : `, ${layer.parts} parts`
      }${reuseText(layer)}`,
    );
  }
  if (report.format === "turbo") {
    context.say(
      `meta     ${formatSize(meta.size)}${
        percent(meta.size, total)
      }: metadata ${formatSize(breakdown.fsMeta)}, gzip index ${
        formatSize(breakdown.gzipIndex)
      }, span digests ${formatSize(breakdown.spans)}`,
    );
  } else {
    context.say(
      `native   ${formatSize(meta.size)}${percent(meta.size, total)}`,
    );
  }
  context.say(
    `${dryRun ? "would be" : "pushed  "} ${meta.reference} in ${
      report.seconds.toFixed(1)
    } s${reused > 0 ? `, ${reused} of ${layers.length} layers reused` : ""}`,
  );
  context.say(`         ${meta.digest}`);
}

/** One image is the object itself; several, of platforms or formats, stand in a list. */
function jsonReport(report: PublishReport, flags: BuildFlags): unknown {
  const { platforms, index, indexes } = report;
  return flags.allPlatforms || platforms.length > 1
    ? { platforms, index, indexes }
    : platforms[0];
}

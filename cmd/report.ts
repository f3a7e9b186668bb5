/** `obd report [--zip FILE]`: what a person who helps wants to see, without secrets. */

import {
  configure,
  TextReader,
  Uint8ArrayWriter,
  ZipWriter,
} from "@zip.js/zip.js";
import { errorText, ObdError, writeFileAtomic } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { checkOutput } from "./output_file.ts";
import { collectReport, type Report } from "./report_collect.ts";
import { reportText } from "./report_text.ts";

export async function run(
  context: Context,
  _args: string[],
  options: Record<string, unknown>,
): Promise<void> {
  const file = options.zip as string | undefined;
  if (file !== undefined) await checkOutput(file);
  const report = await collectReport({
    api: options.api as string | undefined,
    config: options.config as string[] | undefined,
    signal: context.signal,
  });
  if (file === undefined) {
    context.say(reportText(report).trimEnd());
    context.result(report);
    return;
  }
  const files = filesOf(report);
  const bytes = await zipOf(files, new Date(report.created));
  try {
    // Status and logs are for those whom the owner gives them to.
    await writeFileAtomic(file, bytes, 0o600);
  } catch (error) {
    throw new ObdError("state", `Cannot write "${file}": ${errorText(error)}`, {
      cause: error,
    });
  }
  context.say(`${file}: ${files.size} files, ${bytes.length} bytes`);
  context.result({ file, size: bytes.length, entries: [...files.keys()] });
}

/** The files of the archive: the whole report for programs, and its parts for people. */
function filesOf(report: Report): Map<string, string> {
  const { metrics, log, mountLogs, ...facts } = report;
  const json = (value: unknown) => JSON.stringify(value, undefined, 2) + "\n";
  const files = new Map([
    ["report.json", json(facts)],
    ["report.txt", reportText(report)],
    ["log.txt", log.map((line) => line + "\n").join("")],
  ]);
  if (report.serve.status !== undefined) {
    files.set("status.json", json(report.serve.status));
  }
  if (metrics !== undefined) files.set("metrics.txt", metrics);
  if (report.config.files.length > 0) {
    files.set("config.json", json(report.config));
  }
  for (const [name, text] of Object.entries(mountLogs)) {
    files.set(`mounts/${name}`, text);
  }
  return files;
}

async function zipOf(
  files: ReadonlyMap<string, string>,
  lastModDate: Date,
): Promise<Uint8Array> {
  configure({ useWebWorkers: false });
  const writer = new ZipWriter(new Uint8ArrayWriter(), { lastModDate });
  for (const [name, text] of files) {
    await writer.add(`obd-report/${name}`, new TextReader(text));
  }
  return await writer.close();
}

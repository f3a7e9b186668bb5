/** What the harness found, as files that somebody can run again. */

import type { Ranges } from "./mutant.ts";
import type { FindingKind } from "./target.ts";

/** A defect, and the input that shows it. */
export interface Finding {
  target: string;
  kind: FindingKind;
  /** First line of the error, or what happened. */
  message: string;
  stack: string;
  seedName: string;
  seed: number;
  iteration: number;
  repaired: boolean;
  changes: Ranges | undefined;
  bytes: Uint8Array<ArrayBuffer>;
}

/** The same for two findings of one defect: numbers and quoted text left out. */
export function findingKey(finding: Omit<Finding, "bytes">): string {
  const text = finding.message.replace(/"[^"]*"|0x[0-9a-f]+|\d+/g, "#");
  const frame =
    finding.stack.split("\n").find((line) =>
      /^\s+at .*(lib|tests)\//.test(line)
    ) ?? "";
  return `${finding.target} ${finding.kind} ${text} ${frame.trim()}`;
}

/** The JSON beside the bytes; the harness reads it again for `--replay`. */
export type FindingRecord = Omit<Finding, "bytes">;

/**
 * Writes `NAME.bin` and `NAME.json`.
 *
 * @returns The path of the JSON.
 */
export async function writeFinding(
  directory: string,
  finding: Finding,
): Promise<string> {
  const { bytes, ...record } = finding;
  await Deno.mkdir(directory, { recursive: true });
  const { target, kind, seed, iteration } = finding;
  const name = `${directory}/${target}-${kind}-${seed}-${iteration}`;
  await Deno.writeFile(`${name}.bin`, bytes);
  await Deno.writeTextFile(
    `${name}.json`,
    `${JSON.stringify(record, undefined, 2)}\n`,
  );
  return `${name}.json`;
}

/** Reads what {@linkcode writeFinding} wrote. */
export async function readFinding(path: string): Promise<Finding> {
  const record: FindingRecord = JSON.parse(await Deno.readTextFile(path));
  const bytes = await Deno.readFile(path.replace(/\.json$/, ".bin"));
  return { ...record, bytes };
}

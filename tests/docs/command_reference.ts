/**
 * The command reference of `cmd/README.md`, out of the command table.
 *
 * `deno task docs` writes it; a test fails when it is not up to date.
 */

import type { Command, Option } from "commander";
import { createProgram } from "../../cmd/cli.ts";

const PAGE = new URL("../../cmd/README.md", import.meta.url).pathname;
const BEGIN = "<!-- begin: written by `deno task docs` -->";
const END = "<!-- end -->";
const COLUMNS = 100;

/** The part of the page that is generated. */
export function commandReference(): string {
  const program = createProgram(() => {});
  const commands = program.commands.filter((c) => c.name() !== "help");
  const common = commonOptions(commands);
  return [
    BEGIN,
    "",
    "## Every command",
    "",
    block(
      commands.map((
        c,
      ) => [`obd ${c.name()} ${usageOf(c)}`.trim(), c.summary()]),
    ),
    "",
    "## Options of every command",
    "",
    block([
      ...common.map(optionLine),
      ["-h, --help", "print help and exit"],
      ["-V, --version", "print the version and exit"],
    ]),
    ...commands.flatMap((command) => {
      const own = command.options.filter((option) =>
        !common.some((c) => c.flags === option.flags)
      );
      if (own.length === 0) return [];
      return [
        "",
        `## obd ${command.name()}`,
        "",
        block(own.map(optionLine)),
      ];
    }),
    "",
    END,
  ].join("\n");
}

/** The page with its generated part as it should be. */
export async function wantedPage(): Promise<string> {
  const page = await Deno.readTextFile(PAGE);
  const begin = page.indexOf(BEGIN);
  const end = page.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`${PAGE} has no markers`);
  return page.slice(0, begin) + commandReference() +
    page.slice(end + END.length);
}

/** The page as it is. */
export function presentPage(): Promise<string> {
  return Deno.readTextFile(PAGE);
}

/** Those that every command but a few without options has. */
function commonOptions(commands: readonly Command[]): Option[] {
  const counts = new Map<string, number>();
  for (const command of commands) {
    for (const { flags } of command.options) {
      counts.set(flags, (counts.get(flags) ?? 0) + 1);
    }
  }
  const most = Math.max(...counts.values());
  return commands.find((c) => c.name() === "build")!.options
    .filter((option) => counts.get(option.flags) === most);
}

function usageOf(command: Command): string {
  return command.registeredArguments.map((argument) => {
    const name = argument.name().toUpperCase();
    return argument.required ? name : `[${name}]`;
  }).join(" ");
}

function optionLine(option: Option): [string, string] {
  const notes: string[] = [];
  if (option.mandatory) notes.push("required");
  if (option.argChoices) notes.push(`one of ${option.argChoices.join(", ")}`);
  const isSaid = option.defaultValue !== undefined &&
    typeof option.defaultValue !== "boolean";
  if (isSaid) {
    notes.push(
      `default: ${option.defaultValueDescription ?? option.defaultValue}`,
    );
  }
  const text = notes.length > 0
    ? `${option.description} (${notes.join("; ")})`
    : option.description;
  return [option.flags, text];
}

function block(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  const lines = rows.flatMap(([left, right]) =>
    wrap(right, COLUMNS - width).map((line, i) =>
      (i === 0 ? left : "").padEnd(width) + line
    )
  );
  return ["```text", ...lines, "```"].join("\n");
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last === undefined || last.length + 1 + word.length > width) {
      lines.push(word);
    } else lines[lines.length - 1] = `${last} ${word}`;
  }
  return lines;
}

if (import.meta.main) await Deno.writeTextFile(PAGE, await wantedPage());

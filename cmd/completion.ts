/** Completion scripts, made from the command table so that they cannot fall behind it. */

import type { Command } from "commander";

interface Flag {
  /** `-q`, `--quiet` */
  names: string[];
  /** Values that it may have, where they are a list. */
  choices: readonly string[];
  /** Whether a value follows. */
  takesValue: boolean;
}

interface Entry {
  name: string;
  summary: string;
  flags: Flag[];
  /** Values of the first argument, where they are a list. */
  choices: readonly string[];
}

function entriesOf(program: Command): Entry[] {
  const everywhere = [["-h", "--help"], ["-V", "--version"]].map((
    names,
  ): Flag => ({ names, choices: [], takesValue: false }));
  const entries = program.commands.map((command): Entry => ({
    name: command.name(),
    summary: command.summary(),
    flags: [
      ...command.options.map((o): Flag => ({
        names: [o.short, o.long].filter((f) => typeof f === "string"),
        choices: o.argChoices ?? [],
        takesValue: o.required || o.optional,
      })),
      ...everywhere,
    ],
    choices: command.registeredArguments[0]?.argChoices ?? [],
  }));
  const names = entries.map((e) => e.name);
  return [
    ...entries,
    {
      name: "help",
      summary: "print help for a command",
      flags: [],
      choices: names,
    },
  ];
}

/** @returns The script, or undefined for a shell that we do not know. */
export function completionScript(
  program: Command,
  shell: string,
): string | undefined {
  const entries = entriesOf(program);
  switch (shell) {
    case "bash":
      return bash(entries);
    case "zsh":
      return zsh(entries);
    case "fish":
      return fish(entries);
    default:
      return undefined;
  }
}

function flagWords(entry: Entry): string {
  return entry.flags.flatMap((flag) => flag.names).join(" ");
}

/** Flags with a list of values, over all commands: the same flag has the same values everywhere. */
function choiceFlags(entries: Entry[]): Map<string, readonly string[]> {
  const found = new Map<string, readonly string[]>();
  for (const { names, choices } of entries.flatMap((e) => e.flags)) {
    if (choices.length === 0) continue;
    for (const name of names) found.set(name, choices);
  }
  return found;
}

/** Flags whose value is some text or file, over all commands. */
function valueFlags(entries: Entry[]): string[] {
  const flags = entries.flatMap((e) => e.flags)
    .filter((f) => f.takesValue && f.choices.length === 0);
  return [...new Set(flags.flatMap((f) => f.names))];
}

function bash(entries: Entry[]): string {
  const values = [...choiceFlags(entries)].map(([name, choices]) =>
    `    ${name}) words="${choices.join(" ")}" ;;`
  );
  const flags = entries.map((e) =>
    `      ${e.name}) words="${flagWords(e)}" ;;`
  );
  const first = entries.filter((e) => e.choices.length > 0).map((e) =>
    `      ${e.name}) words="${e.choices.join(" ")}" ;;`
  );
  return `_obd() {
  local word="\${COMP_WORDS[COMP_CWORD]}" words=""
  case "\${COMP_WORDS[COMP_CWORD-1]}" in
${values.join("\n")}
    ${valueFlags(entries).join("|")}) ;;
    *)
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${entries.map((e) => e.name).join(" ")} --help --version"
  elif [ "\${word#-}" != "$word" ]; then
    case "\${COMP_WORDS[1]}" in
${flags.join("\n")}
    esac
  elif [ "$COMP_CWORD" -eq 2 ]; then
    case "\${COMP_WORDS[1]}" in
${first.join("\n")}
    esac
  fi ;;
  esac
  if [ -n "$words" ]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
  else
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  fi
}
complete -o filenames -F _obd obd`;
}

function zsh(entries: Entry[]): string {
  const commands = entries.map((e) => `    '${e.name}:${plain(e.summary)}'`);
  const values = [...choiceFlags(entries)].map(([name, choices]) =>
    `    ${name}) compadd -- ${choices.join(" ")}; return ;;`
  );
  const flags = entries.filter((e) => e.flags.length > 0).map((e) =>
    `      ${e.name}) compadd -- ${flagWords(e)} ;;`
  );
  const first = entries.filter((e) => e.choices.length > 0).map((e) =>
    `      ${e.name}) compadd -- ${e.choices.join(" ")}; return ;;`
  );
  return `#compdef obd
_obd() {
  local -a commands
  commands=(
${commands.join("\n")}
  )
  case "$words[CURRENT-1]" in
${values.join("\n")}
    ${valueFlags(entries).join("|")}) _files; return ;;
  esac
  if (( CURRENT == 2 )) && [[ "$words[CURRENT]" == -* ]]; then
    compadd -- --help --version
  elif (( CURRENT == 2 )); then
    _describe command commands
  elif [[ "$words[CURRENT]" == -* ]]; then
    case "$words[2]" in
${flags.join("\n")}
    esac
  else
    if (( CURRENT == 3 )); then
      case "$words[2]" in
${first.map((line) => `  ${line}`).join("\n")}
      esac
    fi
    _files
  fi
}
compdef _obd obd`;
}

function fish(entries: Entry[]): string {
  const lines = [
    "complete -c obd -n __fish_use_subcommand -s h -l help",
    "complete -c obd -n __fish_use_subcommand -s V -l version",
  ];
  for (const e of entries) {
    const here = `complete -c obd -n '__fish_seen_subcommand_from ${e.name}'`;
    lines.push(
      `complete -c obd -n __fish_use_subcommand -f -a ${e.name} -d '${
        plain(e.summary)
      }'`,
    );
    if (e.choices.length > 0) {
      lines.push(`${here} -f -a '${e.choices.join(" ")}'`);
    }
    for (const { names, choices, takesValue } of e.flags) {
      const said = names.map((name) =>
        name.startsWith("--") ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`
      );
      lines.push(
        `${here} ${said.join(" ")}${
          choices.length > 0
            ? ` -x -a '${choices.join(" ")}'`
            : takesValue
            ? " -r"
            : ""
        }`,
      );
    }
  }
  return lines.join("\n");
}

/** A summary inside single quotes. */
function plain(summary: string): string {
  return summary.replaceAll("'", "");
}

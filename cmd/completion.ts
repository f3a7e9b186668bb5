/** Completion scripts, made from the command table so that they cannot fall behind it. */

import type { Command } from "commander";

interface Entry {
  name: string;
  summary: string;
  flags: string[];
}

function entriesOf(program: Command): Entry[] {
  return program.commands.map((command) => ({
    name: command.name(),
    summary: command.summary(),
    flags: command.options.flatMap((o) =>
      [o.short, o.long].filter((f): f is string => typeof f === "string")
    ),
  }));
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

function bash(entries: Entry[]): string {
  const cases = entries.map((e) =>
    `    ${e.name}) words="${e.flags.join(" ")}" ;;`
  );
  return `_obd() {
  local word="\${COMP_WORDS[COMP_CWORD]}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${entries.map((e) => e.name).join(" ")} --help --version"
  elif [ "\${word#-}" != "$word" ]; then
    case "\${COMP_WORDS[1]}" in
${cases.join("\n")}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$word"))
}
complete -o filenames -F _obd obd`;
}

function zsh(entries: Entry[]): string {
  const commands = entries.map((e) =>
    `    '${e.name}:${e.summary.replaceAll("'", "")}'`
  );
  const cases = entries.map((e) =>
    `    ${e.name}) compadd -- ${e.flags.join(" ")} ;;`
  );
  return `#compdef obd
_obd() {
  local -a commands
  commands=(
${commands.join("\n")}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
  elif [[ "$words[CURRENT]" == -* ]]; then
    case "$words[2]" in
${cases.join("\n")}
    esac
  else
    _files
  fi
}
compdef _obd obd`;
}

function fish(entries: Entry[]): string {
  const lines: string[] = [];
  for (const e of entries) {
    lines.push(
      `complete -c obd -n __fish_use_subcommand -f -a ${e.name} -d '${
        e.summary.replaceAll("'", "")
      }'`,
    );
    for (const flag of e.flags.filter((f) => f.startsWith("--"))) {
      lines.push(
        `complete -c obd -n '__fish_seen_subcommand_from ${e.name}' -l ${
          flag.slice(2)
        }`,
      );
    }
  }
  return lines.join("\n");
}

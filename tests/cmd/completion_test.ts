/** Completion scripts, run by the shells that they are for. */

import assert from "node:assert/strict";
import { createProgram } from "../../cmd/cli.ts";
import { completionScript } from "../../cmd/completion.ts";
import { installed, requires } from "../testutil/requires.ts";
import { withTempDir } from "./run_obd.ts";

const program = createProgram(() => {});
const scriptFor = (shell: string) => completionScript(program, shell)!;

async function shell(
  program: string,
  args: string[],
  cwd = "/",
): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args,
    cwd,
    stdin: "null",
  }).output();
  const text = new TextDecoder().decode(stdout);
  assert.equal(code, 0, `${text}${new TextDecoder().decode(stderr)}`);
  return text;
}

/** What each shell must offer: words before the cursor, the word begun, its completions. */
const CASES: [words: string[], begun: string, offered: string[]][] = [
  [[], "bu", ["build"]],
  [[], "mou", ["mount", "mounts"]],
  [[], "he", ["help"]],
  [["build"], "--vs", ["--vsize"]],
  [[], "--ver", ["--version"]],
  [["mount"], "--ap", ["--api"]],
  [["mount"], "--ver", ["--version"]],
  [["trace"], "r", ["record"]],
  [["build", "--format"], "o", ["overlaybd"]],
  [["ls", "--log-format"], "", ["json", "text"]],
  [["ls", "--log-format"], "j", ["json"]],
  [["completion"], "f", ["fish"]],
  [["help"], "ins", ["inspect"]],
];

Deno.test("every command and option is in every script", () => {
  for (const name of ["bash", "zsh", "fish"]) {
    const script = scriptFor(name);
    for (const command of program.commands) {
      assert.match(script, new RegExp(`\\b${command.name()}\\b`), name);
      for (const option of command.options) {
        const flag = option.long!.slice(2);
        assert.match(
          script,
          new RegExp(`(--|-l )${flag}\\b`),
          `${name}: ${flag}`,
        );
      }
    }
  }
  assert.equal(completionScript(program, "csh"), undefined);
});

Deno.test({
  name: "bash completes commands, options, values and files",
  ignore: !requires("bash"),
  fn: () =>
    withTempDir(async (dir) => {
      await Deno.writeTextFile(`${dir}/a file.json`, "");
      await Deno.writeTextFile(`${dir}/obd.bash`, scriptFor("bash"));
      await shell("bash", ["-n", `${dir}/obd.bash`]);
      const complete = async (words: string[]) => {
        const text = await shell("bash", [
          "--norc",
          "-c",
          'source ./obd.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _obd; printf "%s\\n" "${COMPREPLY[@]}"',
          "bash",
          "obd",
          ...words,
        ], dir);
        return text.trimEnd().split("\n");
      };
      for (const [words, begun, offered] of CASES) {
        const got = (await complete([...words, begun])).sort();
        assert.deepEqual(got, offered, `obd ${[...words, begun].join(" ")}`);
      }
      assert.deepEqual(await complete(["serve", "--config", "a"]), [
        "a file.json",
      ]);
      assert.deepEqual(await complete(["inspect", "a"]), ["a file.json"]);
    }),
});

Deno.test({
  name: "zsh completes commands, options and values",
  ignore: !installed("zsh"),
  fn: () =>
    withTempDir(async (dir) => {
      await Deno.writeTextFile(`${dir}/_obd`, scriptFor("zsh"));
      await shell("zsh", ["-n", `${dir}/_obd`]);
      // The completion system itself needs a terminal; its two functions do not.
      const prelude = `
        compdef() { }
        offer() { local w; for w in "$@"; do [[ "$w" == "$words[CURRENT]"* ]] && print -r -- "$w"; done; true }
        compadd() { [[ "$1" == -- ]] && shift; offer "$@" }
        _describe() { offer "\${(@P)\${2}%%:*}" }
        _files() { print -r -- FILES }
        source ./_obd
        words=("$@"); CURRENT=$#; _obd; true`;
      for (const [words, begun, offered] of CASES) {
        const line = ["obd", ...words, begun];
        const text = await shell(
          "zsh",
          ["-f", "-c", prelude, "zsh", ...line],
          dir,
        );
        const got = text.split("\n").filter((w) => w !== "").sort();
        assert.deepEqual(got, offered, line.join(" "));
      }
      const files = await shell(
        "zsh",
        ["-f", "-c", prelude, "zsh", "obd", "serve", "--config", ""],
        dir,
      );
      assert.equal(files, "FILES\n");
    }),
});

Deno.test({
  name: "fish completes commands, options and values",
  ignore: !installed("fish"),
  fn: () =>
    withTempDir(async (dir) => {
      await Deno.writeTextFile(`${dir}/obd.fish`, scriptFor("fish"));
      await shell("fish", ["--no-execute", `${dir}/obd.fish`]);
      for (const [words, begun, offered] of CASES) {
        const line = ["obd", ...words, begun].join(" ");
        const text = await shell("fish", [
          "--no-config",
          "-c",
          `source ./obd.fish; complete -C ${JSON.stringify(line)}`,
        ], dir);
        const got = text.split("\n").filter((w) => w !== "")
          .map((w) => w.split("\t")[0]).sort();
        assert.deepEqual(got, offered, line);
      }
    }),
});

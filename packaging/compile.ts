/**
 * `deno compile` of the whole program into `dist/obd`.
 *
 * The runtime base is downloaded on first use. Where that host cannot be
 * reached, `DENORT_BIN=FILE` names a base that is there already; with any ELF
 * file it still proves that the module graph compiles, but the result does not
 * run. `deno task bundle` makes a file that needs no download.
 */

const ROOT = new URL("..", import.meta.url).pathname;

const out = Deno.args[0] ?? `${ROOT}dist/obd`;
await Deno.mkdir(out.replace(/[^/]*$/, ""), { recursive: true });
const { code } = await new Deno.Command(Deno.execPath(), {
  args: [
    "compile",
    "-A",
    "--no-prompt",
    "--bundle",
    "--exclude-unused-npm",
    "-o",
    out,
    "main.ts",
  ],
  cwd: ROOT,
  stdin: "null",
}).spawn().status;
Deno.exit(code);

/**
 * Makes the one-file executable: a shell header, the stock `deno` binary and
 * the bundled program, a tar of modules. Needs no download but the npm packages.
 *
 * `deno task bundle [OUT_DIR] [--level N]` writes `obd-VERSION-linux-ARCH` and
 * `SHA256SUMS`. The same sources and runtime give the same bytes; `--level` is
 * gzip's (default 9).
 */

import { createHash } from "node:crypto";
import { relative } from "node:path";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";
import { concatBytes, roundUp } from "../lib/io/mod.ts";
import { ustarHeader } from "../lib/layers/ustar_header.ts";
import config from "../deno.json" with { type: "json" };

const ROOT = new URL("..", import.meta.url).pathname;
const ARCH: Record<string, string> = { x86_64: "x64", aarch64: "arm64" };
const TAR_BLOCK = 512;
const MAIN = "main.js";
/** Characters of an offset in the header. */
const OFFSET_WIDTH = 12;

function sha256(bytes: Uint8Array | string): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/**
 * The program and all it imports, WebAssembly included, as a tar of modules:
 * `main.js`, and pieces that are loaded by the commands and threads that need
 * them. One module for all would cost every start 0.1 s.
 */
export async function bundleProgram(): Promise<Uint8Array> {
  const dir = await Deno.makeTempDir();
  try {
    const { success, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "bundle",
        "--quiet",
        "--platform=deno",
        "--code-splitting",
        "--outdir",
        dir,
        "main.ts",
      ],
      cwd: ROOT,
      stdin: "null",
      stdout: "null",
    }).output();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
    const modules = new Map<string, string>();
    for (const { name } of Deno.readDirSync(dir)) {
      modules.set(name, await Deno.readTextFile(`${dir}/${name}`));
    }
    const encoder = new TextEncoder();
    const parts: Uint8Array[] = [];
    for (const [name, text] of placeless(modules, await npmPaths())) {
      const bytes = encoder.encode(text);
      const padding = roundUp(bytes.length, TAR_BLOCK) - bytes.length;
      parts.push(ustarHeader(name, 0o600, bytes.length), bytes);
      parts.push(new Uint8Array(padding));
    }
    return concatBytes([...parts, new Uint8Array(2 * TAR_BLOCK)]);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/** Where the runtime keeps npm packages, as paths in a bundle say it. */
async function npmPaths(): Promise<string[]> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json"],
    cwd: ROOT,
  }).output();
  const { npmCache } = JSON.parse(new TextDecoder().decode(stdout));
  const hosts = [...Deno.readDirSync(npmCache)].map(({ name }) => name);
  return hosts.map((host) => `${relative(ROOT, npmCache)}/${host}/`);
}

/**
 * The same modules whatever machine bundled them: paths of the package cache
 * are in comments and labels, and in the hashes that the pieces are named by.
 *
 * @param npmPaths Prefixes that mean the package cache.
 */
function placeless(
  modules: ReadonlyMap<string, string>,
  npmPaths: readonly string[],
): Map<string, string> {
  const references = (text: string) =>
    [...text.matchAll(/"\.\/([\w.-]+\.js)"/g)].map(([, name]) => name!)
      .filter((name) => modules.has(name));
  // In the order in which they are first imported.
  const names = new Map([[MAIN, MAIN]]);
  for (const name of names.keys()) {
    for (const next of references(modules.get(name)!)) {
      if (names.has(next)) continue;
      const stem = next.replace(/-[0-9A-Z]{8}\.js$/, "");
      names.set(next, `${stem}-${names.size}.js`);
    }
  }
  const result = new Map<string, string>();
  for (const [name, newName] of names) {
    let text = modules.get(name)!;
    for (const old of new Set(references(text))) {
      text = text.replaceAll(`"./${old}"`, `"./${names.get(old)}"`);
    }
    for (const path of npmPaths) text = text.replaceAll(path, "npm:");
    // The runtime loads what such an import names at every start, unless it has
    // to run the program to know the name.
    text = text.replaceAll(
      /\bimport\(("\.\/[\w.-]+\.js")\)/g,
      "import(new URL($1, import.meta.url).href)",
    );
    result.set(newName, text);
  }
  return result;
}

/** The file's bytes for one program and one runtime; the same input gives the same file. */
export async function assemble(
  program: Uint8Array,
  runtime: Uint8Array,
  level = 9,
): Promise<Uint8Array> {
  const packedRuntime = gzipSync(runtime, { level });
  const packedProgram = gzipSync(program, { level });
  const template = await Deno.readTextFile(`${ROOT}packaging/header.sh`);
  const values: Record<string, string> = {
    VERSION: config.version,
    HASH: sha256(sha256(runtime) + sha256(program)),
    RUNTIME_SHA256: sha256(runtime),
    PROGRAM_SHA256: sha256(program),
    RUNTIME_SIZE: String(packedRuntime.length),
    PROGRAM_SIZE: String(packedProgram.length),
  };
  // The offsets stand in the header whose length they depend on: they have a fixed width.
  const filled = template.replaceAll(
    /@([A-Z0-9_]+)@/g,
    (all, name: string) => values[name] ?? all,
  );
  const length = new TextEncoder().encode(
    filled.replaceAll(/@[A-Z_]+_AT@/g, " ".repeat(OFFSET_WIDTH)),
  ).length;
  const offset = (at: number) => String(at + 1).padStart(OFFSET_WIDTH);
  const header = new TextEncoder().encode(
    filled.replaceAll("@RUNTIME_AT@", offset(length))
      .replaceAll("@PROGRAM_AT@", offset(length + packedRuntime.length)),
  );
  return concatBytes([header, packedRuntime, packedProgram]);
}

async function main(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    options: { level: { type: "string", default: "9" } },
    allowPositionals: true,
  });
  const outDir = positionals[0] ?? `${ROOT}dist`;
  const level = Number(values.level);
  if (positionals.length > 1 || !(level >= 1 && level <= 9)) {
    console.error("usage: deno task bundle [OUT_DIR] [--level 1…9]");
    return 2;
  }
  const arch = ARCH[Deno.build.arch];
  if (Deno.build.os !== "linux" || arch === undefined) {
    console.error(
      `bundle: linux x64 or arm64 only, this is ${Deno.build.target}`,
    );
    return 1;
  }
  await Deno.mkdir(outDir, { recursive: true });
  const program = await bundleProgram();
  const runtime = await Deno.readFile(Deno.execPath());
  const file = await assemble(program, runtime, level);
  const name = `obd-${config.version}-linux-${arch}`;
  const temp = `${outDir}/.${name}.tmp`;
  await Deno.writeFile(temp, file, { mode: 0o755 });
  await Deno.rename(temp, `${outDir}/${name}`);
  await Deno.writeTextFile(
    `${outDir}/SHA256SUMS`,
    `${sha256(file)}  ${name}\n`,
  );
  console.log(`${outDir}/${name} (${(file.length / 1e6).toFixed(1)} MB)`);
  return 0;
}

if (import.meta.main) Deno.exit(await main(Deno.args));

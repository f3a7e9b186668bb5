/** The tree's one direction of imports (ARCHITECTURE.md), as a test. */
import assert from "node:assert/strict";

const ROOT = new URL("../../", import.meta.url).pathname;

/** Folder → folders whose `mod.ts` it may import. */
const ALLOWED: Record<string, string[]> = {
  "lib/io": [],
  "lib/compress": ["lib/io"],
  "lib/tar": ["lib/io"],
  "lib/ext4": ["lib/io"],
  "lib/registry": ["lib/io"],
  "lib/nbd": ["lib/io"],
  "lib/zfile": ["lib/io", "lib/compress"],
  "lib/layers": [
    "lib/io",
    "lib/compress",
    "lib/tar",
    "lib/ext4",
    "lib/zfile",
  ],
  "lib/image": [
    "lib/io",
    "lib/compress",
    "lib/tar",
    "lib/ext4",
    "lib/zfile",
    "lib/layers",
    "lib/registry",
  ],
  "cmd": ["lib/io", "lib/image", "lib/nbd"],
  "main.ts": ["lib/io", "cmd", "lib/image"],
};

/** Folder → third-party packages; `node:` modules are free. */
const PACKAGES: Record<string, string[]> = {
  "lib/registry": ["valibot"],
  "lib/image": ["valibot", "mysql2"],
  "cmd": ["hono", "commander", "valibot", "jsonc-parser", "@zip.js/zip.js"],
};

/** A thread of the one-file bundle has no other way to its role (lib/io/worker.ts). */
const EXCEPTIONS = new Set(["main.ts imports lib/image/workers.ts"]);

interface Import {
  file: string;
  specifier: string;
}

async function* sourceFiles(dir: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(ROOT + dir)) {
    const path = `${dir}/${entry.name}`;
    if (entry.isDirectory) yield* sourceFiles(path);
    else if (path.endsWith(".ts")) yield path;
  }
}

async function importsOf(file: string): Promise<Import[]> {
  const text = (await Deno.readTextFile(ROOT + file))
    .replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  const pattern =
    /(?:^|[;\n])\s*(?:import|export)\b[^;"'`]*?from\s*["']([^"']+)["']|(?:^|[;\n])\s*import\s*["']([^"']+)["']|\bimport\(\s*["']([^"']+)["']/g;
  return [...text.matchAll(pattern)].map((m) => ({
    file,
    specifier: (m[1] ?? m[2] ?? m[3])!,
  }));
}

function folderOf(path: string): string {
  const parts = path.split("/");
  if (parts[0] === "lib") return `${parts[0]}/${parts[1]}`;
  return parts[0]!;
}

async function allFiles(): Promise<string[]> {
  const files = ["main.ts"];
  for (const dir of ["lib", "cmd"]) {
    for await (const file of sourceFiles(dir)) files.push(file);
  }
  return files;
}

Deno.test("imports go in one direction, and only through mod.ts", async () => {
  const wrong: string[] = [];
  for (const file of await allFiles()) {
    const from = folderOf(file);
    for (const { specifier } of await importsOf(file)) {
      if (!specifier.startsWith(".")) continue;
      const target = new URL(specifier, `file:///${file}`).pathname.slice(1);
      const to = folderOf(target);
      if (to === from || !target.endsWith(".ts")) continue;
      if (EXCEPTIONS.has(`${file} imports ${target}`)) continue;
      if (!ALLOWED[from]?.includes(to)) {
        wrong.push(`${file} imports ${target}`);
      } else if (to.startsWith("lib/") && target !== `${to}/mod.ts`) {
        wrong.push(`${file} imports ${target} past ${to}/mod.ts`);
      }
    }
  }
  assert.deepEqual(wrong, []);
});

Deno.test("third-party packages stay in their folders", async () => {
  const wrong: string[] = [];
  for (const file of await allFiles()) {
    for (const { specifier } of await importsOf(file)) {
      if (specifier.startsWith(".") || specifier.startsWith("node:")) continue;
      const parts = specifier.split("/");
      const name = specifier.startsWith("@")
        ? parts.slice(0, 2).join("/")
        : parts[0]!;
      if (!PACKAGES[folderOf(file)]?.includes(name)) {
        wrong.push(`${file} imports ${specifier}`);
      }
    }
  }
  assert.deepEqual(wrong, []);
});

Deno.test("no source file is left over", async () => {
  const files = await allFiles();
  const reached = new Set<string>(["main.ts"]);
  const queue = ["main.ts"];
  for (const file of files) {
    if (file.startsWith("lib/") && file.endsWith("/mod.ts")) {
      reached.add(file);
      queue.push(file);
    }
  }
  while (queue.length > 0) {
    for (const { file, specifier } of await importsOf(queue.pop()!)) {
      if (!specifier.startsWith(".")) continue;
      const target = new URL(specifier, `file:///${file}`).pathname.slice(1);
      if (!target.endsWith(".ts") || reached.has(target)) continue;
      reached.add(target);
      queue.push(target);
    }
  }
  // A build script is run, not imported.
  const left = files.filter((f) =>
    !reached.has(f) && !f.endsWith("/wasm/build.ts")
  );
  assert.deepEqual(left, []);
});

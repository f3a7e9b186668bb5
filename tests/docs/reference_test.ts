/** Pages that must follow the code. */

import assert from "node:assert/strict";
import { KNOWN_KEYS } from "../../cmd/config_schema.ts";
import { presentPage, wantedPage } from "./command_reference.ts";
import { shellBlocks } from "./shell_blocks.ts";

const ROOT = new URL("../../", import.meta.url).pathname;

function read(path: string): Promise<string> {
  return Deno.readTextFile(ROOT + path);
}

Deno.test("cmd/README.md is what `deno task docs` writes", async () => {
  assert.equal(await presentPage(), await wantedPage());
});

Deno.test("README.md names every key of a configuration file", async () => {
  const page = await read("README.md");
  for (const key of KNOWN_KEYS) {
    const [section, name] = key.replace("[]", "").split(".");
    // A section stands before its keys; a key alone may be in its section's row.
    const wanted = name ?? section!;
    assert.ok(page.includes(`\`${wanted}\``), `README.md: no \`${key}\``);
  }
});

Deno.test("README.md names every route of the status API", async () => {
  const page = await read("README.md");
  const routes = (await read("cmd/api.ts"))
    .matchAll(/app\.(get|post|delete)\(\s*"([^"]+)"/g);
  let count = 0;
  for (const [, method, path] of routes) {
    const shown = `${method!.toUpperCase()} ${
      path!.replace(/:name.*$/, "NAME")
    }`;
    assert.ok(page.includes(`\`${shown}\``), `README.md: no \`${shown}\``);
    count++;
  }
  assert.ok(count >= 8, `found only ${count} routes`);
});

Deno.test("ARCHITECTURE.md is at most 150 lines", async () => {
  const lines = (await read("ARCHITECTURE.md")).trimEnd().split("\n").length;
  assert.ok(lines <= 150, `${lines} lines`);
});

Deno.test("links between pages lead somewhere", async () => {
  for (const file of await pages(".")) {
    const text = await read(file);
    for (const [, target] of text.matchAll(/\]\(([^)\s#]+)(?:#[^)]*)?\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue;
      const path = new URL(target!, `file:///${file}`).pathname;
      await Deno.stat(ROOT + path).catch(() => {
        throw new Error(`${file}: no ${target}`);
      });
    }
  }
});

Deno.test("shellBlocks() finds blocks and what stands before them", () => {
  const page = [
    "<!-- run: one; needs: mount, fio -->",
    "",
    "```sh",
    "echo 1",
    "echo 2",
    "```",
    "<!-- not run: a person's password -->",
    "```sh",
    "login",
    "```",
    "```sh",
    "echo 3",
    "```",
    "```ts",
    "const a = 1;",
    "```",
  ].join("\n");
  assert.deepEqual(shellBlocks("x.md", page), [
    {
      file: "x.md",
      line: 4,
      text: "echo 1\necho 2",
      marker: { kind: "run", session: "one", needs: ["mount", "fio"] },
    },
    {
      file: "x.md",
      line: 9,
      text: "login",
      marker: { kind: "not run", reason: "a person's password" },
    },
    { file: "x.md", line: 12, text: "echo 3", marker: undefined },
  ]);
});

/** Markdown files of the tree. */
async function pages(dir: string): Promise<string[]> {
  const found: string[] = [];
  for await (const entry of Deno.readDir(ROOT + dir)) {
    const path = dir === "." ? entry.name : `${dir}/${entry.name}`;
    if (entry.name.startsWith(".") || entry.name === "testdata") continue;
    if (entry.isDirectory) found.push(...await pages(path));
    else if (entry.name.endsWith(".md")) found.push(path);
  }
  return found.sort();
}
